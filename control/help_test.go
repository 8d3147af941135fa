package control

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"merlon"
	"merlon/intent"
)

// load loads an intent of one file, and what else the pairs of names and
// contents give.
func load(t testing.TB, text string, files ...string) *intent.Loaded {
	t.Helper()
	fsys := fstest.MapFS{"merlon.yaml": {Data: []byte(text)}}
	for pair := range slices.Chunk(files, 2) {
		fsys[pair[0]] = &fstest.MapFile{Data: []byte(pair[1])}
	}
	l, ds := intent.Load(fsys)
	if ds.Failed() {
		t.Fatalf("the test's intent is wrong: %v", ds)
	}
	return l
}

// shop is web -> orders, with orders' rules as given.
func shop(rules string) string {
	return `trustDomain: shop.example
gateway: {hosts: [shop.example], certificate: none, listen: "127.0.0.1:8080"}
services:
  web:
    address: 127.0.0.1:7001
    operations: {home: GET /}
    callers: {anyone: [home]}
  orders:
    address: 127.0.0.1:7002
    operations: {list: GET /orders, create: POST /orders, get: "GET /orders/{id}"}
    callers: {` + rules + `}
`
}

// clock is a clock that tests turn.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) turn(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func open(t testing.TB, dir string, opt Options) *Control {
	t.Helper()
	c, err := Open(context.Background(), dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

var http1 = []merlon.Protocol{merlon.HTTP}

// hello introduces the gate of a service, or the gateway for "".
func hello(service string, port int) Hello {
	h := Hello{Place: merlon.Place{Service: service}, Version: merlon.OrdersVersion, Protocols: http1}
	if service != "" {
		h.Address = fmt.Sprintf("127.0.0.1:%d", port)
	}
	return h
}

// fakeGate is a gate's side of the session: it takes orders, remembers them
// and answers with reply.
type fakeGate struct {
	*Session
	mu    sync.Mutex
	taken []*merlon.Orders
	reply func(*merlon.Orders) string
	ended chan struct{}
}

func (g *fakeGate) last() *merlon.Orders {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.taken) == 0 {
		return nil
	}
	return g.taken[len(g.taken)-1]
}

// gate connects a gate that answers by itself. reply may be nil: all orders
// are enforced.
func gate(t testing.TB, c *Control, h Hello, reply func(*merlon.Orders) string) *fakeGate {
	t.Helper()
	s, err := c.Connect(context.Background(), h)
	if err != nil {
		t.Fatal(err)
	}
	g := &fakeGate{Session: s, reply: reply, ended: make(chan struct{})}
	go func() {
		defer close(g.ended)
		for o := range s.Orders() {
			g.mu.Lock()
			g.taken = append(g.taken, o)
			g.mu.Unlock()
			a := Ack{Hash: o.Hash}
			if g.reply != nil {
				a.Err = g.reply(o)
			}
			s.Ack(a)
		}
	}()
	return g
}

// shopGates connects a gate for every place of the shop.
func shopGates(t testing.TB, c *Control) map[string]*fakeGate {
	t.Helper()
	return map[string]*fakeGate{
		"gateway": gate(t, c, hello("", 0), nil),
		"web":     gate(t, c, hello("web", 9001), nil),
		"orders":  gate(t, c, hello("orders", 9002), nil),
	}
}

func apply(t testing.TB, c *Control, text string) *Result {
	t.Helper()
	r, err := c.Apply(context.Background(), load(t, text), ApplyOptions{Who: "test", Widen: true})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// eventually waits until what is true. Every call of it is bounded by the
// test's own deadline.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for range 2000 {
		if is() {
			return
		}
		<-time.After(5 * time.Millisecond)
	}
	t.Fatalf("never came true: %s", what)
}

func codes(ds merlon.Diagnostics) string {
	var all []string
	for _, d := range ds {
		all = append(all, d.Code)
	}
	return strings.Join(all, " ")
}

// loadAny loads an intent that may be wrong.
func loadAny(text string) (*intent.Loaded, merlon.Diagnostics) {
	return intent.Load(fstest.MapFS{"merlon.yaml": {Data: []byte(text)}})
}
