package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"merlon"
	"merlon/control"
	"merlon/gate"
	"merlon/internal/netns"
	"merlon/internal/sockowner"
)

// running is one gate of the system.
type running struct {
	place     merlon.Place
	gate      *gate.Gate
	session   *control.Session
	in, out   string // addresses; for the edge, in is where clients come
	listeners map[gate.Position]net.Listener
	local     *local
	ns        *netns.Namespace      // of the service; nil when it is not isolated
	intent    func() *merlon.Intent // in force
	stop      context.CancelFunc
	finished  chan struct{}
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

// startGate starts the gate of a place and connects it to control. A gate
// beside a service serves at once, by the intent that is in force; the edge
// has its address, but accepts nobody before the intent that names it is.
func (s *system) startGate(in *merlon.Intent, place merlon.Place) (_ *running, err error) {
	ctx, stop := context.WithCancel(context.Background())
	r := &running{place: place, stop: stop, finished: make(chan struct{}), listeners: map[gate.Position]net.Listener{}, intent: s.control.Intent}
	if s.isolates(in.Service(place.Service)) {
		if r.ns, err = netns.New("the network namespace of " + place.Service); err != nil {
			return nil, err
		}
	}
	r.local = newLocal(s.who.opt, r.ns)
	defer func() {
		if err != nil {
			stop()
			defer r.ns.Close()
			for _, l := range r.listeners {
				l.Close()
			}
			if r.gate != nil {
				r.gate.Close()
			}
		}
	}()
	if err := s.listen(r, in); err != nil {
		return nil, err
	}
	source, err := s.authority.Source(ctx, in.SPIFFEID(place.Workload()), s.log)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", place, err)
	}
	var own func(net.Conn) error
	if sockowner.Supported() {
		own = r.local.own
	}
	r.gate, err = gate.New(gate.Config{
		Place:           place,
		TrustDomain:     in.TrustDomain,
		Source:          source,
		RootsOf:         s.partners.RootsOf,
		Records:         s.records,
		Log:             s.log,
		Own:             own,
		Listen:          func(_, address string) (net.Listener, error) { return r.ns.Listen(address) },
		DialOwn:         r.ns.Dial,
		EdgeCertificate: s.edgeCertificate,
	})
	if err != nil {
		return nil, err
	}
	r.session, err = s.control.Connect(ctx, control.Hello{
		Place: place, Version: merlon.OrdersVersion, Protocols: gate.Protocols(), Address: r.in, Outbound: r.out, Isolated: r.ns != nil,
	})
	if err != nil {
		return nil, fmt.Errorf("%v: %w", place, err)
	}
	s.who.join(place.Service, r.local)
	go r.obey()
	if place != merlon.Edge {
		r.serve()
	}
	return r, nil
}

// listen takes the addresses of a gate.
func (s *system) listen(r *running, in *merlon.Intent) error {
	if r.place == merlon.Edge {
		address := in.Gateway.Listen
		l, err := patiently(s.ctx, func() (net.Listener, error) { return net.Listen("tcp", address) })
		if err != nil {
			if have := s.gates[merlon.Edge]; have != nil && samePort(have.in, address) {
				return fmt.Errorf("%v: the gateway cannot move from %s to %s while it serves: %w\nhint: choose another port, or stop merlon up and start it again",
					in.Gateway.Pos, have.in, address, err)
			}
			return fmt.Errorf("%v: the gateway cannot listen on %s: %w\nhint: stop what uses the port, or choose another at gateway.listen", in.Gateway.Pos, address, err)
		}
		r.listeners[gate.AtEdge], r.in = l, address
		return nil
	}
	for at, name := range map[gate.Position]string{gate.Inbound: r.place.Service + "/in", gate.Outbound: r.place.Service + "/out"} {
		var where *netns.Namespace // other gates come from the host, the service's own calls from where it is
		if at == gate.Outbound {
			where = r.ns
		}
		l, moved, err := s.ports.listen(where, name)
		if err != nil {
			return fmt.Errorf("%v: %w", r.place, err)
		}
		if moved != "" && at == gate.Outbound {
			s.say("%v: %s is taken, calls of %s leave through %s from now on", r.place, moved, r.place.Service, l.Addr())
		}
		r.listeners[at] = l
	}
	r.in, r.out = r.listeners[gate.Inbound].Addr().String(), r.listeners[gate.Outbound].Addr().String()
	return nil
}

// patiently tries to listen for as long as a program that was just killed may
// need to let go of its port.
func patiently(ctx context.Context, listen func() (net.Listener, error)) (net.Listener, error) {
	const tries = 20
	for i := 1; ; i++ {
		l, err := listen()
		if err == nil || i == tries {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func samePort(a, b string) bool {
	_, p, err := net.SplitHostPort(a)
	_, q, err2 := net.SplitHostPort(b)
	return err == nil && err2 == nil && p == q
}

// serve begins to accept calls.
func (r *running) serve() {
	for at, l := range r.listeners {
		go r.gate.Serve(l, at)
	}
}

// obey puts orders in force as they come and answers for them.
func (r *running) obey() {
	defer close(r.finished)
	for o := range r.session.Orders() {
		r.session.Ack(r.take(o))
	}
}

// take puts orders in force.
func (r *running) take(o *merlon.Orders) control.Ack {
	ack := control.Ack{Hash: o.Hash}
	var svc *merlon.Service
	if in := r.intent(); in != nil {
		svc = in.Service(r.place.Service)
	}
	// First who may call, then what: a gate is never open to more processes
	// than the intent of its orders says.
	rule, err := r.local.obey(svc)
	if err == nil {
		err = r.gate.Swap(o)
	}
	if err != nil {
		ack.Err = err.Error()
	} else if r.place != merlon.Edge {
		ack.Local = rule.String()
	}
	return ack
}

// drain takes a gate out of service within d, or sooner when ctx ends.
func (r *running) drain(ctx context.Context, d time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	r.gate.Drain(ctx)
	for _, l := range r.listeners {
		l.Close() // one that never served is not the gate's yet
	}
	r.session.Close()
	<-r.finished
	r.stop()
}
