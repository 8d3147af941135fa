package gate

import (
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"
)

// watch bounds how long a connection's goroutine may wait for one thing. The
// sweeper ends what is overdue by a deadline in the past, which wakes the
// goroutine; setting a deadline per read would cost a system call's worth.
type watch struct {
	mu      sync.Mutex
	target  net.Conn // what is waited for
	due     int64    // on the gate's coarse clock; 0 for never
	waiting bool     // between requests: may be closed at any time
	woken   bool     // told to stop waiting, while it was between requests
	expired bool
}

// past is a deadline that ends every wait at once.
var past = time.Unix(1, 0)

func (w *watch) start(g *Gate, target net.Conn, d time.Duration) {
	w.mu.Lock()
	w.target, w.due, w.waiting, w.expired = target, 0, false, false
	if d != forever {
		w.due = g.clock.Nanos() + int64(d)
	}
	if w.woken {
		// A request came in just before: it is served like any other.
		w.woken = false
		target.SetReadDeadline(time.Time{})
	}
	w.mu.Unlock()
}

// forever is a wait that something else bounds.
const forever time.Duration = -1

// follow gives a wait for target that had no bound a bound of d. It does
// nothing if something else is waited for by now.
func (w *watch) follow(g *Gate, target net.Conn, d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.target == target && w.due == 0 && !w.expired {
		w.due = g.clock.Nanos() + int64(d)
	}
}

// idle is start for the wait between two requests.
func (w *watch) idle(g *Gate, target net.Conn, d time.Duration) {
	w.start(g, target, d)
	w.mu.Lock()
	w.waiting = true
	w.mu.Unlock()
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

// interrupt ends the wait between requests.
func (w *watch) interrupt() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting && !w.woken && w.target != nil {
		w.woken = true
		w.target.SetReadDeadline(past)
	}
}

// timedOut reports whether the sweeper ended a wait of this connection.
func (w *watch) timedOut() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.expired
}

func (w *watch) reset() {
	w.mu.Lock()
	w.target, w.due, w.waiting, w.woken, w.expired = nil, 0, false, false, false
	w.mu.Unlock()
}

// registry knows the open connections and holds their number to the bounds.
type registry struct {
	mu        sync.Mutex
	bounds    Bounds
	conns     map[*conn]struct{}
	clients   map[netip.Addr]int
	admitted  int
	listeners []net.Listener
	closed    bool
	done      chan struct{}
	stopOnce  sync.Once
}

func (r *registry) init(b Bounds) {
	r.bounds = b
	r.conns, r.clients, r.done = map[*conn]struct{}{}, map[netip.Addr]int{}, make(chan struct{})
}

// admit counts a connection in, or reports that there is no room for it.
func (r *registry) admit(client netip.Addr, perClient bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.admitted >= r.bounds.Connections {
		return false
	}
	if perClient {
		if r.clients[client] >= r.bounds.ConnectionsPerClient {
			return false
		}
		r.clients[client]++
	}
	r.admitted++
	return true
}

func (r *registry) add(c *conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.conns[c] = struct{}{}
	return true
}

func (r *registry) remove(c *conn, client netip.Addr, perClient bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c)
	r.admitted--
	if perClient {
		if r.clients[client]--; r.clients[client] <= 0 {
			delete(r.clients, client)
		}
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
	if r.closed {
		return false
	}
	r.listeners = append(r.listeners, l)
	return true
}

func (r *registry) closeListeners() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.listeners {
		l.Close()
	}
	r.listeners = nil
}

func (r *registry) each(f func(*watch)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		f(&c.watch)
		f(&c.bodyWatch)
	}
}

func (r *registry) closeIdle() { r.each((*watch).interrupt) }

// closeAll ends every wait; each connection's goroutine then closes it.
func (r *registry) closeAll() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.each(func(w *watch) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.target != nil {
			w.target.SetDeadline(past)
		}
	})
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
			g.open.each(func(w *watch) { w.expire(now) })
		}
	}
}

func stack() string {
	s := debug.Stack()
	return string(s[:min(len(s), 4<<10)])
}
