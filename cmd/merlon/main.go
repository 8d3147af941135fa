// Command merlon is everything a person types, and the whole system in one
// process: merlon up runs the services of an intent with a gate beside each.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"merlon"
	"merlon/intent"
)

// Exit codes. They are part of the interface, see docs/cli.md.
const (
	exitOK     = 0
	exitFailed = 1 // the input is wrong, or what was asked could not be done
	exitWidens = 2 // the change widens access, and nobody said that it may
	exitDenied = 3 // merlon can: the call is denied
	exitUsage  = 4 // the command line is wrong
)

// exit is an error with its exit code. Its text has been shown when it has no
// cause.
type exit struct {
	code int
	err  error
}

func (e *exit) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exit) Unwrap() error { return e.err }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := execute(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// execute runs one command line and returns its exit code.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	u := newUI(stdout, stderr)
	root := newRoot(u)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	e, ok := errors.AsType[*exit](err)
	if !ok {
		e = &exit{exitFailed, err}
	}
	if e.err != nil {
		u.fail(e.err)
	}
	return e.code
}

func newRoot(u *ui) *cobra.Command {
	root := &cobra.Command{
		Use:   "merlon",
		Short: "one intent for a system of services: who may call whom, enforced and explained",
		Long: `Merlon secures a system of services from one intent: what the services are,
what their contracts say, and who may call whom. Everything else is denied.

Most commands take the directory of the intent, which holds a merlon.yaml;
without one they use the directory they are run in.`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.CompletionOptions.HiddenDefaultCmd = false
	root.PersistentFlags().BoolVar(&u.json, "json", false, "print JSON for programs instead of text for people")
	root.PersistentFlags().StringVar(&u.state, "state", "", "state `directory`; default is .merlon in the intent's directory")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &exit{exitUsage, err} })
	root.AddCommand(
		newUp(u), newApply(u), newCheck(u), newPlan(u), newCan(u), newWhy(u), newStatus(u),
		newFmt(u), newInit(u), newGraph(u), newRecord(u), newHistory(u), newVersion(u),
	)
	for _, c := range root.Commands() {
		wrapArgs(c)
	}
	return root
}

// wrapArgs gives wrong arguments the exit code for wrong command lines.
func wrapArgs(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return &exit{exitUsage, fmt.Errorf("%w; see merlon help %s", err, cmd.Name())}
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		wrapArgs(sub)
	}
}

// dirArg is the intent's directory among the arguments, at position i.
func dirArg(args []string, i int) string {
	if len(args) > i {
		return args[i]
	}
	return "."
}

// stateDir is where the system of the intent in dir keeps its state.
func (u *ui) stateDir(dir string) string {
	if u.state != "" {
		return u.state
	}
	return filepath.Join(dir, ".merlon")
}

// openDir gives the files below dir, and nothing that links out of it.
func openDir(dir string) (fs.FS, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return root.FS(), nil
}

// load loads the intent in dir and shows what is wrong with it.
func (u *ui) load(dir string) (*intent.Loaded, fs.FS, error) {
	files, err := openDir(dir)
	if err != nil {
		return nil, nil, err
	}
	loaded, ds := intent.Load(files)
	if ds.Failed() {
		return nil, nil, u.diagnose(dir, files, ds)
	}
	u.warn(dir, files, ds)
	return loaded, files, nil
}

// diagnose shows diagnostics and returns the error to end with.
func (u *ui) diagnose(dir string, files fs.FS, ds merlon.Diagnostics) error {
	if u.json {
		u.printJSON(map[string]any{"ok": false, "diagnostics": ds})
		return &exit{code: exitFailed}
	}
	intent.Render(u.err, files, ds, u.color)
	errors, warnings := 0, 0
	for _, d := range ds {
		if d.Warning {
			warnings++
		} else {
			errors++
		}
	}
	fmt.Fprintf(u.err, "%s: %s\n", dir, u.red(count(errors, "error")+andWarnings(warnings)))
	return &exit{code: exitFailed}
}

func (u *ui) warn(dir string, files fs.FS, ds merlon.Diagnostics) {
	if len(ds) > 0 && !u.json {
		intent.Render(u.err, files, ds, u.color)
	}
}

func andWarnings(n int) string {
	if n == 0 {
		return ""
	}
	return ", " + count(n, "warning")
}

// count is "1 rule" or "3 rules".
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	if what[len(what)-1] == 'y' {
		what = what[:len(what)-1] + "ie"
	}
	return fmt.Sprintf("%d %ss", n, what)
}
