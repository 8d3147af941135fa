package upstream

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"merlon"
)

func TestPoolIsLIFO(t *testing.T) {
	t.Parallel()
	s := serve(t, echo)
	c := open(t, Config{MaxIdle: 2}, s.endpoint)
	a, b, d := get(t, c, false), get(t, c, false), get(t, c, false)
	for _, conn := range []*Conn{a, b, d} {
		if conn.Reused {
			t.Error("a new connection says it was reused")
		}
		if err := call(conn); err != nil {
			t.Fatal(err)
		}
	}
	a.State = "mine"
	d.Release(true)
	b.Release(true)
	a.Release(true) // beyond MaxIdle: closed
	if got := status(t, c, s.endpoint); got.Idle != 2 || got.Open != 2 || got.Active != 0 {
		t.Errorf("after three releases: %+v", got)
	}
	if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write on a connection beyond MaxIdle: %v", err)
	}
	first, second, third := get(t, c, false), get(t, c, true), get(t, c, false)
	if first != b || !first.Reused {
		t.Error("not the connection that was used last")
	}
	if second == d || second.Reused {
		t.Error("fresh gave a pooled connection")
	}
	if third != d {
		t.Error("not the connection that was used before")
	}
	b.Release(false)
	b.Release(true) // a second release does nothing
	if got := status(t, c, s.endpoint); got.Idle != 0 || got.Open != 2 || got.Active != 2 {
		t.Errorf("after a release to close: %+v", got)
	}
	second.Release(false)
	third.Release(false)
}

func TestLeastRequest(t *testing.T) {
	t.Parallel()
	var all []merlon.Endpoint
	for range 3 {
		all = append(all, serve(t, echo).endpoint)
	}
	c := open(t, Config{}, all...)
	count := map[string]int{}
	for range 300 { // all kept: each goes to the less busy of two
		conn := get(t, c, false)
		defer conn.Release(false)
		count[conn.Endpoint.Address]++
	}
	for _, e := range all {
		if n := count[e.Address]; n < 95 || n > 105 {
			t.Errorf("%s has %d of 300 calls, want about 100", e.Address, n)
		}
	}
}

func TestMaxConns(t *testing.T) {
	t.Parallel()
	s := serve(t, echo)
	c := open(t, Config{MaxConns: 2, MaxWaiting: 2, ConnectTimeout: time.Minute}, s.endpoint)
	a, b := get(t, c, false), get(t, c, false)
	got := make(chan *Conn, 2)
	var wg sync.WaitGroup
	waitFor := func(n int) {
		t.Helper()
		until(t, "the calls are in line", func() bool { return status(t, c, s.endpoint).Waiting == n })
	}
	wg.Go(func() { got <- get(t, c, false) })
	waitFor(1)
	wg.Go(func() { got <- get(t, c, true) })
	waitFor(2)

	_, err := c.get(context.Background(), false, merlon.Endpoint{})
	wantReason(t, err, ReasonOverloaded)

	a.Release(true) // to the first in line
	if conn := <-got; conn != a || !conn.Reused {
		t.Error("the first in line did not get the connection that was free")
	}
	b.Release(true) // the second wants a new one: it gets the place
	conn := <-got
	if conn == b || conn.Reused {
		t.Error("the second in line wanted a fresh connection")
	}
	wg.Wait()
	a.Release(true)
	conn.Release(true)
	// Full of idle ones: a fresh one takes the place of the oldest.
	conn = get(t, c, true)
	if st := status(t, c, s.endpoint); conn.Reused || st.Open != 2 || st.Idle != 1 {
		t.Errorf("reused %v, %+v", conn.Reused, st)
	}
	conn.Release(false)
}

func TestWaitIsBounded(t *testing.T) {
	t.Parallel()
	s := serve(t, echo)
	c := open(t, Config{MaxConns: 1, ConnectTimeout: 300 * time.Millisecond}, s.endpoint)
	conn := get(t, c, false)
	_, err := c.get(context.Background(), false, merlon.Endpoint{})
	wantReason(t, err, ReasonOverloaded)

	ctx, cancel := context.WithCancelCause(context.Background())
	cause := errors.New("client went away")
	cancel(cause)
	_, err = c.get(ctx, false, merlon.Endpoint{})
	wantReason(t, err, ReasonCancelled)
	if !errors.Is(err, cause) {
		t.Errorf("error %v hides the cause", err)
	}
	conn.Release(true)
	if st := status(t, c, s.endpoint); st.Active != 0 || st.Open != 1 || st.Waiting != 0 {
		t.Errorf("calls that waited in vain left a trace: %+v", st)
	}
	get(t, c, false).Release(true)
}

// A call that gives up while it is granted a connection must not lose it.
func TestGrantIsNeverLost(t *testing.T) {
	t.Parallel()
	s := serve(t, echo)
	c := open(t, Config{MaxConns: 1}, s.endpoint)
	conn := get(t, c, false)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	ep := c.set.Load().all[0]
	for range 100 { // select finds both ready and takes either
		w := &waiter{got: make(chan grant, 1)}
		w.got <- grant{conn: conn}
		if got, err := ep.wait(ctx, w); err != nil || got != conn {
			t.Fatalf("lost: %v", err)
		}
	}
	conn.Release(true)
}

func TestUpdateKeepsWhatStays(t *testing.T) {
	t.Parallel()
	stays, goes := serve(t, echo), serve(t, echo)
	c := open(t, Config{}, stays.endpoint, goes.endpoint)
	conns := map[string][]*Conn{}
	for len(conns[stays.endpoint.Address]) < 2 || len(conns[goes.endpoint.Address]) < 2 {
		conn := get(t, c, true)
		conns[conn.Endpoint.Address] = append(conns[conn.Endpoint.Address], conn)
	}
	kept, idle := conns[stays.endpoint.Address][0], conns[goes.endpoint.Address][0]
	busy := conns[goes.endpoint.Address][1]
	kept.Release(true)
	idle.Release(true)
	c.Update([]merlon.Endpoint{stays.endpoint, stays.endpoint})
	if n := len(c.Status()); n != 1 {
		t.Errorf("%d endpoints after the update, want 1", n)
	}
	if _, err := idle.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("idle connection of an endpoint that is gone: %v", err)
	}
	if err := call(busy); err != nil {
		t.Errorf("connection in use of an endpoint that is gone: %v", err)
	}
	busy.Release(true)
	if _, err := busy.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after its release: %v", err)
	}
	if again := get(t, c, false); again != kept {
		t.Error("the endpoint that stays lost its pool")
	} else {
		again.Release(true)
	}
	c.Update(nil)
	_, err := c.get(context.Background(), false, merlon.Endpoint{})
	wantReason(t, err, ReasonNoEndpoint)
}

func TestClose(t *testing.T) {
	t.Parallel()
	s := serve(t, echo)
	c := open(t, Config{MaxConns: 1, ConnectTimeout: time.Minute}, s.endpoint)
	busy := get(t, c, false)
	failed := make(chan error)
	go func() {
		_, err := c.get(context.Background(), false, merlon.Endpoint{})
		failed <- err
	}()
	until(t, "in line", func() bool { return status(t, c, s.endpoint).Waiting == 1 })
	c.Close()
	wantReason(t, <-failed, ReasonClosed)
	if err := call(busy); err != nil {
		t.Errorf("a connection in use was cut: %v", err)
	}
	busy.Release(true)
	if _, err := busy.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after its release: %v", err)
	}
	c.Update([]merlon.Endpoint{s.endpoint})
	_, err := c.get(context.Background(), false, merlon.Endpoint{})
	wantReason(t, err, ReasonClosed)
	c.Close()
}

func TestSweepIdleAndAge(t *testing.T) {
	t.Parallel()
	s, clk := serve(t, echo), newClock()
	c := open(t, Config{Now: clk.now, IdleTimeout: time.Minute, MaxAge: time.Hour}, s.endpoint)
	old, young := get(t, c, false), get(t, c, false)
	old.Release(true)
	clk.add(30 * time.Second)
	young.Release(true)
	clk.add(30 * time.Second)
	c.sweep()
	if st := status(t, c, s.endpoint); st.Idle != 1 || st.Open != 1 {
		t.Errorf("after IdleTimeout: %+v", st)
	}
	conn := get(t, c, false)
	if conn != young {
		t.Fatal("the wrong connection was swept")
	}
	clk.add(time.Hour)
	conn.Release(true)
	if st := status(t, c, s.endpoint); st.Idle != 0 || st.Open != 0 {
		t.Errorf("released after MaxAge: %+v", st)
	}
}

// Bytes that come on an idle connection would be the answer to the next call,
// which may be someone else's.
func TestSweepBroken(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" || runtime.GOOS == "plan9" {
		t.Skip("idle connections cannot be looked at here")
	}
	for name, misbehave := range map[string]func(net.Conn){
		"closed": func(nc net.Conn) { nc.Close() },
		"reset":  func(nc net.Conn) { nc.(*net.TCPConn).SetLinger(0); nc.Close() },
		"bytes":  func(nc net.Conn) { nc.Write([]byte("HTTP/1.1 200 OK\r\n\r\n")) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad := make(chan struct{}, 1)
			s := serve(t, func(nc net.Conn) {
				io.ReadFull(nc, make([]byte, 1))
				nc.Write([]byte("x"))
				select {
				case <-bad:
					misbehave(nc)
				default:
				}
				io.Copy(io.Discard, nc)
			})
			clk := newClock()
			c := open(t, Config{Now: clk.now}, s.endpoint)
			var conns []*Conn
			for range 20 {
				conns = append(conns, get(t, c, true))
			}
			for i, conn := range conns {
				if i == 7 {
					bad <- struct{}{}
				}
				if err := call(conn); err != nil {
					t.Fatal(err)
				}
			}
			for _, conn := range conns {
				conn.Release(true)
			}
			clk.add(time.Second)
			until(t, "the broken connection is dropped", func() bool {
				c.sweep()
				return status(t, c, s.endpoint).Idle == 19
			})
			c.sweep()
			if st := status(t, c, s.endpoint); st.Idle != 19 || st.Open != 19 {
				t.Errorf("%+v", st)
			}
			if slices.Contains(c.set.Load().all[0].idle, conns[7]) {
				t.Error("another connection was dropped")
			}
		})
	}
}

// A server that starts anew kills the whole pool. The first call that notices
// clears it, so that it costs one call and not one for each connection.
func TestStaleClearsOlder(t *testing.T) {
	t.Parallel()
	s, clk := serve(t, echo), newClock()
	c := open(t, Config{Now: clk.now}, s.endpoint)
	var conns []*Conn
	for range 5 {
		conns = append(conns, get(t, c, true))
	}
	for _, conn := range conns {
		if err := call(conn); err != nil {
			t.Fatal(err)
		}
		conn.Release(true)
		clk.add(time.Millisecond)
	}
	conn := get(t, c, false) // it dies between the look and the request
	s.hangUp()
	if err := call(conn); err == nil {
		t.Fatal("a call on a closed connection succeeded")
	}
	conn.Failed(Stale)
	conn.Release(false)
	if st := status(t, c, s.endpoint); st.Idle != 0 || st.Open != 0 {
		t.Errorf("after a stale connection: %+v", st)
	}
	conn = get(t, c, true)
	if err := call(conn); err != nil {
		t.Errorf("the retry on a fresh connection: %v", err)
	}
	conn.Release(true)
	// A client that provokes this again and again does not keep the pool empty.
	other := get(t, c, true)
	clk.add(time.Millisecond)
	other.Release(true)
	conn = get(t, c, false)
	conn.Failed(Stale)
	conn.Release(false)
	if st := status(t, c, s.endpoint); st.Idle != 1 {
		t.Errorf("cleared twice in a second: %+v", st)
	}
	if f := c.set.Load().all[0].fails.Load(); f != 0 {
		t.Errorf("stale connections count as %d failures", f)
	}
}

// A connection that has ended, or on which bytes lie that nobody asked for, is
// never handed out: they would be somebody's answer.
func TestDisturbedIsNotHandedOut(t *testing.T) {
	t.Parallel()
	for name, disturb := range map[string]func(net.Conn){
		"closed": func(peer net.Conn) { peer.Close() },
		"reset":  func(peer net.Conn) { peer.(*net.TCPConn).SetLinger(0); peer.Close() },
		"bytes":  func(peer net.Conn) { io.WriteString(peer, "HTTP/1.1 200 OK\r\n\r\n") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			c := open(t, Config{after: func(time.Duration) <-chan time.Time { return nil }}, merlon.Endpoint{Address: l.Addr().String()})
			first := get(t, c, false)
			peer, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer peer.Close()
			first.Release(true)
			disturb(peer)
			until(t, "the disturbance arrives", func() bool { return first.peeker.readable() })
			second := get(t, c, false)
			defer second.Release(false)
			if second.Reused || second.Conn == first.Conn {
				t.Error("the disturbed connection was handed out")
			}
			if st := status(t, c, merlon.Endpoint{Address: l.Addr().String()}); st.Open != 1 {
				t.Errorf("%+v", st)
			}
		})
	}
}

func TestNoAllocs(t *testing.T) {
	var all []merlon.Endpoint
	for range 4 {
		all = append(all, serve(t, echo).endpoint)
	}
	c := open(t, Config{RetryPercent: 20}, all...)
	for range 40 {
		conn := get(t, c, true)
		defer conn.Release(true)
	}
	for range 40 {
		get(t, c, true).Release(true)
	}
	ctx := context.Background()
	if n := testing.AllocsPerRun(1000, func() {
		conn, err := c.get(ctx, false, merlon.Endpoint{})
		if err != nil || !conn.Reused {
			t.Fatal("not a pooled connection", err)
		}
		conn.Succeeded()
		conn.Release(true)
		c.MayRetry()
	}); n != 0 {
		t.Errorf("Get and Release of a pooled connection allocate %v times", n)
	}
}
