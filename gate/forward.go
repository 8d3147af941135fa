package gate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"merlon"
	"merlon/gate/http1"
	"merlon/gate/upstream"
	"merlon/internal/wire"
)

// failure is why an allowed call got no answer.
type failure struct {
	reason merlon.Reason
	cause  error
	kind   upstream.Failure
	theirs bool // the endpoint's doing, and counted against it as kind
}

// forward sends an allowed call to its upstream and the answer back. A record
// has been reserved for it, so that what passes is always recorded.
func (c *conn) forward(keep bool) bool {
	x := &c.x
	cluster := x.f.clusters[x.service.Name]
	if cluster == nil {
		return c.fail(nil, keep, failure{reason: upstream.ReasonNoEndpoint, cause: errors.New("no endpoint for " + x.service.Name)})
	}
	if err := c.awaitBody(); err != nil {
		return c.fail(nil, keep, failure{reason: ReasonClientGone, cause: err})
	}
	for attempt := 0; ; attempt++ {
		up, f := c.send(cluster, attempt > 0)
		if f.reason == "" {
			return c.answer(up, keep)
		}
		if !c.mayRetry(cluster, up, f, attempt) {
			return c.fail(up, keep, f)
		}
		up.Failed(f.kind)
		c.giveBack(up, false)
	}
}

var continueLine = []byte("HTTP/1.1 100 Continue\r\n\r\n")

// awaitBody asks for the body if the client waits to be asked, and reads it
// whole when the buffer has room for it: a client that sends a little slowly
// then holds nothing of the upstream.
func (c *conn) awaitBody() error {
	if c.bodyBuffered() {
		return nil
	}
	small := c.req.Body == http1.BodyLength && c.req.Length <= int64(len(c.in.buf)-c.in.r)
	if !c.req.Expect && !small {
		return nil
	}
	c.watch.start(c.g, c.net, c.g.cfg.Bounds.Stall, busy)
	defer c.watch.stop()
	if c.req.Expect {
		if _, err := c.net.Write(continueLine); err != nil {
			return errClientGone
		}
	}
	if small && c.in.more(int(c.req.Length)) != nil {
		return errClientGone
	}
	return nil
}

// mayRetry allows one more try of a call that surely has had no effect: it can
// be sent again whole, repeating it is harmless (RFC 9110 9.2.2), no byte of an
// answer came, and the budget permits. A pooled connection that the upstream
// had closed meanwhile is the usual cause and needs no budget.
func (c *conn) mayRetry(cluster *upstream.Cluster, up *upstream.Conn, f failure, attempt int) bool {
	if up == nil || attempt > 1 || f.reason != ReasonUpstreamBroken || c.up.w > 0 || !c.bodyBuffered() {
		return false
	}
	switch c.req.Method {
	case "GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE":
		return up.Reused || cluster.MayRetry()
	}
	return false
}

// bodyBuffered reports whether the whole request body was read with its head.
func (c *conn) bodyBuffered() bool {
	switch c.req.Body {
	case http1.BodyNone:
		return true
	case http1.BodyLength:
		return c.req.Length <= int64(c.in.w-c.in.r)
	}
	return false
}

// send gets a connection to the upstream, sends the request over it and reads
// the head of the final answer into c.res.
func (c *conn) send(cluster *upstream.Cluster, fresh bool) (*upstream.Conn, failure) {
	c.up.r, c.up.w = 0, 0
	up, err := c.borrow(cluster, fresh)
	if err != nil {
		return nil, unreachable(err)
	}
	c.up.conn = up.Conn
	if err := c.buildRequest(up); err != nil {
		return up, failure{reason: merlon.ReasonUnidentified, cause: err}
	}
	c.watch.start(c.g, up.Conn, c.x.service.Timeout, busy)
	if !c.bodyBuffered() {
		return up, c.sendStream(up)
	}
	if err := c.exchange(up); err != nil {
		return up, c.broken(err, up.Reused)
	}
	return up, c.readHead(up)
}

// borrow gets a connection to the upstream: a pooled one only while the
// certificates that were shown on it hold.
func (c *conn) borrow(cluster *upstream.Cluster, fresh bool) (*upstream.Conn, error) {
	for {
		up, err := cluster.Get(context.Background(), fresh)
		if err != nil {
			return nil, err
		}
		if s, mutual := up.State.(*session); mutual && !s.holds(up, c.x.start) {
			up.Release(false)
			continue
		}
		c.lent, c.x.upstream = up, up.Endpoint.Address
		return up, nil
	}
}

// giveBack ends the loan of up.
func (c *conn) giveBack(up *upstream.Conn, keep bool) {
	c.lent = nil
	up.Release(keep && (up.Wire == nil || c.nothingLeft(up)))
}

// nothingLeft reports whether TLS holds nothing beyond the answer: it reads from
// the socket ahead of what it is asked for, where no look at the socket finds it.
func (c *conn) nothingLeft(up *upstream.Conn) bool {
	w := up.Wire
	if w.Exhausted() && c.up.w < len(c.up.buf) {
		return w.Between()
	}
	w.Enter(nil)
	n, err := up.Conn.Read(c.up.buf)
	return n == 0 && err == wire.ErrEmpty && w.Between() && len(w.Leave()) == 0
}

// maxInterim is how many interim answers one call may get (RFC 9110 15.2).
const maxInterim = 32

// readHead reads the head of the final answer, passing over interim ones.
func (c *conn) readHead(up *upstream.Conn) failure {
	limits := http1.Limits{Head: bufferSize}
	for interim := 0; ; {
		if c.up.w > c.up.r {
			n, err := c.res.Parse(c.up.bytes(), c.req.Method, limits)
			if err != nil {
				return invalid(err)
			}
			if n > 0 {
				c.up.r += n
				switch {
				case c.res.Status == 101:
					return invalid(errors.New("the upstream switched protocols unasked"))
				case c.res.Status >= 200:
					return failure{}
				}
				if interim++; interim > maxInterim {
					return invalid(errors.New("too many interim answers"))
				}
				c.res.Reset()
				continue
			}
		}
		if err := c.up.fill(); err != nil {
			if errors.Is(err, errBufferFull) {
				return invalid(errors.New("the head of the answer is too large"))
			}
			return c.broken(err, up.Reused)
		}
	}
}

// invalid is an answer that is not strict HTTP.
func invalid(err error) failure { return failure{ReasonUpstreamBad, err, upstream.Reset, true} }

// unreachable names why there is no connection.
func unreachable(err error) failure {
	if e, ok := errors.AsType[*upstream.Error](err); ok {
		return failure{reason: e.Reason, cause: err}
	}
	return failure{reason: upstream.ReasonConnect, cause: err}
}

// broken names an I/O error of the upstream.
func (c *conn) broken(err error, reused bool) failure {
	var ne net.Error
	if c.watch.timedOut() || errors.As(err, &ne) && ne.Timeout() {
		return failure{ReasonTimeout, errors.New("no answer within the service's timeout"), upstream.Timeout, true}
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("the upstream closed the connection")
	}
	kind := upstream.Reset
	if reused && c.up.w == 0 {
		kind = upstream.Stale
	}
	return failure{ReasonUpstreamBroken, err, kind, true}
}

// fail answers a call that was allowed but could not be carried out.
func (c *conn) fail(up *upstream.Conn, keep bool, f failure) bool {
	c.watch.stop()
	if up != nil {
		if f.theirs {
			up.Failed(f.kind)
		}
		c.giveBack(up, false)
	}
	c.x.verdict.Reason = f.reason
	if f.reason == ReasonRevoked {
		c.x.verdict = deny(ReasonRevoked)
	}
	c.x.detail = f.cause.Error()
	return c.respond(keep)
}

// answer sends the upstream's answer to the client.
func (c *conn) answer(up *upstream.Conn, keep bool) bool {
	if s := c.stream; s != nil && !s.answered() || c.g.draining.Load() {
		keep = false // the client must not be told to go on in the middle of a body, or at the end
	}
	chunked := c.buildResponse(&keep)
	sent, f := c.sendBody(up, chunked)
	whole := f.reason == ""
	switch {
	case f.theirs:
		up.Failed(f.kind)
	case c.res.Status == 502 || c.res.Status == 503 || c.res.Status == 504:
		up.Failed(upstream.Gateway)
	default:
		up.Succeeded()
	}
	sentAll := c.endBody()
	c.watch.stop()
	c.giveBack(up, whole && sentAll && c.up.r == c.up.w && !c.res.Close && c.res.Body != http1.BodyClose)
	if !whole {
		c.x.verdict.Reason, c.x.detail = f.reason, f.cause.Error()
		if f.reason == ReasonRevoked {
			c.x.verdict = deny(ReasonRevoked)
		}
	}
	c.record(c.res.Status, sent)
	switch {
	case !whole:
		c.abort()
	case !sentAll || !keep && c.in.r < c.in.w:
		c.lingers = true
	}
	return whole && sentAll && keep
}

// sendBody sends c.out, which holds the head, and the body after it. It tells
// how much of a body went out, and why that was not all.
func (c *conn) sendBody(up *upstream.Conn, chunked bool) (sent int64, f failure) {
	b := body{kind: c.res.Body, left: c.res.Length, chunks: http1.Chunks{Trailer: &c.ending}}
	if c.ending.Reset(); c.bodiless() {
		b.kind = http1.BodyNone
	}
	for {
		n, data, done, err := b.next(c.up.bytes())
		if err != nil {
			return sent, invalid(err)
		}
		c.up.r += n
		sent += int64(len(data))
		if chunked {
			c.out = http1.AppendChunk(c.out, data)
		} else {
			c.out = append(c.out, data...)
		}
		if n > 0 && !done && c.up.w > c.up.r {
			continue
		}
		if !done && len(c.out) > 0 {
			if err := c.write(c.out); err != nil {
				return sent, clientGone(err)
			}
			c.out = c.out[:0]
		}
		if !done {
			done, f = c.refill(up, b.kind)
		}
		switch {
		case f.reason != "":
			return sent, f
		case !done:
			continue
		case chunked:
			c.appendLast()
		}
		if err := c.write(c.out); err != nil {
			return sent, clientGone(err)
		}
		return sent, failure{}
	}
}

// appendLast writes to c.out the end of a chunked answer, with the upstream's
// trailers for a client that takes them (RFC 9110 6.5.1): one of HTTP/2 always
// does.
func (c *conn) appendLast() {
	if _, stream := c.net.(*lane); stream || c.req.Trailers {
		c.out = http1.AppendTrailer(c.out, c.ending.Fields, 0)
	} else {
		c.out = http1.AppendLastChunk(c.out)
	}
}

func clientGone(err error) failure {
	return failure{reason: ReasonClientGone, cause: fmt.Errorf("the answer could not be sent: %w", err)}
}

// refill reads the next piece of the answer. It reports whether the body ended
// with the connection.
func (c *conn) refill(up *upstream.Conn, kind http1.Body) (end bool, f failure) {
	for {
		c.watch.start(c.g, up.Conn, c.g.cfg.Bounds.Stall, streaming)
		// Asked after the wait is known: new orders either see it or are seen.
		if !c.x.stillAllowed() {
			return false, failure{reason: ReasonRevoked, cause: errRevoked}
		}
		err := c.up.fill()
		switch {
		case err == nil:
			c.watch.start(c.g, c.net, c.g.cfg.Bounds.Stall, busy)
			return false, failure{}
		case errors.Is(err, io.EOF) && kind == http1.BodyClose:
			c.watch.start(c.g, c.net, c.g.cfg.Bounds.Stall, busy)
			return true, failure{}
		case c.watch.interrupted():
			continue
		}
		return false, c.broken(err, false)
	}
}

// abort ends a connection in the middle of an answer, so that no client takes
// what it got for the whole: an end that is not clean, since HTTP/1.0 has no
// other sign.
func (c *conn) abort() {
	if w := c.live.wire; w != nil {
		c.net = w.Conn // and no close_notify
	}
	if tcp, ok := c.net.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
}

var errRevoked = errors.New("the orders changed and do not allow this call any more")

// stillAllowed asks again when the orders changed during a call: a deny must
// reach what is already streaming.
func (x *exchange) stillAllowed() bool {
	f := x.g.force.Load()
	return f == x.f || f.policy.Decide(&x.call).Effect == merlon.Allow
}

// body walks over a message body as it arrives.
type body struct {
	kind   http1.Body
	left   int64
	chunks http1.Chunks
}

// next uses n bytes of in; data is what they add to the body.
func (b *body) next(in []byte) (n int, data []byte, done bool, err error) {
	switch b.kind {
	case http1.BodyLength:
		n = int(min(b.left, int64(len(in))))
		b.left -= int64(n)
		return n, in[:n], b.left == 0, nil
	case http1.BodyChunked:
		return b.chunks.Decode(in)
	case http1.BodyClose:
		return len(in), in, false, nil
	}
	return 0, nil, true, nil
}

// sendStream sends a request whose body is still arriving, and reads the head
// of the answer meanwhile. The time for the answer begins when the body is
// sent: a client that sends slowly must not look like a slow endpoint.
func (c *conn) sendStream(up *upstream.Conn) failure {
	if _, err := up.Write(c.out); err != nil {
		return c.broken(err, up.Reused)
	}
	c.watch.start(c.g, up.Conn, 0, answering)
	c.stream = newStream(c, up)
	go c.stream.run()
	f := c.readHead(up)
	if f.reason == "" {
		return f
	}
	if cause := c.stream.ended(); cause != nil {
		for _, own := range [...]failure{
			{reason: ReasonBodyTooLarge, cause: errBodyTooLarge},
			{reason: ReasonBodyInvalid, cause: errClientBody},
			{reason: ReasonClientGone, cause: errClientGone},
			{reason: ReasonRevoked, cause: errRevoked},
			{reason: ReasonDefect, cause: errDefect},
		} {
			if errors.Is(cause, own.cause) {
				own.cause = cause
				return own
			}
		}
	}
	return f
}
