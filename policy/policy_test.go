package policy

import (
	"testing"

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
		"an external service, whole":       {workload("payments"), "stripe", "", merlon.Allow, merlon.ReasonAllowed, "stripe: payments"},
		"an external service, by another":  {workload("web"), "stripe", "", merlon.Deny, merlon.ReasonNoRule, ""},
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
