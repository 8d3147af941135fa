package intent

import (
	"fmt"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"

	"merlon"
	"merlon/contract"
	"merlon/contract/route"
)

// resolve gives every name its meaning, and reports those that have none.
func (e *estate) resolve(rec *recorder) {
	e.zones = map[string]merlon.Pos{}
	for _, s := range e.services {
		if s.Zone != "" {
			if _, there := e.zones[s.Zone]; !there {
				e.zones[s.Zone] = s.Pos
			}
		}
	}
	slices.SortStableFunc(e.services, func(a, b *serviceDef) int { return strings.Compare(a.Name, b.Name) })
	slices.SortStableFunc(e.logins, func(a, b *loginDef) int { return strings.Compare(a.Name, b.Name) })
	if !e.domainSeen && !e.incomplete {
		e.report.at(word{pos: merlon.Pos{File: rootFile, Line: 1, Column: 1}, width: 1}, codeMissingKey,
			"write trustDomain: shop.example, with a name of your own", "the intent needs the key %q", "trustDomain")
	}
	e.resolveLogins(rec)
	e.resolvePartners(rec)
	e.resolveNodes(rec)
	for _, s := range e.services {
		e.resolveOperations(s, rec)
		e.resolveHosts(s)
		e.resolveSockets(s)
	}
	e.resolveUnique()
	for _, s := range e.services {
		e.resolveRules(s)
		e.resolvePorts(s)
		e.resolvePlace(s)
	}
	e.resolveGuardrails()
	for i := range e.tests {
		if e.tests[i].good {
			e.resolveTest(&e.tests[i])
		}
	}
	for _, l := range e.logins {
		if !l.used && !e.failed() {
			e.report.at(l.name, codeUnusedLogin, "name it in the callers of a service, or remove it", "no rule lets login %q call anything", l.Name)
		}
	}
	for _, n := range e.nodes {
		if !n.used && !e.failed() {
			e.report.at(n.name, codeUnusedNode, "name it in the nodes of a service, or remove it", "no service is on node %q", n.Name)
		}
	}
}

// intent is the whole, once nothing is wrong with it.
func (e *estate) intent() *merlon.Intent {
	in := &merlon.Intent{TrustDomain: e.trustDomain, Mode: e.mode, Gateway: e.gateway, Telemetry: e.telemetry}
	for _, l := range e.logins {
		in.Gateway.Logins = append(in.Gateway.Logins, l.LoginRule)
	}
	for _, p := range e.partners {
		in.Federation = append(in.Federation, p.Partner)
	}
	for _, n := range e.nodes {
		in.Nodes = append(in.Nodes, n.Node)
	}
	for _, s := range e.services {
		for _, r := range s.rules {
			s.Rules = append(s.Rules, r.Rule)
		}
		in.Services = append(in.Services, s.Service)
	}
	for _, g := range e.guardrails {
		in.Guardrails = append(in.Guardrails, g.Guardrail)
	}
	for _, t := range e.tests {
		in.Tests = append(in.Tests, t.Test)
	}
	return in
}

func (e *estate) service(name string) *serviceDef {
	i, ok := slices.BinarySearchFunc(e.services, name, func(s *serviceDef, n string) int { return strings.Compare(s.Name, n) })
	if !ok {
		return nil
	}
	return e.services[i]
}

func (e *estate) login(name string) *loginDef {
	i, ok := slices.BinarySearchFunc(e.logins, name, func(l *loginDef, n string) int { return strings.Compare(l.Name, n) })
	if !ok {
		return nil
	}
	return e.logins[i]
}

// unsure says whether a name that is not defined may be defined after all,
// where something failed that is reported already.
func (e *estate) unsure(name string) bool { return e.incomplete || e.dubious[name] }

func (e *estate) resolveLogins(rec *recorder) {
	type proof struct{ issuer, audience string }
	seen := map[proof]*loginDef{}
	for _, l := range e.logins {
		if l.Issuer != "" && l.Audience != "" {
			p := proof{l.Issuer, l.Audience}
			if first := seen[p]; first != nil {
				e.report.add(l.name, codeTwice, "give each an audience of its own, or keep one login and tell people apart by claims",
					[]merlon.Pos{first.Pos}, "logins %q and %q have the same issuer and audience", first.Name, l.Name)
			}
			seen[p] = l
		}
		switch {
		case l.keys.text == "":
		case strings.Contains(l.keys.text, "://"):
			if p := httpsURL(l.keys.text); p != nil {
				e.report.problem(l.keys, p)
			}
			l.KeySet = l.keys.text
		default:
			e.readKeys(l, rec)
		}
	}
}

func (e *estate) readKeys(l *loginDef, rec *recorder) {
	if l.local != nil {
		e.report.at(*l.local, codeContradiction, "remove allowLocal", "allowLocal is for keys at a URL, and these are in a file")
	}
	if b, ok := e.file(l.keys, rec, l.keys.pos.File); ok {
		if p := publicKeys(b); p != nil {
			e.report.problem(l.keys, p)
		}
		l.Keys = string(b)
	}
}

// file reads the file that w names, relative to the file in which w stands.
func (e *estate) file(w word, rec *recorder, from string) ([]byte, bool) {
	name, p := relative(from, w.text)
	if p != nil {
		e.report.problem(w, p)
		return nil, false
	}
	b, err := rec.ReadFile(name)
	if err != nil {
		hint := ""
		if dir := path.Dir(name); rec.fsys != nil {
			hint = neighbour(rec, dir, path.Base(name))
		}
		e.report.at(w, codeFile, hint, "cannot read %q: %v", name, cause(err))
		return nil, false
	}
	return b, true
}

// resolveOperations collects what a service offers, from its contract and from
// what is named in the intent.
func (e *estate) resolveOperations(s *serviceDef, rec *recorder) {
	if s.protocol != nil {
		_ = s.Protocol.UnmarshalText([]byte(s.protocol.text)) // the table has checked it
	}
	at := map[string]merlon.Pos{}
	if s.contract != nil {
		e.readContract(s, rec)
		for _, o := range s.Operations {
			at[o.Name] = o.Pos
		}
	}
	if s.Protocol == merlon.TCP && s.operated != nil {
		e.report.add(*s.operated, codeContradiction, "remove the operations, or the protocol", []merlon.Pos{s.protocol.pos},
			"a tcp service has no operations")
		s.unsure = true
		return
	}
	for _, d := range s.inline {
		o, err := route.ParseInline(d.value.text)
		if err != nil {
			message, hint, _ := strings.Cut(err.Error(), "; ")
			if hint == "" {
				hint = "write METHOD /path, such as GET /orders/{id}"
			}
			e.report.at(d.value, codeOperation, hint, "%s", message)
			s.unsure = true
			continue
		}
		if first, there := at[d.name.text]; there {
			e.report.add(d.name, codeTwice, "rename this one, or remove it: the contract has it", []merlon.Pos{first},
				"operation %q is in the contract too", d.name.text)
			continue
		}
		at[d.name.text] = d.name.pos
		o.Name, o.Pos = d.name.text, d.name.pos
		s.Operations = append(s.Operations, o)
	}
	if s.contract != nil && len(s.inline) > 0 || len(s.inline) > 1 {
		routes := make([]route.Route, len(s.Operations))
		for i, o := range s.Operations {
			routes[i] = route.Route{Method: o.Method, Path: o.Path, Pos: o.Pos, Name: o.Name}
		}
		_, ds := route.NewRouter(routes)
		e.report.ds = append(e.report.ds, ds...)
	}
	if s.External && s.contract == nil && s.operated == nil && s.Protocol != merlon.TCP {
		s.Operations = []merlon.Operation{
			{Name: "any", Method: "*", Path: "/{rest...}", Params: []merlon.ParamSpec{{Name: "rest", In: merlon.InPath, Required: true}}, Pos: s.Pos},
			{Name: "root", Method: "*", Path: "/", Pos: s.Pos},
		}
	}
	slices.SortFunc(s.Operations, func(a, b merlon.Operation) int { return strings.Compare(a.Name, b.Name) })
}

func (e *estate) readContract(s *serviceDef, rec *recorder) {
	if s.Protocol == merlon.TCP {
		e.report.add(*s.contract, codeContradiction, "remove the contract, or the protocol", []merlon.Pos{s.protocol.pos},
			"a tcp service has no contract")
		s.unsure = true
		return
	}
	if _, ok := e.file(*s.contract, rec, s.file); !ok {
		s.unsure = true
		return
	}
	name, _ := relative(s.file, s.contract.text)
	c, ds := contract.Load(rec, name)
	e.report.ds = append(e.report.ds, ds...)
	if c == nil || ds.Failed() {
		s.unsure = true
		return
	}
	s.Operations = slices.Clone(c.Operations)
	switch {
	case s.Protocol == merlon.HTTP2 && c.Protocol == merlon.HTTP:
		// A contract for HTTP does not say which version is read.
	case s.protocol != nil && s.Protocol != c.Protocol:
		e.report.add(*s.protocol, codeContradiction, "remove the protocol: the contract says it", []merlon.Pos{s.contract.pos},
			"protocol is %v here and %v in the contract", s.Protocol, c.Protocol)
	case s.External && c.Protocol != merlon.HTTP:
		e.report.at(*s.contract, codeContradiction, "an external service speaks HTTP", "the contract is for %v", c.Protocol)
	default:
		s.Protocol = c.Protocol
	}
}

func (e *estate) resolveHosts(s *serviceDef) {
	switch {
	case s.hostless && s.foreign == nil:
		e.report.at(s.name, codeMissingKey, "write hosts: public host names", "external service needs the key %q", "hosts")
	case s.foreign != nil:
		e.resolveProof(s)
	}
	switch {
	case s.External && s.Protocol == merlon.TCP:
		e.resolveTarget(s)
	case s.External:
		for _, h := range s.hosts {
			if p := publicHost(h.text); p != nil {
				e.report.problem(h, p)
			}
		}
		if len(s.Addresses) == 0 {
			for _, h := range s.Hosts {
				s.Addresses = append(s.Addresses, "dns:"+h+":443")
			}
		}
	case e.gateway == nil:
		if len(s.hosts) > 0 && !e.incomplete {
			e.report.at(s.hosts[0], codeGatewayHost, "write a gateway with this host in "+rootFile, "there is no gateway to have the host %q", s.hosts[0].text)
		}
	case len(s.hosts) == 0:
		s.Hosts = slices.Clone(e.gateway.Hosts)
	default:
		for _, h := range s.hosts {
			if !slices.Contains(e.gateway.Hosts, h.text) && len(e.gateway.Hosts) > 0 {
				hint := "the hosts of the gateway are " + someOf(e.gateway.Hosts)
				if near := nearest(h.text, e.gateway.Hosts); near != "" {
					hint = fmt.Sprintf("did you mean %q?", near)
				}
				e.report.add(h, codeGatewayHost, hint, []merlon.Pos{e.gateway.Pos}, "the gateway has no host %q", h.text)
			}
		}
	}
}

// resolveSigns finds services of which one is recognised by nothing but what the
// other is recognised by too: a process that is the one would be both, and so
// would be neither.
func (e *estate) resolveSigns() {
	// By the first of its selectors: all of them are among the other's.
	wide := map[string][]*serviceDef{}
	for _, s := range e.services {
		if s.Workload != nil {
			first := s.Workload.Selectors()[0]
			wide[first] = append(wide[first], s)
		}
	}
	for _, narrow := range e.services {
		if narrow.Workload == nil {
			continue
		}
		own := narrow.Workload.Selectors()
		has := withDigests(own)
		for _, selector := range has {
			for _, s := range wide[selector] {
				says := s.Workload.Selectors()
				equal := slices.Equal(says, own)
				// Of two that say the same, the later is reported.
				if s == narrow || !together(s, narrow) || equal && narrow.sign.pos.Compare(s.sign.pos) < 0 ||
					slices.ContainsFunc(says, func(sel string) bool { return !slices.Contains(has, sel) }) {
					continue
				}
				e.report.add(*narrow.sign, codeWorkload, "let each service have something of its own, such as a user, or one could take the identity of the other",
					[]merlon.Pos{s.sign.pos}, "what is recognised as %s by %q is recognised as %s too, by %s", narrow.name.text, narrow.sign.text, s.name.text, strings.Join(says, " and "))
			}
		}
	}
}

// withDigests adds what an image named beside its digest is as well: an image of
// that digest.
func withDigests(selectors []string) []string {
	all := slices.Clone(selectors)
	for _, s := range selectors {
		if name, digest, ok := strings.Cut(s, "@sha256:"); ok {
			if kind, _, ok := strings.Cut(name, "image "); ok {
				all = append(all, kind+`image "sha256:`+digest)
			}
		}
	}
	return all
}

// together says whether workloads of both run on one host.
func together(a, b *serviceDef) bool {
	return len(a.Nodes)+len(b.Nodes) == 0 || slices.ContainsFunc(a.Nodes, func(n string) bool { return slices.Contains(b.Nodes, n) })
}

// resolveUnique finds what two services cannot both have: the signs by which a
// process is recognised, and the name of an external service.
func (e *estate) resolveUnique() {
	e.resolveSigns()
	hosts := map[string]word{}
	for _, s := range e.services {
		if !s.External {
			continue
		}
		for _, h := range s.hosts {
			if first, taken := hosts[h.text]; taken && first.pos != h.pos {
				e.report.add(h, codeTwice, "keep it in one external service", []merlon.Pos{first.pos}, "host %q is in two external services", h.text)
			} else {
				hosts[h.text] = h
			}
			if e.gateway != nil && slices.Contains(e.gateway.Hosts, h.text) {
				e.report.add(h, codeTwice, "a host is the gateway's or external", []merlon.Pos{e.gateway.Pos}, "host %q is the gateway's", h.text)
			}
		}
	}
}

// resolveRules resolves who may call s, and what.
func (e *estate) resolveRules(s *serviceDef) {
	for _, r := range s.rules {
		e.resolveCaller(s, r)
		if r.All {
			e.resolveAll(s, r)
		}
		for _, w := range r.ops {
			if s.Protocol == merlon.TCP {
				e.report.add(w, codeNoOperation, "write all: rules for tcp are about identity alone", []merlon.Pos{s.protocol.pos},
					"tcp service %s has no operations", s.Name)
				break
			}
			if e.operation(s, w) {
				r.Operations = append(r.Operations, w.text)
			}
		}
	}
	for i := 0; i < len(s.rules); {
		n := 1 // sentences about one caller stand together
		for i+n < len(s.rules) && s.rules[i+n].Caller == s.rules[i].Caller {
			n++
		}
		if n > 1 {
			e.resolveOverlap(s, s.rules[i:i+n])
		}
		i += n
	}
}

// resolveOverlap finds an operation about which two sentences of one caller
// speak. A tcp service has none: there, two sentences are one too many.
func (e *estate) resolveOverlap(s *serviceDef, rules []*ruleDef) {
	taken := map[string]*ruleDef{}
	for _, r := range rules {
		names := r.Operations
		if s.Protocol == merlon.TCP {
			names = []string{""}
		}
		for _, name := range names {
			first := taken[name]
			if first == nil {
				taken[name] = r
				continue
			}
			about := fmt.Sprintf("caller %q and operation %q", r.Caller, name)
			if name == "" {
				about = fmt.Sprintf("caller %q", r.Caller)
			}
			e.report.add(word{pos: r.Pos, width: r.width}, codeOverlap, "exactly one sentence decides a call: join the two, or divide the operations",
				[]merlon.Pos{first.Pos}, "two sentences are about %s", about)
			break
		}
	}
}

// resolveAll gives "all" its meaning of today, so that a reader of the intent
// sees it.
func (e *estate) resolveAll(s *serviceDef, r *ruleDef) {
	if s.all == nil {
		for _, o := range s.Operations {
			s.all = append(s.all, o.Name)
		}
	}
	r.Operations = slices.Clip(s.all) // shared: one contract may have thousands, and many callers
	if len(s.Operations) == 0 && s.Protocol != merlon.TCP && !s.unsure {
		e.report.add(r.caller, codeNothing, "write a contract or operations, or protocol: tcp", []merlon.Pos{s.Pos},
			"service %s offers no operation that %q could call", s.Name, r.Caller)
	}
}

// operation says whether s has the operation that w names, and reports it when
// not.
func (e *estate) operation(s *serviceDef, w word) bool {
	if s.index == nil {
		s.index = make(map[string]bool, len(s.Operations))
		for _, o := range s.Operations {
			s.index[o.Name] = true
		}
	}
	if s.index[w.text] {
		return true
	}
	if s.unsure || e.report.full() {
		return false
	}
	defined := make(map[string]merlon.Pos, len(s.Operations))
	for _, o := range s.Operations {
		defined[o.Name] = o.Pos
	}
	hint := didYouMean(w.text, defined)
	switch {
	case hint != "":
	case len(defined) == 0:
		hint = "it has none: write a contract or operations"
	default:
		hint = "its operations are " + someOf(slices.Sorted(maps.Keys(defined)))
	}
	e.report.at(w, codeNoOperation, hint, "service %s has no operation %q", s.Name, clip(w.text))
	return false
}

// resolveCaller checks that a rule's caller exists and can call s.
func (e *estate) resolveCaller(s *serviceDef, r *ruleDef) {
	w := r.caller
	if merlon.ForeignDomain(r.Caller) != "" {
		e.resolveForeign(s, r)
		return
	}
	outside := r.Caller == merlon.AnyCaller
	if l := e.login(r.Caller); l != nil {
		l.used, outside = true, true
	}
	if outside {
		switch {
		case s.External:
			e.report.at(w, codeCannotCall, "name the services that call it: the gateway does not lead out again",
				"%q comes through the gateway and cannot call the external service %s", r.Caller, s.Name)
		case e.gateway == nil && !e.incomplete:
			e.report.at(w, codeCannotCall, "write a gateway with its hosts in "+rootFile, "%q comes through the gateway, and there is none", r.Caller)
		}
		return
	}
	caller := e.service(r.Caller)
	switch {
	case caller != nil && caller.External:
		e.report.add(w, codeCannotCall, "remove it", []merlon.Pos{caller.Pos}, "external service %q cannot call", r.Caller)
	case caller != nil:
		if r.per != nil && r.Limit.Per == merlon.PerClient {
			e.report.at(*r.per, codeNothing, "write per: caller, or leave it out", "a call from service %q has no client address to count by", r.Caller)
		}
	case !e.unsure(r.Caller):
		e.report.at(w, codeNoCaller, e.callerHint(r.Caller), "no service or login is called %q", clip(r.Caller))
	}
}

func (e *estate) callerHint(name string) string {
	if e.report.full() {
		return ""
	}
	defined := map[string]merlon.Pos{merlon.AnyCaller: {}}
	for n, p := range e.named {
		if s := e.service(n); s == nil || !s.External {
			defined[n] = p
		}
	}
	if hint := didYouMean(name, defined); hint != "" {
		return hint
	}
	switch name {
	case merlon.GatewayName, "everyone", "public", "internet", "world", "all":
		return "anyone is everyone who comes through the gateway"
	}
	return "a caller is a service, a login or anyone; there are " + someOf(slices.Sorted(maps.Keys(defined)))
}

// callee finds the service that a guardrail or a test names.
func (e *estate) callee(w word) *serviceDef {
	s := e.service(w.text)
	if s == nil && !e.unsure(w.text) && !e.report.full() {
		defined := map[string]merlon.Pos{}
		for _, s := range e.services {
			defined[s.Name] = s.Pos
		}
		hint := didYouMean(w.text, defined)
		if hint == "" && len(defined) > 0 {
			hint = "the services are " + someOf(slices.Sorted(maps.Keys(defined)))
		}
		e.report.at(w, codeNoService, hint, "no service is called %q", clip(w.text))
	}
	return s
}

func (e *estate) resolveGuardrails() {
	seen := map[string]word{}
	for i := range e.guardrails {
		g := &e.guardrails[i]
		if first, taken := seen[g.Name]; taken && g.Name != "" {
			e.report.add(g.name, codeTwice, "rename one", []merlon.Pos{first.pos}, "guardrail %q is defined twice", g.Name)
		}
		seen[g.Name] = g.name
		if !g.good {
			continue
		}
		if w := g.edges.caller; !e.zone(w) && w.text != "*" && w.text != merlon.AnyCaller && e.login(w.text) == nil {
			s := e.service(w.text)
			switch {
			case s == nil && !e.unsure(w.text):
				e.report.at(w, codeNoCaller, e.callerHint(w.text), "no service or login is called %q", clip(w.text))
			case s != nil && s.External:
				e.report.add(w, codeCannotCall, "remove the guardrail: it denies nothing", []merlon.Pos{s.Pos}, "external service %q cannot call", w.text)
			}
		}
		e.resolveDenied(g)
	}
}

// resolveDenied checks the callee of a guardrail, and its operation: one that
// nobody offers would deny nothing.
func (e *estate) resolveDenied(g *guardrailDef) {
	w, op := g.edges.callee, g.edges.operation
	if w.text != "*" && !e.zone(w) {
		if s := e.callee(w); s != nil && op.text != "" {
			e.operation(s, op)
		}
		return
	}
	if op.text == "" {
		return
	}
	zone, inZone := strings.CutPrefix(w.text, "zone:")
	for _, s := range e.services {
		if (!inZone || s.Zone == zone) && (s.unsure || s.Operation(op.text) != nil) {
			return
		}
	}
	if !e.incomplete && len(e.dubious) == 0 {
		e.report.at(op, codeNoOperation, "the guardrail would deny nothing", "no service of %q has an operation %q", w.text, clip(op.text))
	}
}

// zone says whether w names a zone, and reports it when no service is in it.
func (e *estate) zone(w word) bool {
	name, ok := strings.CutPrefix(w.text, "zone:")
	if !ok {
		return false
	}
	if _, there := e.zones[name]; !there && !e.incomplete && len(e.dubious) == 0 {
		hint := didYouMean(name, e.zones)
		if hint == "" {
			hint = "write zone: " + name + " at a service, or remove the guardrail: it denies nothing"
		}
		e.report.at(w.part(len("zone:"), len(w.text)), codeNoZone, hint, "no service is in zone %q", name)
	}
	return true
}

func (e *estate) resolveTest(t *testDef) {
	isLogin := e.login(t.Call.Caller) != nil
	outside := isLogin || t.Call.Caller == merlon.AnyCaller
	if of := merlon.ForeignDomain(t.Call.Caller); of != "" && e.partner(of) == nil && !e.unsure(of) {
		e.report.at(t.caller, codeNoCaller, "name a trust domain of the federation", "%q is no trust domain of the federation", clip(of))
		return
	} else if of == "" && !outside {
		s := e.service(t.Call.Caller)
		switch {
		case s == nil && !e.unsure(t.Call.Caller):
			e.report.at(t.caller, codeNoCaller, e.callerHint(t.Call.Caller), "no service or login is called %q", clip(t.Call.Caller))
			return
		case s != nil && s.External:
			e.report.add(t.caller, codeCannotCall, "an external service is only called", []merlon.Pos{s.Pos}, "external service %q cannot call", s.Name)
		}
	}
	if t.claims != nil && !isLogin && !e.unsure(t.Call.Caller) {
		e.report.at(*t.claims, codeNothing, "name a login as the caller, or remove the claims", "%q has no token, and so no claims", t.Call.Caller)
	}
	if t.Call.Callee == "" {
		e.resolveURL(t, outside)
		return
	}
	s := e.callee(t.callee)
	switch {
	case s == nil:
	case t.Call.Operation != "":
		e.operation(s, t.operation)
	case t.Method == "" && s.Protocol != merlon.TCP:
		e.report.at(t.callee, codeCall, callHint, "the call of %s names no operation", s.Name)
	case t.Method != "" && s.Protocol == merlon.TCP:
		e.report.at(t.path, codeCall, "write "+t.Call.Caller+" -> "+s.Name, "tcp service %s has no paths", s.Name)
	}
}

// resolveURL checks a test of a call through the gateway.
func (e *estate) resolveURL(t *testDef, outside bool) {
	u, err := url.Parse(t.Path)
	switch {
	case err != nil || e.incomplete:
	case !outside:
		e.report.at(t.caller, codeCannotCall, "write "+t.Call.Caller+" -> SERVICE "+t.Method+" /path", "service %q does not come through the gateway", t.Call.Caller)
	case e.gateway == nil:
		e.report.at(t.path, codeGatewayHost, "write a gateway in "+rootFile, "there is no gateway to call")
	case !slices.Contains(e.gateway.Hosts, canonicalHost(u)) && len(e.gateway.Hosts) > 0:
		e.report.add(t.path, codeGatewayHost, "the hosts of the gateway are "+someOf(e.gateway.Hosts), []merlon.Pos{e.gateway.Pos},
			"the gateway has no host %q", clip(canonicalHost(u)))
	}
}

// canonicalHost is the host of a URL as the gateway would see it.
func canonicalHost(u *url.URL) string {
	h := strings.ToLower(u.Hostname())
	if strings.Contains(h, ":") {
		return "[" + h + "]"
	}
	return h
}

// neighbour suggests a file that is there.
func neighbour(rec *recorder, dir, base string) string {
	near := nearest(base, siblings(rec, dir))
	if near == "" {
		return ""
	}
	return fmt.Sprintf("did you mean %q?", path.Join(dir, near))
}
