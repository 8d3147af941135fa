package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"merlon"
)

// change is what an intent needs and what does not run yet. It is brought up
// before the intent is recorded, beside what runs; from then on nothing can
// refuse the intent any more, and only then is anything taken down.
type change struct {
	gates    map[merlon.Place]*running
	programs []*program // built and started
	later    []*program // built; each needs a place that another program has until it is stopped
}

// leaveTime is how long what is not needed any more may finish its calls.
const leaveTime = 30 * time.Second

// prepare brings up what an intent needs, before it is committed. On an error
// everything is as it was.
func (s *system) prepare(ctx context.Context, in *merlon.Intent) (err error) {
	if in.TrustDomain != s.trustDomain {
		return fmt.Errorf("the trust domain cannot change from %q to %q: every identity would change under the running services; use another state directory",
			s.trustDomain, in.TrustDomain)
	}
	if err := errors.Join(checkWorkloads(in, s.who.opt), s.checkNodes(in)); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return errors.New("merlon is stopping")
	}
	s.next = &change{gates: map[merlon.Place]*running{}}
	s.who.expect(in)
	defer func() {
		if err != nil {
			s.giveUp()
		}
	}()
	for _, place := range places(in) {
		if have := s.gates[place]; have != nil && have.fits(in, s.isolates(in.Service(place.Service))) {
			continue
		}
		r, err := s.startGate(in, place)
		if err != nil {
			return err
		}
		s.next.gates[place] = r
	}
	return s.preparePrograms(ctx, in)
}

// fits reports whether a gate can stay where it is.
func (r *running) fits(in *merlon.Intent, isolated bool) bool {
	if r.place == merlon.Edge {
		return r.in == in.Gateway.Listen
	}
	return isolated == (r.ns != nil)
}

// refused takes down what was prepared for an intent.
func (s *system) refused(*merlon.Intent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.giveUp()
}

// giveUp needs s.mu.
func (s *system) giveUp() {
	next := s.next
	s.next = nil
	s.who.expect(nil)
	if next == nil {
		return
	}
	var wg sync.WaitGroup
	for _, p := range next.programs {
		wg.Go(p.stop)
	}
	for place, r := range next.gates {
		var before *local
		if have := s.gates[place]; have != nil {
			before = have.local
		}
		s.who.join(place.Service, before)
		wg.Go(func() { r.drain(context.Background(), time.Second) })
	}
	wg.Wait()
	for _, r := range next.gates {
		r.ns.Close()
	}
}

// committed completes the change to an intent that is in force now.
func (s *system) committed(in *merlon.Intent) merlon.Diagnostics {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.next
	s.next = nil
	if next == nil {
		return nil
	}
	for place, r := range next.gates {
		if place == merlon.Edge {
			r.serve()
		}
		if old := s.gates[place]; old != nil {
			s.leave(old, nil)
		}
		s.gates[place] = r
	}
	for _, p := range next.programs {
		switch old := s.started[p.service.Name]; {
		case old == nil:
		case len(next.later) > 0:
			old.stop() // its place may be wanted
		default:
			s.leave(nil, old)
		}
		s.started[p.service.Name] = p
	}
	problems := s.replace(next.later)
	keep := places(in)
	for name, p := range s.started {
		if svc := in.Service(name); svc == nil || svc.Run == nil {
			delete(s.started, name)
			gate := s.gates[p.place()]
			if svc == nil {
				delete(s.gates, p.place())
			} else {
				gate = nil
			}
			s.leave(gate, p)
		}
	}
	for place, r := range s.gates {
		if !slices.Contains(keep, place) {
			delete(s.gates, place)
			s.leave(r, nil)
		}
	}
	return problems
}

// leave lets a gate finish its calls, and then stops the program behind it.
func (s *system) leave(r *running, p *program) {
	s.leaving.Go(func() {
		if r != nil {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			defer context.AfterFunc(s.ctx, func() { time.AfterFunc(drainTime, cancel) })()
			r.drain(ctx, leaveTime)
		}
		if p != nil {
			p.stop()
		}
		if r != nil {
			r.ns.Close()
		}
	})
}
