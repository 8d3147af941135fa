package gate

import (
	"context"
	"errors"
	"io"
	"net"

	"merlon"
	"merlon/gate/http1"
	"merlon/gate/upstream"
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
	if c.req.Expect && !c.bodyBuffered() {
		if _, err := c.net.Write(continueLine); err != nil {
			c.record(0, 0)
			return false
		}
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
		up.Release(false)
	}
}

var continueLine = []byte("HTTP/1.1 100 Continue\r\n\r\n")

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
	c.watch.start(c.g, c.net, forever) // Get is bounded by itself
	up, err := cluster.Get(context.Background(), fresh)
	if err != nil {
		return nil, unreachable(err)
	}
	c.up.conn = up.Conn
	if err := c.buildRequest(up); err != nil {
		return up, failure{reason: merlon.ReasonUnidentified, cause: err}
	}
	if c.bodyBuffered() {
		c.watch.start(c.g, up.Conn, c.x.service.Timeout)
		if _, err := up.Write(c.out); err != nil {
			return up, c.broken(err, up.Reused)
		}
		return up, c.readHead(up)
	}
	return up, c.sendStream(up)
}

// readHead reads the head of the final answer, passing over interim ones.
func (c *conn) readHead(up *upstream.Conn) failure {
	limits := http1.Limits{Head: bufferSize}
	for {
		if c.up.w > c.up.r {
			n, err := c.res.Parse(c.up.bytes(), c.req.Method, limits)
			if err != nil {
				return failure{ReasonUpstreamBad, err, upstream.Reset, true}
			}
			if n > 0 {
				c.up.r += n
				if c.res.Status == 101 {
					return failure{ReasonUpstreamBad, errors.New("the upstream switched protocols unasked"), upstream.Reset, true}
				}
				if c.res.Status >= 200 {
					return failure{}
				}
				c.res.Reset()
				continue
			}
		}
		if err := c.up.fill(); err != nil {
			if errors.Is(err, errBufferFull) {
				return failure{ReasonUpstreamBad, errors.New("the head of the answer is too large"), upstream.Reset, true}
			}
			return c.broken(err, up.Reused)
		}
	}
}

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
	if up != nil {
		if f.theirs {
			up.Failed(f.kind)
		}
		up.Release(false)
	}
	c.watch.start(c.g, c.net, c.g.cfg.Bounds.Stall)
	c.x.verdict.Reason = f.reason
	c.x.detail = f.cause.Error()
	return c.respond(keep)
}

// answer sends the upstream's answer to the client.
func (c *conn) answer(up *upstream.Conn, keep bool) bool {
	c.watch.start(c.g, c.net, c.g.cfg.Bounds.Stall)
	switch c.res.Status {
	case 502, 503, 504:
		up.Failed(upstream.Gateway)
	default:
		up.Succeeded()
	}
	chunked := c.buildResponse(&keep)
	sent, whole, err := c.sendBody(up, chunked)
	sentAll := c.endBody()
	reusable := whole && sentAll && c.up.r == c.up.w && !c.res.Close && c.res.Body != http1.BodyClose
	c.watch.start(c.g, c.net, c.g.cfg.Bounds.Stall)
	up.Release(reusable)
	if err != nil {
		c.x.detail = err.Error()
	}
	c.record(c.res.Status, sent)
	if !keep || !whole {
		return false
	}
	if !sentAll {
		c.linger()
	}
	return sentAll
}

// sendBody sends c.out, which holds the head, and the body after it. It tells
// how much of a body went out and whether that was all of it.
func (c *conn) sendBody(up *upstream.Conn, chunked bool) (sent int64, whole bool, err error) {
	b := body{kind: c.res.Body, left: c.res.Length}
	if c.bodiless() {
		b.kind = http1.BodyNone
	}
	for {
		n, data, done, err := b.next(c.up.bytes())
		if err != nil {
			c.net.Write(c.out)
			return sent, false, err
		}
		c.up.r += n
		sent += int64(len(data))
		if chunked && len(data) > 0 {
			c.out = http1.AppendChunk(c.out, data)
		} else {
			c.out = append(c.out, data...)
		}
		if done {
			if chunked {
				c.out = http1.AppendLastChunk(c.out)
			}
			_, err = c.net.Write(c.out)
			return sent, err == nil, err
		}
		if n > 0 && c.up.w > c.up.r {
			continue
		}
		if len(c.out) > 0 {
			if _, err := c.net.Write(c.out); err != nil {
				return sent, false, err
			}
			c.out = c.out[:0]
		}
		if err := c.stillAllowed(); err != nil {
			return sent, false, err
		}
		c.watch.start(c.g, up.Conn, c.g.cfg.Bounds.Stall)
		if err := c.up.fill(); err != nil {
			if errors.Is(err, io.EOF) && b.kind == http1.BodyClose {
				if chunked {
					c.out = http1.AppendLastChunk(c.out)
					_, err = c.net.Write(c.out)
					return sent, err == nil, err
				}
				return sent, true, nil
			}
			return sent, false, err
		}
		c.watch.start(c.g, c.net, c.g.cfg.Bounds.Stall)
	}
}

// stillAllowed asks again when the orders changed during a call: a deny must
// reach what is already streaming.
func (c *conn) stillAllowed() error {
	x := &c.x
	if c.g.force.Load() == x.f || c.g.allows(&x.call) {
		return nil
	}
	x.verdict = deny(ReasonRevoked)
	return errRevoked
}

// allows asks what is in force now about a call that was built before.
func (g *Gate) allows(call *merlon.Call) bool {
	return g.force.Load().policy.Decide(call).Effect == merlon.Allow
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
// of the answer meanwhile.
func (c *conn) sendStream(up *upstream.Conn) failure {
	c.watch.start(c.g, up.Conn, forever) // the body's goroutine bounds the wait
	if _, err := up.Write(c.out); err != nil {
		return c.broken(err, up.Reused)
	}
	c.stream = newStream(c, up)
	go c.stream.run()
	f := c.readHead(up)
	if f.reason == "" {
		return f
	}
	switch s := c.stream; {
	case s.ended(errBodyTooLarge):
		return failure{reason: ReasonBodyTooLarge, cause: errBodyTooLarge}
	case s.ended(errClientBody):
		return failure{reason: ReasonBodyInvalid, cause: errClientBody}
	case s.ended(errRevoked):
		return failure{reason: ReasonRevoked, cause: errRevoked}
	case s.ended(errClientGone):
		return failure{reason: ReasonClientGone, cause: errClientGone}
	}
	return f
}
