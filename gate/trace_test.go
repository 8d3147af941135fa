package gate_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"merlon"
)

// tracedSpan is a span as a collector gets it.
type tracedSpan struct {
	*tracepb.Span
	resource map[string]string
	attrs    map[string]string
}

func (s tracedSpan) id() string     { return fmt.Sprintf("%x", s.SpanId) }
func (s tracedSpan) parent() string { return fmt.Sprintf("%x", s.ParentSpanId) }
func (s tracedSpan) trace() string  { return fmt.Sprintf("%x", s.TraceId) }

// collector keeps the spans that gates send.
type collector struct {
	url   string
	mu    sync.Mutex
	spans []tracedSpan
}

func attributes(all []*commonpb.KeyValue) map[string]string {
	m := map[string]string{}
	for _, a := range all {
		switch v := a.Value.Value.(type) {
		case *commonpb.AnyValue_StringValue:
			m[a.Key] = v.StringValue
		case *commonpb.AnyValue_IntValue:
			m[a.Key] = fmt.Sprint(v.IntValue)
		}
	}
	return m
}

func startCollector(t *testing.T) *collector {
	c := new(collector)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		all := new(tracepb.TracesData) // which is ExportTraceServiceRequest, field by field
		if err := proto.Unmarshal(body, all); err != nil {
			t.Error(err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, rs := range all.ResourceSpans {
			for _, ss := range rs.ScopeSpans {
				for _, s := range ss.Spans {
					c.spans = append(c.spans, tracedSpan{s, attributes(rs.Resource.Attributes), attributes(s.Attributes)})
				}
			}
		}
	}))
	t.Cleanup(server.Close)
	c.url = server.URL
	return c
}

// wait waits until n spans are there.
func (c *collector) wait(t *testing.T, n int) []tracedSpan {
	t.Helper()
	until(t, fmt.Sprint(n, " spans"), func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.spans) >= n
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.spans)
}

// tree draws spans below their parents, as docs/telemetry.md does.
func tree(spans []tracedSpan, parent, indent string) string {
	var lines []string
	for _, s := range spans {
		if s.parent() == parent {
			kind := strings.ToLower(strings.TrimPrefix(s.Kind.String(), "SPAN_KIND_"))
			a := s.attrs
			line := fmt.Sprintf("%-18s %-6s  %-12s %s %s %s  %s %s, %s", indent+s.resource["service.name"], kind, s.Name,
				a["http.request.method"], a["url.path"], a["http.response.status_code"], a["merlon.verdict"], a["merlon.reason"], a["merlon.rule.position"])
			lines = append(lines, line+"\n"+tree(spans, s.id(), indent+" "))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// block is the text of the nth fenced block of a language in a document.
func block(t *testing.T, name, language string, n int) string {
	t.Helper()
	doc, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(string(doc), "\n```"+language+"\n")
	if len(parts) <= n {
		t.Fatalf("%s has no block %d of %s", name, n, language)
	}
	text, _, _ := strings.Cut(parts[n], "```")
	return text
}

// TestTraceExample runs the example of docs/telemetry.md.
func TestTraceExample(t *testing.T) {
	t.Parallel()
	c := startCollector(t)
	text := strings.Replace(block(t, "../docs/telemetry.md", "yaml", 2), "http://127.0.0.1:4318", c.url, 1)
	if !strings.Contains(text, c.url) {
		t.Fatal("the example has no collector")
	}
	var e *estate
	var orders http.Header
	e = start(t, text, map[string]http.Handler{
		// web calls orders twice, and tells its gate which trace it is in.
		"web": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for _, method := range []string{"GET", "POST"} {
				do(t, e.as("web"), method, "http://orders/orders", func(out *http.Request) {
					out.Header["Traceparent"], out.Header["Tracestate"] = r.Header["Traceparent"], []string{"web=1"}
				})
			}
		}),
		"orders": http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { orders = r.Header }),
	})
	do(t, e.client(), "GET", "http://shop.example/pages/1?secret=1")
	spans := c.wait(t, 5)
	if got, want := tree(spans, "", ""), block(t, "../docs/telemetry.md", "text", 1); got != want {
		t.Errorf("the spans are\n%s\ndocs/telemetry.md says\n%s", got, want)
	}
	trace := spans[0].trace()
	for _, s := range spans {
		if s.trace() != trace || s.Flags&1 == 0 || s.StartTimeUnixNano > s.EndTimeUnixNano || s.StartTimeUnixNano == 0 || strings.Contains(s.String(), "secret") {
			t.Errorf("%v", s)
		}
	}
	if got := orders["Traceparent"]; len(got) != 1 || !strings.HasPrefix(got[0], "00-"+trace+"-") || !strings.HasSuffix(got[0], "-01") {
		t.Errorf("orders is told %q", got)
	}
	if got := orders["Tracestate"]; !slices.Equal(got, []string{"web=1"}) {
		t.Errorf("orders is told the state %q", got)
	}
	e.counts(merlon.Edge, `merlon_spans_exported_total{place="gateway"}`, 1)
	e.stop()
	for place := range e.gates {
		for _, r := range e.evidence(place) {
			if r.Trace != trace {
				t.Errorf("the record of %v has trace %q, not %q", place, r.Trace, trace)
			}
		}
	}
}

const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// TestTraceOfClient: what the gateway makes of a client's trace context.
func TestTraceOfClient(t *testing.T) {
	t.Parallel()
	const theirs = "0af7651916cd43dd8448eb211c80319c"
	unsampled := strings.TrimSuffix(parent, "01") + "00"
	for _, test := range []struct {
		name, telemetry string
		fields          []string
		trace           string // theirs, new, or "" for none
		flags           string
		state           string
		verbatim        bool
		linked          bool
	}{
		{"nothing", "", nil, "", "", "", false, false},
		{"off", "", []string{"traceparent: " + parent, "TraceState: a=1"}, theirs, "01", "a=1", true, false},
		{"off, invalid", "", []string{"traceparent: " + parent + "-x", "tracestate: a=1"}, "", "", "", false, false},
		{"off, twice", "", []string{"traceparent: " + parent, "traceparent: " + parent}, "", "", "", false, false},
		{"off, state alone", "", []string{"tracestate: a=1"}, "", "", "", false, false},
		{"begun", "sample: 100%", nil, "new", "01", "", false, false},
		{"begun, not sampled", "sample: 0%", nil, "new", "00", "", false, false},
		{"not trusted", "sample: 100%", []string{"traceparent: " + parent, "tracestate: a=1"}, "new", "01", "", false, true},
		{"not trusted, not sampled", "sample: 0%", []string{"traceparent: " + parent}, "new", "00", "", false, false},
		{"trusted", "sample: 0%, trust: true", []string{"Traceparent: " + parent, "tracestate: a=1"}, theirs, "01", "a=1", false, false},
		{"trusted, not sampled", "sample: 100%, trust: true", []string{"traceparent: " + unsampled}, theirs, "00", "", false, false},
		{"trusted, states", "sample: 0%, trust: true", []string{"tracestate: a=1", "traceparent: " + parent, "tracestate: b=2"}, theirs, "01", "a=1|b=2", false, false},
		{"trusted, bad state", "sample: 0%, trust: true", []string{"traceparent: " + parent, "tracestate: A", "tracestate: b=2"}, theirs, "01", "", false, false},
		{"trusted, invalid", "sample: 0%, trust: true", []string{"traceparent: " + strings.ToUpper(parent), "tracestate: a=1"}, "new", "00", "", false, false},
		{"trusted, named by Connection", "sample: 0%, trust: true", []string{"traceparent: " + parent, "Connection: traceparent"}, "new", "00", "", false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := startCollector(t)
			text := plainShop()
			if test.telemetry != "" {
				text += "telemetry: {traces: {collector: '" + c.url + "', " + test.telemetry + "}}\n"
			}
			e := start(t, text, map[string]http.Handler{"web": echo("web")})
			got := e.wire().ask(get("/", test.fields...)).seen(t).Header
			told, state := strings.Join(got["Traceparent"], "|"), strings.Join(got["Tracestate"], "|")
			trace, flags := "", ""
			if parts := strings.Split(told, "-"); len(parts) == 4 {
				if trace, flags = parts[1], parts[3]; trace != theirs && len(trace) == 32 {
					trace = "new"
				}
			}
			if trace != test.trace || flags != test.flags || state != test.state || (told == parent) != test.verbatim {
				t.Errorf("the service is told %q and the state %q", told, state)
			}
			if flags != "01" || test.telemetry == "" {
				return
			}
			spans := c.wait(t, 2) // of the gateway, and of the gate of web
			linked := spans[0].Links
			for _, s := range spans {
				if s.resource["service.name"] == "gateway" {
					linked = s.Links
				}
			}
			if (len(linked) == 1 && fmt.Sprintf("%x", linked[0].TraceId) == theirs) != test.linked {
				t.Errorf("linked is %v", linked)
			}
		})
	}
}

// TestTraceStaysInside: an external service learns of no trace.
func TestTraceStaysInside(t *testing.T) {
	t.Parallel()
	const text = `
trustDomain: shop.example
telemetry: {traces: {collector: 'http://127.0.0.1:9', sample: 100%}}
services:
  web: {}
external:
  stripe:
    hosts: [api.stripe.example]
    operations: {pay: 'GET /pay'}
    callers: {web: all}
`
	var header http.Header
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { header = r.Header }))
	defer server.Close()
	e := start(t, text, map[string]http.Handler{"web": echo("web")})
	place := merlon.Place{Service: "web"}
	o := e.orders(load(t, text, nil), place)
	o.Endpoints["stripe"] = []merlon.Endpoint{{Address: server.Listener.Addr().String()}}
	if err := e.gates[place].Swap(o); err != nil {
		t.Fatal(err)
	}
	a := do(t, e.as("web"), "GET", "http://api.stripe.example/pay", func(r *http.Request) {
		r.Header.Set("Traceparent", parent)
		r.Header.Set("Tracestate", "a=1")
	})
	if a.status != 200 || header["Traceparent"] != nil || header["Tracestate"] != nil {
		t.Errorf("%d %s; stripe is told %v", a.status, a.reason, header)
	}
}

// TestCollectorAway: calls go on as if there was no collector.
func TestCollectorAway(t *testing.T) {
	t.Parallel()
	text := plainShop() + "telemetry: {traces: {collector: 'http://127.0.0.1:9', sample: 100%}}\n"
	e := start(t, text, map[string]http.Handler{"web": echo("web")})
	w := e.wire()
	for range 50 {
		if a := w.ask(get("/")); a.status != 200 {
			t.Fatalf("%d %s", a.status, a.reason)
		}
	}
	until(t, "attempts to fail", func() bool {
		return scrape(t, e.gates[merlon.Edge]).values[`merlon_spans_attempts_failed_total{place="gateway"}`] > 0
	})
	m := scrape(t, e.gates[merlon.Edge])
	if n := m.values[`merlon_spans_queued{place="gateway"}`] + m.sum("merlon_spans_dropped_total"); n != 50 {
		t.Errorf("%v spans are queued or dropped:\n%s", n, m.grep("merlon_spans"))
	}
}

// TestTracesOfDenials: a refused call has its span, with the reason, and with a
// name that no client has made.
func TestTracesOfDenials(t *testing.T) {
	t.Parallel()
	c := startCollector(t)
	e := start(t, plainShop()+"telemetry: {traces: {collector: '"+c.url+"', sample: 100%}}\n", map[string]http.Handler{"web": echo("web")})
	e.wire().ask("BREW /pot HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n")
	e.wire().ask("GET / HTTP/1.1\r\nHost: shop.example\r\nHost: shop.example\r\n\r\n")
	names := map[string]string{}
	for _, s := range c.wait(t, 2) {
		names[s.Name] = s.attrs["merlon.verdict"] + " " + s.attrs["http.request.method"] + " " + s.attrs["http.response.status_code"]
	}
	if names["no_service"] != "deny _OTHER 404" || names["host_repeated"] != "deny  400" || len(names) != 2 {
		t.Errorf("%q", names)
	}
}
