package verify

import (
	"fmt"
	"slices"
	"strings"

	"merlon"
	"merlon/policy"
)

// group collects operations for which the same thing changes for one caller.
type group struct {
	Change
	key string
}

// service compares what callers may do with one service.
func (d *differ) service(name string) {
	atoms := d.atoms(name)
	var groups []*group
	index := map[string]*group{}
	put := func(c Change, operation, example string) {
		key := fmt.Sprint(c.Kind, "|", c.CallerKind, "|", c.Caller, "|", c.Old, "|", c.New, "|", c.When, "|", c.Text)
		g := index[key]
		if g == nil {
			g = &group{Change: c, key: key}
			g.Service, g.Example = name, example
			index[key] = g
			groups = append(groups, g)
		}
		if operation != "" && !slices.Contains(g.Operations, operation) {
			g.Operations = append(g.Operations, operation)
		}
	}
	for _, p := range d.parties(name) {
		for _, host := range d.views(p, name) {
			for i := range atoms {
				a := &atoms[i]
				was, is := d.see(p, name, host, a)
				if c, ok := compare(was, is); ok {
					c.Caller, c.CallerKind = p.name, p.kind
					put(c, a.name(), example(p, name, host, a))
				}
				if c, ok := d.limits(was, is); ok {
					c.Caller, c.CallerKind = p.name, p.kind
					put(c, a.name(), example(p, name, host, a))
				}
			}
		}
	}
	d.exposure(name, atoms, put)
	for _, g := range groups {
		slices.Sort(g.Operations)
		g.Text = sentence(&g.Change)
		d.add(g.Change)
	}
}

// inside is the view of a caller that does not come through the gateway.
const inside = ""

// views are the hosts by which a caller sees a service. Hosts that both
// policies treat alike are seen once.
func (d *differ) views(p party, name string) []string {
	if p.kind == merlon.Workload {
		return []string{inside}
	}
	was, is := d.old.hosts(name), d.new.hosts(name)
	var both, some []string
	for _, host := range is {
		if slices.Contains(was, host) {
			both = append(both, host)
		} else {
			some = append(some, host)
		}
	}
	for _, host := range was {
		if !slices.Contains(is, host) {
			some = append(some, host)
		}
	}
	if len(both) > 0 {
		some = append(some, both[0])
	}
	if len(both) == 0 && len(is) > 0 && len(was) == 0 || len(both) == 0 && len(was) > 0 && len(is) == 0 {
		some = some[:1] // the service comes or goes: one host tells it all
	}
	return some
}

// see is what both policies say about a call.
func (d *differ) see(p party, service, host string, a *atom) (was, is *policy.Edge) {
	if host == inside {
		return d.old.edge(p, service, a.old), d.new.edge(p, service, a.new)
	}
	return d.old.at(p, service, host, a), d.new.at(p, service, host, a)
}

// condition is the condition under which an edge lets calls pass; "" for all.
func condition(e *policy.Edge) string {
	if e.Shadow {
		return ""
	}
	return e.Rule.When
}

// compare says what changes for a caller and an operation.
func compare(was, is *policy.Edge) (Change, bool) {
	switch {
	case was == nil && is == nil:
		return Change{}, false
	case was == nil:
		return Change{Kind: Allowed, New: is.Rule.Pos, When: condition(is)}, true
	case is == nil:
		return Change{Kind: Refused, Old: was.Rule.Pos, When: condition(was)}, true
	}
	before, after := condition(was), condition(is)
	c := Change{Old: was.Rule.Pos, New: is.Rule.Pos}
	switch {
	case before == after:
		return c, false
	case after == "":
		c.Kind, c.When = Allowed, "not ("+before+")"
	case before == "":
		c.Kind, c.When = Refused, "not ("+after+")"
	default:
		c.Kind, c.When = Condition, after+"; was "+before
	}
	return c, true
}

// limits compares the limits of two rules that both let calls pass.
func (d *differ) limits(was, is *policy.Edge) (Change, bool) {
	if was == nil || is == nil {
		return Change{}, false
	}
	c, ok := limitChange(was.Rule.Limit, is.Rule.Limit)
	if c.Old.IsZero() {
		c.Old = was.Rule.Pos
	}
	if c.New.IsZero() {
		c.New = is.Rule.Pos
	}
	return c, ok
}

// exposure reports what the gateway opens and closes, whoever may use it.
func (d *differ) exposure(name string, atoms []atom, put func(c Change, operation, example string)) {
	anyone := party{merlon.Anyone, merlon.AnyCaller}
	for _, host := range names(set(d.old.hosts(name)), set(d.new.hosts(name))) {
		for i := range atoms {
			a := &atoms[i]
			was := d.old.policy.RouteEdge(host, a.method, a.path, nil)
			is := d.new.policy.RouteEdge(host, a.method, a.path, nil)
			open, opens := was.Operation != nil && was.Service.Name == name, is.Operation != nil && is.Service.Name == name
			switch {
			case !open && opens:
				put(Change{Kind: Exposed, Text: host, New: is.Service.Pos}, a.name(), example(anyone, name, host, a))
			case open && !opens:
				put(Change{Kind: Closed, Text: host, Old: was.Service.Pos}, a.name(), example(anyone, name, host, a))
			}
		}
	}
}

func set(list []string) map[string]bool {
	m := make(map[string]bool, len(list))
	for _, v := range list {
		m[v] = true
	}
	return m
}

// example writes a call as people do.
func example(p party, service, host string, a *atom) string {
	target := a.path
	if a.query != "" {
		target += "?" + a.query
	}
	switch {
	case host != inside:
		return fmt.Sprintf("%s -> %s https://%s%s", p.name, a.method, host, target)
	case a.method == "":
		return p.name + " -> " + service
	}
	return fmt.Sprintf("%s -> %s %s %s", p.name, service, a.method, target)
}

// maxNames is how many operations a sentence names.
const maxNames = 8

// sentence says a change of calls in words.
func sentence(c *Change) string {
	target := c.Service
	switch shown := c.Operations[:min(len(c.Operations), maxNames)]; {
	case len(c.Operations) == 1:
		target += "." + shown[0]
	case len(c.Operations) > len(shown):
		target = fmt.Sprintf("%s and %d more of %s", strings.Join(shown, ", "), len(c.Operations)-len(shown), c.Service)
	case len(c.Operations) > 1:
		last := len(shown) - 1
		target = fmt.Sprintf("%s and %s of %s", strings.Join(shown[:last], ", "), shown[last], c.Service)
	}
	switch c.Kind {
	case Allowed:
		return fmt.Sprintf("%s may call %s", c.Caller, target)
	case Refused:
		return fmt.Sprintf("%s may no longer call %s", c.Caller, target)
	case Condition:
		return fmt.Sprintf("%s may call %s on another condition", c.Caller, target)
	case Exposed:
		return fmt.Sprintf("%s is reachable from outside on %s", target, c.Text)
	case Closed:
		return fmt.Sprintf("%s is no longer reachable from outside on %s", target, c.Text)
	}
	return fmt.Sprintf("%s may call %s: %s", c.Caller, target, c.Text)
}
