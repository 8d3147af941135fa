package policy

import (
	"fmt"
	"slices"
	"strings"

	"merlon"
)

// zonePrefix marks a zone where a guardrail could name a service.
const zonePrefix = "zone:"

// everything is the guardrail's word for every caller and every callee.
const everything = "*"

// guards is the guardrails that cover one operation, by caller, so that
// finding the first one costs the same for one guardrail and for a thousand.
type guards struct {
	everyone *guard           // "*"
	outside  *guard           // "anyone": all who come through the gateway
	named    map[party]*guard // services (those of a zone one by one) and logins
}

// guard is a guardrail with its place in the order in which they were written.
type guard struct {
	*merlon.Guardrail
	order int
}

// first is the guardrail that denies who, or nil: the first one written.
func (g *guards) first(who party) *guard {
	found := g.everyone
	if who.kind != merlon.Workload {
		found = earlier(found, g.outside)
	}
	if g.named != nil {
		found = earlier(found, g.named[who])
	}
	return found
}

func earlier(a, b *guard) *guard {
	if a == nil || b != nil && b.order < a.order {
		return b
	}
	return a
}

// covers reports whether the guardrail denies calls of this operation.
func covers(e *merlon.Edges, s *merlon.Service, operation string) bool {
	if e.Operation != "" && e.Operation != everything && e.Operation != operation {
		return false
	}
	if zone, ok := strings.CutPrefix(e.Callee, zonePrefix); ok {
		return zone == s.Zone && zone != ""
	}
	return e.Callee == everything || e.Callee == s.Name
}

// guardrails hangs every guardrail on the operations that it covers. It says
// when one covers nothing: such a guardrail protects nobody, and the person
// who wrote it believes otherwise.
func (c *compiler) guardrails() {
	list := make([]*guard, len(c.in.Guardrails))
	for i := range c.in.Guardrails {
		list[i] = &guard{&c.in.Guardrails[i], i}
		c.checkGuardrailCaller(list[i])
	}
	covered := make([]bool, len(list))
	shared := map[string]*guards{} // operations covered alike share one
	var hits []int
	for _, s := range c.order {
		for _, op := range s.ordered {
			hits = hits[:0]
			for i, g := range list {
				if covers(&g.Deny, s.Service, op.Name) {
					hits, covered[i] = append(hits, i), true
				}
			}
			if len(hits) == 0 {
				continue
			}
			key := fmt.Sprint(hits)
			if shared[key] == nil {
				shared[key] = c.guardsOf(list, hits)
			}
			op.guards = shared[key]
		}
	}
	for i, g := range list {
		if !covered[i] {
			c.add(merlon.Diagnostic{Pos: g.Pos, Code: "E0321",
				Message: fmt.Sprintf("guardrail %q covers nothing: no service and operation is %q", g.Name, calleeText(&g.Deny)),
				Hint:    c.calleeHint(&g.Deny)})
		}
	}
}

// guardsOf indexes the guardrails hits by caller.
func (c *compiler) guardsOf(list []*guard, hits []int) *guards {
	out := &guards{}
	name := func(who party, g *guard) {
		if out.named == nil {
			out.named = map[party]*guard{}
		}
		out.named[who] = earlier(out.named[who], g)
	}
	for _, i := range hits {
		g := list[i]
		zone, isZone := strings.CutPrefix(g.Deny.Caller, zonePrefix)
		switch {
		case g.Deny.Caller == everything:
			out.everyone = earlier(out.everyone, g)
		case g.Deny.Caller == merlon.AnyCaller:
			out.outside = earlier(out.outside, g)
		case isZone:
			for _, s := range c.order {
				if s.Zone == zone {
					name(party{merlon.Workload, s.Name}, g)
				}
			}
		default:
			// An unknown name was reported; it is still taken in both meanings,
			// because a guardrail must never deny less than it says.
			name(party{merlon.Workload, g.Deny.Caller}, g)
			name(party{merlon.Login, g.Deny.Caller}, g)
		}
	}
	return out
}

// checkGuardrailCaller says when a guardrail denies a caller that does not exist.
func (c *compiler) checkGuardrailCaller(g *guard) {
	caller := g.Deny.Caller
	if caller == everything || caller == merlon.AnyCaller || c.logins[caller] != nil || c.services[caller] != nil {
		return
	}
	if zone, ok := strings.CutPrefix(caller, zonePrefix); ok {
		if zone != "" && slices.ContainsFunc(c.order, func(s *service) bool { return s.Zone == zone }) {
			return
		}
		c.add(merlon.Diagnostic{Pos: g.Pos, Code: "E0320",
			Message: fmt.Sprintf("guardrail %q denies callers of zone %q, and no service is in it", g.Name, zone),
			Hint:    suggest(zone, c.zones())})
		return
	}
	c.add(merlon.Diagnostic{Pos: g.Pos, Code: "E0320",
		Message: fmt.Sprintf("guardrail %q denies caller %q, which is no service, login or zone", g.Name, caller),
		Hint:    suggest(caller, c.callerNames())})
}

// calleeHint says what the guardrail might have meant.
func (c *compiler) calleeHint(e *merlon.Edges) string {
	if zone, ok := strings.CutPrefix(e.Callee, zonePrefix); ok {
		return suggest(zone, c.zones())
	}
	if s := c.services[e.Callee]; s != nil {
		return suggest(e.Operation, operationNames(s.Service))
	}
	if e.Callee != everything {
		return suggest(e.Callee, c.serviceNames())
	}
	var names []string
	for _, s := range c.order {
		names = append(names, operationNames(s.Service)...)
	}
	return suggest(e.Operation, names)
}

func calleeText(e *merlon.Edges) string {
	if e.Operation == "" {
		return e.Callee
	}
	return e.Callee + "." + e.Operation
}
