package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"merlon"
	"merlon/control"
	"merlon/intent"
	"merlon/policy"
	"merlon/verify"
)

func newCheck(u *ui) *cobra.Command {
	return &cobra.Command{
		Use:   "check [DIR]",
		Short: "say everything that is wrong with an intent, and run its tests",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			dir := dirArg(args, 0)
			loaded, files, err := u.load(dir)
			if err != nil {
				return err
			}
			_, ds, err := u.compile(dir, loaded)
			if err != nil {
				return err
			}
			in := loaded.Intent
			if u.json {
				u.printJSON(map[string]any{
					"ok": true, "intent": loaded.Hash, "diagnostics": append(merlon.Diagnostics{}, ds...),
					"services": len(in.Services), "operations": operations(in), "rules": rules(in), "tests": len(in.Tests),
				})
				return nil
			}
			u.warn(dir, files, ds)
			u.printf("%s %s, %s, %s; %s hold\n", u.green("ok:"), count(len(in.Services), "service"),
				count(operations(in), "operation"), count(rules(in), "rule"), count(len(in.Tests), "test"))
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
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := args[len(args)-1]
			loaded, _, err := u.load(dir)
			if err != nil {
				return err
			}
			next, _, err := u.compile(dir, loaded)
			if err != nil {
				return err
			}
			var changes []verify.Change
			if len(args) == 2 {
				old, err := u.quietly(args[0])
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

// quietly compiles the older intent of a comparison. Its tests and warnings do
// not matter any more.
func (u *ui) quietly(dir string) (*policy.Policy, error) {
	loaded, files, err := u.load(dir)
	if err != nil {
		return nil, err
	}
	p, ds := policy.Compile(loaded.Intent)
	if ds.Failed() {
		return nil, u.diagnose(dir, files, ds)
	}
	return p, nil
}

func (u *ui) printProblems(dir string, ds merlon.Diagnostics) {
	if len(ds) == 0 || u.json {
		return
	}
	if files, err := openDir(dir); err == nil {
		intent.Render(u.err, files, ds, u.color)
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
	if widens && !widen {
		return &exit{code: exitWidens}
	}
	return nil
}

// printChanges prints what a comparison found, widening first to the eye.
func (u *ui) printChanges(changes []verify.Change) {
	if len(changes) == 0 {
		u.printf("no call changes\n")
		return
	}
	for _, c := range changes {
		paint := u.green
		if c.Widens() {
			paint = u.yellow // more is allowed: that wants a look
		}
		head, rest, more := strings.Cut(c.String(), "\n")
		u.printf("%s\n", paint(head))
		if more {
			u.printf("%s\n", u.dim(rest))
		}
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
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := dirArg(args, 0)
			loaded, _, err := u.load(dir)
			if err != nil {
				return err
			}
			client := control.NewClient(u.stateDir(dir))
			result, err := client.Apply(cmd.Context(), loaded, control.ApplyOptions{Message: message, Widen: widen})
			if errors.Is(err, control.ErrNotRunning) {
				return fmt.Errorf("%w\nhint: merlon up %s starts it", err, dir)
			}
			if err != nil {
				return u.applyFailed(dir, err)
			}
			return u.applied(result)
		},
	}
	c.Flags().BoolVar(&widen, "widen", false, "accept that more calls are allowed than before")
	c.Flags().StringVarP(&message, "message", "m", "", "why, for the history")
	return c
}

func (u *ui) applied(r *control.Result) error {
	if u.json {
		u.printJSON(r)
	} else {
		u.printChanges(r.Commit.Changes)
		switch {
		case r.Unchanged:
			u.printf("intent %s is in force already\n", u.cyan(short(r.Commit.Hash)))
		case r.Live:
			u.printf("%s intent %s is in force at %s, after %v\n", u.green("ok:"), u.cyan(short(r.Commit.Hash)), count(len(r.Gates), "gate"), r.Took)
		default:
			u.printf("%s intent %s is recorded, but not every gate has it:\n", u.yellow("warning:"), u.cyan(short(r.Commit.Hash)))
			for _, g := range r.Gates {
				if g.Behind != "" {
					u.printf("  %s: %s\n", g.Place, g.Behind)
				}
			}
		}
	}
	if !r.Live && !r.Unchanged {
		return &exit{code: exitFailed}
	}
	return nil
}

func newFmt(u *ui) *cobra.Command {
	var list bool
	c := &cobra.Command{
		Use:   "fmt [DIR | FILE...]",
		Short: "give intent files their one form; comments stay",
		RunE: func(_ *cobra.Command, args []string) error {
			files, err := intentFiles(args)
			if err != nil {
				return err
			}
			changed := []string{}
			for _, name := range files {
				did, err := formatFile(name, list)
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				if did {
					changed = append(changed, name)
				}
			}
			if u.json {
				u.printJSON(map[string]any{"ok": !list || len(changed) == 0, "changed": changed})
			} else {
				for _, name := range changed {
					u.printf("%s\n", name)
				}
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

// intentFiles are the files that the arguments of fmt mean.
func intentFiles(args []string) ([]string, error) {
	if len(args) == 0 {
		args = []string{"."}
	}
	var files []string
	for _, arg := range args {
		info, err := os.Stat(arg)
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
