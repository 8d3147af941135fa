package http2_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	xhttp2 "golang.org/x/net/http2"

	"merlon/gate/http2"
)

// TestRequests holds header lists to RFC 9113 8.2 and 8.3, and to what package
// http1 refuses.
func TestRequests(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 9000)
	for _, c := range requests(long) {
		p := newPeer(t, http2.Config{HeaderList: 12000})
		p.request(1, !strings.HasPrefix(c.name, "body"), c.lines...)
		got := p.feed()
		if strings.HasPrefix(c.want, "refused 1 0 ") {
			want(t, c.name, p.frames(), "reset 1 PROTOCOL_ERROR")
		}
		want(t, c.name, got, c.want)
	}
}

type requestCase struct {
	name  string
	lines []string
	want  string
}

func with(lines []string, more ...string) []string {
	return append(append([]string{}, lines...), more...)
}

func requests(long string) []requestCase {
	const begin = "begin 1 GET https shop.example /? 0"
	return []requestCase{
		{"plain", get, begin + " end"},
		{"query", []string{":method: GET", ":scheme: http", ":authority: a:8080", ":path: /a?b?c"}, "begin 1 GET http a:8080 /a?b?c 0 end"},
		{"any order", []string{":path: /", ":authority: shop.example", ":scheme: https", ":method: GET"}, begin + " end"},
		{"fields", with(get, "accept: */*", "x-a: ", "x-forwarded-for: 1.2.3.4", "merlon-caller: me"), begin + " accept=*/* x-a= x-forwarded-for=1.2.3.4(4) merlon-caller=me(8) end"},
		{"host alone", []string{":method: GET", ":scheme: https", ":path: /", "host: shop.example"}, begin + " host=shop.example(2) end"},
		{"host equal", with(get, "host: Shop.example"), begin + " host=Shop.example(2) end"},
		{"cookies", with(get, "cookie: a=1", "x-b: c", "cookie: d=2", "cookie: e=3"), begin + " cookie=a=1; d=2; e=3 x-b=c end"},
		{"te", with(get, "te: trailers"), begin + " te=trailers(1) end"},
		{"proxy authorization", with(get, "proxy-authorization: x"), begin + " proxy-authorization=x(1) end"},
		{"body length", with(post, "content-length: 3"), "begin 1 POST https shop.example /? 3 content-length=3(2)"},
		{"body unknown", post, "begin 1 POST https shop.example /? -1"},
		{"length zero", with(get, "content-length: 0"), begin + " content-length=0(2) end"},

		{"method missing", get[1:], "refused 1 0 method_missing"},
		{"scheme missing", with(get[:1], get[2:]...), "refused 1 0 scheme_missing"},
		{"path missing", get[:3], "refused 1 0 path_missing"},
		{"path empty", with(get[:3], ":path: "), "refused 1 0 path_missing"},
		{"pseudo unknown", with(get, ":version: 2"), "refused 1 0 pseudo_field_unknown"},
		{"pseudo of an answer", with(get, ":status: 200"), "refused 1 0 pseudo_field_unknown"},
		{"pseudo repeated", with(get, ":path: /b"), "refused 1 0 pseudo_field_repeated"},
		{"pseudo late", []string{":method: GET", ":scheme: https", "x-a: b", ":path: /"}, "refused 1 0 pseudo_field_late"},
		{"protocol", with(get, ":protocol: websocket"), "refused 1 0 protocol_without_connect"},
		{"connect", []string{":method: CONNECT", ":authority: a:443"}, "refused 1 501 connect_not_spoken"},
		{"connect with path", with(get[1:], ":method: CONNECT"), "refused 1 0 connect_invalid"},
		{"connect extended", with(get[1:], ":method: CONNECT", ":protocol: websocket"), "refused 1 501 connect_not_spoken"},

		{"capital", with(get, "X-a: b"), "refused 1 0 field_name_invalid"},
		{"name with space", with(get, "x a: b"), "refused 1 0 field_name_invalid"},
		{"name with NUL", with(get, "x\x00a: b"), "refused 1 0 field_name_invalid"},
		{"name with line end", with(get, "x\r\na: b"), "refused 1 0 field_name_invalid"},
		{"name above ASCII", with(get, "x\xc3\xa9: b"), "refused 1 0 field_name_invalid"},
		{"name too long", with(get, "x"+long[:128]+": b"), "refused 1 431 field_too_large"},
		{"value with CR", with(get, "x-a: b\rc"), "refused 1 0 field_value_line_end"},
		{"value with LF", with(get, "x-a: b\nhost: evil"), "refused 1 0 field_value_line_end"},
		{"value with NUL", with(get, "x-a: b\x00c"), "refused 1 0 field_value_line_end"},
		{"value with space after", with(get, "x-a: b "), "refused 1 0 field_value_padded"},
		{"value with space before", with(get, "x-a:  b"), "refused 1 0 field_value_padded"},
		{"value with control", with(get, "x-a: b\x01"), "refused 1 400 field_value_control"},
		{"value above ASCII", with(get, "x-a: \xe9\x01"), "refused 1 400 field_value_not_ascii"},
		{"disguised", with(get, "content_length: 3"), "refused 1 400 field_name_disguised"},
		{"disguised identity", with(get, "merlon_caller: me"), "refused 1 400 field_name_disguised"},
		{"disguised coding", with(get, "transfer.encoding: chunked"), "refused 1 400 field_name_disguised"},

		{"connection", with(get, "connection: close"), "refused 1 0 connection_field"},
		{"keep-alive", with(get, "keep-alive: 1"), "refused 1 0 connection_field"},
		{"proxy-connection", with(get, "proxy-connection: close"), "refused 1 0 connection_field"},
		{"transfer-encoding", with(get, "transfer-encoding: chunked"), "refused 1 0 connection_field"},
		{"upgrade", with(get, "upgrade: h2c"), "refused 1 0 connection_field"},
		{"te other", with(get, "te: trailers, deflate"), "refused 1 0 te_invalid"},

		{"length with end", with(get, "content-length: 3"), "refused 1 0 content_length_differs"},
		{"body length twice", with(post, "content-length: 3", "content-length: 3"), "refused 1 0 content_length_repeated"},
		{"body length signed", with(post, "content-length: +3"), "refused 1 0 content_length_invalid"},
		{"body length list", with(post, "content-length: 3, 3"), "refused 1 0 content_length_invalid"},
		{"body length huge", with(post, "content-length: 9999999999999999999"), "refused 1 0 content_length_invalid"},

		{"host missing", []string{":method: GET", ":scheme: https", ":path: /"}, "refused 1 400 host_missing"},
		{"host differs", with(get, "host: evil.example"), "refused 1 400 host_differs"},
		{"host repeated", with(get, "host: shop.example", "host: shop.example"), "refused 1 400 host_repeated"},
		{"user in authority", []string{":method: GET", ":scheme: https", ":path: /", ":authority: a@shop.example"}, "refused 1 400 host_invalid"},
		{"authority empty", []string{":method: GET", ":scheme: https", ":path: /", ":authority: "}, "refused 1 400 host_invalid"},
		{"scheme other", []string{":method: GET", ":scheme: ftp", ":path: /", ":authority: a"}, "refused 1 400 scheme_invalid"},
		{"method lower", with(get[1:], ":method: get"), "refused 1 400 method_invalid"},
		{"method with space", with(get[1:], ":method: GET / HTTP/1.1\r\nx: y"), "refused 1 400 method_invalid"},
		{"method long", with(get[1:], ":method: "+strings.Repeat("A", 21)), "refused 1 501 method_too_long"},
		{"trace", with(get[1:], ":method: TRACE"), "refused 1 501 trace_refused"},
		{"path relative", with(get[:3], ":path: a"), "refused 1 400 target_invalid"},
		{"path absolute", with(get[:3], ":path: https://evil.example/"), "refused 1 400 target_invalid"},
		{"path asterisk", with(get[:3], ":path: *"), "refused 1 400 asterisk_form"},
		{"path with space", with(get[:3], ":path: /a HTTP/1.1"), "refused 1 400 target_invalid"},
		{"path with fragment", with(get[:3], ":path: /a#b"), "refused 1 400 target_invalid"},
		{"path with line end", with(get[:3], ":path: /a\r\nx: y"), "refused 1 400 target_invalid"},
		{"path long", with(get[:3], ":path: /"+long), "refused 1 414 target_too_long"},
		{"expect", with(get, "expect: the unexpected"), "refused 1 417 expect_unknown"},
		{"expect twice", with(get, "expect: 100-continue", "expect: 100-continue"), "refused 1 400 expect_repeated"},
		{"authorization twice", with(get, "authorization: a", "authorization: b"), "refused 1 400 authorization_repeated"},
		{"content-type twice", with(get, "content-type: a/b", "content-type: c/d"), "refused 1 400 content_type_repeated"},
		{"list too large", with(get, "x-a: "+long, "x-b: "+long[:4000]), "refused 1 431 head_too_large"},
		{"too many fields", with(get, strings.Split(strings.Repeat("x-a: b|", 110), "|")[:110]...), "refused 1 431 too_many_fields"},
		{"over and malformed", with(get, "X-a: b", "x-a: "+long, "x-b: "+long[:4000]), "refused 1 0 field_name_invalid"},
	}
}

// TestRequestMeaning: what the words of TestRequests leave out.
func TestRequestMeaning(t *testing.T) {
	t.Parallel()
	c := http2.New(http2.Config{Connect: true})
	p := rawPeer(t, c)
	p.in.WriteString(preface)
	p.WriteSettings()
	p.request(1, false, with(post, "authorization: Bearer x", "expect: 100-Continue", "te: trailers")...)
	p.request(3, false, with(get[1:], ":method: CONNECT", ":protocol: websocket")...)
	p.request(5, true, with(get, "expect: 100-continue")...)
	seen := 0
	for in := p.in.Bytes(); ; {
		n, ev, err := c.Next(in, 1)
		if err != nil {
			t.Fatal(err)
		}
		if in = in[n:]; ev.Kind == http2.None && len(in) == 0 {
			break
		}
		if ev.Kind != http2.Begin {
			continue
		}
		seen++
		r := ev.Request
		switch ev.Stream {
		case 1:
			if r.Authorization != "Bearer x" || !r.Expect || !r.Trailers || r.Protocol != "" {
				t.Errorf("1: %+v", r)
			}
		case 3:
			if r.Method != "CONNECT" || r.Protocol != "websocket" || r.Authorization != "" {
				t.Errorf("3: %+v", r)
			}
		case 5:
			if r.Expect || r.Trailers {
				t.Errorf("5: %+v", r)
			}
		}
	}
	if seen != 3 {
		t.Errorf("%d requests", seen)
	}
}

// TestNameless: a field needs a name.
func TestNameless(t *testing.T) {
	t.Parallel()
	p := newPeer(t, http2.Config{Connect: true})
	p.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: append(p.encode(get...), 0, 0, 1, 'x'), EndHeaders: true})
	p.request(3, false, with(get[1:], ":method: CONNECT", ":protocol: web socket")...)
	p.request(5, false, with(get[1:], ":method: CONNECT", ":protocol: ")...)
	want(t, "events", p.feed(), "refused 1 0 field_name_empty", "refused 3 400 protocol_invalid", "refused 5 501 connect_not_spoken")
}

// TestTrailers: fields after a body end it, and none of them may matter.
func TestTrailers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		lines []string
		end   bool
		want  string
	}{
		{[]string{"grpc-status: 0", "x-sum: 1"}, true, "trailers 1 grpc-status=0 x-sum=1 end"},
		{[]string{"x-sum: 1"}, false, "reset 1 PROTOCOL_ERROR trailers_without_end"},
		{[]string{":path: /"}, true, "reset 1 PROTOCOL_ERROR pseudo_field_late"},
		{[]string{"content-length: 1"}, true, "reset 1 PROTOCOL_ERROR trailer_refused"},
		{[]string{"authorization: x"}, true, "reset 1 PROTOCOL_ERROR trailer_refused"},
		{[]string{"x-forwarded-for: x"}, true, "reset 1 PROTOCOL_ERROR trailer_refused"},
		{[]string{"x_forwarded_for: x"}, true, "reset 1 PROTOCOL_ERROR field_name_disguised"},
		{[]string{"x-a: b\x00"}, true, "reset 1 PROTOCOL_ERROR field_value_line_end"},
		{[]string{"X-a: b"}, true, "reset 1 PROTOCOL_ERROR field_name_invalid"},
	} {
		p := newPeer(t, http2.Config{})
		p.request(1, false, post...)
		p.WriteData(1, false, []byte("body"))
		p.request(1, c.end, c.lines...)
		want(t, c.lines[0], p.feed(), "begin 1 POST https shop.example /? -1", "data 1 4", c.want)
	}
	p := newPeer(t, http2.Config{})
	p.request(1, false, with(post, "content-length: 5")...)
	p.WriteData(1, false, []byte("body"))
	p.request(1, true, "x-a: b")
	want(t, "too short", p.feed(), "begin 1 POST https shop.example /? 5 content-length=5(2)", "data 1 4", "reset 1 PROTOCOL_ERROR content_length_differs")
}

// TestReasonsCovered: every reason in the source is one that a test has seen.
func TestReasonsCovered(t *testing.T) {
	t.Parallel()
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var source, tests strings.Builder
	for _, name := range names {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, "_test.go") {
			tests.Write(raw)
		} else {
			source.Write(raw)
		}
	}
	reasons := regexp.MustCompile(`(?:refuse|malformed|broken|charge)\([^"\n]*"([a-z_0-9]+)"`).FindAllStringSubmatch(source.String(), -1)
	if len(reasons) < 50 {
		t.Fatalf("only %d reasons found", len(reasons))
	}
	for _, m := range reasons {
		if !regexp.MustCompile(`\b` + m[1] + `\b`).MatchString(tests.String()) {
			t.Errorf("no test meets %q", m[1])
		}
	}
}
