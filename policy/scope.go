package policy

import (
	"slices"
	"strings"

	"merlon"
	"merlon/contract/route"
)

// Scope is the part of an intent that concerns one place: what it needs to
// route and decide the calls that pass it, and nothing else. A gate that is
// taken over knows its own neighbours, not the estate.
//
// For every call that passes the place, the policy of the part routes and
// decides as the policy of the whole does, but for the reason of a denial: who
// has no rule anywhere near may be unknown here. The part of an intent that
// compiles compiles too. A place that does not exist gets an empty part.
func Scope(in *merlon.Intent, place merlon.Place) merlon.Intent {
	return NewScoper(in).Scope(place)
}

// Scoper makes the scopes of one intent, for who needs many of them.
type Scoper struct {
	in     *merlon.Intent
	logins map[string]bool
	calls  map[string][]int       // services that have a rule for this caller
	shadow []int                  // services in shadow mode
	hidden map[string]overlapping // by service
}

// NewScoper indexes an intent. It is not safe for concurrent use.
func NewScoper(in *merlon.Intent) *Scoper {
	sc := &Scoper{in: in, logins: map[string]bool{}, calls: map[string][]int{}, hidden: map[string]overlapping{}}
	if in.Gateway != nil {
		for i := range in.Gateway.Logins {
			sc.logins[in.Gateway.Logins[i].Name] = true
		}
	}
	for i := range in.Services {
		s := &in.Services[i]
		for j := range s.Rules {
			list := sc.calls[s.Rules[j].Caller]
			if len(list) == 0 || list[len(list)-1] != i {
				sc.calls[s.Rules[j].Caller] = append(list, i)
			}
		}
		if in.Mode == merlon.Shadow || s.Mode == merlon.Shadow {
			sc.shadow = append(sc.shadow, i)
		}
	}
	return sc
}

// outside reports whether a rule or guardrail for caller is about callers who
// come through the gateway.
func (sc *Scoper) outside(caller string) bool {
	return caller == merlon.AnyCaller || sc.logins[caller]
}

// Scope is the part of the intent that concerns place; see the function Scope.
func (sc *Scoper) Scope(place merlon.Place) merlon.Intent {
	p := &part{Scoper: sc, services: map[string]*merlon.Service{}, named: map[string]bool{}}
	out := merlon.Intent{TrustDomain: sc.in.TrustDomain, Mode: sc.in.Mode, Telemetry: sc.in.Telemetry}
	if place == merlon.Edge {
		if sc.in.Gateway == nil {
			return out
		}
		out.Gateway = sc.in.Gateway
		p.edge()
	} else {
		s := sc.in.Service(place.Service)
		if s == nil || s.External {
			return out
		}
		p.inbound(s)
		p.outbound(s)
		p.guardrails(s)
		out.Gateway = p.gateway(s)
		out.Federation = p.federation(s) // after outbound, for those that s calls
	}
	out.Guardrails = p.guards
	p.zones()
	out.Services = make([]merlon.Service, 0, len(p.services))
	for _, s := range p.services {
		out.Services = append(out.Services, *s)
	}
	slices.SortFunc(out.Services, func(a, b merlon.Service) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// part is one scope in the making.
type part struct {
	*Scoper
	services map[string]*merlon.Service
	named    map[string]bool // logins
	guards   []merlon.Guardrail
}

// edge takes what rules open to the gateway.
func (p *part) edge() {
	seen := map[int]bool{}
	take := func(caller string) {
		for _, i := range p.calls[caller] {
			if s := &p.in.Services[i]; !seen[i] && !s.External {
				seen[i] = true
				callee := p.callee(s, p.outside, false)
				callee.Hosts = s.Hosts
			}
		}
	}
	take(merlon.AnyCaller)
	for i := range p.in.Gateway.Logins {
		take(p.in.Gateway.Logins[i].Name)
	}
	for i := range p.in.Guardrails {
		g := &p.in.Guardrails[i]
		if (g.Deny.Caller == everything || p.outside(g.Deny.Caller)) && p.coversAny(g, func(*merlon.Service) bool { return true }) {
			p.guard(g)
		}
	}
}

// inbound takes the place's own service with all its operations and rules, and
// the names of its callers.
func (p *part) inbound(s *merlon.Service) {
	own := p.stub(s)
	own.Addresses, own.Protocol, own.Mode, own.Workload = s.Addresses, s.Protocol, s.Mode, s.Workload
	own.Nodes = s.Nodes // where its workloads are no processes of this host
	own.Operations, own.Rules, own.LocalPorts = s.Operations, s.Rules, s.LocalPorts
	own.Timeout, own.Retry, own.MaxBody, own.Slashes = s.Timeout, s.Retry, s.MaxBody, s.Slashes
	for i := range s.Rules {
		switch caller := s.Rules[i].Caller; {
		case p.logins[caller]:
			p.named[caller] = true
		case caller != merlon.AnyCaller:
			if c := p.in.Service(caller); c != nil {
				p.stub(c)
			}
		}
	}
}

// outbound takes the services that s may call: by a rule, or because they are
// in shadow mode and let pass what no rule allows.
func (p *part) outbound(s *merlon.Service) {
	only := func(caller string) bool { return caller == s.Name }
	take := func(t *merlon.Service, all bool) {
		if t.Name == s.Name {
			return
		}
		callee := p.callee(t, only, all)
		if !t.External {
			callee.Addresses = t.Addresses // which s dials when its calls are captured
		}
	}
	for _, i := range p.calls[s.Name] {
		t := &p.in.Services[i]
		take(t, p.in.Mode == merlon.Shadow || t.Mode == merlon.Shadow)
	}
	for _, i := range p.shadow {
		take(&p.in.Services[i], true)
	}
}

// stub takes no more of a service than its name.
func (p *part) stub(s *merlon.Service) *merlon.Service {
	if have := p.services[s.Name]; have != nil {
		return have
	}
	stub := &merlon.Service{Name: s.Name, Pos: s.Pos, External: s.External, Zone: s.Zone}
	p.services[s.Name] = stub
	return stub
}

// callee takes of a service what callers need: their rules and the operations
// that these name, or all operations; and those that could take a path of one
// that is named, because a part must route as the whole does.
func (p *part) callee(s *merlon.Service, who func(caller string) bool, all bool) *merlon.Service {
	t := p.stub(s)
	t.Protocol, t.Mode = s.Protocol, s.Mode
	t.Timeout, t.Retry, t.MaxBody, t.Slashes = s.Timeout, s.Retry, s.MaxBody, s.Slashes
	if s.External {
		t.Hosts, t.Foreign = s.Hosts, s.Foreign
	}
	t.Rules, t.Operations = nil, nil
	wanted := map[string]bool{}
	for i := range s.Rules {
		r := &s.Rules[i]
		if !who(r.Caller) {
			continue
		}
		t.Rules = append(t.Rules, *r)
		all = all || r.All
		for _, name := range r.Operations {
			wanted[name] = true
		}
	}
	if all {
		t.Operations = s.Operations
		return t
	}
	keep := make([]bool, len(s.Operations))
	bare := make([]bool, len(s.Operations))
	for i := range s.Operations {
		keep[i] = wanted[s.Operations[i].Name]
	}
	pairs, ok := p.overlaps(s)
	if !ok {
		t.Operations = s.Operations
		return t
	}
	for _, pair := range pairs {
		for _, x := range [2][2]int{pair, {pair[1], pair[0]}} {
			if wanted[s.Operations[x[0]].Name] && !keep[x[1]] {
				keep[x[1]], bare[x[1]] = true, true
			}
		}
	}
	for i := range s.Operations {
		if keep[i] {
			op := s.Operations[i]
			if bare[i] {
				op.Params = nil
			}
			t.Operations = append(t.Operations, op)
		}
	}
	return t
}

// overlaps is the pairs of operations of s that match a common path. It
// reports false when there are too many to know.
func (p *part) overlaps(s *merlon.Service) ([][2]int, bool) {
	if known, ok := p.hidden[s.Name]; ok {
		return known.pairs, known.ok
	}
	list := make([]route.Route, len(s.Operations))
	for i := range s.Operations {
		list[i] = route.Route{Method: s.Operations[i].Method, Path: s.Operations[i].Path}
	}
	known := overlapping{ok: true}
	for o := range route.Overlaps(list) {
		if o.A < 0 {
			known = overlapping{}
			break
		}
		known.pairs = append(known.pairs, [2]int{o.A, o.B})
	}
	p.hidden[s.Name] = known
	return known.pairs, known.ok
}

// overlapping is what is known about the operations of one service.
type overlapping struct {
	pairs [][2]int
	ok    bool
}

// guardrails takes those that deny a call which passes the gate of s and would
// otherwise be allowed, with the names of the callers that they speak of.
func (p *part) guardrails(s *merlon.Service) {
	shadow := p.in.Mode == merlon.Shadow || s.Mode == merlon.Shadow
	exposed := false
	calls := map[string]bool{}
	for i := range s.Rules {
		calls[s.Rules[i].Caller] = true
		exposed = exposed || p.outside(s.Rules[i].Caller)
	}
	own := func(t *merlon.Service) bool { return t.Name == s.Name }
	others := func(t *merlon.Service) bool { return t.Name != s.Name }
	for i := range p.in.Guardrails {
		g := &p.in.Guardrails[i]
		caller := g.Deny.Caller
		zone, isZone := strings.CutPrefix(caller, zonePrefix)
		if (caller == everything || caller == s.Name || isZone && zone == s.Zone) && p.coversAny(g, others) {
			p.guard(g)
			continue
		}
		if !p.coversAny(g, own) {
			continue
		}
		switch {
		case caller == everything, caller == merlon.AnyCaller && exposed:
			p.guard(g)
		case p.logins[caller]:
			if exposed {
				p.guard(g)
			}
		case isZone:
			if p.zoneCallers(zone, calls, shadow) {
				p.guard(g)
			}
		case shadow || calls[caller]:
			if c := p.in.Service(caller); c != nil {
				p.stub(c)
				p.guard(g)
			}
		}
	}
}

// zoneCallers takes the names of the services of a zone that could call.
func (p *part) zoneCallers(zone string, calls map[string]bool, shadow bool) bool {
	found := false
	for i := range p.in.Services {
		if c := &p.in.Services[i]; c.Zone == zone && (shadow || calls[c.Name]) {
			p.stub(c)
			found = true
		}
	}
	return found
}

// coversAny reports whether g covers an operation in this part of a service
// that satisfies which.
func (p *part) coversAny(g *merlon.Guardrail, which func(*merlon.Service) bool) bool {
	for _, s := range p.services {
		if !which(s) {
			continue
		}
		if opaque(s) && covers(&g.Deny, s, "") {
			return true
		}
		for i := range s.Operations {
			if covers(&g.Deny, s, s.Operations[i].Name) {
				return true
			}
		}
	}
	return false
}

// guard takes a guardrail, but for the words about it.
func (p *part) guard(g *merlon.Guardrail) {
	kept := *g
	kept.Because = ""
	p.guards = append(p.guards, kept)
	if p.logins[g.Deny.Caller] {
		p.named[g.Deny.Caller] = true
	}
}

// gateway is all that the gate of s needs to know of the gateway: that there
// is one, and the names of the logins that its rules speak of. Tokens are
// checked at the edge.
func (p *part) gateway(s *merlon.Service) *merlon.Gateway {
	if p.in.Gateway == nil || !slices.ContainsFunc(s.Rules, func(r merlon.Rule) bool { return p.outside(r.Caller) }) {
		return nil
	}
	g := &merlon.Gateway{Pos: p.in.Gateway.Pos}
	for _, l := range p.in.Gateway.Logins {
		if p.named[l.Name] {
			g.Logins = append(g.Logins, merlon.LoginRule{Name: l.Name, Pos: l.Pos})
		}
	}
	return g
}

// federation is the names of the trust domains of which a workload may call s, or
// be called by it.
// Where their bundles come from is not for gates to know: those come with the
// gate's own.
func (p *part) federation(s *merlon.Service) []merlon.Partner {
	var list []merlon.Partner
	for i := range p.in.Federation {
		partner := &p.in.Federation[i]
		called := false
		for _, callee := range p.services {
			called = called || merlon.ForeignDomain(callee.Foreign) == partner.TrustDomain
		}
		if called || slices.ContainsFunc(s.Rules, func(r merlon.Rule) bool { return merlon.ForeignDomain(r.Caller) == partner.TrustDomain }) {
			list = append(list, merlon.Partner{TrustDomain: partner.TrustDomain, Pos: partner.Pos})
		}
	}
	return list
}

// zones forgets the zones that no guardrail of the part speaks of.
func (p *part) zones() {
	spoken := map[string]bool{}
	for _, g := range p.guards {
		for _, side := range []string{g.Deny.Caller, g.Deny.Callee} {
			if zone, ok := strings.CutPrefix(side, zonePrefix); ok {
				spoken[zone] = true
			}
		}
	}
	for _, s := range p.services {
		if !spoken[s.Zone] {
			s.Zone = ""
		}
	}
}
