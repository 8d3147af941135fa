package control

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"merlon"
	"merlon/policy"
	"merlon/record"
)

// ErrNoRecord says that no record has an id.
var ErrNoRecord = errors.New("no record has this id")

// Why explains a past call: what every gate on its way recorded, and what the
// intent of then says about it.
type Why struct {
	ID    string    `json:"id"`
	Steps []WhyStep `json:"steps"` // in the order of the records
}

// WhyStep is one gate's part in a call.
type WhyStep struct {
	Record record.Record `json:"record"`
	// Explanation is computed from the intent that decided; nil when that is
	// not in the history, or when the call never became one.
	Explanation *policy.Explanation `json:"explanation,omitzero"`
	// Now is what the intent in force says to the same call, when it is another.
	Now *merlon.Verdict `json:"now,omitzero"`
}

// maxSteps bounds the records that one id is explained with.
const maxSteps = 100

// Why looks up a call by its request id. Claims are not kept in records, so a
// condition on claims is explained as for a caller without any.
func (c *Control) Why(ctx context.Context, id string) (*Why, error) {
	if c.opt.Records == "" {
		return nil, errors.New("this control plane has no records")
	}
	if id == "" {
		return nil, fmt.Errorf("%q: %w", id, ErrNoRecord)
	}
	records, err := record.Find(c.opt.Records, id)
	if err != nil {
		return nil, err
	}
	if len(records) == 0 {
		return nil, fmt.Errorf("%q: %w", id, ErrNoRecord)
	}
	w := &Why{ID: id}
	policies := map[string]*policy.Policy{} // of this answer: calls of one id share an intent
	for _, r := range records[:min(len(records), maxSteps)] {
		step := WhyStep{Record: r}
		if p := c.policyOf(ctx, policies, r.Intent); p != nil && r.Service != "" {
			call := callOf(&r)
			route(p, &call)
			e := p.Explain(&call)
			step.Explanation = &e
			step.Now = c.now(r.Intent, &call)
		}
		w.Steps = append(w.Steps, step)
	}
	return w, nil
}

// route finds the operation that the gate did not know: it has only the part
// of the intent that concerns its place.
func route(p *policy.Policy, call *merlon.Call) {
	if call.Operation != "" {
		return
	}
	if r := p.RouteService(call.Service, call.Method, call.Path, nil); r.Operation != nil {
		call.Operation, call.Params = r.Operation.Name, r.Params
	}
}

// policyOf is the policy of an intent of the history, or nil.
func (c *Control) policyOf(ctx context.Context, known map[string]*policy.Policy, hash string) *policy.Policy {
	if p, ok := known[hash]; ok || hash == "" {
		return p
	}
	c.mu.Lock()
	f := c.inForce
	c.mu.Unlock()
	if f != nil && strings.HasPrefix(f.commit.Hash, hash) {
		known[hash] = f.policy
		return f.policy
	}
	known[hash] = nil
	_, loaded, err := c.load(ctx, hash)
	if err != nil {
		return nil // the record still says what was decided
	}
	if p, ds := policy.Compile(loaded.Intent); !ds.Failed() {
		known[hash] = p
	}
	return known[hash]
}

// now is the verdict of the intent in force, or nil when that decided already.
func (c *Control) now(then string, call *merlon.Call) *merlon.Verdict {
	c.mu.Lock()
	f := c.inForce
	c.mu.Unlock()
	if f == nil || strings.HasPrefix(f.commit.Hash, then) {
		return nil
	}
	v := f.policy.Decide(call)
	return &v
}

// callOf is the call that a record is about.
func callOf(r *record.Record) merlon.Call {
	caller := merlon.Caller{Name: r.Caller, Subject: r.Subject, Client: r.Client}
	if caller.Kind.UnmarshalText([]byte(r.CallerKind)) != nil {
		caller.Kind = merlon.Nobody
	}
	return merlon.Call{
		Caller: caller, Service: r.Service, Operation: r.Operation,
		Method: r.Method, Host: r.Host, Path: r.Path, Query: r.Query, Time: r.Time,
	}
}
