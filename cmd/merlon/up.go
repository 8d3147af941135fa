package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"merlon"
	"merlon/control"
	"merlon/intent"
	"merlon/policy"
)

func newUp(u *ui) *cobra.Command {
	var o upOptions
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
			return up(cmd.Context(), u, dirArg(args, 0), o)
		},
	}
	c.Flags().StringVar(&o.log, "log", "", "`file` for the log of gates and services; default is merlon.log in the state directory, - is standard error")
	c.Flags().StringVar(&o.admin, "admin", "", "loopback `address` such as 127.0.0.1:9901 that serves the metrics of all gates at /metrics; default is none")
	c.Flags().BoolVar(&o.widen, "widen", false, "accept that a changed intent allows more calls than the one before")
	o.workloads.flags(c, "in the state directory, or below /run/merlon with --isolate")
	o.lifetimes.flags(c)
	o.vault.flags(c)
	o.federation.flags(c)
	c.Flags().StringVar(&o.nodes, "node-endpoint", "", "`address` where the agents of nodes connect, such as :8445; default is nowhere")
	c.Flags().BoolVar(&o.isolate, "isolate", false, "give every service with a run: sentence a network namespace of its own (Linux, as root): nothing but its gate reaches it, and it reaches nothing but its gate")
	c.Flags().BoolVar(&o.committed, "committed", false, "run the intent that was last in force, whatever the files in DIR say now")
	return c
}

type upOptions struct {
	log              string
	admin            string
	widen, committed bool
	isolate          bool
	workloads        workloadOptions
	lifetimes        lifetimes
	vault            vaultOptions
	federation       federationOptions
	nodes            string
}

func up(ctx context.Context, u *ui, dir string, o upOptions) error {
	began := time.Now()
	if err := errors.Join(o.federation.check(), o.lifetimes.check(o)); err != nil {
		return err
	}
	if o.isolate {
		if err := checkIsolate(o.workloads.address); err != nil {
			return err
		}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	state, err := filepath.Abs(u.stateDir(dir))
	if err != nil {
		return err
	}
	loaded := &intent.Loaded{Intent: new(merlon.Intent)}
	if !o.committed {
		if loaded, _, err = u.load(dir); err != nil {
			return u.offerCommitted(ctx, dir, state, err)
		}
	}
	if err := makeState(state); err != nil {
		return err
	}
	if o.log == "" {
		o.log = filepath.Join(state, "merlon.log")
	}
	log, logTo, err := openLog(o.log)
	if err != nil {
		return err
	}
	defer logTo.Close()
	who, err := o.workloads.attestOptions()
	if err != nil {
		return err
	}
	upstream, err := o.vault.upstream()
	if err != nil {
		return err
	}
	s, err := openSystem(ctx, u, dir, state, loaded.Intent.TrustDomain, who, authorityOptions{upstream, o.lifetimes, o.federation, o.nodes, o.workloads}, log)
	if err != nil {
		return err
	}
	defer s.close()
	s.logFile = o.log
	if o.isolate {
		if o.workloads.address, err = s.beginIsolation(o.workloads.address); err != nil {
			return err
		}
	}
	if o.admin != "" {
		stop, err := s.serveAdmin(o.admin)
		if err != nil {
			return err
		}
		defer stop()
	}
	result, err := s.start(ctx, loaded, o)
	if ctx.Err() != nil {
		return errors.New("interrupted before the system was up; everything is taken down")
	}
	if err != nil {
		return u.applyFailed(dir, err)
	}
	u.upBanner(s, s.control.Intent(), result, time.Since(began))
	<-ctx.Done()
	u.say("stopping: calls in progress are finished")
	return nil
}

// offerCommitted names the way out when the files are broken and a good intent
// was in force before.
func (u *ui) offerCommitted(ctx context.Context, dir, state string, err error) error {
	if _, missing := os.Stat(filepath.Join(state, "control.db")); missing != nil || u.json {
		return err
	}
	c, cerr := offline(ctx, dir, state)
	if cerr != nil {
		return err
	}
	defer c.Close()
	if c.Intent() != nil {
		fmt.Fprintf(u.err, "hint: the intent that was last in force is whole: merlon up --committed %s runs it\n", relative(dir))
	}
	return err
}

// start brings the system into service: with the intent at hand, or with the
// one that was last in force.
func (s *system) start(ctx context.Context, loaded *intent.Loaded, o upOptions) (r *control.Result, err error) {
	if err := s.serveWorkloads(o.workloads.address); err != nil {
		return nil, err
	}
	if err := s.serveBundle(o.federation); err != nil {
		return nil, err
	}
	if err := s.serveNodes(o.nodes); err != nil {
		return nil, err
	}
	if s.api, err = s.control.Serve(); err != nil { // it tells of all that is served
		return nil, err
	}
	opt := control.ApplyOptions{Who: currentUser(), Message: "merlon up", Widen: o.widen}
	if o.committed {
		last, err := s.control.History(ctx, 1)
		if err != nil {
			return nil, err
		}
		r, err = s.control.Rollback(ctx, last[0].Hash, opt)
		if err != nil {
			return nil, err
		}
	} else if r, err = s.control.Apply(ctx, loaded, opt); err != nil {
		return nil, err
	}
	if len(r.Problems) > 0 {
		return nil, r.Problems
	}
	for _, g := range r.Gates {
		if g.Behind != "" {
			return nil, fmt.Errorf("the %s does not enforce intent %s: %s", g.Place, short(r.Commit.Hash), g.Behind)
		}
	}
	return r, nil
}

// openLog opens where gates and services log to.
func openLog(file string) (*slog.Logger, io.Closer, error) {
	var w io.WriteCloser = nopCloser{os.Stderr}
	if file != "-" {
		f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, nil, fmt.Errorf("the log cannot be written: %w", err)
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
	gates := s.running()
	u.printf("\n%s  intent %s is in force at %s, after %.1fs\n\n", u.bold(in.TrustDomain), u.cyan(short(r.Commit.Hash)),
		count(len(gates), "gate"), took.Seconds())
	rows := [][]string{{u.dim("service"), u.dim("app"), u.dim("gate: calls in"), u.dim("gate: calls out"), u.dim("admitted"), u.dim("direct access")}}
	if edge := gates[merlon.Edge]; edge != nil {
		rows = append(rows, []string{u.bold("gateway"), "", gatewayURL(in), "", "", ""})
	}
	for i := range in.Services {
		svc := &in.Services[i]
		g := gates[merlon.Place{Service: svc.Name}]
		if g == nil {
			continue
		}
		rows = append(rows, []string{u.bold(svc.Name), first(svc.Addresses), g.in, "HTTP_PROXY=http://" + g.out, u.local(g.local.String()), u.direct(g.ns != nil)})
	}
	u.table("  ", rows)
	u.localPorts(in)
	if s.endpoint != "" {
		u.printf("\n%s\n", u.dim("Workload API: SPIFFE_ENDPOINT_SOCKET="+s.endpoint))
	}
	if s.bundleAt != "" {
		u.printf("%s\n", u.dim("Trust bundle: "+s.bundleAt))
	}
	if s.nodesAt != "" {
		u.printf("%s\n", u.dim("Nodes: merlon agent --server "+s.nodesAt))
	}
	u.printf("\n%s\n", u.dim("What the intent allows, and what it does not (what to expect is behind the #):"))
	for _, t := range tries(in, s.dir, s.state, outbound(gates)) {
		u.printf("\n  %s\n  %s\n", u.dim("# "+t.About), t.Command)
	}
	var all []control.GateStatus
	for _, p := range places(in) {
		if g := gates[p]; g != nil {
			all = append(all, control.GateStatus{Place: p.String(), Isolated: g.ns != nil, Local: g.local.String()})
		}
	}
	u.printf("\n%s\n", u.dim(directly(all)))
	u.printf("%s\n", u.dim("Log: "+relative(s.logFile)+" · stop with Ctrl-C"))
}

// localPorts says where services reach those that speak TCP.
func (u *ui) localPorts(in *merlon.Intent) {
	var rows [][]string
	for i := range in.Services {
		s := &in.Services[i]
		for _, name := range slices.Sorted(maps.Keys(s.LocalPorts)) {
			rows = append(rows, []string{u.bold(s.Name) + " -> " + name, fmt.Sprintf("127.0.0.1:%d", s.LocalPorts[name])})
		}
	}
	if len(rows) > 0 {
		u.printf("\n")
		u.table("  ", append([][]string{{u.dim("calls over tcp"), u.dim("local port")}}, rows...))
	}
}

// whatRuns is the banner for programs.
func (s *system) whatRuns(in *merlon.Intent, r *control.Result) any {
	type place struct {
		Place    string            `json:"place"`
		App      string            `json:"app,omitzero"`
		In       string            `json:"in"`
		Out      string            `json:"out,omitzero"`
		Local    string            `json:"local,omitzero"` // which processes of this host may call through Out
		Isolated bool              `json:"isolated"`       // App is there for its gate alone, as Out is for App
		Ports    map[string]uint16 `json:"ports,omitzero"` // of 127.0.0.1: where it reaches services that speak TCP
	}
	gates := s.running()
	var all []place
	for _, p := range places(in) {
		g := gates[p]
		if g == nil {
			continue // another intent is in force already
		}
		row := place{Place: p.String(), In: g.in, Out: g.out, Isolated: g.ns != nil}
		if svc := in.Service(p.Service); svc != nil {
			row.App, row.Local, row.Ports = first(svc.Addresses), g.local.String(), svc.LocalPorts
		}
		all = append(all, row)
	}
	return map[string]any{"ok": true, "intent": r.Commit.Hash, "places": all, "state": s.state, "workloadAPI": s.endpoint, "bundle": s.bundleAt, "nodes": s.nodesAt,
		"tries": tries(in, s.dir, s.state, outbound(gates))}
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
		const text, hint = "the change widens access, and so nothing was changed", "look at what is newly allowed; if it is meant, repeat with --widen"
		if u.json {
			u.printJSON(map[string]any{"ok": false, "error": text, "hint": hint, "widens": true, "changes": w.Changes})
			return &exit{code: exitWidens}
		}
		u.printChanges(w.Changes)
		return &exit{exitWidens, hinted(errors.New(text), hint)}
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
