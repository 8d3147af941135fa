package gate

import (
	"errors"
	"fmt"
	"net"
	"sync"

	"merlon/gate/grpc"
	"merlon/gate/http1"
	"merlon/gate/http2"
)

// upLane is one stream of HTTP/2 to an upstream, as a connection of HTTP/1.1 with
// one request, written to it, and the answer read from it.
//
// It is made anew for each call, since who has let go of a call may still end
// its waits; only its memory goes on to others.
type upLane struct {
	linkStream
	m      *upMux
	memory *laneMemory
	method string // of the request: "HEAD", or another
	heard  bool   // the head of the answer came, or never will
}

// laneMemory is what upLanes leave to others.
type laneMemory struct {
	head    []byte // of a request, while it is not whole
	req     http1.Request
	text    []byte // head and trailers of the answer
	pending []byte
}

var laneMemories = sync.Pool{New: func() any { return new(laneMemory) }}

func newUpLane(m *upMux) *upLane {
	l := &upLane{m: m, memory: laneMemories.Get().(*laneMemory)}
	l.on, l.cond.L = &m.link, &m.mu
	l.head, l.in.pending = l.memory.head, l.memory.pending
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
	if n := len(l.m.awake); n == 0 || l.m.awake[n-1] != l {
		l.m.awake = append(l.m.awake, l)
	}
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
	if !l.heard {
		l.heard = true
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

// Write takes a request as HTTP/1.1 has it.
func (l *upLane) Write(b []byte) (int, error) {
	m := l.m
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := l.write(b, l.sendHead)
	m.flushSoon()
	return n, err
}

// sendHead begins the stream with the head that b begins with.
func (l *upLane) sendHead(b []byte) (used int, err error) {
	req := &l.memory.req
	n, err := req.Parse(b, ownLimits())
	if n > 0 && err == nil {
		err = l.open(req)
		req.Reset()
	}
	return n, err
}

// open begins the stream with the request that was parsed.
func (l *upLane) open(req *http1.Request) error {
	m := l.m
	if req.Method == "HEAD" {
		l.method = "HEAD"
	}
	l.body = body{kind: req.Body, left: req.Length}
	end := req.Body == http1.BodyNone || req.Body == http1.BodyLength && req.Length == 0
	unframe(req.Fields)
	for {
		switch err := l.gone(l.late.write); {
		case m.err != nil:
			return &refusedError{fmt.Errorf("%w: %w", errGoneAway, m.err)}
		case err != nil:
			return err
		}
		id, err := m.core.Open(&http2.Request{
			Method: req.Method, Scheme: m.scheme, Host: req.Host, Path: req.Path, Query: req.Query, Fields: req.Fields, Trailers: true,
		}, http1.HopByHop|http1.Framing, end)
		switch {
		case err == nil:
			l.id, l.headed, l.whole = id, true, end
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
		l.done()
	}
	l.leave()
	if !m.soon {
		m.flush()
	}
	return nil
}

// leave gives the memory to other lanes. No view of it is left.
func (l *upLane) leave() {
	mem := l.memory
	mem.head, mem.text, mem.pending = spare(l.head), spare(mem.text), spare(l.in.pending)
	l.memory, l.head, l.in = nil, nil, inflow{}
	laneMemories.Put(mem)
}
