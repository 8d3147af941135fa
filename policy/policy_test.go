package policy

import (
	"fmt"
	"testing"
	"time"

	"merlon"
)

func TestDecide(t *testing.T) {
	t.Parallel()
	d := shop(t)
	d.guardrail("no refunds from outside", "anyone -> payments")
	d.guardrail("web keeps away from payments", "web -> zone:pci")
	p := d.compile()
	support := map[string]any{"role": "support"}
	for name, test := range map[string]struct {
		caller             merlon.Caller
		service, operation string
		effect             merlon.Effect
		reason             merlon.Reason
		rule               string
	}{
		"a rule that names the service":    {workload("web"), "orders", "createOrder", merlon.Allow, merlon.ReasonAllowed, "orders: web"},
		"another operation":                {workload("web"), "orders", "listOrders", merlon.Deny, merlon.ReasonNoRule, ""},
		"another service":                  {workload("payments"), "orders", "createOrder", merlon.Deny, merlon.ReasonNoRule, ""},
		"an unknown service calls":         {workload("ghost"), "orders", "createOrder", merlon.Deny, merlon.ReasonNoRule, ""},
		"the gateway is no caller":         {workload("gateway"), "web", "home", merlon.Deny, merlon.ReasonNoRule, ""},
		"anyone":                           {anyone(), "web", "home", merlon.Allow, merlon.ReasonAllowed, "web: anyone"},
		"anyone covers logins":             {login("staff", nil), "web", "home", merlon.Allow, merlon.ReasonAllowed, "web: anyone"},
		"anyone does not cover services":   {workload("orders"), "web", "home", merlon.Deny, merlon.ReasonNoRule, ""},
		"anyone elsewhere":                 {anyone(), "orders", "createOrder", merlon.Deny, merlon.ReasonNoRule, ""},
		"a condition that holds":           {login("staff", support), "orders", "listOrders", merlon.Allow, merlon.ReasonAllowed, "orders: staff"},
		"a condition that does not":        {login("staff", map[string]any{"role": "guest"}), "orders", "listOrders", merlon.Deny, merlon.ReasonCondition, "orders: staff"},
		"a condition without its claim":    {login("staff", nil), "orders", "listOrders", merlon.Deny, merlon.ReasonCondition, "orders: staff"},
		"another login":                    {login("partners", support), "orders", "listOrders", merlon.Deny, merlon.ReasonNoRule, ""},
		"a login named like a service":     {login("web", nil), "orders", "createOrder", merlon.Deny, merlon.ReasonNoRule, ""},
		"a service named like a login":     {workload("staff"), "orders", "listOrders", merlon.Deny, merlon.ReasonNoRule, ""},
		"no service":                       {workload("web"), "order", "createOrder", merlon.Deny, merlon.ReasonNoService, ""},
		"no operation":                     {workload("web"), "orders", "create", merlon.Deny, merlon.ReasonNoOperation, ""},
		"no operation named":               {workload("web"), "orders", "", merlon.Deny, merlon.ReasonNoOperation, ""},
		"nobody":                           {merlon.Caller{Name: "web"}, "web", "home", merlon.Deny, merlon.ReasonUnidentified, ""},
		"a workload without a name":        {workload(""), "web", "home", merlon.Deny, merlon.ReasonUnidentified, ""},
		"a login without a name":           {login("", nil), "web", "home", merlon.Deny, merlon.ReasonUnidentified, ""},
		"a kind that does not exist":       {merlon.Caller{Kind: 9, Name: "web"}, "web", "home", merlon.Deny, merlon.ReasonUnidentified, ""},
		"a guardrail by caller and zone":   {workload("web"), "payments", "Charge", merlon.Deny, merlon.ReasonGuardrail, "web keeps away from payments"},
		"a guardrail covers logins":        {login("staff", nil), "payments", "Refund", merlon.Deny, merlon.ReasonGuardrail, "no refunds from outside"},
		"a guardrail spares others":        {workload("orders"), "payments", "Charge", merlon.Allow, merlon.ReasonAllowed, "payments: orders"},
		"an external service, whole":       {workload("payments"), "stripe", "any", merlon.Allow, merlon.ReasonAllowed, "stripe: payments"},
		"an external service, by another":  {workload("web"), "stripe", "any", merlon.Deny, merlon.ReasonNoRule, ""},
		"tcp, by identity":                 {workload("payments"), "ledger", "", merlon.Allow, merlon.ReasonAllowed, "ledger: payments"},
		"tcp knows no operations":          {workload("payments"), "ledger", "x", merlon.Deny, merlon.ReasonNoOperation, ""},
		"the name of an anyone is no name": {merlon.Caller{Kind: merlon.Anyone, Name: "staff", Claims: support}, "orders", "listOrders", merlon.Deny, merlon.ReasonNoRule, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := p.Decide(&merlon.Call{Caller: test.caller, Service: test.service, Operation: test.operation})
			if got.Effect != test.effect || got.Reason != test.reason || got.Rule != test.rule || got.Shadow {
				t.Errorf("got %+v, want %v %s %q", got, test.effect, test.reason, test.rule)
			}
			known := got.Reason != merlon.ReasonUnidentified && got.Reason != merlon.ReasonNoService
			if got.Pos.IsZero() == known {
				t.Errorf("position %q of %s", got.Pos, got.Reason)
			}
		})
	}
}

func TestDecideZero(t *testing.T) {
	t.Parallel()
	call := &merlon.Call{Caller: workload("web"), Service: "orders", Operation: "createOrder"}
	for name, v := range map[string]merlon.Verdict{
		"nil policy":  (*Policy)(nil).Decide(call),
		"zero policy": new(Policy).Decide(call),
		"nil call":    shop(t).compile().Decide(nil),
		"all nil":     (*Policy)(nil).Decide(nil),
		"zero call":   shop(t).compile().Decide(&merlon.Call{}),
	} {
		if v.Effect != merlon.Deny || v.Reason == "" || v.Shadow {
			t.Errorf("%s: %+v, want a denial with a reason", name, v)
		}
	}
	for name, p := range map[string]*Policy{"nil": nil, "zero": {}} {
		if r := p.RouteEdge("shop.example", "GET", "/", nil); r.Reason != merlon.ReasonNoService {
			t.Errorf("%s policy routes at the edge: %+v", name, r)
		}
		if r := p.RouteService("web", "GET", "/", nil); r.Reason != merlon.ReasonNoService {
			t.Errorf("%s policy routes: %+v", name, r)
		}
		if p.Intent() != nil {
			t.Errorf("%s policy has an intent", name)
		}
	}
}

// TestDecideManyCallers: an operation with many callers has an index.
func TestDecideManyCallers(t *testing.T) {
	t.Parallel()
	d := newDraft(t).gateway("shop.example", "staff")
	d.service("hub", "op GET /", "other GET /other")
	for i := range 3 * linearRules {
		d.service(fmt.Sprint("s", i), "x GET /x")
		d.rule("hub", fmt.Sprintf("s%d: op", i), "")
	}
	d.rule("hub", "staff: op", "")
	d.rule("hub", "anyone: op", "")
	p := d.compile()
	decide := func(caller merlon.Caller) merlon.Verdict {
		return p.Decide(&merlon.Call{Caller: caller, Service: "hub", Operation: "op"})
	}
	for i := range 3 * linearRules {
		name := fmt.Sprint("s", i)
		if v := decide(workload(name)); v.Rule != "hub: "+name {
			t.Errorf("%s: %+v", name, v)
		}
		if v := decide(login(name, nil)); v.Rule != "hub: anyone" {
			t.Errorf("login %s: %+v", name, v)
		}
	}
	if v := decide(workload("hub")); v.Reason != merlon.ReasonNoRule {
		t.Errorf("hub: %+v", v)
	}
	if v := decide(login("staff", nil)); v.Rule != "hub: staff" {
		t.Errorf("staff: %+v", v)
	}
	d.rule("hub", "s9: op", "")
	if _, ds := Compile(d.in); len(ds) != 1 || ds[0].Code != "E0301" {
		t.Errorf("a second rule for s9: %v", render(ds))
	}
}

func TestDecideLimit(t *testing.T) {
	t.Parallel()
	limit := &merlon.Limit{Count: 10, Window: time.Minute, Burst: 20, Per: merlon.PerCaller}
	d := shop(t)
	d.rule("orders", "partners: createOrder", `claims.org == "acme"`).Limit = limit
	p := d.compile()
	call := merlon.Call{Caller: login("partners", map[string]any{"org": "acme"}), Service: "orders", Operation: "createOrder"}
	if v := p.Decide(&call); v.Limit != limit {
		t.Errorf("allowed: %+v", v)
	}
	call.Caller.Claims = nil
	if v := p.Decide(&call); v.Effect != merlon.Deny || v.Limit != nil {
		t.Errorf("denied: %+v", v)
	}
	e := p.Explain(&call)
	want := "partners: {operations: [createOrder], limit: {rate: 10/m, burst: 20, per: caller}}"
	if len(e.Changes) != 1 || e.Changes[0].Line != want {
		t.Errorf("got %+v, want %s", e.Changes, want)
	}
	d.in.Service("orders").Mode = merlon.Shadow
	if v := d.compile().Decide(&call); v.Effect != merlon.Allow || !v.Shadow || v.Limit != limit {
		t.Errorf("in shadow mode: %+v, want the limit to hold", v)
	}
}

// TestCall reads a test as the gates read a request.
func TestCall(t *testing.T) {
	t.Parallel()
	p := shop(t).compile()
	for text, want := range map[string]string{
		"web -> orders.createOrder":                         "workload web orders.createOrder ",
		"web -> orders GET /orders/7?x=1":                   "workload web orders.getOrder /orders/7",
		"web -> orders GET /orders/mine":                    "workload web orders.mine /orders/mine",
		"staff -> GET https://shop.example:8443/assets/x?y": "login staff web.asset /assets/x",
		"anyone -> GET https://SHOP.example.":               "anyone  web.home /",
		"anyone -> GET http://shop.example?x":               "anyone  web.home /",
		"anyone -> GET https://[::1]:8443/":                 "anyone  . /",
		"web -> GET https://shop.example/":                  "workload web . /", // services do not come in there
		"payments -> ledger":                                "workload payments ledger. ",
		"ghost -> orders POST /orders":                      "workload ghost orders.createOrder /orders",
	} {
		d := newDraft(t)
		c := p.Call(d.test(text, merlon.Allow))
		if got := fmt.Sprintf("%v %s %s.%s %s", c.Caller.Kind, c.Caller.Name, c.Service, c.Operation, c.Path); got != want {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
	c := (*Policy)(nil).Call(&merlon.Test{Call: merlon.Edges{Caller: "web", Callee: "orders"}})
	if v := (*Policy)(nil).Decide(&c); v.Effect != merlon.Deny {
		t.Errorf("without a policy: %+v", v)
	}
	if (*Policy)(nil).Test() != nil {
		t.Error("no policy has tests")
	}
	for range (*Policy)(nil).Edges() {
		t.Error("no policy has edges")
	}
	for range p.Edges() {
		break // must not panic
	}
}

// TestScopeKeepsTelemetry: every place needs to know where its spans go, and
// how many traces are sampled.
func TestScopeKeepsTelemetry(t *testing.T) {
	t.Parallel()
	d := estate(t)
	d.in.Telemetry = &merlon.Telemetry{Traces: &merlon.Traces{Collector: "http://127.0.0.1:4318", Sample: 7}}
	for _, place := range []merlon.Place{merlon.Edge, {Service: "orders"}, {Service: "web"}} {
		if part := Scope(d.in, place); part.Telemetry != d.in.Telemetry {
			t.Errorf("the part of %v has %v", place, part.Telemetry)
		}
	}
}
