package upstream

import (
	"context"
	"net"
	"testing"
	"time"

	"merlon"
)

// fill makes one pooled connection to each endpoint.
func fill(t *testing.T, c *Cluster) {
	t.Helper()
	for _, ep := range c.set.Load().all {
		conn, err := ep.get(context.Background(), true, none)
		if err != nil {
			t.Fatal(err)
		}
		conn.Release(true)
	}
}

// lend takes a connection of one endpoint, as if it had been chosen.
func lend(t *testing.T, c *Cluster, e merlon.Endpoint) *Conn {
	t.Helper()
	conn, err := c.set.Load().find(e).get(context.Background(), false, none)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestRefusedGoesElsewhere(t *testing.T) {
	t.Parallel()
	s, dead, clk := serve(t, echo), refused(t), newClock()
	c := open(t, Config{Now: clk.now}, s.endpoint, dead)
	for range 100 { // no call fails, before the ejection and after
		conn := get(t, c, true)
		if conn.Endpoint != s.endpoint {
			t.Fatal("connected to nobody")
		}
		conn.Succeeded()
		conn.Release(false)
	}
	if st := status(t, c, dead); st.Ejected == 0 {
		t.Errorf("an endpoint that refuses is not ejected: %+v", st)
	}
	if st := status(t, c, s.endpoint); st.Ejected != 0 {
		t.Errorf("the good endpoint is ejected: %+v", st)
	}
}

// failing makes n calls to e fail.
func failing(t *testing.T, c *Cluster, e merlon.Endpoint, n int) {
	t.Helper()
	for range n {
		conn := lend(t, c, e)
		conn.Failed(Gateway)
		conn.Failed(Gateway) // counts once
		conn.Release(true)
	}
}

// only checks that calls go to e alone.
func only(t *testing.T, c *Cluster, e merlon.Endpoint) {
	t.Helper()
	for range 20 {
		conn := get(t, c, false)
		if conn.Endpoint != e {
			t.Fatal("a call went to an ejected endpoint")
		}
		conn.Release(true)
	}
}

func TestEjectionLife(t *testing.T) {
	t.Parallel()
	good, bad, clk := serve(t, echo), serve(t, echo), newClock()
	c := open(t, Config{Now: clk.now, EjectAfter: 3, EjectBase: time.Second, EjectMax: 5 * time.Second}, good.endpoint, bad.endpoint)
	fill(t, c)
	failing(t, c, bad.endpoint, 2)
	conn := lend(t, c, bad.endpoint)
	conn.Succeeded()
	conn.Failed(Gateway) // too late
	conn.Release(true)
	failing(t, c, bad.endpoint, 2)
	if st := status(t, c, bad.endpoint); st.Ejected != 0 {
		t.Fatalf("ejected although the failures are not consecutive: %+v", st)
	}
	early, late := lend(t, c, bad.endpoint), lend(t, c, bad.endpoint)
	one, two := lend(t, c, bad.endpoint), lend(t, c, bad.endpoint)
	one.Release(true)
	two.Release(true) // one more than the failing call takes: it must go
	failing(t, c, bad.endpoint, 1)
	clk.add(time.Millisecond)
	late.Failed(Reset) // does not lengthen what it did not see
	late.Release(true)
	clk.add(-time.Millisecond)
	for round, want := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 5 * time.Second, 5 * time.Second} {
		if st := status(t, c, bad.endpoint); st.Ejected != want || st.Idle != 0 {
			t.Fatalf("round %d: %+v, want ejected for %v and an empty pool", round, st, want)
		}
		only(t, c, good.endpoint)
		clk.add(want)
		trial := get(t, c, false)
		if trial.Endpoint != bad.endpoint || trial.Reused {
			t.Fatalf("round %d: no probe by a new connection after the ejection", round)
		}
		only(t, c, good.endpoint) // one probe at a time
		trial.Failed(Reset)
		trial.Release(false)
	}
	early.Succeeded() // it began before: this says nothing about now
	early.Release(true)
	if st := status(t, c, bad.endpoint); st.Ejected == 0 || st.Idle != 0 {
		t.Fatalf("a call from before the ejection restored something: %+v", st)
	}
}

func TestComeBack(t *testing.T) {
	t.Parallel()
	good, bad, clk := serve(t, echo), serve(t, echo), newClock()
	c := open(t, Config{Now: clk.now, EjectAfter: 3, EjectBase: time.Second, EjectMax: 5 * time.Second}, good.endpoint, bad.endpoint)
	failing(t, c, bad.endpoint, 3)
	clk.add(time.Second)
	trial := get(t, c, false)
	trial.Release(true) // found nothing out: the next call is the probe
	trial = get(t, c, false)
	if trial.Endpoint != bad.endpoint {
		t.Fatal("a probe without an outcome blocks the next")
	}
	trial.Succeeded()
	trial.Release(true)
	if st := status(t, c, bad.endpoint); st.Ejected != 0 || st.Idle != 1 {
		t.Fatalf("not restored by its probe: %+v", st)
	}
	// Soon after, the past counts; after EjectMax of health it is forgotten.
	failing(t, c, bad.endpoint, 3)
	if st := status(t, c, bad.endpoint); st.Ejected != 2*time.Second {
		t.Errorf("ejected again for %v, want 2s", st.Ejected)
	}
	clk.add(2 * time.Second)
	trial = get(t, c, false)
	trial.Succeeded()
	trial.Release(true)
	clk.add(5*time.Second + 1)
	failing(t, c, bad.endpoint, 3)
	if st := status(t, c, bad.endpoint); st.Ejected != time.Second {
		t.Errorf("ejected after a long health for %v, want 1s", st.Ejected)
	}
}

// A probe that never reports does not keep its endpoint out.
func TestProbeLease(t *testing.T) {
	t.Parallel()
	good, bad, clk := serve(t, echo), serve(t, echo), newClock()
	c := open(t, Config{Now: clk.now, EjectAfter: 1, EjectBase: time.Second}, good.endpoint, bad.endpoint)
	conn := lend(t, c, bad.endpoint)
	conn.Failed(Timeout)
	conn.Release(false)
	clk.add(time.Second)
	hung := get(t, c, false)
	clk.add(time.Second)
	second := get(t, c, false)
	if hung.Endpoint != bad.endpoint || second.Endpoint != bad.endpoint {
		t.Fatalf("probes went to %s and %s", hung.Endpoint.Address, second.Endpoint.Address)
	}
	second.Succeeded()
	second.Release(true)
	hung.Release(false)
	if st := status(t, c, bad.endpoint); st.Ejected != 0 {
		t.Errorf("%+v", st)
	}
}

func TestAtMostHalf(t *testing.T) {
	t.Parallel()
	for n := 1; n <= 7; n++ {
		clk := newClock()
		var all []merlon.Endpoint
		for range n {
			all = append(all, serve(t, echo).endpoint)
		}
		c := open(t, Config{Now: clk.now, EjectAfter: 1}, all...)
		for _, e := range all {
			conn := lend(t, c, e)
			conn.Failed(Gateway)
			conn.Release(true)
		}
		out := 0
		for _, st := range c.Status() {
			if st.Ejected > 0 {
				out++
			}
		}
		if out != n/2 {
			t.Errorf("%d of %d endpoints ejected, want %d", out, n, n/2)
		}
	}
}

// When all are bad, all are used, and the first that answers is back.
func TestPanic(t *testing.T) {
	t.Parallel()
	clk := newClock()
	var all []merlon.Endpoint
	for range 4 {
		all = append(all, serve(t, echo).endpoint)
	}
	c := open(t, Config{Now: clk.now, EjectAfter: 2}, all...)
	for _, e := range all {
		for range 2 {
			conn := lend(t, c, e)
			conn.Failed(Gateway)
			conn.Release(true)
		}
	}
	seen := map[merlon.Endpoint]int{}
	for range 200 {
		conn := get(t, c, false)
		seen[conn.Endpoint]++
		conn.Failed(Gateway)
		conn.Release(true)
	}
	if len(seen) != len(all) {
		t.Fatalf("in a panic %d of %d endpoints are used", len(seen), len(all))
	}
	for _, st := range c.Status() {
		if st.Ejected > c.cfg.EjectBase {
			t.Errorf("failures in a panic lengthen the ejection to %v", st.Ejected)
		}
	}
	for range 200 { // an ejected one answers
		conn := get(t, c, false)
		answered := status(t, c, conn.Endpoint).Ejected > 0
		if answered {
			conn.Succeeded()
		}
		e := conn.Endpoint
		conn.Release(true)
		if answered {
			if st := status(t, c, e); st.Ejected != 0 {
				t.Errorf("an answer in a panic does not bring its endpoint back: %+v", st)
			}
			for range 20 { // the panic is over: it has all calls that ejection allows
				conn := get(t, c, false)
				if status(t, c, conn.Endpoint).Ejected > 0 {
					t.Error("an ejected endpoint is used although another answers")
				}
				conn.Release(true)
			}
			return
		}
	}
	t.Error("no ejected endpoint was used")
}

// In an outage each call tries once: failing over would multiply the load on
// what is down.
func TestPanicTriesOnce(t *testing.T) {
	t.Parallel()
	all := []merlon.Endpoint{refused(t), refused(t), refused(t)}
	c := open(t, Config{EjectAfter: 1, Now: newClock().now}, all...)
	failures := func() (n int64) {
		for _, ep := range c.set.Load().all {
			n += ep.fails.Load()
		}
		return n
	}
	_, err := c.get(context.Background(), false, merlon.Endpoint{})
	wantReason(t, err, ReasonConnect)
	if n := failures(); n != 3 {
		t.Errorf("the first call tried %d endpoints, want all 3", n)
	}
	_, err = c.get(context.Background(), false, merlon.Endpoint{})
	wantReason(t, err, ReasonConnect)
	if n := failures(); n != 4 {
		t.Errorf("a call in a panic tried %d endpoints, want 1", n-3)
	}
}

// When endpoints go, the ejected ones must not be all that is left.
func TestUpdateKeepsHalf(t *testing.T) {
	t.Parallel()
	clk := newClock()
	var all []merlon.Endpoint
	for range 4 {
		all = append(all, serve(t, echo).endpoint)
	}
	c := open(t, Config{Now: clk.now, EjectAfter: 1}, all...)
	for _, e := range all[:2] {
		conn := lend(t, c, e)
		conn.Failed(Gateway)
		conn.Release(true)
		clk.add(time.Millisecond)
	}
	c.Update(all[:2])
	if a, b := status(t, c, all[0]), status(t, c, all[1]); a.Ejected != 0 || b.Ejected == 0 {
		t.Errorf("want the first restored and the second still ejected: %+v, %+v", a, b)
	}
	if n := c.set.Load().ejected.Load(); n != 1 {
		t.Errorf("%d count as ejected, want 1", n)
	}
	c.Update(all[1:2])
	if st := status(t, c, all[1]); st.Ejected != 0 {
		t.Errorf("the only endpoint is ejected: %+v", st)
	}
}

// A retry goes elsewhere if there is an elsewhere.
func TestGetElsewhere(t *testing.T) {
	t.Parallel()
	a, b := serve(t, echo), serve(t, echo)
	c := open(t, Config{}, a.endpoint, b.endpoint)
	for range 50 {
		conn, err := c.Get(context.Background(), a.endpoint)
		if err != nil {
			t.Fatal(err)
		}
		if conn.Endpoint != b.endpoint || conn.Reused {
			t.Fatal("the retry went to the endpoint that failed, or on a pooled connection")
		}
		conn.Release(true)
	}
	c.Update([]merlon.Endpoint{a.endpoint})
	conn, err := c.Get(context.Background(), a.endpoint)
	if err != nil {
		t.Fatal(err)
	}
	conn.Release(true)
}

// A client that hangs up while we connect must not get endpoints ejected.
func TestHangingUpIsNoFailure(t *testing.T) {
	t.Parallel()
	hole := blackHole(t)
	c := open(t, Config{EjectAfter: 1, ConnectTimeout: time.Minute}, hole)
	for range 3 {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() {
			_, err := c.get(ctx, false, merlon.Endpoint{})
			done <- err
		}()
		until(t, "connecting", func() bool { return status(t, c, hole).Open == 1 })
		cancel()
		wantReason(t, <-done, ReasonCancelled)
	}
	if f := c.set.Load().all[0].fails.Load(); f != 0 {
		t.Errorf("%d failures were counted", f)
	}
	if st := status(t, c, hole); st.Open != 0 || st.Active != 0 {
		t.Errorf("%+v", st)
	}
}

func TestBlackHole(t *testing.T) {
	t.Parallel()
	hole, s := blackHole(t), serve(t, echo)
	c := open(t, Config{ConnectTimeout: 400 * time.Millisecond, EjectAfter: 1}, hole, s.endpoint)
	for range 50 {
		conn := get(t, c, true)
		if conn.Endpoint != s.endpoint {
			t.Fatal("connected to a black hole")
		}
		conn.Succeeded()
		conn.Release(true)
	}
	if st := status(t, c, hole); st.Ejected == 0 || st.Open != 0 {
		t.Errorf("%+v", st)
	}
	c.Update([]merlon.Endpoint{hole})
	_, err := c.get(context.Background(), false, merlon.Endpoint{})
	wantReason(t, err, ReasonConnect)
	if e, ok := err.(*Error); !ok || e.Address != hole.Address || e.Cluster != "orders" {
		t.Errorf("error %#v does not say where", err)
	}
}

// Close does not wait for connections that are being made.
func TestCloseWhileConnecting(t *testing.T) {
	t.Parallel()
	hole := blackHole(t)
	c := open(t, Config{ConnectTimeout: time.Hour}, hole)
	done := make(chan error)
	go func() {
		_, err := c.get(context.Background(), false, merlon.Endpoint{})
		done <- err
	}()
	until(t, "connecting", func() bool { return status(t, c, hole).Open == 1 })
	c.Close()
	wantReason(t, <-done, ReasonClosed)
}

// A peer that accepts and resets is found by the calls.
func TestReset(t *testing.T) {
	t.Parallel()
	rst := serve(t, func(nc net.Conn) { nc.(*net.TCPConn).SetLinger(0) })
	good := serve(t, echo)
	c := open(t, Config{}, rst.endpoint, good.endpoint)
	failures := 0
	for range 100 {
		conn := get(t, c, false)
		if err := call(conn); err != nil {
			failures++
			conn.Failed(Reset)
			conn.Release(false)
			continue
		}
		conn.Succeeded()
		conn.Release(true)
	}
	// A reset may be seen by connect already: then Get goes elsewhere.
	if st := status(t, c, rst.endpoint); failures > c.cfg.EjectAfter || st.Ejected == 0 {
		t.Errorf("%d calls failed, want at most %d and then ejection: %+v", failures, c.cfg.EjectAfter, st)
	}
}

func budgetOf(percent int64) *budget {
	b := new(budget)
	b.percent.Store(percent)
	return b
}

func TestBudget(t *testing.T) {
	t.Parallel()
	for _, percent := range []int64{1, 20, 100} {
		b := budgetOf(percent)
		now, calls, retries := int64(1), 0, 0
		// Everything fails: each call and each retry wants a retry.
		for range 100_000 {
			now += int64(10 * time.Microsecond)
			calls++
			for b.deposit(); b.take(now); b.deposit() {
				retries++
			}
		}
		// One second passed: the flow gave three at once and three more, and
		// what they deposited.
		if got, most := retries, calls*int(percent)/100+12; got > most || got < most*9/10-12 {
			t.Errorf("%d%%: %d retries of %d calls, want about %d at most", percent, got, calls, most)
		}
	}
	b := budgetOf(0)
	b.deposit()
	if b.take(1) {
		t.Error("a budget of 0 percent gives a retry")
	}
	// A long quiet time saves up a bounded burst.
	b = budgetOf(100)
	for range 1_000_000 {
		b.deposit()
	}
	n := 0
	for b.take(1) {
		n++
	}
	if n > maxSaved/100 {
		t.Errorf("a burst of %d retries was saved up", n)
	}
	// A service with hardly any calls may retry nevertheless.
	b = budgetOf(1)
	n = 0
	for now := int64(1); now < int64(10*time.Second); now += int64(10 * time.Millisecond) {
		if b.take(now) {
			n++
		}
	}
	if n < 30 || n > 33 {
		t.Errorf("%d retries in ten seconds without calls, want about 32", n)
	}
}
