package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"merlon"
)

// Hello is how a gate introduces itself.
type Hello struct {
	Place     merlon.Place
	Version   int               // of the Orders that the gate reads
	Protocols []merlon.Protocol // what the gate speaks
	// Address is the host:port where other gates reach this one over mutual
	// TLS. The gateway has none.
	Address string
	// Outbound is the host:port through which the gate's own service calls
	// others, for people to read.
	Outbound string
	// Isolated says that nothing but this gate reaches its service, and that its
	// service reaches nothing but this gate.
	Isolated bool
}

// Ack is a gate's answer to orders.
type Ack struct {
	Hash string // of the orders answered
	Err  string // why the gate refuses them and keeps the old ones; "" when they are enforced
	// Local is which processes of its host the gate then takes for its own
	// service, for people to read; "" at the edge.
	Local string
}

// maxPending bounds how many orders of one gate wait for an answer. Orders
// that fell out can no longer be acknowledged, which only makes Status more
// careful.
const maxPending = 8

// Session is a gate's side of its connection to the control plane. There may
// be many gates at one place.
type Session struct {
	c      *Control
	hello  Hello
	since  time.Time
	orders chan *merlon.Orders // holds the newest orders only

	// Guarded by c.mu.
	closed   bool
	unhook   func() bool
	pending  []*merlon.Orders // sent and not answered, oldest first
	newest   *merlon.Orders   // nil before the first
	acked    *merlon.Orders   // what the gate enforces, as far as it said so
	ackedAt  time.Time
	local    string                   // of the Ack
	refused  string                   // why newest was refused; "" when it was not
	enforced map[sentence]time.Time   // what acked says, since when without a break
	waiting  bool                     // newest is neither acknowledged nor refused yet
	speaks   map[merlon.Protocol]bool // of hello
}

// Connect opens a gate's session: it receives the orders in force at once and
// every later change, until ctx is done or Close is called.
func (c *Control) Connect(ctx context.Context, h Hello) (*Session, error) {
	if h.Version != merlon.OrdersVersion {
		return nil, fmt.Errorf("%v reads orders of version %d; this control plane writes version %d", h.Place, h.Version, merlon.OrdersVersion)
	}
	if len(h.Protocols) == 0 {
		return nil, fmt.Errorf("%v speaks no protocol", h.Place)
	}
	if h.Place != merlon.Edge {
		if _, _, err := net.SplitHostPort(h.Address); err != nil {
			return nil, fmt.Errorf("%v has no address for other gates: %w", h.Place, err)
		}
	}
	h.Protocols = slices.Clone(h.Protocols)
	s := &Session{
		c: c, hello: h, since: c.opt.Now(), orders: make(chan *merlon.Orders, 1),
		speaks: map[merlon.Protocol]bool{},
	}
	for _, p := range h.Protocols {
		s.speaks[p] = true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	if c.sessions[h.Place] == nil {
		c.sessions[h.Place] = map[*Session]struct{}{}
	}
	c.sessions[h.Place][s] = struct{}{}
	if err := c.reorder(h.Place); err != nil {
		s.end()
		return nil, err
	}
	s.unhook = context.AfterFunc(ctx, s.Close)
	return s, nil
}

// Orders is the stream of orders. A slow gate finds the newest there, never a
// queue. It is closed with the session.
func (s *Session) Orders() <-chan *merlon.Orders { return s.orders }

// Ack answers orders. An answer to orders that were never sent means nothing.
func (s *Session) Ack(a Ack) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	i := len(s.pending) - 1
	for i >= 0 && s.pending[i].Hash != a.Hash {
		i--
	}
	if i < 0 || s.closed {
		return
	}
	o := s.pending[i]
	s.pending = slices.Delete(s.pending, 0, i+1) // older ones were passed over
	switch {
	case a.Err == "":
		now := s.c.opt.Now()
		if s.acked == nil || s.acked.Content != o.Content {
			s.enforced = enforcedBy(o, s.enforced, now)
		}
		s.acked, s.ackedAt, s.local = o, now, a.Local
	case o == s.newest:
		s.refused = a.Err
	}
	if o == s.newest {
		s.settle()
	}
}

// settle says that nothing more is to be expected about newest.
func (s *Session) settle() {
	if !s.waiting {
		return
	}
	s.waiting = false
	if s.c.waiting--; s.c.waiting == 0 {
		close(s.c.quiet)
	}
}

// Close ends the session. Other gates are told that this one is gone.
func (s *Session) Close() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.closed {
		return
	}
	s.end()
	if !s.c.closed {
		// The peers keep an address that no longer answers when this fails,
		// and they deny or retry by themselves.
		_ = s.c.reorder(s.hello.Place)
	}
}

// end takes the session out of the control plane.
func (s *Session) end() {
	s.closed = true
	if s.unhook != nil {
		s.unhook()
	}
	delete(s.c.sessions[s.hello.Place], s)
	if len(s.c.sessions[s.hello.Place]) == 0 {
		delete(s.c.sessions, s.hello.Place)
		delete(s.c.current, s.hello.Place) // it is kept fresh for gates only
	}
	s.settle()
	close(s.orders)
}

// send puts orders in front of the gate, in place of what it has not taken
// yet.
func (s *Session) send(o *merlon.Orders) {
	if s.newest != nil && s.newest.Hash == o.Hash {
		return
	}
	s.newest, s.refused = o, ""
	if !s.waiting {
		s.waiting = true
		if s.c.waiting++; s.c.waiting == 1 {
			s.c.quiet = make(chan struct{})
		}
	}
	if len(s.pending) == maxPending {
		s.pending = slices.Delete(s.pending, 0, 1)
	}
	s.pending = append(s.pending, o)
	select {
	case <-s.orders:
	default:
	}
	s.orders <- o // never waits: the room was made above, and only here is it filled
}

// behind says why the gate does not enforce its newest orders, or "".
func (s *Session) behind() string {
	switch {
	case s.newest == nil, s.acked == s.newest:
		return ""
	case s.refused != "":
		return "refused: " + s.refused
	}
	return "has not acknowledged its orders"
}

// ErrClosed is the error of everything after Close.
var ErrClosed = errors.New("the control plane is closed")
