package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"merlon"
	"merlon/gate"
	"merlon/gate/grpc"
	"merlon/record"
)

func newTop(u *ui) *cobra.Command {
	var f chosen
	var o topOptions
	c := &cobra.Command{
		Use:   "top [DIR]",
		Short: "show who calls what, how often, how fast, and with what success",
		Long: `top counts the calls of the last --window by caller and operation, and shows the
most frequent ones anew every --every, until it is interrupted. It reads the
records that gates write anyway, and costs them nothing.

A call is counted where it comes from: at the gateway, or at the gate beside the
service that calls; and where the gate beside the called service denies it. With
--place it is counted at that place only. Times are of calls that were allowed,
as that gate saw them.

With --once it prints the window that ends now, and ends; with --at it shows how
it was at some time in the past, from the records.`,
		Args:              takes(0, 1),
		ValidArgsFunction: completeDir(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.window < time.Second || o.window > maxWindow || o.every < 100*time.Millisecond || o.rows < 0 {
				return usage("--window is 1s to %v, --every at least 100ms, and --rows at least 0", maxWindow)
			}
			if o.at != "" {
				to, err := parseTime(o.at)
				if err != nil {
					return err
				}
				return u.topThen(dirArg(args, 0), to, &f, &o)
			}
			dir, err := f.running(cmd.Context(), u, dirArg(args, 0))
			switch {
			case err != nil:
				return err
			case o.once:
				return u.topThen(dirArg(args, 0), time.Now(), &f, &o)
			}
			return u.topNow(cmd.Context(), dir, &f, &o)
		},
	}
	f.flags(c)
	c.Flags().DurationVar(&o.window, "window", 10*time.Second, "count the calls of so `long`")
	c.Flags().DurationVar(&o.every, "every", 2*time.Second, "show them anew after so `long`")
	c.Flags().IntVar(&o.rows, "rows", 20, "at most so many rows; 0 for all")
	c.Flags().BoolVar(&o.once, "once", false, "print the window that ends now, and end")
	c.Flags().StringVar(&o.at, "at", "", "the `time` that the window ends at, such as \"2026-03-02 09:00:12\", instead of now")
	c.RegisterFlagCompletionFunc("at", cobra.NoFileCompletions)
	return c
}

type topOptions struct {
	window, every time.Duration
	rows          int
	once          bool
	at            string
}

// Bounds of what top keeps in memory.
const (
	maxWindow = time.Hour
	maxCalls  = 1_000_000 // the window is shorter when there are more
)

// link is who calls what.
type link struct{ caller, kind, service, operation string }

// call is what top remembers of a record.
type topCall struct {
	link           link
	end            int64 // unix nanoseconds
	took           int64 // nanoseconds
	denied, failed bool
}

// Top is what top shows, for programs.
type Top struct {
	From  time.Time `json:"from"`
	To    time.Time `json:"to"`
	Calls int       `json:"calls"`
	Rows  []TopRow  `json:"rows"`
}

// TopRow is who calls what. Durations are nanoseconds.
type TopRow struct {
	Caller     string `json:"caller"`
	CallerKind string `json:"callerKind"`
	Service    string `json:"service,omitzero"`
	Operation  string `json:"operation,omitzero"`
	Calls      int    `json:"calls"`
	Denied     int    `json:"denied"`
	Failed     int    `json:"failed"` // allowed, and without a good answer
	P50        int64  `json:"p50,omitzero"`
	P95        int64  `json:"p95,omitzero"`
	P99        int64  `json:"p99,omitzero"`
}

// counted reports whether the record is the one at which a call is counted.
func (f *chosen) counted(r *record.Record) bool {
	return f.match(r) && !strings.HasPrefix(r.Detail, gate.TunnelEnded) && (f.place != "" || r.At != "in" || r.Verdict.Effect != merlon.Allow)
}

// remember is what top needs to know of a record.
func remember(r *record.Record) topCall {
	allowed := r.Verdict.Effect == merlon.Allow
	return topCall{
		link:   link{callerOf(r), r.CallerKind, r.Service, r.Operation},
		end:    r.Time + r.Duration,
		took:   r.Duration,
		denied: !allowed,
		failed: allowed && (r.Status >= 500 || r.Status == 0 || r.Verdict.Reason != merlon.ReasonAllowed && !r.Verdict.Shadow ||
			r.GRPC != "" && grpc.Named(r.GRPC).Class() == 5),
	}
}

// summarize counts calls by link, the most frequent ones first.
func summarize(calls []topCall, from, to time.Time) *Top {
	t := &Top{From: from, To: to, Calls: len(calls), Rows: []TopRow{}}
	took := map[link][]int64{}
	rows := map[link]*TopRow{}
	for i := range calls {
		c := &calls[i]
		row := rows[c.link]
		if row == nil {
			row = &TopRow{Caller: c.link.caller, CallerKind: c.link.kind, Service: c.link.service, Operation: c.link.operation}
			rows[c.link] = row
		}
		row.Calls++
		switch {
		case c.denied:
			row.Denied++
			continue
		case c.failed:
			row.Failed++
		}
		took[c.link] = append(took[c.link], c.took)
	}
	for l, row := range rows {
		slices.Sort(took[l])
		row.P50, row.P95, row.P99 = percentile(took[l], 50), percentile(took[l], 95), percentile(took[l], 99)
		t.Rows = append(t.Rows, *row)
	}
	slices.SortFunc(t.Rows, func(a, b TopRow) int {
		return cmp.Or(cmp.Compare(b.Calls, a.Calls), cmp.Compare(a.Caller, b.Caller), cmp.Compare(a.Service, b.Service), cmp.Compare(a.Operation, b.Operation), cmp.Compare(a.CallerKind, b.CallerKind))
	})
	return t
}

// percentile is by nearest rank; 0 of nothing.
func percentile(sorted []int64, p int) int64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[max((len(sorted)*p+99)/100, 1)-1]
}

// topThen shows a window of the past.
func (u *ui) topThen(dir string, to time.Time, f *chosen, o *topOptions) (err error) {
	records := f.records
	if records == "" {
		records, err = u.recordDir(dir)
	} else {
		err = isDir(records)
	}
	if err != nil {
		return err
	}
	chains, err := record.Chains(records)
	if err != nil {
		return err
	}
	from := to.Add(-o.window)
	var calls []topCall
	// A call belongs to the window in which it ended.
	for _, chain := range chains {
		for r, err := range record.Read(chain, record.Filter{Until: to.UnixNano()}) {
			if err != nil {
				return inChain(err, records, chain)
			}
			if c := remember(&r); f.counted(&r) && c.end >= from.UnixNano() && c.end < to.UnixNano() {
				if len(calls) == maxCalls {
					return hinted(fmt.Errorf("there are more than %d calls in the window", maxCalls), "choose a shorter --window, or fewer calls")
				}
				calls = append(calls, c)
			}
		}
	}
	return u.printTop(summarize(calls, from, to), o)
}

// parseTime reads a time as people write it, in their own zone, or as records
// have it.
func parseTime(s string) (time.Time, error) {
	for _, layout := range []string{time.RFC3339Nano, time.DateTime, "2006-01-02 15:04"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usage("%q is no time\nhint: write it like %q", s, time.DateTime)
}

// topNow shows the window that ends now, again and again.
func (u *ui) topNow(ctx context.Context, dir string, f *chosen, o *topOptions) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	began := time.Now()
	found := follow(ctx, dir, record.Filter{}, nil)
	tick := time.NewTicker(o.every)
	defer tick.Stop()
	var calls []topCall
	for {
		select {
		case s, ok := <-found:
			switch {
			case !ok:
				return nil // interrupted
			case s.err != nil:
				return s.err
			case !f.counted(&s.Record):
				continue
			case len(calls) == maxCalls:
				calls = append(calls[:0], calls[maxCalls/10:]...)
				began = time.Unix(0, calls[0].end)
			}
			calls = append(calls, remember(&s.Record))
			continue
		case <-tick.C:
		}
		to := time.Now()
		from := to.Add(-o.window)
		if from.Before(began) {
			from = began
		}
		calls = slices.DeleteFunc(calls, func(c topCall) bool { return c.end < from.UnixNano() })
		if err := u.printTop(summarize(calls, from, to), o); err != nil {
			return err
		}
	}
}

// printTop prints one table, in the place of the last one where that is
// possible.
func (u *ui) printTop(t *Top, o *topOptions) error {
	more := 0
	if o.rows > 0 && len(t.Rows) > o.rows {
		more = len(t.Rows) - o.rows
		t.Rows = t.Rows[:o.rows]
	}
	live := !o.once && o.at == ""
	switch {
	case u.json && live:
		return json.NewEncoder(u.out).Encode(t)
	case u.json:
		u.printJSON(t)
		return nil
	case live && u.terminal:
		u.printf("\x1b[H\x1b[2J")
	}
	span := t.To.Sub(t.From).Seconds()
	u.printf("%s  %s in %s\n\n", u.bold(t.To.Local().Format(time.DateTime)), count(t.Calls, "call"), time.Duration(span*1e9).Round(time.Second/10))
	rows := [][]string{{u.dim("caller"), u.dim("calls"), u.dim("a second"), u.dim("denied"), u.dim("failed"), u.dim("p50"), u.dim("p95"), u.dim("p99")}}
	for i := range t.Rows {
		r := &t.Rows[i]
		rows = append(rows, []string{
			printable(r.Caller), printable(r.called()), digits(float64(r.Calls) / span),
			share(r.Denied, r.Calls, u.yellow), share(r.Failed, r.Calls, u.red), took(r.P50), took(r.P95), took(r.P99),
		})
	}
	u.table("", rows)
	if more > 0 {
		u.printf("%s\n", u.dim("and "+count(more, "row")+" more: --rows 0 shows all"))
	}
	if live && !u.terminal {
		u.printf("\n")
	}
	return nil
}

// called is what is called, as people write it.
func (r *TopRow) called() string {
	switch {
	case r.Service == "":
		return "-"
	case r.Operation == "":
		return r.Service
	}
	return r.Service + "." + r.Operation
}

// share is n of all in percent; nothing when there is none.
func share(n, all int, paint func(string) string) string {
	if n == 0 {
		return "-"
	}
	return paint(digits(float64(n)*100/float64(all)) + "%")
}

func took(nanos int64) string {
	if nanos == 0 {
		return "-"
	}
	return duration(nanos)
}
