package upstream

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"merlon"
)

// nameServer answers each lookup with what the test sends.
type nameServer struct {
	answers chan answer
	asked   chan string
}

type answer struct {
	addrs []string
	err   error
}

func (n nameServer) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	n.asked <- network + " " + host
	select {
	case a := <-n.answers:
		var out []netip.Addr
		for _, s := range a.addrs {
			out = append(out, netip.MustParseAddr(s))
		}
		return out, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// timers hands the test every sleep of the background work.
type timers chan sleep

type sleep struct {
	d    time.Duration
	wake chan time.Time
}

func (ts timers) after(d time.Duration) <-chan time.Time {
	wake := make(chan time.Time, 1)
	if d != sweepEvery { // sweepers sleep for ever here
		ts <- sleep{d, wake}
	}
	return wake
}

// sweepEvery is the period of the sweeper under testNames, told apart by it.
const sweepEvery = time.Millisecond + 1

func testNames(t *testing.T, endpoints ...merlon.Endpoint) (*Cluster, nameServer, timers) {
	ns := nameServer{make(chan answer), make(chan string, 100)}
	ts := make(timers, 100)
	c := open(t, Config{
		Resolver: ns, after: ts.after, IdleTimeout: 4 * time.Millisecond,
		RefreshEvery: 10 * time.Second, ConnectTimeout: time.Minute,
	}, endpoints...)
	return c, ns, ts
}

// next lets the resolver sleep its two sleeps and answers its next lookup. It
// returns how long it slept, and returns when the answer has had its effect.
func (ts timers) next(ns nameServer, a answer) time.Duration {
	first := <-ts
	first.wake <- time.Time{}
	second := sleep{}
	select {
	case second = <-ts:
		second.wake <- time.Time{}
		<-ns.asked
	case <-ns.asked: // the floor was all there was to sleep
	}
	ns.answers <- a
	pending := <-ts // it sleeps again: the answer is in
	ts <- pending
	return first.d + second.d
}

func addresses(c *Cluster) string {
	var out []string
	for _, st := range c.Status() {
		out = append(out, st.Address)
	}
	return strings.Join(out, " ")
}

func TestNames(t *testing.T) {
	t.Parallel()
	e := merlon.Endpoint{Address: "dns:orders.internal:7002", ID: "spiffe://shop.example/orders"}
	static := merlon.Endpoint{Address: "192.0.2.77:1"}
	c, ns, ts := testNames(t, static, e)
	if got := <-ns.asked; got != "ip orders.internal" {
		t.Errorf("asked for %q", got)
	}
	ns.answers <- answer{addrs: []string{"2001:db8::1", "192.0.2.2", "192.0.2.1", "::ffff:192.0.2.2"}}
	ts <- <-ts
	const first = "192.0.2.77:1 192.0.2.1:7002 192.0.2.2:7002 [2001:db8::1]:7002"
	if got := addresses(c); got != first {
		t.Fatalf("addresses %s, want %s", got, first)
	}
	if st := c.Status()[1]; st.ID != e.ID {
		t.Errorf("an address lost the identity of its name: %+v", st)
	}
	kept := c.set.Load().all[1]
	kept.fails.Store(3)
	nxdomain := &net.DNSError{Err: "no such host", Name: "orders.internal", IsNotFound: true}
	for _, step := range []struct {
		name     string
		a        answer
		want     string
		min, max time.Duration // of the sleep before
	}{
		{"same, another order", answer{addrs: []string{"192.0.2.2", "192.0.2.1", "2001:db8::1"}}, first, 10 * time.Second, 12 * time.Second},
		{"no such host", answer{err: nxdomain}, first, 10 * time.Second, 12 * time.Second},
		{"no answer", answer{err: context.DeadlineExceeded}, first, time.Second, 1200 * time.Millisecond},
		{"empty", answer{}, first, 2 * time.Second, 2400 * time.Millisecond},
		{"no answer", answer{err: nxdomain}, first, 4 * time.Second, 4800 * time.Millisecond},
		{"no answer", answer{err: nxdomain}, first, 8 * time.Second, 9600 * time.Millisecond},
		{"other", answer{addrs: []string{"192.0.2.1", "192.0.2.3"}}, "192.0.2.77:1 192.0.2.1:7002 192.0.2.3:7002", 10 * time.Second, 12 * time.Second},
		{"again", answer{addrs: []string{"192.0.2.3"}}, "192.0.2.77:1 192.0.2.3:7002", 10 * time.Second, 12 * time.Second},
	} {
		slept := ts.next(ns, step.a)
		if got := addresses(c); got != step.want {
			t.Errorf("%s: addresses %s, want %s", step.name, got, step.want)
		}
		if slept < step.min || slept > step.max {
			t.Errorf("%s: asked after %v, want %v to %v", step.name, slept, step.min, step.max)
		}
		if step.name == "other" && c.set.Load().all[1] != kept {
			t.Error("an address that stays lost its past")
		}
	}
	c.Update([]merlon.Endpoint{static})
	if got := addresses(c); got != static.Address {
		t.Errorf("addresses after the name was removed: %s", got)
	}
}

func TestTooManyAddresses(t *testing.T) {
	t.Parallel()
	c, ns, ts := testNames(t, merlon.Endpoint{Address: "dns:big.internal:1"})
	var all []string
	for a := netip.MustParseAddr("192.0.2.0"); len(all) < 5000; a = a.Next() {
		all = append(all, a.String())
	}
	ns.answers <- answer{addrs: all}
	<-ts
	if n := len(c.Status()); n != maxAddresses {
		t.Errorf("%d endpoints from one name, want %d", n, maxAddresses)
	}
}

func TestFirstGetWaitsForTheName(t *testing.T) {
	t.Parallel()
	s := serve(t, echo)
	_, port, _ := net.SplitHostPort(s.endpoint.Address)
	c, ns, ts := testNames(t, merlon.Endpoint{Address: "dns:orders.internal:" + port})
	done := make(chan error)
	go func() {
		conn, err := c.get(context.Background(), false, merlon.Endpoint{})
		if err == nil {
			conn.Release(true)
		}
		done <- err
	}()
	<-ns.asked
	select {
	case err := <-done:
		t.Fatalf("did not wait for the first answer: %v", err)
	default:
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := c.get(ctx, false, merlon.Endpoint{})
	wantReason(t, err, ReasonCancelled)
	ns.answers <- answer{addrs: []string{"127.0.0.1"}}
	if err := <-done; err != nil {
		t.Error(err)
	}
	<-ts
}

func TestFirstAnswerFails(t *testing.T) {
	t.Parallel()
	c, ns, ts := testNames(t, merlon.Endpoint{Address: "dns:orders.internal:1"})
	done := make(chan error)
	go func() {
		_, err := c.get(context.Background(), false, merlon.Endpoint{})
		done <- err
	}()
	boom := errors.New("name server away")
	ns.answers <- answer{err: boom}
	err := <-done // at once, not after ConnectTimeout
	wantReason(t, err, ReasonNoEndpoint)
	if !errors.Is(err, boom) || !strings.Contains(err.Error(), `resolve "orders.internal"`) {
		t.Errorf("error %q hides the name or the cause", err)
	}
	<-ts
}

func TestNameWaitIsBounded(t *testing.T) {
	t.Parallel()
	ns := nameServer{make(chan answer), make(chan string, 100)}
	c := open(t, Config{Resolver: ns, ConnectTimeout: time.Millisecond}, merlon.Endpoint{Address: "dns:slow.internal:1"})
	_, err := c.get(context.Background(), false, merlon.Endpoint{})
	wantReason(t, err, ReasonNoEndpoint)
}

func TestNameWithoutPort(t *testing.T) {
	t.Parallel()
	c := open(t, Config{}, merlon.Endpoint{Address: "dns:orders.internal"})
	_, err := c.get(context.Background(), false, merlon.Endpoint{})
	wantReason(t, err, ReasonNoEndpoint)
}

// A service that moved is found before the refresh is due.
func TestFailureAsksAgainSoon(t *testing.T) {
	t.Parallel()
	dead := refused(t)
	host, port, _ := net.SplitHostPort(dead.Address)
	c, ns, ts := testNames(t, merlon.Endpoint{Address: "dns:orders.internal:" + port})
	ns.answers <- answer{addrs: []string{host}}
	<-ns.asked
	floor := <-ts
	_, err := c.get(context.Background(), false, merlon.Endpoint{})
	wantReason(t, err, ReasonConnect)
	select {
	case <-ns.asked:
		t.Fatal("asked before the floor")
	default:
	}
	floor.wake <- time.Time{}
	<-ns.asked // without the second sleep having ended
	ns.answers <- answer{addrs: []string{"192.0.2.1"}}
	for slept := <-ts; slept.d != minRefresh; slept = <-ts {
	}
	if got := addresses(c); got != "192.0.2.1:"+port {
		t.Errorf("addresses %s", got)
	}
}

func TestHostports(t *testing.T) {
	t.Parallel()
	in := []netip.Addr{netip.MustParseAddr("fe80::1%eth0"), netip.MustParseAddr("::ffff:10.0.0.1"), netip.MustParseAddr("10.0.0.1")}
	before := slices.Clone(in)
	got := strings.Join(hostports(in, "80"), " ")
	if want := "10.0.0.1:80 [fe80::1%eth0]:80"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if !slices.Equal(in, before) {
		t.Error("the resolver's answer was changed under it")
	}
}
