package upstream

import (
	"context"
	"math"
	"net"
	"slices"
)

// Mux is one connection that carries many calls at once, each in a stream that
// is a net.Conn of its own, as HTTP/2 does (Config.Mux). An endpoint opens streams
// of the connection that it has had for longest, as long as that takes more: so
// those not needed fall idle. Fresh connections are none of a call's business
// here, since one that has failed is known to all.
type Mux interface {
	// Open is a stream for one call, or nil when there is no room for another at
	// present. Closing it ends the call.
	Open() net.Conn
	// Over reports that the connection takes no more calls.
	Over() bool
	// Close ends the connection. It does not block.
	Close()
}

// streamsPerMux is how many calls one connection is guessed to carry, before it
// is known.
const streamsPerMux = 100

// shared is a Mux of an endpoint. Its fields are guarded by ep.mu.
type shared struct {
	Mux
	first *Conn // what was dialled; its since is never while a stream is lent
	used  bool  // a call had a stream
	lent  int   // streams
	spent bool  // no more calls are to be had
}

// stream lends a stream, old or of a new connection.
func (ep *endpoint) stream(ctx context.Context, t *trial) (*Conn, *Error) {
	conn, w, err := ep.join(*t)
	if w != nil {
		conn, err = ep.wait(ctx, w)
	}
	if conn != nil || err != nil {
		return conn, err
	}
	first, err := ep.dial(ctx, t)
	if err != nil {
		return nil, err
	}
	return ep.share(first, t)
}

// join lends a stream, or reserves a place for a new connection (all results
// nil), or puts the call in line for one that is being made.
func (ep *endpoint) join(t trial) (*Conn, *waiter, *Error) {
	ep.mu.Lock()
	defer ep.mu.Unlock()
	if ep.retired {
		return nil, nil, ep.c.fail(reasonRetired, ep.Address, nil)
	}
	if t == none {
		if conn := ep.lend(); conn != nil {
			return conn, nil, nil
		}
	}
	switch {
	case ep.open < ep.c.cfg.MaxConns && (t != none || ep.dialing*streamsPerMux <= len(ep.waiting)):
		ep.open++
		ep.dialing++
		return nil, nil, nil
	case len(ep.waiting) >= ep.c.cfg.MaxWaiting:
		return nil, nil, ep.c.fail(ReasonOverloaded, ep.Address, errFull)
	}
	w := &waiter{got: make(chan grant, 1)}
	ep.waiting = append(ep.waiting, w)
	return nil, w, nil
}

// lend lends a stream of a connection that is there, or nil. ep.mu is held.
func (ep *endpoint) lend() *Conn {
	ep.spend(func(s *shared) bool { return s.Over() || ep.tooOld(s) })
	for _, s := range ep.muxes {
		if nc := s.Open(); nc != nil {
			return ep.loan(s, nc)
		}
	}
	return nil
}

func (ep *endpoint) tooOld(s *shared) bool {
	return ep.c.now()-s.first.born >= int64(ep.c.cfg.MaxAge)
}

// loan makes the loan of a stream. ep.mu is held.
func (ep *endpoint) loan(s *shared, nc net.Conn) *Conn {
	conn := &Conn{Conn: nc, Reused: s.used, Endpoint: ep.Endpoint, State: s.first.State, ep: ep, sock: s.first.sock, born: s.first.born, mux: s, lent: true}
	s.lent++
	s.used, s.first.since = true, math.MaxInt64
	return conn
}

// share makes a connection that was dialled one for many calls, the first of
// which is the caller's.
func (ep *endpoint) share(first *Conn, t *trial) (*Conn, *Error) {
	mux, err := ep.c.cfg.Mux(first, ep.changed)
	if err != nil {
		first.closeNow()
		return nil, ep.undialled(t, err)
	}
	ep.mu.Lock()
	s := &shared{Mux: mux, first: first}
	nc := s.Open()
	if nc == nil {
		ep.mu.Unlock()
		mux.Close()
		return nil, ep.undialled(t, errNoStream)
	}
	ep.dialing--
	conn := ep.loan(s, nc)
	if s.spent = ep.retired; !s.spent {
		ep.muxes = append(ep.muxes, s)
	}
	ep.serve()
	ep.mu.Unlock()
	return conn, nil
}

// giveUp gives up the place of a connection that could not be made. If nobody
// else is making one, all in line learn of it: each would meet the same.
func (ep *endpoint) giveUp(err *Error) {
	ep.mu.Lock()
	defer ep.mu.Unlock()
	ep.open--
	ep.dialing--
	if (err.Reason == ReasonConnect || err.Reason == ReasonUnready) && ep.dialing == 0 {
		for len(ep.waiting) > 0 {
			ep.next().got <- grant{err: err}
		}
	}
	ep.serve()
}

// changed looks again at what the connections take.
func (ep *endpoint) changed() {
	ep.mu.Lock()
	defer ep.mu.Unlock()
	ep.serve()
}

// serve gives those in line what there is: streams, or leave to make a
// connection. ep.mu is held.
func (ep *endpoint) serve() {
	for len(ep.waiting) > 0 {
		conn := ep.lend()
		switch {
		case conn != nil:
		case ep.open < ep.c.cfg.MaxConns && ep.dialing*streamsPerMux < len(ep.waiting):
			ep.open++
			ep.dialing++
		default:
			return
		}
		ep.next().got <- grant{conn: conn}
	}
}

// hangUp ends the loan of a stream.
func (ep *endpoint) hangUp(conn *Conn) {
	s := conn.mux
	ep.mu.Lock()
	lent, t := conn.lent, conn.trial
	conn.lent, conn.trial = false, none
	ep.mu.Unlock()
	if !lent {
		return
	}
	conn.Conn.Close()
	ep.active.Add(-1)
	ep.unprobe(t)
	ep.mu.Lock()
	defer ep.mu.Unlock()
	if s.lent--; s.lent == 0 {
		s.first.since = ep.c.now()
		if s.spent {
			ep.end(s)
		}
	}
	ep.serve()
}

// spend lets no more calls have connections that unwanted picks; each ends with
// its last. ep.mu is held.
func (ep *endpoint) spend(unwanted func(*shared) bool) {
	ep.muxes = slices.DeleteFunc(ep.muxes, func(s *shared) bool {
		if !unwanted(s) {
			return false
		}
		s.spent = true
		if s.lent == 0 {
			ep.end(s)
		}
		return true
	})
}

// end closes a connection without calls. ep.mu is held.
func (ep *endpoint) end(s *shared) {
	ep.open--
	s.Close()
}
