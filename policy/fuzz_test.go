package policy

import (
	"math/rand/v2"
	"net/url"
	"testing"

	"merlon"
)

// FuzzCondition compiles any text and, where it compiles, evaluates it: it must
// neither panic nor allow what is malformed.
func FuzzCondition(f *testing.F) {
	for _, c := range testConditions {
		f.Add(c.text)
	}
	for _, text := range []string{"", "true", "false", "!", "path.id", "query.q", "has(query.q)", "claims", "claims.a.b.c == 1", "[1,2].exists(x, x == 1)",
		"query.`q` == ''", "1 == 1.0", "now == now", "'a' < 'b'", "caller.name", "has(has)", "a.b.c()", "((((", "\x00", "é == é", `"\u00e9" == "é"`,
		"int('9223372036854775808') == 1", "duration('1000000000h') > duration('1s')", "-9223372036854775808 - 1 == 0"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d := newDraft(t).gateway("shop.example", "staff")
		d.service("shop", "get GET /{id}?q")
		d.rule("shop", "staff: get", text)
		p, ds := Compile(d.in)
		if (p == nil) != ds.Failed() {
			t.Fatalf("policy %v with %v", p, ds)
		}
		for _, diagnostic := range ds {
			if diagnostic.Pos.Line < 1 || diagnostic.Pos.Column < 1 || diagnostic.Message == "" {
				t.Fatalf("diagnostic %+v", diagnostic)
			}
		}
		c := merlon.Call{Caller: login("staff", map[string]any{"role": "x"}), Service: "shop", Operation: "get", Query: "q=x", Params: []merlon.Param{{Name: "id", Value: "7"}}}
		first := p.Decide(&c)
		if again := p.Decide(&c); again != first {
			t.Fatalf("decided %+v, then %+v", first, again)
		}
		p.Explain(&c)
	})
}

// FuzzQuery: when a condition says that a parameter has a value, no reader of
// the query may see another one.
func FuzzQuery(f *testing.F) {
	for _, q := range testQueries {
		f.Add(q, "x")
	}
	f.Add("q=%78", "x")
	f.Add("%71=x", "x")
	f.Add("q=x&%51=y", "x")
	f.Add("q=a%26q=b", "a&q=b")
	d := newDraft(f).gateway("shop.example", "staff")
	d.service("shop", "get GET /?q")
	d.rule("shop", "staff: get", `query.q == claims.want`)
	p := d.compile()
	f.Fuzz(func(t *testing.T, query, want string) {
		c := merlon.Call{Caller: login("staff", map[string]any{"want": want}), Service: "shop", Operation: "get", Query: query}
		if p.Decide(&c).Effect != merlon.Allow {
			return
		}
		values, err := url.ParseQuery(query)
		if err != nil || len(values["q"]) != 1 || values["q"][0] != want {
			t.Fatalf("%q is taken for q=%q, and is %v (%v)", query, want, values, err)
		}
	})
}

// FuzzDecide compares the policy of a made-up intent with the reference.
func FuzzDecide(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(seed, seed)
	}
	f.Fuzz(func(t *testing.T, a, b uint64) {
		r := rand.New(rand.NewPCG(a, b))
		in := randomIntent(r)
		p, ds := Compile(in)
		if ds.Failed() {
			return
		}
		for range 20 {
			c := randomCall(r, p)
			effect, reason, pos := refDecide(in, &c)
			if got := p.Decide(&c); got.Effect != effect || got.Reason != reason || got.Pos != pos {
				t.Fatalf("%+v\n got %+v\nwant %v %s %v", c, got, effect, reason, pos)
			}
		}
	})
}
