package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"merlon"
	"merlon/gate"
	"merlon/identity/spiffe"
	"merlon/internal/handover"
	"merlon/record"
)

// server is the gate of this process, from its first orders to its end.
type server struct {
	opt     options
	log     *slog.Logger
	program string // the file to start anew
	sockets *handover.Sockets
	file    orderFile

	own     own
	source  source          // the gate's own SVID
	files   *spiffe.Files   // nil when it is another's to give
	fetched *spiffe.Fetched // nil when it is in files
	age     age
	gate    *gate.Gate
	records *record.Writer
	admin   *http.Server // nil without an address

	first  *merlon.Orders // where the gate listens is as they say
	orders *merlon.Orders // in force
	behind bool           // the file holds others, which were refused
	paced  bool           // the processors follow the load
}

// open makes the gate, by the orders of the file or, if it cannot obey those,
// by the last ones that the process before could.
func (s *server) open() error {
	orders, err := s.file.read()
	if err == nil {
		err = s.begin(orders)
	}
	if handed := s.sockets.State(); err != nil && len(handed) > 0 {
		s.refused(err)
		if orders, err = merlon.DecodeOrders(handed); err == nil {
			err = s.begin(orders)
		}
	}
	return err
}

// begin makes the gate and puts its first orders in force.
func (s *server) begin(orders *merlon.Orders) (err error) {
	bounds := s.limits(orders.Place)
	if s.source, err = s.identity(orders); err != nil {
		return err
	}
	s.records, err = record.OpenFree(s.opt.records, record.Options{
		Now:         time.Now,
		TrustDomain: orders.Intent.TrustDomain,
		Place:       orders.Place.String(),
	})
	if err != nil {
		return err
	}
	s.gate, err = gate.New(gate.Config{
		Own:         s.own.check,
		Captured:    captured,
		Place:       orders.Place,
		TrustDomain: orders.Intent.TrustDomain,
		Source:      s.source,
		RootsOf:     s.source.RootsOf,
		Records:     s.records,
		Log:         s.log,
		Bounds:      bounds,
		Portable:    s.opt.portable,
		Listen:      s.sockets.Listen,
	})
	if err == nil {
		if err = s.own.swap(s.gate, orders); err != nil {
			err = fmt.Errorf("%s: %w", s.file.name, err)
			s.gate.Close()
		}
	}
	if err != nil {
		s.records.Close()
		return err
	}
	s.first, s.orders = orders, orders
	s.missBundles()
	return nil
}

// serve opens the addresses, tells who waits for it, and begins to accept. An
// heir first makes sure that it can serve: the process before it still does.
func (s *server) serve() error {
	listeners, err := s.listen()
	if err != nil {
		return err
	}
	captures, err := s.listenCaptured()
	if err != nil {
		return err
	}
	if len(listeners)+len(captures) == 0 {
		return errors.New("nothing to serve: a gate beside a service needs -in, -out or -capture")
	}
	var admin net.Listener
	if s.opt.admin != "" {
		if admin, err = s.sockets.Listen("admin", s.opt.admin); err != nil {
			return fmt.Errorf("-admin: %w", err)
		}
	}
	for _, p := range s.gate.Problems(time.Now()) {
		switch {
		case p.Code == gate.ProblemNotListening: // not yet
		case s.sockets.Heir():
			return fmt.Errorf("not ready: %s", p.Text)
		default:
			s.log.Warn("not ready", "code", p.Code, "why", p.Text)
		}
	}
	if left := s.sockets.Discard(); len(left) > 0 {
		s.log.Warn("inherited sockets that nobody asks for are closed", "names", left)
	}
	heir := s.sockets.Heir()
	if err := s.sockets.Ready(); err != nil {
		return fmt.Errorf("the process that hands over has given up: %w", err)
	}
	for at, l := range listeners {
		s.log.Info("serving", "place", s.orders.Place.String(), "at", at.String(), "address", l.Addr().String())
		go s.gate.Serve(l, at)
	}
	for _, l := range captures {
		s.log.Info("serving", "place", s.orders.Place.String(), "at", "capture", "address", l.Addr().String())
		go s.gate.ServeCaptured(l)
	}
	if admin != nil {
		s.serveAdmin(admin)
	}
	if s.paced {
		go keepPace()
	}
	if !heir { // systemd knows already
		s.notify("READY=1")
	}
	return nil
}

// listen opens the addresses of the gate, by the names under which sockets are
// handed on.
func (s *server) listen() (map[gate.Position]net.Listener, error) {
	want := map[gate.Position]string{gate.Inbound: s.opt.in, gate.Outbound: s.opt.out}
	if s.orders.Place == merlon.Edge {
		if s.orders.Intent.Gateway == nil {
			return nil, errors.New("the orders are for the edge, but the intent has no gateway")
		}
		want = map[gate.Position]string{gate.AtEdge: s.orders.Intent.Gateway.Listen}
	}
	listeners := map[gate.Position]net.Listener{}
	for at, address := range want {
		if address == "" {
			continue
		}
		l, err := s.sockets.Listen(at.String(), address)
		if err != nil {
			return nil, fmt.Errorf("%v of %v: %w", at, s.orders.Place, err)
		}
		listeners[at] = l
	}
	return listeners, nil
}

// look is how often the files of orders and of the SVID are looked at. To be told
// of changes would take a watch on each directory on their paths: those who
// mount secrets exchange links, and some file systems tell nothing.
const look = 200 * time.Millisecond

// loop takes up orders as their file changes, until a signal ends the gate or
// another process takes its place.
func (s *server) loop(again, stop <-chan os.Signal) error {
	tick := time.NewTicker(look)
	defer tick.Stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var next *heir // that is being started
	var ready <-chan error
	for {
		select {
		case <-tick.C:
			s.takeUp(func(o *merlon.Orders) error { return follow(s.gate, &s.own, s.first, o) })
			s.lookAtSVID(time.Now())
		case <-again:
			if next != nil {
				s.log.Warn("an upgrade is already on its way")
			} else if next = s.upgrade(ctx); next != nil {
				ready = next.ready
			}
		case err := <-ready:
			if err == nil {
				return s.outlive(next, stop)
			}
			s.log.Error("upgrade failed; this process goes on", "program", s.program, "error", err)
			next, ready = nil, nil
		case <-stop:
			cancel()
			if next != nil && <-ready == nil {
				next.cmd.Process.Signal(os.Interrupt) // it was ready in that very moment
			}
			s.notify("STOPPING=1")
			s.log.Info("stopping: calls in progress are finished")
			signal.Reset(os.Interrupt, syscall.SIGTERM) // another one ends the gate at once
			return s.drain(0, s.opt.drain, nil)
		}
	}
}

// drain lets calls in progress finish for at most d. Until then a change of
// orders reaches them: a deny must not wait for the end of what it denies.
func (s *server) drain(patience, d time.Duration, stop <-chan os.Signal) error {
	ctx, cut := context.WithCancel(context.Background())
	defer cut()
	end := time.AfterFunc(d, cut)
	defer end.Stop()
	hurry := func(why string) {
		if d > s.opt.drain {
			s.log.Warn("calls in progress are cut off soon", "why", why, "in", s.opt.drain)
			d = s.opt.drain
			end.Reset(d)
		}
	}
	left := make(chan error, 1)
	go func() { left <- s.gate.Leave(ctx, patience) }()
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		if s.behind {
			hurry("this process cannot obey the orders that are in force now")
		}
		select {
		case err := <-left:
			return err
		case <-stop:
			signal.Reset(os.Interrupt, syscall.SIGTERM)
			hurry("a signal asks for it")
		case <-tick.C:
			// Where to listen does not matter any more.
			s.takeUp(func(o *merlon.Orders) error { return s.own.swap(s.gate, o) })
			s.lookAtSVID(time.Now())
		}
	}
}

// takeUp puts the orders of the file in force, if they are new. Orders that
// cannot be enforced are refused and the old ones stay.
func (s *server) takeUp(swap func(*merlon.Orders) error) {
	if !s.file.changed() {
		return
	}
	orders, err := s.file.read()
	if err == nil {
		err = swap(orders)
	}
	if err != nil {
		s.refused(err)
		return
	}
	s.orders, s.behind = orders, false
	s.log.Info("orders in force", "hash", orders.Hash)
	s.missBundles()
}

func (s *server) refused(err error) {
	s.behind = true
	s.log.Error("orders refused; the old ones stay in force", "file", s.file.name, "error", err)
}

// follow puts new orders in force. A gate cannot move: it listens where its
// first orders said, and refuses others rather than half obey them.
func follow(g *gate.Gate, w *own, first, orders *merlon.Orders) error {
	if was, is := first.Intent.Gateway, orders.Intent.Gateway; first.Place == merlon.Edge {
		switch {
		case is == nil:
			return errors.New("the intent has no gateway any more: stop this gate")
		case was.Listen != is.Listen:
			return fmt.Errorf("the gateway listens on %s and is to listen on %s: start this gate again, or send it SIGUSR2", was.Listen, is.Listen)
		}
	}
	return w.swap(g, orders)
}

// notify tells systemd, if it wants to know.
func (s *server) notify(state string) {
	if err := handover.Notify(os.Getenv("NOTIFY_SOCKET"), state); err != nil {
		s.log.Warn("the service manager could not be told", "state", state, "error", err)
	}
}
