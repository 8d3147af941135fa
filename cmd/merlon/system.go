package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"merlon"
	"merlon/authority"
	"merlon/control"
	"merlon/gate"
	"merlon/internal/supervise"
	"merlon/record"
)

// system is a whole Merlon in one process: authority, control plane, records,
// and a gate for every place of the intent. Services that the intent says how
// to run are its child processes.
type system struct {
	dir   string // of the intent
	state string // its private state
	log   *slog.Logger
	say   func(format string, args ...any)

	trustDomain string
	authority   *authority.Authority
	control     *control.Control
	api         *control.API
	records     *record.Writer
	programs    *supervise.Supervisor
	ports       *ports

	mu      sync.Mutex
	gates   map[merlon.Place]*running
	started map[string]*program
}

// running is one gate of the system.
type running struct {
	place    merlon.Place
	gate     *gate.Gate
	session  *control.Session
	in, out  string // addresses; for the edge, in is where clients come
	stop     context.CancelFunc
	finished chan struct{}
}

// openSystem opens the state of the intent in dir and everything that lives in
// it. Nothing serves yet.
func openSystem(ctx context.Context, dir, state, trustDomain string, log *slog.Logger) (_ *system, err error) {
	s := &system{
		dir: dir, state: state, log: log, trustDomain: trustDomain,
		gates:    map[merlon.Place]*running{},
		started:  map[string]*program{},
		programs: supervise.New(),
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err := makeState(state); err != nil {
		return nil, err
	}
	if s.ports, err = readPorts(filepath.Join(state, "ports.json")); err != nil {
		return nil, err
	}
	s.authority, err = authority.Open(filepath.Join(state, "authority"), trustDomain, authority.Options{Log: log})
	if err != nil {
		return nil, err
	}
	recordDir := filepath.Join(state, recordsName)
	s.records, err = record.Open(recordDir, record.Options{Now: time.Now, TrustDomain: trustDomain})
	if err != nil {
		return nil, err
	}
	s.control, err = control.Open(ctx, state, control.Options{Records: recordDir, Prepare: s.prepare, Committed: s.committed})
	return s, err
}

const recordsName = "records"

// makeState makes the state directory: for this user alone, and out of the way
// of version control.
func makeState(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	ignore := filepath.Join(dir, ".gitignore")
	if _, err := os.Stat(ignore); errors.Is(err, os.ErrNotExist) {
		return os.WriteFile(ignore, []byte("*\n"), 0o600)
	}
	return nil
}

// prepare makes sure that every place of an intent has a gate, before the
// intent is committed. Gates that are new deny everything until it is.
func (s *system) prepare(ctx context.Context, in *merlon.Intent) error {
	if in.TrustDomain != s.trustDomain {
		return fmt.Errorf("the trust domain cannot change from %q to %q while services run under the old one: use another state directory", s.trustDomain, in.TrustDomain)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, place := range places(in) {
		if have := s.gates[place]; have != nil && (place != merlon.Edge || have.in == in.Gateway.Listen) {
			continue
		}
		if err := s.startGate(in, place); err != nil {
			return err
		}
	}
	return s.startPrograms(ctx, in)
}

// committed ends what the intent in force has no place for any more.
func (s *system) committed(in *merlon.Intent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	keep := places(in)
	for place, r := range s.gates {
		if !slices.Contains(keep, place) {
			delete(s.gates, place)
			go r.drain(30 * time.Second)
		}
	}
	for name, p := range s.started {
		if svc := in.Service(name); svc == nil || svc.Run == nil {
			delete(s.started, name)
			go p.process.Stop()
		}
	}
}

// places lists where an intent is enforced, the edge first.
func places(in *merlon.Intent) []merlon.Place {
	var all []merlon.Place
	if in.Gateway != nil {
		all = append(all, merlon.Edge)
	}
	for i := range in.Services {
		if !in.Services[i].External {
			all = append(all, merlon.Place{Service: in.Services[i].Name})
		}
	}
	return all
}

// startGate starts the gate of a place and connects it to control.
func (s *system) startGate(in *merlon.Intent, place merlon.Place) (err error) {
	ctx, stop := context.WithCancel(context.Background())
	r := &running{place: place, stop: stop, finished: make(chan struct{})}
	listeners := map[gate.Position]net.Listener{}
	defer func() {
		if err != nil {
			stop()
			for _, l := range listeners {
				l.Close()
			}
		}
	}()
	if place == merlon.Edge {
		l, err := net.Listen("tcp", in.Gateway.Listen)
		if err != nil {
			return fmt.Errorf("%v: the gateway cannot listen: %w", in.Gateway.Pos, err)
		}
		listeners[gate.AtEdge], r.in = l, in.Gateway.Listen
	} else {
		for at, name := range map[gate.Position]string{gate.Inbound: place.Service + "/in", gate.Outbound: place.Service + "/out"} {
			l, err := s.ports.listen(name)
			if err != nil {
				return fmt.Errorf("%v: %w", place, err)
			}
			listeners[at] = l
		}
		r.in, r.out = listeners[gate.Inbound].Addr().String(), listeners[gate.Outbound].Addr().String()
	}
	source, err := s.authority.Source(ctx, in.SPIFFEID(place.Workload()), s.log)
	if err != nil {
		return fmt.Errorf("%v: %w", place, err)
	}
	r.gate, err = gate.New(gate.Config{
		Place:           place,
		TrustDomain:     in.TrustDomain,
		Source:          source,
		Records:         s.records,
		Log:             s.log,
		EdgeCertificate: s.edgeCertificate,
	})
	if err != nil {
		return err
	}
	r.session, err = s.control.Connect(ctx, control.Hello{
		Place: place, Version: merlon.OrdersVersion, Protocols: gate.Protocols(), Address: r.in,
	})
	if err != nil {
		r.gate.Close()
		return fmt.Errorf("%v: %w", place, err)
	}
	if old := s.gates[place]; old != nil {
		go old.drain(30 * time.Second)
	}
	s.gates[place] = r
	go r.obey()
	for at, l := range listeners {
		go r.gate.Serve(l, at)
	}
	return nil
}

// obey puts orders in force as they come and answers for them.
func (r *running) obey() {
	defer close(r.finished)
	for o := range r.session.Orders() {
		ack := control.Ack{Hash: o.Hash}
		if err := r.gate.Swap(o); err != nil {
			ack.Err = err.Error()
		}
		r.session.Ack(ack)
	}
}

// drain takes a gate out of service within d.
func (r *running) drain(d time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	r.gate.Drain(ctx)
	r.session.Close()
	<-r.finished
	r.stop()
}

const edgeCertName = "gateway.pem"

// edgeCertificate is the gateway's certificate for a first look; clients that
// trust its PEM file reach the gateway without warnings.
func (s *system) edgeCertificate(hosts []string) (*tls.Certificate, error) {
	cert, pem, err := s.authority.EdgeCertificate(hosts)
	if err != nil {
		return nil, err
	}
	return cert, os.WriteFile(filepath.Join(s.state, edgeCertName), pem, 0o644)
}

// close ends the system: gates finish their calls, then services stop, then
// the records are sealed.
func (s *system) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if s.api != nil {
		s.api.Close(ctx)
	}
	s.mu.Lock()
	gates := s.gates
	s.gates = map[merlon.Place]*running{}
	s.mu.Unlock()
	// The edge first, so that what it lets in can still be answered inside.
	if edge := gates[merlon.Edge]; edge != nil {
		edge.drain(5 * time.Second)
		delete(gates, merlon.Edge)
	}
	var wg sync.WaitGroup
	for _, r := range gates {
		wg.Go(func() { r.drain(5 * time.Second) })
	}
	wg.Wait()
	s.programs.Close()
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
