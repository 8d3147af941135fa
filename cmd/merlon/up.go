package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"merlon"
	"merlon/control"
	"merlon/intent"
	"merlon/policy"
)

func newUp(u *ui) *cobra.Command {
	var logFile string
	var widen bool
	c := &cobra.Command{
		Use:   "up [DIR]",
		Short: "run the system of an intent: its services, their gates, the gateway and the control plane",
		Long: `up puts the intent in DIR in force and serves it until it is interrupted.

Services with a run: sentence are built and started; others are protected where
they already run. Every service gets a gate: calls to it come in through one
port of the gate, and its own calls leave through another, to which HTTP_PROXY
points. What is not allowed by the intent is denied.

State (keys, history of intents, records) is kept in DIR/.merlon. If the intent
differs from the one in force before, the change is applied as merlon apply
does: one that widens access needs --widen.`,
		Args:              takes(0, 1),
		ValidArgsFunction: completeDir(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			return up(cmd.Context(), u, dirArg(args, 0), logFile, widen)
		},
	}
	c.Flags().StringVar(&logFile, "log", "", "`file` for the log of gates and services; default is merlon.log in the state directory, - is standard error")
	c.Flags().BoolVar(&widen, "widen", false, "accept that a changed intent allows more calls than the one before")
	return c
}

func up(ctx context.Context, u *ui, dir, logFile string, widen bool) error {
	began := time.Now()
	loaded, _, err := u.load(dir)
	if err != nil {
		return err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return err
	}
	state, err := filepath.Abs(u.stateDir(dir))
	if err != nil {
		return err
	}
	if err := makeState(state); err != nil {
		return err
	}
	log, logTo, err := openLog(u, state, logFile)
	if err != nil {
		return err
	}
	defer logTo.Close()
	s, err := openSystem(ctx, dir, state, loaded.Intent.TrustDomain, log)
	if err != nil {
		return err
	}
	defer s.close()
	s.say = u.say
	result, err := s.start(ctx, loaded, widen)
	if err != nil {
		return u.applyFailed(dir, err)
	}
	u.upBanner(s, loaded.Intent, result, time.Since(began))
	<-ctx.Done()
	u.say("stopping: calls in progress are finished")
	return nil
}

// start brings the system into service: first as it was last committed, then
// with the intent at hand if that is another one.
func (s *system) start(ctx context.Context, loaded *intent.Loaded, widen bool) (*control.Result, error) {
	var err error
	if s.api, err = s.control.Serve(); err != nil {
		return nil, err
	}
	if old := s.control.Intent(); old != nil {
		if err := s.prepare(ctx, old); err != nil {
			return nil, err
		}
	}
	return s.control.Apply(ctx, loaded, control.ApplyOptions{Who: currentUser(), Message: "merlon up", Widen: widen})
}

// openLog opens where gates and services log to.
func openLog(u *ui, state, file string) (*slog.Logger, io.Closer, error) {
	var w io.WriteCloser = nopCloser{os.Stderr}
	if file != "-" {
		if file == "" {
			file = filepath.Join(state, "merlon.log")
		}
		f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, nil, err
		}
		w = f
	}
	return slog.New(slog.NewTextHandler(w, nil)), w, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// upBanner says what runs where, and what to try.
func (u *ui) upBanner(s *system, in *merlon.Intent, r *control.Result, took time.Duration) {
	if u.json {
		u.printJSON(s.whatRuns(in, r))
		return
	}
	u.printf("\n%s  intent %s is in force at %s, after %.1fs\n\n", u.bold(in.TrustDomain), u.cyan(short(r.Commit.Hash)),
		count(len(s.gates), "gate"), took.Seconds())
	rows := [][]string{{u.dim("service"), u.dim("app"), u.dim("gate: calls in"), u.dim("gate: calls out")}}
	if edge := s.gates[merlon.Edge]; edge != nil {
		rows = append(rows, []string{u.bold("gateway"), "", gatewayURL(in), ""})
	}
	for i := range in.Services {
		svc := &in.Services[i]
		g := s.gates[merlon.Place{Service: svc.Name}]
		if g == nil {
			continue
		}
		rows = append(rows, []string{u.bold(svc.Name), first(svc.Addresses), g.in, "HTTP_PROXY=http://" + g.out})
	}
	u.table("  ", rows)
	u.printf("\n%s\n", u.dim("What the intent allows, and what it does not (expected status behind the #):"))
	for _, t := range s.tries(in) {
		u.printf("\n  %s\n  %s\n", u.dim("# "+t.about), t.command)
	}
	u.printf("\n%s\n", u.dim("merlon protects calls that go through the gates; a program on this host can still reach an app's own port directly."))
	u.printf("%s\n", u.dim("Log: "+filepath.Join(s.state, "merlon.log")+" · stop with Ctrl-C"))
}

// whatRuns is the banner for programs.
func (s *system) whatRuns(in *merlon.Intent, r *control.Result) any {
	type place struct {
		Place string `json:"place"`
		App   string `json:"app,omitzero"`
		In    string `json:"in"`
		Out   string `json:"out,omitzero"`
	}
	var all []place
	for _, p := range places(in) {
		g := s.gates[p]
		row := place{Place: p.String(), In: g.in, Out: g.out}
		if svc := in.Service(p.Service); svc != nil {
			row.App = first(svc.Addresses)
		}
		all = append(all, row)
	}
	return map[string]any{"ok": true, "intent": r.Commit.Hash, "places": all, "state": s.state}
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// applyFailed shows why an intent was not put in force.
func (u *ui) applyFailed(dir string, err error) error {
	if w, ok := errors.AsType[*control.WidensError](err); ok {
		u.printChanges(w.Changes)
		return &exit{exitWidens, fmt.Errorf("%w\nhint: look at what is newly allowed above; if it is meant, repeat with --widen", err)}
	}
	if ds, ok := errors.AsType[merlon.Diagnostics](err); ok {
		files, ferr := openDir(dir)
		if ferr != nil {
			return err
		}
		return u.diagnose(dir, files, ds)
	}
	return err
}

// compile compiles what was loaded, and shows what is wrong with it.
func (u *ui) compile(dir string, loaded *intent.Loaded) (*policy.Policy, merlon.Diagnostics, error) {
	p, ds := policy.Compile(loaded.Intent)
	if !ds.Failed() {
		ds = append(ds, p.Test()...)
	}
	if ds.Failed() {
		files, err := openDir(dir)
		if err != nil {
			return nil, nil, err
		}
		return nil, nil, u.diagnose(dir, files, ds)
	}
	return p, ds, nil
}
