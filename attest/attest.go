// Package attest says which service of an intent a running process is, and why.
//
// What the intent says under workload: is all that counts; there is nothing to
// register. A process is a service if everything that is said of the service
// holds, and if nothing makes it another service too: two matches are none.
//
// A process is pinned before it is asked anything (see package sockowner), so
// that its number cannot pass to another. What it says of itself is not
// believed: users, groups, the file that runs and the control group come from
// the kernel; containers from the engine that made them; a Kubernetes service
// account from a token that the cluster signed for the very pod that the kernel
// says the process is in.
package attest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"merlon"
	"merlon/internal/sockowner"
)

// Options of an Attestor.
type Options struct {
	// Started reports whether a process belongs to the program that Merlon runs
	// for a service. Services that the intent says how to run are known by it.
	// It is nil where nothing is run.
	Started func(service string, p *sockowner.Process) (bool, error)
	// Docker is the path of the Docker Engine's API socket.
	Docker string
	// Containerd is the path of containerd's API socket.
	Containerd string
	// Cluster verifies the tokens of Kubernetes pods; nil where there is none.
	Cluster *Cluster
	Now     func() time.Time // nil is time.Now
}

// Attestor recognises the workloads of one intent. It is safe for concurrent
// use and never changes.
type Attestor struct {
	services   []service
	docker     *dockerEngine // nil where there is none
	containerd *containerd   // nil where there is none
	cluster    *Cluster      // nil where there is none
	now        func() time.Time
	hashes     hashes
}

// service is one service and all that is asked of its processes.
type service struct {
	name   string
	pos    merlon.Pos
	checks []check
}

// check is one selector, and how the intent puts it.
type check struct {
	selector string
	holds    selector
}

// Errors of Identify.
var (
	ErrNone = errors.New("the process is no service of the intent")
	ErrMany = errors.New("the process matches more than one service")
)

// New makes an Attestor for an intent. A selector that can never be checked on
// this host is an error, with the intent's line.
func New(in *merlon.Intent, opt Options) (*Attestor, error) {
	if opt.Now == nil {
		opt.Now = time.Now
	}
	a := &Attestor{cluster: opt.Cluster, now: opt.Now, hashes: hashes{now: opt.Now}}
	if opt.Docker != "" {
		a.docker = &dockerEngine{socket: opt.Docker}
	}
	if opt.Containerd != "" {
		a.containerd = newContainerd(opt.Containerd)
	}
	var errs []error
	for i := range in.Services {
		svc := &in.Services[i]
		s, err := a.newService(svc, opt.Started)
		if err != nil {
			errs = append(errs, err)
			s.checks = nil // nobody is recognised by less than all
		}
		a.services = append(a.services, s)
	}
	return a, errors.Join(errs...)
}

func (a *Attestor) newService(svc *merlon.Service, started func(string, *sockowner.Process) (bool, error)) (service, error) {
	s := service{name: svc.Name, pos: svc.Pos}
	if svc.External {
		return s, nil
	}
	if svc.Run != nil && started != nil {
		s.pos = svc.Run.Pos
		s.checks = append(s.checks, check{"started by merlon", func(p *subject) (bool, func() string, error) {
			ok, err := started(svc.Name, p.Process)
			return ok, said("it was not started by the service's run:"), err
		}})
	}
	w := svc.Workload
	if w == nil {
		return s, nil
	}
	s.pos = w.Pos
	checks, err := a.ruleChecks(w)
	if err != nil {
		return s, fmt.Errorf("%v: the workload of %s cannot be recognised: %w", w.Pos, svc.Name, err)
	}
	s.checks = append(s.checks, checks...)
	return s, nil
}

// Finding is what became of one service in the question who a process is.
type Finding struct {
	Service string        `json:"service"`
	Pos     merlon.Pos    `json:"pos"`
	Matches bool          `json:"matches"`
	Checks  []CheckResult `json:"checks,omitempty"` // none: nothing says how it is recognised
}

// CheckResult is one selector and whether it holds.
type CheckResult struct {
	Selector string `json:"selector"`
	Holds    bool   `json:"holds"`
	Saw      string `json:"saw,omitzero"` // instead
	Err      string `json:"err,omitzero"` // why it could not be checked
}

// String says it in words.
func (c CheckResult) String() string {
	switch {
	case c.Holds:
		return c.Selector + " holds"
	case c.Err != "":
		return c.Selector + " could not be checked: " + c.Err
	}
	return c.Selector + " does not hold: " + c.Saw
}

// Explain goes through every service and every selector.
func (a *Attestor) Explain(ctx context.Context, p *sockowner.Process) []Finding {
	ctx, cancel := context.WithTimeout(ctx, asking)
	defer cancel()
	who := a.subject(ctx, p)
	all := make([]Finding, 0, len(a.services))
	for i := range a.services {
		s := &a.services[i]
		f := Finding{Service: s.name, Pos: s.pos, Matches: len(s.checks) > 0}
		for _, c := range s.checks {
			ok, saw, err := c.holds(who)
			r := CheckResult{Selector: c.selector, Holds: ok && err == nil}
			if err != nil {
				r.Err = err.Error()
			} else if !ok {
				r.Saw = saw()
			}
			f.Matches = f.Matches && r.Holds
			f.Checks = append(f.Checks, r)
		}
		all = append(all, f)
	}
	return all
}

// asking bounds how long one process may be looked at.
const asking = 5 * time.Second

// Identify is the one service that the process is. The error says why it is
// none, and wraps ErrNone or ErrMany; a process that has ended is none.
func (a *Attestor) Identify(ctx context.Context, p *sockowner.Process) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, asking)
	defer cancel()
	who := a.subject(ctx, p)
	var found []*service
	var doubts []string
	for i := range a.services {
		s := &a.services[i]
		if len(s.checks) == 0 {
			continue
		}
		selector, err := s.first(who)
		switch {
		case err != nil:
			doubts = append(doubts, fmt.Sprintf("%s (%v): %s could not be checked: %v", s.name, s.pos, selector, err))
		case selector == "":
			found = append(found, s)
		}
	}
	switch {
	case !p.Alive():
		return "", fmt.Errorf("%w: %w", ErrNone, sockowner.ErrGone)
	case len(found) == 1:
		return found[0].name, nil
	case len(found) > 1:
		var names []string
		for _, s := range found {
			names = append(names, fmt.Sprintf("%s (%v)", s.name, s.pos))
		}
		return "", fmt.Errorf("%w: %s", ErrMany, strings.Join(names, ", "))
	case len(doubts) > 0:
		return "", fmt.Errorf("%w: %s", ErrNone, strings.Join(doubts, "; "))
	}
	return "", ErrNone
}

// first is the first selector that does not hold, or "".
func (s *service) first(who *subject) (selector string, err error) {
	for _, c := range s.checks {
		if ok, _, err := c.holds(who); !ok || err != nil {
			return c.selector, err
		}
	}
	return "", nil
}

// Check reports whether a process is the service, whatever else it may be. The
// error names the selector that does not hold.
func (a *Attestor) Check(ctx context.Context, name string, p *sockowner.Process) error {
	ctx, cancel := context.WithTimeout(ctx, asking)
	defer cancel()
	who := a.subject(ctx, p)
	for i := range a.services {
		s := &a.services[i]
		if s.name != name || len(s.checks) == 0 {
			continue
		}
		for _, c := range s.checks {
			ok, saw, err := c.holds(who)
			switch {
			case err != nil:
				return fmt.Errorf("%v: %s could not be checked: %w", s.pos, c.selector, err)
			case !ok:
				return fmt.Errorf("%v: %s does not hold: %s", s.pos, c.selector, saw())
			}
		}
		if !p.Alive() {
			return sockowner.ErrGone
		}
		return nil
	}
	return fmt.Errorf("nothing says how a workload of %s is recognised", name)
}
