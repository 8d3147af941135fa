package verify_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"merlon"
	"merlon/contract/route"
	"merlon/policy"
	"merlon/verify"
)

var (
	templates = []string{"GET /", "GET /a", "POST /a", "GET /a/{id}", "GET /a/b", "* /a/{id}/c", "GET /{x}", "GET /{x}/b", "GET /d/{rest...}", "PUT /d/x"}
	paths     = []string{"/", "/a", "/a/b", "/a/7", "/a/7/c", "/a/b/c", "/z", "/d/x", "/d/x/y", "/d/q"}
	methods   = []string{"GET", "POST", "PUT", "DELETE"}
	hosts     = []string{"a.example", "b.example"}
	callers   = []string{"s0", "s1", "s2", "l0", "l1", merlon.AnyCaller}
)

func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

// random makes an intent up; services have paths of their own at the gateway.
func random(r *rand.Rand) *merlon.Intent {
	in := &merlon.Intent{TrustDomain: "t.example", Gateway: &merlon.Gateway{Hosts: hosts,
		Logins: []merlon.LoginRule{{Name: "l0"}, {Name: "l1"}}}}
	if r.IntN(10) == 0 {
		in.Mode = merlon.Shadow
	}
	for i := range 3 {
		s := merlon.Service{Name: fmt.Sprint("s", i), Zone: pick(r, []string{"x", "y"})}
		if r.IntN(10) == 0 {
			s.Mode = merlon.Shadow
		}
		for _, host := range hosts {
			if r.IntN(2) == 0 {
				s.Hosts = append(s.Hosts, host)
			}
		}
		if r.IntN(10) == 0 {
			s.Protocol = merlon.TCP
		}
		for _, j := range r.Perm(len(templates))[:r.IntN(len(templates))] {
			method, path, _ := strings.Cut(templates[j], " ")
			op, err := route.ParseInline(method + " /" + s.Name + strings.TrimSuffix(path, "/"))
			if err != nil {
				panic(err)
			}
			op.Name = fmt.Sprint(pick(r, []string{"o", "p"}), j)
			if s.Protocol == merlon.HTTP {
				s.Operations = append(s.Operations, op)
			}
		}
		slices.SortFunc(s.Operations, func(a, b merlon.Operation) int { return strings.Compare(a.Name, b.Name) })
		for _, caller := range callers {
			rule := merlon.Rule{Caller: caller, Pos: merlon.Pos{File: "f", Line: r.IntN(1e6)}, When: pick(r, []string{"", "", `caller.client == ""`, `caller.client != ""`})}
			if r.IntN(5) == 0 {
				rule.Mode = merlon.Shadow
			}
			for _, op := range s.Operations {
				if r.IntN(2) == 0 {
					rule.Operations = append(rule.Operations, op.Name)
				}
			}
			rule.All = s.Protocol == merlon.TCP
			outside := !strings.HasPrefix(caller, "s")
			if r.IntN(2) == 0 && (len(rule.Operations) > 0 || rule.All && !outside) {
				s.Rules = append(s.Rules, rule)
			}
		}
		in.Services = append(in.Services, s)
	}
	if r.IntN(2) == 0 {
		in.Guardrails = []merlon.Guardrail{{Name: "g", Deny: merlon.Edges{Caller: pick(r, callers), Callee: pick(r, []string{"*", "s0", "s1"})}}}
	}
	return in
}

// mutate takes one service of another intent.
func mutate(r *rand.Rand, in *merlon.Intent) *merlon.Intent {
	other := random(r)
	i := r.IntN(len(in.Services))
	services := slices.Clone(in.Services)
	switch r.IntN(4) {
	case 0: // everything anew
		return other
	case 1: // the rules, as far as the operations are there
		services[i].Rules = nil
		for _, rule := range other.Services[i].Rules {
			rule.Operations = slices.DeleteFunc(slices.Clone(rule.Operations), func(name string) bool { return services[i].Operation(name) == nil })
			if len(rule.Operations) > 0 && services[i].Protocol == merlon.HTTP {
				rule.All = false
				services[i].Rules = append(services[i].Rules, rule)
			}
		}
	case 2:
		services[i] = other.Services[i]
	case 3:
		services[i].Hosts = other.Services[i].Hosts
	}
	out := *in
	out.Services = services
	if r.IntN(3) == 0 {
		out.Guardrails = other.Guardrails
	}
	return &out
}

// TestDiffMissesNothing asks both policies about calls made up: where the
// answers differ, Diff has said so.
func TestDiffMissesNothing(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(8, 9))
	widened, narrowed := 0, 0
	for range 600 {
		in := random(r)
		old, ds := policy.Compile(in)
		if ds.Failed() {
			continue
		}
		next := mutate(r, in)
		new, ds := policy.Compile(next)
		if ds.Failed() {
			continue
		}
		changes := verify.Diff(old, new)
		for range 150 {
			service, caller := fmt.Sprint("s", r.IntN(3)), pick(r, callers)
			path := "/" + service + strings.TrimSuffix(pick(r, paths), "/")
			test := merlon.Test{Call: merlon.Edges{Caller: caller, Callee: service}, Method: pick(r, methods), Path: path}
			if !strings.HasPrefix(caller, "s") {
				test.Call.Callee, test.Path = "", "https://"+pick(r, hosts)+path
			}
			client := pick(r, []string{"", "192.0.2.1"})
			var operations []string
			pass := func(p *policy.Policy) bool {
				c := p.Call(&test)
				if r := p.RouteService(service, test.Method, path, nil); r.Operation != nil {
					operations = append(operations, r.Operation.Name)
				}
				c.Caller.Client = client
				return p.Decide(&c).Effect == merlon.Allow
			}
			was, is := pass(old), pass(new)
			if was == is {
				continue
			}
			if is {
				widened++
			} else {
				narrowed++
			}
			said := slices.ContainsFunc(changes, func(c verify.Change) bool {
				about := (c.Service == service || c.Service == "") && (c.Caller == caller || c.Caller == "" || c.Caller == merlon.AnyCaller)
				if len(c.Operations) > 0 {
					about = about && slices.ContainsFunc(operations, func(o string) bool { return slices.Contains(c.Operations, o) })
				}
				switch c.Kind {
				case verify.Condition:
					return about
				case verify.Allowed, verify.Shadowed, verify.Exposed, verify.Unguarded:
					return about && is
				case verify.Refused, verify.Enforced, verify.Closed, verify.Guarded:
					return about && was
				}
				return false
			})
			if !said {
				a, _ := json.MarshalIndent(in, "", " ")
				b, _ := json.MarshalIndent(next, "", " ")
				t.Fatalf("%+v passed %v, passes %v, and that is not said in\n%v\nold %s\nnew %s", test, was, is, changes, a, b)
			}
		}
		for _, c := range changes {
			checkExample(t, c, old, new)
		}
		if changes := verify.Diff(old, old); len(changes) > 0 {
			t.Fatalf("a policy differs from itself: %v", changes)
		}
	}
	if widened < 500 || narrowed < 500 {
		t.Fatalf("only %d calls were allowed and %d refused", widened, narrowed)
	}
}

// checkExample holds the example of a change without condition to the two
// policies: it shows what the change says.
func checkExample(t *testing.T, c verify.Change, old, new *policy.Policy) {
	if c.Kind != verify.Allowed && c.Kind != verify.Refused || c.When != "" {
		return
	}
	if old.Intent().Service(c.Service).Protocol != new.Intent().Service(c.Service).Protocol {
		return // bytes take any request, and a request is no bytes
	}
	fields := strings.Fields(c.Example)
	test := merlon.Test{Call: merlon.Edges{Caller: fields[0]}}
	switch {
	case len(fields) == 3:
		test.Call.Callee = fields[2]
	case strings.Contains(fields[3], "://"):
		test.Method, test.Path = fields[2], fields[3]
	default:
		test.Call.Callee, test.Method, test.Path = fields[2], fields[3], fields[4]
	}
	reason := func(p *policy.Policy) bool {
		call := p.Call(&test)
		v := p.Decide(&call)
		return v.Reason == merlon.ReasonAllowed || v.Reason == merlon.ReasonCondition
	}
	if reason(old) == (c.Kind == verify.Allowed) || reason(new) == (c.Kind == verify.Refused) {
		a, b := test, test
		x, y := old.Call(&a), new.Call(&b)
		t.Errorf("the example does not show it: %v\nold %+v\nnew %+v", c, old.Decide(&x), new.Decide(&y))
	}
}

func TestDiffNil(t *testing.T) {
	t.Parallel()
	if c := verify.Diff(nil, nil); c != nil {
		t.Errorf("nothing differs from nothing: %v", c)
	}
	in := random(rand.New(rand.NewPCG(1, 1)))
	in.Guardrails, in.Mode = nil, merlon.Enforce
	p, ds := policy.Compile(in)
	if ds.Failed() {
		t.Fatal(ds)
	}
	up, down := verify.Diff(nil, p), verify.Diff(p, nil)
	if !verify.Widens(up) || verify.Widens(down) || len(down) == 0 {
		t.Errorf("from nothing %v, to nothing %v", up, down)
	}
}

// BenchmarkDiff compares intents of 1,000 services and 10,000 rules, one in
// ten of which differs.
func BenchmarkDiff(b *testing.B) {
	build := func(shift int) *policy.Policy {
		in := &merlon.Intent{TrustDomain: "t.example", Gateway: &merlon.Gateway{Hosts: hosts, Logins: []merlon.LoginRule{{Name: "staff"}}}}
		for i := range 1000 {
			s := merlon.Service{Name: fmt.Sprintf("s%04d", i), Hosts: hosts}
			for j := range 10 {
				s.Operations = append(s.Operations, merlon.Operation{Name: fmt.Sprint("o", j), Method: "GET", Path: fmt.Sprintf("/s%d/i%d/{id}", i, j)})
			}
			for j := range 10 {
				rule := merlon.Rule{Caller: fmt.Sprintf("s%04d", (i+j*97+1)%1000), Operations: []string{fmt.Sprint("o", j), fmt.Sprint("o", (j+1)%10), fmt.Sprint("o", (j+5)%10)}}
				if j == 9 {
					rule.Caller = "staff"
				}
				if i%10 == 0 {
					rule.Operations = rule.Operations[:3-shift]
				}
				s.Rules = append(s.Rules, rule)
			}
			in.Services = append(in.Services, s)
		}
		p, ds := policy.Compile(in)
		if ds.Failed() {
			b.Fatal(ds)
		}
		return p
	}
	old, new := build(0), build(1)
	for b.Loop() {
		if len(verify.Diff(old, new)) == 0 {
			b.Fatal("no difference")
		}
	}
}
