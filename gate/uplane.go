package gate

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"merlon/gate/grpc"
	"merlon/gate/http1"
	"merlon/gate/http2"
)

// upLane is one stream of HTTP/2 to an upstream as a connection of HTTP/1.1 with
// one request, written to it, and the answer read from it. It is a net.Conn for
// the call's goroutines, which may read and write at the same time. All but
// immutable fields is guarded by m.mu.
//
// It is made anew for each call, since who has let go of a call may still end
// its waits; only its memory goes on to others.
type upLane struct {
	m      *upMux
	id     uint32 // 0 until the head of the request is whole
	cond   sync.Cond
	memory *laneMemory

	in       inflow // the answer
	answer   bool   // its head came, or never will
	method   string // of the request: "HEAD", or another
	body     body   // of the request
	complete bool   // all of the request was sent

	err    error // why the stream has ended early
	closed bool
	late   struct{ read, write bool } // a deadline has passed
}

// laneMemory is what lanes leave to others.
type laneMemory struct {
	head    []byte // of a request, while it is not whole
	req     http1.Request
	text    []byte // head and trailers of the answer
	pending []byte
}

var laneMemories = sync.Pool{New: func() any { return new(laneMemory) }}

func newUpLane(m *upMux) *upLane {
	l := &upLane{m: m, memory: laneMemories.Get().(*laneMemory)}
	l.in.pending = l.memory.pending
	l.cond.L = &m.mu
	return l
}

// take takes an event of the stream; m.mu is held.
func (l *upLane) take(ev *http2.Event) {
	in, mem := &l.in, l.memory
	switch ev.Kind {
	case http2.Answer:
		l.answered()
		mem.text = l.appendHead(mem.text[:0], ev.Answer, ev.End)
		in.framed = mem.text
	case http2.Data:
		in.pending = append(in.pending, ev.Data...)
	case http2.Trailers:
		// Only a body in chunks can have them; and none may say who calls or
		// where the message goes.
		at := len(mem.text)
		mem.text = http1.AppendTrailer(mem.text, ev.Fields, ^http1.Class(0))
		in.tail = mem.text[at:]
	case http2.Reset:
		l.end(resetError(ev))
	}
	in.ended = in.ended || ev.End
	l.cond.Broadcast()
}

// resetError is why a stream was reset.
func resetError(ev *http2.Event) error {
	switch {
	case ev.Err != nil:
		return ev.Err
	case ev.Code == http2.RefusedStream:
		return &refusedError{errors.New("the upstream refused the stream")}
	}
	return fmt.Errorf("the upstream reset the stream with code %d", ev.Code)
}

// end ends the stream early; m.mu is held.
func (l *upLane) end(err error) {
	l.answered()
	if l.err == nil {
		l.err = err
	}
	l.cond.Broadcast()
}

// answered notes that the call has not to wait for an answer any more.
func (l *upLane) answered() {
	if !l.answer {
		l.answer = true
		l.m.unanswered--
	}
}

// appendHead writes the head of the answer as HTTP/1.1 has it.
func (l *upLane) appendHead(dst []byte, res *http2.Response, end bool) []byte {
	dst = http1.AppendStatusLine(dst, res.Status, "")
	dst = http1.AppendFields(dst, res.Fields, http1.HopByHop|http1.Framing)
	length := res.Length
	// With a length there can be no trailers in HTTP/1.1, and gRPC needs them.
	kind, _ := http1.Get(res.Fields, "content-type")
	trails := grpc.KindOf(kind) == grpc.Native
	switch bodiless := l.method == "HEAD" || res.Status == 304; {
	case bodiless && length < 0, res.Status == 204:
		length = 0
	case bodiless:
		dst = http1.AppendFraming(dst, http1.BodyLength, length)
		length = 0
	case end || length >= 0 && !trails:
		length = max(length, 0)
		dst = http1.AppendFraming(dst, http1.BodyLength, length)
	default:
		length = -1
		dst = http1.AppendFraming(dst, http1.BodyChunked, 0)
	}
	l.in.length = length
	return http1.AppendEnd(dst)
}

// Read reads of the answer. What is read is passed on, and opens the upstream's
// windows.
func (l *upLane) Read(b []byte) (int, error) {
	m := l.m
	m.mu.Lock()
	defer m.mu.Unlock()
	for !l.in.ready() || l.late.read || l.closed {
		switch {
		case l.closed:
			return 0, net.ErrClosed
		case l.late.read:
			return 0, os.ErrDeadlineExceeded
		case l.err != nil:
			return 0, l.err
		case m.err != nil:
			return 0, m.err
		}
		l.cond.Wait()
	}
	n, data := l.in.read(b)
	if n == 0 {
		return 0, io.EOF
	}
	m.core.Consumed(l.id, data)
	m.signal()
	return n, nil
}

// Write takes a request as HTTP/1.1 has it.
func (l *upLane) Write(b []byte) (int, error) {
	m := l.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if l.closed {
		return 0, net.ErrClosed
	}
	total := len(b)
	for len(b) > 0 && !l.complete {
		var n int
		var err error
		if l.id == 0 {
			n, err = l.writeHead(b)
		} else {
			n, err = l.writeBody(b)
		}
		if err != nil {
			return total - len(b), err
		}
		b = b[n:]
	}
	m.signal()
	return total, nil
}

// writeHead takes of b what belongs to a head.
func (l *upLane) writeHead(b []byte) (used int, err error) {
	mem := l.memory
	whole, before := b, len(mem.head)
	if before > 0 {
		mem.head = append(mem.head, b...)
		whole = mem.head
	}
	req := &mem.req
	n, err := req.Parse(whole, http1.Limits{Head: maxSpare, Fields: maxAnswerFields, Field: maxSpare, Target: maxSpare})
	switch {
	case err != nil:
		return 0, err
	case n == 0:
		if before == 0 {
			mem.head = append(mem.head[:0], b...)
		}
		return len(b), nil
	}
	err = l.open(req)
	req.Reset()
	mem.head = mem.head[:0]
	return n - before, err
}

// open begins the stream with the request that was parsed.
func (l *upLane) open(req *http1.Request) error {
	m := l.m
	if req.Method == "HEAD" {
		l.method = "HEAD"
	}
	l.body = body{kind: req.Body, left: req.Length}
	end := req.Body == http1.BodyNone || req.Body == http1.BodyLength && req.Length == 0
	if i := slices.IndexFunc(req.Fields, func(f http1.Field) bool { return len(f.Name) == len("Content-Length") && f.Class == http1.Framing }); i >= 0 {
		req.Fields[i].Class = 0 // it frames nothing in HTTP/2
	}
	for {
		if err := l.gone(nil); err != nil {
			return err
		}
		id, err := m.core.Open(&http2.Request{
			Method: req.Method, Scheme: m.scheme, Host: req.Host, Path: req.Path, Query: req.Query, Fields: req.Fields, Trailers: true,
		}, http1.HopByHop|http1.Framing, end)
		switch {
		case err == nil:
			l.id, l.complete = id, end
			m.promised--
			m.unanswered++
			m.lanes[id] = l
			return nil
		case !errors.Is(err, http2.ErrFull):
			return &refusedError{errGoneAway}
		}
		m.opening = append(m.opening, l)
		if err := l.await(); err != nil {
			return err
		}
	}
}

// writeBody takes of b what belongs to a body.
func (l *upLane) writeBody(b []byte) (used int, err error) {
	core := &l.m.core
	used, data, done, err := l.body.next(b)
	if err != nil {
		return 0, err
	}
	for {
		n, err := core.WriteData(l.id, data, done)
		if err != nil {
			return 0, l.gone(err)
		}
		if data = data[n:]; len(data) == 0 && (!done || !core.Takes(l.id)) {
			l.complete = done
			return used, nil
		}
		if err := l.await(); err != nil {
			return 0, err
		}
	}
}

// gone says why the stream takes no more, if it does not.
func (l *upLane) gone(otherwise error) error {
	switch {
	case l.closed:
		return net.ErrClosed
	case l.err != nil:
		return l.err
	case l.m.err != nil && l.id == 0:
		return &refusedError{l.m.err}
	case l.m.err != nil:
		return l.m.err
	case l.late.write:
		return os.ErrDeadlineExceeded
	}
	return otherwise
}

// await waits until the core may take more.
func (l *upLane) await() error {
	if err := l.gone(nil); err != nil {
		return err
	}
	m := l.m
	m.signal()
	m.full++
	l.cond.Wait()
	m.full--
	return nil
}

// Close ends the stream: it is cancelled if it has not ended.
func (l *upLane) Close() error {
	m := l.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if l.closed {
		return net.ErrClosed
	}
	l.closed = true
	l.cond.Broadcast()
	if l.id == 0 {
		m.promised--
	} else {
		l.answered()
		delete(m.lanes, l.id)
		m.core.Consumed(l.id, len(l.in.pending)-l.in.used)
		m.core.Done(l.id)
		m.signal()
	}
	l.leave()
	return nil
}

// leave gives the memory to other lanes. No view of it is left.
func (l *upLane) leave() {
	mem := l.memory
	l.memory = nil
	if mem.pending = l.in.pending[:0]; cap(mem.pending) > bufferSize {
		mem.pending = nil
	}
	if cap(mem.text) > bufferSize {
		mem.text = nil
	}
	if cap(mem.head) > bufferSize {
		mem.head = nil
	}
	mem.head, mem.text = mem.head[:0], mem.text[:0]
	l.in = inflow{}
	laneMemories.Put(mem)
}

// SetDeadline ends waits when t has passed; the gate sets no other.
func (l *upLane) SetDeadline(t time.Time) error { return l.setLate(t, true, true) }

// SetReadDeadline is SetDeadline for reads.
func (l *upLane) SetReadDeadline(t time.Time) error { return l.setLate(t, true, false) }

// SetWriteDeadline is SetDeadline for writes.
func (l *upLane) SetWriteDeadline(t time.Time) error { return l.setLate(t, false, true) }

func (l *upLane) setLate(t time.Time, read, write bool) error {
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
func (l *upLane) LocalAddr() net.Addr { return l.m.first.LocalAddr() }

// RemoteAddr is that of the connection.
func (l *upLane) RemoteAddr() net.Addr { return l.m.first.RemoteAddr() }

// String names the stream in logs.
func (l *upLane) String() string { return "stream " + strconv.FormatUint(uint64(l.id), 10) }
