package policy

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"merlon"
)

// rounds is how many intents each property is tried on.
const rounds = 700

// eachIntent tries a property on many intents that compile.
func eachIntent(t *testing.T, seed uint64, property func(t *testing.T, r *rand.Rand, in *merlon.Intent, p *Policy)) {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, 7))
	good := 0
	for range rounds {
		in := randomIntent(random)
		p, ds := Compile(in)
		if ds.Failed() {
			if p != nil {
				t.Fatal("a broken intent gave a policy")
			}
			continue
		}
		good++
		if property(t, random, in, p); t.Failed() {
			text, _ := json.MarshalIndent(in, "", " ")
			t.Fatalf("with the intent %s", text)
		}
	}
	if good < rounds/5 {
		t.Fatalf("only %d of %d intents compile: the generator is broken", good, rounds)
	}
}

// randomCall is a call as a gate builds it, or one that no gate would build.
func randomCall(r *rand.Rand, p *Policy) merlon.Call {
	c := merlon.Call{Caller: randomCaller(r), Service: pick(r, testNames), Method: pick(r, testMethods), Path: pick(r, testCalls),
		Query: pick(r, testQueries), Host: pick(r, testHosts), Time: int64(r.IntN(3)) * 50000e9}
	if r.IntN(4) == 0 {
		c.Operation = pick(r, []string{"", "o0", "o1", "o9"})
		c.Params = nil
		return c
	}
	tries := 1
	if s := p.intent.Service(c.Service); s != nil && len(s.Rules) > 0 && r.IntN(2) == 0 {
		rule := pick(r, s.Rules)
		client, claims := c.Caller.Client, c.Caller.Claims
		c.Caller = p.caller(rule.Caller)
		c.Caller.Client, tries = client, 6
		if c.Caller.Kind != merlon.Workload {
			c.Caller.Claims = claims
		}
	}
	for range tries {
		route := p.RouteService(c.Service, c.Method, c.Path, nil)
		if route.Operation != nil {
			c.Operation, c.Params = route.Operation.Name, route.Params
			if p.Decide(&c).Reason != merlon.ReasonNoRule {
				break
			}
		}
		c.Method, c.Path = pick(r, testMethods), pick(r, testCalls)
		c.Operation, c.Params = "", nil
	}
	return c
}

func TestDecideReference(t *testing.T) {
	t.Parallel()
	seen := map[merlon.Reason]int{}
	eachIntent(t, 1, func(t *testing.T, r *rand.Rand, in *merlon.Intent, p *Policy) {
		for range 60 {
			c := randomCall(r, p)
			got := p.Decide(&c)
			effect, reason, pos := refDecide(in, &c)
			seen[reason]++
			if got.Effect != effect || got.Reason != reason || got.Pos != pos || got.Shadow != (effect == merlon.Allow && reason != merlon.ReasonAllowed) {
				t.Errorf("%+v\n got %+v\nwant %v %s %v", c, got, effect, reason, pos)
			}
		}
	})
	for _, reason := range []merlon.Reason{merlon.ReasonAllowed, merlon.ReasonNoRule, merlon.ReasonNoOperation, merlon.ReasonNoService,
		merlon.ReasonCondition, merlon.ReasonGuardrail, merlon.ReasonUnidentified} {
		if seen[reason] < 100 {
			t.Errorf("only %d calls with reason %s", seen[reason], reason)
		}
	}
}

// TestEdgeRoutesAsServices: what the gateway decides on is what the service
// will do. A request must not be one operation here and another one there.
func TestEdgeRoutesAsServices(t *testing.T) {
	t.Parallel()
	routed, refused := 0, 0
	eachIntent(t, 6, func(t *testing.T, r *rand.Rand, in *merlon.Intent, p *Policy) {
		for range 80 {
			host, method, path := pick(r, testHosts), pick(r, testMethods), pick(r, testCalls)
			route := p.RouteEdge(host, method, path, nil)
			if route.Operation == nil {
				if route.Service != nil {
					refused++
				}
				continue
			}
			routed++
			inner := p.RouteService(route.Service.Name, method, path, nil)
			if inner.Operation != route.Operation || !slices.Equal(inner.Params, route.Params) {
				t.Errorf("%s %s%s is %+v at the gateway and %+v at the service", method, host, path, route, inner)
			}
			if !p.services[route.Service.Name].operations[route.Operation.Name].exposed {
				t.Errorf("%s %s%s leads to %s, which no rule opens", method, host, path, route.Operation.Name)
			}
		}
	})
	if routed < 500 || refused < 20 {
		t.Errorf("only %d requests were routed, and %d were refused because the service takes them otherwise", routed, refused)
	}
}

// same reports whether two verdicts let the same pass in the same way.
func same(a, b merlon.Verdict) bool {
	if a.Effect != b.Effect || a.Shadow != b.Shadow {
		return false
	}
	return a.Effect == merlon.Deny || a == b
}

func TestScope(t *testing.T) {
	t.Parallel()
	allowed := 0
	eachIntent(t, 2, func(t *testing.T, r *rand.Rand, in *merlon.Intent, p *Policy) {
		scoper := NewScoper(in)
		for _, name := range []string{"", "s0", "s1", "s2", "s3", "s4"} {
			place := merlon.Place{Service: name}
			if s := in.Service(name); s != nil && s.External {
				continue
			}
			part := scoper.Scope(place)
			small, ds := Compile(&part)
			if ds.Failed() {
				t.Errorf("the part of %v does not compile: %s", place, render(ds))
				return
			}
			for range 60 {
				c := randomCall(r, p)
				c.Operation, c.Params = "", nil
				if place == merlon.Edge {
					comparePassing(t, place, c, p, small, &allowed, func(p *Policy) Route { return p.RouteEdge(c.Host, c.Method, c.Path, nil) })
					continue
				}
				if r.IntN(2) == 0 {
					c.Service = name // in
				} else {
					c.Caller = workload(name) // out
				}
				comparePassing(t, place, c, p, small, &allowed, func(p *Policy) Route { return p.RouteService(c.Service, c.Method, c.Path, nil) })
			}
		}
	})
	if allowed < 1000 {
		t.Errorf("only %d calls were allowed", allowed)
	}
}

func comparePassing(t *testing.T, place merlon.Place, c merlon.Call, whole, part *Policy, allowed *int, route func(*Policy) Route) {
	if place == merlon.Edge && c.Caller.Kind == merlon.Workload {
		return // does not pass
	}
	decide := func(p *Policy) (merlon.Call, merlon.Verdict) {
		call := c
		r := route(p)
		if r.Operation == nil {
			return call, merlon.Verdict{Reason: r.Reason}
		}
		call.Service, call.Operation, call.Params = r.Service.Name, r.Operation.Name, r.Params
		return call, p.Decide(&call)
	}
	wc, want := decide(whole)
	pc, got := decide(part)
	if want.Effect == merlon.Allow {
		*allowed++
		if wc.Service != pc.Service || wc.Operation != pc.Operation {
			t.Errorf("%v: %+v\nis %s.%s in the part, %s.%s in the whole", place, c, pc.Service, pc.Operation, wc.Service, wc.Operation)
		}
	}
	if !same(got, want) {
		t.Errorf("%v: %+v\n part %+v\nwhole %+v", place, c, got, want)
	}
}

// TestScopeHoldsNothingElse looks for what a place must not know.
func TestScopeHoldsNothingElse(t *testing.T) {
	t.Parallel()
	eachIntent(t, 3, func(t *testing.T, r *rand.Rand, in *merlon.Intent, p *Policy) {
		for i := range in.Services {
			own := &in.Services[i]
			if own.External {
				continue
			}
			part := Scope(in, merlon.Place{Service: own.Name})
			text, err := json.Marshal(part)
			if err != nil {
				t.Fatal(err)
			}
			known := []string{"secret-address-" + own.Name + ":", "", "secret-user-" + own.Name, ""}
			for j := range in.Services { // it dials whom it may call
				s := &in.Services[j]
				if in.Mode == merlon.Shadow || s.Mode == merlon.Shadow || slices.ContainsFunc(s.Rules, func(r merlon.Rule) bool { return r.Caller == own.Name }) {
					known = append(known, "secret-address-"+s.Name+":", "")
				}
			}
			bare := strings.NewReplacer(known...).Replace(string(text))
			if at := strings.Index(bare, "secret-"); at >= 0 {
				t.Errorf("%s knows %s", own.Name, bare[at:min(at+40, len(bare))])
			}
			for _, s := range part.Services {
				whole := in.Service(s.Name)
				shadow := in.Mode == merlon.Shadow || whole.Mode == merlon.Shadow || own.Mode == merlon.Shadow
				if s.Name == own.Name || shadow {
					continue
				}
				calls, called := false, false
				for _, rule := range own.Rules {
					calls = calls || rule.Caller == s.Name
				}
				for _, rule := range whole.Rules {
					called = called || rule.Caller == own.Name
				}
				if !calls && !called {
					t.Errorf("%s knows %s, which it neither calls nor is called by", own.Name, s.Name)
				}
				if !called && (len(s.Operations) > 0 || len(s.Rules) > 0) {
					t.Errorf("%s knows what %s offers, and may not call it", own.Name, s.Name)
				}
				for _, rule := range s.Rules {
					if rule.Caller != own.Name {
						t.Errorf("%s knows that %s may call %s", own.Name, rule.Caller, s.Name)
					}
				}
			}
		}
		edge := Scope(in, merlon.Edge)
		for _, s := range edge.Services {
			if s.Addresses != nil || s.Run != nil || s.Workload != nil || len(s.Rules) == 0 {
				t.Errorf("the gateway knows too much of %s", s.Name)
			}
			for _, rule := range s.Rules {
				if in.Service(rule.Caller) != nil {
					t.Errorf("the gateway knows that %s may call %s", rule.Caller, s.Name)
				}
			}
		}
	})
}

// TestEdgesAreAllAndOnly compares the edges with what Decide can allow.
func TestEdgesAreAllAndOnly(t *testing.T) {
	t.Parallel()
	eachIntent(t, 4, func(t *testing.T, r *rand.Rand, in *merlon.Intent, p *Policy) {
		edges := map[string]Edge{}
		for e := range p.Edges() {
			if _, twice := edges[e.String()]; twice {
				t.Errorf("%v is listed twice", e)
			}
			edges[e.String()] = e
		}
		for range 100 {
			c := randomCall(r, p)
			if p.services[c.Service] == nil || p.services[c.Service].operations[c.Operation] == nil || !identified(&c.Caller) {
				continue
			}
			x := explainer{c: &c}
			if c.Caller.Kind == merlon.Workload && in.Service(c.Caller.Name) == nil || c.Caller.Kind == merlon.Login && p.caller(c.Caller.Name).Kind != merlon.Login {
				continue // nobody of the intent
			}
			e, listed := edges[x.caller()+" -> "+x.callee()]
			v := p.Decide(&c)
			switch {
			case v.Reason == merlon.ReasonAllowed && (!listed || e.Rule.Pos != v.Pos):
				t.Errorf("%+v is allowed by %v and listed as %+v", c, v.Pos, e)
			case v.Reason == merlon.ReasonCondition && (!listed || e.Rule.When == ""):
				t.Errorf("%+v may be allowed and is listed as %+v", c, e)
			case (v.Reason == merlon.ReasonNoRule || v.Reason == merlon.ReasonGuardrail) && listed && e.Kind == c.Caller.Kind:
				t.Errorf("%+v is never allowed (%s), but listed", c, v.Reason)
			}
		}
	})
}
