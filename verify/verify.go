// Package verify compares what policies mean.
//
// Diff says which calls a new policy allows that the old one did not, and which
// it refuses that the old one allowed, each with one call as an example: what a
// person must see before a change of the intent is applied. It looks at calls,
// not at text: an operation that is renamed changes nothing, an operation that
// takes a path from another one changes who may use that path.
package verify

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"merlon"
	"merlon/policy"
)

// Kind is what a Change is about.
type Kind uint8

const (
	Allowed   Kind = iota // calls that were refused are allowed now
	Condition             // the condition is another one: calls may be allowed that were not, and refused that were allowed
	Exposed               // an operation is reachable from outside that was not
	Shadowed              // denials are let pass now, and only recorded
	Unguarded             // a guardrail is gone or covers something else
	Loosened              // a limit is higher or gone
	Trusted               // who counts as a caller, or as its address, is decided otherwise
	Refused               // calls that were allowed are refused now
	Closed                // an operation is no longer reachable from outside
	Enforced              // denials that were let pass are refused now
	Guarded               // a guardrail is new
	Tightened             // a limit is lower or new
)

var kinds = [...]string{"allowed", "condition", "exposed", "shadowed", "unguarded", "loosened", "trusted",
	"refused", "closed", "enforced", "guarded", "tightened"}

// String is the kind's name.
func (k Kind) String() string {
	if int(k) < len(kinds) {
		return kinds[k]
	}
	return fmt.Sprintf("invalid(%d)", uint8(k))
}

// MarshalText writes the kind's name.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads a kind's name.
func (k *Kind) UnmarshalText(text []byte) error {
	i := slices.Index(kinds[:], string(text))
	if i < 0 {
		return fmt.Errorf("%q is no kind of change; expect one of %s", text, strings.Join(kinds[:], ", "))
	}
	*k = Kind(i)
	return nil
}

// Change is one difference between two policies.
type Change struct {
	Kind       Kind              `json:"kind"`
	Caller     string            `json:"caller,omitzero"`
	CallerKind merlon.CallerKind `json:"callerKind,omitzero"`
	Service    string            `json:"service,omitzero"`
	Operations []string          `json:"operations,omitzero"` // sorted
	Text       string            `json:"text"`                // what changes, in words
	When       string            `json:"when,omitzero"`       // the condition under which it does; "" for always
	Example    string            `json:"example,omitzero"`    // one such call, as intent.ParseCall reads it
	Old        merlon.Pos        `json:"old,omitzero"`        // the sentence of the old intent
	New        merlon.Pos        `json:"new,omitzero"`        // the sentence of the new one
}

// Widens reports whether the change lets something pass, or may, that did not
// pass before.
func (c Change) Widens() bool { return c.Kind < Refused }

// Widens reports whether any of the changes lets something more pass.
func Widens(changes []Change) bool { return slices.ContainsFunc(changes, Change.Widens) }

// String writes the change in two lines or three, without a last line end.
func (c Change) String() string {
	var b strings.Builder
	sign := "-"
	switch {
	case c.Kind == Condition:
		sign = "~"
	case c.Widens():
		sign = "+"
	}
	fmt.Fprintf(&b, "%s %s: %s", sign, c.Kind, c.Text)
	if c.When != "" {
		fmt.Fprintf(&b, "\n    when %s", c.When)
	}
	if c.Example != "" {
		fmt.Fprintf(&b, "\n    such as %s", c.Example)
	}
	switch {
	case !c.Old.IsZero() && !c.New.IsZero():
		fmt.Fprintf(&b, "\n    at %v, was at %v", c.New, c.Old)
	case !c.New.IsZero():
		fmt.Fprintf(&b, "\n    at %v", c.New)
	case !c.Old.IsZero():
		fmt.Fprintf(&b, "\n    was at %v", c.Old)
	}
	return b.String()
}

// Diff says what changes when new takes the place of old: first what widens,
// then by service and caller. Either may be nil, which denies everything.
func Diff(old, new *policy.Policy) []Change {
	d := &differ{old: newSide(old), new: newSide(new)}
	d.trust()
	d.modes()
	d.guardrails()
	for _, name := range names(d.old.services, d.new.services) {
		d.service(name)
	}
	slices.SortStableFunc(d.changes, func(a, b Change) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), strings.Compare(a.Service, b.Service), cmp.Compare(a.Kind, b.Kind),
			strings.Compare(a.Caller, b.Caller), strings.Compare(a.Text, b.Text))
	})
	return d.changes
}

func rank(c Change) int {
	if c.Widens() {
		return 0
	}
	return 1
}

// names are the keys of both maps, sorted.
func names[V any](a, b map[string]V) []string {
	all := make([]string, 0, len(a)+len(b))
	for name := range a {
		all = append(all, name)
	}
	for name := range b {
		if _, ok := a[name]; !ok {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return all
}

// side is one of the two policies, indexed.
type side struct {
	policy   *policy.Policy
	intent   *merlon.Intent
	services map[string]*merlon.Service
	edges    map[edgeKey]policy.Edge
}

// edgeKey names a possible call.
type edgeKey struct {
	kind                       merlon.CallerKind
	caller, service, operation string
}

func newSide(p *policy.Policy) *side {
	s := &side{policy: p, intent: p.Intent(), services: map[string]*merlon.Service{}, edges: map[edgeKey]policy.Edge{}}
	if s.intent == nil {
		s.intent = &merlon.Intent{}
	}
	for i := range s.intent.Services {
		s.services[s.intent.Services[i].Name] = &s.intent.Services[i]
	}
	for e := range p.Edges() {
		s.edges[edgeKey{e.Kind, e.Caller, e.Service, e.Operation}] = e
	}
	return s
}

// hosts are the hosts on which the gateway answers for a service.
func (s *side) hosts(name string) []string {
	service := s.services[name]
	if service == nil || service.External || s.intent.Gateway == nil {
		return nil
	}
	if len(service.Hosts) > 0 {
		return service.Hosts
	}
	return s.intent.Gateway.Hosts
}

// differ is one Diff.
type differ struct {
	old, new *side
	changes  []Change
}

func (d *differ) add(c Change) { d.changes = append(d.changes, c) }

// modes reports what goes into shadow mode and what comes out of it.
func (d *differ) modes() {
	if was, is := d.old.intent.Mode, d.new.intent.Mode; was != is {
		c := Change{Kind: Enforced, Text: "the estate leaves shadow mode: what no rule allows is refused"}
		if is == merlon.Shadow {
			c = Change{Kind: Shadowed, Text: "the estate goes into shadow mode: calls that no rule allows pass, and are recorded"}
		}
		d.add(c)
	}
	for _, name := range names(d.old.services, d.new.services) {
		was, is := d.old.services[name], d.new.services[name]
		shadowWas, shadowIs := was != nil && was.Mode == merlon.Shadow, is != nil && is.Mode == merlon.Shadow
		switch {
		case !shadowWas && shadowIs && d.new.intent.Mode != merlon.Shadow:
			d.add(Change{Kind: Shadowed, Service: name, New: is.Pos, Text: fmt.Sprintf("%s goes into shadow mode: calls that no rule allows pass, and are recorded", name)})
		case shadowWas && !shadowIs && is != nil && d.new.intent.Mode != merlon.Shadow:
			d.add(Change{Kind: Enforced, Service: name, Old: was.Pos, New: is.Pos, Text: fmt.Sprintf("%s leaves shadow mode: what no rule allows is refused", name)})
		}
	}
}

// guardrails reports denials that owners of services cannot lift, and can now,
// or the other way round. What it does to rules that are there shows as calls
// allowed and refused.
func (d *differ) guardrails() {
	index := func(in *merlon.Intent) map[string]*merlon.Guardrail {
		all := map[string]*merlon.Guardrail{}
		for i := range in.Guardrails {
			g := &in.Guardrails[i]
			all[g.Deny.Caller+" -> "+g.Deny.Callee+"."+g.Deny.Operation] = g
		}
		return all
	}
	was, is := index(d.old.intent), index(d.new.intent)
	for _, key := range names(was, is) {
		deny := strings.TrimSuffix(key, ".")
		switch a, b := was[key], is[key]; {
		case b == nil:
			d.add(Change{Kind: Unguarded, Old: a.Pos, Text: fmt.Sprintf("guardrail %q no longer denies %s", a.Name, deny)})
		case a == nil:
			d.add(Change{Kind: Guarded, New: b.Pos, Text: fmt.Sprintf("guardrail %q denies %s", b.Name, deny)})
		}
	}
}

// trust reports changes of who counts as a caller.
func (d *differ) trust() {
	if a, b := d.old.intent.TrustDomain, d.new.intent.TrustDomain; a != b && a != "" && b != "" {
		d.add(Change{Kind: Trusted, Text: fmt.Sprintf("the trust domain is %s, was %s", b, a)})
	}
	was, is := d.old.intent.Gateway, d.new.intent.Gateway
	if was != nil && is != nil {
		d.gateway(was, is)
	}
	d.federation()
	d.nodes()
	for _, name := range names(d.old.services, d.new.services) {
		a, b := d.old.services[name], d.new.services[name]
		if a == nil || b == nil {
			continue
		}
		if signs(a) != signs(b) {
			d.add(Change{Kind: Trusted, Service: name, Old: a.Pos, New: b.Pos,
				Text: fmt.Sprintf("%s is recognised by %s, was by %s", name, signs(b), signs(a))})
		}
		if a.Foreign != b.Foreign {
			d.add(Change{Kind: Trusted, Service: name, Old: a.Pos, New: b.Pos,
				Text: fmt.Sprintf("%s proves itself by %s, did by %s", name, proof(b), proof(a))})
		}
		more := slices.DeleteFunc(hosts(b), func(h string) bool { return slices.Contains(hosts(a), h) })
		if len(more) > 0 && a.Workload != nil { // else what it is recognised by is new, too
			d.add(Change{Kind: Trusted, Service: name, Old: a.Pos, New: b.Pos,
				Text: fmt.Sprintf("%s is recognised on %s too", name, strings.Join(more, ", "))})
		}
	}
}

// hosts are where the workloads of a service are recognised.
func hosts(s *merlon.Service) []string {
	if s.Workload != nil && len(s.Nodes) == 0 {
		return []string{"the host of the control plane"}
	}
	return slices.Clone(s.Nodes)
}

// nodes reports changes of which host counts as a node. What comes onto a node
// is told with the services.
func (d *differ) nodes() {
	for i := range d.new.intent.Nodes {
		b := &d.new.intent.Nodes[i]
		a := d.old.intent.Node(b.Name)
		if a == nil {
			continue
		}
		if a.Proof() != b.Proof() {
			d.add(Change{Kind: Trusted, Old: a.Pos, New: b.Pos, Text: fmt.Sprintf("node %s proves itself by its %s, did by its %s", b.Name, b.Proof(), a.Proof())})
		} else if a.X509 != nil && a.X509.CA != b.X509.CA {
			d.add(Change{Kind: Trusted, Old: a.Pos, New: b.Pos, Text: fmt.Sprintf("node %s proves itself by its %s, of other CAs", b.Name, b.Proof())})
		}
	}
}

// proof is how a service that is called shows who it is.
func proof(s *merlon.Service) string {
	switch {
	case s.Foreign != "":
		return "the SPIFFE ID spiffe://" + s.Foreign
	case s.External:
		return "a public certificate"
	}
	return "our own authority"
}

func signs(s *merlon.Service) string {
	if all := s.Workload.Selectors(); len(all) > 0 {
		return strings.Join(all, " and ")
	}
	return "nothing"
}

// gateway reports what changes about callers outside.
func (d *differ) gateway(was, is *merlon.Gateway) {
	for _, proxy := range is.TrustedProxies {
		if !slices.Contains(was.TrustedProxies, proxy) {
			d.add(Change{Kind: Trusted, Old: was.Pos, New: is.Pos, Text: fmt.Sprintf("proxies in %s are believed about who their client is", proxy)})
		}
	}
	for _, proxy := range is.ProxyProtocol {
		if !slices.Contains(was.ProxyProtocol, proxy) {
			d.add(Change{Kind: Trusted, Old: was.Pos, New: is.Pos, Text: fmt.Sprintf("proxies in %s are believed about who their client is, by the PROXY protocol", proxy)})
		}
	}
	if was.MinTLS != is.MinTLS && is.MinTLS < was.MinTLS {
		d.add(Change{Kind: Trusted, Old: was.Pos, New: is.Pos, Text: fmt.Sprintf("the gateway accepts TLS %s, was %s", is.MinTLS, was.MinTLS)})
	}
	if is.Certificate.Kind == merlon.CertificateNone && was.Certificate.Kind != merlon.CertificateNone {
		d.add(Change{Kind: Trusted, Old: was.Pos, New: is.Pos, Text: "the gateway takes plain HTTP, and no TLS"})
	}
	if c, ok := limitChange(was.Limit, is.Limit); ok {
		c.Text = "the gateway: " + c.Text
		d.add(c)
	}
	for i := range is.Logins {
		b := &is.Logins[i]
		at := slices.IndexFunc(was.Logins, func(l merlon.LoginRule) bool { return l.Name == b.Name })
		if at < 0 {
			continue
		}
		a := &was.Logins[at]
		var parts []string
		for _, part := range []struct {
			name string
			same bool
		}{
			{"issuer", a.Issuer == b.Issuer}, {"audience", a.Audience == b.Audience}, {"key set", a.KeySet == b.KeySet && a.AllowLocal == b.AllowLocal},
			{"keys", a.Keys == b.Keys}, {"algorithms", slices.Equal(a.Algorithms, b.Algorithms)},
		} {
			if !part.same {
				parts = append(parts, part.name)
			}
		}
		if len(parts) > 0 {
			d.add(Change{Kind: Trusted, Caller: b.Name, CallerKind: merlon.Login, Old: a.Pos, New: b.Pos,
				Text: fmt.Sprintf("login %q is proved otherwise: another %s", b.Name, strings.Join(parts, ", "))})
		}
	}
}

// federation reports partners whose workloads are proved otherwise than before:
// whoever holds the new keys can be any caller of theirs.
func (d *differ) federation() {
	for i := range d.new.intent.Federation {
		b := &d.new.intent.Federation[i]
		a := d.old.intent.Partner(b.TrustDomain)
		if a == nil {
			continue // its rules are new, too
		}
		var parts []string
		for _, part := range []struct {
			name string
			same bool
		}{
			{"bundle endpoint", a.Bundle == b.Bundle && a.AllowLocal == b.AllowLocal}, {"endpoint ID", a.EndpointID == b.EndpointID}, {"first bundle", a.First == b.First},
		} {
			if !part.same {
				parts = append(parts, part.name)
			}
		}
		if len(parts) > 0 {
			d.add(Change{Kind: Trusted, Caller: b.TrustDomain, CallerKind: merlon.Workload, Old: a.Pos, New: b.Pos,
				Text: fmt.Sprintf("trust domain %q is proved otherwise: another %s", b.TrustDomain, strings.Join(parts, ", "))})
		}
	}
}

// limitChange compares two limits. It reports false when they are equal.
func limitChange(was, is *merlon.Limit) (Change, bool) {
	c := Change{Text: fmt.Sprintf("%s, was %s", limitText(is), limitText(was))}
	if was != nil {
		c.Old = was.Pos
	}
	if is != nil {
		c.New = is.Pos
	}
	switch {
	case was == nil && is == nil || was != nil && is != nil && same(was, is):
		return c, false
	case is == nil, was != nil && (rate(is) > rate(was) || is.Burst > was.Burst || is.Per != was.Per):
		c.Kind = Loosened
	default:
		c.Kind = Tightened
	}
	return c, true
}

func same(a, b *merlon.Limit) bool {
	return a.Count == b.Count && a.Window == b.Window && a.Burst == b.Burst && a.Per == b.Per
}

func rate(l *merlon.Limit) float64 { return float64(l.Count) / max(1e-9, l.Window.Seconds()) }

func limitText(l *merlon.Limit) string {
	if l == nil {
		return "no limit"
	}
	per := "client"
	if l.Per == merlon.PerCaller {
		per = "caller"
	}
	window := l.Window.String()
	switch l.Window {
	case time.Second:
		window = "s"
	case time.Minute:
		window = "m"
	case time.Hour:
		window = "h"
	}
	return fmt.Sprintf("%d/%s (%d at once, per %s)", l.Count, window, l.Burst, per)
}
