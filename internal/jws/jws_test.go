package jws

import (
	"encoding/json"
	"math"
	"reflect"
	"strings"
	"testing"
)

func TestObject(t *testing.T) {
	t.Parallel()
	tests := []struct {
		in   string
		want map[string]any // nil: refused
	}{
		{`{}`, map[string]any{}},
		{` {"a":1} ` + "\n", map[string]any{"a": int64(1)}},
		{`{"a":-9223372036854775808}`, map[string]any{"a": int64(math.MinInt64)}},
		{`{"a":1.5,"b":1e2,"c":[1,"x",null,{"d":true}]}`, map[string]any{
			"a": 1.5, "b": 100.0, "c": []any{int64(1), "x", nil, map[string]any{"d": true}}}},
		{`{"a":1,"A":2}`, map[string]any{"a": int64(1), "A": int64(2)}},
		{``, nil}, {`null`, nil}, {`[]`, nil}, {`1`, nil}, {`"a"`, nil}, {`{`, nil}, {`{}{}`, nil}, {`{}x`, nil}, {`{} ]`, nil},
		{`{"a":1,"a":1}`, nil},
		{`{"a":{"b":1,"b":2}}`, nil},
		{`{"a":[{"b":1,"\u0062":2}]}`, nil},
		{`{"a":9223372036854775808}`, nil},
		{`{"a":[1e999]}`, nil},
		{`{"a":01}`, nil}, {`{"a":+1}`, nil}, {`{"a":NaN}`, nil}, {`{'a':1}`, nil}, {`{"a":1,}`, nil}, {"{\"a\":\"\n\"}", nil},
		{"{\"a\":\"\xff\"}", nil},
		{"\ufeff{}", nil},
		{`{"a":` + strings.Repeat("[", 5) + strings.Repeat("]", 5) + `}`, nil},
		{`{"a":[[[[]]]]}`, map[string]any{"a": []any{[]any{[]any{[]any{}}}}}},
		{`{"a":` + strings.Repeat(`{"a":`, 20000) + "1" + strings.Repeat("}", 20000) + `}`, nil},
	}
	for _, tt := range tests {
		got, err := Object([]byte(tt.in), 3)
		if (err == nil) != (tt.want != nil) || err == nil && !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%.60q: %#v, %v", tt.in, got, err)
		}
	}
}

func TestSplit(t *testing.T) {
	t.Parallel()
	const head, body, sig = "eyJhIjoxfQ", "eyJiIjoyfQ", "AAAA" // {"a":1}, {"b":2}
	c, err := Split(head+"."+body+"."+sig, 3)
	if err != nil || c.Header["a"] != int64(1) || c.Payload["b"] != int64(2) {
		t.Errorf("%v, %v", c, err)
	}
	for _, token := range []string{
		"", ".", "..", "...", head, head + "." + body, head + "." + body + ".", head + "." + body + "." + sig + ".",
		"." + body + "." + sig, head + ".." + sig, head + "=." + body + "." + sig, head + "\n." + body + "." + sig,
		head + "." + body + "." + sig + "\r", head + "." + body + ".AAAB!", head + "." + body + ".AB", // bits set that are not used
		"eyJhIjoxfR." + body + "." + sig, "W10." + body + "." + sig,
	} {
		if c, err := Split(token, 3); err == nil {
			t.Errorf("%q: %v", token, c)
		}
	}
}

func TestAudience(t *testing.T) {
	t.Parallel()
	tests := []struct {
		aud  any
		want bool
	}{
		{"shop", true}, {[]any{"a", "shop"}, true},
		{"Shop", false}, {"shop ", false}, {[]any{}, false}, {[]any{"a"}, false}, {[]any{"shop", int64(1)}, false},
		{nil, false}, {int64(1), false}, {map[string]any{"shop": true}, false}, {[]any{[]any{"shop"}}, false},
	}
	for _, tt := range tests {
		if Audience(tt.aud, "shop") != tt.want {
			t.Errorf("%v: %v", tt.aud, !tt.want)
		}
	}
}

func TestDate(t *testing.T) {
	t.Parallel()
	tests := []struct {
		in   any
		want int64
		ok   bool
	}{
		{int64(0), 0, true}, {int64(1700000000), 1700000000, true}, {1700000000.9, 1700000000, true},
		{int64(-1), 0, false}, {int64(maxDate + 1), 0, false}, {1e300, 0, false}, {-0.5, 0, false},
		{math.NaN(), 0, false}, {math.Inf(1), 0, false}, {"1", 0, false}, {nil, 0, false}, {true, 0, false},
	}
	for _, tt := range tests {
		if got, ok := Date(tt.in); ok != tt.ok || ok && got != tt.want {
			t.Errorf("%v: %d, %v", tt.in, got, ok)
		}
	}
}

func TestText(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]bool{
		"ann": true, "https://id.example|x": true, "Ünï": true, strings.Repeat("a", 20): true,
		"": false, strings.Repeat("a", 21): false, "a\x00": false, "a\r\nb": false, "a\x7f": false, "a\u009f": false, "a\ufffd": false, "a\xff": false,
	} {
		if Text(s, 20) != want {
			t.Errorf("%q: %v", s, !want)
		}
	}
}

// What is read here encoding/json reads as well: being strict adds no meaning.
func FuzzObject(f *testing.F) {
	f.Add([]byte(`{"a":[1,2.5,"x",{"b":null}]}`))
	f.Add([]byte(`{"a":1,"a":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := Object(b, 8)
		if err != nil {
			return
		}
		var other map[string]any
		if err := json.Unmarshal(b, &other); err != nil || len(other) != len(got) {
			t.Errorf("%q: %v, %v", b, got, err)
		}
	})
}
