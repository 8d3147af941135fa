package policy

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"merlon"
)

func TestExplain(t *testing.T) {
	t.Parallel()
	d := shop(t)
	d.rule("orders", "partners: createOrder", `has(claims.org) && (claims.org == "acme" || claims.org == "it''s") && path == path`).When =
		`has(claims.org) && (claims.org == "acme" || claims.org == "it's") && caller.client != ""`
	d.guardrail("cards stay inside", "anyone -> zone:pci").Because = "PCI DSS 1.4"
	p := d.compile()
	for name, test := range map[string]struct {
		call    merlon.Call
		why     string
		nearest string
		say     string // of all changes
		line    string
		advice  string
	}{
		"allowed": {
			merlon.Call{Caller: workload("web"), Service: "orders", Operation: "createOrder"},
			"orders: web lets web call orders.createOrder", "orders: web", "", "", "",
		},
		"another operation of a known caller": {
			merlon.Call{Caller: workload("web"), Service: "orders", Operation: "listOrders"},
			"no rule lets web call orders.listOrders", "orders: web",
			"add listOrders to the operations of web", "web: [createOrder, getOrder, listOrders]", "",
		},
		"another caller": {
			merlon.Call{Caller: workload("payments"), Service: "orders", Operation: "getOrder"},
			"no rule lets payments call orders.getOrder", "orders: web",
			"add payments to the callers of orders.getOrder", "payments: [getOrder]", "",
		},
		"a known caller with a condition": {
			merlon.Call{Caller: login("staff", nil), Service: "orders", Operation: "mine"},
			"no rule lets staff call orders.mine", "orders: staff", "add mine to the operations of staff",
			`staff: [{operations: [listOrders], when: 'claims.role == "support"'}, {operations: [mine]}]`, "",
		},
		"nobody in particular, where a login may": {
			merlon.Call{Caller: anyone(), Service: "orders", Operation: "listOrders"},
			"no rule lets anyone call orders.listOrders", "orders: staff", "add anyone to the callers of orders.listOrders",
			"anyone: [listOrders]", `send a token of login "staff"`,
		},
		"a condition": {
			merlon.Call{Caller: login("partners", map[string]any{"org": "other"}), Service: "orders", Operation: "createOrder"},
			`the condition of orders: partners is not met: (claims.org == "acme" || claims.org == "it's")`, "orders: partners",
			"drop what is not met from the condition, or meet it",
			`partners: {operations: [createOrder], when: 'has(claims.org) && caller.client != ""'}`, "",
		},
		"the whole condition": {
			merlon.Call{Caller: login("staff", nil), Service: "orders", Operation: "listOrders"},
			`the condition of orders: staff is not met: claims.role == "support"`, "orders: staff",
			"drop what is not met from the condition, or meet it", "staff: [listOrders]", "",
		},
		"a guardrail, and no rule": {
			merlon.Call{Caller: anyone(), Service: "payments", Operation: "Charge"},
			`guardrail "cards stay inside" denies anyone -> zone:pci: PCI DSS 1.4`, "payments: orders",
			`narrow or remove guardrail "cards stay inside", which owners of services cannot lift; add anyone to the callers of payments.Charge`,
			"; anyone: [Charge]", "",
		},
		"nobody": {
			merlon.Call{Service: "orders", Operation: "createOrder"},
			"the caller is not identified", "", "", "", "call through the gate of a service, or through the gateway",
		},
		"no such service": {
			merlon.Call{Caller: workload("web"), Service: "order"},
			`there is no service "order"`, "", "", "", `did you mean "orders"?`,
		},
		"no such host": {
			merlon.Call{Caller: anyone(), Host: "shop.exampel", Method: "GET", Path: "/"},
			`the gateway does not serve host "shop.exampel"`, "", "add the host to the gateway",
			"hosts: [shop.example, shop.exampel]", `did you mean "shop.example"?`,
		},
		"no such operation": {
			merlon.Call{Caller: workload("web"), Service: "orders", Operation: "createOrders"},
			`service "orders" has no operation "createOrders"`, "", "", "", `did you mean "createOrder"?`,
		},
		"another method": {
			merlon.Call{Caller: workload("web"), Service: "payments", Method: "GET", Path: "/charge"},
			`service "payments" has no operation for GET /charge`, "", "declare the operation in the contract of payments, or name it inline",
			"operations: {get_charge: GET /charge}", "did you mean POST? that is payments.Charge",
		},
		"another path": {
			merlon.Call{Caller: workload("web"), Service: "orders", Method: "GET", Path: "/order/7"},
			`service "orders" has no operation for GET /order/7`, "", "declare the operation in the contract of orders, or name it inline",
			"operations: {get_order_7: GET /order/7}",
			"nearest: orders.getOrder (GET /orders/{id}), orders.createOrder (POST /orders), orders.listOrders (GET /orders)",
		},
		"closed to the gateway": {
			merlon.Call{Caller: anyone(), Host: "shop.example", Method: "GET", Path: "/orders/7"},
			"orders.getOrder answers GET /orders/{id}, but no rule opens it to the gateway", "orders: web",
			"add anyone to the callers of orders.getOrder", "anyone: [getOrder]", "",
		},
		"nothing there at the gateway": {
			merlon.Call{Caller: anyone(), Host: "shop.example", Method: "GET", Path: "/asset/x.css"},
			"nothing at the gateway answers GET /asset/x.css on shop.example", "", "", "", "nearest: web.asset (GET /assets/{rest...})",
		},
		"a caller that does not exist": {
			merlon.Call{Caller: workload("wbe"), Service: "orders", Operation: "createOrder"},
			"no rule lets wbe call orders.createOrder", "", "", "", `"wbe" is no service of the intent; did you mean "web"?`,
		},
		"an external service calls": {
			merlon.Call{Caller: workload("stripe"), Service: "orders", Operation: "createOrder"},
			"no rule lets stripe call orders.createOrder", "", "", "", "an external service cannot call; who is outside comes in through the gateway",
		},
		"to an external service from outside": {
			merlon.Call{Caller: anyone(), Service: "stripe", Operation: "any"},
			"no rule lets anyone call stripe.any", "", "", "", "the gateway does not lead there; let a service of yours call it",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := p.Explain(&test.call)
			var say, line []string
			for _, c := range e.Changes {
				if c.Pos.IsZero() {
					t.Errorf("change %q has no place", c.Say)
				}
				say, line = append(say, c.Say), append(line, c.Line)
			}
			for _, pair := range [][3]string{{"why", e.Why, test.why}, {"nearest", e.Nearest, test.nearest}, {"say", strings.Join(say, "; "), test.say},
				{"line", strings.Join(line, "; "), test.line}, {"advice", e.Advice, test.advice}} {
				if pair[1] != pair[2] {
					t.Errorf("%s\n got %s\nwant %s", pair[0], pair[1], pair[2])
				}
			}
			if (e.Nearest == "") != e.NearestPos.IsZero() {
				t.Errorf("nearest %q is at %v", e.Nearest, e.NearestPos)
			}
		})
	}
}

func TestExplainZero(t *testing.T) {
	t.Parallel()
	call := &merlon.Call{Caller: workload("web"), Service: "orders"}
	for _, e := range []Explanation{(*Policy)(nil).Explain(call), new(Policy).Explain(call), shop(t).compile().Explain(nil)} {
		if e.Verdict.Effect != merlon.Deny || e.Why == "" || e.Changes != nil {
			t.Errorf("got %+v", e)
		}
	}
}

// TestExplainChangesAllow makes the changes that an explanation asks for and
// looks whether they do allow the call.
func TestExplainChangesAllow(t *testing.T) {
	t.Parallel()
	tried := map[merlon.Reason]int{}
	eachIntent(t, 5, func(t *testing.T, r *rand.Rand, in *merlon.Intent, p *Policy) {
		for range 40 {
			c := randomCall(r, p)
			e := p.Explain(&c)
			if e.Why == "" {
				t.Errorf("%+v: no why", c)
			}
			if e.Verdict.Reason != merlon.ReasonNoRule && e.Verdict.Reason != merlon.ReasonCondition && e.Verdict.Reason != merlon.ReasonGuardrail || len(e.Changes) == 0 {
				continue
			}
			changed := clone(t, in)
			for _, change := range e.Changes {
				apply(t, changed, c.Service, change)
			}
			next, ds := Compile(changed)
			if ds.Failed() {
				// A new opening at the gateway may collide with another service.
				if slices.ContainsFunc(ds, func(d merlon.Diagnostic) bool { return !d.Warning && d.Code != "E0306" && d.Code != "E0308" }) {
					t.Errorf("%+v\nchanges %+v\ndo not compile: %s", c, e.Changes, render(ds))
				}
				continue
			}
			tried[e.Verdict.Reason]++
			v := next.Decide(&c)
			if v.Effect != merlon.Allow || v.Shadow {
				t.Errorf("%+v\nis %s; with the changes %+v\nit is %+v", c, e.Verdict.Reason, e.Changes, v)
			}
		}
	})
	for _, reason := range []merlon.Reason{merlon.ReasonNoRule, merlon.ReasonCondition, merlon.ReasonGuardrail} {
		if tried[reason] < 40 {
			t.Errorf("only %d calls with reason %s", tried[reason], reason)
		}
	}
}

// apply makes one change of an intent.
func apply(t *testing.T, in *merlon.Intent, service string, change Change) {
	t.Helper()
	if change.Line == "" {
		in.Guardrails = slices.DeleteFunc(in.Guardrails, func(g merlon.Guardrail) bool { return g.Pos == change.Pos })
		return
	}
	s := in.Service(service)
	line := change.Line
	if rest, ok := strings.CutPrefix(line, "callers: {"); ok {
		line = strings.TrimSuffix(rest, "}")
	}
	var parsed map[string]any
	if err := yaml.Unmarshal([]byte(line), &parsed); err != nil || len(parsed) != 1 {
		t.Fatalf("%q is not one entry of YAML: %v", line, err)
	}
	for caller, value := range parsed {
		if change.Replace {
			s.Rules = slices.DeleteFunc(s.Rules, func(r merlon.Rule) bool { return r.Caller == caller })
		}
		sentences, _ := value.([]any)
		if len(sentences) == 0 || !isMap(sentences[0]) {
			sentences = []any{value}
		}
		for i, sentence := range sentences {
			r := merlon.Rule{Caller: caller, Pos: merlon.Pos{File: "new", Line: i + 1, Column: 1}}
			operations := sentence
			if m, ok := sentence.(map[string]any); ok {
				operations = m["operations"]
				r.When, _ = m["when"].(string)
				if m["mode"] == "shadow" {
					r.Mode = merlon.Shadow
				}
			}
			if r.All = operations == "all"; r.All {
				r.Operations = operationNames(s)
			} else {
				for _, name := range operations.([]any) {
					r.Operations = append(r.Operations, name.(string))
				}
			}
			s.Rules = append(s.Rules, r)
		}
	}
}

func isMap(v any) bool { _, ok := v.(map[string]any); return ok }
