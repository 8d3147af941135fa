package policy

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"merlon"
	"merlon/contract/route"
)

// testCondition is a condition and, independently, what it means.
type testCondition struct {
	text  string
	needs string // the parameter that every operation must have
	holds func(c *merlon.Call) bool
}

var testConditions = []testCondition{
	{`claims.role == "support"`, "", func(c *merlon.Call) bool { return c.Caller.Claims["role"] == "support" }},
	{`has(claims.role) && claims.role != "guest"`, "", func(c *merlon.Call) bool {
		role, ok := c.Caller.Claims["role"]
		return ok && role != "guest"
	}},
	{`caller.name == "s1" || caller.client == "192.0.2.1"`, "", func(c *merlon.Call) bool {
		return c.Caller.Name == "s1" || c.Caller.Client == "192.0.2.1"
	}},
	{`path.id == "7"`, "id", func(c *merlon.Call) bool {
		return slices.ContainsFunc(c.Params, func(p merlon.Param) bool { return p.Name == "id" && (p.Value == "7" || p.Value == "%37") })
	}},
	{`query.q == "x"`, "?q", func(c *merlon.Call) bool { return c.Query == "q=x" || c.Query == "p=1&q=x" }},
	{`!has(query.q)`, "?q", func(c *merlon.Call) bool { return c.Query == "" || c.Query == "p=1" }},
	{`method == "GET" && now < timestamp("1970-01-02T00:00:00Z")`, "", func(c *merlon.Call) bool {
		return c.Method == "GET" && c.Time < 86400e9
	}},
}

var (
	testPaths   = []string{"/", "/a", "/a/b", "/a/{id}", "/{id}", "/{id}/b", "/a/{id}/c", "/a/b/{rest...}", "/c/{rest...}", "/a/x-{id}"}
	testCalls   = []string{"/", "/a", "/b", "/a/b", "/a/7", "/a/%37", "/a/x-7", "/a/7/c", "/a/b/c", "/a/b/c/d", "/7", "/7/b", "/c/1/2", "/c"}
	testMethods = []string{"GET", "POST", "*"}
	testQueries = []string{"", "q=x", "q=y", "q=x&q=x", "p=1", "p=1&q=x", "q", "q=x&Q=y", "q=%7", "q[]=x", "q=x;p=1"}
	testNames   = []string{"s0", "s1", "s2", "s3", "s4", "l0", "l1", "ghost", "gateway"}
	testHosts   = []string{"a.example", "b.example"}
)

func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

// some is each element with probability one in n.
func some[T any](r *rand.Rand, n int, list []T) []T {
	var out []T
	for _, v := range list {
		if r.IntN(n) == 0 {
			out = append(out, v)
		}
	}
	return out
}

// randomIntent makes an intent up. It may be one that does not compile.
func randomIntent(r *rand.Rand) *merlon.Intent {
	line := 0
	pos := func() merlon.Pos { line++; return merlon.Pos{File: "merlon.yaml", Line: line, Column: 3} }
	mode := func(n int) merlon.Mode {
		if r.IntN(n) == 0 {
			return merlon.Shadow
		}
		return merlon.Enforce
	}
	in := &merlon.Intent{TrustDomain: "t.example", Mode: mode(8)}
	callers := []string{"s0", "s1", "s2", "s3", "s4"}
	if r.IntN(5) > 0 {
		in.Gateway = &merlon.Gateway{Pos: pos(), Hosts: testHosts, Listen: "secret-listen:1"}
		for _, name := range []string{"l0", "l1"} {
			in.Gateway.Logins = append(in.Gateway.Logins, merlon.LoginRule{Name: name, Pos: pos(), Issuer: "secret-issuer", Keys: "secret-keys"})
		}
		callers = append(callers, "l0", "l1", merlon.AnyCaller, merlon.AnyCaller)
	}
	for i := range 5 {
		s := merlon.Service{Name: fmt.Sprint("s", i), Pos: pos(), Mode: mode(8), Zone: pick(r, []string{"", "", "x", "y"}),
			Addresses: []string{fmt.Sprintf("secret-address-s%d:1", i)}, Run: &merlon.Run{Command: []string{"secret-command"}},
			Workload: &merlon.WorkloadRule{UnixUser: fmt.Sprintf("secret-user-s%d", i)}, Hosts: some(r, 2, testHosts)}
		if in.Gateway == nil {
			s.Hosts = nil
		}
		switch r.IntN(8) {
		case 0:
			s.Protocol = merlon.TCP
		case 1:
			s.External = true
		}
		if s.Protocol != merlon.TCP {
			s.Operations = randomOperations(r, pos)
		}
		in.Services = append(in.Services, s)
	}
	for i := range in.Services {
		randomRules(r, in, &in.Services[i], callers, pos, mode)
	}
	names := append(slices.Clone(callers), "*", "zone:x", "zone:y")
	for range r.IntN(4) {
		g := merlon.Guardrail{Name: fmt.Sprint("g", line), Pos: pos(), Because: "secret-because",
			Deny: merlon.Edges{Caller: pick(r, names), Callee: pick(r, []string{"*", "s0", "s1", "s2", "zone:x", "zone:y"})}}
		if r.IntN(2) == 0 {
			g.Deny.Operation = pick(r, []string{"o0", "o1", "o2"})
		}
		in.Guardrails = append(in.Guardrails, g)
	}
	return in
}

func randomOperations(r *rand.Rand, pos func() merlon.Pos) []merlon.Operation {
	var ops []merlon.Operation
	for _, path := range some(r, 2, testPaths) {
		text := pick(r, testMethods) + " " + path
		if r.IntN(2) == 0 {
			text += "?q&p"
		}
		op, err := route.ParseInline(text)
		if err != nil {
			panic(err)
		}
		op.Name, op.Pos = fmt.Sprint("o", len(ops)), pos()
		ops = append(ops, op)
	}
	return ops
}

func randomRules(r *rand.Rand, in *merlon.Intent, s *merlon.Service, callers []string, pos func() merlon.Pos, mode func(int) merlon.Mode) {
	for _, caller := range slices.Compact(slices.Sorted(slices.Values(some(r, 3, callers)))) {
		if other := in.Service(caller); other != nil {
			if other.External {
				continue
			}
		} else if s.External || s.Protocol == merlon.TCP {
			continue
		}
		rule := merlon.Rule{Caller: caller, Pos: pos(), Mode: mode(6)}
		for _, op := range s.Operations {
			if r.IntN(2) == 0 {
				rule.Operations = append(rule.Operations, op.Name)
			}
		}
		if rule.All = r.IntN(4) == 0 || s.Protocol == merlon.TCP; rule.All {
			rule.Operations = operationNames(s)
		}
		if r.IntN(2) == 0 {
			cond := pick(r, testConditions)
			fits := cond.needs == "" || s.Protocol != merlon.TCP && len(rule.Operations) > 0
			for _, name := range rule.Operations {
				fits = fits && slices.ContainsFunc(s.Operation(name).Params, func(p merlon.ParamSpec) bool {
					return cond.needs == "" || cond.needs == "?q" && p.Name == "q" || p.Name == cond.needs
				}) || fits && cond.needs == ""
			}
			if fits && !(strings.Contains(cond.text, "claims") && in.Service(caller) != nil) {
				rule.When, rule.WhenPos = cond.text, pos()
			}
		}
		s.Rules = append(s.Rules, rule)
	}
}

// randomCaller makes up who calls; often somebody of the intent.
func randomCaller(r *rand.Rand) merlon.Caller {
	c := merlon.Caller{Kind: merlon.CallerKind(r.IntN(5)), Name: pick(r, testNames), Client: pick(r, []string{"", "192.0.2.1"})}
	if c.Kind != merlon.Workload {
		c.Claims = pick(r, []map[string]any{nil, {"role": "support"}, {"role": "guest"}, {"role": []any{"support"}}})
	}
	return c
}

// refDecide is the semantics read straight from the package comment.
func refDecide(in *merlon.Intent, c *merlon.Call) (effect merlon.Effect, reason merlon.Reason, pos merlon.Pos) {
	outside := c.Caller.Kind == merlon.Anyone || c.Caller.Kind == merlon.Login
	inside := c.Caller.Kind == merlon.Workload
	if !outside && !inside || c.Caller.Kind != merlon.Anyone && c.Caller.Name == "" {
		return merlon.Deny, merlon.ReasonUnidentified, pos
	}
	s := in.Service(c.Service)
	if s == nil {
		return merlon.Deny, merlon.ReasonNoService, pos
	}
	if s.Operation(c.Operation) == nil && (s.Protocol != merlon.TCP || c.Operation != "") {
		return merlon.Deny, merlon.ReasonNoOperation, s.Pos
	}
	for _, g := range in.Guardrails {
		if refCovers(in, &g.Deny, s, c) {
			return merlon.Deny, merlon.ReasonGuardrail, g.Pos
		}
	}
	isLogin := func(name string) bool {
		return in.Gateway != nil && slices.ContainsFunc(in.Gateway.Logins, func(l merlon.LoginRule) bool { return l.Name == name })
	}
	var deciding, anyone *merlon.Rule
	exposed := false
	for i := range s.Rules {
		r := &s.Rules[i]
		if !slices.Contains(r.Operations, c.Operation) && !r.All {
			continue
		}
		switch {
		case r.Caller == merlon.AnyCaller:
			anyone, exposed = r, true
		case isLogin(r.Caller):
			exposed = true
			if c.Caller.Kind == merlon.Login && c.Caller.Name == r.Caller {
				deciding = r
			}
		case inside && c.Caller.Name == r.Caller:
			deciding = r
		}
	}
	if deciding == nil && outside {
		deciding = anyone
	}
	shadow := in.Mode == merlon.Shadow || s.Mode == merlon.Shadow
	if deciding == nil {
		if shadow && (inside || exposed) {
			return merlon.Allow, merlon.ReasonNoRule, s.Pos
		}
		return merlon.Deny, merlon.ReasonNoRule, s.Pos
	}
	if deciding.When != "" {
		i := slices.IndexFunc(testConditions, func(t testCondition) bool { return t.text == deciding.When })
		if !testConditions[i].holds(c) {
			if shadow || deciding.Mode == merlon.Shadow {
				return merlon.Allow, merlon.ReasonCondition, deciding.WhenPos
			}
			return merlon.Deny, merlon.ReasonCondition, deciding.WhenPos
		}
	}
	return merlon.Allow, merlon.ReasonAllowed, deciding.Pos
}

func refCovers(in *merlon.Intent, e *merlon.Edges, s *merlon.Service, c *merlon.Call) bool {
	caller := false
	switch zone, isZone := strings.CutPrefix(e.Caller, "zone:"); {
	case e.Caller == "*":
		caller = true
	case e.Caller == merlon.AnyCaller:
		caller = c.Caller.Kind != merlon.Workload
	case isZone:
		from := in.Service(c.Caller.Name)
		caller = c.Caller.Kind == merlon.Workload && from != nil && from.Zone == zone
	default:
		kind := merlon.Login
		if in.Service(e.Caller) != nil {
			kind = merlon.Workload
		}
		caller = c.Caller.Kind == kind && c.Caller.Name == e.Caller
	}
	zone, isZone := strings.CutPrefix(e.Callee, "zone:")
	return caller && (e.Callee == "*" || e.Callee == s.Name || isZone && zone == s.Zone) &&
		(e.Operation == "" || e.Operation == c.Operation)
}
