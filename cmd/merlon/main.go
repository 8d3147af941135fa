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
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"merlon"
	"merlon/intent"
	"merlon/policy"
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
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	code := execute(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// execute runs one command line and returns its exit code.
func execute(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	u := newUI(stdin, stdout, stderr)
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
	root.CompletionOptions.DisableDefaultCmd = true
	root.PersistentFlags().BoolVar(&u.json, "json", false, "print JSON for programs instead of text for people")
	root.PersistentFlags().StringVar(&u.state, "state", "", "state `directory` (default .merlon in the intent's directory)")
	root.MarkPersistentFlagDirname("state")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usage("%v\nhint: %s --help lists the flags", err, c.CommandPath())
	})
	group := func(id, title string, commands ...*cobra.Command) {
		root.AddGroup(&cobra.Group{ID: id, Title: title})
		for _, c := range commands {
			c.GroupID = id
		}
		root.AddCommand(commands...)
	}
	group("write", "Write an intent:", newInit(u), newFmt(u), newCheck(u), newGraph(u))
	group("ask", "Ask what it means:", newCan(u), newPlan(u))
	group("run", "Put it in force, and see what happens:",
		newUp(u), newApply(u), newExec(u), newCapture(u), newID(u), newNode(u), newAgent(u), newStatus(u), newTop(u), newTap(u), newHistory(u), newWhy(u), newRecord(u), newDoctor(u))
	help := newHelp()
	group("more", "More:", newCompletion(u), newVersion(u), help)
	root.SetHelpCommand(help)
	// A command that only has others below it cannot be run as it stands.
	root.SetUsageTemplate(strings.Replace(root.UsageTemplate(), "{{if .Runnable}}", "{{if and .Runnable (not .HasAvailableSubCommands)}}", 1))
	parent(root)
	return root
}

// usage is the error of a command line that is wrong.
func usage(format string, args ...any) error {
	return &exit{exitUsage, fmt.Errorf(format, args...)}
}

// takes says how many arguments a command takes.
func takes(least, most int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if least <= len(args) && len(args) <= most {
			return nil
		}
		wants := count(most, "argument")
		switch {
		case most == 0:
			wants = "no argument"
		case least == 0:
			wants = "at most " + wants
		case least < most:
			wants = fmt.Sprintf("%d or %s", least, wants)
		}
		return usage("%s takes %s, not %d\nhint: %s", strings.TrimPrefix(c.CommandPath(), "merlon "), wants, len(args), c.UseLine())
	}
}

// parent makes a command that only has others below it say so, and name the
// nearest when the one that is asked for does not exist.
func parent(c *cobra.Command) {
	c.Args = cobra.ArbitraryArgs
	c.SuggestionsMinimumDistance = 2
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return c.Help()
		}
		return unknown(c, args[0])
	}
}

// unknown is the error for a command that c does not have.
func unknown(c *cobra.Command, name string) error {
	hint := c.CommandPath() + " --help lists the commands"
	if near := c.SuggestionsFor(name); len(near) > 0 {
		hint = fmt.Sprintf("did you mean %q?", c.CommandPath()+" "+near[0])
	}
	return usage("there is no command %q\nhint: %s", c.CommandPath()+" "+name, hint)
}

func newHelp() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "say how a command is used",
		ValidArgsFunction: func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			var names []string
			if at, _, err := c.Root().Find(args); err == nil {
				for _, sub := range at.Commands() {
					names = append(names, cobra.CompletionWithDesc(sub.Name(), sub.Short))
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(c *cobra.Command, args []string) error {
			at, rest, err := c.Root().Find(args)
			switch {
			case err != nil:
				return err
			case len(rest) > 0 && at.HasSubCommands():
				return unknown(at, rest[0])
			case len(rest) > 0:
				return unknown(at.Parent(), strings.Join(args, " "))
			}
			at.InitDefaultHelpFlag()
			return at.Help()
		},
	}
}

func newCompletion(u *ui) *cobra.Command {
	shells := map[string]func(*cobra.Command) error{
		"bash":       func(root *cobra.Command) error { return root.GenBashCompletionV2(u.out, true) },
		"zsh":        func(root *cobra.Command) error { return root.GenZshCompletion(u.out) },
		"fish":       func(root *cobra.Command) error { return root.GenFishCompletion(u.out, true) },
		"powershell": func(root *cobra.Command) error { return root.GenPowerShellCompletionWithDesc(u.out) },
	}
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "print a script that completes merlon's words in bash, zsh, fish or powershell",
		Long: `completion prints a script for one shell. To use it in every new one:

  bash   merlon completion bash > ~/.local/share/bash-completion/completions/merlon
  zsh    merlon completion zsh > "${fpath[1]}/_merlon"
  fish   merlon completion fish > ~/.config/fish/completions/merlon.fish`,
		Args:      takes(1, 1),
		ValidArgs: sortedKeys(shells),
		RunE: func(c *cobra.Command, args []string) error {
			script := shells[args[0]]
			if script == nil {
				return usage("merlon completes nothing for %q\nhint: expect one of %s", args[0], strings.Join(sortedKeys(shells), ", "))
			}
			return script(c.Root())
		},
	}
}

// completeDir completes arguments from the one at position i on, which are
// directories.
func completeDir(i int) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) < i {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return nil, cobra.ShellCompDirectiveFilterDirs
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
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("there is no directory %q", dir)
	case err != nil:
		return nil, err
	case !info.IsDir():
		return nil, hinted(fmt.Errorf("%q is a file", dir), "name the directory of the intent, which holds a merlon.yaml")
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return root.FS(), nil
}

// load loads the intent in dir and shows what is wrong with it, warnings too.
func (u *ui) load(dir string) (*intent.Loaded, fs.FS, error) {
	loaded, files, ds, err := u.read(dir)
	if err == nil {
		u.warn(files, ds)
	}
	return loaded, files, err
}

// read loads the intent in dir and shows what is wrong with it; warnings it
// returns.
func (u *ui) read(dir string) (*intent.Loaded, fs.FS, merlon.Diagnostics, error) {
	files, err := openDir(dir)
	if err != nil {
		return nil, nil, nil, err
	}
	loaded, ds := intent.Load(files)
	if ds.Failed() {
		return nil, nil, nil, u.diagnose(dir, files, ds)
	}
	return loaded, files, ds, nil
}

// policyIn loads and compiles the intent in dir. Its tests and its warnings are
// check's to tell.
func (u *ui) policyIn(dir string) (*policy.Policy, error) {
	loaded, files, _, err := u.read(dir)
	if err != nil {
		return nil, err
	}
	p, ds := policy.Compile(loaded.Intent)
	if ds.Failed() {
		return nil, u.diagnose(dir, files, ds)
	}
	return p, nil
}

// diagnose shows diagnostics and returns the error to end with.
func (u *ui) diagnose(dir string, files fs.FS, ds merlon.Diagnostics) error {
	if u.json {
		u.printJSON(failure{Diagnostics: ds})
		return &exit{code: exitFailed}
	}
	intent.Render(u.err, files, ds, u.errInk.color)
	warnings := warningsOf(ds)
	fmt.Fprintf(u.err, "\n%s\n", u.errInk.red(count(len(ds)-warnings, "error")+andWarnings(warnings)+" in "+dir))
	return &exit{code: exitFailed}
}

// warn shows warnings, which stop nothing.
func (u *ui) warn(files fs.FS, ds merlon.Diagnostics) {
	if len(ds) > 0 && !u.json {
		intent.Render(u.err, files, ds, u.errInk.color)
		fmt.Fprintln(u.err)
	}
}

func warningsOf(ds merlon.Diagnostics) (n int) {
	for _, d := range ds {
		if d.Warning {
			n++
		}
	}
	return n
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
