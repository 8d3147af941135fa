package gate

import (
	"net"
	"strconv"
	"time"

	"merlon"
	"merlon/gate/grpc"
	"merlon/gate/http1"
	"merlon/gate/upstream"
	"merlon/internal/httpfield"
)

// gRPC is HTTP to a gate, but for four things. Refusals are statuses of gRPC,
// in trailers. A deadline comes with the call. A call whose contract says that
// it streams lasts as long as both sides like. And browsers, which cannot read
// trailers, speak gRPC-Web, which the edge translates.

// maxDeadline keeps the sum of a clock and a timeout within its type, and is as
// good as none.
const maxDeadline = 100 * 365 * 24 * time.Hour

// rpc checks that a call of a gRPC service is one of gRPC, and takes its
// deadline.
func (x *exchange) rpc() merlon.Verdict {
	if x.service.Protocol != merlon.GRPC {
		return pass
	}
	kind := x.speaks()
	if kind == grpc.None || x.call.Method != "POST" {
		return deny(ReasonNotGRPC)
	}
	for i := range x.req.Fields {
		f := &x.req.Fields[i]
		switch {
		case httpfield.EqualFold(f.Name, "grpc-timeout"):
			d, ok := grpc.ParseTimeout(f.Value)
			switch {
			case !ok || x.deadline != 0:
				return deny(ReasonGRPCTimeout)
			case d == 0:
				return deny(ReasonDeadline)
			}
			x.deadline = x.g.clock.Nanos() + int64(min(d, maxDeadline))
			f.Class |= http1.Framing // what is left of it is said anew
		case kind != grpc.Native && httpfield.EqualFold(f.Name, "content-type"):
			f.Class |= http1.Framing
		}
	}
	x.kind = kind
	return pass
}

// speaks is the kind of gRPC in which the client asks, and so is answered. It
// may be asked before the service is known.
func (x *exchange) speaks() grpc.Kind {
	if x.service != nil && x.service.Protocol != merlon.GRPC {
		return grpc.None
	}
	kind := grpc.KindOf(x.req.ContentType)
	if kind != grpc.Native && x.at != AtEdge {
		return grpc.None
	}
	return kind
}

// appendRPC writes the fields that a gRPC request has from the gate.
func (x *exchange) appendRPC(out []byte) []byte {
	if x.kind != grpc.Native {
		out = append(out, "Content-Type: "...)
		out = grpc.AppendContentType(out, grpc.Native, x.req.ContentType)
		out = append(out, "\r\n"...)
	}
	if x.deadline != 0 {
		left := x.within(0)
		if !x.lasting() {
			left = x.within(x.service.Timeout)
		}
		out = append(out, "grpc-timeout: "...)
		out = grpc.AppendTimeout(out, left)
		out = append(out, "\r\n"...)
	}
	return out
}

// within is d, or what is left until the call's deadline if that is less. A d of
// 0 is for ever.
func (x *exchange) within(d time.Duration) time.Duration {
	if x.deadline == 0 {
		return d
	}
	left := max(time.Duration(x.deadline-x.g.clock.Nanos()), 1)
	if d == 0 {
		return left
	}
	return min(d, left)
}

// deadlineSlack is how much sooner than by this gate's clock, which has ticks, the
// service may find that the deadline has passed: it was told of the same one.
const deadlineSlack = int64(25 * time.Millisecond)

// late reports whether a call that failed just now did so at its deadline.
func (x *exchange) late() bool {
	return x.deadline != 0 && x.g.clock.Nanos()+deadlineSlack >= x.deadline
}

// lasting reports whether the contract says that the call lasts as long as both
// sides like.
func (x *exchange) lasting() bool { return x.operation != nil && x.operation.Streams }

// lasts reports whether it does, or its answer, being made of events. Who sends
// its body asks lasting instead: it may run before the answer is known.
func (x *exchange) lasts() bool { return x.lasting() || x.events }

// stall is how long a body may make no progress.
func (x *exchange) stall(lasts bool) time.Duration {
	if lasts {
		return x.within(x.g.cfg.Bounds.Quiet)
	}
	return x.within(x.g.cfg.Bounds.Stall)
}

// goesOn reports whether a wait for the next piece of a body, which w bounded and
// which has ended, is to begin again: it was interrupted, or it was too long but
// the call lasts and something moved the other way meanwhile.
func (c *conn) goesOn(w *watch, lasts bool) bool {
	if w.interrupted() {
		return true
	}
	quiet := c.g.clock.Nanos() - c.moved.Load()
	return lasts && w.timedOut() && !c.x.late() && quiet < int64(c.g.cfg.Bounds.Quiet)
}

// noteAnswer takes from the head of an answer what decides how it goes on.
func (c *conn) noteAnswer(up *upstream.Conn) {
	x, res := &c.x, &c.res
	if x.events = isEventStream(res.ContentType); x.events {
		c.moved.Store(c.g.clock.Nanos())
		c.follow(up.Conn)
	}
	if x.kind == grpc.None {
		return
	}
	if status, n := http1.Get(res.Fields, "grpc-status"); n > 0 { // and nothing comes after it
		x.ends(grpc.ParseCode(status))
		return
	}
	x.web = x.kind != grpc.Native && res.Status == 200 && grpc.KindOf(res.ContentType) == grpc.Native
}

// isEventStream reports whether an answer is made of server-sent events.
func isEventStream(contentType string) bool {
	const events = "text/event-stream"
	return len(contentType) >= len(events) && httpfield.EqualFold(contentType[:len(events)], events) &&
		(len(contentType) == len(events) || contentType[len(events)] == ';' || contentType[len(events)] == ' ')
}

// appendData writes to c.out a piece of the answer's body.
func (c *conn) appendData(data []byte, chunked bool) {
	if c.x.web && c.x.kind == grpc.WebText && len(data) > 0 {
		c.text = grpc.AppendText(c.text[:0], data)
		data = c.text
	}
	if chunked {
		c.out = http1.AppendChunk(c.out, data)
	} else {
		c.out = append(c.out, data...)
	}
}

// appendLast writes to c.out the end of an answer, with the upstream's trailers
// for a client that takes them (RFC 9110 6.5.1). gRPC-Web has them in the body.
func (c *conn) appendLast(chunked bool) {
	if c.x.web {
		c.appendData(grpc.AppendTrailerFrame(nil, c.ending.Fields), chunked)
	}
	switch {
	case !chunked:
	case !c.x.web && c.takesTrailers():
		c.out = http1.AppendTrailer(c.out, c.ending.Fields, 0)
	default:
		c.out = http1.AppendLastChunk(c.out)
	}
}

// takesTrailers reports whether the client takes trailers: over HTTP/2 it always
// does.
func (c *conn) takesTrailers() bool {
	_, stream := c.net.(*lane)
	return stream || c.req.Trailers
}

// noteEnd takes the status of a gRPC call from the end of its answer.
func (c *conn) noteEnd() {
	if c.x.kind == grpc.None || c.x.coded {
		return
	}
	status, _ := http1.Get(c.ending.Fields, "grpc-status")
	c.x.ends(grpc.ParseCode(status))
}

// ends notes the status of a gRPC call.
func (x *exchange) ends(code grpc.Code) { x.code, x.coded = code, true }

// tell ends an answer that cannot go on with a status of gRPC, if that can still
// be said. If not, the connection or its stream is to be broken off.
func (c *conn) tell(f failure, chunked bool) bool {
	x := &c.x
	if x.kind == grpc.None {
		return false
	}
	code := x.refusal()
	if x.ends(code); f.reason == ReasonClientGone || !x.web && (!chunked || !c.takesTrailers()) {
		return false
	}
	c.ending.Fields = append(c.ending.Fields[:0],
		http1.Field{Name: "grpc-status", Value: strconv.Itoa(int(code))},
		http1.Field{Name: "grpc-message", Value: x.message()})
	c.out = c.out[:0]
	c.appendLast(chunked)
	return c.write(c.out) == nil
}

// refusal is the code of a failure or denial.
func (x *exchange) refusal() grpc.Code {
	if x.verdict.Reason == ReasonClientGone {
		return grpc.Canceled
	}
	return grpc.FromHTTP(x.answerStatus())
}

// message is what grpc-message says of a refusal: the reason's code and the id
// under which the record has the rest. It needs no percent-encoding.
func (x *exchange) message() string { return string(x.verdict.Reason) + " (request " + x.id + ")" }

// appendRefusal writes the fields of a refusal that gRPC hears: an answer
// without a body, whose head has what else is in trailers.
func (x *exchange) appendRefusal(out []byte, kind grpc.Kind) []byte {
	code := x.refusal()
	x.ends(code)
	out = append(out, "Content-Type: "...)
	out = grpc.AppendContentType(out, kind, x.req.ContentType)
	out = append(out, "\r\ngrpc-status: "...)
	out = strconv.AppendInt(out, int64(code), 10)
	out = append(out, "\r\n"...)
	return http1.AppendField(out, "grpc-message", x.message())
}

// follow makes the end of the client's interest end the wait for up, or for
// nothing. Only a stream of HTTP/2 tells of its end by itself.
func (c *conn) follow(up net.Conn) {
	if l, stream := c.net.(*lane); stream {
		l.follow(up)
		c.following = up != nil
	}
}

// abandoned reports whether the client has lost interest.
func (c *conn) abandoned() bool {
	l, stream := c.net.(*lane)
	return stream && c.following && l.abandoned()
}
