package policy

import (
	"fmt"
	"slices"
	"strings"

	"merlon"
	"merlon/contract/route"
)

// Route is the one operation that a request is for. Its Reason is "" when
// there is one, else why there is none; the pointers may be nil then.
type Route struct {
	Service   *merlon.Service
	Operation *merlon.Operation
	Params    []merlon.Param // views of the path, still percent-encoded
	Reason    merlon.Reason
}

// edge is what the gateway answers on one host: operations of many services.
type edge struct {
	router *route.Router
	ops    []*operation // by the router's index
}

// RouteEdge finds the operation that a request from outside is for: host and
// path must be canonical. Only operations that a rule opens to a login or to
// anyone are there; for a caller outside, no other exists. Params are appended
// to params[:0], and nothing is allocated while there is room.
func (p *Policy) RouteEdge(host, method, path string, params []merlon.Param) Route {
	if p == nil {
		return Route{Reason: merlon.ReasonNoService}
	}
	e := p.hosts[host]
	if e == nil {
		return Route{Reason: merlon.ReasonNoService}
	}
	i, ps, found := e.router.Match(method, path, params)
	if found != route.Matched {
		return Route{Reason: merlon.ReasonNoOperation}
	}
	op := e.ops[i]
	if op.contested {
		// The service itself may take this path for another operation, which is
		// closed to the gateway: what we decide on must be what it does.
		i, ps, found = op.service.router.Match(method, path, ps)
		if found != route.Matched || op.service.ordered[i] != op {
			return Route{Service: op.service.Service, Reason: merlon.ReasonNoOperation}
		}
	}
	return Route{Service: op.service.Service, Operation: op.Operation, Params: ps}
}

// RouteService finds the operation of a service that a request is for; the
// path must be canonical. A TCP service has one operation, without a name.
func (p *Policy) RouteService(name, method, path string, params []merlon.Param) Route {
	if p == nil {
		return Route{Reason: merlon.ReasonNoService}
	}
	s := p.services[name]
	if s == nil {
		return Route{Reason: merlon.ReasonNoService}
	}
	if s.opaque {
		return Route{Service: s.Service, Operation: s.ordered[0].Operation, Params: params[:0]}
	}
	i, ps, found := s.router.Match(method, path, params)
	if found != route.Matched {
		return Route{Service: s.Service, Reason: merlon.ReasonNoOperation}
	}
	return Route{Service: s.Service, Operation: s.ordered[i].Operation, Params: ps}
}

// routes lists operations for a router.
func routes(ops []*operation) []route.Route {
	list := make([]route.Route, len(ops))
	for i, op := range ops {
		list[i] = route.Route{Method: op.Method, Path: op.Path, Pos: op.Pos, Name: op.Name}
	}
	return list
}

// route gives s its router, and marks the operations whose paths an operation
// that is not exposed may take.
func (c *compiler) route(s *service) {
	if s.opaque {
		return
	}
	list := routes(s.ordered)
	router, ds := route.NewRouter(list)
	for _, d := range ds {
		if !d.Warning { // contract has warned its reader already
			c.add(d)
		}
	}
	s.router = router
	hidden := slices.ContainsFunc(s.ordered, func(op *operation) bool { return !op.exposed })
	exposed := slices.ContainsFunc(s.ordered, func(op *operation) bool { return op.exposed })
	if !hidden || !exposed {
		return
	}
	for o := range route.Overlaps(list) {
		if o.A < 0 {
			for _, op := range s.ordered {
				op.contested = true
			}
			return
		}
		a, b := s.ordered[o.A], s.ordered[o.B]
		a.contested = a.contested || !b.exposed
		b.contested = b.contested || !a.exposed
	}
}

// edges builds what the gateway answers on each host.
func (c *compiler) edges() map[string]*edge {
	if c.in.Gateway == nil {
		return nil
	}
	byHost := map[string][]*operation{}
	for _, s := range c.order {
		if s.External {
			continue
		}
		hosts := s.Hosts
		if len(hosts) == 0 {
			hosts = c.in.Gateway.Hosts
		}
		for _, op := range s.ordered {
			if !op.exposed {
				continue
			}
			for _, host := range hosts {
				byHost[host] = append(byHost[host], op)
			}
		}
	}
	served := make(map[string]*edge, len(c.in.Gateway.Hosts))
	same := map[string]*edge{} // hosts that answer alike share one
	for _, host := range c.in.Gateway.Hosts {
		ops := byHost[host]
		var key strings.Builder
		for _, op := range ops {
			fmt.Fprintf(&key, "%p ", op)
		}
		e := same[key.String()]
		if e == nil {
			e = c.edge(host, ops)
			same[key.String()] = e
		}
		served[host] = e
	}
	c.checkHosts(served)
	return served
}

// edge builds what the gateway answers on hosts like host.
func (c *compiler) edge(host string, ops []*operation) *edge {
	list := routes(ops)
	for o := range route.Overlaps(list) {
		if o.A < 0 {
			c.add(merlon.Diagnostic{Pos: c.in.Gateway.Pos, Code: "E0307",
				Message: fmt.Sprintf("too many paths on host %q overlap to compare them all", host),
				Hint:    "make the paths more concrete at their beginning, or give services hosts of their own"})
			break
		}
		c.collide(host, ops[o.A], ops[o.B], o.Path)
		if c.errors > maxDiagnostics {
			break
		}
	}
	router, _ := route.NewRouter(list) // errors were said of each service, or above
	return &edge{router, ops}
}

// collide reports two operations of two services that a request to host could
// be for. Within one contract "concrete before templated" decides; between two
// owners nobody may win, or one could take over a path of the other by
// publishing a more concrete one. Only equal templates with methods of their
// own share a path safely.
func (c *compiler) collide(host string, a, b *operation, path string) {
	if a.service == b.service {
		return
	}
	disjoint := a.Method != b.Method && a.Method != "*" && b.Method != "*"
	if disjoint && sameShape(a.Path, b.Path) {
		return
	}
	if b.service.Pos.Compare(a.service.Pos) < 0 {
		a, b = b, a
	}
	c.add(merlon.Diagnostic{Pos: b.Pos, Code: "E0306", Also: []merlon.Pos{a.Pos, a.service.Pos, b.service.Pos},
		Message: fmt.Sprintf("%s (%s %s) and %s (%s %s) both answer %s%s at the gateway",
			b.full(), b.Method, b.Path, a.full(), a.Method, a.Path, host, path),
		Hint: "give one of the services a host or a path prefix of its own"})
}

// sameShape reports whether two templates differ only in the names of their
// parameters.
func sameShape(a, b string) bool {
	for {
		i, j := strings.IndexByte(a, '{'), strings.IndexByte(b, '{')
		if i < 0 || j < 0 {
			return a == b
		}
		nameA, restA, okA := strings.Cut(a[i:], "}")
		nameB, restB, okB := strings.Cut(b[j:], "}")
		if a[:i] != b[:j] || !okA || !okB || strings.HasSuffix(nameA, "...") != strings.HasSuffix(nameB, "...") {
			return false
		}
		a, b = restA, restB
	}
}

// checkHosts reports services that are open to the gateway on hosts that it
// does not serve.
func (c *compiler) checkHosts(served map[string]*edge) {
	for _, s := range c.order {
		if s.External || !slices.ContainsFunc(s.ordered, func(op *operation) bool { return op.exposed }) {
			continue
		}
		for _, host := range s.Hosts {
			if served[host] == nil {
				c.add(merlon.Diagnostic{Pos: s.Pos, Width: len(s.Name), Code: "E0308",
					Message: fmt.Sprintf("service %q is open on host %q, which the gateway does not serve", s.Name, host),
					Hint:    suggest(host, c.in.Gateway.Hosts)})
			}
		}
	}
}
