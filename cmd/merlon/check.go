package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"merlon"
	"merlon/control"
	"merlon/intent"
	"merlon/policy"
	"merlon/verify"
)

func newCheck(u *ui) *cobra.Command {
	return &cobra.Command{
		Use:               "check [DIR]",
		Short:             "say everything that is wrong with an intent, and run its tests",
		Args:              takes(0, 1),
		ValidArgsFunction: completeDir(0),
		RunE: func(_ *cobra.Command, args []string) error {
			dir := dirArg(args, 0)
			loaded, files, warnings, err := u.read(dir)
			if err != nil {
				return err
			}
			p, ds := policy.Compile(loaded.Intent)
			if !ds.Failed() {
				ds = append(ds, p.Test()...)
			}
			ds = append(warnings, ds...)
			if ds.Failed() {
				return u.diagnose(dir, files, ds)
			}
			in := loaded.Intent
			if u.json {
				u.printJSON(map[string]any{
					"ok": true, "intent": loaded.Hash, "diagnostics": append(merlon.Diagnostics{}, ds...),
					"services": len(in.Services), "operations": operations(in), "rules": rules(in), "tests": len(in.Tests),
				})
				return nil
			}
			u.warn(files, ds)
			tests := count(len(in.Tests), "test") + " hold"
			switch len(in.Tests) {
			case 0:
				tests = "no tests"
			case 1:
				tests = "1 test holds"
			}
			u.printf("%s %s, %s, %s; %s%s\n", u.green("ok:"), count(len(in.Services), "service"),
				count(operations(in), "operation"), count(rules(in), "rule"), tests, andWarnings(warningsOf(ds)))
			return nil
		},
	}
}

func operations(in *merlon.Intent) (n int) {
	for i := range in.Services {
		n += len(in.Services[i].Operations)
	}
	return n
}

func rules(in *merlon.Intent) (n int) {
	for i := range in.Services {
		n += len(in.Services[i].Rules)
	}
	return n
}

func newPlan(u *ui) *cobra.Command {
	var widen bool
	c := &cobra.Command{
		Use:   "plan [OLD] NEW",
		Short: "say which calls a change newly allows and newly refuses, with an example of each",
		Long: `plan compares two intents: the directories OLD and NEW, or NEW and what is in
force in the system of NEW. It changes nothing. It exits with 2 when the change
widens access, unless --widen says that this is meant.`,
		Args:              takes(1, 2),
		ValidArgsFunction: completeDir(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := args[len(args)-1]
			loaded, _, _, err := u.read(dir)
			if err != nil {
				return err
			}
			next, _, err := u.compile(dir, loaded)
			if err != nil {
				return err
			}
			var changes []verify.Change
			if len(args) == 2 {
				old, err := u.policyIn(args[0])
				if err != nil {
					return err
				}
				changes = verify.Diff(old, next)
			} else {
				plan, err := planInForce(cmd, u.stateDir(dir), loaded)
				if err != nil {
					return err
				}
				changes = plan.Changes
				u.printProblems(dir, plan.Problems)
			}
			return u.planned(changes, widen)
		},
	}
	c.Flags().BoolVar(&widen, "widen", false, "exit with 0 although access widens")
	return c
}

// planInForce compares with what is in force, or was last, in a state directory.
func planInForce(cmd *cobra.Command, state string, loaded *intent.Loaded) (*control.Plan, error) {
	plan, err := control.NewClient(state).Plan(cmd.Context(), loaded)
	if !errors.Is(err, control.ErrNotRunning) {
		return plan, err
	}
	if _, err := os.Stat(state); errors.Is(err, fs.ErrNotExist) {
		p, ds := policy.Compile(loaded.Intent)
		if ds.Failed() {
			return nil, ds
		}
		return &control.Plan{To: loaded.Hash, Changes: verify.Diff(nil, p)}, nil
	}
	c, err := control.Open(cmd.Context(), state, control.Options{})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	plan, err = c.Plan(cmd.Context(), loaded)
	if plan != nil {
		plan.Problems = nil // no gate is running: that is not the intent's fault
	}
	return plan, err
}

func (u *ui) printProblems(dir string, ds merlon.Diagnostics) {
	if len(ds) == 0 || u.json {
		return
	}
	if files, err := openDir(dir); err == nil {
		intent.Render(u.err, files, ds, u.errInk.color)
	}
}

// planned prints a comparison and ends with its exit code.
func (u *ui) planned(changes []verify.Change, widen bool) error {
	widens := verify.Widens(changes)
	if u.json {
		u.printJSON(map[string]any{"ok": true, "widens": widens, "changes": append([]verify.Change{}, changes...)})
	} else {
		u.printChanges(changes)
	}
	switch {
	case !widens || widen:
		return nil
	case u.json:
		return &exit{code: exitWidens}
	}
	return &exit{exitWidens, hinted(errors.New("the change widens access"), "if that is meant, say --widen")}
}

// printChanges prints what a comparison found, widening first to the eye, and
// then how much that was.
func (u *ui) printChanges(changes []verify.Change) {
	if len(changes) == 0 {
		u.printf("no call changes\n")
		return
	}
	widening := 0
	for _, c := range changes {
		paint := u.green
		if c.Widens() {
			paint = u.yellow // more is allowed: that wants a look
			widening++
		}
		head, rest, more := strings.Cut(c.String(), "\n")
		u.printf("%s\n", paint(head))
		if more {
			u.printf("%s\n", u.dim(rest))
		}
	}
	switch {
	case len(changes) > 1:
		u.printf("\n%d changes: %d widen access, %d narrow it\n", len(changes), widening, len(changes)-widening)
	case widening == 1:
		u.printf("\n1 change: it widens access\n")
	default:
		u.printf("\n1 change: it narrows access\n")
	}
}

func newApply(u *ui) *cobra.Command {
	var widen bool
	var message string
	c := &cobra.Command{
		Use:   "apply [DIR]",
		Short: "put a changed intent in force in the running system",
		Long: `apply checks the intent in DIR, runs its tests, compares it with what is in
force, records it, and delivers it to every gate. What fails before the record
changes nothing. A change that widens access needs --widen.`,
		Args:              takes(0, 1),
		ValidArgsFunction: completeDir(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := dirArg(args, 0)
			loaded, _, err := u.load(dir)
			if err != nil {
				return err
			}
			client := control.NewClient(u.stateDir(dir))
			result, err := client.Apply(cmd.Context(), loaded, control.ApplyOptions{Message: message, Widen: widen})
			if errors.Is(err, control.ErrNotRunning) {
				return errStopped(dir)
			}
			if err != nil {
				return u.applyFailed(dir, err)
			}
			return u.applied(dir, result)
		},
	}
	c.Flags().BoolVar(&widen, "widen", false, "accept that more calls are allowed than before")
	c.Flags().StringVarP(&message, "message", "m", "", "why, for the history")
	return c
}

func (u *ui) applied(dir string, r *control.Result) error {
	if u.json {
		u.printJSON(r)
	} else {
		if files, err := openDir(dir); err == nil {
			u.warn(files, slices.Concat(r.Warnings, r.Problems))
		}
		if !r.Unchanged {
			u.printChanges(r.Commit.Changes)
		}
		switch {
		case r.Unchanged:
			u.printf("intent %s is in force already\n", u.cyan(short(r.Commit.Hash)))
		case r.Live:
			u.printf("%s intent %s is in force at %s, after %v\n", u.green("ok:"), u.cyan(short(r.Commit.Hash)), count(len(r.Gates), "gate"), r.Took.Round(100*time.Microsecond))
		default:
			u.printf("%s intent %s is recorded, but not every gate has it:\n", u.yellow("warning:"), u.cyan(short(r.Commit.Hash)))
			for _, g := range r.Gates {
				if g.Behind != "" {
					u.printf("  %s: %s\n", g.Place, g.Behind)
				}
			}
		}
	}
	if !r.Live || len(r.Problems) > 0 {
		return &exit{code: exitFailed}
	}
	return nil
}

func newFmt(u *ui) *cobra.Command {
	var list bool
	c := &cobra.Command{
		Use:   "fmt [DIR | FILE...]",
		Short: "give intent files their one form; comments stay",
		Long: `fmt writes the intent files of DIR, or the FILEs, in their one form, and names
those that it changed. A FILE named - is read from the standard input and
written to the standard output.`,
		RunE: func(_ *cobra.Command, args []string) error {
			if slices.Contains(args, "-") {
				if len(args) > 1 || list {
					return usage("- stands alone\nhint: merlon fmt - reads the standard input and writes the standard output")
				}
				return u.formatStdin()
			}
			files, err := intentFiles(args)
			if err != nil {
				return err
			}
			changed := []string{}
			var wrong merlon.Diagnostics
			for _, name := range files {
				did, err := formatFile(name, list)
				if ds, ok := errors.AsType[merlon.Diagnostics](err); ok {
					wrong = append(wrong, named(ds, name)...)
				} else if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				if did {
					changed = append(changed, name)
				}
			}
			if u.json && len(wrong) == 0 {
				u.printJSON(map[string]any{"ok": !list || len(changed) == 0, "changed": changed})
			} else if !u.json {
				for _, name := range changed {
					u.printf("%s\n", name)
				}
			}
			if len(wrong) > 0 {
				return u.malformed(wrong)
			}
			if list && len(changed) > 0 {
				return &exit{code: exitFailed}
			}
			return nil
		},
	}
	c.Flags().BoolVarP(&list, "list", "l", false, "change nothing; name the files that would change, and exit with 1 if there are any")
	return c
}

// formatStdin formats what comes in.
func (u *ui) formatStdin() error {
	const most = 16 << 20
	src, err := io.ReadAll(io.LimitReader(u.in, most+1))
	if err != nil {
		return err
	}
	if len(src) > most {
		return fmt.Errorf("the input is longer than %d bytes", most)
	}
	out, err := intent.Format(src)
	if ds, ok := errors.AsType[merlon.Diagnostics](err); ok {
		return u.malformed(named(ds, "<stdin>"))
	}
	if err != nil {
		return err
	}
	if u.json {
		u.printJSON(map[string]any{"ok": true, "formatted": string(out)})
		return nil
	}
	u.printf("%s", out)
	return nil
}

// named puts the name of a file into diagnostics of its text.
func named(ds merlon.Diagnostics, name string) merlon.Diagnostics {
	for i := range ds {
		ds[i].Pos.File = filepath.ToSlash(name)
	}
	return ds
}

// malformed shows why files cannot be formatted.
func (u *ui) malformed(ds merlon.Diagnostics) error {
	if u.json {
		u.printJSON(failure{Diagnostics: ds})
	} else {
		intent.Render(u.err, os.DirFS("."), ds, u.errInk.color)
	}
	return &exit{code: exitFailed}
}

// intentFiles are the files that the arguments of fmt mean.
func intentFiles(args []string) ([]string, error) {
	if len(args) == 0 {
		args = []string{"."}
	}
	var files []string
	for _, arg := range args {
		info, err := os.Stat(arg)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("there is no file or directory %q", arg)
		}
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			files = append(files, arg)
			continue
		}
		tree, err := openDir(arg)
		if err != nil {
			return nil, err
		}
		names, ds := intent.Files(tree)
		if ds.Failed() {
			return nil, ds
		}
		for _, name := range names {
			files = append(files, filepath.Join(arg, filepath.FromSlash(name)))
		}
	}
	return files, nil
}

func formatFile(name string, dry bool) (changed bool, err error) {
	src, err := os.ReadFile(name)
	if err != nil {
		return false, err
	}
	out, err := intent.Format(src)
	if err != nil || string(out) == string(src) {
		return false, err
	}
	if dry {
		return true, nil
	}
	info, err := os.Stat(name)
	if err != nil {
		return false, err
	}
	// Beside the file, then in its place: an editor never sees half of it.
	tmp, err := os.CreateTemp(filepath.Dir(name), ".merlon-fmt-*")
	if err != nil {
		return false, err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(out)
	if err := errors.Join(err, tmp.Chmod(info.Mode().Perm()), tmp.Close()); err != nil {
		return false, err
	}
	return true, os.Rename(tmp.Name(), name)
}

// currentUser is who applies, for the history.
func currentUser() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return fmt.Sprintf("uid %d", os.Getuid())
}
