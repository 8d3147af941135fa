package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"merlon"
	"merlon/control"
	"merlon/gate"
	"merlon/gate/canon"
	"merlon/intent"
	"merlon/internal/jws"
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
	Status      int                `json:"status,omitzero"` // HTTP status with which the first place that denies answers
	GRPC        string             `json:"grpc,omitzero"`   // or the status of gRPC, for a service that speaks it
	Layers      []layer            `json:"layers"`          // in the order in which the call passes them
	Explanation policy.Explanation `json:"explanation"`
}

func newCan(u *ui) *cobra.Command {
	var claims []string
	c := &cobra.Command{
		Use:   "can CALL [DIR]",
		Short: "say whether a call is allowed, and by which sentence",
		Long: `can asks the intent about a call that need never happen:

  merlon can "web -> orders.createOrder"
  merlon can "web -> orders POST /orders"
  merlon can "anyone -> GET https://shop.example/products/7"
  merlon can --claim role=support "staff -> orders.listOrders"

It prints what every place on the way of the call decides, each with the
orders it would have, and the sentence it rests on. It exits with 3 when the
call is denied.

A claim NAME=TEXT is a text. NAME:=JSON is any value: level:=5, groups:='["a"]'.`,
		Args:              takes(1, 2),
		ValidArgsFunction: completeDir(1),
		RunE: func(_ *cobra.Command, args []string) error {
			test, err := intent.ParseCall(args[0])
			if err != nil {
				text, hint, _ := strings.Cut(err.Error(), "; ")
				return usage("%s\nhint: %s", text, hint)
			}
			if test.Claims, err = parseClaims(claims); err != nil {
				return err
			}
			p, err := u.policyIn(dirArg(args, 1))
			if err != nil {
				return err
			}
			if c := p.Call(&test); len(claims) > 0 && c.Caller.Kind != merlon.Login {
				return usage("%q has no token, and so no claims\nhint: name a login as the caller, or leave out --claim", test.Call.Caller)
			}
			a := ask(p, &test, time.Now())
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
	c.Flags().StringArrayVar(&claims, "claim", nil, "a claim of the caller's token, `NAME=TEXT` or NAME:=JSON; may be repeated")
	return c
}

// ask puts a call before every place on its way. Each place reads, routes and
// decides with no more than its own orders, as it would on the wire.
func ask(p *policy.Policy, test *merlon.Test, now time.Time) answer {
	if at, err := canonical(test, p.Intent()); err == nil {
		test = at
	}
	call := p.Call(test)
	call.Time = now.UnixNano()
	a := answer{Allowed: true}
	for _, place := range way(p.Intent(), &call) {
		scoped := policy.Scope(p.Intent(), place)
		l := layer{Place: place.String()}
		at, err := canonical(test, &scoped)
		if own, ds := policy.Compile(&scoped); err == nil && !ds.Failed() {
			l.Verdict, err = decide(own, place, at, &call)
		}
		if err != nil {
			l.Verdict = merlon.Verdict{Reason: reasonOf(err)}
		}
		a.Layers = append(a.Layers, l)
		if a.Allowed && l.Verdict.Effect != merlon.Allow {
			a.Allowed = false
			a.Status, a.GRPC = statusOf(p.Intent(), &call, l.Verdict.Reason)
		}
		if err != nil {
			a.Explanation = malformed(test, l.Verdict)
			return a // no later place sees it
		}
	}
	a.Allowed = a.Allowed && len(a.Layers) > 0
	a.Explanation = p.Explain(&call)
	if s := p.Intent().Service(call.Caller.Name); test.Call.Callee == "" && call.Caller.Kind == merlon.Workload && s != nil {
		a.Explanation = policy.Explanation{
			Verdict: a.Explanation.Verdict,
			Why:     fmt.Sprintf("services do not come in through the gateway, and %q is one", s.Name),
			Advice:  fmt.Sprintf(`services call each other by name: "%s -> SERVICE %s %s"`, s.Name, call.Method, call.Path),
		}
	}
	return a
}

// way lists the places that a call passes. Who is no service of the intent has
// no gate to start from.
func way(in *merlon.Intent, call *merlon.Call) []merlon.Place {
	first := merlon.Edge
	if call.Caller.Kind == merlon.Workload {
		first = merlon.Place{Service: call.Caller.Name}
	}
	svc := in.Service(call.Service)
	known := first == merlon.Edge || in.Service(first.Service) != nil
	switch {
	case !known && (svc == nil || svc.External):
		return []merlon.Place{merlon.Edge}
	case !known:
		return []merlon.Place{{Service: svc.Name}}
	case svc == nil || svc.External || svc.Name == first.Service:
		return []merlon.Place{first}
	}
	return []merlon.Place{first, {Service: svc.Name}}
}

// canonical is the question with host and path as a gate with the intent in
// would read them. The error is a *canon.Error when it would refuse to.
func canonical(test *merlon.Test, in *merlon.Intent) (*merlon.Test, error) {
	if test.Method == "" {
		return test, nil
	}
	out := *test
	head, rest := "", test.Path
	if test.Call.Callee == "" {
		i := strings.Index(rest, "://") + len("://")
		end := len(rest)
		if j := strings.IndexAny(rest[i:], "/?"); j >= 0 {
			end = i + j
		}
		host, err := canon.Host(rest[i:end], nil)
		if err != nil {
			return nil, err
		}
		head, rest = rest[:i]+host, rest[end:]
		if !strings.HasPrefix(rest, "/") {
			rest = "/" + rest
		}
	}
	path, query, asks := strings.Cut(rest, "?")
	slashes := slices.ContainsFunc(in.Services, func(s merlon.Service) bool { return s.Slashes })
	path, err := canon.Path(path, slashes, nil)
	if err != nil {
		return nil, err
	}
	out.Path = head + path
	if asks {
		out.Path += "?" + query
	}
	return &out, nil
}

// decide routes a call and decides about it, with the policy of one place.
func decide(own *policy.Policy, place merlon.Place, test *merlon.Test, asked *merlon.Call) (merlon.Verdict, error) {
	call := own.Call(test)
	call.Caller, call.Time = asked.Caller, asked.Time
	if test.Method == "" {
		return own.Decide(&call), nil
	}
	var r policy.Route
	switch {
	case place == merlon.Edge && call.Caller.Kind == merlon.Workload:
		r = policy.Route{Reason: merlon.ReasonUnidentified} // of an unknown name: nobody there can prove it
	case place == merlon.Edge && test.Call.Callee == "":
		r = own.RouteEdge(call.Host, call.Method, call.Path, nil)
	case test.Call.Callee == "" && call.Caller.Kind == merlon.Workload:
		r = policy.Route{Reason: merlon.ReasonNoService} // services call each other by name
	default:
		r = own.RouteService(asked.Service, call.Method, call.Path, nil)
	}
	if r.Reason != "" {
		v := merlon.Verdict{Reason: r.Reason}
		if r.Service != nil {
			v.Pos = r.Service.Pos
		}
		return v, nil
	}
	if !r.Service.Slashes && strings.Contains(call.Path, "%2F") {
		return merlon.Verdict{}, &canon.Error{Reason: "path_encoded_slash"}
	}
	call.Service, call.Operation, call.Params = r.Service.Name, r.Operation.Name, r.Params
	return own.Decide(&call), nil
}

// reasonOf is the reason with which a gate refuses what it cannot read.
func reasonOf(err error) merlon.Reason {
	if e, ok := errors.AsType[*canon.Error](err); ok {
		return merlon.Reason(e.Reason)
	}
	return "malformed"
}

// malformed explains a call that no policy is asked about.
func malformed(test *merlon.Test, v merlon.Verdict) policy.Explanation {
	return policy.Explanation{
		Verdict: v,
		Why:     fmt.Sprintf("%q can be read in more than one way, and is refused before it is routed: %s", test.Path, v.Reason),
		Advice:  "no intent allows it; send host and path in their plain form",
	}
}

// statusOf is the status with which a gate answers a denial: one of HTTP, or the
// name of one of gRPC, or neither for a service that speaks neither.
func statusOf(in *merlon.Intent, call *merlon.Call, r merlon.Reason) (status int, rpc string) {
	status = gate.Status(r, call.Caller.Kind == merlon.Anyone && in.Gateway != nil && len(in.Gateway.Logins) > 0)
	if s := in.Service(call.Service); s != nil {
		switch s.Protocol {
		case merlon.GRPC:
			return 0, gate.StatusGRPC(status)
		case merlon.TCP:
			return 0, ""
		}
	}
	return status, ""
}

// parseClaims reads the claims of a question. Values have the types that those
// of a token have.
func parseClaims(list []string) (map[string]any, error) {
	const depth = 16
	claims := map[string]any{}
	for _, s := range list {
		name, value, ok := strings.Cut(s, "=")
		name, typed := strings.CutSuffix(name, ":")
		if !ok || name == "" {
			return nil, usage("%q is not a claim\nhint: write NAME=TEXT, or NAME:=JSON for other values than texts", s)
		}
		if _, twice := claims[name]; twice {
			return nil, usage("claim %q is given twice\nhint: a list is written %s:='[\"a\", \"b\"]'", name, name)
		}
		claims[name] = value
		if typed {
			object, err := jws.Object([]byte(`{"v":`+value+`}`), depth)
			if err != nil || len(object) != 1 {
				return nil, usage("%q is not a JSON value\nhint: numbers, true, false, null, lists and objects are; write %s=%s for a text", value, name, value)
			}
			claims[name] = object["v"]
		}
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
	u.printf("%s  %s\n\n", word, u.bold(a.Call))
	var rows [][]string
	nameless := []merlon.Reason{merlon.ReasonNoService, merlon.ReasonNoOperation}
	for _, l := range a.Layers {
		row := u.verdictRow(l.Place, l.Verdict)
		if l.Verdict.Reason == merlon.ReasonNoService && !slices.Contains(nameless, a.Explanation.Verdict.Reason) {
			row = append(row, u.dim("not in its orders")) // a gate knows no service that nothing behind it may call
		}
		rows = append(rows, row)
	}
	u.table("  ", rows)
	u.printf("\n")
	for _, l := range a.Layers {
		if l.Verdict.Effect == merlon.Allow {
			continue
		}
		switch {
		case a.Status != 0:
			u.note("answer", "", "%d %s", a.Status, l.Verdict.Reason)
		case a.GRPC != "":
			u.note("answer", "", "%s %s", a.GRPC, l.Verdict.Reason)
		}
		break
	}
	u.printExplanation(a.Explanation)
}

// verdictRow is a verdict as a row of a table.
func (u *ui) verdictRow(place string, v merlon.Verdict) []string {
	mark, reason := u.red("✗"), u.red(string(v.Reason))
	if v.Effect == merlon.Allow {
		mark, reason = u.green("✓"), u.green(string(v.Reason))
	}
	if v.Shadow {
		mark, reason = u.yellow("~"), u.yellow("would be denied: "+string(v.Reason))
	}
	row := []string{mark + " " + place, reason}
	if v.Rule != "" {
		row = append(row, v.Rule)
	}
	if !v.Pos.IsZero() {
		row = append(row, u.dim(v.Pos.String()))
	}
	return row
}

// note prints one thing to know, under a label, with the place it rests on.
func (u *ui) note(label, pos, format string, args ...any) {
	if pos != "" {
		pos = "  " + u.dim(pos)
	}
	u.printf("  %s%s\n", u.dim(fmt.Sprintf("%-9s", label)), printable(fmt.Sprintf(format, args...))+pos)
}

// printExplanation says why, and how it could be otherwise.
func (u *ui) printExplanation(e policy.Explanation) {
	if e.Why != "" {
		u.note("why", "", "%s", e.Why)
	}
	if e.Nearest != "" && (e.Verdict.Effect != merlon.Allow || e.Verdict.Shadow) {
		u.note("nearest", e.NearestPos.String(), "%s", e.Nearest)
	}
	for i, c := range e.Changes {
		label := "change"
		if i > 0 {
			label = "and"
		}
		u.note(label, c.Pos.String(), "%s", c.Say)
		if c.Line != "" {
			u.printf("  %9s%s\n", "", u.cyan(printable(c.Line)))
		}
	}
	if e.Advice != "" {
		u.note("hint", "", "%s", e.Advice)
	}
}

func newWhy(u *ui) *cobra.Command {
	return &cobra.Command{
		Use:   "why REQUEST-ID [DIR]",
		Short: "explain a past call by the id that its answer carried",
		Long: `why explains a call that a gate has decided. Every answer of a gate carries the
id of its call in the header Merlon-Request-Id. The intent that decided then is
asked again, and the one in force now too, when it is another.`,
		Args:              takes(1, 2),
		ValidArgsFunction: completeDir(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := dirArg(args, 1)
			state := u.stateDir(dir)
			w, err := control.NewClient(state).Why(cmd.Context(), args[0])
			if errors.Is(err, control.ErrNotRunning) {
				w, err = whyOffline(cmd, dir, state, args[0])
			}
			if errors.Is(err, control.ErrNoRecord) || err != nil && strings.HasSuffix(err.Error(), control.ErrNoRecord.Error()) {
				return hinted(err, "the id of a call is in the header Merlon-Request-Id of its answer, and in merlon record tail")
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
	u.printf("%s\n", u.bold("call "+printable(w.ID)))
	trace := ""
	for i := range w.Steps {
		s := &w.Steps[i]
		r := &s.Record
		u.printf("\n%s  %s\n", u.bold(where(r)), u.dim(time.Unix(0, r.Time).Format("2006-01-02 15:04:05.000")))
		u.printf("  %s\n", u.callText(r))
		u.table("  ", [][]string{u.verdictRow(statusText(r.Status), r.Verdict)})
		if r.Trace != "" && r.Trace != trace {
			trace = r.Trace
			u.note("trace", "", "%s", trace)
		}
		if r.Detail != "" {
			u.note("cause", "", "%s", r.Detail)
		}
		switch e := s.Explanation; {
		case e == nil || r.Verdict.Effect == merlon.Allow && !r.Verdict.Shadow:
		case e.Verdict.Effect == merlon.Allow && !r.Verdict.Shadow:
			u.note("policy", e.Verdict.Pos.String(), "has nothing against it: %s", e.Why)
		default:
			u.printExplanation(*e)
		}
		if s.Now != nil {
			u.note("now", s.Now.Pos.String(), "the intent in force says: %v, %s", s.Now.Effect, s.Now.Reason)
		}
	}
}
