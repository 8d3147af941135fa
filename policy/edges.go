package policy

import (
	"iter"

	"merlon"
)

// Edge is one possible call: Caller may call Operation of Service, if the
// condition of Rule allows it.
type Edge struct {
	Kind      merlon.CallerKind
	Caller    string // a service, a login, or merlon.AnyCaller
	Service   string
	Operation string // "" for a TCP service
	Rule      *merlon.Rule
	// Shadow says that the rule's condition is recorded and not enforced.
	Shadow bool
}

// String writes the edge as people do.
func (e Edge) String() string {
	if e.Operation == "" {
		return e.Caller + " -> " + e.Service
	}
	return e.Caller + " -> " + e.Service + "." + e.Operation
}

// Edges lists every call that a rule allows or, with a condition, may allow,
// and that no guardrail denies. A rule for anyone stands for anyone and for
// every login without a rule of its own. What passes only because a service or
// the estate is in shadow mode is not listed: that is every call inside.
func (p *Policy) Edges() iter.Seq[Edge] {
	return func(yield func(Edge) bool) {
		if p == nil || p.intent == nil {
			return
		}
		for i := range p.intent.Services {
			s := p.services[p.intent.Services[i].Name]
			for _, op := range s.ordered {
				if !p.edgesOf(op, yield) {
					return
				}
			}
		}
	}
}

func (p *Policy) edgesOf(op *operation, yield func(Edge) bool) bool {
	give := func(who party, r *rule) bool {
		if op.guards != nil && op.guards.first(who) != nil {
			return true
		}
		e := Edge{Kind: who.kind, Caller: who.name, Service: op.service.Name, Operation: op.Name, Rule: r.Rule, Shadow: r.refused.Shadow}
		if who.kind == merlon.Anyone {
			e.Caller = merlon.AnyCaller
		}
		return yield(e)
	}
	for _, r := range op.rules {
		if !give(r.party, r.rule) {
			return false
		}
	}
	if op.anyone == nil {
		return true
	}
	if !give(party{kind: merlon.Anyone}, op.anyone) {
		return false
	}
	for i := range p.intent.Gateway.Logins {
		who := party{merlon.Login, p.intent.Gateway.Logins[i].Name}
		if op.named(who) == nil && !give(who, op.anyone) {
			return false
		}
	}
	return true
}
