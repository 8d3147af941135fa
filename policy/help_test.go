package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"merlon"
	"merlon/contract/route"
)

// draft builds intents for tests: rules at the positions of a made-up file.
type draft struct {
	t    testing.TB
	in   *merlon.Intent
	line int
}

func newDraft(t testing.TB) *draft {
	return &draft{t: t, in: &merlon.Intent{TrustDomain: "shop.example"}}
}

func (d *draft) pos() merlon.Pos {
	d.line++
	return merlon.Pos{File: "shop.merlon.yaml", Line: d.line, Column: 5}
}

// gateway adds a gateway for hosts, with logins.
func (d *draft) gateway(hosts string, logins ...string) *draft {
	d.in.Gateway = &merlon.Gateway{Pos: d.pos(), Hosts: strings.Fields(hosts)}
	for _, name := range logins {
		d.in.Gateway.Logins = append(d.in.Gateway.Logins, merlon.LoginRule{Name: name, Pos: d.pos(),
			Issuer: "https://id.example", Audience: "shop", KeySet: "https://id.example/keys", Algorithms: []string{"ES256"}})
	}
	return d
}

// service adds a service with operations such as "getOrder GET /orders/{id}".
func (d *draft) service(name string, operations ...string) *merlon.Service {
	s := merlon.Service{Name: name, Pos: d.pos(), Addresses: []string{"127.0.0.1:1"}}
	for _, text := range operations {
		op, line, _ := strings.Cut(text, " ")
		parsed, err := route.ParseInline(line)
		if err != nil {
			d.t.Fatal(err)
		}
		parsed.Name, parsed.Pos = op, d.pos()
		s.Operations = append(s.Operations, parsed)
	}
	slices.SortFunc(s.Operations, func(a, b merlon.Operation) int { return strings.Compare(a.Name, b.Name) })
	d.in.Services = append(d.in.Services, s)
	slices.SortFunc(d.in.Services, func(a, b merlon.Service) int { return strings.Compare(a.Name, b.Name) })
	return d.in.Service(name)
}

// rule adds a rule such as "web: createOrder getOrder" or "web: all" to a service.
func (d *draft) rule(service, text, when string) *merlon.Rule {
	s := d.in.Service(service)
	caller, operations, _ := strings.Cut(text, ":")
	r := merlon.Rule{Caller: caller, Pos: d.pos(), Operations: strings.Fields(operations), When: when}
	if when != "" {
		r.WhenPos = d.pos()
		r.WhenPos.Column = 12
	}
	if len(r.Operations) == 1 && r.Operations[0] == "all" {
		r.All, r.Operations = true, operationNames(s)
	}
	s.Rules = append(s.Rules, r)
	return &s.Rules[len(s.Rules)-1]
}

// guardrail adds a guardrail such as "* -> orders.createOrder".
func (d *draft) guardrail(name, text string) *merlon.Guardrail {
	caller, callee, _ := strings.Cut(text, " -> ")
	callee, operation, _ := strings.Cut(callee, ".")
	d.in.Guardrails = append(d.in.Guardrails, merlon.Guardrail{Name: name, Pos: d.pos(),
		Deny: merlon.Edges{Caller: caller, Callee: callee, Operation: operation}})
	return &d.in.Guardrails[len(d.in.Guardrails)-1]
}

// compile compiles what must be right.
func (d *draft) compile() *Policy {
	d.t.Helper()
	p, ds := Compile(d.in)
	if ds.Failed() {
		d.t.Fatalf("compile: %s", render(ds))
	}
	return p
}

// render writes diagnostics for comparison.
func render(ds merlon.Diagnostics) string {
	var b strings.Builder
	for _, d := range ds {
		fmt.Fprintf(&b, "%v: %s [%s]\n", d.Pos, d.Message, d.Code)
		if d.Hint != "" {
			fmt.Fprintf(&b, "  hint: %s\n", d.Hint)
		}
		for _, also := range d.Also {
			fmt.Fprintf(&b, "  also: %v\n", also)
		}
	}
	return b.String()
}

// shop is the intent of most tests.
func shop(t testing.TB) *draft {
	d := newDraft(t).gateway("shop.example", "partners", "staff")
	d.service("web", "home GET /", "asset GET /assets/{rest...}")
	d.service("orders", "createOrder POST /orders", "getOrder GET /orders/{id}", "listOrders GET /orders?status&page",
		"mine GET /orders/mine")
	d.service("payments", "Charge POST /charge", "Refund POST /refund").Zone = "pci"
	d.service("stripe", "any * /{rest...}", "root * /").External = true
	d.service("ledger").Protocol = merlon.TCP
	d.rule("web", "anyone: all", "")
	d.rule("orders", "web: createOrder getOrder", "")
	d.rule("orders", "staff: listOrders", `claims.role == "support"`)
	d.rule("payments", "orders: Charge", "")
	d.rule("stripe", "payments: all", "")
	d.rule("ledger", "payments: all", "")
	return d
}

func workload(name string) merlon.Caller {
	return merlon.Caller{Kind: merlon.Workload, Name: name, Subject: "spiffe://shop.example/" + name}
}

func login(name string, claims map[string]any) merlon.Caller {
	return merlon.Caller{Kind: merlon.Login, Name: name, Subject: "ann", Claims: claims, Client: "192.0.2.1"}
}

func anyone() merlon.Caller { return merlon.Caller{Kind: merlon.Anyone, Client: "192.0.2.1"} }

// clone copies an intent, down to its rules.
func clone(t testing.TB, in *merlon.Intent) *merlon.Intent {
	t.Helper()
	out := *in
	out.Guardrails = slices.Clone(in.Guardrails)
	out.Services = slices.Clone(in.Services)
	for i := range out.Services {
		out.Services[i].Rules = slices.Clone(out.Services[i].Rules)
	}
	return &out
}

// test adds a test of the intent, such as "web -> orders GET /orders".
func (d *draft) test(call string, expect merlon.Effect) *merlon.Test {
	fields := strings.Fields(call)
	t := merlon.Test{Pos: d.pos(), Expect: expect}
	t.Call.Caller = fields[0]
	switch {
	case len(fields) == 3:
		t.Call.Callee, t.Call.Operation, _ = strings.Cut(fields[2], ".")
	case strings.Contains(fields[3], "://"):
		t.Method, t.Path = fields[2], fields[3]
	default:
		t.Call.Callee, t.Method, t.Path = fields[2], fields[3], fields[4]
	}
	d.in.Tests = append(d.in.Tests, t)
	return &d.in.Tests[len(d.in.Tests)-1]
}
