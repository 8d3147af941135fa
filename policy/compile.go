package policy

import (
	"fmt"
	"slices"
	"strings"

	"merlon"
)

// maxDiagnostics bounds what Compile and Test report.
const maxDiagnostics = 100

// Compile turns an intent into a policy. When the diagnostics fail the policy
// is nil, and a nil policy denies everything: a broken intent opens nothing.
// The policy keeps in, which must not change any more.
func Compile(in *merlon.Intent) (*Policy, merlon.Diagnostics) {
	if in == nil {
		return nil, merlon.Diagnostics{{Code: "E0300", Message: "there is no intent to compile"}}
	}
	c := &compiler{
		in:       in,
		services: make(map[string]*service, len(in.Services)),
		logins:   map[string]*merlon.LoginRule{},
	}
	c.names()
	for _, s := range c.order {
		c.service(s)
	}
	c.guardrails()
	c.unused()
	p := &Policy{intent: in, services: c.services, index: c.index(), hosts: c.edges()}
	ds := sortDiagnostics(c.ds)
	if ds.Failed() {
		return nil, ds
	}
	return p, ds
}

// index finds every operation by its names.
func (c *compiler) index() map[operationKey]*operation {
	n := 0
	for _, s := range c.order {
		n += len(s.ordered)
	}
	all := make(map[operationKey]*operation, n)
	for _, s := range c.order {
		for _, op := range s.ordered {
			all[operationKey{s.Name, op.Name}] = op
		}
	}
	return all
}

// compiler is the state of one Compile.
type compiler struct {
	in         *merlon.Intent
	services   map[string]*service
	order      []*service // in the order of the intent
	logins     map[string]*merlon.LoginRule
	usedLogins map[string]bool
	conditions conditions
	ds         merlon.Diagnostics
	errors     int
}

// add takes a diagnostic. Warnings never crowd out an error.
func (c *compiler) add(d merlon.Diagnostic) {
	if d.Warning {
		if len(c.ds)-c.errors < maxDiagnostics {
			c.ds = append(c.ds, d)
		}
		return
	}
	if c.errors++; c.errors <= maxDiagnostics {
		c.ds = append(c.ds, d)
	}
}

// names takes the names of services and logins, each once: a rule that says
// "web" must mean one thing.
func (c *compiler) names() {
	taken := map[string]merlon.Pos{}
	take := func(what, name string, pos merlon.Pos) bool {
		if reserved(name) {
			c.add(merlon.Diagnostic{Pos: pos, Width: len(name), Code: "E0304",
				Message: fmt.Sprintf("%s cannot be named %q", what, name),
				Hint:    "the word has a meaning of its own; choose another name"})
			return false
		}
		if first, ok := taken[name]; ok {
			c.add(merlon.Diagnostic{Pos: pos, Width: len(name), Code: "E0304", Also: []merlon.Pos{first},
				Message: fmt.Sprintf("the name %q of this %s is already taken at %v", name, what, first),
				Hint:    "services and logins share their names, because rules name both"})
			return false
		}
		taken[name] = pos
		return true
	}
	for i := range c.in.Services {
		s := &c.in.Services[i]
		if take("service", s.Name, s.Pos) {
			compiled := &service{Service: s}
			c.services[s.Name] = compiled
			c.order = append(c.order, compiled)
		}
	}
	if c.in.Gateway == nil {
		return
	}
	for i := range c.in.Gateway.Logins {
		l := &c.in.Gateway.Logins[i]
		if take("login", l.Name, l.Pos) {
			c.logins[l.Name] = l
		}
	}
}

// reserved reports whether name means something else where callers are named.
func reserved(name string) bool {
	return name == "" || name == merlon.AnyCaller || name == merlon.GatewayName ||
		name == everything || strings.HasPrefix(name, zonePrefix)
}

// service compiles the operations and the rules of s.
func (c *compiler) service(s *service) {
	shadow := c.in.Mode == merlon.Shadow || s.Mode == merlon.Shadow
	if of := merlon.ForeignDomain(s.Foreign); s.Foreign != "" && (!s.External || c.in.Partner(of) == nil || of == c.in.TrustDomain) {
		c.add(merlon.Diagnostic{Pos: s.Pos, Code: "E0302", Message: fmt.Sprintf("service %q is to prove to be %q, whose trust domain is no partner", s.Name, s.Foreign),
			Hint: "add its trust domain to the federation, and the service to those that are external"})
	}
	list := s.Operations
	s.opaque = opaque(s.Service)
	if s.opaque {
		list = []merlon.Operation{{Pos: s.Pos}}
	}
	s.operations = make(map[string]*operation, len(list))
	s.ordered = make([]*operation, 0, len(list))
	for i := range list {
		name := list[i].Name
		if first := s.operations[name]; first != nil || name == "" && !s.opaque {
			c.add(merlon.Diagnostic{Pos: list[i].Pos, Code: "E0303",
				Message: fmt.Sprintf("service %q has two operations %q, or one without a name", s.Name, name)})
			continue
		}
		denied := merlon.Verdict{Reason: merlon.ReasonNoRule, Pos: s.Pos}
		op := &operation{Operation: &list[i], service: s, noRule: shadowed(denied, shadow), noRuleEdge: denied}
		s.operations[name] = op
		s.ordered = append(s.ordered, op)
	}
	for i := range s.Rules {
		c.rule(s, &s.Rules[i], shadow)
	}
	for _, op := range s.ordered {
		if op.exposed {
			op.noRuleEdge = op.noRule
		}
	}
	c.route(s)
}

// opaque reports whether a service is called whole, having no operations.
func opaque(s *merlon.Service) bool { return s.Protocol == merlon.TCP && len(s.Operations) == 0 }

// shadowed is the verdict v of a denial, let pass when in shadow mode.
func shadowed(v merlon.Verdict, shadow bool) merlon.Verdict {
	if shadow {
		v.Effect, v.Shadow = merlon.Allow, true
	}
	return v
}

// rule compiles one rule and hangs it on the operations that it names.
func (c *compiler) rule(s *service, mr *merlon.Rule, shadow bool) {
	who, ok := c.party(s, mr)
	ops := c.ruleOperations(s, mr)
	if !ok {
		return
	}
	name := s.Name + ": " + mr.Caller
	r := &rule{Rule: mr, party: who,
		allowed: merlon.Verdict{Effect: merlon.Allow, Reason: merlon.ReasonAllowed, Pos: mr.Pos, Rule: name, Limit: mr.Limit}}
	if mr.When != "" {
		r.when = c.condition(mr, ops)
		refused := merlon.Verdict{Reason: merlon.ReasonCondition, Pos: mr.Pos, Rule: name}
		if !mr.WhenPos.IsZero() {
			refused.Pos = mr.WhenPos
		}
		r.refused = shadowed(refused, shadow || mr.Mode == merlon.Shadow)
		r.refused.Limit = limitOf(r.refused, mr.Limit)
	}
	s.rules = append(s.rules, r)
	for _, op := range ops {
		c.hang(op, r)
	}
}

// limitOf keeps the limit of a rule on calls that only shadow mode lets pass:
// what is merely watched must not be allowed more than what is allowed.
func limitOf(v merlon.Verdict, l *merlon.Limit) *merlon.Limit {
	if v.Effect == merlon.Allow {
		return l
	}
	return nil
}

// hang makes r decide about op for its caller, unless another rule does: which
// of two sentences decides must never depend on their order.
func (c *compiler) hang(op *operation, r *rule) {
	first := op.anyone
	if r.party.kind != merlon.Anyone {
		first = op.named(r.party)
	}
	if first != nil {
		if first.Rule == r.Rule {
			return // named twice in one list
		}
		c.add(merlon.Diagnostic{Pos: r.Pos, Width: len(r.Caller), Code: "E0301", Also: []merlon.Pos{first.Pos},
			Message: fmt.Sprintf("two rules let %q call %s: this one and the one at %v", r.Caller, op.full(), first.Pos),
			Hint:    "exactly one rule decides a call; join them, or leave the operation out of one"})
		return
	}
	if r.party.kind == merlon.Anyone {
		op.anyone = r
	} else {
		op.rules = append(op.rules, partyRule{r.party, r})
		op.reindex()
	}
	r.ops = append(r.ops, op)
	if r.party.kind != merlon.Workload {
		op.exposed = true
	}
}

// reindex keeps the index of an operation with many rules complete.
func (o *operation) reindex() {
	switch {
	case o.index != nil:
		last := o.rules[len(o.rules)-1]
		o.index[last.party] = last.rule
	case len(o.rules) > linearRules:
		o.index = make(map[party]*rule, len(o.rules))
		for _, r := range o.rules {
			o.index[r.party] = r.rule
		}
	}
}

// full is the name of the operation for people.
func (o *operation) full() string {
	if o.Name == "" {
		return o.service.Name
	}
	return o.service.Name + "." + o.Name
}

// party resolves the caller of a rule, and says when that caller can never come.
func (c *compiler) party(s *service, r *merlon.Rule) (party, bool) {
	d := merlon.Diagnostic{Pos: r.Pos, Width: len(r.Caller)}
	if caller := c.services[r.Caller]; caller != nil {
		if caller.External {
			d.Code = "E0305"
			d.Message = fmt.Sprintf("%q is an external service and cannot call", r.Caller)
			d.Hint = "who is outside comes in through the gateway, with a login"
			c.add(d)
			return party{}, false
		}
		return party{merlon.Workload, r.Caller}, true
	}
	if of := merlon.ForeignDomain(r.Caller); of != "" {
		return c.foreign(s, r, of)
	}
	who := party{merlon.Login, r.Caller}
	if r.Caller == merlon.AnyCaller {
		who = party{kind: merlon.Anyone}
	} else if c.logins[r.Caller] == nil {
		d.Code = "E0302"
		d.Message = fmt.Sprintf("rule of %q names caller %q, which is no service and no login", s.Name, r.Caller)
		d.Hint = suggest(r.Caller, c.callerNames())
		c.add(d)
		return party{}, false
	} else {
		if c.usedLogins == nil {
			c.usedLogins = map[string]bool{}
		}
		c.usedLogins[r.Caller] = true
	}
	d.Code = "E0305"
	switch {
	case c.in.Gateway == nil:
		d.Message = fmt.Sprintf("%q can reach %q only through a gateway, and there is none", r.Caller, s.Name)
		d.Hint = "add a gateway, or remove the rule"
	case s.External:
		d.Message = fmt.Sprintf("%q cannot reach the external service %q through the gateway", r.Caller, s.Name)
		d.Hint = "the gateway leads to your own services only"
	case s.Protocol == merlon.TCP:
		d.Message = fmt.Sprintf("%q cannot reach %q through the gateway, because it speaks tcp", r.Caller, s.Name)
		d.Hint = "the gateway answers HTTP; let a service call it"
	default:
		return who, true
	}
	c.add(d)
	return party{}, false
}

// foreign resolves a caller of another trust domain. Its name has a slash, so
// that no service or login can have it.
func (c *compiler) foreign(s *service, r *merlon.Rule, of string) (party, bool) {
	d := merlon.Diagnostic{Pos: r.Pos, Width: len(r.Caller), Code: "E0305"}
	switch {
	case c.in.Partner(of) == nil || of == c.in.TrustDomain:
		d.Code = "E0302"
		d.Message = fmt.Sprintf("rule of %q names caller %q, whose trust domain is no partner", s.Name, r.Caller)
		d.Hint = "add " + of + " to the federation"
	case s.External:
		d.Message = fmt.Sprintf("%q cannot reach the external service %q", r.Caller, s.Name)
		d.Hint = "a workload of another trust domain reaches your own services only"
	case s.Protocol == merlon.TCP:
		d.Message = fmt.Sprintf("%q cannot reach %q, because it speaks tcp", r.Caller, s.Name)
		d.Hint = "bytes travel between gates of one trust domain; let a service of yours call it"
	default:
		return party{merlon.Workload, r.Caller}, true
	}
	c.add(d)
	return party{}, false
}

// ruleOperations finds the operations that a rule names. Those of a rule
// written as "all" are all there are.
func (c *compiler) ruleOperations(s *service, r *merlon.Rule) []*operation {
	if r.All {
		return s.ordered
	}
	ops := make([]*operation, 0, len(r.Operations))
	for _, name := range r.Operations {
		op := s.operations[name]
		if op == nil || op.Name == "" {
			c.add(merlon.Diagnostic{Pos: r.Pos, Width: len(r.Caller), Code: "E0303",
				Message: fmt.Sprintf("the rule for %q names operation %q, which service %q does not have", r.Caller, name, s.Name),
				Hint:    suggest(name, operationNames(s.Service))})
			continue
		}
		if !slices.Contains(ops, op) {
			ops = append(ops, op)
		}
	}
	return ops
}

// unused warns of what is written and does nothing: a login that no rule lets
// in, and a rule that guardrails deny wholly.
func (c *compiler) unused() {
	if c.in.Gateway != nil {
		for _, l := range c.in.Gateway.Logins {
			if c.logins[l.Name] != nil && !c.usedLogins[l.Name] && !c.openToAnyone() {
				c.add(merlon.Diagnostic{Pos: l.Pos, Width: len(l.Name), Code: "W0301", Warning: true,
					Message: fmt.Sprintf("no rule lets login %q call anything", l.Name),
					Hint:    fmt.Sprintf("name %q among the callers of a service", l.Name)})
			}
		}
	}
	for _, s := range c.order {
		for _, r := range s.rules {
			c.deadRule(r)
		}
	}
}

func (c *compiler) openToAnyone() bool {
	for _, s := range c.order {
		for _, r := range s.rules {
			if r.party.kind == merlon.Anyone {
				return true
			}
		}
	}
	return false
}

// deadRule warns when guardrails deny every call that a rule allows.
func (c *compiler) deadRule(r *rule) {
	var g *guard
	for _, op := range r.ops {
		if op.guards == nil {
			return
		}
		if g = op.guards.first(r.party); g == nil {
			return
		}
	}
	if g != nil {
		c.add(merlon.Diagnostic{Pos: r.Pos, Width: len(r.Caller), Code: "W0302", Warning: true, Also: []merlon.Pos{g.Pos},
			Message: fmt.Sprintf("guardrail %q at %v denies every call that this rule allows", g.Name, g.Pos),
			Hint:    "remove the rule, or ask the owner of the guardrail"})
	}
}
