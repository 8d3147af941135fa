package merlon_test

import (
	"encoding"
	"strings"
	"testing"
	"testing/quick"

	"merlon"
)

func TestPosText(t *testing.T) {
	t.Parallel()
	for _, p := range []merlon.Pos{
		{},
		{File: "merlon.yaml"},
		{File: "merlon.yaml", Line: 7},
		{File: "orders/orders.merlon.yaml", Line: 14, Column: 23},
		{File: "odd:name.yaml", Line: 3, Column: 1},
	} {
		text, err := p.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var got merlon.Pos
		if err := got.UnmarshalText(text); err != nil || got != p {
			t.Errorf("%q reads back as %+v, %v; want %+v", text, got, err, p)
		}
	}
}

func TestPosCompareOrders(t *testing.T) {
	t.Parallel()
	property := func(a, b merlon.Pos) bool {
		return a.Compare(b) == -b.Compare(a) && (a.Compare(b) == 0) == (a == b)
	}
	if err := quick.Check(property, nil); err != nil {
		t.Error(err)
	}
}

// TestZeroValuesDeny is the promise on which all else rests: what nobody
// answered is a refusal, and what nobody proved is nobody.
func TestZeroValuesDeny(t *testing.T) {
	t.Parallel()
	if v := (merlon.Verdict{}); v.Effect != merlon.Deny {
		t.Errorf("zero Verdict has effect %v", v.Effect)
	}
	if c := (merlon.Caller{}); c.Kind != merlon.Nobody {
		t.Errorf("zero Caller is %v", c.Kind)
	}
	if m := (merlon.Service{}).Mode; m != merlon.Enforce {
		t.Errorf("zero Mode is %v", m)
	}
}

func TestWordsRoundTrip(t *testing.T) {
	t.Parallel()
	type word interface {
		encoding.TextMarshaler
		String() string
	}
	check := func(w word, back encoding.TextUnmarshaler, read func() any) {
		t.Helper()
		text, err := w.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		if err := back.UnmarshalText(text); err != nil || read() != any(w) {
			t.Errorf("%s reads back as %v, %v", text, read(), err)
		}
		if err := back.UnmarshalText([]byte("nonsense")); err == nil || !strings.Contains(err.Error(), `"nonsense"`) {
			t.Errorf("nonsense for %T: error %v does not quote it", w, err)
		}
	}
	for i := range 4 {
		k := merlon.CallerKind(i)
		check(k, &k, func() any { return k })
	}
	for i := range 3 {
		e, c, p := merlon.Effect(i), merlon.CertificateKind(i), merlon.Protocol(i)
		check(e, &e, func() any { return e })
		check(c, &c, func() any { return c })
		check(p, &p, func() any { return p })
	}
	for i := range 2 {
		m := merlon.Mode(i)
		check(m, &m, func() any { return m })
	}
	if got := merlon.Effect(9).String(); got != "invalid(9)" {
		t.Errorf("an effect out of range prints %q", got)
	}
}

func TestIntentFindsByName(t *testing.T) {
	t.Parallel()
	in := merlon.Intent{TrustDomain: "t.example", Services: []merlon.Service{
		{Name: "a"}, {Name: "b", Operations: []merlon.Operation{{Name: "x"}, {Name: "y"}}}, {Name: "c"},
	}}
	for _, name := range []string{"a", "b", "c"} {
		if s := in.Service(name); s == nil || s.Name != name {
			t.Errorf("Service(%q) = %v", name, s)
		}
	}
	if in.Service("bb") != nil || in.Service("") != nil {
		t.Error("found a service that is not there")
	}
	if o := in.Service("b").Operation("y"); o == nil || o.Name != "y" {
		t.Errorf("Operation(y) = %v", o)
	}
	if in.Service("b").Operation("z") != nil {
		t.Error("found an operation that is not there")
	}
	if got := in.SPIFFEID("b"); got != "spiffe://t.example/b" {
		t.Errorf("SPIFFEID = %q", got)
	}
}

func TestPlaceNames(t *testing.T) {
	t.Parallel()
	if s, w := merlon.Edge.String(), merlon.Edge.Workload(); s != "gateway" || w != "gateway" {
		t.Errorf("the edge is %q, %q", s, w)
	}
	p := merlon.Place{Service: "orders"}
	if s, w := p.String(), p.Workload(); s != "gate of orders" || w != "orders" {
		t.Errorf("the gate of orders is %q, %q", s, w)
	}
}

func TestDiagnosticsSpeak(t *testing.T) {
	t.Parallel()
	d := merlon.Diagnostic{Pos: merlon.Pos{File: "merlon.yaml", Line: 2, Column: 3}, Code: "E0101", Message: `unknown key "servces"`}
	if got, want := d.Error(), `merlon.yaml:2:3: unknown key "servces" [E0101]`; got != want {
		t.Errorf("Error() = %q, want %q", got, want)
	}
	w := merlon.Diagnostic{Warning: true}
	if (merlon.Diagnostics{w}).Failed() || !(merlon.Diagnostics{w, d}).Failed() {
		t.Error("only a warning must not fail, an error must")
	}
	if got := (merlon.Diagnostics{d, d, d}).Error(); !strings.HasSuffix(got, "(and 2 more)") {
		t.Errorf("many: %q", got)
	}
}
