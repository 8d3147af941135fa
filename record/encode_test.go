package record

import (
	"bytes"
	"encoding/json"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"merlon"
)

// whole is a record with every field set.
func whole() Record {
	return Record{
		Seq: 7, Time: 1795315477787255191, ID: "01JD7Z", Place: "gate of orders", At: "in",
		Caller: "web", CallerKind: "workload", Subject: "spiffe://shop.example/web", Client: "192.0.2.7:4711",
		Service: "orders", Operation: "createOrder", Method: "POST", Host: "shop.example", Path: "/orders/7",
		Query: "page=2", Status: 201,
		Verdict: merlon.Verdict{Effect: merlon.Allow, Reason: merlon.ReasonNoRule, Pos: merlon.Pos{File: "merlon.yaml", Line: 12, Column: 5}, Rule: "orders: web", Shadow: true},
		Detail:  "no rule", Upstream: "10.0.0.7:7002", Intent: strings.Repeat("ab", 32),
		Duration: 1234567, BytesIn: 12, BytesOut: 345,
		Trace: "0af7651916cd43dd8448eb211c80319c", GRPC: "PERMISSION_DENIED",
	}
}

func TestLineRoundTrip(t *testing.T) {
	t.Parallel()
	if v := reflect.ValueOf(whole()); true {
		for i := range v.NumField() {
			if v.Field(i).IsZero() {
				t.Errorf("whole() leaves out %s, so nothing tests it", v.Type().Field(i).Name)
			}
		}
	}
	for name, r := range map[string]Record{
		"whole":     whole(),
		"zero":      {},
		"no column": {Verdict: merlon.Verdict{Pos: merlon.Pos{File: "a.yaml", Line: 3}}},
		"no line":   {Verdict: merlon.Verdict{Pos: merlon.Pos{File: "a.yaml"}}},
		"first ns":  {Time: 1},
		"before":    {Time: -1},
		"earliest":  {Time: math.MinInt64},
		"latest":    {Time: math.MaxInt64},
		"negative":  {Status: -1, Duration: -5, BytesIn: math.MinInt64},
		"escapes":   {Path: "/\"\\\n\r\t\b\x00\x1b[31m\x7f<>&", Host: "\u0085\u202e\u2066\u2028\u2029\ufeff", Detail: "äöü 日本 😀"},
	} {
		line, err := json.Marshal(r)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var got Record
		if err := json.Unmarshal(line, &got); err != nil {
			t.Errorf("%s: %v in %s", name, err, line)
		} else if got != r {
			t.Errorf("%s:\n got %+v\nwant %+v\nline %s", name, got, r, line)
		}
	}
}

func TestLine(t *testing.T) {
	t.Parallel()
	var e encoder
	r := whole()
	got := string(e.appendRecord(nil, 7, &r, false))
	want := `{"seq":7,"time":"2026-11-22T02:44:37.787255191Z","id":"01JD7Z","place":"gate of orders","at":"in","caller":"web","callerKind":"workload",` +
		`"subject":"spiffe://shop.example/web","client":"192.0.2.7:4711","service":"orders","operation":"createOrder","method":"POST","host":"shop.example","path":"/orders/7",` +
		`"status":201,"grpc":"PERMISSION_DENIED","verdict":{"effect":"allow","reason":"no_rule","pos":"merlon.yaml:12:5","rule":"orders: web","shadow":true},"detail":"no rule","upstream":"10.0.0.7:7002",` +
		`"intent":"` + strings.Repeat("ab", 32) + `","duration":1234567,"bytesIn":12,"bytesOut":345,"trace":"0af7651916cd43dd8448eb211c80319c"}` + "\n"
	if got != want {
		t.Errorf("got  %swant %s", got, want)
	}
}

func TestEscape(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ in, want string }{
		{"plain text of some length", "plain text of some length"},
		{"0123456\"", `0123456\"`},
		{"\\", `\\`},
		{"a\x00b", `a\u0000b`},
		{"\x1b[2J", `\u001b[2J`},
		{"\x7f", `\u007f`},
		{"\xff", `\ufffd`},
		{"\xed\xa0\x80", `\ufffd\ufffd\ufffd`}, // a surrogate half
		{"\xc0\xaf", `\ufffd\ufffd`},           // an over-long slash
		{"tail\xe2\x82", `tail\ufffd\ufffd`},   // cut short
		{"\u009b31m", `\u009b31m`},
		{"\u202egpj.exe", `\u202egpj.exe`},
		{"\ufffd", "\ufffd"}, // valid, and kept
		{"ä日😀", "ä日😀"},
	} {
		if got := string(appendEscaped(nil, c.in)); got != c.want {
			t.Errorf("%q: got %s, want %s", c.in, got, c.want)
		}
	}
}

func TestHarmless(t *testing.T) {
	t.Parallel()
	for i := range 12 { // a word and a rest
		for c := range 256 {
			for _, fill := range []byte{'a', ' ', '~', '!', '#', '[', ']'} {
				s := bytes.Repeat([]byte{fill}, 12)
				s[i] = byte(c)
				want := c >= 0x20 && c < 0x7f && c != '"' && c != '\\'
				if got := harmless(string(s)); got != want {
					t.Fatalf("byte %#x at %d in %q: got %v", c, i, s, got)
				}
			}
		}
	}
}

func TestLongFieldIsCut(t *testing.T) {
	t.Parallel()
	for _, in := range []string{strings.Repeat("a", maxField+10), strings.Repeat("ä", maxField), strings.Repeat("\xff", 2*maxField), strings.Repeat("\x80", maxField+1)} {
		out := appendEscaped(nil, in)
		if !json.Valid([]byte(`"`+string(out)+`"`)) || !strings.HasSuffix(string(out), " bytes cut)") || len(out) > 6*maxField+40 {
			t.Errorf("%.10q: %d bytes, end %q", in, len(out), out[len(out)-30:])
		}
	}
	if out := appendEscaped(nil, strings.Repeat("a", maxField)); len(out) != maxField {
		t.Errorf("a field of exactly the bound was cut to %d", len(out))
	}
}

func TestTimeCache(t *testing.T) {
	t.Parallel()
	var e encoder
	for _, ns := range []int64{0, 5, 999999999, 1e9, 1e9 - 1, -1, -1e9, 0, 1795315477e9} {
		got := string(e.appendTime(nil, ns))
		if want := time.Unix(0, ns).UTC().Format("2006-01-02T15:04:05.000000000Z"); got != want {
			t.Errorf("%d: got %s, want %s", ns, got, want)
		}
	}
}

// FuzzLine holds the encoder to encoding/json: the line is valid, on one
// line, and decodes to what was given, but for bytes that are not UTF-8.
func FuzzLine(f *testing.F) {
	f.Add("id", "/path", "detail", "m.yaml", 3, 4, int64(12))
	f.Add("\x00\xff\"", "\u2028\u202e", "\\u0041\\", "a:1:2", 0, 0, int64(math.MinInt64))
	f.Add("\xed\xa0\x80", "aaaaaaa\"", "\x7f", "", -1, 7, int64(-1))
	f.Fuzz(func(t *testing.T, id, path, detail, file string, line, column int, at int64) {
		r := Record{Time: at, ID: id, Path: path, Detail: detail, Verdict: merlon.Verdict{Rule: file, Reason: merlon.Reason(id)}}
		out, err := json.Marshal(r)
		if err != nil {
			t.Fatalf("%v", err)
		}
		if bytes.IndexByte(out, '\n') >= 0 || !utf8.Valid(out) {
			t.Fatalf("%q", out)
		}
		var got Record
		if err := json.Unmarshal(out, &got); err != nil {
			t.Fatalf("%v in %s", err, out)
		}
		if max(len(id), len(path), len(detail), len(file)) > maxField {
			return
		}
		valid := func(s string) string { return string([]rune(s)) }
		want := Record{Time: at, ID: valid(id), Path: valid(path), Detail: valid(detail), Verdict: merlon.Verdict{Rule: valid(file), Reason: merlon.Reason(valid(id))}}
		if got != want {
			t.Fatalf("got %+v, want %+v", got, want)
		}
		r.Verdict.Pos = merlon.Pos{File: file, Line: line, Column: column}
		if out, err := json.Marshal(r); err != nil || !json.Valid(out) {
			t.Fatalf("%v in %s", err, out)
		}
	})
}
