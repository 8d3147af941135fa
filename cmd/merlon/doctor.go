package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"merlon"
	"merlon/authority"
	"merlon/control"
	"merlon/intent"
)

func newDoctor(u *ui) *cobra.Command {
	var fix bool
	c := &cobra.Command{
		Use:   "doctor [DIR]",
		Short: "say what is wrong with a system, why, and what to do; --fix repairs it",
		Long: `doctor looks at the system of the intent in DIR, whether it runs or is stopped: its
files, keys, journal and records, the clock, sockets and ports, and while it runs
its gates, the bundles of partners and the Workload API. It changes nothing.

With --fix it repairs what can be repaired without a loss: files that others can
read in a directory they cannot enter, sockets that nobody serves, a journal or
records that end half-way through a line, keys that have ended or are about to.

Exit status 0 says that nothing is wrong, or that all of it is repaired; notes,
about what this host cannot do, do not count.`,
		Args:              takes(0, 1),
		ValidArgsFunction: completeDir(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			return u.doctor(cmd.Context(), dirArg(args, 0), fix, time.Now)
		},
	}
	c.Flags().BoolVar(&fix, "fix", false, "repair what can be repaired without a loss")
	return c
}

// finding is one thing that is wrong.
type finding struct {
	Check string `json:"check"`
	What  string `json:"what"`
	Why   string `json:"why,omitzero"`
	Do    string `json:"do,omitzero"`
	Note  bool   `json:"note,omitzero"`  // nothing is wrong with the system: this host cannot do something
	Fixed bool   `json:"fixed,omitzero"` // just now

	fix func(context.Context) error // nil: only a person can
}

// check is one thing that doctor looks at.
type check struct {
	name string
	when func(*patient) bool // nil is always; else there is nothing to look at
	look func(context.Context, *patient) []finding
}

// checks are all of them, in their order: what is repaired early is looked at,
// repaired, by what comes later.
func checks() []check {
	return []check{
		{"intent", nil, checkIntent},
		{"files", (*patient).there, checkFiles},
		{"state", (*patient).stopped, checkState},
		{"sockets", (*patient).there, checkSockets},
		{"authority", (*patient).running, checkAlarms},
		{"authority", (*patient).stopped, checkKeys},
		{"journal", (*patient).stopped, checkJournal},
		{"records", (*patient).there, checkRecords},
		{"clock", (*patient).there, checkClock},
		{"gates", (*patient).running, checkGates},
		{"workload API", (*patient).running, checkWorkloadAPI},
		{"federation", (*patient).running, checkFederation},
		{"ports", (*patient).down, checkPorts},
		{"host", nil, checkHost},
	}
}

// patient is what doctor looks at, and what it has learned of it.
type patient struct {
	dir, state string
	now        time.Time

	intent *merlon.Intent    // in force, or else in the files; nil when neither can be read
	status *control.Status   // nil when the control plane does not answer
	id     *control.Identity // never nil when status is not
	ours   *control.Control  // of a system that is stopped: no other process begins while it is open
	exists bool              // there is a state directory
	root   *os.Root          // of it; nil until checkFiles
	shut   bool              // nothing can be done in it as it is, and that was said

	keys authority.Inspection
	last time.Time // of what was written down by the clock of then
}

func (u *ui) doctor(ctx context.Context, dir string, fix bool, now func() time.Time) error {
	p := &patient{dir: dir, state: u.stateDir(dir), now: now()}
	defer p.close()
	p.meet(ctx)
	var all []finding
	wrong, repairable := 0, false
	if !u.json {
		word := "stopped"
		if p.running() {
			word = "running"
		}
		u.printf("%s: %s\n\n", u.bold(relative(dir)), word)
	}
	for _, c := range checks() {
		if c.when != nil && !c.when(p) {
			continue
		}
		found := c.look(ctx, p)
		for i := range found {
			f := &found[i]
			f.Check = c.name
			if fix && f.fix != nil {
				if err := f.fix(ctx); err != nil {
					f.Why, _ = hintOf(fmt.Errorf("it could not be repaired: %w", err))
				} else {
					f.Fixed = true
				}
			}
			if !f.Note && !f.Fixed {
				wrong++
				repairable = repairable || f.fix != nil && !fix
			}
		}
		if !u.json {
			u.found(c.name, found)
		}
		all = append(all, found...)
	}
	switch {
	case u.json:
		u.printJSON(map[string]any{"ok": wrong == 0, "running": p.running(), "findings": append([]finding{}, all...)})
	case wrong > 0:
		u.printf("\n%s", u.red(count(wrong, "thing")+" wrong"))
		if repairable {
			u.printf("; merlon doctor --fix %s repairs what can be repaired", relative(dir))
		}
		u.printf("\n")
	}
	if wrong > 0 {
		return &exit{code: exitFailed}
	}
	return nil
}

// found shows what a check has found.
func (u *ui) found(name string, all []finding) {
	if len(all) == 0 {
		u.printf("%s  %s\n", u.green("ok   "), name)
	}
	for _, f := range all {
		word := u.red("wrong")
		switch {
		case f.Fixed:
			word = u.green("fixed")
		case f.Note:
			word = u.yellow("note ")
		}
		u.printf("%s  %s: %s\n", word, name, printable(f.What))
		if f.Why != "" {
			u.printf("       %s\n", u.dim(printable(f.Why)))
		}
		if f.Do != "" && !f.Fixed {
			u.printf("       %s %s\n", u.cyan("do:"), printable(f.Do))
		}
	}
}

// doctorAsks bounds how long doctor waits for one answer of a system that runs.
const doctorAsks = 5 * time.Second

// meet learns whether the system runs.
func (p *patient) meet(ctx context.Context) {
	if _, err := os.Lstat(p.state); err != nil {
		return
	}
	p.exists = true
	ctx, cancel := context.WithTimeout(ctx, doctorAsks)
	defer cancel()
	client := control.NewClient(p.state)
	status, err := client.Status(ctx)
	if err != nil {
		return // why, checkState says
	}
	if p.id, err = client.Authority(ctx); err != nil {
		p.id = new(control.Identity) // another than merlon up
	}
	p.status = status
}

// there reports whether there is a state to look at.
func (p *patient) there() bool { return p.exists && !p.shut }

// running reports whether its control plane answers.
func (p *patient) running() bool { return p.status != nil }

// stopped reports whether there is a state that nobody is at work in.
func (p *patient) stopped() bool { return p.there() && !p.running() }

// down reports whether no process has the ports of the system.
func (p *patient) down() bool { return !p.running() && !p.shut }

func (p *patient) close() {
	if p.ours != nil {
		p.ours.Close()
	}
	if p.root != nil {
		p.root.Close()
	}
}

func checkIntent(_ context.Context, p *patient) []finding {
	files, err := openDir(p.dir)
	if err != nil {
		text, hint := hintOf(err)
		return []finding{{What: text, Do: hint}}
	}
	loaded, ds := intent.Load(files)
	if ds.Failed() {
		return []finding{{What: "the intent in " + relative(p.dir) + " cannot be used: " + ds.Error(), Do: "merlon check " + relative(p.dir) + " says all that is wrong with it"}}
	}
	p.intent = loaded.Intent
	return nil
}

// checkState opens the state as merlon up does, which finds what is wrong with it.
func checkState(ctx context.Context, p *patient) []finding {
	if _, err := os.Lstat(filepath.Join(p.state, "control.db")); errors.Is(err, os.ErrNotExist) {
		return nil // nothing was ever in force
	}
	var err error
	if p.ours, err = offline(ctx, p.dir, p.state); err != nil {
		p.shut = true
		text, hint := hintOf(err)
		f := finding{What: text, Do: hint}
		if errors.Is(err, syscall.EWOULDBLOCK) {
			f.Why = "a process has its lock, and answers no question"
		}
		return []finding{f}
	}
	if in := p.ours.Intent(); in != nil {
		p.intent = in
	}
	return nil
}
