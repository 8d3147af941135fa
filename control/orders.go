package control

import (
	"net"
	"slices"
	"strings"

	"merlon"
	"merlon/policy"
)

// force is an intent in force with what is derived from it. It needs c.mu,
// for its scoper remembers.
type force struct {
	commit Commit
	intent *merlon.Intent
	policy *policy.Policy
	scoper *policy.Scoper
	// services by name: intent.Service is a search, and there are many.
	services map[string]*merlon.Service
	places   []merlon.Place // all of the intent
	// callers are the places whose orders name the gates of a service.
	callers map[string][]merlon.Place
}

func newForce(commit Commit, in *merlon.Intent, p *policy.Policy) *force {
	f := &force{
		commit: commit, intent: in, policy: p, scoper: policy.NewScoper(in),
		services: map[string]*merlon.Service{}, places: placesOf(in), callers: map[string][]merlon.Place{},
	}
	for i := range in.Services {
		f.services[in.Services[i].Name] = &in.Services[i]
	}
	for i := range in.Services {
		s := &in.Services[i]
		if f.shadows(s) {
			f.callers[s.Name] = f.places // what is let pass may come from anywhere
			continue
		}
		seen := map[merlon.Place]bool{}
		for j := range s.Rules {
			if merlon.ForeignDomain(s.Rules[j].Caller) != "" {
				continue // their gates get no orders from here
			}
			if from := f.callerPlace(s.Rules[j].Caller); !seen[from] {
				seen[from] = true
				f.callers[s.Name] = append(f.callers[s.Name], from)
			}
		}
	}
	return f
}

// shadows reports whether calls of s that no rule allows are let pass.
func (f *force) shadows(s *merlon.Service) bool {
	return f.intent.Mode == merlon.Shadow || s.Mode == merlon.Shadow
}

// placesOf is every place where an intent is enforced.
func placesOf(in *merlon.Intent) []merlon.Place {
	var places []merlon.Place
	if in.Gateway != nil {
		places = append(places, merlon.Edge)
	}
	for i := range in.Services {
		if s := &in.Services[i]; !s.External {
			places = append(places, merlon.Place{Service: s.Name})
		}
	}
	return places
}

// callerPlace is where calls of a rule's caller begin: the gate beside a
// service, or the edge for everyone outside.
func (f *force) callerPlace(caller string) merlon.Place {
	if f.services[caller] != nil {
		return merlon.Place{Service: caller}
	}
	return merlon.Edge
}

// needs are the places that must enforce a rule of service s for the given
// caller: where the call begins and, for a service of ours, where it ends.
func (f *force) needs(s *merlon.Service, caller string) []merlon.Place {
	to := merlon.Place{Service: s.Name}
	if merlon.ForeignDomain(caller) != "" {
		return []merlon.Place{to}
	}
	from := f.callerPlace(caller)
	switch {
	case s.External:
		return []merlon.Place{from}
	case from == to:
		return []merlon.Place{to}
	}
	return []merlon.Place{from, to}
}

// reorder sends new orders to a place where a gate came or went, and to the
// places that call it. It needs c.mu.
func (c *Control) reorder(p merlon.Place) error {
	delete(c.reach, p)
	if c.inForce == nil {
		return nil
	}
	if err := c.order(c.inForce, p); err != nil {
		return err
	}
	if p == merlon.Edge {
		return nil // nobody calls the gateway's own place
	}
	for _, from := range c.inForce.callers[p.Service] {
		if from == p {
			continue
		}
		if err := c.order(c.inForce, from); err != nil {
			return err
		}
	}
	return nil
}

// order sends the gates of one place their orders under f. It needs c.mu.
func (c *Control) order(f *force, p merlon.Place) error {
	if len(c.sessions[p]) == 0 {
		return nil
	}
	o, err := c.ordersFor(f, p)
	if err != nil {
		return err
	}
	c.dispatch(p, o)
	return nil
}

// dispatch sends orders to all gates of a place. It needs c.mu.
func (c *Control) dispatch(p merlon.Place, o *merlon.Orders) {
	c.current[p] = o
	for s := range c.sessions[p] {
		s.send(o)
	}
}

// ordersFor is all that place p needs to enforce f. A place that the intent
// does not name gets orders without a service, which deny everything. It needs
// c.mu.
func (c *Control) ordersFor(f *force, p merlon.Place) (*merlon.Orders, error) {
	o := &merlon.Orders{
		Version:   merlon.OrdersVersion,
		Place:     p,
		Of:        f.commit.Hash,
		Intent:    f.scoper.Scope(p),
		Endpoints: map[string][]merlon.Endpoint{},
	}
	for i := range o.Intent.Services {
		part := &o.Intent.Services[i]
		if part.Name != p.Service && len(part.Rules) == 0 && len(part.Operations) == 0 {
			continue // a caller: the place needs its name, not its address
		}
		if e := c.endpoints(f, p, f.services[part.Name]); len(e) > 0 {
			o.Endpoints[part.Name] = e
		}
	}
	if err := o.Seal(); err != nil {
		return nil, err
	}
	return o, nil
}

// endpoints says where service s is reached from place p: beside it, at its
// own addresses; from elsewhere, only through its gates, which prove who they
// are. A service without a gate is not reached at all. The result is shared.
func (c *Control) endpoints(f *force, p merlon.Place, s *merlon.Service) []merlon.Endpoint {
	switch {
	case s.External:
		return externalEndpoints(s)
	case p.Service == s.Name:
		var es []merlon.Endpoint
		for _, a := range s.Addresses {
			es = append(es, merlon.Endpoint{Address: a})
		}
		return es
	}
	gates := merlon.Place{Service: s.Name}
	id := f.intent.SPIFFEID(s.Name)
	if known := c.reach[gates]; len(known) > 0 && known[0].ID == id {
		return known
	}
	var es []merlon.Endpoint
	for g := range c.sessions[gates] {
		es = append(es, merlon.Endpoint{Address: g.hello.Address, ID: id})
	}
	slices.SortFunc(es, compareEndpoints)
	es = slices.Compact(es)
	c.reach[gates] = es
	return es
}

// externalEndpoints are the addresses of a service that is not ours, or its
// hosts on the port of HTTPS. Without a host there is no name that a
// certificate could prove, so there is nowhere to go.
func externalEndpoints(s *merlon.Service) []merlon.Endpoint {
	var es []merlon.Endpoint
	if s.Foreign != "" {
		for _, a := range s.Addresses {
			es = append(es, merlon.Endpoint{Address: a, ID: "spiffe://" + s.Foreign})
		}
		return es
	}
	if len(s.Hosts) == 0 {
		return nil
	}
	tlsName := s.Hosts[0]
	if s.Protocol == merlon.TCP {
		tlsName = "" // bytes, whoever proves what to whom
	}
	for _, a := range s.Addresses {
		es = append(es, merlon.Endpoint{Address: a, TLSName: tlsName})
	}
	if len(es) > 0 || s.Protocol == merlon.TCP {
		return es
	}
	for _, h := range s.Hosts {
		es = append(es, merlon.Endpoint{Address: "dns:" + net.JoinHostPort(h, "443"), TLSName: h})
	}
	return es
}

func compareEndpoints(a, b merlon.Endpoint) int { return strings.Compare(a.Address, b.Address) }
