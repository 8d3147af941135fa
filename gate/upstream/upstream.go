// Package upstream is where calls go: it finds the endpoints of a service,
// chooses one, and hands out connections to it.
//
// A Cluster is one service. Its endpoints are static addresses or DNS names
// that are resolved in the background. A call takes the less busy of two
// random healthy endpoints and the connection of that endpoint that was used
// last; what it saw there decides whether the endpoint stays in use.
//
// # Availability, not security
//
// Ejecting endpoints and retrying calls serve availability only. Nothing here
// lets a call through: who may call whom is decided before Get. Security is
// in one place, the TLS configuration of an endpoint, and that fails closed:
// an endpoint that must prove an identity is never spoken to in plain text.
//
// # Ejection
//
// An endpoint is ejected after consecutive failures, as the calls saw them:
// refused or timed-out connections, resets, gateway errors. The time out
// grows with every ejection. When it is over, one real call probes the
// endpoint; its outcome decides. At most half of the endpoints are ejected.
//
// Panic: when every endpoint is ejected or failing, ejection tells nothing
// about which one is better, so all of them are used, and the first to answer
// is back in.
//
// # Pooled connections
//
// A connection on which something can be read before a request was sent is
// never handed out: it has ended, or it holds bytes that would be taken for the
// answer to somebody else's call. Looking costs a system call that copies one
// byte, a hundredth of a call's work. What comes between the look and the
// request cannot be told from an answer; a call that meets a dead connection in
// that time sees the write or the first read fail. Conn.Reused tells that a
// failure may be that; Get with fresh cannot meet it again.
package upstream

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"merlon"
)

// Config says what a Cluster is. Zero fields have the defaults stated.
type Config struct {
	Name      string // of the service, for messages
	Endpoints []merlon.Endpoint

	// TLS is the configuration for a new connection to an endpoint, asked
	// each time so that certificates may rotate; nil means plain. An endpoint
	// with an ID or a TLSName is refused without one. The second value becomes
	// the connection's State. An error says that this side has nothing to prove
	// itself by, or to verify the endpoint by, which is no failure of the endpoint.
	TLS func(merlon.Endpoint) (config *tls.Config, state any, err error)

	// Dial opens the TCP connection below; nil for the system's.
	Dial func(ctx context.Context, address string) (net.Conn, error)

	// Mux makes of a new connection, whose Conn, State and Socket are set, one that
	// carries many calls at once, and of each loan a stream of it; nil means that a
	// connection carries one call at a time. It closes the connection in the end, unless it returns
	// an error. It calls changed, holding no lock, when the connection may take
	// more calls than before, or none any more.
	Mux func(first *Conn, changed func()) (Mux, error)

	ConnectTimeout time.Duration // TCP and TLS together, and the wait for a name or a free connection; 2 s
	IdleTimeout    time.Duration // of a pooled connection; 55 s, below the 60 s of most servers
	MaxAge         time.Duration // of a connection, so that peers prove themselves again; 1 h
	MaxIdle        int           // pooled connections of an endpoint; 256
	MaxConns       int           // all connections of an endpoint; 1024
	MaxWaiting     int           // calls that wait for one of them; 1024

	RetryPercent int // of calls that may be retried; 0 for none

	EjectAfter int           // consecutive failures; 5
	EjectBase  time.Duration // the first ejection, doubled by each further one; 5 s
	EjectMax   time.Duration // the longest, and how long an endpoint must be well for its past to be forgotten; 5 min

	Resolver     Resolver      // of dns: addresses; the system's
	RefreshEvery time.Duration // of dns: addresses; 15 s, kept within 1 s and 10 min

	Now func() time.Time // time.Now; the Now of a coarse clock is cheaper

	after func(time.Duration) <-chan time.Time // tests drive the background by it
}

// Resolver finds the addresses of a name; *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Reasons why there is no connection.
const (
	ReasonNoEndpoint merlon.Reason = "upstream_no_endpoint" // no address is known
	ReasonConnect    merlon.Reason = "upstream_connect"     // no endpoint could be connected to
	ReasonOverloaded merlon.Reason = "upstream_overloaded"  // all connections stayed in use
	ReasonUnready    merlon.Reason = "upstream_unready"     // Config.TLS gave an error
	ReasonCancelled  merlon.Reason = "upstream_cancelled"   // the caller's context ended first
	ReasonClosed     merlon.Reason = "upstream_closed"      // the cluster is closed
)

// Error says why Get gave no connection. Nothing was sent upstream.
type Error struct {
	Reason  merlon.Reason
	Cluster string
	Address string // of the endpoint tried last; "" for none
	Err     error  // the cause, for the record; may be nil
}

// Error is the reason, where, and the cause.
func (e *Error) Error() string {
	where := e.Cluster
	if e.Address != "" {
		where += " at " + e.Address
	}
	if e.Err == nil {
		return fmt.Sprintf("%s: %s", where, e.Reason)
	}
	return fmt.Sprintf("%s: %s: %v", where, e.Reason, e.Err)
}

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.Err }

// Cluster is the endpoints of one service and the connections to them. It is
// safe for concurrent use.
type Cluster struct {
	cfg    Config
	start  time.Time
	budget budget
	set    atomic.Pointer[set] // never nil
	bodies share
	counts struct{ connects, failed, ejections atomic.Uint64 }

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex // before the lock of an endpoint
	wanted  []merlon.Endpoint
	names   map[merlon.Endpoint]*name
	changed chan struct{} // closed and replaced when the endpoints or the state of a name change
}

// set is the endpoints at one time. The slice never changes; the summary of
// ejections does, under Cluster.mu.
type set struct {
	all     []*endpoint
	ejected atomic.Int32 // how many of all
	due     atomic.Int64 // when the first of them may be probed
}

// New makes a Cluster and starts to resolve its names. Close ends it.
func New(cfg Config) *Cluster {
	cfg = cfg.withDefaults()
	ctx, cancel := context.WithCancel(context.Background())
	c := &Cluster{
		cfg:     cfg,
		start:   cfg.Now(),
		ctx:     ctx,
		cancel:  cancel,
		names:   map[merlon.Endpoint]*name{},
		changed: make(chan struct{}),
	}
	c.SetRetry(cfg.RetryPercent)
	c.set.Store(&set{})
	c.Update(cfg.Endpoints)
	c.wg.Go(c.sweeper)
	return c
}

// Close closes idle connections and ends the background work, and waits for
// it. Connections in use are closed when they are released.
func (c *Cluster) Close() {
	c.cancel()
	c.Update(nil)
	c.wg.Wait()
}

// Update replaces the endpoints. Those that stay keep their connections and
// their past; idle connections of those that go are closed, and the ones in
// use when they are released.
func (c *Cluster) Update(wanted []merlon.Endpoint) {
	c.mu.Lock()
	if c.ctx.Err() != nil {
		wanted = nil
	}
	c.wanted = append([]merlon.Endpoint(nil), wanted...)
	c.watch()
	gone := c.rebuild()
	c.mu.Unlock()
	for _, ep := range gone {
		ep.retire()
	}
}

// SetRetry changes Config.RetryPercent.
func (c *Cluster) SetRetry(percent int) { c.budget.percent.Store(int64(min(max(percent, 0), 100))) }

// rebuild makes the set anew and returns the endpoints that are not in it any
// more. c.mu is held.
func (c *Cluster) rebuild() (gone []*endpoint) {
	old := c.set.Load()
	known := make(map[merlon.Endpoint]*endpoint, len(old.all))
	for _, ep := range old.all {
		known[ep.Endpoint] = ep
	}
	next, seen := &set{}, map[merlon.Endpoint]bool{}
	add := func(e merlon.Endpoint) {
		if seen[e] {
			return
		}
		seen[e] = true
		ep := known[e]
		if ep == nil {
			ep = newEndpoint(c, e)
		}
		next.all = append(next.all, ep)
		delete(known, e)
	}
	for _, e := range c.wanted {
		if n := c.names[e]; n == nil {
			add(e)
		} else {
			for _, address := range n.addresses {
				add(merlon.Endpoint{Address: address, ID: e.ID, TLSName: e.TLSName})
			}
		}
	}
	next.count()
	for int(next.ejected.Load())*2 > len(next.all) {
		next.restoreSoonest()
	}
	c.set.Store(next)
	c.notify()
	for _, ep := range known {
		gone = append(gone, ep)
	}
	return gone
}

// maxTries is to how many endpoints one Get tries to connect.
const maxTries = 3

// Get hands out a connection to the less busy of two healthy endpoints, the
// last used one of its pool or else a new one. For a retry it is told where the
// attempt before failed: then it is a new one, if possible to another endpoint.
// When connecting fails it tries other healthy endpoints, three in all: nothing
// was sent, so that is safe for every call. Each try may take ConnectTimeout to
// wait in line and again to connect, unless ctx ends first. The error is an
// *Error.
//
// A ctx that ends before ConnectTimeout never counts against the endpoint: a
// client that hangs up must not be able to get endpoints ejected. The context
// does not govern the connection once it is handed out, and no deadline is set
// on it.
func (c *Cluster) Get(ctx context.Context, failed merlon.Endpoint) (*Conn, error) {
	return c.get(ctx, failed != (merlon.Endpoint{}), failed)
}

func (c *Cluster) get(ctx context.Context, fresh bool, avoid merlon.Endpoint) (*Conn, error) {
	c.budget.deposit()
	s := c.set.Load()
	var tried tried
	if avoid != (merlon.Endpoint{}) {
		tried.add(s.find(avoid))
	}
	var last *Error
	for n := 0; n < maxTries; s = c.set.Load() {
		if len(s.all) == 0 {
			var err error
			if s, err = c.await(ctx); err != nil {
				return nil, err
			}
		}
		ep, trial := c.pick(s, &tried)
		if ep == nil && n == 0 { // the one to avoid is all there is
			tried.n = 0
			ep, trial = c.pick(s, &tried)
		}
		if ep == nil {
			break
		}
		conn, err := ep.get(ctx, fresh, trial)
		if err == nil {
			return conn, nil
		}
		last = err
		if err.Reason != ReasonConnect && err.Reason != reasonRetired {
			return nil, err
		}
		tried.add(ep)
		n++
	}
	if last == nil || last.Reason == reasonRetired { // each of them went as it was taken
		last = c.fail(ReasonNoEndpoint, "", nil)
	}
	return nil, last
}

// MayRetry takes one retry from the budget. Ask it before a call is sent
// again. A call that met a dead pooled connection (Reused, and not a byte of
// an answer) may go without: Get with fresh cannot meet another.
func (c *Cluster) MayRetry() bool { return c.budget.take(c.now()) }

// Status is an endpoint as it is now.
type Status struct {
	merlon.Endpoint
	Active  int           // calls that have or want a connection
	Open    int           // connections, with those being made
	Idle    int           // of these, pooled
	Waiting int           // calls that wait for a free one
	Ejected time.Duration // for how long still; 0 if it is in use
}

// Status lists the endpoints.
func (c *Cluster) Status() []Status {
	s, now := c.set.Load(), c.now()
	out := make([]Status, 0, len(s.all))
	for _, ep := range s.all {
		st := Status{Endpoint: ep.Endpoint, Active: int(ep.active.Load())}
		if until := ep.until.Load(); until != 0 {
			st.Ejected = time.Duration(max(until-now, 1))
		}
		ep.mu.Lock()
		st.Open, st.Idle, st.Waiting = ep.open, len(ep.idle), len(ep.waiting)
		for _, s := range ep.muxes {
			if s.lent == 0 {
				st.Idle++
			}
		}
		ep.mu.Unlock()
		out = append(out, st)
	}
	return out
}

// Counts is what has happened since the cluster was made.
type Counts struct {
	Connects  uint64 // connections that were made
	Failed    uint64 // connections that could not be made
	Ejections uint64 // endpoints taken out of use, each time
}

// Counts says what has happened.
func (c *Cluster) Counts() Counts {
	return Counts{c.counts.connects.Load(), c.counts.failed.Load(), c.counts.ejections.Load()}
}

// now is nanoseconds since the cluster was made, from 1.
func (c *Cluster) now() int64 { return max(int64(c.cfg.Now().Sub(c.start)), 0) + 1 }

func (c *Cluster) fail(reason merlon.Reason, address string, err error) *Error {
	return &Error{Reason: reason, Cluster: c.cfg.Name, Address: address, Err: err}
}
