package gate

import (
	"net"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// watch bounds how long a connection's goroutine may wait for one thing. The
// sweeper ends what is overdue by a deadline in the past, which wakes the
// goroutine; setting a deadline per read would cost a system call's worth.
//
// Whoever moved a deadline is not there to move it back, so the next wait does:
// otherwise a wait that ended in the very moment it was overdue would leave its
// connection dead in the pool, for somebody else's call.
type watch struct {
	mu     sync.Mutex
	target net.Conn // what is waited for; nil for nothing
	kind   wait
	due    int64 // on the gate's coarse clock; 0 for never
	// What was done to the wait, by setting a deadline in the past.
	expired bool // it was overdue
	woken   bool // it was to be given up, or thought over
	ended   bool // all further waits are to end at once
	seen    int  // sweeps since the wait began
}

// wait says what may end a wait early.
type wait uint8

const (
	busy      wait = iota // nothing but time
	idle                  // a drain: nothing is in progress
	answering             // nothing; the time begins when the request is sent
	streaming             // new orders, which may not allow the call any more
)

// past is a deadline that ends every wait at once; noDeadline lifts one.
var (
	past       = time.Unix(1, 0)
	noDeadline time.Time
)

// start begins to wait for target, for at most d; 0 is for ever.
func (w *watch) start(g *Gate, target net.Conn, d time.Duration, kind wait) {
	w.mu.Lock()
	w.lift()
	w.target, w.kind = target, kind
	w.seen = 0
	w.setDue(g, d)
	if w.ended {
		target.SetDeadline(past)
	}
	w.mu.Unlock()
}

// stop ends the wait.
func (w *watch) stop() {
	w.mu.Lock()
	w.lift()
	w.target, w.due = nil, 0
	w.mu.Unlock()
}

// restart gives the wait for target a new time, if it is still waited for.
func (w *watch) restart(g *Gate, target net.Conn, d time.Duration, kind wait) {
	w.mu.Lock()
	if w.target == target && w.kind == kind {
		w.setDue(g, d)
	}
	w.mu.Unlock()
}

func (w *watch) setDue(g *Gate, d time.Duration) {
	w.due = 0
	if d > 0 {
		w.due = max(g.clock.Nanos()+int64(d), 1)
	}
}

// lift makes the target usable again after its deadline was moved.
func (w *watch) lift() {
	if w.expired || w.woken {
		w.expired, w.woken = false, false
		if w.target != nil {
			w.target.SetDeadline(noDeadline)
		}
	}
}

// expire ends the wait if it is overdue at now.
func (w *watch) expire(now int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.target != nil && w.due != 0 && w.due < now {
		w.expired, w.due = true, 0
		w.target.SetDeadline(past)
	}
}

// interrupt ends a wait of the given kind.
func (w *watch) interrupt(kind wait) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.target != nil && w.kind == kind && !w.woken {
		w.woken = true
		w.target.SetReadDeadline(past)
	}
}

// look wakes a connection that waits for a request although there is something
// to read; it asks once in a wait. The live layer cannot see the end of the
// stream when it came together with the last bytes before it.
func (w *watch) look(readable func() bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.target == nil || w.kind != idle || w.woken {
		return
	}
	if w.seen++; w.seen == 2 && readable() {
		w.woken = true
		w.target.SetReadDeadline(past)
	}
}

// end ends this wait and all to come, until reset.
func (w *watch) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	if w.target != nil {
		w.target.SetDeadline(past)
	}
}

// timedOut reports whether the wait was overdue.
func (w *watch) timedOut() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.expired
}

// interrupted reports whether the wait was only interrupted, and may go on.
func (w *watch) interrupted() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.woken && !w.expired && !w.ended
}

func (w *watch) reset() {
	w.mu.Lock()
	w.target, w.due, w.kind, w.expired, w.woken, w.ended = nil, 0, busy, false, false, false
	w.mu.Unlock()
}

// registry knows the open connections and holds their number to the bounds.
type registry struct {
	mu        sync.Mutex
	bounds    Bounds
	conns     []*conn // each knows its slot
	clients   map[netip.Addr]int
	admitted  int
	listeners []net.Listener
	deaf      bool      // no listener is added any more
	closed    bool      // and nothing is admitted
	empty     sync.Cond // admitted became 0
	done      chan struct{}
	stopOnce  sync.Once
}

func (r *registry) init(b Bounds) {
	r.bounds = b
	r.empty.L = &r.mu
	r.clients, r.done = map[netip.Addr]int{}, make(chan struct{})
}

// admit counts a connection in, or reports that there is no room for it.
func (r *registry) admit(client netip.Addr, perClient bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.admitted >= r.bounds.Connections {
		return false
	}
	if perClient {
		client = sameClient(client)
		if r.clients[client] >= r.bounds.ConnectionsPerClient {
			return false
		}
		r.clients[client]++
	}
	r.admitted++
	return true
}

// admitClient counts a connection that was admitted already, or a call of one,
// for the client that it turned out to be from.
func (r *registry) admitClient(client netip.Addr) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	client = sameClient(client)
	if r.clients[client] >= r.bounds.ConnectionsPerClient {
		return false
	}
	r.clients[client]++
	return true
}

// sameClient is what connections are counted by: a host has all of an IPv6 /64
// to itself (RFC 6177), and would have as many caps.
func sameClient(client netip.Addr) netip.Addr {
	if client.Is6() {
		if prefix, err := client.Prefix(64); err == nil {
			return prefix.Addr()
		}
	}
	return client
}

func (r *registry) add(c *conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	c.slot = len(r.conns)
	r.conns = append(r.conns, c)
	return true
}

func (r *registry) remove(c *conn, client netip.Addr, perClient bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drop(c)
	if r.admitted--; r.admitted == 0 {
		r.empty.Broadcast()
	}
	if perClient {
		r.uncount(client)
	}
}

// leaveClient ends what admitClient counted.
func (r *registry) leaveClient(client netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.uncount(client)
}

// uncount takes one from a client; mu is held.
func (r *registry) uncount(client netip.Addr) {
	client = sameClient(client)
	if r.clients[client]--; r.clients[client] <= 0 {
		delete(r.clients, client)
	}
}

// drop takes c out of conns, if it is there: every stream is a connection, and a
// map would cost each a hash or two.
func (r *registry) drop(c *conn) {
	if c.slot >= len(r.conns) || r.conns[c.slot] != c {
		return
	}
	last := len(r.conns) - 1
	r.conns[c.slot] = r.conns[last]
	r.conns[c.slot].slot = c.slot
	r.conns[last] = nil
	r.conns = r.conns[:last]
}

// awaitNone waits until every connection has ended.
func (r *registry) awaitNone() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.admitted > 0 {
		r.empty.Wait()
	}
}

func (r *registry) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.admitted
}

func (r *registry) addListener(l net.Listener) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.deaf {
		return false
	}
	r.listeners = append(r.listeners, l)
	return true
}

// forget leaves the closing of l to whoever asks.
func (r *registry) forget(l net.Listener) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.listeners = slices.DeleteFunc(r.listeners, func(other net.Listener) bool { return other == l })
}

func (r *registry) listens() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.listeners) > 0
}

func (r *registry) closeListeners() {
	r.mu.Lock()
	listeners := r.listeners
	r.listeners, r.deaf = nil, true
	r.mu.Unlock()
	for _, l := range listeners { // outside the lock: Close may wait for Accept
		l.Close()
	}
}

func (r *registry) each(f func(*watch)) {
	r.eachConn(func(c *conn) {
		f(&c.watch)
		f(&c.bodyWatch)
	})
}

func (r *registry) eachConn(f func(*conn)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		f(c)
	}
}

// interrupt wakes the connections that wait as kind says.
func (r *registry) interrupt(kind wait) { r.each(func(w *watch) { w.interrupt(kind) }) }

// closeAll ends every wait; each connection's goroutine then closes it.
func (r *registry) closeAll() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.each((*watch).end)
}

func (r *registry) stop() { r.stopOnce.Do(func() { close(r.done) }) }

// sweep ends what is overdue, until the gate is closed.
func (g *Gate) sweep() {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-g.open.done:
			return
		case <-tick.C:
			now := g.clock.Nanos()
			g.swept.Store(now)
			g.open.each(func(w *watch) { w.expire(now) })
			g.runners.trim()
			g.tidy.look()
			if !g.cfg.Portable {
				g.open.eachConn(func(c *conn) { c.watch.look(c.look) })
			}
		}
	}
}

// tidy gives memory back when a crowd of connections has come and settled. Each
// left garbage of its handshake behind, and holds a stack as large as its first
// call made it; calls leave nothing behind, so that the collector would not come
// by for minutes.
type tidy struct {
	opened atomic.Int64 // connections, by all
	seen   int64        // of those, at the last look
	done   int64        // of those, when it was last tidied up
	quiet  int          // looks at which none was new
}

// crowd is how many new connections are worth a collection: it costs less than
// a twentieth of their handshakes.
const crowd = 256

// look is called four times a second, and tidies up when no connection has come
// for a second.
func (t *tidy) look() {
	now := t.opened.Load()
	if t.quiet++; now != t.seen {
		t.seen, t.quiet = now, 0
	}
	if t.quiet == 4 && now-t.done >= crowd {
		t.done = now
		debug.FreeOSMemory()
	}
}

func stack() string {
	s := debug.Stack()
	return string(s[:min(len(s), 4<<10)])
}
