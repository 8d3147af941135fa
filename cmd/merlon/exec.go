package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"merlon"
	"merlon/control"
	"merlon/internal/netns"
	"merlon/internal/sockowner"
	"merlon/record"
)

// atExec marks the record of a permission, which is no call.
const atExec = "exec"

// maxGuests bounds how many commands run as one service at a time.
const maxGuests = 64

// guest is a process of merlon exec. It and what it starts may call as a
// service until it is released.
type guest struct {
	mu      sync.RWMutex
	process *sockowner.Process // nil when released
}

func (g *guest) holds(s sockowner.Socket) bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.process == nil {
		return false
	}
	_, err := g.process.Holder(s)
	return err == nil
}

// admit is control.Options.Exec. The process is the one at the other end of the
// control socket, which only this user and root can open: both could take the
// service's key just as well.
func (s *system) admit(_ context.Context, service string, pid, uid int) (control.Way, func(), error) {
	r := s.running()[merlon.Place{Service: service}]
	if service == "" || r == nil {
		return control.Way{}, nil, fmt.Errorf("no service %q runs here\nhint: merlon status lists the gates", service)
	}
	g := new(guest)
	var err error
	if sockowner.Supported() {
		if g.process, err = sockowner.OpenProcess(pid); err != nil {
			return control.Way{}, nil, fmt.Errorf("process %d: %w", pid, err)
		}
	}
	release, err := r.local.invite(g, r.gate.AskOwn)
	if err != nil {
		return control.Way{}, nil, err
	}
	exe := ""
	if g.process != nil {
		exe = g.process.Executable()
	}
	s.log.Info("a command may call as a service", "service", service, "pid", pid, "uid", uid, "executable", exe)
	err = s.records.Add(&record.Record{
		Time: time.Now().UnixNano(), Place: r.place.String(), At: atExec, Caller: service, CallerKind: merlon.Workload.String(),
		Verdict: merlon.Verdict{Effect: merlon.Allow, Reason: "exec"},
		Detail:  fmt.Sprintf("merlon exec: uid %d, pid %d (%s), and what it starts, may call as %s", uid, pid, exe, service),
	})
	if err != nil {
		release()
		return control.Way{}, nil, fmt.Errorf("it could not be recorded: %w", err)
	}
	return control.Way{Address: r.out, Namespace: r.ns.Path()}, func() {
		release()
		s.log.Info("a command may not call as a service any more", "service", service, "pid", pid)
	}, nil
}

// invite admits a guest until it is released; what it leaves behind then is
// asked for its proof again.
func (l *local) invite(g *guest, askAgain func()) (release func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	release = func() {
		l.mu.Lock()
		delete(l.guests, g)
		l.mu.Unlock()
		g.mu.Lock()
		if g.process != nil {
			g.process.Close()
			g.process = nil
		}
		g.mu.Unlock()
		askAgain()
	}
	if len(l.guests) >= maxGuests {
		if g.process != nil {
			g.process.Close()
		}
		return nil, fmt.Errorf("%d commands run as this service already", maxGuests)
	}
	l.guests[g] = struct{}{}
	return release, nil
}

func newExec(u *ui) *cobra.Command {
	return &cobra.Command{
		Use:   "exec SERVICE [DIR] -- COMMAND...",
		Short: "run a command that calls as a service, through its gate",
		Long: `exec runs a command on this host as if it were part of a service, to try out what
the service may call. The running merlon up admits the command and what it
starts to the service's gate for as long as exec runs, and records it; HTTP_PROXY
and http_proxy lead there. A command that runs as an isolated service is in that
service's network namespace.

Only the user who runs merlon up, and root, can do so. The exit code is the
command's, or 128 and the number of the signal that ended it.`,
		Example: "  merlon exec web -- curl -i http://orders/orders/1",
		Args: func(cmd *cobra.Command, args []string) error {
			if dash := cmd.ArgsLenAtDash(); dash < 1 || dash > 2 || len(args) == dash {
				return usage("exec takes a service, a directory if it is not this one, then -- and a command\nhint: %s", cmd.UseLine())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			dash := cmd.ArgsLenAtDash()
			dir := dirArg(args[:dash], 1)
			lease, err := control.NewClient(u.stateDir(dir)).Exec(cmd.Context(), args[0])
			if errors.Is(err, control.ErrNotRunning) {
				return errStopped(dir)
			}
			if err != nil {
				return err
			}
			defer lease.Release()
			return runAs(lease.Way, args[dash:])
		},
	}
}

// proxied is an environment in which calls leave through a proxy.
func proxied(env []string, proxy string) []string {
	var all []string
	for _, v := range env {
		name, _, _ := strings.Cut(v, "=")
		switch strings.ToLower(name) {
		case "http_proxy", "no_proxy", "all_proxy":
		default:
			all = append(all, v)
		}
	}
	return append(all, "HTTP_PROXY=http://"+proxy, "http_proxy=http://"+proxy, "NO_PROXY=", "no_proxy=")
}

// runAs runs a command in the foreground until it ends. What a person types on
// the terminal reaches it directly; a signal to this process alone is passed
// on.
func runAs(way control.Way, argv []string) error {
	var ns *netns.Namespace
	if way.Namespace != "" {
		var err error
		if ns, err = netns.Open(way.Namespace); err != nil {
			return err
		}
		defer ns.Close()
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = proxied(os.Environ(), way.Address)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	defer signal.Stop(signals)
	if err := ns.Do(cmd.Start); err != nil {
		return fmt.Errorf("the command cannot be started: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case sig := <-signals:
			cmd.Process.Signal(sig) // it may have ended just now
		case err := <-ended:
			status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
			switch {
			case ok && status.Signaled():
				return &exit{code: 128 + int(status.Signal())}
			case cmd.ProcessState.ExitCode() > 0:
				return &exit{code: cmd.ProcessState.ExitCode()}
			}
			return err
		}
	}
}
