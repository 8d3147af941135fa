// Package policy is the intent compiled: it says whether a call may pass, and
// which sentence of the intent says so.
//
// Compile turns an intent into an immutable Policy or says, all at once, what
// is wrong with it. Decide answers a call, in this order:
//
//  1. A caller that is not identified is denied.
//  2. A service or an operation that does not exist is denied.
//  3. The first guardrail that covers the call denies it.
//  4. At most one rule decides: the rule of the operation that names the
//     caller; for callers that come through the gateway and are not named, the
//     rule for anyone. No rule, no call.
//  5. A rule with a condition allows only when the condition is true. A
//     condition that fails, for whatever reason, is not true.
//
// Steps 4 and 5 may be in shadow mode: the call then passes, and the verdict
// says that it would have been denied. Steps 1 to 3 are never in shadow mode,
// and neither is an operation that no rule opens to the gateway, for a caller
// who is outside, or a call without a rule of a workload of another trust domain.
//
// The package reads no clock, no file and no environment: equal arguments give
// equal answers. A nil Policy, the zero Policy and a nil Call deny.
package policy

import (
	"merlon"
	"merlon/contract/route"
)

// Policy is an intent compiled. It is immutable and safe for concurrent use.
// The nil Policy and the zero Policy deny every call and route nowhere.
type Policy struct {
	intent   *merlon.Intent
	services map[string]*service
	index    map[operationKey]*operation // of all services: one look for Decide
	hosts    map[string]*edge            // canonical host names of the gateway
}

// operationKey names an operation.
type operationKey struct{ service, operation string }

// Intent is the intent that p was compiled from; it must not be changed. It is
// nil for the zero Policy.
func (p *Policy) Intent() *merlon.Intent {
	if p == nil {
		return nil
	}
	return p.intent
}

// service is a service with its operations by name.
type service struct {
	*merlon.Service
	operations map[string]*operation
	ordered    []*operation // as in Service.Operations, or the one opaque operation
	rules      []*rule
	router     *route.Router // nil when opaque
	opaque     bool          // speaks bytes: one operation without a name
}

// operation is an operation with all that decides about it.
type operation struct {
	*merlon.Operation
	service *service
	rules   []partyRule     // by caller
	index   map[party]*rule // the same, when there are more than linearRules
	anyone  *rule           // nil when not open to everyone
	guards  *guards         // nil when no guardrail covers it
	exposed bool            // some rule opens it to the gateway
	// contested says that some path of this template belongs to another
	// operation of the service, one that is not exposed; see RouteEdge.
	contested bool

	noRule     merlon.Verdict // for callers inside
	noRuleEdge merlon.Verdict // for callers who come through the gateway
}

// partyRule is a rule beside the caller that it names, where a scan finds both.
type partyRule struct {
	party party
	rule  *rule
}

// linearRules is up to how many rules a scan beats a map.
const linearRules = 6

// rule is a rule of one service with its verdicts ready.
type rule struct {
	*merlon.Rule
	party   party
	ops     []*operation
	when    *condition // nil: always
	allowed merlon.Verdict
	refused merlon.Verdict // the condition is not met
}

// party is a caller as rules and guardrails name it. Services and logins have
// names of their own: a login that calls itself "web" is not the service web,
// whatever its token says. Names are compared byte by byte, never as patterns.
type party struct {
	kind merlon.CallerKind
	name string
}

// partyOf is the party that c speaks for. The name of an Anyone means nothing
// and is dropped, so that nobody can claim one.
func partyOf(c *merlon.Caller) party {
	if c.Kind == merlon.Anyone {
		return party{kind: merlon.Anyone}
	}
	return party{c.Kind, c.Name}
}

// identified reports whether the caller is somebody: one of the known kinds,
// with a name where the kind has one.
func identified(c *merlon.Caller) bool {
	switch c.Kind {
	case merlon.Anyone:
		return true
	case merlon.Login, merlon.Workload:
		return c.Name != ""
	}
	return false
}

// Decide says whether the call may pass and which sentence says so. It keeps
// nothing of c, and does not allocate when the deciding rule has no condition.
func (p *Policy) Decide(c *merlon.Call) merlon.Verdict {
	if c == nil || !identified(&c.Caller) {
		return merlon.Verdict{Reason: merlon.ReasonUnidentified}
	}
	if p == nil {
		return merlon.Verdict{Reason: merlon.ReasonNoService}
	}
	op := p.index[operationKey{c.Service, c.Operation}]
	if op == nil {
		if s := p.services[c.Service]; s != nil {
			return merlon.Verdict{Reason: merlon.ReasonNoOperation, Pos: s.Pos}
		}
		return merlon.Verdict{Reason: merlon.ReasonNoService}
	}
	who := partyOf(&c.Caller)
	if op.guards != nil {
		if g := op.guards.first(who); g != nil {
			return merlon.Verdict{Reason: merlon.ReasonGuardrail, Pos: g.Pos, Rule: g.Name}
		}
	}
	r := op.rule(who)
	if r == nil {
		switch {
		case who.kind != merlon.Workload:
			return op.noRuleEdge
		case merlon.ForeignDomain(who.name) != "":
			return merlon.Verdict{Reason: merlon.ReasonNoRule, Pos: op.service.Pos}
		}
		return op.noRule
	}
	if r.when != nil && r.when.eval(c, op) != nil {
		return r.refused
	}
	return r.allowed
}

// rule finds the one rule that decides about who, or nil.
func (o *operation) rule(who party) *rule {
	if r := o.named(who); r != nil {
		return r
	}
	if who.kind == merlon.Workload {
		return nil // anyone is everyone outside, never a service inside
	}
	return o.anyone
}

// named finds the rule that names who, or nil.
func (o *operation) named(who party) *rule {
	if o.index != nil {
		return o.index[who]
	}
	for i := range o.rules {
		if o.rules[i].party == who {
			return o.rules[i].rule
		}
	}
	return nil
}
