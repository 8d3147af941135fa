package gate

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"strconv"

	"merlon"
	"merlon/gate/http1"
	"merlon/internal/otlp"
	"merlon/internal/tracecontext"
	"merlon/record"
)

// A call belongs to a trace (W3C Trace Context). Where it begins a gate throws
// the dice whether it is sampled; every other gate holds to that. Each gate on
// the way has one span, whose parent is what called it and which is the parent
// of what it calls.
//
// Whom a gate believes: other gates, and its own service. Clients of the gateway
// only if the intent says so: else anyone could have all of his calls sampled,
// or make them look like part of somebody else's trace.

// Names of the fields, which are one word each (3.2, 3.3).
const (
	headerTraceParent = "traceparent"
	headerTraceState  = "tracestate"
)

// trace is a call's place in its trace. The zero trace is none.
type trace struct {
	tracecontext.Context // Span is this gate's own, if own is true, and else the caller's
	parent               [8]byte
	own                  bool // this gate makes spans
	stateful             bool // tracestate goes on
	// linked is the context of a client that is not believed.
	linked tracecontext.Context
}

// joinTrace finds the trace of the call, or begins one.
func (x *exchange) joinTrace() {
	x.trace = trace{}
	t := &x.trace
	var traces *merlon.Traces
	if x.f != nil {
		traces = x.f.traces
	}
	var came tracecontext.Context
	var stateful, ok bool
	if x.req.Traced {
		came, stateful, ok = contextOf(x.req.Fields)
	}
	if !ok && traces == nil {
		return
	}
	if t.own = traces != nil; !t.own {
		t.Context, t.stateful = came, stateful // which passes, as it came
		return
	}
	if ok && (x.at != AtEdge && !x.peer.foreign || traces.Trust) {
		t.Context, t.stateful, t.parent = came, stateful, came.Span
	} else {
		t.linked = came
		t.Context = newContext(traces.Sample)
	}
	binary.NativeEndian.PutUint64(t.Span[:], rand.Uint64()|1)
}

// newContext begins a trace. Its ids are random, not secret.
func newContext(sample int) (c tracecontext.Context) {
	binary.NativeEndian.PutUint64(c.Trace[:8], rand.Uint64()|1)
	binary.NativeEndian.PutUint64(c.Trace[8:], rand.Uint64())
	if rand.IntN(1_000_000) < sample {
		c.Flags = tracecontext.Sampled
	}
	return c
}

// contextOf reads the trace context of a request, if it has one that is whole.
func contextOf(fields []http1.Field) (c tracecontext.Context, stateful, ok bool) {
	parents := 0
	var states tracecontext.State
	stateful = true
	for i := range fields {
		f := &fields[i]
		switch {
		case f.Class != http1.Tracing: // nor what Connection names
		case len(f.Name) == len(headerTraceParent):
			parents++
			c, ok = tracecontext.Parse(f.Value)
		default:
			stateful = states.Add(f.Value) && stateful
		}
	}
	if !ok || parents != 1 {
		return tracecontext.Context{}, false, false
	}
	return c, stateful, true
}

// appendTrace writes where the call stands in its trace, for the next gate or
// the service.
func (x *exchange) appendTrace(out []byte) []byte {
	t := &x.trace
	if t.Trace == [16]byte{} {
		return out
	}
	out = append(out, headerTraceParent+": "...)
	out = t.Context.Append(out)
	out = append(out, "\r\n"...)
	if !t.stateful {
		return out
	}
	for i := range x.req.Fields {
		if f := &x.req.Fields[i]; f.Class == http1.Tracing && len(f.Name) == len(headerTraceState) {
			out = http1.AppendField(out, headerTraceState, f.Value)
		}
	}
	return out
}

// traceText is the id of the trace, for the record; it holds until the next call.
func (x *exchange) traceText() string {
	t := &x.trace
	if t.Trace == [16]byte{} {
		return ""
	}
	return view(hex.AppendEncode(x.traceBuf[:0], t.Trace[:]))
}

// traced makes the span of the call that r is the record of, if it is sampled.
func (x *exchange) traced(r *record.Record) {
	t := &x.trace
	if !t.own || t.Flags&tracecontext.Sampled == 0 {
		return
	}
	s := otlp.Span{
		Trace: t.Trace, ID: t.Span, Parent: t.parent, Flags: t.Flags, Kind: otlp.Server,
		Start: r.Time, End: r.Time + r.Duration,
	}
	s.Linked.Trace, s.Linked.ID = t.linked.Trace, t.linked.Span
	// Semantic conventions for HTTP: an error is the client's business for the
	// one side, and everybody's for the other.
	failed := 5
	if x.at == Outbound {
		s.Kind, failed = otlp.Client, 4
	}
	class := x.class(r.Status)
	s.Failed = class >= failed || class == 0
	s.Name = spanName(r)
	why := ""
	if s.Failed {
		if why = string(r.Verdict.Reason); r.Verdict.Reason == merlon.ReasonAllowed {
			why = cmp.Or(r.GRPC, strconv.Itoa(r.Status)) // it is the service's own
		}
	}
	verdict := r.Verdict.Effect.String()
	if r.Verdict.Shadow {
		verdict = "shadow"
	}
	s.Attributes = [20]otlp.Attribute{
		{Key: "http.request.method", Text: method(r.Method)},
		{Key: "url.path", Text: r.Path},
		{Key: "server.address", Text: r.Host},
		{Key: "http.response.status_code", Number: int64(r.Status)},
		{Key: "rpc.response.status_code", Text: r.GRPC},
		{Key: "error.type", Text: why},
		{Key: "merlon.verdict", Text: verdict},
		{Key: "merlon.reason", Text: string(r.Verdict.Reason)},
		{Key: "merlon.rule", Text: r.Verdict.Rule},
		{Key: "merlon.rule.position", Text: r.Verdict.Pos.String()},
		{Key: "merlon.caller", Text: r.Caller},
		{Key: "merlon.caller.kind", Text: r.CallerKind},
		{Key: "merlon.service", Text: r.Service},
		{Key: "merlon.operation", Text: r.Operation},
		{Key: "merlon.request.id", Text: r.ID},
		{Key: "merlon.at", Text: r.At},
		{Key: "merlon.upstream", Text: r.Upstream},
	}
	x.g.spans.Add(&s)
}

// spanName is the operation, or why there is none: never what a client made up.
func spanName(r *record.Record) string {
	switch {
	case r.Service == "":
		return string(r.Verdict.Reason)
	case r.Operation == "":
		return r.Service
	}
	return r.Service + "." + r.Operation
}

// method is a method as the semantic conventions name it.
func method(s string) string {
	switch s {
	case "", "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH":
		return s
	}
	return "_OTHER"
}

// newExporter makes what sends spans; it does nothing before orders say where.
func (g *Gate) newExporter() *otlp.Exporter {
	return otlp.New(otlp.Options{
		Resource: []otlp.Attribute{
			{Key: "service.name", Text: g.cfg.Place.String()},
			{Key: "service.namespace", Text: g.cfg.TrustDomain},
			{Key: "telemetry.sdk.name", Text: "merlon"},
			{Key: "telemetry.sdk.language", Text: "go"},
		},
		Scope: "merlon/gate",
		Report: func(err error) {
			if err != nil {
				g.cfg.Log.Warn("spans cannot be sent", "place", g.placeName, "error", err)
			} else {
				g.cfg.Log.Info("spans can be sent again", "place", g.placeName)
			}
		},
	})
}
