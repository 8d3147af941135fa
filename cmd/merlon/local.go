package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"

	"merlon"
	"merlon/attest"
	"merlon/internal/netns"
	"merlon/internal/sockowner"
	"merlon/internal/supervise"
)

// local says which processes of this host may call as a service, through the
// gate beside it: those of the program that merlon runs for it, those of the
// user that the intent names, or, when it says neither, all of them.
type local struct {
	attest attest.Options
	looks  chan struct{}    // bounds how many processes are looked for at once
	ns     *netns.Namespace // where the connections are

	mu       sync.Mutex
	rule     localRule
	service  string
	attestor *attest.Attestor                // of the one service, when its rule asks for more than a user
	programs map[*supervise.Process]struct{} // that ran for the service
	guests   map[*guest]struct{}             // of merlon exec
}

// localRule is what the intent in force says.
type localRule struct {
	away bool // its workloads are on nodes, and no process of this host is one
	run  bool // merlon runs the program
	user string
	uid  uint32 // of user
	more string // all that it asks, when that is more than a user
	root bool   // the program is isolated, but it is root's, whom that does not hold
}

func newLocal(opt attest.Options, ns *netns.Namespace) *local {
	return &local{attest: opt, ns: ns, looks: make(chan struct{}, 4), programs: map[*supervise.Process]struct{}{}, guests: map[*guest]struct{}{}}
}

// ruleOf reads what the intent says of a service, which is nil at the edge.
func ruleOf(svc *merlon.Service) (localRule, error) {
	if svc == nil {
		return localRule{}, nil
	}
	if len(svc.Nodes) > 0 {
		return localRule{away: true}, nil
	}
	// Elsewhere the programs that merlon runs cannot be told from others. Who
	// asks for a user there is refused by the gate.
	r := localRule{run: svc.Run != nil && sockowner.Supported()}
	if svc.Workload == nil {
		return r, nil
	}
	if all := svc.Workload.Selectors(); len(all) != 1 || svc.Workload.UnixUser == "" {
		r.more = strings.Join(all, " and ")
		return r, nil // attest says whether it can be checked
	}
	var err error
	r.user = svc.Workload.UnixUser
	r.uid, err = sockowner.UserID(r.user)
	if err != nil {
		return r, fmt.Errorf("%v: the workload of %s cannot be recognised: %w\nhint: make the user on this host, or name another", svc.Workload.Pos, svc.Name, err)
	}
	return r, nil
}

const asRoot = ", as root"

// checkWorkloads finds what no gate could enforce, before an intent is in
// force.
func checkWorkloads(in *merlon.Intent, opt attest.Options) error {
	var errs []error
	whose := map[uint32]*merlon.Service{}
	for i := range in.Services {
		svc := &in.Services[i]
		r, err := ruleOf(svc)
		switch {
		case err != nil:
			errs = append(errs, err)
		case r.user == "":
		case !sockowner.Supported():
			errs = append(errs, fmt.Errorf("%v: the workload of %s: %w", svc.Workload.Pos, svc.Name, sockowner.ErrUnsupported))
		case whose[r.uid] != nil: // by two names
			errs = append(errs, fmt.Errorf("%v: user %s is uid %d, which is the workload of %s already (%v)\nhint: let each service run as a user of its own",
				svc.Workload.Pos, r.user, r.uid, whose[r.uid].Name, whose[r.uid].Workload.Pos))
		default:
			whose[r.uid] = svc
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	if _, err := attest.New(in.Here(), opt); err != nil {
		return fmt.Errorf("%w\nhint: name what is on this host, or say where it is found: merlon up --help", err)
	}
	return nil
}

// String says whom the gate takes for its own service.
func (r localRule) String() string {
	if r.root {
		r.root = false
		return r.String() + asRoot
	}
	switch {
	case r.away:
		return "no process on this host"
	case r.run && r.more != "":
		return "the program's process tree, with " + r.more
	case r.more != "":
		return "processes with " + r.more
	case r.run && r.user != "":
		return fmt.Sprintf("the program's process tree, as user %s (uid %d)", r.user, r.uid)
	case r.run:
		return "the program's process tree"
	case r.user != "":
		return fmt.Sprintf("user %s (uid %d)", r.user, r.uid)
	}
	return "every process on this host"
}

// obey takes up what the intent in force says, before the gate takes up its
// orders.
func (l *local) obey(svc *merlon.Service) (localRule, error) {
	r, err := ruleOf(svc)
	if err != nil {
		return r, err
	}
	if l.ns != nil && r.run {
		u, err := userOf(svc)
		if err != nil {
			return r, err
		}
		r.root = u == nil || u.UID == 0
	}
	var attestor *attest.Attestor
	if r.more != "" {
		opt := l.attest
		opt.Started = func(_ string, p *sockowner.Process) (bool, error) { return l.started(p) }
		if attestor, err = attest.New(&merlon.Intent{Services: []merlon.Service{*svc}}, opt); err != nil {
			return r, err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rule, l.attestor = r, attestor
	if svc != nil {
		l.service = svc.Name
	}
	return r, nil
}

// String says who is admitted now.
func (l *local) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rule.String()
}

// open reports whether every process of the host is admitted.
func (l *local) open() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rule == localRule{}
}

// start starts the service's program, which is admitted from its first
// instruction on, over all its starts.
func (l *local) start(s *supervise.Supervisor, spec supervise.Spec) (*supervise.Process, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p, err := s.Start(spec)
	if err != nil {
		return nil, err
	}
	l.programs[p] = struct{}{}
	go func() {
		<-p.Done()
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.programs, p)
	}()
	return p, nil
}

// own is gate.Config.Own.
func (l *local) own(c net.Conn) error {
	l.mu.Lock()
	rule, programs, guests, attestor, service := l.rule, keys(l.programs), keys(l.guests), l.attestor, l.service
	l.mu.Unlock()
	if rule == (localRule{}) {
		return nil
	}
	var s sockowner.Socket
	err := l.ns.Do(func() (err error) { s, err = sockowner.Peer(c); return err })
	if err != nil {
		return err
	}
	if rule.user != "" && !rule.run && s.UID == rule.uid {
		return nil
	}
	l.looks <- struct{}{}
	defer func() { <-l.looks }()
	switch {
	case attestor != nil:
		if err = l.ns.Do(func() error { return attested(attestor, service, c) }); err == nil {
			return nil
		}
	case (rule.user == "" || s.UID == rule.uid) && rule.run:
		for _, p := range programs {
			if err = holder(p, s); err == nil {
				return nil
			}
		}
	}
	for _, g := range guests {
		if g.holds(s) {
			return nil
		}
	}
	said := "the caller is " + sockowner.Describe(s) + "; admitted is " + rule.String()
	if err != nil && !errors.Is(err, sockowner.ErrNotHeld) {
		said += ": " + err.Error()
	}
	return errors.New(said)
}

func keys[K comparable](m map[K]struct{}) []K {
	all := make([]K, 0, len(m))
	for k := range m {
		all = append(all, k)
	}
	return all
}

// attested returns nil if a process that holds the other end of c is the
// service.
func attested(a *attest.Attestor, service string, c net.Conn) error {
	p, err := sockowner.TCPPeer(c)
	if err != nil {
		return err
	}
	defer p.Close()
	return a.Check(context.Background(), service, p)
}

// started reports whether p belongs to the program that runs for the service.
func (l *local) started(p *sockowner.Process) (bool, error) {
	l.mu.Lock()
	programs := keys(l.programs)
	l.mu.Unlock()
	var err error
	for _, program := range programs {
		var root *sockowner.Process
		if herr := program.Hold(func(pid int) (err error) { root, err = sockowner.OpenProcess(pid); return err }); herr != nil {
			continue // it has just ended, or begins
		}
		ok, serr := p.StartedBy(root)
		root.Close()
		if ok {
			return true, nil
		}
		if serr != nil && !errors.Is(serr, sockowner.ErrGone) {
			err = serr
		}
	}
	return false, err
}

// holder returns nil if p or what it started holds s.
func holder(p *supervise.Process, s sockowner.Socket) error {
	var root *sockowner.Process
	// Pinned while nobody else can have its number.
	if err := p.Hold(func(pid int) (err error) { root, err = sockowner.OpenProcess(pid); return err }); err != nil {
		return err
	}
	defer root.Close()
	_, err := root.Holder(s)
	return err
}
