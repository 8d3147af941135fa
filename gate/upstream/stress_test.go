package upstream

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
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
	const callers, calls, maxConns = 16, 300, 6
	flaky := func(p float64) func(net.Conn) {
		return func(nc net.Conn) {
			b := make([]byte, 1)
			for {
				if _, err := io.ReadFull(nc, b); err != nil {
					return
				}
				switch r := rand.Float64(); {
				case r < p/2: // reset
					nc.(*net.TCPConn).SetLinger(0)
					return
				case r < p: // answer, then close while idle
					nc.Write(b)
					return
				}
				if _, err := nc.Write(b); err != nil {
					return
				}
			}
		}
	}
	all := []merlon.Endpoint{
		serve(t, echo).endpoint, serve(t, echo).endpoint,
		serve(t, flaky(0.1)).endpoint, serve(t, flaky(0.9)).endpoint,
		serve(t, func(nc net.Conn) { nc.(*net.TCPConn).SetLinger(0) }).endpoint,
		refused(t),
	}
	c := open(t, Config{
		MaxConns: maxConns, MaxIdle: 3, MaxWaiting: 4, RetryPercent: 50, EjectAfter: 3,
		EjectBase: time.Millisecond, EjectMax: 10 * time.Millisecond, IdleTimeout: 50 * time.Millisecond,
		MaxAge: 100 * time.Millisecond, ConnectTimeout: 5 * time.Second,
		after: func(time.Duration) <-chan time.Time { return time.After(time.Millisecond) },
	}, all...)

	stop := make(chan struct{})
	var background, wg sync.WaitGroup
	background.Go(func() { // endpoints come and go; the first stays
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				some := append([]merlon.Endpoint(nil), all[0])
				for _, e := range all[1:] {
					if rand.IntN(4) > 0 {
						some = append(some, e)
					}
				}
				c.Update(some)
				for _, st := range c.Status() {
					if st.Open > maxConns || st.Idle > 3 || st.Waiting > 4 || st.Open < st.Idle || st.Active < 0 {
						t.Errorf("bounds: %+v", st)
					}
				}
			}
		}
	})
	var answered, failed atomic.Int64
	attempt := func(fresh bool) bool {
		ctx, cancel := context.Background(), context.CancelFunc(func() {})
		if rand.IntN(10) == 0 {
			ctx, cancel = context.WithTimeout(ctx, time.Duration(rand.IntN(1000))*time.Microsecond)
		}
		defer cancel()
		conn, err := c.Get(ctx, fresh)
		if err != nil {
			if _, ok := err.(*Error); !ok {
				t.Errorf("error %T", err)
			}
			return false
		}
		out, in := []byte{byte(rand.Int())}, []byte{0}
		_, err = conn.Write(out)
		if err == nil {
			_, err = io.ReadFull(conn, in)
		}
		switch {
		case err == nil && in[0] != out[0]:
			t.Error("the answer to another call")
			fallthrough
		case err == nil:
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
	for range callers {
		wg.Go(func() {
			for range calls {
				ok := attempt(rand.IntN(10) == 0)
				if !ok && c.MayRetry() {
					ok = attempt(true)
				}
				if ok {
					answered.Add(1)
				} else {
					failed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	background.Wait()
	if answered.Load() < callers*calls/2 {
		t.Errorf("%d calls answered, %d failed", answered.Load(), failed.Load())
	}
	t.Logf("%d answered, %d failed", answered.Load(), failed.Load())
	for _, st := range c.Status() {
		if st.Active != 0 || st.Waiting != 0 || st.Open != st.Idle {
			t.Errorf("left over: %+v", st)
		}
	}
	c.mu.Lock()
	out := 0
	for _, ep := range c.set.Load().all {
		if ep.until.Load() != 0 {
			out++
		}
	}
	if n := int(c.set.Load().ejected.Load()); n != out || out*2 > len(c.set.Load().all) {
		t.Errorf("%d endpoints are ejected, counted %d of %d", out, n, len(c.set.Load().all))
	}
	c.mu.Unlock()
}

// A server that stops and starts again on its port loses few calls, and is
// back in use when it is back.
func TestFlapping(t *testing.T) {
	t.Parallel()
	steady, flapping := serve(t, echo), serve(t, echo)
	address := flapping.endpoint.Address
	c := open(t, Config{RetryPercent: 100, EjectAfter: 3, EjectBase: time.Millisecond, EjectMax: 2 * time.Millisecond}, steady.endpoint, flapping.endpoint)
	one := func() (merlon.Endpoint, bool) {
		conn, err := c.Get(context.Background(), false)
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
			conn, err = c.GetOther(context.Background(), e)
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
		ln, err := net.Listen("tcp", address)
		if err != nil {
			t.Skipf("the port was taken by someone else: %v", err)
		}
		next := &server{Listener: ln, endpoint: flapping.endpoint, conns: map[net.Conn]bool{}, accepted: make(chan struct{}, 1<<16)}
		next.accept(echo)
		t.Cleanup(next.stop)
		flapping = next
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
					conn, err := c.Get(ctx, false)
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
		conn, err := c.Get(ctx, false)
		if err != nil {
			b.Fatal(err)
		}
		conn.Release(true)
	}
}
