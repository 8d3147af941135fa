package gate

import (
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"

	"merlon/gate/http1"
	"merlon/gate/http2"
)

// HTTP/2 is translated to HTTP/1.1 at the door, and a call has one life however
// it came: each stream is a connection of its own (lane) to the code that
// serves HTTP/1.1, with one request on it. So no rule, bound, record or
// deadline is written twice, and the strict HTTP/1.1 core reads once more what
// the strict HTTP/2 core has let through.
//
// One goroutine reads the frames of a connection. Each stream's call runs in
// its own. Whoever has frames to write appends them to the core's output; one
// of them at a time writes all there is.

// mux is one connection over which HTTP/2 is spoken.
type mux struct {
	link
	c *conn // whose watch is of reads, and whose bodyWatch is of writes
	// reads and writes are net, to be waited for apart.
	reads, writes net.Conn

	left int64 // when the peer was told to leave; 0 if it was not

	// Guarded by mu.
	lanes   map[uint32]*lane
	begun   []*lane // by the batch at hand
	serving sync.WaitGroup
}

// streamsPerConn is how many calls a client may have in progress over one
// connection, as RFC 9113 6.5.2 recommends at least.
const streamsPerConn = 100

// connWindow is how many bytes of bodies a connection holds that were not yet
// passed on.
const connWindow = 256 << 10

// headMargin is what a head may grow by when it becomes one of HTTP/1.1: its
// first line and the names of Host and of the framing.
const headMargin = 256

// maxHTTP2Fields leaves room for those that are written anew.
const maxHTTP2Fields = 96

// maxDrain is how long a connection without calls waits for its peer to learn
// of a shutdown.
const maxDrain = time.Second

var muxes = sync.Pool{New: func() any {
	m := &mux{lanes: map[uint32]*lane{}}
	m.written.L, m.side = &m.mu, m
	return m
}}

// speaksHTTP2 reports whether HTTP/2 was agreed upon (RFC 9113 3.2). What it asks
// for that is large, and the frame of its caller lasts as long as the connection.
//
//go:noinline
func (c *conn) speaksHTTP2() bool {
	secure, ok := c.net.(*tls.Conn)
	return ok && secure.ConnectionState().NegotiatedProtocol == "h2"
}

// beginsHTTP2 reports whether a connection without TLS begins as one of HTTP/2
// does, which err says: its client knew beforehand (RFC 9113 3.3).
func (c *conn) beginsHTTP2(err error) bool {
	e, ok := err.(*http1.Error)
	_, secure := c.net.(*tls.Conn)
	return ok && e.Reason == "http2_not_spoken" && c.at != Inbound && !secure && !c.served
}

// serveHTTP2 serves the connection until it is over and its calls have ended.
func (c *conn) serveHTTP2() {
	m := muxes.Get().(*mux)
	m.c, m.err, m.mute, m.left = c, nil, false, 0
	m.attach(c.g, c.net, c.live.wire)
	m.waits = m.prompt == nil
	m.reads, m.writes = readSide{c.net}, writeSide{c.net}
	m.core.Init(http2.Config{
		Streams:    streamsPerConn,
		ConnWindow: connWindow,
		HeaderList: bufferSize - headMargin,
		Fields:     maxHTTP2Fields,
		Target:     maxTarget,
		Connect:    c.at == AtEdge,
	})
	err := m.read()
	m.end(err)
	m.serving.Wait()
	c.watch.stop()
	c.bodyWatch.stop()
	if _, ours := err.(*http2.Error); ours || err == nil {
		c.hold()
		c.lingers = true // the peer is to learn why
	}
	m.c, m.g, m.net, m.prompt, m.reads, m.writes = nil, nil, nil, nil, nil, nil
	if err != errDefect {
		muxes.Put(m)
	}
}

// Reads and writes of a connection end apart: what moves the deadline of one
// must not lift that of the other.
type (
	readSide  struct{ net.Conn }
	writeSide struct{ net.Conn }
)

func (s readSide) SetDeadline(t time.Time) error  { return s.Conn.SetReadDeadline(t) }
func (s writeSide) SetDeadline(t time.Time) error { return s.Conn.SetWriteDeadline(t) }

// read reads frames until the connection is over, and says why.
func (m *mux) read() (err error) {
	c := m.c
	defer m.guard(&err)
	m.flushNow()
	if first := c.in.bytes(); len(first) > 0 {
		if err := m.batch(first); err != nil {
			return err
		}
	}
	if c.rest(); c.in.buf == nil {
		c.keepInput()
	}
	for settled := false; ; settled = true {
		m.await(settled)
		n, err := m.net.Read(c.in.buf)
		switch {
		case n > 0:
			if err := m.batch(c.in.buf[:n]); err != nil {
				return err
			}
		case !c.watch.interrupted():
			return err
		}
		if m.leave() {
			return nil
		}
	}
}

// await begins the wait for frames. While calls are in progress there may be
// none for as long as those take, also when all that the client has to say came
// with its preface.
func (m *mux) await(settled bool) {
	c := m.c
	c.watch.start(c.g, m.reads, 0, idle)
	m.mu.Lock()
	defer m.mu.Unlock()
	if settled {
		m.boundIdle(c.g.cfg.Bounds.Idle)
	} else {
		m.boundIdle(c.g.cfg.Bounds.Head)
	}
}

// boundIdle bounds the wait for frames if no call is in progress; m.mu is held.
func (m *mux) boundIdle(bound time.Duration) {
	if m.core.Streams() > 0 {
		return
	}
	if m.left != 0 {
		bound = maxDrain
	}
	m.c.watch.restart(m.c.g, m.reads, bound, idle)
}

// leave tells the peer when the connection should make way, and reports whether
// it has.
func (m *mux) leave() bool {
	c := m.c
	if !c.g.leaving.Load() && (c.at != Inbound || time.Now().Before(c.peer.renew)) {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := c.g.clock.Nanos()
	if m.left == 0 {
		m.left = now
	}
	m.core.GoAway()
	m.flush()
	return m.core.Drained() || m.core.Streams() == 0 && now-m.left > int64(maxDrain)
}

// batch handles what one read gave. All that it answers leaves in one write.
func (m *mux) batch(in []byte) error {
	err := m.take(in)
	for _, l := range m.begun {
		m.begin(l)
	}
	clear(m.begun)
	m.begun = m.begun[:0]
	m.flushNow()
	return err
}

func (m *mux) take(in []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		n, ev, err := m.core.Next(in, m.c.g.clock.Nanos())
		if err != nil {
			return err
		}
		if in = in[n:]; ev.Kind != http2.None {
			m.handle(&ev)
		} else if len(in) == 0 {
			return nil
		}
	}
}

// handle takes one event; m.mu is held.
func (m *mux) handle(ev *http2.Event) {
	switch ev.Kind {
	case http2.Begin, http2.Refused:
		l := m.newLane(ev)
		m.begun = append(m.begun, l)
		if ev.Err == nil || ev.Err.Status != 0 {
			m.lanes[l.id] = l
		}
	case http2.Writable:
		if l := m.lanes[ev.Stream]; l != nil {
			l.cond.Broadcast()
		} else if m.waiting > 0 {
			m.wake()
		}
	case http2.Data, http2.Trailers, http2.Reset:
		if l := m.lanes[ev.Stream]; l != nil {
			l.take(ev)
		}
	}
}

// begin starts the call of a stream, if the gate has room for it. A stream is
// work as a connection is, and counts against the same bounds: else a client
// would have a hundred times as much of the gate over HTTP/2.
func (m *mux) begin(l *lane) {
	g := m.c.g
	l.counted = m.c.at == AtEdge && !g.trusts(m.c.peer.addr)
	if !g.open.admit(m.c.peer.addr, l.counted) {
		m.mu.Lock()
		m.core.Reset(l.id, http2.RefusedStream) // it may be tried elsewhere (RFC 9113 8.7)
		m.mu.Unlock()
		l.Close()
		l.release()
		return
	}
	if m.c.at == Outbound {
		m.proveOwn()
	}
	l.peer = m.c.peer
	m.serving.Add(1)
	g.runners.run(l)
}

// proveOwn finds out who is at the other end, once for all calls under the same
// orders. Only the goroutine that reads does.
func (m *mux) proveOwn() {
	c := m.c
	if c.x.f = c.g.force.Load(); c.x.f != nil {
		c.proveOwn()
	}
}

// stalling bounds a write that waits.
func (m *mux) stalling(begin bool) {
	if c := m.c; begin {
		c.bodyWatch.start(c.g, m.writes, c.g.cfg.Bounds.Stall, busy)
	} else {
		c.bodyWatch.stop()
	}
}

// unwritten ends the connection, and the reader learns of it too.
func (m *mux) unwritten(err error) {
	m.endLocked(err)
	m.reads.SetDeadline(past)
}

func (m *mux) flushed() {}

// wake makes every lane look again; m.mu is held.
func (m *mux) wake() {
	for _, l := range m.lanes {
		l.cond.Broadcast()
	}
}

// end makes every call in progress fail at its next read or write.
func (m *mux) end(err error) {
	if e, ok := errors.AsType[*http2.Error](err); ok {
		m.confess(e)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.flush(); m.writing; m.flush() { // what the core said last
		m.written.Wait()
	}
	m.endLocked(err)
}

func (m *mux) endLocked(err error) {
	if err == nil {
		err = net.ErrClosed
	}
	if m.err == nil {
		m.err = err
	}
	m.mute = true
	m.wake()
	for _, l := range m.lanes {
		l.letGo()
	}
}

// confess records why a peer was sent away: as a request that is none, like
// what cannot be read of HTTP/1.1. The core has told the peer.
func (m *mux) confess(e *http2.Error) {
	l := m.newLane(&http2.Event{Kind: http2.Refused, Err: e})
	defer l.release()
	c := m.c
	c.net = l
	c.hold()
	c.refuseMalformed(&http1.Error{Status: 400, Reason: e.Reason})
	c.watch.stop()
	c.net, c.lingers = m.net, false
}
