package control

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"merlon"
)

// Status says what is enforced, as far as gates have acknowledged it, and
// never more.
type Status struct {
	Intent *Commit      `json:"intent"` // what is wanted; null before the first
	Gates  []GateStatus `json:"gates"`  // in the order of place and address
	Rules  []RuleStatus `json:"rules"`  // of Intent, in the order of position
}

// Live reports whether every rule is enforced everywhere it must be, and every
// gate has the orders it should have.
func (s *Status) Live() bool {
	for _, g := range s.Gates {
		if g.Behind != "" {
			return false
		}
	}
	for _, r := range s.Rules {
		if len(r.Missing) > 0 {
			return false
		}
	}
	return s.Intent != nil
}

// GateStatus is one connected gate.
type GateStatus struct {
	Place    string    `json:"place"`
	Address  string    `json:"address,omitzero"`
	Outbound string    `json:"outbound,omitzero"`
	Local    string    `json:"local,omitzero"`   // which processes of its host may call through Outbound as its service
	Isolated bool      `json:"isolated"`         // its service and the rest reach each other through it only
	Since    time.Time `json:"since"`            // when it connected
	Intent   string    `json:"intent,omitzero"`  // hash of the intent it enforces
	Orders   string    `json:"orders,omitzero"`  // hash of the orders it enforces
	Swapped  time.Time `json:"swapped,omitzero"` // when it acknowledged them
	Behind   string    `json:"behind,omitzero"`  // why it does not enforce its newest orders
}

// RuleStatus is one sentence of the intent in force, a rule or a guardrail,
// and where it is enforced.
type RuleStatus struct {
	Name     string        `json:"name"` // such as "orders: web", or the guardrail's
	Pos      merlon.Pos    `json:"pos"`
	Service  string        `json:"service,omitzero"` // "" for a guardrail
	Caller   string        `json:"caller,omitzero"`
	Mode     merlon.Mode   `json:"mode,omitzero"`
	Enforced []Enforcement `json:"enforced"`
	Missing  []Missing     `json:"missing,omitzero"` // where it must be enforced and is not
}

// Enforcement is one gate that enforces a rule.
type Enforcement struct {
	Place   string    `json:"place"`
	Address string    `json:"address,omitzero"`
	Since   time.Time `json:"since"`  // without a break, through changes of other sentences
	Orders  string    `json:"orders"` // hash of the orders that hold it now
}

// Missing is a place, or one of its gates, that does not enforce a rule.
type Missing struct {
	Place   string `json:"place"`
	Address string `json:"address,omitzero"`
	Why     string `json:"why"`
}

// Status is the present state.
func (c *Control) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := Status{Gates: c.gates(), Rules: []RuleStatus{}}
	if c.inForce == nil {
		return st
	}
	commit := c.inForce.commit
	st.Intent = &commit
	for i := range c.inForce.intent.Services {
		s := &c.inForce.intent.Services[i]
		for j := range s.Rules {
			st.Rules = append(st.Rules, c.ruleStatus(c.inForce, s, &s.Rules[j]))
		}
	}
	st.Rules = append(st.Rules, c.guardrails(c.inForce)...)
	slices.SortStableFunc(st.Rules, func(a, b RuleStatus) int { return a.Pos.Compare(b.Pos) })
	return st
}

// gates is all connected gates. It needs c.mu.
func (c *Control) gates() []GateStatus {
	all := []GateStatus{}
	for _, gates := range c.sessions {
		for s := range gates {
			all = append(all, s.status())
		}
	}
	slices.SortFunc(all, func(a, b GateStatus) int {
		return cmp.Or(cmp.Compare(a.Place, b.Place), cmp.Compare(a.Address, b.Address), a.Since.Compare(b.Since))
	})
	return all
}

func (s *Session) status() GateStatus {
	g := GateStatus{Place: s.hello.Place.String(), Address: s.hello.Address, Outbound: s.hello.Outbound, Isolated: s.hello.Isolated, Since: s.since, Behind: s.behind()}
	if s.acked != nil {
		g.Intent, g.Orders, g.Swapped, g.Local = s.acked.Of, s.acked.Hash, s.ackedAt, s.local
	}
	return g
}

func (c *Control) ruleStatus(f *force, s *merlon.Service, r *merlon.Rule) RuleStatus {
	st := RuleStatus{Name: s.Name + ": " + r.Caller, Pos: r.Pos, Service: s.Name, Caller: r.Caller, Mode: max(f.intent.Mode, s.Mode, r.Mode)}
	c.where(&st, sentenceOf(f.intent, s, r), f.needs(s, r.Caller))
	return st
}

// guardrails says where each guardrail is enforced: at every place that a call
// it denies could pass.
func (c *Control) guardrails(f *force) []RuleStatus {
	if len(f.intent.Guardrails) == 0 {
		return nil
	}
	places := map[sentence][]merlon.Place{}
	for _, p := range f.places {
		part := f.scoper.Scope(p)
		for i := range part.Guardrails {
			key := guardrailSentence(&part.Guardrails[i])
			places[key] = append(places[key], p)
		}
	}
	var all []RuleStatus
	for i := range f.intent.Guardrails {
		g := &f.intent.Guardrails[i]
		key := guardrailSentence(g)
		st := RuleStatus{Name: g.Name, Pos: g.Pos}
		c.where(&st, key, places[key])
		all = append(all, st)
	}
	return all
}

// where fills in who enforces a sentence and who does not.
func (c *Control) where(st *RuleStatus, key sentence, places []merlon.Place) {
	st.Enforced = []Enforcement{}
	for _, p := range places {
		if len(c.sessions[p]) == 0 {
			st.Missing = append(st.Missing, Missing{Place: p.String(), Why: "no gate is connected"})
		}
		for g := range c.sessions[p] {
			if since, ok := g.enforced[key]; ok {
				st.Enforced = append(st.Enforced, Enforcement{Place: p.String(), Address: g.hello.Address, Since: since, Orders: g.acked.Hash})
				continue
			}
			st.Missing = append(st.Missing, Missing{Place: p.String(), Address: g.hello.Address, Why: cmp.Or(g.behind(), "its orders do not hold the rule")})
		}
	}
	slices.SortFunc(st.Enforced, func(a, b Enforcement) int {
		return cmp.Or(cmp.Compare(a.Place, b.Place), cmp.Compare(a.Address, b.Address))
	})
	slices.SortFunc(st.Missing, func(a, b Missing) int {
		return cmp.Or(cmp.Compare(a.Place, b.Place), cmp.Compare(a.Address, b.Address))
	})
}

// sentence stands for the meaning of a rule: two rules with one sentence allow
// the same calls. Where the rule is written is no part of it.
type sentence [sha256.Size]byte

// enforcedBy is what orders say, each sentence with since when it has been
// enforced, given what was enforced before.
func enforcedBy(o *merlon.Orders, before map[sentence]time.Time, now time.Time) map[sentence]time.Time {
	after := make(map[sentence]time.Time, len(before))
	enforce := func(key sentence) {
		since, ok := before[key]
		if !ok {
			since = now
		}
		after[key] = since
	}
	for i := range o.Intent.Services {
		s := &o.Intent.Services[i]
		for j := range s.Rules {
			enforce(sentenceOf(&o.Intent, s, &s.Rules[j]))
		}
	}
	for i := range o.Intent.Guardrails {
		enforce(guardrailSentence(&o.Intent.Guardrails[i]))
	}
	return after
}

func guardrailSentence(g *merlon.Guardrail) sentence {
	return sha256.Sum256(fmt.Appendf(nil, "guardrail %q %q %q %q", g.Name, g.Deny.Caller, g.Deny.Callee, g.Deny.Operation))
}

// sentenceOf takes in all that the rule's meaning depends on.
func sentenceOf(in *merlon.Intent, s *merlon.Service, r *merlon.Rule) sentence {
	var stack [512]byte
	b := stack[:0]
	text := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s))) // no two lists of strings look alike
		b = append(b, s...)
	}
	number := func(n int64) { b = binary.AppendVarint(b, n) }
	text(s.Name)
	text(r.Caller)
	text(r.When)
	number(int64(len(r.Operations)))
	number(int64(s.Protocol))
	number(int64(max(in.Mode, s.Mode, r.Mode)))
	if l := r.Limit; l != nil {
		text("limit")
		number(int64(l.Count))
		number(int64(l.Window))
		number(int64(l.Burst))
		number(int64(l.Per))
	}
	for _, name := range r.Operations {
		text(name)
		op := s.Operation(name)
		if op == nil {
			continue // the service is used whole
		}
		text(op.Method)
		text(op.Path)
		number(int64(len(op.Params)))
		for _, p := range op.Params {
			text(p.Name)
			number(int64(p.In)<<8 | int64(p.Type))
		}
	}
	return sha256.Sum256(b)
}
