package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"merlon"
	"merlon/control"
	"merlon/record"
)

// errNothing says that no system has ever run here. Who only asks leaves no
// state directory behind.
func errNothing(dir, state string) error {
	return hinted(fmt.Errorf("nothing has run here yet: there is no %q", state), "merlon up %s starts the system", dir)
}

// errStopped says that a system does not run now.
func errStopped(dir string) error {
	return hinted(fmt.Errorf("no control plane is running for %s: nothing is enforced", dir), "merlon up %s starts it", dir)
}

// offline opens the state of a system that is not running.
func offline(ctx context.Context, dir, state string) (*control.Control, error) {
	if _, err := os.Stat(state); errors.Is(err, fs.ErrNotExist) {
		return nil, errNothing(dir, state)
	}
	return control.Open(ctx, state, control.Options{Records: filepath.Join(state, recordsName)})
}

func whyOffline(cmd *cobra.Command, dir, state, id string) (*control.Why, error) {
	c, err := offline(cmd.Context(), dir, state)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Why(cmd.Context(), id)
}

func newStatus(u *ui) *cobra.Command {
	return &cobra.Command{
		Use:               "status [DIR]",
		Short:             "say for every rule which gates enforce it, and since when",
		Args:              takes(0, 1),
		ValidArgsFunction: completeDir(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := dirArg(args, 0)
			s, err := control.NewClient(u.stateDir(dir)).Status(cmd.Context())
			if errors.Is(err, control.ErrNotRunning) {
				return errStopped(dir)
			}
			if err != nil {
				return err
			}
			if u.json {
				u.printJSON(s)
			} else {
				u.printStatus(s)
			}
			if !s.Live() {
				return &exit{code: exitFailed}
			}
			return nil
		},
	}
}

func (u *ui) printStatus(s *control.Status) {
	if s.Intent == nil {
		u.printf("no intent is in force: everything is denied\n")
		return
	}
	u.printf("intent %s  %s by %s  %s\n\n", u.cyan(short(s.Intent.Hash)), s.Intent.Time.Local().Format(time.DateTime), s.Intent.Who, u.dim(s.Intent.Message))
	rows := [][]string{{u.dim("gate"), u.dim("address"), u.dim("enforces"), u.dim("since"), u.dim("direct access")}}
	for _, g := range s.Gates {
		state := u.green(short(g.Intent))
		if g.Behind != "" {
			state = u.red(g.Behind)
		}
		direct := ""
		if g.Place != merlon.Edge.String() {
			direct = u.direct(g.Isolated)
		}
		rows = append(rows, []string{g.Place, g.Address, state, g.Swapped.Local().Format(time.DateTime), direct})
	}
	u.table("", rows)
	u.printLocal(s)
	u.printf("\n")
	rows = [][]string{{u.dim("rule"), u.dim("written at"), u.dim("enforced by"), u.dim("since")}}
	for _, r := range s.Rules {
		name := r.Name
		if r.Mode == merlon.Shadow {
			name += u.yellow(" (shadow)")
		}
		pos := r.Pos.String()
		for _, e := range r.Enforced {
			rows = append(rows, []string{name, pos, u.green("✓ ") + e.Place, e.Since.Local().Format(time.DateTime)})
			name, pos = "", ""
		}
		for _, m := range r.Missing {
			rows = append(rows, []string{name, pos, u.red("✗ " + m.Place), u.red(m.Why)})
			name, pos = "", ""
		}
	}
	u.table("", rows)
	u.printf("\n%s\n", u.dim(directly(s.Gates)))
}

// direct says whether a service can be reached past its gate, and others from it.
func (u *ui) direct(isolated bool) string {
	if isolated {
		return u.green("prevented")
	}
	return u.yellow("not prevented")
}

// directly says it of all services: of those that have no network namespace of
// their own, and of those that have and run as root.
func directly(gates []control.GateStatus) string {
	var open, root []string
	services := 0
	for _, g := range gates {
		if g.Place == merlon.Edge.String() {
			continue
		}
		services++
		switch service := strings.TrimPrefix(g.Place, "gate of "); {
		case !g.Isolated:
			open = append(open, service)
		case strings.HasSuffix(g.Local, asRoot):
			root = append(root, service)
		}
	}
	who := strings.Join(slices.Compact(open), ", ")
	if len(open) == services {
		who = "any service"
	}
	says := "Gates decide what goes through them. "
	if services == 0 {
		return strings.TrimSpace(says)
	}
	if len(open) == 0 {
		says += "Services have no other way in or out: each has a network namespace of its own."
	} else {
		says += "Direct access on this host is not prevented for " + who + ":\na program can reach an app's own port, and an app what it likes, past the gates."
	}
	if len(root) > 0 {
		says += "\nThe network of " + strings.Join(slices.Compact(root), ", ") + " is closed, but root can get out by other ways: let workload: name a user."
	}
	return says
}

// printLocal says which processes of the host may call as which service.
func (u *ui) printLocal(s *control.Status) {
	rows := [][]string{{u.dim("calls out"), u.dim("address"), u.dim("admitted")}}
	for _, g := range s.Gates {
		if g.Local != "" {
			rows = append(rows, []string{g.Place, g.Outbound, u.local(g.Local)})
		}
	}
	if len(rows) > 1 {
		u.printf("\n")
		u.table("", rows)
	}
}

// local warns of a gate that lends its identity to everybody, and of root.
func (u *ui) local(who string) string {
	if who == (localRule{}).String() || strings.HasSuffix(who, asRoot) {
		return u.yellow(who)
	}
	return who
}

func newHistory(u *ui) *cobra.Command {
	return &cobra.Command{
		Use:               "history [DIR]",
		Short:             "list the intents that were in force, the newest first",
		Args:              takes(0, 1),
		ValidArgsFunction: completeDir(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := dirArg(args, 0)
			state := u.stateDir(dir)
			commits, err := control.NewClient(state).History(cmd.Context())
			if errors.Is(err, control.ErrNotRunning) {
				c, err := offline(cmd.Context(), dir, state)
				if err != nil {
					return err
				}
				defer c.Close()
				commits, err = c.History(cmd.Context(), 100)
				if err != nil {
					return err
				}
			} else if err != nil {
				return err
			}
			if u.json {
				u.printJSON(append([]control.Commit{}, commits...))
				return nil
			}
			if len(commits) == 0 {
				u.printf("no intent was ever in force\n")
				return nil
			}
			rows := [][]string{{u.dim("intent"), u.dim("in force since"), u.dim("by"), u.dim("changed"), u.dim("why")}}
			for _, c := range commits {
				rows = append(rows, []string{u.cyan(short(c.Hash)), c.Time.Local().Format(time.DateTime), c.Who, count(len(c.Changes), "change"), c.Message})
			}
			u.table("", rows)
			return nil
		},
	}
}

func newRecord(u *ui) *cobra.Command {
	c := &cobra.Command{Use: "record", Short: "read the record of decisions, and prove that it is whole"}
	var n int
	var on, denied bool
	var service string
	tail := &cobra.Command{
		Use:               "tail [DIR]",
		Short:             "print the last decisions, and with -f those to come",
		Args:              takes(0, 1),
		ValidArgsFunction: completeDir(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := u.recordDir(dirArg(args, 0))
			if err != nil {
				return err
			}
			f := record.Filter{Service: service, Denied: denied}
			last, read, err := record.Tail(dir, n, f)
			if err != nil {
				return err
			}
			for i := range last {
				u.printRecord(&last[i])
			}
			if !on {
				return nil
			}
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			for s := range follow(ctx, dir, f, read) {
				switch {
				case errors.Is(s.err, context.Canceled):
					return nil
				case s.err != nil:
					return s.err
				}
				u.printRecord(&s.Record)
			}
			return nil
		},
	}
	tail.Flags().IntVarP(&n, "lines", "n", 20, "how many of the last decisions")
	tail.Flags().BoolVarP(&on, "follow", "f", false, "go on with new ones as they come")
	tail.Flags().BoolVar(&denied, "denied", false, "denials only")
	tail.Flags().StringVar(&service, "service", "", "calls of this `service` only")
	check := &cobra.Command{
		Use:               "verify [DIR]",
		Short:             "check the hash chain over all records",
		Args:              takes(0, 1),
		ValidArgsFunction: completeDir(0),
		RunE: func(_ *cobra.Command, args []string) error {
			dir, err := u.recordDir(dirArg(args, 0))
			if err != nil {
				return err
			}
			chains, err := record.Chains(dir)
			if err != nil {
				return err
			}
			for _, chain := range chains {
				r, err := record.Verify(chain)
				if err != nil {
					return inChain(err, dir, chain)
				}
				switch {
				case u.json:
					u.printJSON(r)
				case chain != dir:
					u.printf("%s\n", filepath.Base(chain))
					fallthrough
				default:
					u.printReport(&r)
				}
			}
			return nil
		},
	}
	c.AddCommand(tail, check)
	parent(c)
	return c
}

// inChain names the chain of an error, unless it is the first.
func inChain(err error, dir, chain string) error {
	if chain == dir {
		return err
	}
	return fmt.Errorf("%s: %w", filepath.Base(chain), err)
}

// recordDir is where the records of the intent in dir are.
func (u *ui) recordDir(dir string) (string, error) {
	state := u.stateDir(dir)
	records := filepath.Join(state, recordsName)
	if _, err := os.Stat(records); errors.Is(err, fs.ErrNotExist) {
		return "", errNothing(dir, state)
	}
	return records, nil
}

// printReport says what the chain holds, and what it has gone through.
func (u *ui) printReport(r *record.Report) {
	u.printf("%s the chain is whole: %s in %s\n", u.green("ok:"), count(int(r.Records), "record"), count(r.Segments, "segment"))
	if r.Records > 0 {
		u.printf("  from   %s\n  to     %s\n", r.First.Local().Format(time.DateTime), r.Last.Local().Format(time.DateTime))
	}
	if r.Hash != "" {
		u.printf("  seal   %s\n", u.cyan(r.Hash))
	}
	if r.Retired > 0 {
		u.printf("  %s of older records retired, as the bound on size says\n", count(int(r.Retired), "segment"))
	}
	for _, c := range r.Recovered {
		u.printf("  %s after a crash: %d bytes that were half written are in %s\n", u.yellow("cut off"), c.Bytes, c.File)
	}
	if r.Unsealed > 0 {
		u.printf("  %d bytes behind the last seal: being written, or torn by a crash\n", r.Unsealed)
	}
}

// printRecord prints one decision on a line.
func (u *ui) printRecord(r *record.Record) {
	if u.json {
		line, err := json.Marshal(r)
		if err == nil {
			u.printf("%s\n", line)
		}
		return
	}
	line := fmt.Sprintf("%s  %s  %s  %-19s  %s  %s", u.dim(time.Unix(0, r.Time).Format("15:04:05.000")), u.dim(printable(r.ID)),
		u.decided(r), where(r), u.callText(r), u.dim(r.Verdict.Pos.String()))
	u.printf("%s\n", strings.TrimRight(line, " "))
}

// decided is what became of a call, in a column.
func (u *ui) decided(r *record.Record) string {
	mark, paint := "✗", u.red
	if r.Verdict.Effect == merlon.Allow {
		mark, paint = "✓", u.green
		if r.Verdict.Shadow {
			mark, paint = "~", u.yellow
		}
	}
	reason := string(r.Verdict.Reason)
	if r.Verdict.Reason == merlon.ReasonAllowed && r.GRPC != "" {
		reason = r.GRPC // what the service said: the status of HTTP is 200 whatever that is
	}
	return paint(fmt.Sprintf("%s %3s %-13s", mark, statusText(r.Status), printable(reason)))
}

// statusText is the status of an answer; a call whose caller went away has none.
func statusText(status int) string {
	if status == 0 {
		return "-"
	}
	return strconv.Itoa(status)
}

// where is the gate of a record, and the side of it.
func where(r *record.Record) string {
	switch r.At {
	case "in", "out":
		return r.Place + ", " + r.At
	}
	return r.Place
}

// callText is the call of a record as people write calls.
func (u *ui) callText(r *record.Record) string {
	if r.At == atExec {
		return r.Detail
	}
	who := r.Caller
	if who == "" {
		who = r.CallerKind
	}
	if who == "" {
		who = merlon.Nobody.String()
	}
	if r.Subject != "" && !strings.HasPrefix(r.Subject, "spiffe://") {
		who += " (" + r.Subject + ")"
	}
	what := r.Service
	if r.Operation != "" {
		what += "." + r.Operation
	}
	if what == "" {
		what = r.Host
	}
	return printable(strings.TrimRight(fmt.Sprintf("%s -> %s  %s %s", who, what, r.Method, r.Path), " "))
}

func newVersion(u *ui) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "print the version of this program",
		Args:  takes(0, 0),
		RunE: func(*cobra.Command, []string) error {
			v := map[string]any{"version": "devel", "go": runtime.Version(), "orders": merlon.OrdersVersion}
			if info, ok := debug.ReadBuildInfo(); ok {
				if info.Main.Version != "" && info.Main.Version != "(devel)" {
					v["version"] = info.Main.Version
				}
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" {
						v["revision"] = s.Value
					}
				}
			}
			if u.json {
				u.printJSON(v)
				return nil
			}
			u.printf("merlon %v, %v, orders version %v\n", v["version"], v["go"], v["orders"])
			return nil
		},
	}
}
