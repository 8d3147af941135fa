// Package workloadapi serves the SPIFFE Workload API (SPIFFE Workload API and
// Endpoint specifications): over a local socket, every workload fetches its own
// SVIDs and the bundle, with no secret to begin with. Envoy gets the same over
// its Secret Discovery Service.
//
// Who is calling is found out at the connection (see package sockowner) and
// asked again for every call and before everything that is sent. A stream is
// told of each change when it happens: a renewed SVID, another bundle, and its
// end, when the caller is no workload any more. Nothing polls.
package workloadapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"merlon/authority"
	"merlon/identity/spiffe"
	"merlon/internal/bucket"
	"merlon/internal/sockowner"
)

// Bounds of what callers may ask for.
const (
	maxConns        = 4096 // in all
	maxConnsProcess = 8    // of one process
	maxStreams      = 32   // at a time on one connection
	maxMessage      = 64 << 10
	maxHeader       = 8 << 10
	maxTokens       = 100              // JWT-SVIDs at once for one workload, then tokenRate
	tokenRate       = 20               // a second
	idleTime        = 5 * time.Minute  // of a connection without calls
	handshakeTime   = 30 * time.Second // a node where a thousand start at once is slow
)

// Authority signs: the authority itself, or on another host than its own the
// agent of a node, which has it sign.
type Authority interface {
	Trust() *authority.Trust
	Source(ctx context.Context, id string, log *slog.Logger) (*authority.Source, error)
	IssueJWT(id string, audience []string, now time.Time) (token string, notAfter time.Time, err error)
}

// Config of a Server.
type Config struct {
	Authority   Authority
	TrustDomain string

	// Identify is the name of the workload that a process is. The error is for
	// the log: a caller hears only that it has no identity.
	Identify func(context.Context, *sockowner.Process) (name string, err error)
	// Changed is closed when Identify may answer otherwise than now.
	Changed func() <-chan struct{}

	// Federated are the bundles of other trust domains, in a fixed order, and a
	// channel that is closed when there are others. It may be nil.
	Federated func() ([]*spiffe.Bundle, <-chan struct{})

	Now func() time.Time // nil is time.Now
	Log *slog.Logger     // hears who is refused; nil is nowhere
}

// Server serves the Workload API. Use New.
type Server struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	cfg     Config
	grpc    *grpc.Server
	ctx     context.Context
	cancel  context.CancelFunc
	callers *callers

	mu      sync.Mutex
	svids   map[string]*shared // by SPIFFE ID, while anybody streams it
	buckets map[string]*bucket.Bucket
}

// New makes a Server.
func New(cfg Config) (*Server, error) {
	if !sockowner.Supported() {
		return nil, fmt.Errorf("the Workload API: %w", sockowner.ErrUnsupported)
	}
	if cfg.Authority == nil || cfg.TrustDomain == "" || cfg.Identify == nil || cfg.Changed == nil {
		return nil, errors.New("the Workload API needs an authority, a trust domain, and a way to tell workloads")
	}
	if cfg.Federated == nil {
		cfg.Federated = func() ([]*spiffe.Bundle, <-chan struct{}) { return nil, nil }
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, callers: newCallers(cfg.Log, cfg.Now), svids: map[string]*shared{}, buckets: map[string]*bucket.Bucket{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.grpc = grpc.NewServer(
		grpc.Creds(s.callers),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.ConnectionTimeout(handshakeTime),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: idleTime}),
		// A thousand workloads wait at their streams: they hold little memory.
		grpc.ReadBufferSize(2<<10), grpc.WriteBufferSize(2<<10), grpc.SharedWriteBuffer(true),
		grpc.InitialWindowSize(64<<10), grpc.InitialConnWindowSize(64<<10),
	)
	workload.RegisterSpiffeWorkloadAPIServer(s.grpc, s)
	s.grpc.RegisterService(secretService(), s)
	return s, nil
}

// Serve answers on l until Close: a Unix socket, or a TCP socket of the
// loopback address.
func (s *Server) Serve(l net.Listener) error {
	if tcp, ok := l.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
		l.Close()
		return fmt.Errorf("the Workload API is for this host: %v is not a loopback address", tcp)
	}
	err := s.grpc.Serve(l)
	if errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

// Close ends all calls.
func (s *Server) Close() {
	s.cancel()
	s.grpc.Stop()
}

// scheme begins every SPIFFE ID.
const scheme = "spiffe://"

// header is the metadata that a Workload API call must have (SPIFFE Workload
// Endpoint 5): what a server is tricked to fetch (SSRF) has not.
const header = "workload.spiffe.io"

func checkHeader(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get(header); len(v) != 1 || v[0] != "true" {
		return status.Errorf(codes.InvalidArgument, "the metadata %q must be \"true\"", header)
	}
	return nil
}

// identify is the SPIFFE ID of the caller.
func (s *Server) identify(ctx context.Context) (string, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "", denied()
	}
	c, ok := p.AuthInfo.(*caller)
	if !ok {
		return "", denied()
	}
	var name string
	err := c.with(func(p *sockowner.Process) (err error) {
		name, err = s.cfg.Identify(ctx, p)
		return err
	})
	if err != nil {
		if ctx.Err() == nil {
			s.callers.refused("a process asked for an identity and has none", "pid", c.pid, "err", err)
		}
		return "", denied()
	}
	return scheme + s.cfg.TrustDomain + "/" + name, nil
}

// denied is all that a caller without identity hears.
func denied() error {
	return status.Error(codes.PermissionDenied, "no identity is issued to this process; merlon id explain says why")
}

// changes are the ends of what was answered.
type changes struct {
	who, trust, svid, others <-chan struct{}
	federated                []*spiffe.Bundle // others is about them
}

// follow sends an answer, and another whenever it is a new one, until the
// caller goes or is no workload any more. The answer that make gives for a
// workload may be nil: nothing is sent until something changes.
func (s *Server) follow(ctx context.Context, make func(id string, c *changes) (key string, send func() error, err error)) error {
	last := ""
	for {
		// The channels are taken before what they are about is read: no change
		// in between is missed.
		c := changes{who: s.cfg.Changed(), trust: s.cfg.Authority.Trust().Stale()}
		c.federated, c.others = s.cfg.Federated()
		id, err := s.identify(ctx)
		if err != nil {
			return err
		}
		key, send, err := make(id, &c)
		if err != nil {
			return err
		}
		if key != last && send != nil {
			if err := send(); err != nil {
				return err
			}
			last = key
		}
		select {
		case <-c.who:
		case <-c.trust:
		case <-c.svid:
		case <-c.others:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ctx.Done():
			return status.Error(codes.Unavailable, "the server stops")
		}
	}
}

// take bounds how many JWT-SVIDs are signed for a workload: each is a line in
// the journal, which keeps the youngest only.
func (s *Server) take(id string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.buckets[id]
	if b == nil { // there are as many as the intent has services
		b = bucket.New(maxTokens, tokenRate, now)
		s.buckets[id] = b
	}
	return b.Take(now)
}

// shared is the SVID of one workload, renewed while anybody streams it. All
// processes of a workload have the same key.
type shared struct {
	users  int           // of Server.mu
	ready  chan struct{} // closed when what follows is known
	source *authority.Source
	err    error
	cancel context.CancelFunc
}

// acquire gives the workload's SVID until release. Who is first has it issued,
// and others of the same workload wait for that; other workloads do not.
func (s *Server) acquire(id string) (*authority.Source, func(), error) {
	s.mu.Lock()
	h, first := s.svids[id], s.svids[id] == nil
	if first {
		h = &shared{ready: make(chan struct{})}
		s.svids[id] = h
	}
	h.users++
	s.mu.Unlock()
	if first {
		var ctx context.Context
		ctx, h.cancel = context.WithCancel(s.ctx)
		h.source, h.err = s.cfg.Authority.Source(ctx, id, s.cfg.Log)
		close(h.ready)
	}
	<-h.ready
	release := sync.OnceFunc(func() { s.release(id, h) })
	if h.err != nil {
		release()
		return nil, nil, h.err
	}
	return h.source, release, nil
}

// release lets go of an SVID. Nobody renews what nobody streams. One that could
// not be issued is forgotten at once: who comes next tries again.
func (s *Server) release(id string, h *shared) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h.users--
	if h.users > 0 && h.err == nil {
		return
	}
	h.cancel()
	if s.svids[id] == h {
		delete(s.svids, id)
	}
}

// unavailable is the answer when the authority cannot issue: the cause is for
// the log.
func (s *Server) unavailable(id string, err error) error {
	s.cfg.Log.Error("an SVID could not be issued", "id", id, "err", err)
	return status.Error(codes.Unavailable, "an SVID could not be issued; the authority's log says why")
}
