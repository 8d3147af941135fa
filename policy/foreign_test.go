package policy

import (
	"strings"
	"testing"

	"merlon"
)

// TestForeignCallers: a workload of another trust domain is who its whole name
// says, and without a rule of its own it is denied, also where shadow mode lets
// ours pass.
func TestForeignCallers(t *testing.T) {
	t.Parallel()
	d := newDraft(t).gateway("shop.example", "staff")
	d.service("web", "page GET /page")
	d.service("orders", "get GET /orders", "pay POST /orders")
	d.rule("orders", "web: get", "")
	d.in.Federation = []merlon.Partner{{TrustDomain: "other.example", Bundle: "https://other.example/"}, {TrustDomain: "partner.example", Bundle: "https://partner.example/"}}
	d.in.Service("orders").Rules = append(d.in.Service("orders").Rules, merlon.Rule{Caller: "partner.example/ns/web", Operations: []string{"get"}})
	d.in.Service("orders").Mode = merlon.Shadow
	p := d.compile()
	for name, want := range map[string]merlon.Effect{
		"partner.example/ns/web":   merlon.Allow,
		"partner.example/web":      merlon.Deny,
		"partner.example/ns/web/x": merlon.Deny,
		"partner.example/ns":       merlon.Deny,
		"Partner.example/ns/web":   merlon.Deny,
		"other.example/ns/web":     merlon.Deny,
		"evil.example/ns/web":      merlon.Deny,
		"shop.example/web":         merlon.Deny,
	} {
		for _, place := range []*Policy{p, compiled(t, Scope(d.in, merlon.Place{Service: "orders"}))} {
			c := merlon.Call{Caller: merlon.Caller{Kind: merlon.Workload, Name: name}, Service: "orders", Operation: "get"}
			if v := place.Decide(&c); v.Effect != want || v.Shadow {
				t.Errorf("%s: %+v", name, v)
			}
			c.Operation = "pay"
			if v := place.Decide(&c); v.Effect != merlon.Deny || v.Shadow {
				t.Errorf("%s pays: %+v", name, v)
			}
			c.Caller.Kind = merlon.Login
			if v := place.Decide(&c); v.Effect != merlon.Deny {
				t.Errorf("a login named %s: %+v", name, v)
			}
			place.Explain(&c)
		}
	}
	part := Scope(d.in, merlon.Place{Service: "orders"})
	if f := part.Federation; len(f) != 1 || f[0].TrustDomain != "partner.example" || f[0].Bundle != "" {
		t.Errorf("the gate of orders knows %+v", f)
	}
	for _, place := range []merlon.Place{merlon.Edge, {Service: "web"}} {
		if f := Scope(d.in, place).Federation; len(f) > 0 {
			t.Errorf("%v knows %+v", place, f)
		}
	}
	c := p.Call(&merlon.Test{Call: merlon.Edges{Caller: "partner.example/x", Callee: "orders", Operation: "pay"}})
	if e := p.Explain(&c); len(e.Changes) != 1 || c.Caller.Subject != "spiffe://partner.example/x" {
		t.Errorf("%+v", e)
	}
	c.Caller.Name = "evil.example/x"
	if e := p.Explain(&c); !strings.Contains(e.Advice, "no trust domain of the federation") {
		t.Errorf("%+v", e)
	}

	// A guardrail for all covers them, too.
	d.in.Guardrails = []merlon.Guardrail{{Name: "closed", Deny: merlon.Edges{Caller: "*", Callee: "orders"}}}
	c = merlon.Call{Caller: merlon.Caller{Kind: merlon.Workload, Name: "partner.example/ns/web"}, Service: "orders", Operation: "get"}
	if v := compiled(t, *d.in).Decide(&c); v.Reason != merlon.ReasonGuardrail {
		t.Errorf("%+v", v)
	}

	d.in.Guardrails = nil
	rules := d.in.Service("orders").Rules
	rules[len(rules)-1].When = `claims.role == "x"`
	if _, ds := Compile(d.in); !ds.Failed() || ds[0].Code != "E0317" {
		t.Errorf("claims: %v", ds)
	}
	rules[len(rules)-1].When = ""

	d.in.Federation = d.in.Federation[:1]
	if _, ds := Compile(d.in); !ds.Failed() || ds[0].Code != "E0302" {
		t.Errorf("no partner: %v", ds)
	}
	d.in.Federation = []merlon.Partner{{TrustDomain: "partner.example"}}
	d.in.Service("orders").Protocol, d.in.Service("orders").External = merlon.HTTP, true
	if _, ds := Compile(d.in); !ds.Failed() || ds[0].Code != "E0305" {
		t.Errorf("external: %v", ds)
	}
}

func compiled(t *testing.T, in merlon.Intent) *Policy {
	t.Helper()
	p, ds := Compile(&in)
	if ds.Failed() {
		t.Fatal(ds)
	}
	return p
}
