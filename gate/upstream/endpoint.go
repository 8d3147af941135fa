package upstream

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"merlon"
)

// endpoint is one address with its connections and its past.
type endpoint struct {
	merlon.Endpoint
	c *Cluster

	active atomic.Int64 // calls that have or want a connection
	fails  atomic.Int64 // consecutive
	until  atomic.Int64 // ejected until; 0: in use. Set under Cluster.mu

	// Guarded by Cluster.mu.
	ejections int   // in a row, without EjectMax of health between
	restored  int64 // when it last came back

	// mu is held to push or pop, never for a system call but the sweeper's
	// peeks. Each endpoint has its own, so it is contended only by calls to
	// the same address. After it, no other lock is taken.
	mu      sync.Mutex
	idle    []*Conn   // the one used last is at the end
	open    int       // idle, lent and being made
	muxes   []*shared // that take calls, oldest first
	dialing int       // of open: shared connections in the making
	waiting []*waiter
	retired bool
	flushed int64 // when a dead connection last made the older ones suspect
}

// waiter is a call in line for a connection.
type waiter struct {
	fresh bool
	got   chan grant // of size 1: who grants never blocks
}

// grant is a connection, or leave to make one (nil), or why there is neither.
type grant struct {
	conn *Conn
	err  *Error
}

// reasonRetired stays inside: Get tries another endpoint.
const reasonRetired merlon.Reason = "retired"

var (
	errFull     = errors.New("all connections are in use, and as many calls as may wait are waiting")
	errWaited   = errors.New("all connections stayed in use")
	errNoStream = errors.New("the endpoint took the connection, and no call on it")
)

func newEndpoint(c *Cluster, e merlon.Endpoint) *endpoint {
	return &endpoint{Endpoint: e, c: c}
}

// get lends a connection of ep, pooled or new. A trial gets a new one: an
// ejected endpoint must show that it can be connected to.
func (ep *endpoint) get(ctx context.Context, fresh bool, t trial) (*Conn, *Error) {
	ep.active.Add(1)
	var conn *Conn
	var err *Error
	if ep.c.cfg.Mux != nil {
		conn, err = ep.stream(ctx, &t)
	} else {
		conn, err = ep.whole(ctx, fresh, &t)
	}
	if err != nil {
		ep.unprobe(t)
		ep.active.Add(-1)
		return nil, err
	}
	conn.trial, conn.told = t, false
	return conn, nil
}

// whole lends a connection that carries one call at a time.
func (ep *endpoint) whole(ctx context.Context, fresh bool, t *trial) (*Conn, *Error) {
	conn, evicted, w, err := ep.take(fresh || *t != none)
	if evicted != nil {
		evicted.closeNow()
	}
	if w != nil {
		conn, err = ep.wait(ctx, w)
	}
	if conn != nil && conn.peeker.readable() {
		// The end, or bytes that nobody asked for: this call would take them for
		// its answer, and the next call this one's. A new one in its place.
		conn.closeNow()
		conn = nil
	}
	if err == nil && conn == nil {
		conn, err = ep.dial(ctx, t)
	}
	return conn, err
}

// take pops a connection, or reserves a place for a new one (all results nil),
// or puts the call in line.
func (ep *endpoint) take(fresh bool) (conn, evicted *Conn, w *waiter, err *Error) {
	ep.mu.Lock()
	defer ep.mu.Unlock()
	n := len(ep.idle)
	switch {
	case ep.retired:
		return nil, nil, nil, ep.c.fail(reasonRetired, ep.Address, nil)
	case n > 0 && !fresh:
		conn = ep.idle[n-1]
		ep.idle[n-1] = nil
		ep.idle = ep.idle[:n-1]
		conn.lent, conn.Reused = true, true
		return conn, nil, nil, nil
	case ep.open < ep.c.cfg.MaxConns:
		ep.open++
		return nil, nil, nil, nil
	case n > 0: // a new one in the place of the oldest
		evicted = ep.idle[0]
		ep.idle = slices.Delete(ep.idle, 0, 1)
		return nil, evicted, nil, nil
	case len(ep.waiting) >= ep.c.cfg.MaxWaiting:
		return nil, nil, nil, ep.c.fail(ReasonOverloaded, ep.Address, errFull)
	}
	w = &waiter{fresh: fresh, got: make(chan grant, 1)}
	ep.waiting = append(ep.waiting, w)
	return nil, nil, w, nil
}

// wait waits for a connection or a place, at most ConnectTimeout.
func (ep *endpoint) wait(ctx context.Context, w *waiter) (*Conn, *Error) {
	timeout := time.NewTimer(ep.c.cfg.ConnectTimeout)
	defer timeout.Stop()
	var err *Error
	select {
	case g := <-w.got:
		return g.conn, g.err
	case <-timeout.C:
		err = ep.c.fail(ReasonOverloaded, ep.Address, errWaited)
	case <-ctx.Done():
		err = ep.c.fail(ReasonCancelled, ep.Address, context.Cause(ctx))
	}
	ep.mu.Lock()
	i := slices.Index(ep.waiting, w)
	if i >= 0 {
		ep.waiting = slices.Delete(ep.waiting, i, i+1)
	}
	ep.mu.Unlock()
	if i < 0 { // granted in the meantime; it would be lost with us
		g := <-w.got
		return g.conn, g.err
	}
	return nil, err
}

// put takes a connection back: for the first in line, else for the pool, else
// it is closed.
func (ep *endpoint) put(conn *Conn, keep bool) {
	now := ep.c.now()
	ep.mu.Lock()
	if !conn.lent {
		ep.mu.Unlock()
		return
	}
	t := conn.trial
	conn.lent, conn.trial = false, none
	keep = keep && !conn.alone && !ep.retired && ep.until.Load() == 0 && now-conn.born < int64(ep.c.cfg.MaxAge)
	switch {
	case keep && len(ep.waiting) > 0 && !ep.waiting[0].fresh:
		conn.lent, conn.Reused, conn.since = true, true, now
		ep.next().got <- grant{conn: conn}
	case keep && len(ep.waiting) == 0 && len(ep.idle) < ep.c.cfg.MaxIdle:
		conn.since = now
		ep.idle = append(ep.idle, conn)
	default:
		if keep = false; !conn.alone {
			ep.vacate()
		}
	}
	ep.mu.Unlock()
	ep.active.Add(-1)
	if t != none {
		ep.unprobe(t)
	}
	if !keep {
		conn.closeNow()
	}
}

// next takes the first in line. ep.mu is held, and there is one.
func (ep *endpoint) next() *waiter {
	w := ep.waiting[0]
	ep.waiting = slices.Delete(ep.waiting, 0, 1)
	return w
}

// vacate gives the place of a connection that is no more to the first in
// line. ep.mu is held.
func (ep *endpoint) vacate() {
	if len(ep.waiting) > 0 && !ep.retired {
		ep.next().got <- grant{}
		return
	}
	ep.open--
}

// retire ends the endpoint: nobody gets a connection of it any more.
func (ep *endpoint) retire() {
	ep.mu.Lock()
	ep.retired = true
	for len(ep.waiting) > 0 {
		ep.next().got <- grant{err: ep.c.fail(reasonRetired, ep.Address, nil)}
	}
	ep.mu.Unlock()
	ep.drop(func(*Conn) bool { return true })
}

// drop closes the pooled connections that unwanted picks.
func (ep *endpoint) drop(unwanted func(*Conn) bool) {
	var out []*Conn
	ep.mu.Lock()
	ep.idle = slices.DeleteFunc(ep.idle, func(conn *Conn) bool {
		if !unwanted(conn) {
			return false
		}
		out = append(out, conn)
		return true
	})
	ep.spend(func(s *shared) bool { return unwanted(s.first) })
	for range out {
		ep.vacate()
	}
	ep.mu.Unlock()
	for _, conn := range out {
		conn.closeNow()
	}
}

// stale drops the pooled connections that were idle for longer than one that
// turned out to be dead, idle since then: the peer has most likely closed them
// too, by the same timeout or because it started anew. Without this each of
// them would cost a call. At most once a second, so that a client who can make
// the peer reset connections cannot keep the pool empty.
func (ep *endpoint) stale(since int64) {
	now := ep.c.now()
	ep.mu.Lock()
	due := ep.flushed == 0 || now-ep.flushed >= int64(time.Second)
	if due {
		ep.flushed = now
	}
	ep.mu.Unlock()
	if due {
		ep.drop(func(conn *Conn) bool { return conn.since <= since })
	}
}
