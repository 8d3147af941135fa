package gate

import (
	"net/http"
	"strings"
	"time"
	"unsafe"

	"merlon"
	"merlon/gate/grpc"
	"merlon/gate/http1"
	"merlon/gate/upstream"
	"merlon/internal/httpfield"
	"merlon/record"
)

// view is a string over b, which must not change while the view is in use.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// buildRequest writes to c.out the request that goes upstream: the call's own
// canonical bytes, the client's end-to-end fields, and identity, forwarding
// and framing set anew. A body that was read whole goes with it.
func (c *conn) buildRequest(up *upstream.Conn) error {
	x, req := &c.x, &c.req
	var out []byte
	if x.connects() {
		out = x.appendConnect(c.out[:0])
	} else {
		out = http1.AppendRequestLine(c.out[:0], x.call.Method, x.call.Path, x.call.Query)
		out = append(out, "Host: "...)
		out = append(out, x.call.Host...)
		out = append(out, x.port...)
		out = append(out, "\r\n"...)
		out = http1.AppendFields(out, req.Fields, ^http1.Class(0))
	}
	if (req.Trailers || x.kind != grpc.None) && !x.wantsTunnel() {
		out = append(out, "TE: trailers\r\nConnection: TE\r\n"...) // RFC 9110 10.1.4
	}
	if x.kind != grpc.None {
		out = x.appendRPC(out)
	}
	out, err := x.appendOwn(out, up)
	if err != nil {
		return err
	}
	if x.upgrades() {
		out = append(out, upgradeFields...)
	}
	body, whole := req.Body, c.sendsWhole()
	if x.kind == grpc.WebText && !whole {
		body = http1.BodyChunked // nobody knows its length before it is decoded
	}
	out = http1.AppendFraming(out, body, req.Length)
	out = http1.AppendEnd(out)
	if req.Body == http1.BodyLength && whole {
		out = append(out, c.in.bytes()[:req.Length]...)
	}
	c.out = out
	return nil
}

// appendOwn writes the headers that a gate says itself. An external service
// learns nothing of the system behind the gate.
func (x *exchange) appendOwn(out []byte, up *upstream.Conn) ([]byte, error) {
	if x.service.External {
		return out, nil
	}
	out = http1.AppendField(out, headerRequest, x.id)
	out = x.appendTrace(out)
	caller := &x.call.Caller
	if caller.Client != "" {
		out = http1.AppendField(out, "X-Forwarded-For", caller.Client)
		out = http1.AppendField(out, "X-Forwarded-Proto", x.scheme())
		out = http1.AppendField(out, "X-Forwarded-Host", x.call.Host)
	}
	if up.Endpoint.ID != "" && x.at == Outbound {
		return out, nil // mutual TLS already says who calls
	}
	token, err := x.assert(up)
	if err != nil {
		return out, err
	}
	return http1.AppendField(out, headerCaller, token), nil
}

// assert says who is calling, under a key that the receiver can check. Another
// gate believes only the key that this gate proved on the very connection,
// which may be older than the current SVID.
func (x *exchange) assert(up *upstream.Conn) (string, error) {
	caller, audience := &x.call.Caller, x.service.Name
	if s, mutual := up.State.(*session); mutual {
		return x.g.signer.TokenBy(s.key, s.kid, caller, audience, x.start)
	}
	return x.g.signer.Token(caller, audience, x.start)
}

// scheme is what the client used to reach the gateway.
func (x *exchange) scheme() string {
	if gw := x.f.orders.Intent.Gateway; gw != nil && gw.Certificate.Kind == merlon.CertificateNone {
		return "http"
	}
	return "https"
}

// buildResponse writes to c.out the head of the upstream's answer as the client
// gets it, and decides its framing. It reports whether the body goes chunked.
func (c *conn) buildResponse(keep *bool) (chunked bool) {
	x, res := &c.x, &c.res
	out := c.appendHead(c.out[:0])
	switch {
	case c.bodiless():
		if res.Length >= 0 && res.Status != 204 {
			out = http1.AppendFraming(out, http1.BodyLength, res.Length)
		}
	case res.Body == http1.BodyChunked || res.Body == http1.BodyClose || x.web:
		if c.req.Minor == 0 {
			*keep = false // HTTP/1.0 knows no chunks: the end of the connection ends the body
			break
		}
		chunked = true
		out = http1.AppendFraming(out, http1.BodyChunked, 0)
	default:
		out = http1.AppendFraming(out, http1.BodyLength, max(res.Length, 0))
	}
	c.out = appendConnection(out, *keep, c.req.Minor)
	return chunked
}

// appendHead writes the head of the upstream's answer, but for what frames it
// and is about the connection.
func (c *conn) appendHead(out []byte) []byte {
	x, res := &c.x, &c.res
	out = http1.AppendStatusLine(out, res.Status, res.Reason)
	// What another gate says of itself may pass; an app may not speak for one.
	fromGate := x.at != Inbound && !x.service.External
	for i := range res.Fields {
		f := &res.Fields[i]
		switch {
		case f.Class&(http1.HopByHop|http1.Framing) != 0:
		case x.web && httpfield.EqualFold(f.Name, "content-type"):
			out = append(out, "Content-Type: "...)
			out = grpc.AppendContentType(out, x.kind, f.Value)
			out = append(out, "\r\n"...)
		case f.Class&http1.Identity != 0 && ownName(f.Name) && (!fromGate || strings.EqualFold(f.Name, headerRequest)):
		default:
			out = http1.AppendField(out, f.Name, f.Value)
		}
	}
	return x.appendVerdict(out)
}

// ownName reports whether only gates may set a field of an answer.
func ownName(name string) bool {
	const prefix = "merlon"
	return len(name) >= len(prefix) && strings.EqualFold(name[:len(prefix)], prefix)
}

// bodiless reports whether the answer has no body whatever its head says
// (RFC 9112 6.3).
func (c *conn) bodiless() bool {
	return c.req.Method == "HEAD" || c.res.Status == 204 || c.res.Status == 304
}

// bodyMayFollow reports whether the application may yet send the body that its
// answer has not: many answer HEAD as if it were GET. What came when the
// connection is in the pool, and in use again, would be the answer to somebody
// else's call, and its bytes are often a client's to choose. Gates do not err so;
// what is of another trust domain may be none.
func (c *conn) bodyMayFollow(up *upstream.Conn) bool {
	return (up.Endpoint.ID == "" || c.x.service.External) && (c.req.Method == "HEAD" || c.bodiless() && c.res.Length > 0)
}

// appendVerdict writes what the gate adds to every answer.
func (x *exchange) appendVerdict(out []byte) []byte {
	out = http1.AppendField(out, headerRequest, x.id)
	if x.limited != nil {
		out = x.limit.AppendHeaders(out, x.limited)
	}
	return out
}

func appendConnection(out []byte, keep bool, minor int) []byte {
	switch {
	case !keep:
		out = append(out, "Connection: close\r\n"...)
	case minor == 0:
		out = append(out, "Connection: keep-alive\r\n"...)
	}
	return append(out, "\r\n"...)
}

// refuse answers a call that is denied.
func (c *conn) refuse(keep bool) bool {
	if c.x.verdict.Effect == merlon.Allow {
		c.x.verdict = merlon.Verdict{}
	}
	return c.respond(keep)
}

// respond answers in the gate's own name: a status, the reason's code and the
// id under which the record has the rest. The cause is not for the caller.
func (c *conn) respond(keep bool) bool {
	x := &c.x
	keep = c.endBody() && keep && !c.g.leaving.Load()
	status, kind := x.answerStatus(), x.speaks()
	var out []byte
	if kind == grpc.None {
		out = http1.AppendStatusLine(c.out[:0], status, "")
		out = append(out, "Content-Type: application/json\r\n"...)
	} else {
		out = http1.AppendStatusLine(c.out[:0], 200, "")
		out = x.appendRefusal(out, kind)
		status = 200
	}
	out = append(out, "Cache-Control: no-store\r\nDate: "...)
	out = x.start.UTC().AppendFormat(out, http.TimeFormat)
	out = append(out, "\r\n"...)
	out = http1.AppendField(out, headerReason, string(x.verdict.Reason))
	out = x.appendVerdict(out)
	switch {
	case x.verdict.Reason == ReasonWebSocketVersion:
		out = http1.AppendField(out, "Sec-WebSocket-Version", websocketVersion) // RFC 6455 4.4
	case x.verdict.Reason == merlon.ReasonInvalidToken:
		out = http1.AppendField(out, "WWW-Authenticate", `Bearer error="invalid_token"`)
	case status == 401:
		out = http1.AppendField(out, "WWW-Authenticate", "Bearer")
	}
	if kind == grpc.None {
		out = x.appendExplained(out, keep, c.req.Method, c.req.Minor)
	} else {
		out = http1.AppendFraming(out, http1.BodyLength, 0)
		out = appendConnection(out, keep, c.req.Minor)
	}
	c.out = out
	// The record goes first: nobody learns of a denial before the record does.
	c.record(status, 0)
	err := c.write(out)
	c.lingers = !keep && err == nil
	return keep && err == nil
}

// appendExplained ends the head of a refusal, and says in its body what it is.
func (x *exchange) appendExplained(out []byte, keep bool, method string, minor int) []byte {
	const form = `{"reason":"","request":""}` + "\n"
	out = http1.AppendFraming(out, http1.BodyLength, int64(len(form)+len(x.verdict.Reason)+len(x.id)))
	out = appendConnection(out, keep, minor)
	if method == "HEAD" {
		return out
	}
	out = append(out, `{"reason":"`...)
	out = append(out, x.verdict.Reason...)
	out = append(out, `","request":"`...)
	out = append(out, x.id...)
	return append(out, "\"}\n"...)
}

// endBody puts the request body behind: it reports whether the next bytes from
// the client are a new request. It ends the goroutine of a body in progress.
func (c *conn) endBody() bool {
	defer c.bodyCame()
	if s := c.stream; s != nil {
		whole := s.finish()
		c.stream, c.sent = nil, s
		c.unread, c.x.bytesIn = s.rest, s.taken
		c.in.r = c.in.w
		return whole
	}
	if !c.bodyBuffered() {
		return false
	}
	c.x.bytesIn = max(c.req.Length, 0)
	c.in.r += int(c.x.bytesIn)
	return true
}

// refuseMalformed answers what is not a request.
func (c *conn) refuseMalformed(err error) {
	x := &c.x
	x.begin()
	if c.at != AtEdge {
		x.call.Caller = c.peer.caller
	}
	reason, status := merlon.Reason("malformed"), 400
	if e, ok := err.(*http1.Error); ok {
		reason, status = merlon.Reason(e.Reason), e.Status
	}
	x.verdict, x.detail = deny(reason), err.Error()
	c.req.Reset()
	c.req.Minor, c.req.Body = 1, http1.BodyClose // nothing after this is readable
	x.status = status
	c.respond(false)
}

// What comes of a request that was answered is dropped for this long and up to
// so many bytes.
const (
	lingering = 2 * time.Second
	lingered  = 64 << 20
)

// linger lets the client read the answer before the connection ends: closing
// with unread bytes would reset it (RFC 9112 9.6). Many clients first send all
// they have and only then look for an answer.
func (c *conn) linger() {
	half, ok := c.net.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	c.watch.start(c.g, c.net, lingering, busy)
	for read := 0; read < lingered; {
		n, err := c.net.Read(c.up.buf)
		if err != nil {
			return
		}
		read += n
	}
}

// intentLength is how much of an intent's hash a record names it by: enough to
// tell apart all the intents a system will have, in a line that is written for
// every call.
const intentLength = 16

// record writes the line of evidence for the call.
func (c *conn) record(status int, sent int64) {
	x := &c.x
	r := &c.rec
	*r = record.Record{
		Time:       x.start.UnixNano(),
		ID:         x.id,
		Place:      c.g.placeName,
		At:         x.at.String(),
		CallerKind: x.call.Caller.Kind.String(),
		Caller:     x.call.Caller.Name,
		Subject:    x.call.Caller.Subject,
		Client:     x.call.Caller.Client,
		Service:    x.call.Service,
		Operation:  x.call.Operation,
		Method:     x.call.Method,
		Host:       x.call.Host,
		Path:       x.call.Path,
		Query:      x.call.Query, // which the writer keeps only if told to
		Status:     status,
		Verdict:    x.verdict,
		Detail:     x.detail,
		Upstream:   x.upstream,
		Duration:   int64(time.Since(x.start)),
		BytesIn:    x.bytesIn,
		BytesOut:   sent,
		Trace:      x.traceText(),
	}
	if x.coded {
		r.GRPC = x.code.String()
	}
	if x.f != nil {
		r.Intent = x.f.orders.Of[:min(len(x.f.orders.Of), intentLength)]
	}
	c.count(r)
	x.traced(r)
	var err error
	if c.reserved {
		c.reserved = false
		err = c.g.cfg.Records.Commit(r)
	} else {
		err = c.g.cfg.Records.Add(r)
	}
	if err != nil {
		c.g.cfg.Log.Error("a call could not be recorded", "request", strings.Clone(x.id), "error", err)
	}
}
