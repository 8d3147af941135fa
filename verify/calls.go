package verify

import (
	"fmt"
	"slices"
	"strings"

	"merlon"
	"merlon/contract/route"
	"merlon/policy"
)

// atom is a call that stands for all calls that both policies route as they
// route it: a method and a path of one service.
type atom struct {
	method, path, query string
	old, new            *merlon.Operation // what the service takes it for; nil for nothing
}

// name is the operation's name in the policy that has it, the new one first.
func (a *atom) name() string {
	switch {
	case a.new != nil:
		return a.new.Name
	case a.old != nil:
		return a.old.Name
	}
	return ""
}

// oddMethod stands for the methods that nobody thinks of.
const oddMethod = "PROPFIND"

// standardMethods are those that operations commonly have.
func standardMethods() []string {
	return []string{"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", oddMethod}
}

// atoms are calls of a service, one at least for every way in which the two
// policies can route a call: each operation of either, and each path on which
// an operation of one meets an operation of the other.
func (d *differ) atoms(name string) []atom {
	was, is := d.old.services[name], d.new.services[name]
	if opaque(was) || opaque(is) {
		return d.opaqueAtoms(was, is)
	}
	var ops []*merlon.Operation
	changed := was == nil || is == nil || !slices.EqualFunc(was.Operations, is.Operations, sameOperation)
	for _, s := range []*merlon.Service{is, was} {
		if s == nil || s == was && !changed {
			continue
		}
		for i := range s.Operations {
			ops = append(ops, &s.Operations[i])
		}
	}
	seen := map[[2]string]bool{}
	var list []atom
	add := func(method, path, query string) {
		if seen[[2]string{method, path}] {
			return
		}
		seen[[2]string{method, path}] = true
		a := atom{method: method, path: path, query: query}
		a.old, a.new = d.old.route(name, method, path), d.new.route(name, method, path)
		if a.old != nil || a.new != nil {
			list = append(list, a)
		}
	}
	for _, op := range ops {
		side := d.new
		if is == nil || !slices.ContainsFunc(is.Operations, func(o merlon.Operation) bool { return sameOperation(o, *op) }) {
			side = d.old
		}
		path, query := side.example(name, op)
		for _, method := range d.methods(op, changed) {
			add(method, path, query)
		}
	}
	if changed && was != nil && is != nil {
		d.meetings(ops, add)
	}
	return list
}

// methods are those to try for an operation.
func (d *differ) methods(op *merlon.Operation, changed bool) []string {
	switch {
	case op.Method != "*":
		return []string{op.Method}
	case changed:
		return standardMethods()
	}
	return []string{oddMethod}
}

// meetings adds the paths that two operations share: one may take them from
// the other.
func (d *differ) meetings(ops []*merlon.Operation, add func(method, path, query string)) {
	routes := make([]route.Route, len(ops))
	for i, op := range ops {
		routes[i] = route.Route{Method: op.Method, Path: op.Path}
	}
	for o := range route.Overlaps(routes) {
		if o.A < 0 {
			return // so many that Compile has refused them at the gateway
		}
		a, b := ops[o.A], ops[o.B]
		if a.Path == b.Path && a.Method == b.Method {
			continue
		}
		for _, method := range slices.Concat(d.methods(a, true), d.methods(b, true)) {
			add(method, o.Path, "")
		}
	}
}

// opaqueAtoms are the atoms of a service that speaks TCP before or after.
func (d *differ) opaqueAtoms(was, is *merlon.Service) []atom {
	list := []atom{{}}
	if opaque(was) {
		list[0].old = &merlon.Operation{}
	}
	if opaque(is) {
		list[0].new = &merlon.Operation{}
	}
	for i, s := range []*merlon.Service{was, is} {
		if s == nil {
			continue
		}
		side := []*side{d.old, d.new}[i]
		for j := range s.Operations {
			op := &s.Operations[j]
			a := atom{method: d.methods(op, false)[0]}
			a.path, a.query = side.example(s.Name, op)
			if i == 0 {
				a.old = op
			} else {
				a.new = op
			}
			list = append(list, a)
		}
	}
	return list
}

func opaque(s *merlon.Service) bool {
	return s != nil && s.Protocol == merlon.TCP && len(s.Operations) == 0
}

// sameOperation reports whether calls find the one where they find the other,
// and examples of the one are examples of the other.
func sameOperation(a, b merlon.Operation) bool {
	return a.Name == b.Name && a.Method == b.Method && a.Path == b.Path && slices.Equal(a.Params, b.Params)
}

// route is the operation that a service takes a call for, or nil.
func (s *side) route(service, method, path string) *merlon.Operation {
	return s.policy.RouteService(service, method, path, nil).Operation
}

// example makes up a path and query for an operation: one that the service
// takes for this operation and no other.
func (s *side) example(service string, op *merlon.Operation) (path, query string) {
	method := op.Method
	if method == "*" {
		method = oddMethod
	}
	for _, word := range []string{"x", "1", "a1", "z9", "some", "q7x"} {
		path = fill(op, word)
		if got := s.route(service, method, path); got != nil && got.Name == op.Name {
			break
		}
	}
	var pairs []string
	for _, p := range op.Params {
		if p.In == merlon.InQuery && p.Required {
			pairs = append(pairs, p.Name+"="+sample(p.Type, "x"))
		}
	}
	return path, strings.Join(pairs, "&")
}

// fill puts values into a template.
func fill(op *merlon.Operation, word string) string {
	var b strings.Builder
	rest := op.Path
	for {
		before, after, found := strings.Cut(rest, "{")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		name, tail, _ := strings.Cut(after, "}")
		value := word
		for _, p := range op.Params {
			if p.In == merlon.InPath && p.Name == strings.TrimSuffix(name, "...") {
				value = sample(p.Type, word)
			}
		}
		b.WriteString(value)
		rest = tail
	}
}

// sample is a value of a type.
func sample(t merlon.ParamType, word string) string {
	switch t {
	case merlon.Integer:
		return fmt.Sprint(len(word)*6 + 1)
	case merlon.Number:
		return fmt.Sprint(len(word), ".5")
	case merlon.Boolean:
		return "true"
	}
	return word
}

// party is a caller that rules name.
type party struct {
	kind merlon.CallerKind
	name string
}

func (p party) compare(q party) int {
	if p.kind != q.kind {
		return int(p.kind) - int(q.kind)
	}
	return strings.Compare(p.name, q.name)
}

// parties are the callers that either policy treats by a rule of the service;
// everyone else is denied by both.
func (d *differ) parties(name string) []party {
	found := map[party]bool{}
	for _, s := range []*side{d.old, d.new} {
		service := s.services[name]
		if service == nil {
			continue
		}
		for i := range service.Rules {
			caller := service.Rules[i].Caller
			switch {
			case caller == merlon.AnyCaller:
				found[party{merlon.Anyone, caller}] = true
				for _, side := range []*side{d.old, d.new} {
					for _, login := range side.logins() {
						found[party{merlon.Login, login}] = true
					}
				}
			case slices.Contains(s.logins(), caller):
				found[party{merlon.Login, caller}] = true
			default:
				found[party{merlon.Workload, caller}] = true
			}
		}
	}
	list := make([]party, 0, len(found))
	for p := range found {
		list = append(list, p)
	}
	slices.SortFunc(list, party.compare)
	return list
}

func (s *side) logins() []string {
	if s.intent.Gateway == nil {
		return nil
	}
	list := make([]string, len(s.intent.Gateway.Logins))
	for i := range list {
		list[i] = s.intent.Gateway.Logins[i].Name
	}
	return list
}

// edge is what a side says about a call, or nil.
func (s *side) edge(p party, service string, op *merlon.Operation) *policy.Edge {
	if op == nil {
		return nil
	}
	if e, ok := s.edges[edgeKey{p.kind, p.name, service, op.Name}]; ok {
		return &e
	}
	return nil
}

// at is the edge for a caller outside who names a host, or nil.
func (s *side) at(p party, service, host string, a *atom) *policy.Edge {
	r := s.policy.RouteEdge(host, a.method, a.path, nil)
	if r.Operation == nil || r.Service.Name != service {
		return nil
	}
	return s.edge(p, service, r.Operation)
}
