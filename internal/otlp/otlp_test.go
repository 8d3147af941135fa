package otlp

import (
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

var example = Span{
	Trace: [16]byte{1, 2, 15: 16}, ID: [8]byte{7: 1}, Parent: [8]byte{7: 2}, Flags: 1, Kind: Client,
	Name: "orders.list", Start: 1_700_000_000_000_000_001, End: 1_700_000_000_500_000_000, Failed: true,
	Attributes: [20]Attribute{
		{Key: "http.request.method", Text: "GET"},
		{Key: "http.response.status_code", Number: 502},
		{Key: "absent"},
		{Text: "without a key"},
		{Key: "url.path", Text: "/a\xffb"},
		{Key: "long", Text: strings.Repeat("ü", maxText)},
		{Key: "negative", Number: -1},
	},
}

// decode reads a request as the protocol's own messages say. TracesData is
// ExportTraceServiceRequest, field by field.
func decode(t *testing.T, body []byte) *tracepb.TracesData {
	t.Helper()
	all := new(tracepb.TracesData)
	if err := (proto.UnmarshalOptions{DiscardUnknown: false}).Unmarshal(body, all); err != nil {
		t.Fatal(err)
	}
	return all
}

func texts(attributes []*commonpb.KeyValue) (all []string) {
	for _, a := range attributes {
		all = append(all, a.Key+"="+a.Value.String())
	}
	return all
}

// TestRequest: what is written is what the protocol's own code reads, and
// nothing that it does not know.
func TestRequest(t *testing.T) {
	t.Parallel()
	linked := example
	linked.Failed, linked.Parent = false, [8]byte{}
	linked.Linked.Trace, linked.Linked.ID = [16]byte{9}, [8]byte{8}
	var spans []byte
	for _, s := range []Span{example, linked} {
		one := appendSpan(nil, &s)
		spans = protowire.AppendBytes(protowire.AppendTag(spans, scopeSpansSpans, protowire.BytesType), one)
	}
	body := request([]Attribute{{Key: "service.name", Text: "gateway"}}, "merlon", spans)
	all := decode(t, body)
	if again, err := proto.Marshal(all); err != nil || len(again) != len(body) || len(all.ProtoReflect().GetUnknown()) > 0 {
		t.Errorf("written again it has %d bytes, not %d (%v)", len(again), len(body), err)
	}
	if len(all.ResourceSpans) != 1 || len(all.ResourceSpans[0].ScopeSpans) != 1 {
		t.Fatalf("%v", all)
	}
	if got := texts(all.ResourceSpans[0].Resource.Attributes); !slices.Equal(got, []string{`service.name=string_value:"gateway"`}) {
		t.Errorf("resource %q", got)
	}
	scope := all.ResourceSpans[0].ScopeSpans[0]
	if scope.Scope.Name != "merlon" || len(scope.Spans) != 2 {
		t.Fatalf("%v", scope)
	}
	s := scope.Spans[0]
	if string(s.TraceId) != string(example.Trace[:]) || string(s.SpanId) != string(example.ID[:]) || string(s.ParentSpanId) != string(example.Parent[:]) ||
		s.Name != example.Name || s.Kind != tracepb.Span_SPAN_KIND_CLIENT || s.Flags != 1 || len(s.Links) != 0 ||
		s.StartTimeUnixNano != uint64(example.Start) || s.EndTimeUnixNano != uint64(example.End) || s.Status.Code != tracepb.Status_STATUS_CODE_ERROR {
		t.Errorf("%v", s)
	}
	want := []string{
		`http.request.method=string_value:"GET"`, `http.response.status_code=int_value:502`, "url.path=string_value:\"/a\uFFFDb\"",
		`long=string_value:"` + strings.Repeat("ü", maxText/2) + `"`, `negative=int_value:-1`,
	}
	if got := texts(s.Attributes); !slices.Equal(got, want) {
		t.Errorf("attributes %q", got)
	}
	s = scope.Spans[1]
	if s.ParentSpanId != nil || s.Status != nil || len(s.Links) != 1 || s.Links[0].TraceId[0] != 9 || s.Links[0].SpanId[0] != 8 {
		t.Errorf("%v", s)
	}
}

// collector takes spans and answers as it is told.
type collector struct {
	t      *testing.T
	url    string
	answer atomic.Pointer[http.HandlerFunc]
	mu     sync.Mutex
	spans  int
	calls  int
}

func newCollector(t *testing.T, answer http.HandlerFunc) *collector {
	c := &collector{t: t}
	c.answer.Store(&answer)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		if r.Method != "POST" || r.URL.Path != "/base/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" {
			t.Errorf("%s %s as %s", r.Method, r.URL, r.Header.Get("Content-Type"))
		}
		all := new(tracepb.TracesData)
		if err := proto.Unmarshal(body, all); err != nil {
			t.Error(err)
		}
		c.mu.Lock()
		c.calls++
		for _, rs := range all.ResourceSpans {
			for _, ss := range rs.ScopeSpans {
				c.spans += len(ss.Spans)
			}
		}
		c.mu.Unlock()
		(*c.answer.Load())(w, r)
	}))
	t.Cleanup(server.Close)
	c.url = server.URL + "/base"
	return c
}

func (c *collector) got() (calls, spans int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls, c.spans
}

func fine(w http.ResponseWriter, _ *http.Request) {}

func failing(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
}

func exporter(t *testing.T, opt Options) *Exporter {
	opt.every, opt.backoff = time.Millisecond, time.Millisecond
	e := New(opt)
	t.Cleanup(e.Close)
	return e
}

func until(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestExport: spans come to the collector, all of them, once.
func TestExport(t *testing.T) {
	t.Parallel()
	c := newCollector(t, fine)
	e := exporter(t, Options{})
	e.To(c.url)
	const n = 5000
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			for range n / 5 {
				s := example
				s.Attributes[5] = Attribute{}
				for e.Stats().Queued > 1000 {
					time.Sleep(time.Millisecond) // so that none is dropped
				}
				e.Add(&s)
			}
		})
	}
	wg.Wait()
	until(t, "all spans", func() bool { return e.Stats().Queued == 0 })
	if _, spans := c.got(); spans != n || e.Stats() != (Stats{Exported: n}) {
		t.Errorf("%d of %d came; %+v", spans, n, e.Stats())
	}
}

// TestCollectorFails: what is lost is counted, whatever the collector does.
func TestCollectorFails(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		calls  int
		want   Stats
	}{
		"busy":     {failing(503), attempts, Stats{Lost: 3, Failures: attempts}},
		"too many": {failing(429), attempts, Stats{Lost: 3, Failures: attempts}},
		"refusing": {failing(400), 1, Stats{Lost: 3, Failures: 1}},
		"elsewhere": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/other", http.StatusTemporaryRedirect)
		}, 1, Stats{Lost: 3, Failures: 1}},
		"partly": {func(w http.ResponseWriter, _ *http.Request) {
			partial := protowire.AppendVarint(protowire.AppendTag(nil, partialRejected, protowire.VarintType), 2)
			w.Write(protowire.AppendBytes(protowire.AppendTag(nil, responsePartial, protowire.BytesType), partial))
		}, 1, Stats{Exported: 1, Rejected: 2}},
		"lying": {func(w http.ResponseWriter, _ *http.Request) {
			partial := protowire.AppendVarint(protowire.AppendTag(nil, partialRejected, protowire.VarintType), 1<<63)
			w.Write(protowire.AppendBytes(protowire.AppendTag(nil, responsePartial, protowire.BytesType), partial))
		}, 1, Stats{Rejected: 3}},
		"garbage": {func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("\x0a\xff\xff\xff")) }, 1, Stats{Exported: 3}},
		"endless": {func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 8<<20)) }, 1, Stats{Exported: 3}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCollector(t, test.answer)
			e := exporter(t, Options{})
			e.mu.Lock() // so that all of them go at once
			e.collector, e.running = c.url, true
			e.mu.Unlock()
			for range 3 {
				s := example
				e.Add(&s)
			}
			go e.run()
			until(t, "the end of all attempts", func() bool { return e.Stats().Queued == 0 })
			if calls, _ := c.got(); calls != test.calls || e.Stats() != test.want {
				t.Errorf("%d calls, %+v; want %d, %+v", calls, e.Stats(), test.calls, test.want)
			}
		})
	}
}

// TestCollectorComesBack: a collector that was away gets what is still there,
// and whoever listens is told twice: that it is away, and that it is back.
func TestCollectorComesBack(t *testing.T) {
	t.Parallel()
	c := newCollector(t, failing(503))
	var mu sync.Mutex
	var reports []string
	e := exporter(t, Options{Report: func(err error) {
		mu.Lock()
		defer mu.Unlock()
		reports = append(reports, "")
		if err != nil {
			reports[len(reports)-1] = err.Error()
		}
	}})
	e.To(c.url)
	s := example
	e.Add(&s)
	until(t, "a failure", func() bool { return e.Stats().Failures > 2 })
	answer := http.HandlerFunc(fine)
	c.answer.Store(&answer)
	until(t, "a span to be taken", func() bool {
		e.Add(&s)
		return e.Stats().Exported > 0
	})
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(reports, []string{"the collector answers 503", ""}) {
		t.Errorf("reports: %q", reports)
	}
}

// TestBounded: a collector that never answers costs a bounded amount of memory,
// and nobody waits for it.
func TestBounded(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	c := newCollector(t, func(http.ResponseWriter, *http.Request) { <-release })
	defer close(release)
	e := exporter(t, Options{timeout: time.Hour})
	e.To(c.url)
	s := example
	for range 20_000 {
		e.Add(&s)
	}
	until(t, "the collector to be asked", func() bool { calls, _ := c.got(); return calls > 0 })
	e.mu.Lock()
	size := cap(e.pending)
	e.mu.Unlock()
	got := e.Stats()
	if size > 2*maxPending || got.Full == 0 || got.Queued+got.Full != 20_000 {
		t.Errorf("%d bytes, %+v", size, got)
	}
}

// TestClose: what is left is sent at the end, and nothing is taken after it.
func TestClose(t *testing.T) {
	t.Parallel()
	c := newCollector(t, fine)
	e := New(Options{every: time.Hour})
	s := example
	e.Add(&s) // before it is known where to
	e.To(c.url)
	e.Add(&s)
	e.Close()
	e.Add(&s)
	e.Close()
	if _, spans := c.got(); spans != 1 || e.Stats() != (Stats{Exported: 1, Full: 2}) {
		t.Errorf("%d spans, %+v", spans, e.Stats())
	}
	never := New(Options{})
	never.Close()
}

// TestAddDoesNotAllocate: once warm.
func TestAddDoesNotAllocate(t *testing.T) {
	e := New(Options{})
	e.running = true
	e.pending, e.scratch = make([]byte, 0, maxPending), make([]byte, 0, 4<<10)
	s := example
	s.Attributes[4] = Attribute{}
	if n := testing.AllocsPerRun(200, func() { e.Add(&s) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if e.Stats().Full > 0 {
		t.Error("spans were dropped")
	}
}

// FuzzRejected: a collector's answer is read whatever it is.
func FuzzRejected(f *testing.F) {
	f.Add([]byte("\x0a\x02\x08\x05"))
	f.Add([]byte("\x0a\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, answer []byte) { rejected(answer) })
}
