package upstream

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"merlon"
)

// TestStress lets many callers, updates, sweeps and bad servers loose on one
// cluster. Whatever happens: answers belong to their calls, bounds hold, and
// nothing is left when it is over.
func TestStress(t *testing.T) {
	t.Parallel()
	const callers, calls = 16, 300
	all := []merlon.Endpoint{
		serve(t, echo).endpoint, serve(t, echo).endpoint,
		serve(t, flaky(0.1)).endpoint, serve(t, flaky(0.9)).endpoint,
		serve(t, func(nc net.Conn) { nc.(*net.TCPConn).SetLinger(0) }).endpoint,
		refused(t),
	}
	c := open(t, Config{
		MaxConns: 6, MaxIdle: 3, MaxWaiting: 4, RetryPercent: 50, EjectAfter: 3,
		EjectBase: time.Millisecond, EjectMax: 10 * time.Millisecond, IdleTimeout: 50 * time.Millisecond,
		MaxAge: 100 * time.Millisecond, ConnectTimeout: 5 * time.Second,
		after: func(time.Duration) <-chan time.Time { return time.After(time.Millisecond) },
	}, all...)
	stop := make(chan struct{})
	var background, wg sync.WaitGroup
	background.Go(func() { shuffle(t, c, all, stop) })
	var answered atomic.Int64
	for range callers {
		wg.Go(func() {
			for range calls {
				if roughCall(t, c, rand.IntN(10) == 0) || c.MayRetry() && roughCall(t, c, true) {
					answered.Add(1)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	background.Wait()
	if n := answered.Load(); n < callers*calls/2 {
		t.Errorf("%d of %d calls answered", n, callers*calls)
	}
	for _, st := range c.Status() {
		if st.Active != 0 || st.Waiting != 0 || st.Open != st.Idle {
			t.Errorf("left over: %+v", st)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	out, s := 0, c.set.Load()
	for _, ep := range s.all {
		if ep.until.Load() != 0 {
			out++
		}
	}
	if n := int(s.ejected.Load()); n != out || out*2 > len(s.all) {
		t.Errorf("%d endpoints are ejected, counted %d of %d", out, n, len(s.all))
	}
}

// flaky serves an echo that resets or closes with probability p per answer.
func flaky(p float64) func(net.Conn) {
	return func(nc net.Conn) {
		b := make([]byte, 1)
		for {
			if _, err := io.ReadFull(nc, b); err != nil {
				return
			}
			r := rand.Float64()
			if r < p/2 { // no answer, but a reset
				nc.(*net.TCPConn).SetLinger(0)
				return
			}
			if _, err := nc.Write(b); err != nil || r < p { // closed while idle
				return
			}
		}
	}
}

// shuffle lets endpoints come and go, but for the first, until stop.
func shuffle(t *testing.T, c *Cluster, all []merlon.Endpoint, stop chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Millisecond):
		}
		some := []merlon.Endpoint{all[0]}
		for _, e := range all[1:] {
			if rand.IntN(4) > 0 {
				some = append(some, e)
			}
		}
		c.Update(some)
		for _, st := range c.Status() {
			if st.Open > c.cfg.MaxConns || st.Idle > c.cfg.MaxIdle || st.Waiting > c.cfg.MaxWaiting || st.Open < st.Idle || st.Active < 0 {
				t.Errorf("bounds: %+v", st)
			}
		}
	}
}

// roughCall is a call by a client who sometimes has no patience. It reports
// whether there was an answer, and fails the test if it is someone else's.
func roughCall(t *testing.T, c *Cluster, fresh bool) bool {
	ctx, cancel := context.Background(), context.CancelFunc(func() {})
	if rand.IntN(10) == 0 {
		ctx, cancel = context.WithTimeout(ctx, time.Duration(rand.IntN(1000))*time.Microsecond)
	}
	defer cancel()
	conn, err := c.get(ctx, fresh, merlon.Endpoint{})
	if err != nil {
		if _, ok := err.(*Error); !ok {
			t.Errorf("error %T", err)
		}
		return false
	}
	out, in := []byte{byte(rand.Int())}, []byte{0}
	if _, err = conn.Write(out); err == nil {
		_, err = io.ReadFull(conn, in)
	}
	switch {
	case err == nil:
		if in[0] != out[0] {
			t.Error("the answer to another call")
		}
		conn.Succeeded()
		conn.Release(rand.IntN(10) > 0)
		return true
	case conn.Reused:
		conn.Failed(Stale)
	default:
		conn.Failed(Reset)
	}
	conn.Release(false)
	return false
}

// A server that stops and starts again on its port loses few calls, and is
// back in use when it is back.
func TestFlapping(t *testing.T) {
	t.Parallel()
	address := "127.0.0.1:0"
	if runtime.GOOS == "linux" {
		address = "127.0.0.77:0" // an address of our own: nobody takes the port while we are down
	}
	steady, flapping := serve(t, echo), serveAt(t, address, echo)
	address = flapping.endpoint.Address
	c := open(t, Config{RetryPercent: 100, EjectAfter: 3, EjectBase: time.Millisecond, EjectMax: 2 * time.Millisecond}, steady.endpoint, flapping.endpoint)
	one := func() (merlon.Endpoint, bool) {
		conn, err := c.get(context.Background(), false, merlon.Endpoint{})
		for retry := false; err == nil; retry = true {
			e := conn.Endpoint
			failure := call(conn)
			if failure == nil {
				conn.Succeeded()
				conn.Release(true)
				return e, true
			}
			if conn.Reused {
				conn.Failed(Stale)
			} else {
				conn.Failed(Reset)
			}
			conn.Release(false)
			if retry || !c.MayRetry() {
				return e, false
			}
			conn, err = c.Get(context.Background(), e)
		}
		return merlon.Endpoint{}, false
	}
	for round := range 5 {
		until(t, "the endpoint is back in use", func() bool {
			e, ok := one()
			return ok && e == flapping.endpoint
		})
		flapping.stop()
		for range 100 {
			if e, ok := one(); !ok {
				t.Fatalf("round %d: a call failed at %s", round, e.Address)
			}
		}
		flapping = serveAt(t, address, echo)
	}
}

func BenchmarkGetRelease(b *testing.B) {
	for _, n := range []int{1, 2, 16} {
		b.Run(map[int]string{1: "endpoints=1", 2: "endpoints=2", 16: "endpoints=16"}[n], func(b *testing.B) {
			var all []merlon.Endpoint
			for range n {
				all = append(all, serve(b, echo).endpoint)
			}
			coarse := newClock().t
			c := open(b, Config{RetryPercent: 20, Now: func() time.Time { return coarse }}, all...)
			ctx := context.Background()
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					conn, err := c.get(ctx, false, merlon.Endpoint{})
					if err != nil {
						b.Error(err)
						return
					}
					conn.Succeeded()
					conn.Release(true)
				}
			})
		})
	}
}

// BenchmarkGetEjected is Get while an endpoint is out.
func BenchmarkGetEjected(b *testing.B) {
	var all []merlon.Endpoint
	for range 16 {
		all = append(all, serve(b, echo).endpoint)
	}
	clk := newClock()
	c := open(b, Config{EjectAfter: 1, Now: func() time.Time { return clk.t }}, all...)
	c.set.Load().all[3].failed(none)
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		conn, err := c.get(ctx, false, merlon.Endpoint{})
		if err != nil {
			b.Fatal(err)
		}
		conn.Release(true)
	}
}
