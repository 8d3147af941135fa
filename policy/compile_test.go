package policy

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"merlon"
)

var update = flag.Bool("update", false, "write the goldens in testdata")

// TestDiagnostics holds every diagnostic of Compile and Test to its golden.
func TestDiagnostics(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	for _, test := range []struct {
		name string
		make func(d *draft)
	}{
		{"two rules for one caller and operation", func(d *draft) { d.rule("orders", "web: getOrder listOrders", "") }},
		{"two rules for anyone", func(d *draft) { d.rule("web", "anyone: home", "") }},
		{"an unknown caller", func(d *draft) { d.rule("orders", "wbe: getOrder", "") }},
		{"an unknown operation", func(d *draft) { d.rule("orders", "payments: getOder", "") }},
		{"an operation of a tcp service", func(d *draft) { d.rule("ledger", "web: read", "") }},
		{"a login named like a service", func(d *draft) { d.gateway("shop.example", "staff", "partners", "web") }},
		{"a service named like a word of the language", func(d *draft) { d.service("gateway", "x GET /") }},
		{"a rule for outside without a gateway", func(d *draft) { d.in.Gateway = nil }},
		{"anyone to an external service", func(d *draft) { d.rule("stripe", "anyone: any", "") }},
		{"anyone to a tcp service", func(d *draft) { d.rule("ledger", "staff: all", "") }},
		{"an external service calls", func(d *draft) { d.rule("orders", "stripe: getOrder", "") }},
		{"a host that is not served", func(d *draft) { d.in.Service("web").Hosts = []string{"shop.exmaple"} }},
		{"routes of two services", func(d *draft) { d.service("cart", "mine GET /assets/cart"); d.rule("cart", "anyone: all", "") }},
		{"operations of one service", func(d *draft) { d.service("cart", "a GET /x/{id}", "b GET /x/{name}") }},
		{"guardrails that name nothing", func(d *draft) {
			d.guardrail("nobody", "wbe -> orders")
			d.guardrail("nowhere", "web -> oders")
			d.guardrail("nothing", "web -> orders.getOder")
			d.guardrail("no-zone", "web -> zone:pic")
			d.guardrail("empty-zone", "zone:pic -> orders")
			d.guardrail("nowhere-at-all", "* -> *.getOder")
		}},
		{"warnings", func(d *draft) { d.guardrail("frozen", "web -> orders") }},
		{"a condition that does not parse", func(d *draft) { d.rule("orders", "payments: getOrder", `path.id == `) }},
		{"an unknown name", func(d *draft) { d.rule("orders", "payments: getOrder", `path.id == "7" && calims.role == "x"`) }},
		{"a name on the second line", func(d *draft) { d.rule("orders", "payments: getOrder", "path.id == \"7\" &&\n  nope == 1") }},
		{"a parameter that one operation lacks", func(d *draft) { d.rule("orders", "partners: getOrder createOrder", `claims.x == 1 && path.id == "7"`) }},
		{"a parameter of another type", func(d *draft) {
			d.in.Service("orders").Operations[1].Params[0].Type = merlon.Integer
			d.rule("orders", "payments: getOrder", `path.id == "7"`)
		}},
		{"a parameter of two types", func(d *draft) {
			s := d.service("cart", "a GET /a?n", "b GET /b?n")
			s.Operations[0].Params[0].Type = merlon.Integer
			d.rule("cart", "web: a b", `query.n == 1`)
		}},
		{"a query parameter misspelled", func(d *draft) { d.rule("orders", "payments: listOrders", `query.pages == "1"`) }},
		{"a condition that is no condition", func(d *draft) { d.rule("orders", "partners: createOrder", `claims.admin`) }},
		{"a number for a condition", func(d *draft) { d.rule("orders", "payments: getOrder", `1 + 1`) }},
		{"a loop within a loop", func(d *draft) {
			d.rule("orders", "partners: createOrder", `claims.a.exists(x, claims.b.exists(y, x == y))`)
		}},
		{"a condition too long", func(d *draft) {
			d.rule("orders", "payments: getOrder", `path.id == "`+strings.Repeat("x", maxCondition)+`"`)
		}},
		{"a condition too deep", func(d *draft) {
			d.rule("orders", "payments: getOrder", strings.Repeat("!(", 40)+"true"+strings.Repeat(")", 40))
		}},
		{"a pattern", func(d *draft) { d.rule("orders", "payments: getOrder", `path.id.matches("^[0-9]+$")`) }},
		{"a time zone", func(d *draft) { d.rule("orders", "payments: getOrder", `now.getHours("Europe/Berlin") > 8`) }},
		{"text glued together", func(d *draft) { d.rule("orders", "payments: getOrder", `path.id + "x" == "7x"`) }},
		{"all parameters at once", func(d *draft) { d.rule("orders", "payments: getOrder", `path == path`) }},
		{"something about the caller", func(d *draft) { d.rule("orders", "payments: getOrder", `caller.kind == "login"`) }},
		{"a variable that hides", func(d *draft) { d.rule("orders", "partners: createOrder", `claims.list.exists(path, path.id == "7")`) }},
		{"has of a path parameter", func(d *draft) { d.rule("orders", "payments: getOrder", `has(path.id)`) }},
		{"a map", func(d *draft) { d.rule("orders", "payments: getOrder", `{"a": 1}["a"] == 1`) }},
		{"a leading dot", func(d *draft) { d.rule("orders", "payments: getOrder", `.claims == claims`) }},
		{"claims of a service", func(d *draft) { d.rule("orders", "payments: getOrder", `claims.role == "support"`) }},
		{"tests that do not hold", func(d *draft) {
			d.test("web -> orders.createOrder", merlon.Deny)
			d.test("payments -> orders.getOrder", merlon.Allow)
			d.test("staff -> orders.listOrders", merlon.Allow)
			d.test("web -> orders GET /order/7", merlon.Allow)
			d.test("anyone -> GET https://shop.example/orders/7", merlon.Allow)
			d.test("anyone -> GET https://other.example/", merlon.Allow)
			d.rule("orders", "payments: getOrder", `path.id == "7"`)
			d.test("payments -> orders.getOrder", merlon.Allow)
			d.test("web -> orders GET //orders", merlon.Deny)
			d.test("web -> orders.getOrder", merlon.Pass)
		}},
		{"tests in shadow mode", func(d *draft) {
			d.in.Service("orders").Mode = merlon.Shadow
			d.test("payments -> orders.getOrder", merlon.Deny)
			d.test("payments -> orders.getOrder", merlon.Allow)
		}},
	} {
		d := shop(t)
		test.make(d)
		p, ds := Compile(d.in)
		if (p == nil) != ds.Failed() {
			t.Errorf("%s: policy %v with %v", test.name, p, ds)
		}
		if p != nil {
			ds = append(ds, p.Test()...)
		}
		if len(ds) == 0 {
			t.Errorf("%s: nothing is wrong", test.name)
		}
		fmt.Fprintf(&b, "# %s\n%s\n", test.name, render(ds))
	}
	golden(t, "testdata/diagnostics.txt", b.String())
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o666); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; run with -update and read the difference\n%s", name, got)
	}
}

// TestDiagnosticsAreCapped: a thousand mistakes are a hundred diagnostics, and
// warnings do not hide errors.
func TestDiagnosticsAreCapped(t *testing.T) {
	t.Parallel()
	d := newDraft(t)
	d.service("web", "home GET /")
	for range 300 {
		d.rule("web", "nobody: home", "")
	}
	p, ds := Compile(d.in)
	if p != nil || len(ds) != maxDiagnostics || !ds.Failed() {
		t.Errorf("%d diagnostics", len(ds))
	}
	var names []string
	for i := range 300 {
		names = append(names, fmt.Sprint("l", i))
	}
	d = newDraft(t).gateway("a.example", names...)
	d.service("web", "home GET /")
	d.rule("web", "nobody: home", "")
	if _, ds := Compile(d.in); len(ds) != maxDiagnostics || !ds.Failed() {
		t.Errorf("%d diagnostics, failed %v: warnings hide the error", len(ds), ds.Failed())
	}
}

// TestConditionPosition: the column is that of the mistake within the text.
func TestConditionPosition(t *testing.T) {
	t.Parallel()
	d := shop(t)
	r := d.rule("orders", "payments: getOrder", `path.id == "7" && nope == 1`)
	_, ds := Compile(d.in)
	want := r.WhenPos
	want.Column += strings.Index(r.When, "nope")
	if len(ds) != 1 || ds[0].Pos != want || ds[0].Width != len("nope") {
		t.Errorf("got %s, want %v", render(ds), want)
	}
}

func TestCompileNil(t *testing.T) {
	t.Parallel()
	if p, ds := Compile(nil); p != nil || !ds.Failed() {
		t.Errorf("got %v, %v", p, ds)
	}
	p, ds := Compile(&merlon.Intent{})
	if p == nil || len(ds) > 0 {
		t.Errorf("an empty intent: %v", ds)
	}
}
