package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"merlon"
	"merlon/attest"
	"merlon/authority"
	"merlon/control"
	"merlon/federation"
	"merlon/internal/supervise"
	"merlon/node"
	"merlon/record"
	"merlon/workloadapi"
)

// system is a whole Merlon in one process: authority, control plane, records,
// and a gate for every place of the intent. Services that the intent says how
// to run are its child processes.
type system struct {
	dir     string // of the intent
	state   string // its private state
	logFile string
	log     *slog.Logger
	say     func(format string, args ...any)

	ctx    context.Context // ends when the system begins to stop
	cancel context.CancelFunc

	trustDomain string
	authority   *authority.Authority
	who         *identities
	workloads   *workloadapi.Server // nil where it is not served
	endpoint    string              // of the Workload API, as SPIFFE writes it
	partners    *federation.Partners
	bundle      *federation.Endpoint // nil when it is not served
	bundleAt    string               // its URL
	nodes       *node.Server         // nil when none are served
	nodesAt     string               // its address
	control     *control.Control
	api         *control.API
	records     *record.Writer
	programs    *supervise.Supervisor
	bin         string // where programs are built
	public      string // directory for all users, when services are isolated; else ""
	ports       *ports

	mu      sync.Mutex
	gates   map[merlon.Place]*running
	started map[string]*program
	next    *change        // prepared, and neither in force nor given up yet
	leaving sync.WaitGroup // gates and programs that the intent in force has no place for
}

// openSystem opens the state of the intent in dir and everything that lives in
// it. Nothing serves yet. The trust domain is that of the intent last in
// force, or the given one before the first.
func openSystem(ctx context.Context, u *ui, dir, state, trustDomain string, who attest.Options, o authorityOptions, log *slog.Logger) (_ *system, err error) {
	s := &system{
		dir: dir, state: state, bin: filepath.Join(state, "bin"), log: log, say: u.say, who: newIdentities(who, log),
		gates:    map[merlon.Place]*running{},
		started:  map[string]*program{},
		programs: supervise.New(),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err := s.openPartners(o.federation); err != nil {
		return nil, err
	}
	// First, for its lock: nothing in the state of another process is touched.
	recordDir := filepath.Join(state, recordsName)
	s.control, err = control.Open(ctx, state, control.Options{
		Records: recordDir, Prepare: s.prepare, InForce: s.inForce, Committed: s.committed, Refused: s.refused,
		Exec: s.admit, Explain: s.who.explain, Authority: func() authority.Status { return s.authority.Status(time.Now()) },
		Federation: func() []federation.Status { return s.partners.Status() },
		Roots:      func() []byte { return s.authority.Bundle() },
		Nodes:      s.nodeStatus, JoinToken: s.joinToken,
		Workloads: func() string { return s.endpoint }, Problems: s.problems,
	})
	if err != nil {
		return nil, err
	}
	s.trustDomain = trustDomain
	if in := s.control.Intent(); in != nil {
		s.trustDomain = in.TrustDomain
	}
	if s.trustDomain == "" {
		return nil, fmt.Errorf("%s: no intent was ever in force here\nhint: run merlon up without --committed", state)
	}
	if s.ports, err = readPorts(filepath.Join(state, "ports.json")); err != nil {
		return nil, err
	}
	s.authority, err = authority.Open(filepath.Join(state, authorityName), s.trustDomain, authority.Options{
		Lifetime: o.lifetimes.svid, Intermediate: o.lifetimes.intermediate, Root: o.lifetimes.root,
		Upstream: o.upstream, Issuer: o.federation.issuer, Log: log,
	})
	if err != nil {
		return nil, err
	}
	go s.authority.Run(s.ctx)
	if err := s.openNodes(o); err != nil {
		return nil, err
	}
	s.records, err = record.Open(recordDir, record.Options{Now: time.Now, TrustDomain: s.trustDomain})
	if broken, ok := errors.AsType[*record.Broken](err); ok {
		return nil, fmt.Errorf("%s: %w\nhint: %s", relative(recordDir), err, broken.Hint)
	}
	return s, err
}

// authorityOptions say how the authority meets others.
type authorityOptions struct {
	upstream   authority.Upstream
	lifetimes  lifetimes
	federation federationOptions
	nodes      string // where nodes are served; "" is nowhere
	workloads  workloadOptions
}

// problems is control.Options.Problems. It waits for no change that is being
// brought up, which may take minutes: gates that it starts are not ready yet.
func (s *system) problems() map[string][]string {
	if !s.mu.TryLock() {
		return nil
	}
	defer s.mu.Unlock()
	all := map[string][]string{}
	for place, r := range s.gates {
		for _, p := range r.gate.Problems(time.Now()) {
			all[place.String()] = append(all[place.String()], p.Text)
		}
	}
	return all
}

// inForce is control.Options.InForce.
func (s *system) inForce(in *merlon.Intent) {
	s.partners.Set(in.Federation)
	s.who.force(in.Here())
	if s.nodes != nil {
		s.nodes.Set(in)
	}
}

const recordsName = "records"

// makeState makes the state directory: for this user alone, and out of the way
// of version control. A directory that is there is left as it is.
func makeState(dir string) error {
	err := os.MkdirAll(filepath.Dir(dir), 0o777)
	if err == nil {
		err = os.Mkdir(dir, 0o700)
	}
	switch {
	case errors.Is(err, os.ErrExist):
		return nil
	case err != nil:
		return fmt.Errorf("state directory: %w", err)
	}
	return os.WriteFile(filepath.Join(dir, ".gitignore"), []byte("*\n"), 0o600)
}

// running is what runs now, by place.
func (s *system) running() map[merlon.Place]*running {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.gates)
}

const edgeCertName = "gateway.pem"

// edgeCertificate is the gateway's certificate for a first look; clients that
// trust its PEM file reach the gateway without warnings.
func (s *system) edgeCertificate(hosts []string) (*tls.Certificate, error) {
	cert, pem, err := s.authority.EdgeCertificate(hosts)
	if err != nil {
		return nil, err
	}
	return cert, replaceFile(filepath.Join(s.state, edgeCertName), pem, 0o644)
}

// replaceFile replaces a file whole: a process killed here leaves the old one.
func replaceFile(name string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err := errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

// drainTime is how long calls in progress may take when the system stops.
const drainTime = 5 * time.Second

// close ends the system: gates finish their calls, then services stop, then
// the records are sealed.
func (s *system) close() {
	s.cancel() // a change that is being prepared is given up
	if s.api != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		s.api.Close(ctx)
		cancel()
	}
	s.mu.Lock()
	gates := s.gates
	s.gates = map[merlon.Place]*running{}
	s.mu.Unlock()
	// The edge first, so that what it lets in can still be answered inside.
	if edge := gates[merlon.Edge]; edge != nil {
		edge.drain(context.Background(), drainTime)
		delete(gates, merlon.Edge)
	}
	var wg sync.WaitGroup
	for _, r := range gates {
		wg.Go(func() { r.drain(context.Background(), drainTime) })
	}
	wg.Wait()
	s.leaving.Wait()
	s.programs.Close()
	if s.workloads != nil {
		s.workloads.Close()
	}
	s.endIsolation()
	if s.nodes != nil {
		s.nodes.Close()
	}
	if s.bundle != nil {
		s.bundle.Close()
	}
	if s.partners != nil {
		s.partners.Close()
	}
	if s.control != nil {
		s.control.Close()
	}
	if s.records != nil {
		s.records.Close()
	}
	if s.authority != nil {
		s.authority.Close()
	}
}
