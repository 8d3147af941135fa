package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"merlon"
	"merlon/contract/route"
)

// Explanation is why a call is allowed or denied, for people who may know.
type Explanation struct {
	Verdict merlon.Verdict `json:"verdict"`
	// Why says in one sentence what decided.
	Why string `json:"why"`
	// Nearest is the rule that came closest to allowing a denied call.
	Nearest    string     `json:"nearest,omitzero"`
	NearestPos merlon.Pos `json:"nearestPos,omitzero"`
	// Changes of the intent that would, all together, allow the call: the
	// smallest that do. None when no change of the intent would.
	Changes []Change `json:"changes,omitzero"`
	// Advice is for the caller: what to do without changing the intent.
	Advice string `json:"advice,omitzero"`
}

// Change is one edit of an intent.
type Change struct {
	Pos     merlon.Pos `json:"pos"`
	Say     string     `json:"say"`
	Line    string     `json:"line,omitzero"`    // the YAML to write
	Replace bool       `json:"replace,omitzero"` // Line stands for the entry at Pos, instead of below it
}

// hint is the explanation's way out, in one line.
func (e *Explanation) hint() string {
	var parts []string
	for _, c := range e.Changes {
		text := fmt.Sprintf("%s at %v", c.Say, c.Pos)
		if c.Line != "" {
			text += ": " + c.Line
		}
		parts = append(parts, text)
	}
	if len(parts) == 0 {
		return e.Advice
	}
	return strings.Join(parts, "; and ")
}

// Explain decides the call as Decide does, and says why, which rule came
// nearest, and which change of the intent would allow it. It is for questions,
// not for every call.
func (p *Policy) Explain(c *merlon.Call) Explanation {
	x := explainer{p: p, c: c, e: Explanation{Verdict: p.Decide(c)}}
	v := x.e.Verdict
	switch {
	case v.Effect == merlon.Allow && !v.Shadow:
		x.say("%s lets %s call %s", v.Rule, x.caller(), x.callee())
		x.e.Nearest, x.e.NearestPos = v.Rule, v.Pos
	case v.Reason == merlon.ReasonUnidentified:
		x.say("the caller is not identified")
		x.e.Advice = "call through the gate of a service, or through the gateway"
	case p == nil || p.intent == nil:
		x.say("there is no policy, and without one everything is denied")
	case x.stranger() && (v.Reason == merlon.ReasonNoService || v.Reason == merlon.ReasonNoOperation):
		x.say("there is no caller %q", c.Caller.Name)
		x.e.Advice = x.strangerAdvice()
	case v.Reason == merlon.ReasonNoService:
		x.noService()
	case v.Reason == merlon.ReasonNoOperation:
		x.noOperation(p.services[c.Service])
	default:
		x.denied(p.services[c.Service].operations[c.Operation])
	}
	if v.Shadow {
		x.e.Why += "; it passes because of shadow mode"
	}
	return x.e
}

// explainer is one Explain.
type explainer struct {
	p *Policy
	c *merlon.Call
	e Explanation
}

func (x *explainer) say(format string, args ...any) { x.e.Why = fmt.Sprintf(format, args...) }

func (x *explainer) change(pos merlon.Pos, replace bool, line, format string, args ...any) {
	x.e.Changes = append(x.e.Changes, Change{Pos: pos, Say: fmt.Sprintf(format, args...), Line: line, Replace: replace})
}

// caller is the caller as rules name it.
func (x *explainer) caller() string {
	if x.c.Caller.Kind == merlon.Anyone {
		return merlon.AnyCaller
	}
	return x.c.Caller.Name
}

func (x *explainer) callee() string {
	if x.c.Operation == "" {
		return x.c.Service
	}
	return x.c.Service + "." + x.c.Operation
}

// noService explains a name or host that leads to no service.
func (x *explainer) noService() {
	in := x.p.intent
	if x.c.Service != "" {
		names := make([]string, len(in.Services))
		for i := range in.Services {
			names[i] = in.Services[i].Name
		}
		x.say("there is no service %q", x.c.Service)
		x.e.Advice = suggest(x.c.Service, names)
		return
	}
	if in.Gateway == nil {
		x.say("there is no gateway, and so nothing is reachable from outside")
		return
	}
	if x.p.hosts[x.c.Host] == nil {
		x.say("the gateway does not serve host %q", x.c.Host)
		x.e.Advice = suggest(x.c.Host, in.Gateway.Hosts)
		x.change(in.Gateway.Pos, false, "hosts: ["+strings.Join(append(slices.Clone(in.Gateway.Hosts), x.c.Host), ", ")+"]",
			"add the host to the gateway")
		return
	}
	// The host is known, the path is not: it may be there and closed.
	x.e.Verdict.Reason = merlon.ReasonNoOperation
	for i := range in.Services {
		s := x.p.services[in.Services[i].Name]
		if s.External || s.opaque || len(s.Hosts) > 0 && !slices.Contains(s.Hosts, x.c.Host) {
			continue
		}
		if at, _, found := s.router.Match(x.c.Method, x.c.Path, nil); found == route.Matched {
			x.closed(s.ordered[at])
			return
		}
	}
	x.say("nothing at the gateway answers %s %s on %s", x.c.Method, x.c.Path, x.c.Host)
	x.nearOperations(func(s *service) bool {
		return !s.External && (len(s.Hosts) == 0 || slices.Contains(s.Hosts, x.c.Host))
	}, true)
}

// closed explains an operation that is there, but not for callers outside.
func (x *explainer) closed(op *operation) {
	call := *x.c
	call.Service, call.Operation = op.service.Name, op.Name
	x.c = &call
	x.denied(op)
	x.say("%s answers %s %s, but no rule opens it to the gateway", op.full(), op.Method, op.Path)
}

// noOperation explains a name, or a method and path, that a service does not have.
func (x *explainer) noOperation(s *service) {
	if x.c.Operation != "" {
		x.say("service %q has no operation %q", s.Name, x.c.Operation)
		x.e.Advice = suggest(x.c.Operation, operationNames(s.Service))
		return
	}
	if !s.opaque && x.c.Caller.Kind != merlon.Workload {
		if at, _, found := s.router.Match(x.c.Method, x.c.Path, nil); found == route.Matched {
			x.closed(s.ordered[at])
			return
		}
	}
	x.say("service %q has no operation for %s %s", s.Name, x.c.Method, x.c.Path)
	x.nearOperations(func(o *service) bool { return o == s }, false)
	if x.c.Method != "" && x.c.Path != "" {
		x.change(s.Pos, false, fmt.Sprintf("operations: {%s: %s %s}", nameFor(x.c.Method, x.c.Path), x.c.Method, x.c.Path),
			"declare the operation in the contract of %s, or name it inline", s.Name)
	}
}

// nameFor makes up a name for an operation.
func nameFor(method, path string) string {
	words := strings.FieldsFunc(path, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9')
	})
	return strings.Join(append([]string{strings.ToLower(method)}, words...), "_")
}

// nearOperations advises the operations that come nearest to a method and path.
func (x *explainer) nearOperations(in func(*service) bool, exposed bool) {
	type near struct {
		op    *operation
		score int
	}
	var best []near
	for _, s := range x.p.services {
		if s.opaque || !in(s) {
			continue
		}
		for _, op := range s.ordered {
			if exposed && !op.exposed {
				continue
			}
			if score := likeness(op, x.c.Method, x.c.Path); score > 0 {
				best = append(best, near{op, score})
			}
		}
	}
	slices.SortFunc(best, func(a, b near) int {
		return cmp.Or(cmp.Compare(b.score, a.score), strings.Compare(a.op.full(), b.op.full()))
	})
	if len(best) == 0 {
		return
	}
	if best[0].score == samePath {
		x.e.Advice = fmt.Sprintf("did you mean %s? that is %s", best[0].op.Method, best[0].op.full())
		return
	}
	var texts []string
	for _, n := range best[:min(3, len(best))] {
		texts = append(texts, fmt.Sprintf("%s (%s %s)", n.op.full(), n.op.Method, n.op.Path))
	}
	x.e.Advice = "nearest: " + strings.Join(texts, ", ")
}

// samePath is the likeness of an operation with the same path and another method.
const samePath = 1 << 20

// likeness says how near an operation is to a method and path; 0 is not at all.
func likeness(op *operation, method, path string) int {
	r, _ := route.NewRouter([]route.Route{{Method: "*", Path: op.Path}})
	if _, _, found := r.Match(method, path, nil); found == route.Matched {
		return samePath
	}
	score := 0
	given, wanted := strings.Split(path, "/"), strings.Split(op.Path, "/")
	for i := 1; i < min(len(given), len(wanted)); i++ {
		switch {
		case given[i] == wanted[i] && given[i] != "":
			score += 8
		case strings.HasPrefix(wanted[i], "{"):
			score += 2
		case nearest(given[i], wanted[i:i+1]) != "":
			score += 4
		default:
			return score
		}
	}
	if score > 0 && len(given) == len(wanted) {
		score++
	}
	return score
}

// denied explains an operation that exists and that the caller may not call.
func (x *explainer) denied(op *operation) {
	who := partyOf(&x.c.Caller)
	why := ""
	for i := range x.p.intent.Guardrails {
		g := &x.p.intent.Guardrails[i]
		if !covers(&g.Deny, op.service.Service, op.Name) || !x.p.speaksOf(g, who) {
			continue
		}
		if why == "" {
			why = fmt.Sprintf("guardrail %q denies %s -> %s", g.Name, g.Deny.Caller, calleeText(&g.Deny))
			if g.Because != "" {
				why += ": " + g.Because
			}
		}
		x.change(g.Pos, false, "", "narrow or remove guardrail %q, which owners of services cannot lift", g.Name)
	}
	guarded := len(x.e.Changes)
	r := op.rule(who)
	switch {
	case r == nil:
		x.noRule(op, who)
	case r.when != nil && r.when.eval(x.c, op) != nil:
		x.condition(op, r)
	default:
		guarded = -1 // the guardrails are all there is
	}
	if len(x.e.Changes) == guarded {
		x.e.Changes = nil // lifting the guardrails would not help
	}
	x.e.Why = cmp.Or(why, x.e.Why)
}

// speaksOf reports whether a guardrail denies who.
func (p *Policy) speaksOf(g *merlon.Guardrail, who party) bool {
	if zone, ok := strings.CutPrefix(g.Deny.Caller, zonePrefix); ok {
		s := p.services[who.name]
		return who.kind == merlon.Workload && s != nil && s.Zone == zone && zone != ""
	}
	switch g.Deny.Caller {
	case everything:
		return true
	case merlon.AnyCaller:
		return who.kind != merlon.Workload
	case who.name:
		return p.caller(who.name).Kind == who.kind
	}
	return false
}

// noRule explains that no rule lets the caller call op.
func (x *explainer) noRule(op *operation, who party) {
	caller, s := x.caller(), op.service
	x.say("no rule lets %s call %s", caller, op.full())
	switch {
	case x.stranger():
		x.e.Advice = x.strangerAdvice()
		return
	case who.kind == merlon.Workload && x.p.services[who.name] != nil && x.p.services[who.name].External:
		x.e.Advice = "an external service cannot call; who is outside comes in through the gateway"
		return
	case who.kind == merlon.Login && x.p.caller(who.name).Kind != merlon.Login:
		x.e.Advice = fmt.Sprintf("%q is no login of the gateway", who.name)
		return
	case who.kind != merlon.Workload && (s.External || s.opaque):
		x.e.Advice = "the gateway does not lead there; let a service of yours call it"
		return
	case who.kind != merlon.Workload && x.p.intent.Gateway == nil:
		x.e.Advice = "there is no gateway, and so nothing is reachable from outside"
		return
	}
	sentences := ruleSentences(s.Service, caller)
	at := slices.IndexFunc(sentences, func(r merlon.Rule) bool { return r.When == "" })
	switch {
	case len(sentences) == 0:
		line := entry(caller, []merlon.Rule{{Caller: caller, Operations: []string{op.Name}, All: op.Name == ""}})
		pos := s.Pos
		if len(s.Rules) > 0 {
			pos = s.Rules[len(s.Rules)-1].Pos
		} else {
			line = "callers: {" + line + "}"
		}
		x.change(pos, false, line, "add %s to the callers of %s", caller, op.full())
		x.nearestRule(op)
		return
	case at >= 0:
		sentences[at].Operations = append(slices.Clone(sentences[at].Operations), op.Name)
		slices.Sort(sentences[at].Operations)
	default:
		at = 0
		sentences = append(sentences, merlon.Rule{Caller: caller, Pos: sentences[0].Pos, Operations: []string{op.Name}})
	}
	x.change(sentences[0].Pos, true, entry(caller, sentences), "add %s to the operations of %s", op.Name, caller)
	x.e.Nearest, x.e.NearestPos = s.Name+": "+caller, sentences[at].Pos
}

// nearestRule finds the rule for the same operation that another caller has:
// first one that the caller could become by logging in.
func (x *explainer) nearestRule(op *operation) {
	var found *rule
	for _, named := range op.rules {
		r := named.rule
		if found == nil || x.c.Caller.Kind != merlon.Workload && r.party.kind == merlon.Login && found.party.kind != merlon.Login {
			found = r
		}
	}
	if found == nil {
		found = op.anyone
	}
	if found == nil && len(op.service.rules) > 0 {
		found = op.service.rules[len(op.service.rules)-1] // of another operation: where the change goes
	}
	if found == nil {
		return
	}
	x.e.Nearest, x.e.NearestPos = found.allowed.Rule, found.Pos
	if x.c.Caller.Kind == merlon.Anyone && found.party.kind == merlon.Login {
		x.e.Advice = fmt.Sprintf("send a token of login %q", found.party.name)
	}
}

// stranger reports whether the caller has the name of no service.
func (x *explainer) stranger() bool {
	if x.c.Caller.Kind != merlon.Workload || x.p == nil || x.p.intent == nil || x.p.services[x.c.Caller.Name] != nil {
		return false
	}
	return x.p.intent.Partner(merlon.ForeignDomain(x.c.Caller.Name)) == nil
}

// strangerAdvice names the caller that was meant: whoever asks about a call may
// have misspelt a service, a login or anyone.
func (x *explainer) strangerAdvice() string {
	if of := merlon.ForeignDomain(x.c.Caller.Name); of != "" {
		return fmt.Sprintf("%q is no trust domain of the federation", of)
	}
	names := []string{merlon.AnyCaller}
	for name, s := range x.p.services {
		if !s.External {
			names = append(names, name)
		}
	}
	if gw := x.p.intent.Gateway; gw != nil {
		for i := range gw.Logins {
			names = append(names, gw.Logins[i].Name)
		}
	}
	text := fmt.Sprintf("%q is no service of the intent", x.c.Caller.Name)
	if near := suggest(x.c.Caller.Name, names); near != "" {
		text += "; " + near
	}
	return text
}

// condition explains a condition that is not met.
func (x *explainer) condition(op *operation, r *rule) {
	err := r.when.eval(x.c, op)
	x.e.Nearest, x.e.NearestPos = r.allowed.Rule, r.Pos
	x.say("the condition %s of %s is not met: %v", r.When, r.allowed.Rule, err)
	if err != error(failFalse) && err != error(failEval) {
		x.e.Advice = "send a request that can be read in one way only"
		return
	}
	met, failed := conjuncts(r, op, x.c)
	if len(failed) > 0 {
		x.say("the condition of %s is not met: %s", r.allowed.Rule, strings.Join(failed, " and "))
	}
	sentences := ruleSentences(op.service.Service, r.Caller)
	for i := range sentences {
		if sentences[i].Pos == r.Pos && sentences[i].When == r.When {
			sentences[i].When = strings.Join(met, " && ")
		}
	}
	x.change(sentences[0].Pos, true, entry(r.Caller, sentences), "drop what is not met from the condition, or meet it")
}
