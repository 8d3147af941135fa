package gate

import (
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"merlon/gate/http1"
	"merlon/gate/http2"
)

// lane is one stream of HTTP/2 as a connection of HTTP/1.1 with one request. It
// is a net.Conn for the call's goroutines, which may read and write at the same
// time. All but immutable fields is guarded by m.mu.
type lane struct {
	m       *mux
	id      uint32
	request *http2.Request // its views hold until Close
	whole   bool           // the request has no body
	tunnel  bool           // the request opens one (RFC 8441)
	refused *http2.Error   // instead of a request
	peer    peer           // who is at the other end of the connection
	method  string         // "HEAD", or another

	cond    *sync.Cond
	pending []byte   // of the body, not yet read; bounded by the stream's window
	used    int      // of pending
	ended   bool     // the body has ended
	framed  []byte   // of a chunk, what Read had no room for
	lastOut bool     // the end of a chunked body was framed
	follows net.Conn // whose use ends when the client resets the stream
	err     error    // why the stream has ended early
	closed  bool
	late    struct{ read, write bool } // a deadline has passed

	head     []byte // of an answer, while it is not whole
	res      http1.Response
	body     body
	ending   http1.Trailer
	answer   bool // the head of the answer was sent
	complete bool // all of it was
}

// lanes keeps the memory of lanes that have ended.
var lanes = sync.Pool{New: func() any { return new(lane) }}

var errReset = errors.New("the client has reset the stream")

// newLane makes the lane of a stream that begins with ev.
func (m *mux) newLane(ev *http2.Event) *lane {
	l := lanes.Get().(*lane)
	l.m, l.id, l.request, l.whole, l.refused = m, ev.Stream, ev.Request, ev.End, ev.Err
	if l.cond == nil {
		l.cond = sync.NewCond(nil)
	}
	l.cond.L = &m.mu
	if l.ended = ev.End; ev.Request != nil {
		l.method = ev.Request.Method
		if l.tunnel = ev.Request.Protocol != ""; l.tunnel {
			l.method = "GET" // as the pipeline sees it
		}
	}
	return l
}

// release gives the memory back, when nobody knows the lane any more.
func (l *lane) release() {
	l.res.Reset()
	if cap(l.pending) > bufferSize {
		l.pending = nil
	}
	l.ending.Reset()
	*l = lane{cond: l.cond, pending: l.pending[:0], head: l.head[:0], res: l.res, ending: l.ending}
	lanes.Put(l)
}

// run serves the stream's call.
func (l *lane) run() {
	m := l.m
	defer m.serving.Done()
	defer l.release()
	l.call()
}

func (l *lane) call() {
	g, at := l.m.c.g, l.m.c.at
	c := g.newConn(l, at)
	c.peer = l.peer
	c.counted = at == AtEdge
	defer c.end()
	if !g.open.add(c) {
		return
	}
	c.enliven()
	c.hold()
	if e := l.refused; e != nil {
		status := e.Status
		if status == 0 {
			status = 400 // which nobody hears: the core has reset the stream
		}
		c.refuseMalformed(&http1.Error{Status: status, Reason: e.Reason})
		return
	}
	head := c.in.buf[:0]
	if l.tunnel && l.request.Protocol != websocket {
		c.refuseMalformed(&http1.Error{Status: 501, Reason: string(ReasonUpgrade)})
		return
	}
	if l.tunnel {
		head = appendHandshake(head, l.request)
	} else {
		head = appendHead(head, l.request, l.whole)
	}
	if len(head) > len(c.in.buf) {
		c.refuseMalformed(&http1.Error{Status: 431, Reason: "head_too_large"})
		return
	}
	c.in.w = len(head)
	c.next()
}

// appendHead writes the request as HTTP/1.1 has it. What is about a connection
// or frames the message is written anew; nothing else changes.
func appendHead(dst []byte, r *http2.Request, whole bool) []byte {
	dst = http1.AppendRequestLine(dst, r.Method, r.Path, r.Query)
	dst = http1.AppendField(dst, "Host", r.Host)
	dst = http1.AppendFields(dst, r.Fields, http1.HopByHop|http1.Framing)
	if r.Trailers {
		dst = http1.AppendField(dst, "TE", "trailers")
	}
	if r.Expect {
		dst = http1.AppendField(dst, "Expect", "100-continue")
	}
	switch {
	case r.Length > 0, r.Length == 0 && takesBody(r.Method):
		dst = http1.AppendFraming(dst, http1.BodyLength, r.Length)
	case !whole:
		dst = http1.AppendFraming(dst, http1.BodyChunked, 0)
	}
	return http1.AppendEnd(dst)
}

// takesBody reports whether a request without a body should say so (RFC 9110
// 8.6).
func takesBody(method string) bool {
	return method == "POST" || method == "PUT" || method == "PATCH"
}

// take takes an event of the stream; m.mu is held.
func (l *lane) take(ev *http2.Event) {
	switch ev.Kind {
	case http2.Data:
		l.pending = append(l.pending, ev.Data...)
	case http2.Reset:
		l.err = errReset
		l.letGo()
	}
	// Trailers come after the decision that fields are part of; like those of
	// HTTP/1.1 they do not travel on.
	l.ended = l.ended || ev.End
	l.cond.Broadcast()
}

// follow makes a reset of the stream end what is waited for at up.
func (l *lane) follow(up net.Conn) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if l.follows = up; l.err != nil || l.m.err != nil {
		l.letGo()
	}
}

// letGo ends what the client has lost interest in; m.mu is held.
func (l *lane) letGo() {
	if l.follows != nil {
		l.follows.SetDeadline(past)
	}
}

// abandoned reports whether the client has reset the stream or is gone.
func (l *lane) abandoned() bool {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	return l.err != nil || l.m.err != nil
}

// Read reads of the request's body, framed as its head says. What is read is
// passed on, and opens the client's windows.
func (l *lane) Read(b []byte) (int, error) {
	m := l.m
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(l.framed) == 0 && len(l.pending) == l.used && !l.ended || l.late.read || l.closed {
		switch {
		case l.closed:
			return 0, net.ErrClosed
		case l.err != nil:
			return 0, l.err
		case m.err != nil:
			return 0, m.err
		case l.late.read:
			return 0, os.ErrDeadlineExceeded
		}
		l.cond.Wait()
	}
	n := l.frame(b)
	if n == 0 {
		return 0, io.EOF
	}
	m.flushLocked()
	return n, nil
}

// frame copies pending data to b, in chunks if its length was not told.
func (l *lane) frame(b []byte) int {
	const small = 64 // a buffer too small for a chunk
	switch data := l.pending[l.used:]; {
	case len(l.framed) > 0:
		n := copy(b, l.framed)
		l.framed = l.framed[n:]
		return n
	case l.request.Length >= 0 || l.tunnel:
		n := copy(b, data)
		l.consume(n)
		return n
	case l.lastOut:
		return 0
	case len(data) == 0:
		l.framed, l.lastOut = http1.AppendLastChunk(nil), true
	case len(b) < small:
		n := min(len(data), small)
		l.framed = http1.AppendChunk(nil, data[:n])
		l.consume(n)
	default:
		n := min(len(data), len(b)-small)
		out := http1.AppendChunk(b[:0], data[:n])
		l.consume(n)
		return len(out)
	}
	return l.frame(b)
}

// consume says that n bytes of pending data were passed on.
func (l *lane) consume(n int) {
	if l.used += n; l.used == len(l.pending) {
		l.pending, l.used = l.pending[:0], 0
	}
	l.m.core.Consumed(l.id, n)
}

// Write takes an answer as HTTP/1.1 has it.
func (l *lane) Write(b []byte) (int, error) {
	m := l.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return 0, m.err
	}
	total := len(b)
	for len(b) > 0 && !l.complete {
		var n int
		var err error
		if !l.answer {
			n, err = l.writeHead(b)
		} else {
			n, err = l.writeBody(b)
		}
		if err != nil {
			return total - len(b), err
		}
		b = b[n:]
	}
	m.flushSoon()
	return total, nil
}

// maxAnswerFields is more than the head of an upstream's answer may have.
const maxAnswerFields = 150

// writeHead takes of b what belongs to a head.
func (l *lane) writeHead(b []byte) (used int, err error) {
	whole, before := b, len(l.head)
	if before > 0 {
		l.head = append(l.head, b...)
		whole = l.head
	}
	n, err := l.res.Parse(whole, l.method, http1.Limits{Head: maxSpare, Fields: maxAnswerFields, Field: maxSpare})
	switch {
	case err != nil:
		return 0, err
	case n == 0:
		if before == 0 {
			l.head = append(l.head[:0], b...)
		}
		return len(b), nil
	}
	if l.tunnel {
		openTunnel(&l.res)
	}
	if err := l.translateHead(); err != nil {
		return 0, err
	}
	l.head = l.head[:0]
	return n - before, nil
}

// translateHead sends the head that was parsed.
func (l *lane) translateHead() error {
	res := &l.res
	final := res.Status >= 200
	l.body = body{kind: res.Body, left: res.Length, chunks: http1.Chunks{Trailer: &l.ending}}
	end := final && (res.Body == http1.BodyNone || res.Body == http1.BodyLength && res.Length == 0)
	if i := slices.IndexFunc(res.Fields, func(f http1.Field) bool { return len(f.Name) == len("Content-Length") && f.Class == http1.Framing }); i >= 0 && res.Length >= 0 {
		res.Fields[i].Class = 0 // it frames nothing in HTTP/2, and clients like to know
	}
	err := l.untilTaken(func() error {
		return l.m.core.WriteHeaders(l.id, res.Status, res.Fields, http1.HopByHop|http1.Framing, end)
	})
	if err == nil {
		l.answer, l.complete = final, end
		res.Reset()
	}
	return err
}

// untilTaken writes when the core has room for it.
func (l *lane) untilTaken(write func() error) error {
	for {
		switch err := write(); {
		case err == nil:
			return nil
		case !errors.Is(err, http2.ErrFull):
			return l.gone(err)
		}
		if err := l.await(); err != nil {
			return err
		}
	}
}

// writeBody takes of b what belongs to a body.
func (l *lane) writeBody(b []byte) (used int, err error) {
	used, data, done, err := l.body.next(b)
	if err != nil {
		return 0, err
	}
	trailers := done && len(l.ending.Fields) > 0
	for end := done && !trailers; len(data) > 0 || end; {
		n, err := l.m.core.WriteData(l.id, data, end)
		if err != nil {
			return 0, l.gone(err)
		}
		if data = data[n:]; len(data) == 0 && (!end || !l.m.core.Takes(l.id)) {
			break
		}
		if err := l.await(); err != nil {
			return 0, err
		}
	}
	if trailers {
		if err := l.untilTaken(func() error { return l.m.core.WriteTrailers(l.id, l.ending.Fields, 0) }); err != nil {
			return 0, err
		}
	}
	l.complete = done
	return used, nil
}

// gone says why the core takes no more.
func (l *lane) gone(err error) error {
	switch {
	case l.err != nil:
		return l.err
	case l.m.err != nil:
		return l.m.err
	}
	return err
}

// await waits until the core may take more.
func (l *lane) await() error {
	m := l.m
	if before := len(m.core.Output()); before > 0 && !m.writing {
		m.flushLocked()
		if len(m.core.Output()) < before {
			return nil // and others may have been heard meanwhile: look again
		}
	}
	switch {
	case l.closed:
		return net.ErrClosed
	case l.err != nil:
		return l.err
	case m.err != nil:
		return m.err
	case l.late.write:
		return os.ErrDeadlineExceeded
	}
	m.waiting++
	l.cond.Wait()
	m.waiting--
	return nil
}

// Close ends the stream: cleanly if the answer was whole, else by a reset, so
// that nobody takes what came for the whole.
func (l *lane) Close() error {
	m := l.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if l.closed {
		return net.ErrClosed
	}
	l.closed, l.follows = true, nil
	delete(m.lanes, l.id)
	m.core.Consumed(l.id, len(l.pending)-l.used)
	m.core.Done(l.id)
	if !m.soon {
		m.flushLocked()
	}
	m.boundIdle()
	return nil
}

// SetDeadline ends waits when t has passed; the gate sets no other.
func (l *lane) SetDeadline(t time.Time) error { return l.setLate(t, true, true) }

// SetReadDeadline is SetDeadline for reads.
func (l *lane) SetReadDeadline(t time.Time) error { return l.setLate(t, true, false) }

// SetWriteDeadline is SetDeadline for writes.
func (l *lane) SetWriteDeadline(t time.Time) error { return l.setLate(t, false, true) }

func (l *lane) setLate(t time.Time, read, write bool) error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if read {
		l.late.read = !t.IsZero()
	}
	if write {
		l.late.write = !t.IsZero()
	}
	l.cond.Broadcast()
	return nil
}

// LocalAddr is that of the connection.
func (l *lane) LocalAddr() net.Addr { return l.m.net.LocalAddr() }

// RemoteAddr is that of the connection.
func (l *lane) RemoteAddr() net.Addr { return l.m.net.RemoteAddr() }

// String names the stream in logs.
func (l *lane) String() string { return "stream " + strconv.FormatUint(uint64(l.id), 10) }
