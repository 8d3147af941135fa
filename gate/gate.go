// Package gate is the data plane: one program in two positions. At the edge it
// is the gateway; beside a service it is the gate through which that service
// is called and calls others.
//
// A call is one flat sequence of steps over a value (see pipeline.go); every
// step may deny or pass, and only the policy allows. What is in force is one
// immutable value behind one atomic pointer, read once per call, so that a call
// sees exactly one version of the intent. Replacing it drops no connection and
// asks calls that are still streaming again.
//
// The engine is a goroutine per connection over the pure protocol core in
// gate/http1. HTTP/2 (gate/http2) is translated at the doors, towards clients and
// towards upstreams: each stream of it is a connection of HTTP/1.1 to the engine.
// gRPC is HTTP with four differences (rpc.go). What a WebSocket or CONNECT opens
// is a tunnel (tunnel.go). Everything else is refused with a reason.
package gate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"merlon"
	"merlon/gate/filter/limit"
	"merlon/gate/http1"
	"merlon/identity/assertion"
	"merlon/identity/spiffe"
	"merlon/internal/coarse"
	"merlon/internal/otlp"
	"merlon/record"
)

// Config is what a gate is made of. Every field is needed unless it says so.
type Config struct {
	Place       merlon.Place
	TrustDomain string
	Source      spiffe.Source // this place's SVID and the roots it trusts
	Records     *record.Writer
	Log         *slog.Logger

	// RootsOf gives the roots of another trust domain, as they are now, or nil.
	// Without it orders that name a caller of another trust domain are refused.
	RootsOf func(trustDomain string) *x509.CertPool

	// Own returns nil if the process at the other end of a connection to the
	// local side is of the gate's own service, and else who is there, for the
	// record. It is asked once per connection, before its first call, and again
	// after new orders and AskOwn. Without it every process that reaches the local
	// side calls as the service, and orders that name a workload are refused.
	Own func(net.Conn) error

	// Captured returns where a connection to the listener of ServeCaptured was
	// going when the kernel brought it there, and refuses one that was not
	// brought, and one of this gate's own. It is asked once per connection; nil
	// refuses all.
	Captured func(net.Conn) (netip.AddrPort, error)

	// Resolve finds the addresses of names under which services are dialed, for
	// captured connections; nil for the system's.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)

	// Listen opens a local port, by a name under which it may be handed on to
	// another process; nil for net.Listen.
	Listen func(name, address string) (net.Listener, error)

	// DialOwn opens a TCP connection to the gate's own service, which may be in
	// another network namespace than the gate; nil for the system's.
	DialOwn func(ctx context.Context, address string) (net.Conn, error)

	// EdgeCertificate proves the gateway's hosts when the intent leaves the
	// certificate to Merlon. Only the edge asks for it.
	EdgeCertificate func(hosts []string) (*tls.Certificate, error)

	Bounds Bounds // zero fields take the defaults

	// Portable turns off the I/O layer made for Linux.
	Portable bool
}

// Bounds are the limits that no client can push a gate beyond.
type Bounds struct {
	Connections          int           // open at once, for the whole gate; default 20,000
	ConnectionsPerClient int           // and streams of HTTP/2 in progress, from one address, at the edge; default 1,000
	LimitKeys            int           // clients and callers remembered by limits; default 100,000
	Handshake            time.Duration // TLS handshake; default 10 s
	Head                 time.Duration // from its first byte to the end of a request head; default 10 s
	Idle                 time.Duration // between requests on one connection; default 75 s
	Stall                time.Duration // without progress on a body, either way; default 60 s
	Quiet                time.Duration // without a byte on what is long-lived: tunnels and streams; default 1 h
	Connect              time.Duration // to an upstream, with its handshake; default 3 s
}

func (b *Bounds) setDefaults() {
	setDefault(&b.Connections, 20_000)
	setDefault(&b.ConnectionsPerClient, 1_000)
	setDefault(&b.LimitKeys, 100_000)
	setDefault(&b.Handshake, 10*time.Second)
	setDefault(&b.Head, 10*time.Second)
	setDefault(&b.Idle, 75*time.Second)
	setDefault(&b.Stall, 60*time.Second)
	setDefault(&b.Quiet, time.Hour)
	setDefault(&b.Connect, 3*time.Second)
}

func setDefault[T comparable](p *T, value T) {
	var zero T
	if *p == zero {
		*p = value
	}
}

// Gate enforces orders at one place. It denies everything until Swap has
// given it orders.
type Gate struct {
	cfg      Config
	force    atomic.Pointer[force]
	clock    *coarse.Clock
	limiter  *limit.Limiter
	signer   *assertion.Signer
	signing  atomic.Pointer[signing]
	callers  *assertion.Cache // of assertions already verified
	ids      idSource
	open     registry
	tunnels  tunnels
	ports    ports
	dialed   dialed
	runners  runners
	tidy     tidy
	swapping sync.Mutex
	leaving  atomic.Bool   // answers say that their connections end
	draining atomic.Bool   // and connections end when they are idle
	swept    atomic.Int64  // when the sweeper last came by, on clock
	proofs   atomic.Uint64 // how often local callers had to prove themselves anew
	metrics  metrics
	spans    *otlp.Exporter
	// placeName is the place as records have it.
	placeName string
}

// New makes a gate. Serve starts it, Close ends it.
func New(cfg Config) (*Gate, error) {
	cfg.Bounds.setDefaults()
	if cfg.Listen == nil {
		cfg.Listen = func(_, address string) (net.Listener, error) { return net.Listen("tcp", address) }
	}
	if cfg.Resolve == nil {
		cfg.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	if cfg.Source == nil || cfg.Records == nil || cfg.Log == nil {
		return nil, errors.New("gate: Source, Records and Log are needed")
	}
	ids, err := newIDSource()
	if err != nil {
		return nil, err
	}
	g := &Gate{
		cfg:       cfg,
		clock:     coarse.Start(time.Now, 10*time.Millisecond),
		limiter:   limit.New(cfg.Bounds.LimitKeys),
		callers:   assertion.NewCache(10_000),
		ids:       ids,
		placeName: cfg.Place.String(),
	}
	g.signer = assertion.NewSigner(g.signingKey, "spiffe://"+cfg.TrustDomain+"/"+cfg.Place.Workload())
	g.spans = g.newExporter()
	g.metrics.init(runtime.GOMAXPROCS(0), cfg.Place.Workload())
	g.open.init(cfg.Bounds)
	go g.sweep()
	return g, nil
}

// Position is the side of a gate on which a connection arrives.
type Position uint8

const (
	AtEdge   Position = iota // from outside, over TLS or plain as the intent says
	Inbound                  // from other gates, over mutual TLS
	Outbound                 // from the gate's own service, plain, on a local address
)

// String names the position in records.
func (p Position) String() string { return [...]string{"edge", "in", "out"}[p] }

// Serve accepts connections from l until l is closed or the gate drains. With the
// first call local ports begin to accept, too. It always returns a non-nil error;
// net.ErrClosed after a drain.
func (g *Gate) Serve(l net.Listener, at Position) error { return g.serve(l, at, door{}) }

// ServeCaptured is Serve at Outbound for connections that the kernel brings to
// l while they go elsewhere.
func (g *Gate) ServeCaptured(l net.Listener) error { return g.serve(l, Outbound, door{captured: true}) }

// door is what else is known of where a connection comes in.
type door struct {
	port     uint16 // of the local port; 0 for none
	captured bool   // it was going elsewhere
	proxied  bool   // a header of the PROXY protocol comes first
}

func (g *Gate) serve(l net.Listener, at Position, in door) error {
	if !g.open.addListener(l) {
		l.Close()
		return net.ErrClosed
	}
	g.servePorts()
	return g.accept(l, at, in)
}

// accept is serve for a listener that the registry knows.
func (g *Gate) accept(l net.Listener, at Position, in door) error {
	var pause time.Duration
	for {
		nc, err := l.Accept()
		if err != nil {
			if g.leaving.Load() || errors.Is(err, net.ErrClosed) {
				return net.ErrClosed
			}
			// Out of descriptors, or a connection gone before it was
			// accepted: neither may end the gate.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			g.cfg.Log.Warn("accept failed", "at", at, "error", err, "pause", pause)
			time.Sleep(pause)
			continue
		}
		pause = 0
		g.metrics.accepted[at].Add(1)
		client := clientAddress(nc)
		// Who is behind a proxy is counted once that is known.
		in.proxied = at == AtEdge && g.proxied(client)
		counted := at == AtEdge && !in.proxied && !g.trusts(client)
		if !g.open.admit(client, counted) {
			g.metrics.turnedAway.Add(1)
			nc.Close()
			continue
		}
		g.tidy.opened.Add(1)
		go g.serveConn(nc, at, client, counted, in)
	}
}

// Drain stops accepting, lets calls in progress finish and closes connections
// as they fall idle, until none is left or ctx ends; then it closes the rest.
func (g *Gate) Drain(ctx context.Context) error { return g.Leave(ctx, 0) }

// Leave is Drain for a gate whose place another one takes. For as long as
// patience, idle connections stay, so that the answer to its next request tells
// a client that the connection ends (RFC 9112 9.6). The request that a client
// sends in the very moment in which its idle connection is closed is lost.
func (g *Gate) Leave(ctx context.Context, patience time.Duration) error {
	g.leaving.Store(true)
	g.open.closeListeners()
	g.open.interrupt(idle) // HTTP/2 can be told at once
	closeIdle := time.Now().Add(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for g.open.count() > 0 {
		if !time.Now().Before(closeIdle) {
			g.draining.Store(true)
			g.open.interrupt(idle)
		}
		select {
		case <-ctx.Done():
			g.open.closeAll()
			g.Close()
			return fmt.Errorf("gate: drain cut short: %w", ctx.Err())
		case <-tick.C:
		}
	}
	g.Close()
	return nil
}

// Close ends the gate at once: every wait of every call, and then waits until
// the calls have ended, so that their records are kept if the writer is closed
// after the gate.
func (g *Gate) Close() {
	g.leaving.Store(true)
	g.draining.Store(true)
	g.open.closeListeners()
	g.open.closeAll()
	g.swapping.Lock()
	defer g.swapping.Unlock()
	if f := g.force.Load(); f != nil {
		f.close(nil)
	}
	g.open.awaitNone()
	g.spans.Close()
	g.runners.close()
	g.open.stop()
	g.clock.Stop()
}

// limits bounds a request head. Only a service's own gate is a proxy in the
// sense of RFC 9112 3.2.2 and takes the absolute form.
func (at Position) limits() http1.Limits {
	return http1.Limits{Head: bufferSize, Target: maxTarget, Absolute: at == Outbound}
}
