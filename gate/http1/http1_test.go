package http1_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"merlon/gate/http1"
)

// request parses raw, which must be accepted.
func request(t *testing.T, raw string, lim http1.Limits) *http1.Request {
	t.Helper()
	var r http1.Request
	n, err := r.Parse([]byte(raw), lim)
	if err != nil || n == 0 {
		t.Fatalf("Parse(%q) = %d, %v", raw, n, err)
	}
	return &r
}

// sensitive are names that must never travel from a client to an application,
// however they are spelled.
var sensitive = []string{
	"connection", "keep-alive", "proxy-authorization", "proxy", "te", "trailer", "upgrade", "http2-settings",
	"forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-prefix", "x-real-ip",
	"true-client-ip", "cf-connecting-ip", "x-original-url", "x-original-host", "x-rewrite-url", "x-http-method-override",
	"x-envoy-original-path", "x-middleware-subrequest", "merlon-caller", "merlon-anything", "x-merlon-caller", "remote-user",
	"x-remote-user", "x-remote-group", "x-forwarded-user", "x-auth-request-email", "x-user", "x-user-id", "x-username",
	"ssl-client-cert", "ssl-client-s-dn", "x-client-cert", "x-spiffe-id", "x-forwarded-client-cert", "client-cert",
	"x-goog-iap-jwt-assertion", "x-amzn-oidc-identity", "x-consumer-username", "cf-access-jwt-assertion", "l5d-client-id",
}

// disguise spells name in another way that some application folds back.
func disguise(rng *rand.Rand, name string) string {
	b := []byte(name)
	for i, c := range b {
		switch {
		case c == '-' && rng.IntN(2) == 0:
			b[i] = "_.~!+*'"[rng.IntN(7)]
		case c != '-' && rng.IntN(2) == 0:
			b[i] = strings.ToUpper(string(c))[0]
		}
	}
	return string(b)
}

// TestClass02HeaderSmugglingUnderscoreAndCase: no spelling of a sensitive name
// reaches the application.
func TestClass02HeaderSmugglingUnderscoreAndCase(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(2, 15))
	for _, name := range sensitive {
		for i := range 60 {
			spelled := name
			if i > 0 {
				spelled = disguise(rng, name)
			}
			var r http1.Request
			_, err := r.Parse([]byte("GET / HTTP/1.1\r\nHost: a\r\n"+spelled+": x\r\n\r\n"), http1.Limits{})
			if folded := strings.EqualFold(spelled, name); err != nil && folded {
				t.Errorf("%q is refused with %v, want it dropped by its class", spelled, err)
			} else if !folded && (err == nil || reasonOf(err) != "field_name_disguised") {
				t.Errorf("%q: %v, want it refused as disguised", spelled, err)
			}
			if sent := http1.AppendFields(nil, r.Fields, ^http1.Class(0)); len(sent) != 0 {
				t.Errorf("%q travels on: %q", spelled, sent)
			}
		}
	}
}

// TestClassOf pins some classes, and names that must keep class zero.
func TestClassOf(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]http1.Class{
		"Host":                      http1.Framing,
		"Content-Length":            http1.Framing,
		"Expect":                    http1.Framing,
		"Transfer-Encoding":         http1.Framing | http1.HopByHop,
		"Keep-Alive":                http1.HopByHop,
		"Proxy-Anything":            http1.HopByHop,
		"X-Forwarded-For":           http1.Forwarding,
		"X-Forwarded-User":          http1.Forwarding | http1.Identity,
		"Merlon-Caller":             http1.Identity,
		"Authorization":             0,
		"Accept":                    0,
		"Cookie":                    0,
		"Content-Type":              0,
		"X-Request-Id":              0,
		"Traceparent":               http1.Tracing,
		"tracestate":                http1.Tracing,
		"Trace-Parent":              0,
		"X":                         0,
		"X-":                        0,
		"X-F":                       0,
		"X-Forwar":                  0,
		"Hos":                       0,
		"User-Agent":                0,
		"X_Harmless":                0,
		"!":                         0,
		"9":                         0,
		"Range":                     0,
		"If-None-Match":             0,
		"Sec-WebSocket-Key":         0,
		"Upgrade-Insecure-Requests": 0,
	} {
		value, raw := "x", ""
		switch name {
		case "Content-Length":
			value = "1"
		case "Transfer-Encoding":
			value = "chunked"
		case "Expect":
			value = "100-continue"
		}
		if name != "Host" {
			raw = name + ": " + value + "\r\n"
		}
		r := request(t, "POST / HTTP/1.1\r\nHost: a\r\n"+raw+"\r\n", http1.Limits{})
		if got := r.Fields[len(r.Fields)-1]; got.Name != name || got.Class != want {
			t.Errorf("%s: class %b of %q, want %b", name, got.Class, got.Name, want)
		}
	}
}

// TestClass15RequestSmugglingBothDirections: one head, one reading. The
// collections in testdata have the rest.
func TestClass15RequestSmugglingBothDirections(t *testing.T) {
	t.Parallel()
	const behind = "GET /admin HTTP/1.1\r\nHost: a\r\n\r\n"
	for _, fields := range []string{
		"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
		"Content-Length: 5\r\nContent-Length: 5\r\n",
		"Content-Length: 5\r\ncontent_length: 6\r\n",
		"Content-Length: 5, 5\r\n",
		"Content-Length: +5\r\n",
		"Content-Length : 5\r\n",
		"Content-Length:\r\n 5\r\n",
		"Content-Length: 5\nX: y\r\n",
		"Transfer-Encoding: xchunked\r\n",
		"Transfer-Encoding: chunked, identity\r\n",
		"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n",
		"Transfer-Encoding\t: chunked\r\n",
		"Transfer-Encoding:\x0bchunked\r\n",
		"X: y\rTransfer-Encoding: chunked\r\n",
		"Connection: content-length\r\nContent-Length: 5\r\n",
	} {
		var r http1.Request
		if n, err := r.Parse([]byte("POST / HTTP/1.1\r\nHost: a\r\n"+fields+"\r\n0\r\n\r\n"+behind), http1.Limits{}); n != 0 || err == nil {
			t.Errorf("request with %q is accepted", fields)
		}
		var p http1.Response
		n, err := p.Parse([]byte("HTTP/1.1 200 OK\r\n"+fields+"\r\n0\r\n\r\n"), "GET", http1.Limits{})
		var e *http1.Error
		if n != 0 || !errors.As(err, &e) || e.Status != 502 {
			t.Errorf("response with %q: %d, %v", fields, n, err)
		}
	}
	// What is accepted ends where it says, and the next request is not touched.
	r := request(t, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n12345"+behind, http1.Limits{})
	if r.Body != http1.BodyLength || r.Length != 5 {
		t.Errorf("body %v of %d bytes", r.Body, r.Length)
	}
}

// TestAbsolute: absolute-form only where it is asked for, and only with the
// authority that Host has.
func TestAbsolute(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ target, host, want string }{
		{"http://orders/x?y", "orders", "orders /x y"},
		{"HTTP://Orders:80/x", "orders:80", "orders:80 /x "},
		{"http://orders", "orders", "orders / "},
		{"http://orders?y=/", "orders", "orders / y=/"},
		{"http://orders/x", "payments", "absolute_host_differs"},
		{"http://orders/x", "orders:80", "absolute_host_differs"},
		{"http://u@orders/x", "orders", "absolute_host_differs"},
		{"http://u@orders/x", "u@orders", "host_invalid"},
		{"http:///x", "orders", "absolute_host_differs"},
		{"http:///x", "", "host_invalid"},
		{"http://orders\\@evil/x", "orders", "absolute_host_differs"},
		{"https://orders/x", "orders", "target_invalid"},
		{"orders:80", "orders:80", "target_invalid"},
		{"/x", "orders", "orders /x "},
	} {
		var r http1.Request
		got := ""
		n, err := r.Parse([]byte("GET "+c.target+" HTTP/1.1\r\nHost: "+c.host+"\r\n\r\n"), http1.Limits{Absolute: true})
		if err != nil {
			got = reasonOf(err)
		} else if n > 0 {
			got = r.Host + " " + r.Path + " " + r.Query
		}
		if got != c.want {
			t.Errorf("%s with Host %q: %q, want %q", c.target, c.host, got, c.want)
		}
	}
	var r http1.Request
	if _, err := r.Parse([]byte("OPTIONS http://orders HTTP/1.1\r\nHost: orders\r\n\r\n"), http1.Limits{Absolute: true}); err == nil || reasonOf(err) != "asterisk_form" {
		t.Errorf("OPTIONS without a path: %v", err)
	}
}

// TestRequestMeaning pins what the head says beyond its bytes.
func TestRequestMeaning(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ line, fields, want string }{
		{"GET /a?b=c?d HTTP/1.1", "", "GET /a b=c?d body=none/0"},
		{"GET / HTTP/1.1", "Connection: close\r\n", "GET /  body=none/0 close"},
		{"GET / HTTP/1.1", "Connection: x, Close\r\n", "GET /  body=none/0 close"},
		{"GET / HTTP/1.1", "Connection: keep-alive\r\nConnection: close\r\n", "GET /  body=none/0 close"},
		{"GET / HTTP/1.0", "", "GET /  body=none/0 close"},
		{"GET / HTTP/1.0", "Connection: Keep-Alive\r\n", "GET /  body=none/0"},
		{"GET / HTTP/1.0", "Connection: keep-alive, close\r\n", "GET /  body=none/0 close"},
		{"POST / HTTP/1.1", "Content-Length: 0\r\n", "POST /  body=length/0"},
		{"POST / HTTP/1.1", "Content-Length: 7\r\nExpect: 100-Continue\r\n", "POST /  body=length/7 expect"},
		{"POST / HTTP/1.0", "Content-Length: 7\r\nExpect: 100-continue\r\n", "POST /  body=length/7 close"},
		{"GET / HTTP/1.1", "Expect: 100-continue\r\n", "GET /  body=none/0"},
		{"POST / HTTP/1.1", "Transfer-Encoding: chunked\r\n", "POST /  body=chunked/0"},
		{"GET / HTTP/1.1", "Connection: upgrade\r\nUpgrade: websocket\r\n", "GET /  body=none/0 upgrade=websocket"},
		{"GET / HTTP/1.1", "Upgrade: websocket\r\n", "GET /  body=none/0"},
		{"GET / HTTP/1.0", "Connection: upgrade\r\nUpgrade: websocket\r\n", "GET /  body=none/0 close"},
		{"GET / HTTP/1.1", "Authorization:  Bearer x \r\n", "GET /  body=none/0 authorization=Bearer x"},
	} {
		r := request(t, c.line+"\r\nHost: a\r\n"+c.fields+"\r\n", http1.Limits{})
		got := fmt.Sprintf("%s %s %s body=%v/%d", r.Method, r.Path, r.Query, r.Body, r.Length)
		if r.Close {
			got += " close"
		}
		if r.Expect {
			got += " expect"
		}
		if r.Upgrade != "" {
			got += " upgrade=" + r.Upgrade
		}
		if r.Authorization != "" {
			got += " authorization=" + r.Authorization
		}
		if got != c.want {
			t.Errorf("%s with %q:\n got %s\nwant %s", c.line, c.fields, got, c.want)
		}
	}
}

// TestConnectionNames: what Connection names stays on this connection, in any
// order and case; the rest travels.
func TestConnectionNames(t *testing.T) {
	t.Parallel()
	r := request(t, "GET / HTTP/1.1\r\nX-A: 1\r\nHost: a\r\nConnection: x-a, close\r\nX-B: 2\r\nX-C: 3\r\nconnection: X_B\r\nx-a: 4\r\n\r\n", http1.Limits{})
	if got, want := string(http1.AppendFields(nil, r.Fields, http1.HopByHop|http1.Framing)), "X-C: 3\r\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestErrorStatus pins the statuses that are not 400.
func TestErrorStatus(t *testing.T) {
	t.Parallel()
	want := map[string]int{
		"target_too_long": 414, "head_too_large": 431, "field_too_large": 431, "too_many_fields": 431, "connection_too_long": 431,
		"method_too_long": 501, "connect_not_spoken": 501, "trace_refused": 501, "transfer_encoding_unknown": 501,
		"http2_not_spoken": 505, "version_not_spoken": 505, "expect_unknown": 417,
	}
	for _, s := range samples(t, "ambiguous.txt") {
		var r http1.Request
		_, err := r.Parse([]byte(s.raw), limits)
		var e *http1.Error
		if !errors.As(err, &e) {
			continue
		}
		status := want[e.Reason]
		if status == 0 {
			status = 400
		}
		if e.Status != status {
			t.Errorf("ambiguous.txt:%d: status %d for %s, want %d", s.line, e.Status, e.Reason, status)
		}
	}
}

// TestReuse: one Request serves all requests of a connection, and nothing of
// one is left in the next, also after a refusal and an unfinished head.
func TestReuse(t *testing.T) {
	t.Parallel()
	var r http1.Request
	full := "POST /a?b HTTP/1.0\r\nHost: a\r\nAuthorization: x\r\nContent-Length: 5\r\nConnection: close\r\n\r\n"
	bare := "GET / HTTP/1.1\r\nHost: b\r\n\r\n"
	for _, step := range []string{full, bare, full + "rest", "GET / HTTP/1.1\r\nHost", bare, "get / HTTP/1.1\r\n\r\n", bare} {
		n, err := r.Parse([]byte(step), http1.Limits{})
		if n == 0 && err == nil {
			r.Reset()
		}
	}
	var fresh http1.Request
	if _, err := fresh.Parse([]byte(bare), http1.Limits{}); err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprintf("%+v", r), fmt.Sprintf("%+v", fresh); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

// TestGet finds fields by name as it must be: without Unicode folding.
func TestGet(t *testing.T) {
	t.Parallel()
	fields := []http1.Field{{Name: "Cookie", Value: "a"}, {Name: "X-Key", Value: "1"}, {Name: "cookie", Value: "b"}}
	for _, c := range []struct {
		name, value string
		count       int
	}{{"COOKIE", "a", 2}, {"x-key", "1", 1}, {"X-\u212aey", "", 0}, {"x_key", "", 0}, {"", "", 0}} {
		if value, count := http1.Get(fields, c.name); value != c.value || count != c.count {
			t.Errorf("Get(%q) = %q, %d; want %q, %d", c.name, value, count, c.value, c.count)
		}
	}
}

// TestAppend pins what is written, and that what is written can be parsed.
func TestAppend(t *testing.T) {
	t.Parallel()
	b := http1.AppendRequestLine(nil, "PUT", "/a", "b=c")
	b = http1.AppendField(b, "Host", "a")
	b = http1.AppendFields(b, []http1.Field{{Name: "X", Value: "1"}, {Name: "Y", Value: "2", Class: http1.HopByHop}, {Name: "Z", Class: http1.Identity}}, http1.HopByHop)
	b = http1.AppendFraming(b, http1.BodyLength, 12)
	b = http1.AppendEnd(b)
	if want := "PUT /a?b=c HTTP/1.1\r\nHost: a\r\nX: 1\r\nZ: \r\nContent-Length: 12\r\n\r\n"; string(b) != want {
		t.Errorf("got %q\nwant %q", b, want)
	}
	for status, want := range map[int]string{200: "HTTP/1.1 200 OK\r\n", 299: "HTTP/1.1 299 \r\n", 429: "HTTP/1.1 429 Too Many Requests\r\n"} {
		line := http1.AppendStatusLine(nil, status, "")
		if string(line) != want {
			t.Errorf("got %q, want %q", line, want)
		}
		if got := response(string(http1.AppendEnd(http1.AppendFraming(line, http1.BodyChunked, 0))), "GET"); got != "ok/chunked" {
			t.Errorf("%q: %s", line, got)
		}
	}
}

// TestValid: a value that could be two fields is none.
func TestValid(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]bool{
		"": true, "a": true, "a b": true, "a\tb": true, " a": false, "a ": false, "\ta": false, " ": false,
		"a\r\nX: y": false, "a\n": false, "a\rb": false, "\x00": false, "\x7f": false, "é": false,
	} {
		if got := http1.ValidValue(value); got != want {
			t.Errorf("ValidValue(%q) = %v", value, got)
		}
	}
	for name, want := range map[string]bool{
		"X-A": true, "x_a": true, "": false, "X A": false, "X:": false, "X\r\nY": false, "é": false, strings.Repeat("a", 129): false,
	} {
		if got := http1.ValidName(name); got != want {
			t.Errorf("ValidName(%q) = %v", name, got)
		}
	}
}

// TestRequestAllocatesNothing, once warm; a refusal may.
func TestRequestAllocatesNothing(t *testing.T) {
	var r http1.Request
	var p http1.Response
	dst := make([]byte, 0, 4096)
	get, post, answer := []byte(typical), []byte(large), []byte(typicalResponse)
	allocs := testing.AllocsPerRun(100, func() {
		for _, raw := range [][]byte{get, post} {
			if n, err := r.Parse(raw, http1.Limits{}); n == 0 || err != nil {
				t.Fatal(n, err)
			}
			dst = http1.AppendRequestLine(dst[:0], r.Method, r.Path, r.Query)
			dst = http1.AppendFields(dst, r.Fields, ^http1.Class(0))
			dst = http1.AppendFraming(dst, r.Body, r.Length)
		}
		if n, err := p.Parse(answer, "GET", http1.Limits{}); n == 0 || err != nil {
			t.Fatal(n, err)
		}
		dst = http1.AppendStatusLine(dst[:0], p.Status, p.Reason)
		dst = http1.AppendFields(dst, p.Fields, http1.HopByHop|http1.Framing)
	})
	if allocs != 0 {
		t.Errorf("%v allocations per run", allocs)
	}
}
