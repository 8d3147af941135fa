package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"merlon"
	"merlon/control"
	"merlon/intent"
	"merlon/record"
)

// tap and top look at the records as gates write them. So they cost the gates
// nothing, and show nothing that is not evidence: no header, no body, no query.

// chosen says which calls are looked at.
type chosen struct {
	service, caller, operation, place, status string

	denied bool
	slow   time.Duration

	records string // where to look, if not in the state directory

	classes, codes map[int]bool // of status; nil for all
}

// flags are what both commands choose by.
func (f *chosen) flags(c *cobra.Command) {
	c.Flags().StringVar(&f.service, "service", "", "calls of this `service` only")
	c.Flags().StringVar(&f.operation, "operation", "", "calls of this `operation` only")
	c.Flags().StringVar(&f.caller, "caller", "", "calls by this `caller` only: a service, a login, anyone or nobody")
	c.Flags().StringVar(&f.place, "place", "", "calls that passed this `place` only: gateway, or a service for the gate beside it")
	c.Flags().StringVar(&f.records, "records", "", "look at the records in this `directory`: of a merlon-gate, which has no state directory")
	c.MarkFlagDirname("records")
	c.RegisterFlagCompletionFunc("service", completeNames(false))
	c.RegisterFlagCompletionFunc("caller", completeNames(true))
	c.RegisterFlagCompletionFunc("place", completePlaces)
	c.RegisterFlagCompletionFunc("operation", cobra.NoFileCompletions)
}

// prepare reads what was given as text.
func (f *chosen) prepare() error {
	if f.status == "" {
		return nil
	}
	f.classes, f.codes = map[int]bool{}, map[int]bool{}
	for word := range strings.SplitSeq(f.status, ",") {
		code, err := strconv.Atoi(word)
		digit, class := strings.CutSuffix(word, "xx")
		switch {
		case word == "none":
			f.codes[0] = true
		case class && len(digit) == 1 && '1' <= digit[0] && digit[0] <= '5':
			f.classes[int(digit[0]-'0')] = true
		case err == nil && 100 <= code && code <= 599:
			f.codes[code] = true
		default:
			return usage("%q is no status\nhint: expect a number such as 503, a class such as 5xx, or none; several are separated by commas", word)
		}
	}
	return nil
}

// match reports whether a record is chosen.
func (f *chosen) match(r *record.Record) bool {
	is := func(want, got string) bool { return want == "" || want == got }
	return r.At != atExec && is(f.service, r.Service) && is(f.operation, r.Operation) && is(f.caller, callerOf(r)) &&
		(f.place == "" || f.place == r.Place || merlon.Place{Service: f.place}.String() == r.Place) &&
		(!f.denied || r.Verdict.Effect != merlon.Allow || r.Verdict.Shadow) &&
		(f.slow == 0 || r.Duration >= int64(f.slow)) &&
		(f.status == "" || f.codes[r.Status] || f.classes[r.Status/100])
}

// callerOf is the name of who called, or what is known instead of one.
func callerOf(r *record.Record) string {
	switch {
	case r.Caller != "":
		return r.Caller
	case r.CallerKind != "":
		return r.CallerKind
	}
	return merlon.Nobody.String()
}

// running wants a system that runs, and returns where its records are.
func (f *chosen) running(ctx context.Context, u *ui, dir string) (records string, err error) {
	if f.records != "" {
		return f.records, isDir(f.records)
	}
	records, err = u.recordDir(dir)
	if err != nil {
		return "", err
	}
	_, err = control.NewClient(u.stateDir(dir)).Status(ctx)
	if errors.Is(err, control.ErrNotRunning) {
		return "", errStopped(dir)
	}
	return records, err
}

// isDir says what is wrong with the name of a directory.
func isDir(name string) error {
	info, err := os.Stat(name)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%q is a file", name)
	}
	return err
}

// seen is a record as it is written, or why there are no more.
type seen struct {
	record.Record
	err error
}

// follow sends what is recorded from now on and f chooses, in all chains of a
// directory, until ctx ends; then it closes the channel. A chain that was read
// already goes on from there.
func follow(ctx context.Context, dir string, f record.Filter, read map[string]uint64) <-chan seen {
	found := make(chan seen, 256)
	go func() {
		defer close(found)
		var chains sync.WaitGroup
		defer chains.Wait()
		known := map[string]bool{}
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for late := false; ; late = true {
			// A process that takes over from another writes a chain of its own.
			dirs, err := record.Chains(dir)
			if err != nil {
				send(ctx, found, seen{err: err})
			}
			for _, chain := range dirs {
				if !known[chain] {
					known[chain] = true
					f := f
					f.After = read[chain]
					chains.Go(func() { followChain(ctx, found, chain, f, late) })
				}
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	return found
}

// followChain sends what is recorded in one chain, and what is there of one that
// has begun late.
func followChain(ctx context.Context, to chan<- seen, chain string, f record.Filter, late bool) {
	if late {
		for r, err := range record.Read(chain, f) {
			if !send(ctx, to, seen{r, err}) {
				return
			}
			f.After = r.Seq
		}
	}
	for r, err := range record.Follow(ctx, chain, f) {
		if !send(ctx, to, seen{r, err}) {
			return
		}
	}
}

// send sends what was seen, and reports whether there is a use in going on.
func send(ctx context.Context, to chan<- seen, s seen) bool {
	select {
	case to <- s:
		return s.err == nil
	case <-ctx.Done():
		return false
	}
}

func newTap(u *ui) *cobra.Command {
	var f chosen
	var rate, most int
	c := &cobra.Command{
		Use:   "tap [DIR]",
		Short: "watch calls as they pass, with their verdicts",
		Long: `tap prints every call when it is over, until it is interrupted: what a gate
decided about it, and how long it took. It reads the records that gates write
anyway, and costs them nothing. Bodies, headers and queries are never shown.

When there are more calls than --rate in a second, the rest is left out, and how
many that were is said.`,
		Args:              takes(0, 1),
		ValidArgsFunction: completeDir(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.prepare(); err != nil {
				return err
			}
			if rate < 1 || most < 0 {
				return usage("--rate is at least 1, and --count at least 0")
			}
			dir, err := f.running(cmd.Context(), u, dirArg(args, 0))
			if err != nil {
				return err
			}
			t := &tap{ui: u, rate: rate}
			return t.run(cmd.Context(), dir, &f, most)
		},
	}
	f.flags(c)
	c.Flags().BoolVar(&f.denied, "denied", false, "denials only, and what would be one")
	c.Flags().StringVar(&f.status, "status", "", "calls with this `status` only: 503, 5xx, none, or several with commas")
	c.Flags().DurationVar(&f.slow, "slow", 0, "calls that took at least this `long` only, such as 100ms")
	c.Flags().IntVar(&rate, "rate", 100, "at most so many lines a second")
	c.Flags().IntVar(&most, "count", 0, "end after so many calls")
	c.RegisterFlagCompletionFunc("status", cobra.FixedCompletions([]string{"2xx", "3xx", "4xx", "5xx", "none"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// tap prints calls, and bounds how many.
type tap struct {
	*ui
	rate int

	mu      sync.Mutex
	printed int // in this second
	left    int // out, since it was last said
}

func (t *tap) run(ctx context.Context, dir string, f *chosen, most int) error {
	ctx, cancel := context.WithCancel(ctx)
	var seconds sync.WaitGroup
	seconds.Go(func() { t.everySecond(ctx) })
	defer seconds.Wait()
	defer cancel()
	shown := 0
	for s := range follow(ctx, dir, record.Filter{}, nil) {
		if s.err != nil {
			return s.err
		}
		if !f.match(&s.Record) {
			continue
		}
		t.show(&s.Record)
		if shown++; shown == most {
			return nil
		}
	}
	return nil
}

// everySecond begins the count anew, and says what was left out.
func (t *tap) everySecond(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			t.confess()
			return
		case <-tick.C:
			t.confess()
		}
	}
}

func (t *tap) confess() {
	t.mu.Lock()
	defer t.mu.Unlock()
	left := t.left
	t.printed, t.left = 0, 0
	switch {
	case left == 0:
	case t.json:
		t.printf(`{"leftOut":%d}`+"\n", left)
	default:
		t.say("%s left out: there are more than %d a second", count(left, "call"), t.rate)
	}
}

func (t *tap) show(r *record.Record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.printed++; t.printed > t.rate {
		t.left++
		return
	}
	r.Query = "" // kept only if somebody asked for it, and not for this
	if t.json {
		t.printRecord(r)
		return
	}
	t.printf("%s  %s  %s  %s  %s\n", t.dim(time.Unix(0, r.Time).Format("15:04:05.000")), t.decided(r),
		fmt.Sprintf("%-19s", where(r)), t.dim(fmt.Sprintf("%8s", duration(r.Duration))), t.callText(r))
}

// duration is nanoseconds as people read them, with about three digits.
func duration(nanos int64) string {
	switch d := float64(nanos); {
	case d < 1e3:
		return "0"
	case d < 1e6:
		return digits(d/1e3) + " µs"
	case d < 1e9:
		return digits(d/1e6) + " ms"
	default:
		return digits(d/1e9) + " s"
	}
}

func digits(v float64) string {
	switch {
	case v < 10:
		return strconv.FormatFloat(v, 'f', 2, 64)
	case v < 100:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 0, 64)
}

// completeNames completes names of the intent in the directory that is among
// the arguments: of services, and of callers.
func completeNames(callers bool) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		var names []string
		if in := quietly(args); in != nil {
			for i := range in.Services {
				names = append(names, in.Services[i].Name)
			}
			if in.Gateway != nil && callers {
				names = append(names, merlon.AnyCaller)
				for i := range in.Gateway.Logins {
					names = append(names, in.Gateway.Logins[i].Name)
				}
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

func completePlaces(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	if in := quietly(args); in != nil {
		for _, p := range places(in) {
			names = append(names, p.Workload())
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// quietly loads the intent for completion, which has nobody to tell of mistakes.
func quietly(args []string) *merlon.Intent {
	files, err := openDir(dirArg(args, 0))
	if err != nil {
		return nil
	}
	loaded, ds := intent.Load(files)
	if ds.Failed() {
		return nil
	}
	return loaded.Intent
}
