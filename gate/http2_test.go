package gate_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"merlon"
	"merlon/gate"
	"merlon/identity/spiffe"
	"merlon/record"
)

// client2 is an HTTP/2 client of the gateway.
func (e *estate) client2() *http.Client {
	c := e.client()
	c.Transport.(*http.Transport).ForceAttemptHTTP2 = true
	return c
}

// TestHTTP2CallsAreDecided: a call is decided, carried out and recorded the
// same however it came.
func TestHTTP2CallsAreDecided(t *testing.T) {
	t.Parallel()
	e := start(t, shop, shopApps())
	for _, call := range []struct {
		method, url  string
		status       int
		reason, from string
	}{
		{"GET", "https://shop.example/", 200, "", "web"},
		{"HEAD", "https://shop.example/", 404, "no_operation", ""},
		{"GET", "https://shop.example/pages/7?a=b", 200, "", "web"},
		{"POST", "https://shop.example/send", 200, "", "web"},
		{"GET", "https://shop.example/pages/7/x", 404, "no_operation", ""},
		{"GET", "https://shop.example/pages/%2e%2e", 400, "path_dot_segment", ""},
		{"GET", "https://shop.example/orders", 404, "no_operation", ""},
		{"GET", "https://other.example/", 404, "no_service", ""},
	} {
		var got [2]answer
		for i, c := range []*http.Client{e.client(), e.client2()} {
			c.Transport.(*http.Transport).TLSClientConfig.ServerName = "shop.example"
			got[i] = do(t, c, call.method, call.url, func(r *http.Request) {
				r.Header.Set("X-Forwarded-For", "192.0.2.1")
				r.Header.Set("Merlon-Caller", "me")
				r.Header.Set("X-Kept", "yes")
				r.Header.Set("User-Agent", "test")
			})
		}
		a, b := got[0], got[1]
		if b.status != call.status || b.reason != call.reason {
			t.Errorf("%s %s: %d %q, want %d %q", call.method, call.url, b.status, b.reason, call.status, call.reason)
		}
		for _, h := range []http.Header{a.header, b.header} {
			h.Del("Merlon-Request-Id")
			h.Del("Date")
		}
		if a.status != b.status || fmt.Sprint(a.header) != fmt.Sprint(b.header) {
			t.Errorf("%s %s: HTTP/1.1 has %d %v, HTTP/2 %d %v", call.method, call.url, a.status, a.header, b.status, b.header)
		}
		if call.from == "" {
			continue
		}
		one, two := a.seen(t), b.seen(t)
		for _, s := range []seen{one, two} {
			if s.Header.Get("Merlon-Caller") == "me" || s.Header.Get("X-Forwarded-For") == "192.0.2.1" || s.Header.Get("X-Kept") != "yes" {
				t.Errorf("the app saw %v", s.Header)
			}
			s.Header.Del("Merlon-Request-Id")
			s.Header.Del("Merlon-Caller")
		}
		if fmt.Sprint(one) != fmt.Sprint(two) {
			t.Errorf("%s %s: the app saw over HTTP/1.1 %v, over HTTP/2 %v", call.method, call.url, one, two)
		}
	}
	e.stop()
	records := e.evidence(merlon.Edge)
	slices.SortFunc(records, func(a, b record.Record) int { return cmp.Compare(a.Time, b.Time) })
	if len(records) != 16 {
		t.Fatalf("%d records", len(records))
	}
	for i := 0; i < len(records); i += 2 {
		a, b := records[i], records[i+1]
		if a.Status != b.Status || a.Operation != b.Operation || a.Path != b.Path || a.Method != b.Method || a.Verdict.Reason != b.Verdict.Reason || a.Client != b.Client {
			t.Errorf("records differ: %+v, %+v", a, b)
		}
	}
}

func do2(t testing.TB, c *http.Client, req *http.Request) answer {
	t.Helper()
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.ProtoMajor != 2 {
		t.Fatalf("answered in %s", res.Proto)
	}
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header.Get("Merlon-Reason"), string(text), res.Header, res.Close}
}

// TestHTTP2Bodies sends bodies of all sizes and framings through two gates.
func TestHTTP2Bodies(t *testing.T) {
	t.Parallel()
	e := start(t, strings.Replace(shop, "callers: {anyone: all}", "callers: {anyone: all}\n    maxBody: 4MiB", 1), shopApps())
	c := e.client2()
	for _, size := range []int{0, 1, 100, 8 << 10, 15 << 10, 16 << 10, 17 << 10, 100 << 10, 3 << 20, 4 << 20, 4<<20 + 1} {
		for _, chunked := range []bool{false, true} {
			body := io.Reader(bytes.NewReader(make([]byte, size)))
			if chunked {
				body = struct{ io.Reader }{body}
			}
			req, _ := http.NewRequest("POST", "https://shop.example/send", body)
			if size == 100 {
				req.Header.Set("Expect", "100-continue")
			}
			a := do2(t, c, req)
			if size > 4<<20 {
				if a.status != 413 {
					t.Errorf("too large, chunked %v: %d %s", chunked, a.status, a.reason)
				}
			} else if a.status != 200 || a.seen(t).Body != size {
				t.Errorf("%d bytes, chunked %v: %d %s %q", size, chunked, a.status, a.reason, a.body)
			}
		}
	}
}

// mirror answers with the body that it gets, as it comes.
func mirror() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		w.Header().Set("X-Tag", r.Header.Get("X-Tag"))
		if r.ContentLength >= 0 {
			w.Header().Set("Content-Length", fmt.Sprint(r.ContentLength))
		}
		io.Copy(w, r.Body)
	})
}

// TestHTTP2Streams: calls at once over one connection do not mix.
func TestHTTP2Streams(t *testing.T) {
	t.Parallel()
	e := start(t, shop, map[string]http.Handler{"web": mirror(), "orders": echo("orders"), "ledger": echo("ledger")})
	c := e.client2()
	var all sync.WaitGroup
	for worker := range 40 {
		all.Add(1)
		go func() {
			defer all.Done()
			rnd := rand.New(rand.NewPCG(2, uint64(worker)))
			for i := range 10 {
				tag := fmt.Sprintf("%d/%d ", worker, i)
				text := strings.Repeat(tag, []int{0, 1, 50, 5000, 40000}[rnd.IntN(5)])
				body := io.Reader(strings.NewReader(text))
				if rnd.IntN(2) == 0 {
					body = struct{ io.Reader }{body}
				}
				req, _ := http.NewRequest("POST", "https://shop.example/send", body)
				req.Header.Set("X-Tag", strings.TrimSpace(tag))
				res, err := c.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(res.Body)
				res.Body.Close()
				if err != nil || string(got) != text || res.Header.Get("X-Tag") != strings.TrimSpace(tag) || res.ProtoMajor != 2 {
					t.Errorf("%s: %d bytes of %d, tag %q, %s, %v", tag, len(got), len(text), res.Header.Get("X-Tag"), res.Proto, err)
					return
				}
			}
		}()
	}
	all.Wait()
}

// TestHTTP2Inbound: a gate beside a service takes HTTP/2 from another workload.
func TestHTTP2Inbound(t *testing.T) {
	t.Parallel()
	e := start(t, shop, shopApps())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, test := range []struct {
		as, method, path string
		status           int
		reason           string
	}{
		{"web", "GET", "/orders/1", 200, ""},
		{"web", "GET", "/orders", 403, "no_rule"},
		{"ledger", "GET", "/orders/1", 403, "no_rule"},
	} {
		source, err := e.auth.Source(ctx, "spiffe://shop.example/"+test.as, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		conf := spiffe.ClientConfig(source, "spiffe://shop.example/orders")
		conf.NextProtos = []string{"h2"}
		tr := &http.Transport{ForceAttemptHTTP2: true, DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
			return tls.Dial("tcp", e.in["orders"], conf)
		}}
		req, _ := http.NewRequest(test.method, "https://orders"+test.path, nil)
		a := do2(t, &http.Client{Transport: tr}, req)
		if a.status != test.status || a.reason != test.reason {
			t.Errorf("%+v: %d %s", test, a.status, a.reason)
		}
		tr.CloseIdleConnections()
	}
}

// frames2 is a client made of x/net's framer, for what no client would do.
type frames2 struct {
	*xhttp2.Framer
	net.Conn
	block bytes.Buffer
	enc   *hpack.Encoder
}

// dial2 connects to a gate without TLS.
func dial2(t testing.TB, addr string) *frames2 {
	c := dial(t, addr)
	c.SetDeadline(time.Now().Add(patience))
	f := &frames2{Framer: xhttp2.NewFramer(c, c), Conn: c}
	f.enc = hpack.NewEncoder(&f.block)
	io.WriteString(c, xhttp2.ClientPreface)
	f.WriteSettings()
	return f
}

func (f *frames2) request(id uint32, end bool, method, path string, fields ...string) error {
	f.block.Reset()
	for _, line := range append([]string{":method=" + method, ":scheme=http", ":authority=shop.example", ":path=" + path}, fields...) {
		name, value, _ := strings.Cut(line, "=")
		f.enc.WriteField(hpack.HeaderField{Name: name, Value: value})
	}
	return f.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: id, BlockFragment: f.block.Bytes(), EndStream: end, EndHeaders: true})
}

// until reads frames until one of the type comes, or the end.
func (f *frames2) until(kind xhttp2.FrameType) (xhttp2.Frame, error) {
	for {
		frame, err := f.ReadFrame()
		if err != nil || frame.Header().Type == kind {
			return frame, err
		}
	}
}

// peek is what a place has recorded so far.
func (e *estate) peek(place merlon.Place) (all []record.Record) {
	for r, err := range record.Read(e.records[place], record.Filter{}) {
		if err != nil {
			break // a line that is being written
		}
		all = append(all, r)
	}
	return all
}

// TestHTTP2Attacks: what the core refuses is answered, recorded, and ends what
// it must.
func TestHTTP2Attacks(t *testing.T) {
	t.Parallel()
	e := setup{apps: shopApps()}.start(t, plainShop())

	f := dial2(t, e.edge)
	f.request(1, true, "GET", "/", "transfer-encoding=chunked")
	if frame, err := f.until(xhttp2.FrameRSTStream); err != nil || frame.(*xhttp2.RSTStreamFrame).ErrCode != xhttp2.ErrCodeProtocol {
		t.Errorf("a malformed request: %v, %v", frame, err)
	}
	f.request(3, true, "GET", "/", "merlon_caller=me")
	frame, err := f.until(xhttp2.FrameHeaders)
	if err != nil {
		t.Fatal(err)
	}
	fields, err := hpack.NewDecoder(4096, nil).DecodeFull(frame.(*xhttp2.HeadersFrame).HeaderBlockFragment())
	if err != nil || fields[0].Value != "400" || !slices.Contains(fields, hpack.HeaderField{Name: "merlon-reason", Value: "field_name_disguised"}) {
		t.Errorf("a disguised name: %v, %v", fields, err)
	}

	f = dial2(t, e.edge)
	go io.Copy(io.Discard, f.Conn)
	for i := range 2000 {
		if f.request(uint32(2*i+1), true, "GET", "/") != nil || f.WriteRSTStream(uint32(2*i+1), xhttp2.ErrCodeCancel) != nil {
			break
		}
	}
	f = dial2(t, e.edge)
	for range 3000 {
		if f.WritePing(false, [8]byte{}) != nil {
			break
		}
	}
	if frame, err := f.until(xhttp2.FrameGoAway); err == nil && frame.(*xhttp2.GoAwayFrame).ErrCode != xhttp2.ErrCodeEnhanceYourCalm {
		t.Errorf("a flood of pings: %v", frame)
	}
	// Others are served meanwhile.
	if a := newWire(t, dial(t, e.edge)).ask(get("/")); a.status != 200 {
		t.Errorf("status %d for somebody else", a.status)
	}
	reasons := map[string]int{}
	until(t, "the records", func() bool {
		clear(reasons)
		for _, r := range e.peek(merlon.Edge) {
			reasons[string(r.Verdict.Reason)]++
		}
		return reasons["connection_field"] == 1 && reasons["field_name_disguised"] == 1 && reasons["ping_flood"] == 1 && reasons["rapid_reset"]+reasons["streams_flood"] == 1
	})
	if n := reasons[""]; n > 600 {
		t.Errorf("%d of the calls that were reset at once were served", n)
	}
}

// TestHTTP2Drain: a call in progress is finished, and the client told.
func TestHTTP2Drain(t *testing.T) {
	t.Parallel()
	begun, finish := make(chan struct{}), make(chan struct{})
	e := setup{apps: map[string]http.Handler{"web": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(begun)
		<-finish
		io.WriteString(w, "late")
	})}}.start(t, plainShop())
	f := dial2(t, e.edge)
	f.request(1, true, "GET", "/")
	<-begun
	drained := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		defer cancel()
		drained <- e.gates[merlon.Edge].Drain(ctx)
	}()
	frame, err := f.until(xhttp2.FrameGoAway)
	if err != nil || frame.(*xhttp2.GoAwayFrame).LastStreamID != 1<<31-1 {
		t.Fatalf("%v, %v", frame, err)
	}
	close(finish)
	var got []string
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			break
		}
		switch frame := frame.(type) {
		case *xhttp2.PingFrame:
			f.WritePing(true, frame.Data)
		case *xhttp2.GoAwayFrame:
			got = append(got, fmt.Sprint("goaway ", frame.LastStreamID))
		case *xhttp2.DataFrame:
			got = append(got, string(frame.Data()))
		}
	}
	slices.Sort(got)
	if fmt.Sprint(got) != "[goaway 1 late]" {
		t.Errorf("got %q", got)
	}
	if err := <-drained; err != nil {
		t.Error(err)
	}
}

// TestHTTP2DrainIdle: a client that rests, and does not even answer, keeps no
// gate from ending.
func TestHTTP2DrainIdle(t *testing.T) {
	t.Parallel()
	e := setup{apps: shopApps()}.start(t, plainShop())
	f := dial2(t, e.edge)
	f.request(1, true, "GET", "/")
	if _, err := f.until(xhttp2.FrameData); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := e.gates[merlon.Edge].Drain(ctx); err != nil {
		t.Error(err)
	}
	if _, err := f.until(xhttp2.FrameGoAway); err != nil {
		t.Errorf("the client was not told: %v", err)
	}
}

// TestHTTP2Revoked: a deny reaches an answer that is streaming, and only that.
func TestHTTP2Revoked(t *testing.T) {
	t.Parallel()
	e := start(t, shop, map[string]http.Handler{"web": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "first")
		http.NewResponseController(w).Flush()
		if r.URL.Path != "/" {
			<-r.Context().Done()
		}
	})})
	c := e.client2()
	res, err := c.Get("https://shop.example/pages/1")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if _, err := io.ReadFull(res.Body, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	e.swap(strings.Replace(shop, "anyone: all", "anyone: [home]", 1))
	var reset xhttp2.StreamError
	if _, err := io.ReadAll(res.Body); err == nil || !errors.As(err, &reset) && !strings.Contains(err.Error(), "INTERNAL_ERROR") {
		t.Errorf("after the change: %v", err)
	}
	req, _ := http.NewRequest("GET", "https://shop.example/", nil)
	if a := do2(t, c, req); a.status != 200 {
		t.Errorf("another call: %d", a.status)
	}
	e.stop()
	// Whichever of the two gates was faster.
	revoked := func(r record.Record) bool { return r.Verdict.Reason == gate.ReasonRevoked }
	if at, in := e.evidence(merlon.Edge), e.evidence(merlon.Place{Service: "web"}); !slices.ContainsFunc(at, revoked) && !slices.ContainsFunc(in, revoked) {
		t.Errorf("records: %+v, %+v", at, in)
	}
}

// TestHTTP2SlowClients: who does not read, or does not send what was begun,
// holds nothing for ever.
func TestHTTP2SlowClients(t *testing.T) {
	t.Parallel()
	bounds := gate.Bounds{Head: 300 * time.Millisecond, Stall: 400 * time.Millisecond, Idle: 400 * time.Millisecond}
	e := setup{bounds: bounds, apps: map[string]http.Handler{"web": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		for strings.HasPrefix(r.URL.Path, "/pages/") {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	})}}.start(t, plainShop())
	for name, begin := range map[string]func(f *frames2){
		"nothing":           func(f *frames2) {},
		"half a frame":      func(f *frames2) { f.Conn.Write([]byte{0, 0, 8, 6}) },
		"half a head":       func(f *frames2) { f.WriteRawFrame(xhttp2.FrameHeaders, 0, 1, []byte{0x82}) },
		"a body that stops": func(f *frames2) { f.request(1, false, "POST", "/send", "content-length=100") },
		"a body of unknown length that stops": func(f *frames2) {
			f.request(1, false, "POST", "/send")
			f.WriteData(1, false, make([]byte, 1000))
		},
		"closed windows": func(f *frames2) { f.request(1, true, "GET", "/pages/endless") },
		"not reading": func(f *frames2) {
			f.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingInitialWindowSize, Val: 1<<31 - 1})
			f.WriteWindowUpdate(0, 1<<30)
			f.request(1, true, "GET", "/pages/unread")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := dial2(t, e.edge)
			begin(f)
			if name == "not reading" {
				until(t, "the end of the call", func() bool {
					return slices.ContainsFunc(e.peek(merlon.Edge), func(r record.Record) bool { return r.Path == "/pages/unread" })
				})
				return
			}
			for {
				if _, err := f.ReadFrame(); err != nil {
					if ne, ok := err.(net.Error); ok && ne.Timeout() {
						t.Error("the gate holds the connection")
					}
					return
				}
			}
		})
	}
}

// TestHTTP2AllAtOnce: a client that has said all it has to say with its preface
// may wait for the answer for as long as the service may take.
func TestHTTP2AllAtOnce(t *testing.T) {
	t.Parallel()
	begun, finish := make(chan struct{}), make(chan struct{})
	e := setup{bounds: gate.Bounds{Head: 300 * time.Millisecond}, apps: map[string]http.Handler{"web": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(begun)
		<-finish
	})}}.start(t, plainShop())
	var first bytes.Buffer
	f := &frames2{Framer: xhttp2.NewFramer(&first, nil)}
	f.enc = hpack.NewEncoder(&f.block)
	first.WriteString(xhttp2.ClientPreface)
	f.WriteSettings()
	f.request(1, true, "GET", "/")
	c := dial(t, e.edge)
	c.Write(first.Bytes())
	<-begun
	for range 2 { // the second began when the time for a head had passed for us
		slow := newWire(t, dial(t, e.edge))
		slow.send("GET")
		slow.ended()
	}
	close(finish)
	f = &frames2{Framer: xhttp2.NewFramer(nil, c)}
	if _, err := f.until(xhttp2.FrameHeaders); err != nil {
		t.Error(err)
	}
}

// curls is where curl speaks HTTP/2 to the edge, with TLS and without, and a file
// of so many bytes to send there.
func curls(t *testing.T, size int) (ways map[string][]string, file string) {
	t.Helper()
	if out, err := exec.Command("curl", "--version").Output(); err != nil || !strings.Contains(string(out), "HTTP2") {
		t.Skip("curl with HTTP/2 is not installed: HTTP/2 is not tested with it")
	}
	e := start(t, shop, shopApps())
	plain := setup{apps: shopApps()}.start(t, plainShop())
	dir := t.TempDir()
	roots := filepath.Join(dir, "roots.pem")
	file = filepath.Join(dir, "body")
	if err := cmp.Or(os.WriteFile(roots, e.edgePEM, 0o600), os.WriteFile(file, make([]byte, size), 0o600)); err != nil {
		t.Fatal(err)
	}
	return map[string][]string{
		"TLS":             {"--http2", "--cacert", roots, "--connect-to", "::" + e.edge, "https://shop.example"},
		"prior knowledge": {"--http2-prior-knowledge", "--connect-to", "::" + plain.edge, "http://shop.example"},
	}, file
}

// curl runs curl, and says what it printed and the status.
func curl(way []string, path string, args ...string) (string, error) {
	last := len(way) - 1
	args = append(args, "-sS", "--max-time", "20", "-w", "\n%{http_version} %{http_code}")
	out, err := exec.Command("curl", append(append(args, way[:last]...), way[last]+path)...).CombinedOutput()
	return string(out), err
}

// TestHTTP2Curl: curl speaks to the edge, with TLS and without.
func TestHTTP2Curl(t *testing.T) {
	t.Parallel()
	ways, large := curls(t, 900_000)
	for name, way := range ways {
		out, err := curl(way, "/send", "--data-binary", "@"+large)
		if err != nil || !strings.HasSuffix(out, "\n2 200") || !strings.Contains(out, `"Body":900000`) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

// TestHTTP2CurlRefused: curl learns why what it sends is refused, although the
// answer comes before the end of the body.
func TestHTTP2CurlRefused(t *testing.T) {
	t.Parallel()
	ways, large := curls(t, 8<<20)
	for name, way := range ways {
		for path, want := range map[string]string{"/nothing": "no_operation", "/send": "body_too_large"} {
			for _, header := range []string{"X: y", "Expect: 100-continue", "Transfer-Encoding: chunked"} {
				out, err := curl(way, path, "--data-binary", "@"+large, "-H", header)
				if err != nil || !strings.Contains(out, want) {
					t.Errorf("%s %s %s: %v\n%s", name, path, header, err, out)
				}
			}
		}
	}
}

// TestHTTP2Lingers: a stream that was answered takes what its client still sends,
// but not for ever.
func TestHTTP2Lingers(t *testing.T) {
	t.Parallel()
	e := setup{apps: shopApps()}.start(t, plainShop())
	f := dial2(t, e.edge)
	f.request(1, false, "POST", "/nothing")
	if _, err := f.until(xhttp2.FrameData); err != nil {
		t.Fatal(err)
	}
	f.WriteData(1, true, make([]byte, 1000))
	f.request(3, false, "POST", "/nothing")
	if frame, err := f.until(xhttp2.FrameData); err != nil || frame.Header().StreamID != 3 {
		t.Fatal(frame, err)
	}
	f.WriteData(3, false, make([]byte, 1000)) // and nothing more
	frame, err := f.until(xhttp2.FrameRSTStream)
	if err != nil || frame.Header().StreamID != 3 || frame.(*xhttp2.RSTStreamFrame).ErrCode != xhttp2.ErrCodeNo {
		t.Errorf("what does not end: %v, %v", frame, err)
	}
}
