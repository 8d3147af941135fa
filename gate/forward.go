package gate

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"

	"merlon"
	"merlon/gate/grpc"
	"merlon/gate/http1"
	"merlon/gate/http2"
	"merlon/gate/upstream"
	"merlon/identity/spiffe"
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
	if !c.sendsWhole() {
		if !cluster.Hold(c.bodyOf()) {
			return c.fail(nil, keep, failure{reason: ReasonBodies, cause: errBodies})
		}
		c.holding.Store(cluster)
	}
	var failed merlon.Endpoint
	for attempt := 0; ; attempt++ {
		up, f := c.send(cluster, failed)
		if f.reason == "" {
			if c.switched() {
				return c.tunnel(up)
			}
			return c.answer(up, keep)
		}
		if !c.mayRetry(cluster, up, f, attempt) {
			return c.fail(up, keep, f)
		}
		up.Failed(f.kind)
		failed = up.Endpoint
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

// bodyOf is whom a body on its way is counted for: the client, where one is known
// by its address. Behind the gateway all clients look like one.
func (c *conn) bodyOf() netip.Addr {
	if c.at != AtEdge {
		return netip.Addr{}
	}
	return sameClient(c.x.from)
}

// bodyCame ends the count of a body that was on its way. It may be called by who
// sends the body and by who ends the call.
func (c *conn) bodyCame() {
	if cluster := c.holding.Swap(nil); cluster != nil {
		cluster.LetGo(c.bodyOf())
	}
}

// mayRetry allows one more try of a call that surely has had no effect: it can
// be sent again whole, repeating it is harmless (RFC 9110 9.2.2), no byte of an
// answer came, and the budget permits. A pooled connection that the upstream
// had closed meanwhile is the usual cause and needs no budget.
func (c *conn) mayRetry(cluster *upstream.Cluster, up *upstream.Conn, f failure, attempt int) bool {
	switch {
	case up == nil || f.reason != ReasonUpstreamBroken || c.up.w > 0:
		return false
	case f.kind == upstream.Refused:
		return refusedAgain(cluster, f, attempt) && (c.stream == nil || c.stream.rewind())
	case attempt > 1 || !c.sendsWhole():
		return false
	}
	switch c.req.Method {
	case "GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE":
		return up.Reused || cluster.MayRetry()
	}
	return false
}

// maxGoneAway is how often a call may meet a connection that takes no more.
const maxGoneAway = 8

// refusedAgain reports whether a call that was refused may risk it once more. That
// it met the end of a connection says nothing about the load of the upstream;
// that it alone was refused may.
func refusedAgain(cluster *upstream.Cluster, f failure, attempt int) bool {
	return attempt == 0 || attempt < maxGoneAway && errors.Is(f.cause, errGoneAway) || attempt == 1 && cluster.MayRetry()
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
// the head of the final answer into c.res. An endpoint at which the call failed
// before is avoided.
func (c *conn) send(cluster *upstream.Cluster, failed merlon.Endpoint) (*upstream.Conn, failure) {
	c.up.r, c.up.w = 0, 0
	up, err := c.borrow(cluster, failed)
	if err != nil {
		return nil, unreachable(err)
	}
	c.up.conn, c.upReads = up.Conn, readSide{up.Conn}
	if c.x.kind != grpc.None {
		c.follow(up.Conn)
	}
	if c.x.connects() && up.Endpoint.ID == "" {
		c.res.Status = 200 // the service itself: there is nobody to ask
		return up, failure{}
	}
	if err := c.buildRequest(up); err != nil {
		return up, failure{reason: merlon.ReasonUnidentified, cause: err}
	}
	c.watch.start(c.g, up.Conn, c.x.within(c.x.service.Timeout), busy)
	if !c.sendsWhole() {
		return up, c.sendStream(up)
	}
	if c.x.lasting() {
		c.moved.Store(c.g.clock.Nanos())
		_, err = up.Write(c.out)
	} else {
		err = c.exchange(up)
	}
	if err != nil {
		return up, c.broken(err, up.Reused)
	}
	return up, c.readHead(up)
}

// sendsWhole reports whether the request goes upstream in one piece.
func (c *conn) sendsWhole() bool {
	return c.bodyBuffered() && (c.x.kind != grpc.WebText || c.req.Length == 0)
}

// borrow gets a connection to the upstream: a pooled one only while the
// certificates that were shown on it hold.
func (c *conn) borrow(cluster *upstream.Cluster, failed merlon.Endpoint) (up *upstream.Conn, err error) {
	for {
		if up, err = cluster.Get(context.Background(), failed); err != nil {
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
	if c.following {
		keep = keep && !c.abandoned() // which may have moved its deadline
		c.follow(nil)
	}
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
				case c.res.Status == 101 || c.res.Status >= 200:
					return c.x.judge(&c.res)
				}
				if interim++; interim > maxInterim {
					return invalid(errors.New("too many interim answers"))
				}
				c.res.Reset()
				continue
			}
		}
		if err := c.fillHead(up); err != nil {
			c.res.Reset() // or the end of the next head would be looked for beyond what was seen of this
			if errors.Is(err, errBufferFull) {
				return invalid(errors.New("the head of the answer is too large"))
			}
			return c.broken(err, up.Reused)
		}
	}
}

// fillHead reads the next piece of a head. The time for it is running already,
// unless nobody knows when the first message of an answer comes.
func (c *conn) fillHead(up *upstream.Conn) error {
	if c.x.lasting() {
		return c.await()
	}
	return c.up.fill()
}

// await reads the next piece of an answer that may be long in coming: new orders
// reach the wait for it.
func (c *conn) await() error {
	for {
		c.watch.start(c.g, &c.upReads, c.x.stall(c.x.lasts()), streaming)
		// Asked after the wait is known: new orders either see it or are seen, and
		// so is a client that has lost interest.
		if !c.x.stillAllowed() {
			return errRevoked
		}
		if own := c.ownFailure(nil); own.reason != "" {
			return own.cause
		}
		err := c.up.fill()
		if err == nil {
			if c.x.lasts() {
				c.moved.Store(c.g.clock.Nanos())
			}
			return nil
		}
		if errors.Is(err, io.EOF) || !c.goesOn(&c.watch, c.x.lasts()) {
			return err
		}
	}
}

// invalid is an answer that is not strict HTTP.
func invalid(err error) failure { return failure{ReasonUpstreamBad, err, upstream.Reset, true} }

// unreachable names why there is no connection.
func unreachable(err error) failure {
	_, unproven := errors.AsType[*spiffe.UnprovenError](err)
	invalid, _ := errors.AsType[x509.CertificateInvalidError](err)
	switch {
	case errors.Is(err, errNoSVID):
		return failure{reason: ReasonSVIDExpired, cause: err}
	case errors.Is(err, errNoBundle):
		return failure{reason: ReasonNoBundle, cause: err}
	case unproven && invalid.Cert != nil && invalid.Reason == x509.Expired:
		return failure{reason: ReasonUpstreamExpired, cause: err}
	case unproven:
		return failure{reason: ReasonUpstreamUnproven, cause: err}
	}
	if e, ok := errors.AsType[*upstream.Error](err); ok {
		return failure{reason: e.Reason, cause: err}
	}
	return failure{reason: upstream.ReasonConnect, cause: err}
}

// broken names an I/O error of the upstream.
func (c *conn) broken(err error, reused bool) failure {
	if own := c.ownFailure(err); own.reason != "" {
		return own
	}
	var ne net.Error
	if c.watch.timedOut() || errors.As(err, &ne) && ne.Timeout() {
		if c.x.lasts() {
			return failure{reason: ReasonTimeout, cause: errQuiet} // neither side said anything
		}
		return failure{ReasonTimeout, errors.New("no answer within the service's timeout"), upstream.Timeout, true}
	}
	if _, refused := errors.AsType[*refusedError](err); refused {
		return failure{ReasonUpstreamBroken, err, upstream.Refused, true}
	}
	if e, ok := errors.AsType[*http2.Error](err); ok {
		return invalid(e)
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

// Why a call ended that nobody broke off.
var (
	errBodies   = errors.New("too many bodies are on their way to the service, or too many of this client's")
	errDeadline = errors.New("the deadline that came with the call has passed")
	errQuiet    = errors.New("nothing came from either side for too long")
)

// ownFailure is why a wait for the upstream ended in err, if that was not its
// doing: err says so, or what ended the request's body, whose end ends the wait.
func (c *conn) ownFailure(err error) failure {
	causes := [...]error{err, nil}
	if c.stream != nil {
		causes[1] = c.stream.ended()
	}
	for _, cause := range causes {
		if cause == nil {
			continue
		}
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
	switch {
	case c.abandoned():
		return failure{reason: ReasonClientGone, cause: errReset}
	case c.x.late():
		return failure{reason: ReasonDeadline, cause: errDeadline}
	}
	return failure{}
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
	if s := c.stream; s != nil && !s.answered() || c.g.leaving.Load() {
		keep = false // the client must not be told to go on in the middle of a body, or at the end
	}
	c.noteAnswer(up)
	chunked := c.buildResponse(&keep)
	sent, f := c.sendBody(up, chunked)
	whole := f.reason == ""
	switch {
	case f.theirs:
		up.Failed(f.kind)
	case whole && c.x.coded && c.x.code == grpc.Unavailable, c.res.Status == 502 || c.res.Status == 503 || c.res.Status == 504:
		up.Failed(upstream.Gateway)
	default:
		up.Succeeded()
	}
	sentAll := c.endBody()
	c.watch.stop()
	c.giveBack(up, whole && sentAll && c.up.r == c.up.w && !c.res.Close && c.res.Body != http1.BodyClose && !c.bodyMayFollow(up))
	told := false
	if !whole {
		c.x.verdict.Reason, c.x.detail = f.reason, f.cause.Error()
		if f.reason == ReasonRevoked {
			c.x.verdict = deny(ReasonRevoked)
		}
		told = c.tell(f, chunked)
	}
	c.record(c.res.Status, sent)
	switch {
	case !whole && !told:
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
		c.appendData(data, chunked)
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
			done, f = c.refill(b.kind)
		}
		switch {
		case f.reason != "":
			return sent, f
		case !done:
			continue
		}
		c.appendLast(chunked)
		c.noteEnd()
		if err := c.write(c.out); err != nil {
			return sent, clientGone(err)
		}
		return sent, failure{}
	}
}

func clientGone(err error) failure {
	return failure{reason: ReasonClientGone, cause: fmt.Errorf("the answer could not be sent: %w", err)}
}

// refill reads the next piece of the answer. It reports whether the body ended
// with the connection.
func (c *conn) refill(kind http1.Body) (end bool, f failure) {
	err := c.await()
	end = errors.Is(err, io.EOF) && kind == http1.BodyClose
	if err == nil || end {
		c.watch.start(c.g, c.net, c.x.stall(c.x.lasts()), busy)
		return end, failure{}
	}
	return false, c.broken(err, false)
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
	c.watch.start(c.g, up.Conn, c.x.within(0), answering)
	c.moved.Store(c.g.clock.Nanos())
	if c.stream == nil {
		c.stream = newStream(c, up)
	} else {
		c.stream.begin(up)
	}
	return c.readHead(up)
}
