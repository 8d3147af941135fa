package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"time"

	"merlon"
	"merlon/internal/supervise"
)

// program is a service that runs as a child of this process.
type program struct {
	run     *merlon.Run
	process *supervise.Process
}

const (
	buildTime = 5 * time.Minute
	startTime = 30 * time.Second
)

// startPrograms builds and starts the services that in says how to run and
// that do not run yet, or run by another sentence. s.mu is held.
func (s *system) startPrograms(ctx context.Context, in *merlon.Intent) error {
	var start []*merlon.Service
	for i := range in.Services {
		svc := &in.Services[i]
		if svc.Run == nil || s.started[svc.Name] != nil && reflect.DeepEqual(s.started[svc.Name].run, svc.Run) {
			continue
		}
		if old := s.started[svc.Name]; old != nil {
			delete(s.started, svc.Name)
			old.process.Stop()
		}
		for _, address := range svc.Addresses {
			if err := supervise.CheckFree(address); err != nil {
				return fmt.Errorf("%v: service %s wants %s: %w", svc.Run.Pos, svc.Name, address, err)
			}
		}
		start = append(start, svc)
	}
	if err := s.build(ctx, start); err != nil {
		return err
	}
	for _, svc := range start {
		if err := s.startProgram(ctx, svc); err != nil {
			return err
		}
	}
	return nil
}

// build builds services side by side; the Go tool shares the work.
func (s *system) build(ctx context.Context, services []*merlon.Service) error {
	ctx, cancel := context.WithTimeout(ctx, buildTime)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, len(services))
	for i, svc := range services {
		if len(svc.Run.Build) == 0 {
			continue
		}
		s.say("building %s", svc.Name)
		wg.Go(func() {
			argv := s.expand(svc, svc.Run.Build)
			cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
			cmd.Dir = s.runDir(svc)
			if out, err := cmd.CombinedOutput(); err != nil {
				errs[i] = fmt.Errorf("%v: building %s: %w\n%s", svc.Run.Pos, svc.Name, err, tail(out, 2000))
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (s *system) startProgram(ctx context.Context, svc *merlon.Service) error {
	gate := s.gates[merlon.Place{Service: svc.Name}]
	env := append(os.Environ(),
		// Calls of the service leave through its own gate.
		"HTTP_PROXY=http://"+gate.out, "http_proxy=http://"+gate.out, "NO_PROXY=", "no_proxy=")
	for k, v := range svc.Run.Env {
		env = append(env, k+"="+v)
	}
	p, err := s.programs.Start(supervise.Spec{
		Name:    svc.Name,
		Argv:    s.expand(svc, svc.Run.Command),
		Dir:     s.runDir(svc),
		Env:     env,
		Output:  func(name, line string) { s.log.Info(line, "service", name) },
		Exited:  s.exited,
		Restart: &supervise.Restart{Min: 200 * time.Millisecond, Max: 10 * time.Second, Steady: 10 * time.Second},
	})
	if err != nil {
		return fmt.Errorf("%v: %w", svc.Run.Pos, err)
	}
	s.started[svc.Name] = &program{svc.Run, p}
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for _, address := range svc.Addresses {
		if err := p.WaitTCP(ctx, address); err != nil {
			return fmt.Errorf("%v: %w", svc.Run.Pos, err)
		}
	}
	s.say("started %s", svc.Name)
	return nil
}

func (s *system) exited(e supervise.Exit) {
	if e.Again > 0 {
		s.log.Warn("a service ended and is started again", "service", e.Name, "status", e.Code, "error", e.Err, "in", e.Again)
	}
}

func (s *system) runDir(svc *merlon.Service) string {
	return filepath.Join(s.dir, filepath.FromSlash(svc.Run.Dir))
}

// expand puts the place of the built program into a command.
func (s *system) expand(svc *merlon.Service, argv []string) []string {
	bin := filepath.Join(s.state, "bin", svc.Name)
	out := make([]string, len(argv))
	for i, arg := range argv {
		out[i] = strings.ReplaceAll(arg, "{bin}", bin)
	}
	return out
}

func tail(b []byte, n int) string {
	return strings.TrimSpace(string(b[max(0, len(b)-n):]))
}
