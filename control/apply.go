package control

import (
	"context"
	"fmt"
	"slices"
	"time"

	"merlon"
	"merlon/intent"
	"merlon/policy"
	"merlon/verify"
)

// ApplyOptions say who changes the intent, why, and how far they may go.
type ApplyOptions struct {
	Who     string `json:"who"`
	Message string `json:"message,omitzero"`
	Widen   bool   `json:"widen,omitzero"` // calls may be newly allowed
}

// Plan is what a change would do.
type Plan struct {
	From     string             `json:"from,omitzero"` // hash of the intent in force; "" when there is none
	To       string             `json:"to"`
	Changes  []verify.Change    `json:"changes"`
	Widens   bool               `json:"widens"`            // some call is newly allowed
	Problems merlon.Diagnostics `json:"problems,omitzero"` // why it could not be applied now, and warnings
}

// Result is what a change has done. The commit is in force whatever the gates
// answered.
type Result struct {
	Commit    Commit             `json:"commit"`
	Unchanged bool               `json:"unchanged,omitzero"` // the intent was in force already
	Warnings  merlon.Diagnostics `json:"warnings,omitzero"`
	Problems  merlon.Diagnostics `json:"problems,omitzero"` // what failed when the intent was in force already
	Live      bool               `json:"live"`              // every connected gate acknowledged its orders
	Gates     []GateStatus       `json:"gates"`             // all gates, as they stood at the end
	Took      time.Duration      `json:"took"`              // from the record to the last answer
}

// WidensError says that a change was refused because it allows calls that are
// denied now, and nobody said that it may.
type WidensError struct {
	Changes []verify.Change // all of them, what is newly denied too
}

// Error counts the calls newly allowed.
func (e *WidensError) Error() string {
	n := 0
	for _, ch := range e.Changes {
		if ch.Widens() {
			n++
		}
	}
	return fmt.Sprintf("the change widens access in %d places; nothing was changed", n)
}

// Plan says what Apply would do with an intent, and does nothing. The error is
// of type merlon.Diagnostics when the intent itself is wrong.
func (c *Control) Plan(ctx context.Context, l *intent.Loaded) (*Plan, error) {
	p, _, err := compile(l)
	if err != nil {
		return nil, err
	}
	plan, _, err := c.plan(l, newForce(Commit{}, l.Intent, p))
	return plan, err
}

// plan compares f with what is in force. That may take a while, so gates are
// not kept waiting for it.
func (c *Control) plan(l *intent.Loaded, f *force) (*Plan, *force, error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, nil, ErrClosed
	}
	old := c.inForce
	plan := &Plan{To: l.Hash, Problems: c.enforceable(f)}
	c.mu.Unlock()
	var was *policy.Policy
	if old != nil {
		plan.From, was = old.commit.Hash, old.policy
	}
	plan.Changes = verify.Diff(was, f.policy)
	plan.Widens = verify.Widens(plan.Changes)
	return plan, old, nil
}

// compile compiles an intent and runs its tests.
func compile(l *intent.Loaded) (*policy.Policy, merlon.Diagnostics, error) {
	p, ds := policy.Compile(l.Intent)
	if ds.Failed() {
		return nil, nil, ds
	}
	ds = append(ds, p.Test()...)
	if ds.Failed() {
		return nil, nil, ds
	}
	return p, ds, nil
}

// Apply puts an intent in force. The error is of type merlon.Diagnostics when
// the intent is wrong or cannot be enforced, and *WidensError when it widens
// access and opt does not say that it may; then nothing has changed. The
// first intent of all may always widen: nothing was reachable before.
func (c *Control) Apply(ctx context.Context, l *intent.Loaded, opt ApplyOptions) (*Result, error) {
	p, warnings, err := compile(l)
	if err != nil {
		return nil, err
	}
	c.applying.Lock()
	defer c.applying.Unlock()

	f := newForce(Commit{}, l.Intent, p)
	plan, old, err := c.plan(l, f)
	if err != nil {
		return nil, err
	}
	if plan.From == plan.To {
		return c.again(ctx, old, warnings)
	}
	if plan.Widens && !opt.Widen && old != nil {
		return nil, &WidensError{Changes: plan.Changes}
	}
	if plan.Problems, err = c.prepare(ctx, f); err != nil {
		return nil, err
	}
	return c.commit(ctx, l, opt, f, plan, warnings)
}

// commit records an intent that is ready, and delivers it.
func (c *Control) commit(ctx context.Context, l *intent.Loaded, opt ApplyOptions, f *force, plan *Plan, warnings merlon.Diagnostics) (*Result, error) {
	places, all := affected(c.inForce, f) // inForce changes under c.applying only
	// Recorded before it is sent: what a gate enforces can always be named.
	commit, err := c.store.commit(ctx, Commit{
		Hash: l.Hash, Time: c.opt.Now().UTC(), Who: opt.Who, Message: opt.Message, Changes: plan.Changes,
	}, l.Bundle)
	if err != nil {
		c.refused(f)
		return nil, err
	}
	begun := c.opt.Now()
	f.commit = commit
	if err := c.deliver(f, places, all); err != nil {
		c.committed(f)
		return nil, fmt.Errorf("the intent is recorded, but its orders could not be written: %w", err)
	}
	res := c.await(ctx, commit)
	res.Took, res.Warnings = c.opt.Now().Sub(begun), append(warnings, plan.Problems...)
	res.Problems = c.committed(f)
	return res, nil
}

// again brings up what is missing of the intent in force, and waits for gates
// that have not answered yet.
func (c *Control) again(ctx context.Context, f *force, warnings merlon.Diagnostics) (*Result, error) {
	more, err := c.prepare(ctx, f)
	if err != nil {
		return nil, err
	}
	res := c.await(ctx, f.commit)
	res.Unchanged, res.Warnings = true, append(warnings, more...)
	res.Problems = c.committed(f)
	return res, nil
}

// prepare brings up what the intent needs and sees that all of it can be
// enforced then.
func (c *Control) prepare(ctx context.Context, f *force) (warnings merlon.Diagnostics, err error) {
	if c.opt.Prepare != nil {
		if err := c.opt.Prepare(ctx, f.intent); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	problems := c.enforceable(f)
	c.mu.Unlock()
	if problems.Failed() {
		c.refused(f)
		return nil, problems
	}
	return problems, nil
}

func (c *Control) refused(f *force) {
	if c.opt.Refused != nil {
		c.opt.Refused(f.intent)
	}
}

func (c *Control) committed(f *force) merlon.Diagnostics {
	if c.opt.Committed == nil {
		return nil
	}
	return c.opt.Committed(f.intent)
}

// deliver puts f in force and sends every gate its orders. Only the given
// places, or all, may have other orders than before.
func (c *Control) deliver(f *force, places map[merlon.Place]bool, all bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.putInForce(f)
	for p := range c.sessions {
		if o := c.current[p]; o != nil && !all && !places[p] {
			c.dispatch(p, o.Under(f.commit.Hash))
			continue
		}
		if err := c.order(f, p); err != nil {
			return err
		}
	}
	return nil
}

// await waits until all gates have answered, for as long as a change may take,
// and says how they stand then. A gate that comes or goes meanwhile gives
// others new orders; those are waited for as well.
func (c *Control) await(ctx context.Context, commit Commit) *Result {
	ctx, cancel := context.WithTimeout(ctx, c.opt.AckWait)
	defer cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.waiting > 0 && ctx.Err() == nil {
		quiet := c.quiet
		c.mu.Unlock()
		select {
		case <-quiet:
		case <-ctx.Done():
		}
		c.mu.Lock()
	}
	return c.result(commit)
}

// result needs c.mu.
func (c *Control) result(commit Commit) *Result {
	r := &Result{Commit: commit, Live: true, Gates: c.gates()}
	for _, g := range r.Gates {
		if g.Behind != "" {
			r.Live = false
		}
	}
	return r
}

// Rollback puts an intent of the history in force again, by its hash or the
// beginning of it. It is a change like any other: it is recorded, and it may
// be refused.
func (c *Control) Rollback(ctx context.Context, hash string, opt ApplyOptions) (*Result, error) {
	_, loaded, err := c.load(ctx, hash)
	if err != nil {
		return nil, err
	}
	return c.Apply(ctx, loaded, opt)
}

// enforceable finds what no connected gate can enforce: a rule that would be
// accepted and stay without effect, or worse, seem to have one. It needs c.mu.
func (c *Control) enforceable(f *force) merlon.Diagnostics {
	var ds merlon.Diagnostics
	for i := range f.intent.Services {
		s := &f.intent.Services[i]
		for j := range s.Rules {
			r := &s.Rules[j]
			for _, p := range f.needs(s, r.Caller) {
				if d, ok := c.cannot(p, s, r); ok {
					ds = append(ds, d)
				}
			}
		}
		if !s.External && len(s.Rules) == 0 && len(c.sessions[merlon.Place{Service: s.Name}]) == 0 {
			ds = append(ds, merlon.Diagnostic{Pos: s.Pos, Width: len(s.Name), Code: "W0401", Warning: true,
				Message: fmt.Sprintf("nothing stands in front of service %q: no rule lets anyone call it, but no gate beside it denies", s.Name),
				Hint:    "start a gate beside it, or see that nobody reaches its address"})
		}
	}
	slices.SortStableFunc(ds, func(a, b merlon.Diagnostic) int { return a.Pos.Compare(b.Pos) })
	return ds[:min(len(ds), maxDiagnostics)]
}

const maxDiagnostics = 100

// cannot says why a rule is not enforced at one of the places it needs. All
// gates of a place must be able to: one that is not would be the gap.
func (c *Control) cannot(p merlon.Place, s *merlon.Service, r *merlon.Rule) (merlon.Diagnostic, bool) {
	d := merlon.Diagnostic{Pos: r.Pos, Width: len(r.Caller)}
	rule := s.Name + ": " + r.Caller
	if len(c.sessions[p]) == 0 {
		d.Code = "E0401"
		d.Message = fmt.Sprintf("rule %q cannot be enforced: the %v is not connected", rule, p)
		d.Hint = fmt.Sprintf("start the %v, or take the rule out", p)
		return d, true
	}
	for g := range c.sessions[p] {
		if !g.speaks[s.Protocol] {
			d.Code = "E0402"
			d.Message = fmt.Sprintf("rule %q cannot be enforced: the %v does not speak %v", rule, p, s.Protocol)
			d.Hint = fmt.Sprintf("it speaks %v; take the rule out, or the service from behind the gate", g.hello.Protocols)
			return d, true
		}
	}
	return d, false
}
