package verify

import (
	"fmt"
	"slices"
	"strings"

	"merlon"
	"merlon/policy"
)

// service compares what callers may do with one service.
func (d *differ) service(name string) {
	atoms := d.atoms(name)
	// Operations for which the same thing changes for one caller are one change.
	var groups []*Change
	index := map[string]*Change{}
	put := func(c Change, operation, example string) {
		key := fmt.Sprint(c.Kind, "|", c.CallerKind, "|", c.Caller, "|", c.Old, "|", c.New, "|", c.When, "|", c.Text)
		g := index[key]
		if g == nil {
			g = &c
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
				if p.kind == merlon.Login && d.asAnyone(name, host, a, was, is) {
					continue
				}
				if c, ok := compare(was, is); ok {
					c.Caller, c.CallerKind = p.name, p.kind
					put(c, a.name(), example(p, name, host, a))
				}
				if c, ok := sockets(was, is, a); ok {
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
	d.unruled(name, atoms, put)
	d.exposure(name, atoms)
	for _, g := range groups {
		slices.Sort(g.Operations)
		g.Text = sentence(g)
		d.add(*g)
	}
}

// unruled reports operations that come or go while their service is in shadow
// mode: every caller inside may use them, without a rule.
func (d *differ) unruled(name string, atoms []atom, put func(c Change, operation, example string)) {
	if !d.old.shadow(name) || !d.new.shadow(name) {
		return // not so, or said with the mode
	}
	for i := range atoms {
		a := &atoms[i]
		switch {
		case a.old == nil:
			put(Change{Kind: Shadowed, New: d.new.services[name].Pos}, a.name(), "")
		case a.new == nil:
			put(Change{Kind: Enforced, Old: d.old.services[name].Pos}, a.name(), "")
		case a.method == "GET" && a.new.WebSocket && !a.old.WebSocket:
			put(Change{Kind: Shadowed, New: a.new.Pos, Text: bySocket}, a.name(), "")
		}
	}
}

// shadow reports whether calls of a service that no rule allows pass.
func (s *side) shadow(name string) bool {
	service := s.services[name]
	return service != nil && (s.intent.Mode == merlon.Shadow || service.Mode == merlon.Shadow)
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

// asAnyone reports whether the same sentences are about anyone: what changes
// for a login is said there already.
func (d *differ) asAnyone(service, host string, a *atom, was, is *policy.Edge) bool {
	anyoneWas, anyoneIs := d.see(party{merlon.Anyone, merlon.AnyCaller}, service, host, a)
	return sameSentence(was, anyoneWas) && sameSentence(is, anyoneIs)
}

func sameSentence(a, b *policy.Edge) bool {
	return a == nil && b == nil || a != nil && b != nil && a.Rule == b.Rule
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

// bySocket marks a change that is about WebSockets only.
const bySocket = " by WebSocket"

// sockets says whether calls that both policies let pass may become WebSockets
// in one of them only.
func sockets(was, is *policy.Edge, a *atom) (Change, bool) {
	if was == nil || is == nil || a.old == nil || a.new == nil || a.method != "GET" || a.old.WebSocket == a.new.WebSocket {
		return Change{}, false
	}
	c := Change{Kind: Refused, Old: was.Rule.Pos, Text: bySocket}
	if a.new.WebSocket {
		c = Change{Kind: Allowed, New: is.Rule.Pos, Text: bySocket}
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
func (d *differ) exposure(name string, atoms []atom) {
	anyone := party{merlon.Anyone, merlon.AnyCaller}
	type opening struct {
		Change
		hosts []string
	}
	var list []*opening
	for _, host := range names(set(d.old.hosts(name)), set(d.new.hosts(name))) {
		here := [2]*opening{{Change: Change{Kind: Exposed, Service: name}}, {Change: Change{Kind: Closed, Service: name}}}
		for i := range atoms {
			a := &atoms[i]
			was := d.old.policy.RouteEdge(host, a.method, a.path, nil)
			is := d.new.policy.RouteEdge(host, a.method, a.path, nil)
			open, opens := was.Operation != nil && was.Service.Name == name, is.Operation != nil && is.Service.Name == name
			o := here[0]
			switch {
			case open == opens:
				continue
			case opens:
				o.New = is.Service.Pos
			default:
				o = here[1]
				o.Old = was.Service.Pos
			}
			if len(o.Operations) == 0 {
				o.Example = example(anyone, name, host, a)
			}
			if !slices.Contains(o.Operations, a.name()) {
				o.Operations = append(o.Operations, a.name())
			}
		}
		for _, o := range here {
			if len(o.Operations) == 0 {
				continue
			}
			slices.Sort(o.Operations)
			at := slices.IndexFunc(list, func(p *opening) bool { return p.Kind == o.Kind && slices.Equal(p.Operations, o.Operations) })
			if at < 0 {
				at, list = len(list), append(list, o)
			}
			list[at].hosts = append(list[at].hosts, host)
		}
	}
	for _, o := range list {
		o.Text = and(o.hosts)
		o.Text = sentence(&o.Change)
		d.add(o.Change)
	}
}

// and joins words, the first few of them.
func and(words []string) string {
	switch n := len(words); {
	case n == 1:
		return words[0]
	case n > maxNames:
		return fmt.Sprintf("%s and %d more", strings.Join(words[:maxNames], ", "), n-maxNames)
	default:
		return strings.Join(words[:n-1], ", ") + " and " + words[n-1]
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
	if len(c.Operations) == 1 {
		target += "." + c.Operations[0]
	} else if len(c.Operations) > 1 {
		target = and(c.Operations) + " of " + c.Service
	}
	switch c.Kind {
	case Allowed:
		return fmt.Sprintf("%s may call %s%s", c.Caller, target, c.Text)
	case Refused:
		return fmt.Sprintf("%s may no longer call %s%s", c.Caller, target, c.Text)
	case Condition:
		return fmt.Sprintf("%s may call %s on another condition", c.Caller, target)
	case Shadowed:
		if c.Text == bySocket {
			return fmt.Sprintf("%s may become a WebSocket, and in shadow mode calls that no rule allows pass", target)
		}
		return fmt.Sprintf("%s is new, and in shadow mode calls that no rule allows pass", target)
	case Enforced:
		return fmt.Sprintf("%s is gone; in shadow mode calls that no rule allows passed", target)
	case Exposed:
		return fmt.Sprintf("the gateway answers %s on %s", target, c.Text)
	case Closed:
		return fmt.Sprintf("the gateway no longer answers %s on %s", target, c.Text)
	}
	return fmt.Sprintf("%s may call %s: %s", c.Caller, target, c.Text)
}
