// Command bench measures what a proxied request costs: processor time of the
// proxy per request, for the gate with an intent in force and records on, and
// for other proxies that do nothing but pass bytes on.
//
// All run in turn on this machine in every round, so that a slow minute hits
// all alike; what counts are the ratios within a round, not the absolute
// figures. The bare relay copies bytes without reading them: it is the price
// of the kernel, below which no proxy can go.
//
//	go run ./bench            # print the tables
//	go run ./bench -write     # and write docs/benchmarks.md
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"time"
)

type options struct {
	rounds   int
	duration time.Duration
	conns    int
	rate     int
	write    bool
	only     string
}

func main() {
	var o options
	relay := flag.String("relay", "", "be the relay: `LISTEN,UPSTREAM`")
	backend := flag.String("backend", "", "be the backend on `LISTEN`")
	flag.IntVar(&o.rounds, "rounds", 5, "how often each proxy is measured")
	flag.DurationVar(&o.duration, "duration", 3*time.Second, "of one measurement")
	flag.IntVar(&o.conns, "conns", 64, "client connections")
	flag.IntVar(&o.rate, "rate", 10_000, "requests per second of the fixed-rate runs")
	flag.BoolVar(&o.write, "write", false, "write docs/benchmarks.md")
	flag.StringVar(&o.only, "only", "", "measure this proxy and nginx only")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var err error
	switch {
	case *relay != "":
		err = runRelay(*relay)
	case *backend != "":
		err = runBackend(*backend)
	default:
		err = run(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// scenario is one way to load a proxy.
type scenario struct {
	name string
	rate int // requests per second; 0 is as many as go through
}

func run(ctx context.Context, o options) error {
	dir, err := os.MkdirTemp("", "merlon-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l := &lab{dir: dir}
	defer l.close()
	if err := l.build(ctx); err != nil {
		return err
	}
	scenarios := []scenario{{"saturated", 0}, {fmt.Sprintf("%d requests/s", o.rate), o.rate}}
	var t tables
	for round := range o.rounds {
		for _, s := range scenarios {
			for _, p := range peers {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if o.only != "" && p.name != o.only && p.name != "nginx" {
					continue
				}
				m, err := l.measure(p, s, o)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", p.name, s.name, err)
				}
				if m == nil {
					fmt.Fprintf(os.Stderr, "%-22s not found on this machine\n", p.name)
					continue
				}
				t.add(s.name, p.name, *m)
				fmt.Fprintf(os.Stderr, "round %d/%d  %-16s %-22s %s\n", round+1, o.rounds, s.name, p.name, m)
			}
		}
	}
	text := t.markdown()
	fmt.Print(text)
	if !o.write {
		return nil
	}
	return os.WriteFile(filepath.Join("docs", "benchmarks.md"), []byte(header(o)+text), 0o644)
}

func header(o options) string {
	return fmt.Sprintf(`# Benchmarks

What a proxied request costs, in microseconds of processor time of the proxy
(user and system, all its threads), and what its clients see. Written by
`+"`go run ./bench -write`"+`; every proxy is measured in turn in each of %d rounds of
%v, and the ratio is the median of the ratios within a round. Differences below
8 %% are noise.

The gate enforces an intent (route, decision, limit), records every call in its
hash chain, and tells the app who is calling in a signed token; the others only
pass requests on, with logs off. GET, keep-alive, %d connections, an answer of
1 KiB. %d processors, %s, %s.

`, o.rounds, o.duration, o.conns, runtime.NumCPU(), runtime.GOOS, runtime.Version())
}
