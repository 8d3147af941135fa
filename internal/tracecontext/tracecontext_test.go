package tracecontext

import (
	"strings"
	"testing"
)

const (
	trace = "0af7651916cd43dd8448eb211c80319c"
	span  = "b7ad6b7169203331"
)

// TestParse: cases of the standard and of its test suite
// (github.com/w3c/trace-context, test/test.py).
func TestParse(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		"00-" + trace + "-" + span + "-01":                                 "00-" + trace + "-" + span + "-01",
		"00-" + trace + "-" + span + "-00":                                 "00-" + trace + "-" + span + "-00",
		"00-" + trace + "-" + span + "-03":                                 "00-" + trace + "-" + span + "-03",
		"00-" + trace + "-" + span + "-ff":                                 "00-" + trace + "-" + span + "-03", // flags nobody knows
		"cc-" + trace + "-" + span + "-01":                                 "00-" + trace + "-" + span + "-01", // a later version
		"cc-" + trace + "-" + span + "-01-more":                            "00-" + trace + "-" + span + "-01",
		"cc-" + trace + "-" + span + "-01.more":                            "",
		"cc-" + trace + "-" + span + "-01more":                             "",
		"00-" + trace + "-" + span + "-01-more":                            "",
		"00-" + trace + "-" + span + "-01 ":                                "",
		" 00-" + trace + "-" + span + "-01":                                "",
		"00-" + trace + "-" + span + "-0":                                  "",
		"00-" + trace + "-" + span:                                         "",
		"00-" + trace + "-" + span + "-0g":                                 "",
		"00-" + trace + "-" + span + ".01":                                 "",
		"00." + trace + "-" + span + "-01":                                 "",
		"00-" + trace + "." + span + "-01":                                 "",
		"ff-" + trace + "-" + span + "-01":                                 "",
		"0-" + trace + "-" + span + "-001":                                 "",
		"A0-" + trace + "-" + span + "-01":                                 "",
		"00-" + strings.ToUpper(trace) + "-" + span + "-01":                "",
		"00-" + strings.Repeat("0", 32) + "-" + span + "-01":               "",
		"00-" + trace + "-" + strings.Repeat("0", 16) + "-01":              "",
		"00-" + trace[1:] + "x-" + span + "-01":                            "",
		"00-" + trace + "-" + span + "-01,00-" + trace + "-" + span + "-0": "",
		"": "",
	} {
		c, ok := Parse(value)
		got := ""
		if ok {
			got = string(c.Append(nil))
		}
		if got != want {
			t.Errorf("%q is %q, want %q", value, got, want)
		}
	}
}

// TestState: cases of the standard and of its test suite.
func TestState(t *testing.T) {
	t.Parallel()
	many := func(n int) string { return strings.TrimSuffix(strings.Repeat("a=1,", n), ",") }
	for _, test := range []struct {
		fields []string
		valid  bool
	}{
		{[]string{"foo=1,bar=2"}, true},
		{[]string{"foo=1", "bar=2"}, true},
		{[]string{"foo=1 \t , \t bar=2, \t baz=3"}, true},
		{[]string{""}, true},
		{[]string{"foo=1,,,"}, true},
		{[]string{"fw529a3039@dt=FfffFfff,z0-9_*/=!\"#$%&'()*+-./:;<>?@[\\]^_`{|}~ x"}, true},
		{[]string{"t" + strings.Repeat("a", 255) + "=" + strings.Repeat("v", 250)}, true},
		{[]string{many(32)}, true},
		{[]string{many(33)}, false},
		{[]string{many(20), many(13)}, false},
		{[]string{"a=" + strings.Repeat("v", 257)}, false},
		{[]string{strings.Repeat("k", 257) + "=1"}, false},
		{[]string{"a=" + strings.Repeat("v", 200), "b=" + strings.Repeat("v", 200), "c=" + strings.Repeat("v", 200)}, false},
		{[]string{"foo"}, false},
		{[]string{"foo="}, false},
		{[]string{"=1"}, false},
		{[]string{"foo =1"}, false},
		{[]string{"FOO=1"}, false},
		{[]string{"foo.bar=1"}, false},
		{[]string{"@foo=1"}, false},
		{[]string{"foo=bar=baz"}, false},
		{[]string{"foo=\x01"}, false},
		{[]string{"foo=\u00fc"}, false},
	} {
		var s State
		valid := true
		for _, field := range test.fields {
			valid = valid && s.Add(field)
		}
		if valid != test.valid {
			t.Errorf("%.80q: %v", test.fields, valid)
		}
	}
}

// FuzzParse: what is taken is written in the one form, which is read as the
// same.
func FuzzParse(f *testing.F) {
	f.Add("00-" + trace + "-" + span + "-01")
	f.Add("cc-" + trace + "-" + span + "-ff-more")
	f.Fuzz(func(t *testing.T, s string) {
		var state State
		state.Add(s)
		c, ok := Parse(s)
		if !ok {
			return
		}
		text := string(c.Append(nil))
		if again, ok := Parse(text); !ok || again != c || len(text) != Length {
			t.Errorf("%q is written as %q, which is %v, %v", s, text, again, ok)
		}
		if text[2:53] != s[2:53] {
			t.Errorf("%q is written as %q", s, text)
		}
	})
}

func TestDoesNotAllocate(t *testing.T) {
	var buf [Length]byte
	value := "00-" + trace + "-" + span + "-01"
	if n := testing.AllocsPerRun(100, func() {
		c, _ := Parse(value)
		var s State
		if len(c.Append(buf[:0])) != Length || !s.Add("foo=1,bar=2") {
			t.Error("not read")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
