package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"merlon"
	"merlon/control"
	"merlon/intent"
	"merlon/policy"
)

// layer is what one place says to a call.
type layer struct {
	Place   string         `json:"place"`
	Verdict merlon.Verdict `json:"verdict"`
}

// answer is what can says.
type answer struct {
	Call        string             `json:"call"`
	Allowed     bool               `json:"allowed"`
	Layers      []layer            `json:"layers"`
	Explanation policy.Explanation `json:"explanation"`
}

func newCan(u *ui) *cobra.Command {
	var claims []string
	c := &cobra.Command{
		Use:   "can CALL [DIR]",
		Short: `say whether a call is allowed and by which sentence: can "web -> orders POST /orders"`,
		Long: `can asks the intent about a call that need never happen:

  merlon can "web -> orders.createOrder"
  merlon can "web -> orders POST /orders"
  merlon can "anyone -> GET https://shop.example/products/7"
  merlon can --claim role=support "staff -> orders.listOrders"

It prints what every place on the way of the call decides, each with the
orders it would have, and the sentence it rests on. It exits with 3 when the
call is denied.`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(_ *cobra.Command, args []string) error {
			test, err := intent.ParseCall(args[0])
			if err != nil {
				return &exit{exitUsage, err}
			}
			if test.Claims, err = parseClaims(claims); err != nil {
				return &exit{exitUsage, err}
			}
			dir := dirArg(args, 1)
			loaded, files, err := u.load(dir)
			if err != nil {
				return err
			}
			p, ds := policy.Compile(loaded.Intent)
			if ds.Failed() {
				return u.diagnose(dir, files, ds)
			}
			a := ask(p, &test)
			a.Call = args[0]
			if u.json {
				u.printJSON(a)
			} else {
				u.printAnswer(a)
			}
			if !a.Allowed {
				return &exit{code: exitDenied}
			}
			return nil
		},
	}
	c.Flags().StringArrayVar(&claims, "claim", nil, "a claim of the caller's token, `name=value`; may be repeated")
	return c
}

// ask puts a call before every place on its way. Each place decides with no
// more than its own orders, as it would on the wire.
func ask(p *policy.Policy, test *merlon.Test) answer {
	call := p.Call(test)
	call.Time = time.Now().UnixNano()
	a := answer{Explanation: p.Explain(&call), Allowed: true}
	for _, place := range way(p.Intent(), &call) {
		scoped := policy.Scope(p.Intent(), place)
		own, ds := policy.Compile(&scoped)
		l := layer{Place: place.String()}
		if !ds.Failed() {
			l.Verdict = own.Decide(&call)
		}
		a.Layers = append(a.Layers, l)
		a.Allowed = a.Allowed && l.Verdict.Effect == merlon.Allow
	}
	a.Allowed = a.Allowed && len(a.Layers) > 0
	return a
}

// way lists the places that a call passes.
func way(in *merlon.Intent, call *merlon.Call) []merlon.Place {
	first := merlon.Edge
	if call.Caller.Kind == merlon.Workload {
		first = merlon.Place{Service: call.Caller.Name}
	}
	svc := in.Service(call.Service)
	if svc == nil || svc.External || svc.Name == first.Service {
		return []merlon.Place{first}
	}
	return []merlon.Place{first, {Service: svc.Name}}
}

func parseClaims(list []string) (map[string]any, error) {
	claims := map[string]any{}
	for _, s := range list {
		name, value, ok := strings.Cut(s, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("claim %q is not of the form name=value", s)
		}
		claims[name] = value
	}
	return claims, nil
}

func (u *ui) printAnswer(a answer) {
	word := u.green("allowed")
	if !a.Allowed {
		word = u.red("denied")
	} else if a.Explanation.Verdict.Shadow {
		word = u.yellow("allowed, in shadow mode")
	}
	u.printf("%s  %s\n", u.bold(a.Call), word)
	var rows [][]string
	for _, l := range a.Layers {
		rows = append(rows, u.verdictRow(l.Place, l.Verdict))
	}
	u.table("  ", rows)
	u.printExplanation(a.Explanation)
}

// verdictRow is a verdict as a row of a table.
func (u *ui) verdictRow(place string, v merlon.Verdict) []string {
	mark := u.red("✗")
	if v.Effect == merlon.Allow {
		mark = u.green("✓")
	}
	rule := v.Rule
	if !v.Pos.IsZero() {
		rule = strings.TrimSpace(rule + "  " + u.dim(v.Pos.String()))
	}
	reason := string(v.Reason)
	if v.Shadow {
		reason = "would be denied: " + reason
	}
	return []string{mark, place, reason, rule}
}

// printExplanation says why, and how it could be otherwise.
func (u *ui) printExplanation(e policy.Explanation) {
	if e.Why != "" {
		u.printf("  %s %s\n", u.dim("why:"), e.Why)
	}
	if e.Nearest != "" && e.Verdict.Effect != merlon.Allow {
		u.printf("  %s %s %s\n", u.dim("nearest rule:"), e.Nearest, u.dim(e.NearestPos.String()))
	}
	for i, c := range e.Changes {
		label := "to allow it:"
		if i > 0 {
			label = "        and:"
		}
		u.printf("  %s %s %s\n", u.dim(label), c.Say, u.dim("at "+c.Pos.String()))
		if c.Line != "" {
			u.printf("      %s\n", u.cyan(c.Line))
		}
	}
	if e.Advice != "" {
		u.printf("  %s %s\n", u.dim("hint:"), e.Advice)
	}
}

func newWhy(u *ui) *cobra.Command {
	return &cobra.Command{
		Use:   "why REQUEST-ID [DIR]",
		Short: "explain a past call by the id that its answer carried",
		Args:  cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			state := u.stateDir(dirArg(args, 1))
			w, err := control.NewClient(state).Why(cmd.Context(), args[0])
			if errors.Is(err, control.ErrNotRunning) {
				w, err = whyOffline(cmd, state, args[0])
			}
			if err != nil {
				return err
			}
			if u.json {
				u.printJSON(w)
				return nil
			}
			u.printWhy(w)
			return nil
		},
	}
}

func (u *ui) printWhy(w *control.Why) {
	u.printf("%s\n", u.bold("call "+w.ID))
	for i := range w.Steps {
		s := &w.Steps[i]
		r := &s.Record
		u.printf("\n%s  %s %s  %s\n", u.bold(r.Place), time.Unix(0, r.Time).Format("2006-01-02 15:04:05.000"), r.At, u.callText(r))
		u.table("  ", [][]string{u.verdictRow(fmt.Sprintf("status %d", r.Status), r.Verdict)})
		if r.Detail != "" {
			u.printf("  %s %s\n", u.dim("cause:"), r.Detail)
		}
		if s.Explanation != nil && r.Verdict.Effect != merlon.Allow {
			u.printExplanation(*s.Explanation)
		}
		if s.Now != nil {
			u.printf("  %s %v, %s %s\n", u.dim("the intent in force now says:"), s.Now.Effect, s.Now.Reason, u.dim(s.Now.Pos.String()))
		}
	}
}
