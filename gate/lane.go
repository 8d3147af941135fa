package gate

import (
	"errors"
	"net"
	"sync"

	"merlon/gate/http1"
	"merlon/gate/http2"
)

// lane is one stream of HTTP/2 from a client, as a connection of HTTP/1.1 with
// one request.
type lane struct {
	linkStream
	m        *mux
	request  *http2.Request // its views hold until Close
	bodiless bool           // the request has no body
	tunnel   bool           // the request opens one (RFC 8441)
	refused  *http2.Error   // instead of a request
	counted  bool           // among the connections of its client
	peer     peer           // who is at the other end of the connection
	method   string         // "HEAD", or another

	follows net.Conn // whose use ends when the client resets the stream
	res     http1.Response
	ending  http1.Trailer // of the answer
}

// lanes keeps the memory of lanes that have ended.
var lanes = sync.Pool{New: func() any { return new(lane) }}

var errReset = errors.New("the client has reset the stream")

// newLane makes the lane of a stream that begins with ev.
func (m *mux) newLane(ev *http2.Event) *lane {
	l := lanes.Get().(*lane)
	l.m, l.on, l.id, l.request, l.bodiless, l.refused = m, &m.link, ev.Stream, ev.Request, ev.End, ev.Err
	l.cond.L = &m.mu
	l.in.ended = ev.End
	if r := ev.Request; r != nil {
		l.method = r.Method
		if l.tunnel = r.Protocol != ""; l.tunnel {
			l.method = "GET" // as the pipeline sees it
		} else if !ev.End {
			l.in.length = r.Length
		}
	}
	return l
}

// release gives the memory back, when nobody knows the lane any more.
func (l *lane) release() {
	l.res.Reset()
	l.ending.Reset()
	*l = lane{linkStream: linkStream{in: inflow{pending: spare(l.in.pending)}, head: spare(l.head)}, res: l.res, ending: l.ending}
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
	c.counted = l.counted
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
		head = appendHead(head, l.request, l.bodiless)
	}
	if len(head) > len(c.in.buf) {
		c.refuseMalformed(&http1.Error{Status: 431, Reason: "head_too_large"})
		return
	}
	c.in.w = len(head)
	c.next()
	if c.lingers {
		c.rest()
		c.watch.start(c.g, c.net, lingering, busy)
		l.linger()
	}
}

// linger drops what still comes of a request that was answered whole, until its
// end. A reset would be allowed (RFC 9113 8.1), but clients that meet it in the
// same read as the answer take it for a failure; most end a request themselves
// once they see the answer.
func (l *lane) linger() {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	for dropped := 0; !l.in.ended && dropped < lingered && l.gone(l.late.read) == nil; {
		n := l.in.unread()
		if n == 0 {
			l.cond.Wait()
			continue
		}
		dropped += n
		l.in.pending, l.in.used = l.in.pending[:0], 0
		l.on.core.Consumed(l.id, n)
		l.on.flush()
	}
}

// appendHead writes the request as HTTP/1.1 has it. What is about a connection
// or frames the message is written anew; nothing else changes.
func appendHead(dst []byte, r *http2.Request, bodiless bool) []byte {
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
	case !bodiless:
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
		l.in.pending = append(l.in.pending, ev.Data...)
	case http2.Reset:
		l.err = errReset
		l.letGo()
	}
	// Trailers come after the decision that fields are part of; like those of
	// HTTP/1.1 they do not travel on.
	l.in.ended = l.in.ended || ev.End
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

// Write takes an answer as HTTP/1.1 has it.
func (l *lane) Write(b []byte) (int, error) {
	m := l.m
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := l.write(b, l.sendHead)
	if err == nil {
		m.flushSoon()
	}
	return n, err
}

// sendHead sends the head that b begins with.
func (l *lane) sendHead(b []byte) (used int, err error) {
	res := &l.res
	n, err := res.Parse(b, l.method, ownLimits())
	if n == 0 || err != nil {
		return 0, err
	}
	if l.tunnel {
		openTunnel(res)
	}
	final := res.Status >= 200
	l.body = body{kind: res.Body, left: res.Length, chunks: http1.Chunks{Trailer: &l.ending}}
	end := final && (res.Body == http1.BodyNone || res.Body == http1.BodyLength && res.Length == 0)
	if res.Length >= 0 {
		unframe(res.Fields) // clients like to know
	}
	err = l.untilTaken(func() error {
		return l.on.core.WriteHeaders(l.id, res.Status, res.Fields, http1.HopByHop|http1.Framing, end)
	})
	if err == nil {
		l.headed, l.whole = final, end
		res.Reset()
	}
	return n, err
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
	l.done()
	if !m.soon {
		m.flush()
	}
	m.boundIdle(m.c.g.cfg.Bounds.Idle)
	return nil
}
