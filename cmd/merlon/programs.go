package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"merlon"
	"merlon/internal/netns"
	"merlon/internal/supervise"
)

// program is a service that runs as a child of this process.
type program struct {
	service *merlon.Service  // as the intent said that it was made for
	bin     string           // where it was built
	out     string           // its gate's address for its calls
	local   *local           // its gate's, who admits its calls
	ns      *netns.Namespace // where it runs
	user    *supervise.User  // nil: as merlon does
	process *supervise.Process

	mu     sync.Mutex
	words  []string // the last it said
	deaths int
	dying  chan struct{} // closed when it died too often
}

const (
	buildTime = 5 * time.Minute
	startTime = 30 * time.Second
	// maxDeaths is how often a program may end before it listens: services
	// that need each other may come up in any order.
	maxDeaths = 3
	lastWords = 8 // lines
)

func (p *program) place() merlon.Place { return merlon.Place{Service: p.service.Name} }

// does reports whether p is what svc says. Where it is written does not matter.
func (p *program) does(svc *merlon.Service) bool {
	if svc == nil || svc.Run == nil {
		return false
	}
	a, b := *p.service.Run, *svc.Run
	a.Pos, b.Pos = merlon.Pos{}, merlon.Pos{}
	return reflect.DeepEqual(a, b) && slices.Equal(p.service.Addresses, svc.Addresses)
}

// addresses are those that a service listens on.
func addresses(svc *merlon.Service) []string {
	var all []string
	for _, a := range svc.Addresses {
		all = append(all, strings.TrimPrefix(a, "dns:"))
	}
	return all
}

// preparePrograms builds and starts the services that in says how to run and
// that do not run yet, or run by another sentence. One whose place is still
// taken by a program of ours is built and waits. s.mu is held.
func (s *system) preparePrograms(ctx context.Context, in *merlon.Intent) error {
	if err := clash(in); err != nil {
		return err
	}
	if err := s.checkIsolated(in); err != nil {
		return err
	}
	var now []*program
	for i := range in.Services {
		svc := &in.Services[i]
		have := s.started[svc.Name]
		if svc.Run == nil || have != nil && have.does(svc) {
			continue
		}
		p, err := s.newProgram(svc, have)
		if err != nil {
			return err
		}
		wait, err := s.mustWait(p, have)
		if err != nil {
			return err
		}
		if wait {
			s.next.later = append(s.next.later, p)
		} else {
			now = append(now, p)
		}
	}
	if err := s.build(ctx, slices.Concat(now, s.next.later)); err != nil {
		return err
	}
	errs := make([]error, len(now))
	var wg sync.WaitGroup
	for i, p := range now {
		if err := s.launch(p); err != nil {
			errs[i] = err
			continue
		}
		s.next.programs = append(s.next.programs, p)
		wg.Go(func() { errs[i] = s.ready(ctx, p) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// clash finds two services that are to be run at one address: each would seem
// to have started when the other listens.
func clash(in *merlon.Intent) error {
	at := map[string]*merlon.Service{}
	for i := range in.Services {
		svc := &in.Services[i]
		if svc.Run == nil {
			continue
		}
		for _, address := range addresses(svc) {
			if other := at[address]; other != nil {
				return fmt.Errorf("%v: service %s wants %s, where service %s is to run by %v", svc.Run.Pos, svc.Name, address, other.Name, other.Run.Pos)
			}
			at[address] = svc
		}
	}
	return nil
}

// mustWait reports whether a service can only start when another program of
// ours has stopped. An address that is taken otherwise is an error.
func (s *system) mustWait(p, have *program) (bool, error) {
	svc := p.service
	wait := have != nil && len(svc.Addresses) == 0 // never two workers at once
	for _, address := range addresses(svc) {
		if s.holder(address) != nil { // by clash not for long
			wait = true
			continue
		}
		_, err := patiently(s.ctx, func() (net.Listener, error) {
			return nil, p.ns.Do(func() error { return supervise.CheckFree(address) })
		})
		if err != nil {
			return false, fmt.Errorf("%v: service %s wants %s: %w\nhint: stop what uses the port, or change the service's address", svc.Run.Pos, svc.Name, address, err)
		}
	}
	return wait, nil
}

// holder is the running program that listens on address, or nil.
func (s *system) holder(address string) *program {
	for _, p := range s.started {
		if slices.Contains(addresses(p.service), address) {
			return p
		}
	}
	return nil
}

// newProgram is not built yet. It is built beside the program that runs, which
// may have to be started again.
func (s *system) newProgram(svc *merlon.Service, have *program) (*program, error) {
	gate := s.next.gates[merlon.Place{Service: svc.Name}]
	if gate == nil {
		gate = s.gates[merlon.Place{Service: svc.Name}]
	}
	p := &program{service: svc, out: gate.out, local: gate.local, ns: gate.ns, bin: filepath.Join(s.bin, svc.Name)}
	if p.ns != nil {
		var err error
		if p.user, err = userOf(svc); err != nil {
			return nil, err
		}
	}
	if have != nil && have.bin == p.bin {
		p.bin += ".2"
	}
	return p, nil
}

// build builds services side by side; the Go tool shares the work.
func (s *system) build(ctx context.Context, programs []*program) error {
	ctx, cancel := context.WithTimeout(ctx, buildTime)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, len(programs))
	for i, p := range programs {
		svc := p.service
		if len(svc.Run.Build) == 0 {
			continue
		}
		s.say("building %s", svc.Name)
		wg.Go(func() {
			argv := p.expand(svc.Run.Build)
			cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
			cmd.Dir = s.runDir(svc)
			cmd.WaitDelay = time.Second // the compilers below it may hold the pipe
			out, err := cmd.CombinedOutput()
			switch {
			case ctx.Err() != nil:
				errs[i] = fmt.Errorf("%v: building %s: %w", svc.Run.Pos, svc.Name, ctx.Err())
			case err != nil:
				errs[i] = fmt.Errorf("%v: building %s with %q: %w\n%s", svc.Run.Pos, svc.Name, strings.Join(argv, " "), err, tail(out, 4000))
			case p.user != nil:
				if err := os.Chmod(p.bin, 0o755); !errors.Is(err, fs.ErrNotExist) { // whatever the mask is
					errs[i] = err
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// plain reports whether a variable may be told to another user: what root was
// given, such as tokens, is not a service's.
func plain(name string) bool {
	return slices.Contains([]string{"PATH", "LANG", "TZ", "TERM"}, name) || strings.HasPrefix(name, "LC_")
}

// launch starts a program, which may not be ready yet.
func (s *system) launch(p *program) (err error) {
	env := map[string]string{}
	for _, v := range os.Environ() {
		name, value, _ := strings.Cut(v, "=")
		if p.user == nil || plain(name) {
			env[name] = value
		}
	}
	// Calls of the service leave through its own gate.
	for _, name := range []string{"HTTP_PROXY", "http_proxy"} {
		env[name] = "http://" + p.out
	}
	for _, name := range []string{"NO_PROXY", "no_proxy"} {
		env[name] = ""
	}
	if s.endpoint != "" {
		env["SPIFFE_ENDPOINT_SOCKET"] = s.endpoint
	}
	if p.user != nil {
		home(env, p.user.UID)
	}
	maps.Copy(env, p.service.Run.Env)
	var list []string
	for name, value := range env {
		list = append(list, name+"="+value)
	}
	p.mu.Lock()
	p.deaths, p.dying = 0, make(chan struct{})
	p.mu.Unlock()
	p.process, err = p.local.start(s.programs, supervise.Spec{
		Name:    p.service.Name,
		Argv:    p.expand(p.service.Run.Command),
		Dir:     s.runDir(p.service),
		Env:     list,
		Start:   p.ns.Start,
		Dial:    p.ns.Dial,
		User:    p.user,
		Output:  func(name, line string) { p.heard(line); s.log.Info(line, "service", name) },
		Exited:  func(e supervise.Exit) { p.died(); s.exited(e) },
		Restart: &supervise.Restart{Min: 200 * time.Millisecond, Max: 10 * time.Second, Steady: 10 * time.Second},
	})
	switch {
	case errors.Is(err, fs.ErrPermission) && p.user != nil:
		return fmt.Errorf("%v: %w\nhint: an isolated service with a user is started as that user (%s): let it enter the directory and run the program",
			p.service.Run.Pos, err, p.service.Workload.UnixUser)
	case err != nil:
		return fmt.Errorf("%v: %w", p.service.Run.Pos, err)
	}
	return nil
}

// ready waits until a program listens where its service is.
func (s *system) ready(ctx context.Context, p *program) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	p.mu.Lock()
	dying := p.dying
	p.mu.Unlock()
	go func() {
		select {
		case <-dying:
			cancel()
		case <-ctx.Done():
		}
	}()
	svc := p.service
	for _, address := range addresses(svc) {
		err := p.process.WaitTCP(ctx, address)
		if err == nil {
			continue
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.deaths >= maxDeaths {
			err = fmt.Errorf("service %s ended %d times before it listened on %s, with status %d", svc.Name, p.deaths, address, p.process.Last().Code)
		}
		if len(p.words) > 0 {
			err = fmt.Errorf("%w; it said:\n  %s", err, strings.Join(p.words, "\n  "))
		}
		return fmt.Errorf("%v: %w", svc.Run.Pos, err)
	}
	s.say("started %s", svc.Name)
	return nil
}

// replace starts programs in the place of others, now that the intent that
// says so is in force. A service whose new program does not come up goes on
// with the old one.
func (s *system) replace(later []*program) merlon.Diagnostics {
	old := map[*program]*program{}
	for _, p := range later {
		old[p] = s.started[p.service.Name]
	}
	for _, p := range later {
		stop := []*program{old[p]}
		for _, address := range addresses(p.service) {
			stop = append(stop, s.holder(address))
		}
		for _, q := range stop {
			if q != nil && s.started[q.service.Name] == q {
				delete(s.started, q.service.Name)
				q.stop()
			}
		}
	}
	var problems merlon.Diagnostics
	for _, p := range later {
		err := s.run(p)
		if err == nil {
			continue
		}
		d := merlon.Diagnostic{Pos: p.service.Run.Pos, Code: "E0403",
			Message: fmt.Sprintf("service %q cannot be started as the intent now says: %v", p.service.Name, err),
			Hint:    "nothing runs for it now; mend it and apply again"}
		if back := old[p]; back != nil {
			if err := s.run(back); err == nil {
				d.Hint = "it runs as before; mend it and apply again"
			}
		}
		problems = append(problems, d)
	}
	return problems
}

// run launches a program and waits for it. s.mu is held.
func (s *system) run(p *program) error {
	if err := s.launch(p); err != nil {
		return err
	}
	if err := s.ready(s.ctx, p); err != nil {
		p.stop()
		return err
	}
	s.started[p.service.Name] = p
	return nil
}

func (p *program) stop() { p.process.Stop() }

func (p *program) heard(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.words) == lastWords {
		p.words = slices.Delete(p.words, 0, 1)
	}
	p.words = append(p.words, line)
}

func (p *program) died() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.deaths++; p.deaths == maxDeaths {
		close(p.dying)
	}
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
func (p *program) expand(argv []string) []string {
	out := make([]string, len(argv))
	for i, arg := range argv {
		out[i] = strings.ReplaceAll(arg, "{bin}", p.bin)
	}
	return out
}

func tail(b []byte, n int) string {
	return strings.TrimSpace(string(b[max(0, len(b)-n):]))
}
