package upstream

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"merlon"
)

// many makes of each connection one for several calls, each of which is a
// handle of the connection.
type many struct {
	mu    sync.Mutex
	room  int
	muxes []*testMux
	fail  error
}

type testMux struct {
	m       *many
	first   *Conn
	changed func()
	lent    int
	over    bool
	closed  bool
}

type testStream struct {
	net.Conn
	mux *testMux
}

func (m *many) make(first *Conn, changed func()) (Mux, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return nil, m.fail
	}
	mux := &testMux{m: m, first: first, changed: changed}
	m.muxes = append(m.muxes, mux)
	return mux, nil
}

func (x *testMux) Open() net.Conn {
	x.m.mu.Lock()
	defer x.m.mu.Unlock()
	if x.over || x.lent >= x.m.room {
		return nil
	}
	x.lent++
	return &testStream{x.first.Conn, x}
}

func (x *testMux) Over() bool {
	x.m.mu.Lock()
	defer x.m.mu.Unlock()
	return x.over
}

func (x *testMux) Close() {
	x.m.mu.Lock()
	defer x.m.mu.Unlock()
	x.closed = true
	x.first.Socket().Close()
}

func (s *testStream) Close() error {
	s.mux.m.mu.Lock()
	defer s.mux.m.mu.Unlock()
	s.mux.lent--
	return nil
}

// end says that a connection takes no more calls.
func (m *many) end(i int) {
	m.mu.Lock()
	x := m.muxes[i]
	x.over = true
	m.mu.Unlock()
	x.changed()
}

// closed counts the connections that are.
func (m *many) closed() (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, x := range m.muxes {
		if x.closed {
			n++
		}
	}
	return n
}

// TestMuxShares: calls share connections up to the room of each; the first are
// filled first, so the others fall idle and are closed.
func TestMuxShares(t *testing.T) {
	t.Parallel()
	s, now := serve(t, echo), newClock()
	m := &many{room: 3}
	c := open(t, Config{Mux: m.make, Now: now.now, IdleTimeout: time.Minute}, s.endpoint)
	var conns []*Conn
	for i := range 7 {
		conn := get(t, c, i%2 == 0) // fresh is no wish that it could have
		if conn.Reused != (i%3 != 0) {
			t.Errorf("call %d: reused %v", i, conn.Reused)
		}
		conns = append(conns, conn)
	}
	if got := status(t, c, s.endpoint); got.Open != 3 || got.Idle != 0 || got.Active != 7 {
		t.Errorf("%+v", got)
	}
	if err := call(conns[4]); err != nil {
		t.Error(err)
	}
	for _, conn := range conns[1:] {
		conn.Release(true)
		conn.Release(false) // does nothing
	}
	if got := status(t, c, s.endpoint); got.Open != 3 || got.Idle != 2 || got.Active != 1 {
		t.Errorf("%+v", got)
	}
	if again := get(t, c, false); again.Socket() != conns[0].Socket() {
		t.Error("a call went to a connection that could fall idle")
	} else {
		again.Release(true)
	}
	now.add(2 * time.Minute)
	c.sweep()
	if got := status(t, c, s.endpoint); got.Open != 1 || m.closed() != 2 {
		t.Errorf("%+v, %d closed", got, m.closed())
	}
	now.add(2 * time.Hour) // MaxAge: no more calls, and the last may end
	c.sweep()
	if m.closed() != 2 {
		t.Error("a call was cut off")
	}
	get(t, c, false).Release(true)
	if conns[0].Release(true); m.closed() != 3 {
		t.Errorf("%d closed", m.closed())
	}
	if got := status(t, c, s.endpoint); got.Open != 1 {
		t.Errorf("%+v", got)
	}
}

// TestMuxWaits: calls that come while a connection is made wait for it, and do
// not make one each.
func TestMuxWaits(t *testing.T) {
	t.Parallel()
	s := serve(t, echo)
	m := &many{room: 100}
	c := open(t, Config{Mux: m.make}, s.endpoint)
	conns := make([]*Conn, 300)
	var all sync.WaitGroup
	for i := range conns {
		all.Go(func() { conns[i] = get(t, c, false) })
	}
	all.Wait()
	// At worst each fourth connection was ready just as the next call came.
	if got := status(t, c, s.endpoint); got.Open < 3 || got.Open > 6 || got.Active != 300 || got.Waiting != 0 {
		t.Errorf("%+v", got)
	}
	for _, conn := range conns {
		conn.Release(true)
	}
}

// TestMuxFull: without room and places calls wait in line, for a stream or for
// the place of a connection that has gone.
func TestMuxFull(t *testing.T) {
	t.Parallel()
	s := serve(t, echo)
	m := &many{room: 1}
	c := open(t, Config{Mux: m.make, MaxConns: 1, MaxWaiting: 1, ConnectTimeout: time.Minute}, s.endpoint)
	for _, free := range []func(*Conn){
		func(conn *Conn) { conn.Release(true) },
		func(conn *Conn) { m.end(0); conn.Release(true) },
		func(*Conn) { m.mu.Lock(); m.room = 2; x := m.muxes[len(m.muxes)-1]; m.mu.Unlock(); x.changed() },
	} {
		conn := get(t, c, false)
		got := make(chan *Conn)
		go func() { got <- get(t, c, false) }()
		until(t, "a call in line", func() bool { return status(t, c, s.endpoint).Waiting == 1 })
		_, err := c.get(context.Background(), false, merlon.Endpoint{})
		wantReason(t, err, ReasonOverloaded)
		free(conn)
		(<-got).Release(true)
		conn.Release(true)
	}
	if got := status(t, c, s.endpoint); got.Open != 1 || got.Active != 0 || m.closed() != 1 {
		t.Errorf("%+v, %d closed", got, m.closed())
	}
}

// TestMuxFails: when no connection can be made, all that wait for it learn of
// it at once, and the place is free.
func TestMuxFails(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]*many{"not HTTP/2": {fail: errors.New("no")}, "no room": {room: 0}} {
		s := serve(t, echo)
		c := open(t, Config{Mux: test.make}, s.endpoint)
		for range 3 {
			_, err := c.get(context.Background(), false, merlon.Endpoint{})
			wantReason(t, err, ReasonConnect)
		}
		if got := status(t, c, s.endpoint); got.Open != 0 || got.Active != 0 {
			t.Errorf("%s: %+v", name, got)
		}
	}
	gone := refused(t)
	c := open(t, Config{Mux: (&many{room: 9}).make}, gone)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			_, err := c.get(context.Background(), false, merlon.Endpoint{})
			wantReason(t, err, ReasonConnect)
		})
	}
	all.Wait()
	if got := status(t, c, gone); got.Open != 0 || got.Active != 0 || got.Waiting != 0 {
		t.Errorf("%+v", got)
	}
}

// TestMuxEnds: a connection that is over takes no more calls and is closed after
// its last; so are those of an endpoint that has gone.
func TestMuxEnds(t *testing.T) {
	t.Parallel()
	s := serve(t, echo)
	m := &many{room: 9}
	c := open(t, Config{Mux: m.make}, s.endpoint)
	one, two := get(t, c, false), get(t, c, false)
	m.end(0)
	three := get(t, c, false)
	if three.Socket() == one.Socket() || three.Reused {
		t.Error("a call on a connection that is over")
	}
	one.Release(true)
	if m.closed() != 0 {
		t.Error("a call was cut off")
	}
	if two.Release(true); m.closed() != 1 {
		t.Error("the connection is left")
	}
	c.Update(nil)
	if m.closed() != 1 {
		t.Error("a call was cut off")
	}
	if three.Release(true); m.closed() != 2 {
		t.Error("the connection is left")
	}
}

// TestMuxEjected: an ejected endpoint has to show that it can be connected to.
func TestMuxEjected(t *testing.T) {
	t.Parallel()
	a, b, now := serve(t, echo), serve(t, echo), newClock()
	m := &many{room: 100}
	c := open(t, Config{Mux: m.make, Now: now.now, EjectAfter: 1, EjectBase: time.Second}, a.endpoint, b.endpoint)
	conn := get(t, c, false)
	bad := conn.Endpoint
	conn.Failed(Refused)
	if got := status(t, c, bad); got.Ejected != 0 {
		t.Error("a refusal was counted")
	}
	conn.Failed(Reset)
	if got := status(t, c, bad); got.Ejected == 0 {
		t.Fatal("not ejected")
	}
	if conn.Release(true); m.closed() != 1 {
		t.Error("the connection of an ejected endpoint is left")
	}
	now.add(2 * time.Second)
	probe := get(t, c, false)
	if probe.Endpoint != bad || probe.Reused {
		t.Errorf("no probe of the endpoint: %+v", probe.Endpoint)
	}
	probe.Succeeded()
	if got := status(t, c, bad); got.Ejected != 0 {
		t.Error("still ejected")
	}
	probe.Release(true)
}
