package control

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"merlon"
)

func TestApplyDelivers(t *testing.T) {
	t.Parallel()
	clk := newClock()
	c := open(t, tempState(t), Options{Now: clk.now})
	gates := shopGates(t, c)
	r := apply(t, c, shop("web: [list]"))
	if !r.Live || r.Commit.Number != 1 || r.Commit.Who != "test" || len(r.Gates) != 3 {
		t.Fatalf("result is %+v", r)
	}
	for name, g := range gates {
		o := g.last()
		if o == nil || o.Of != r.Commit.Hash || o.Version != merlon.OrdersVersion {
			t.Fatalf("%s has orders %+v", name, o)
		}
		text, err := o.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := merlon.DecodeOrders(text); err != nil || !reflect.DeepEqual(again, o) {
			t.Errorf("the orders of %s do not survive the wire: %v", name, err)
		}
	}
	want := map[string]map[string][]merlon.Endpoint{
		"gateway": {"web": {{Address: "127.0.0.1:9001", ID: "spiffe://shop.example/web"}}},
		"web":     {"web": {{Address: "127.0.0.1:7001"}}, "orders": {{Address: "127.0.0.1:9002", ID: "spiffe://shop.example/orders"}}},
		"orders":  {"orders": {{Address: "127.0.0.1:7002"}}},
	}
	for name, g := range gates {
		if got := g.last().Endpoints; !reflect.DeepEqual(got, want[name]) {
			t.Errorf("%s reaches %v, want %v", name, got, want[name])
		}
	}
	if again := apply(t, c, shop("web: [list]")); !again.Unchanged || again.Commit.Number != 1 {
		t.Errorf("the same intent again: %+v", again)
	}
}

func TestExternalEndpoints(t *testing.T) {
	t.Parallel()
	c := open(t, tempState(t), Options{})
	g := gate(t, c, hello("web", 9001), nil)
	apply(t, c, `trustDomain: x.example
services:
  web: {address: "127.0.0.1:7001"}
external:
  stripe: {hosts: [api.stripe.com], callers: {web: all}}
`)
	want := []merlon.Endpoint{{Address: "dns:api.stripe.com:443", TLSName: "api.stripe.com"}}
	if got := g.last().Endpoints["stripe"]; !reflect.DeepEqual(got, want) {
		t.Errorf("stripe is reached at %v, want %v", got, want)
	}
	for _, tc := range []struct {
		s    merlon.Service
		want []merlon.Endpoint
	}{
		{merlon.Service{Addresses: []string{"a:1"}}, nil}, // nothing to prove it by
		{merlon.Service{Addresses: []string{"a:1", "b:2"}, Hosts: []string{"x", "y"}}, []merlon.Endpoint{{Address: "a:1", TLSName: "x"}, {Address: "b:2", TLSName: "x"}}},
		{merlon.Service{Hosts: []string{"x", "y"}}, []merlon.Endpoint{{Address: "dns:x:443", TLSName: "x"}, {Address: "dns:y:443", TLSName: "y"}}},
	} {
		if got := externalEndpoints(&tc.s); !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%+v: %v, want %v", tc.s, got, tc.want)
		}
	}
}

// A change that is refused changes nothing: not the history, not the gates.
func TestApplyRefuses(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, text string
		widen      bool
		check      func(error) bool
		want       string
	}{
		{"widens", shop("web: [list, create]"), false, func(err error) bool { var w *WidensError; return errors.As(err, &w) }, "widens access"},
		{"a failing test", shop("web: [list]") + "tests: [{call: web -> orders.create, expect: allow}]\n", true, isDiagnostics, "E05"},
		{"does not compile", shop("web: {operations: [list], when: 'nosuch == 1'}"), true, isDiagnostics, "E03"},
		{"no gate", shop("web: [list], audit: [list]") + "  audit: {address: \"127.0.0.1:7003\"}\n", true, isDiagnostics, "E0401"},
		{"another protocol", strings.Replace(shop(""), "operations: {list: GET /orders, create: POST /orders, get: \"GET /orders/{id}\"}\n    callers: {}", "protocol: tcp\n    callers: {web: all}", 1), true, isDiagnostics, "E0402"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := open(t, tempState(t), Options{})
			gates := shopGates(t, c)
			first := apply(t, c, shop("web: [list]"))
			_, err := c.Apply(t.Context(), load(t, tc.text), ApplyOptions{Widen: tc.widen})
			if err == nil || !tc.check(err) || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want %q", err, tc.want)
			}
			if h, err := c.History(t.Context(), 0); err != nil || len(h) != 1 {
				t.Errorf("history is %+v, %v", h, err)
			}
			if st := c.Status(); st.Intent.Hash != first.Commit.Hash || !st.Live() {
				t.Errorf("status is %+v", st)
			}
			for name, g := range gates {
				if g.last().Of != first.Commit.Hash {
					t.Errorf("%s got orders of a refused intent", name)
				}
			}
		})
	}
}

func isDiagnostics(err error) bool { var ds merlon.Diagnostics; return errors.As(err, &ds) }

func TestEnforceable(t *testing.T) {
	t.Parallel()
	c := open(t, tempState(t), Options{})
	l := load(t, shop("web: [list]"))
	check := func(want string) {
		t.Helper()
		p, err := c.Plan(t.Context(), l)
		if err != nil || codes(p.Problems) != want {
			t.Errorf("problems are %q, %v; want %q", p.Problems, err, want)
		}
	}
	check("E0401 E0401 E0401 E0401") // gateway and web for anyone; web and orders for web
	gate(t, c, hello("", 0), nil)
	check("E0401 E0401 E0401")
	gate(t, c, hello("web", 9001), nil)
	check("E0401")
	p, err := c.Plan(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	d := p.Problems[0]
	if d.Message != `rule "orders: web" cannot be enforced: the gate of orders is not connected` || d.Hint == "" || d.Pos.String() != "merlon.yaml:11:15" {
		t.Errorf("diagnostic is %+v", d)
	}
	old := hello("orders", 9002)
	old.Protocols = []merlon.Protocol{merlon.TCP}
	deaf := gate(t, c, old, nil)
	gate(t, c, hello("orders", 9003), nil)
	check("E0402") // one of two gates is enough to make a gap
	deaf.Close()
	check("")
	l = load(t, shop(""))
	check("")
	c2 := open(t, tempState(t), Options{})
	gate(t, c2, hello("", 0), nil)
	gate(t, c2, hello("web", 9001), nil)
	if r := apply(t, c2, shop("")); codes(r.Warnings) != "W0401" {
		t.Errorf("warnings are %v", r.Warnings)
	}
}

func TestConnectRefuses(t *testing.T) {
	t.Parallel()
	c := open(t, tempState(t), Options{})
	for _, tc := range []struct {
		change func(*Hello)
		want   string
	}{
		{func(h *Hello) { h.Version = merlon.OrdersVersion + 1 }, "reads orders of version 3; this control plane writes version 2"},
		{func(h *Hello) { h.Protocols = nil }, "speaks no protocol"},
		{func(h *Hello) { h.Address = "" }, "has no address"},
	} {
		h := hello("web", 9001)
		tc.change(&h)
		if _, err := c.Connect(t.Context(), h); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("got %v, want %q", err, tc.want)
		}
	}
	if n := len(c.Status().Gates); n != 0 {
		t.Errorf("%d refused gates are connected", n)
	}
	c.Close()
	if _, err := c.Connect(t.Context(), hello("web", 9001)); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if _, err := c.Apply(t.Context(), load(t, shop("")), ApplyOptions{}); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// The endpoints of callers follow the gates that come and go.
func TestGatesComeAndGo(t *testing.T) {
	t.Parallel()
	c := open(t, tempState(t), Options{})
	gates := shopGates(t, c)
	apply(t, c, shop("web: [list]"))
	web := gates["web"]
	addresses := func() string {
		var all []string
		for _, e := range web.last().Endpoints["orders"] {
			all = append(all, e.Address)
		}
		return strings.Join(all, " ")
	}
	second := gate(t, c, hello("orders", 9012), nil)
	eventually(t, "web knows both gates of orders", func() bool { return addresses() == "127.0.0.1:9002 127.0.0.1:9012" })
	gates["orders"].Close()
	eventually(t, "web forgets the gate that went", func() bool { return addresses() == "127.0.0.1:9012" })
	gatewayHad := gates["gateway"].last()
	second.Close()
	eventually(t, "web knows no gate of orders", func() bool { return addresses() == "" })
	if gates["gateway"].last() != gatewayHad {
		t.Error("the gateway, which does not call orders, got new orders")
	}
	for _, g := range []*fakeGate{second, gates["orders"]} {
		<-g.ended // the stream of a closed session ends
		g.Close()
	}
	ctx, cancel := context.WithCancel(t.Context())
	s, err := c.Connect(ctx, hello("orders", 9022))
	if err != nil {
		t.Fatal(err)
	}
	<-s.Orders()
	cancel()
	if _, more := <-s.Orders(); more {
		t.Error("a session outlives its context")
	}
	eventually(t, "web knows no gate of orders", func() bool { return addresses() == "" })
}

// A gate whose service is no longer in the intent is told so: its old orders
// would let callers in.
func TestRemovedServiceDenies(t *testing.T) {
	t.Parallel()
	c := open(t, tempState(t), Options{})
	gates := shopGates(t, c)
	apply(t, c, shop("web: [list]"))
	text := shop("web: [list]")
	r := apply(t, c, text[:strings.Index(text, "  orders:")])
	o := gates["orders"].last()
	if o.Of != r.Commit.Hash || len(o.Intent.Services) != 0 || len(o.Endpoints) != 0 {
		t.Errorf("the gate of a removed service has %+v", o)
	}
	if _, ok := gates["web"].last().Endpoints["orders"]; ok {
		t.Error("web still knows where orders is")
	}
}

// A gate that does not take its orders finds the newest when it does.
func TestSlowGateGetsTheNewest(t *testing.T) {
	t.Parallel()
	c := open(t, tempState(t), Options{AckWait: time.Millisecond})
	gate(t, c, hello("", 0), nil)
	gate(t, c, hello("web", 9001), nil)
	slow, err := c.Connect(t.Context(), hello("orders", 9002))
	if err != nil {
		t.Fatal(err)
	}
	rules := []string{"web: [list]", "web: [create]", "web: [get]", "web: all"}
	var last *Result
	for range 5 {
		for _, r := range rules {
			if last = apply(t, c, shop(r)); last.Live {
				t.Fatal("a change is live though a gate has not answered")
			}
		}
	}
	o := <-slow.Orders()
	if o.Of != last.Commit.Hash {
		t.Error("a slow gate gets old orders")
	}
	select {
	case o := <-slow.Orders():
		t.Errorf("a slow gate finds a queue: %v", o.Hash)
	default:
	}
	if len(slow.pending) > maxPending {
		t.Errorf("%d orders wait for an answer", len(slow.pending))
	}
	slow.Ack(Ack{Hash: o.Hash})
	if st := c.Status(); !st.Live() {
		t.Errorf("status is %+v", st)
	}
}

// Status claims what gates have acknowledged, and no more.
func TestStatusClaimsOnlyWhatWasAcknowledged(t *testing.T) {
	t.Parallel()
	clk := newClock()
	c := open(t, tempState(t), Options{Now: clk.now, AckWait: time.Millisecond})
	if st := c.Status(); st.Intent != nil || st.Live() || st.Gates == nil || st.Rules == nil {
		t.Errorf("status at first is %+v", st)
	}
	gate(t, c, hello("", 0), nil)
	gate(t, c, hello("web", 9001), nil)
	s, err := c.Connect(t.Context(), hello("orders", 9002))
	if err != nil {
		t.Fatal(err)
	}
	rule := func(name string) RuleStatus { return ruleStatus(t, c, name) }
	applied := func(text string) *Result {
		t.Helper()
		r := apply(t, c, text)
		eventually(t, "the other gates have answered", func() bool {
			return !slices.ContainsFunc(c.Status().Gates, func(g GateStatus) bool { return g.Behind != "" && g.Place != s.hello.Place.String() })
		})
		return r
	}
	applied(shop("web: [list]"))
	begin := clk.now()
	r := rule("orders: web")
	if len(r.Enforced) != 1 || r.Enforced[0].Place != "gate of web" || len(r.Missing) != 1 || r.Missing[0] != (Missing{"gate of orders", "127.0.0.1:9002", "has not acknowledged its orders"}) {
		t.Errorf("before the acknowledgement: %+v", r)
	}
	s.Ack(Ack{Hash: "of nothing ever sent"})
	if r := rule("orders: web"); len(r.Missing) != 1 {
		t.Errorf("after a made up acknowledgement: %+v", r)
	}
	o := <-s.Orders()
	s.Ack(Ack{Hash: o.Hash})
	if r := rule("orders: web"); len(r.Enforced) != 2 || len(r.Missing) != 0 || !r.Enforced[0].Since.Equal(begin) || r.Enforced[0].Orders != o.Hash {
		t.Errorf("after the acknowledgement: %+v", r)
	}

	// Another sentence changes: this one is enforced without a break.
	clk.turn(time.Hour)
	applied("# one line more\n" + shop("web: [list], anyone: [create]"))
	o = <-s.Orders()
	s.Ack(Ack{Hash: o.Hash})
	if r := rule("orders: web"); len(r.Enforced) != 2 || !r.Enforced[0].Since.Equal(begin) || r.Enforced[0].Orders != o.Hash {
		t.Errorf("after another rule changed: %+v", r)
	}
	if r := rule("orders: anyone"); len(r.Enforced) != 2 || !r.Enforced[0].Since.Equal(clk.now()) {
		t.Errorf("the new rule: %+v", r)
	}

	// The sentence itself changes, and the gate refuses.
	clk.turn(time.Hour)
	res := applied(shop("web: [list, get]"))
	refused := <-s.Orders()
	s.Ack(Ack{Hash: refused.Hash, Err: "no such thing as get"})
	r = rule("orders: web")
	if res.Live || len(r.Enforced) != 1 || len(r.Missing) != 1 || r.Missing[0].Why != "refused: no such thing as get" {
		t.Errorf("after a refusal: %+v", r)
	}
	for _, g := range c.Status().Gates {
		if g.Place == "gate of orders" && (g.Orders != o.Hash || g.Intent != o.Of || g.Behind == "") {
			t.Errorf("a gate that refused is shown as %+v", g)
		}
	}

	// The first words again: the gate enforces them already, by old orders.
	applied(shop("web: [list], anyone: [create]"))
	if r := rule("orders: web"); len(r.Enforced) != 2 || len(r.Missing) != 0 {
		t.Errorf("a sentence that the gate still enforces: %+v", r)
	}
	s.Close()
	if r := rule("orders: web"); len(r.Missing) != 1 || r.Missing[0].Why != "no gate is connected" {
		t.Errorf("after the gate has gone: %+v", r)
	}
}

// ruleStatus is what is said of the rule with this name.
func ruleStatus(t *testing.T, c *Control, name string) RuleStatus {
	t.Helper()
	rules := c.Status().Rules
	i := slices.IndexFunc(rules, func(r RuleStatus) bool { return r.Name == name })
	if i < 0 {
		t.Fatalf("no rule %q in %+v", name, rules)
	}
	return rules[i]
}

func TestGuardrailStatus(t *testing.T) {
	t.Parallel()
	c := open(t, tempState(t), Options{})
	shopGates(t, c)
	apply(t, c, shop("web: [list]")+"guardrails: [{name: no-orders, deny: anyone -> orders}, {name: not-web, deny: \"* -> web\"}]\n")
	st := c.Status()
	found := 0
	for _, r := range st.Rules {
		if r.Service == "" {
			found++
			if len(r.Missing) != 0 || (r.Name == "not-web" && len(r.Enforced) < 2) {
				t.Errorf("guardrail %+v", r)
			}
		}
	}
	if found != 2 || !st.Live() {
		t.Errorf("status is %+v", st)
	}
}

// Apply waits for the gates that are there, and no longer than it may.
func TestApplyWaits(t *testing.T) {
	t.Parallel()
	c := open(t, tempState(t), Options{AckWait: time.Hour})
	gate(t, c, hello("", 0), nil)
	gate(t, c, hello("web", 9001), nil)
	hold := make(chan struct{})
	orders := gate(t, c, hello("orders", 9002), func(*merlon.Orders) string { <-hold; return "" })
	done := make(chan *Result)
	go func() {
		r, err := c.Apply(context.Background(), load(t, shop("web: [list]")), ApplyOptions{})
		if err != nil {
			t.Error(err)
		}
		done <- r
	}()
	eventually(t, "orders has its orders", func() bool { return orders.last() != nil })
	// Gates that come meanwhile are waited for as well.
	gate(t, c, hello("orders", 9012), nil)
	select {
	case <-done:
		t.Fatal("Apply did not wait")
	default:
	}
	close(hold)
	if r := <-done; r == nil || !r.Live {
		t.Errorf("result is %+v", r)
	}

	// A gate that goes is not waited for; nor is anyone once the caller gave up.
	mute, err := c.Connect(t.Context(), hello("orders", 9022))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		r, _ := c.Apply(context.Background(), load(t, shop("web: [get]")), ApplyOptions{Widen: true})
		done <- r
	}()
	eventually(t, "the change is in force", func() bool { return c.Status().Intent.Number == 2 })
	mute.Close()
	if r := <-done; r == nil || !r.Live {
		t.Errorf("result is %+v", r)
	}
	if _, err := c.Connect(t.Context(), hello("orders", 9032)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	r, err := c.Apply(ctx, load(t, shop("web: [create]")), ApplyOptions{Widen: true})
	if err == nil && r.Live {
		t.Errorf("a mute gate counts as live: %+v", r)
	}
}

func TestRestartAndRollback(t *testing.T) {
	t.Parallel()
	dir := tempState(t)
	c := open(t, dir, Options{})
	shopGates(t, c)
	one := apply(t, c, shop("web: [list]"))
	two := apply(t, c, shop("web: [list, get]"))
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = open(t, dir, Options{})
	gates := shopGates(t, c)
	eventually(t, "all gates have the last intent", func() bool { st := c.Status(); return st.Live() })
	if o := gates["orders"].last(); o.Of != two.Commit.Hash {
		t.Errorf("after a restart %q is in force", o.Of)
	}
	r, err := c.Rollback(t.Context(), one.Commit.Hash[:12], ApplyOptions{Who: "me", Message: "back"})
	if err != nil || r.Commit.Hash != one.Commit.Hash || r.Commit.Number != 3 || !r.Live {
		t.Fatalf("rollback: %+v, %v", r, err)
	}
	var widens *WidensError
	if _, err := c.Rollback(t.Context(), two.Commit.Hash, ApplyOptions{}); !errors.As(err, &widens) {
		t.Errorf("a rollback widens without being told to: %v", err)
	}
	if _, err := c.Rollback(t.Context(), "ffff", ApplyOptions{}); !errors.Is(err, errNoIntent) {
		t.Errorf("a rollback to nothing: %v", err)
	}
	h, err := c.History(t.Context(), 0)
	if err != nil || len(h) != 3 || h[0].Message != "back" || len(h[1].Changes) == 0 {
		t.Errorf("history is %+v, %v", h, err)
	}
}

func TestRecordedIntentUnusable(t *testing.T) {
	t.Parallel()
	dir := tempState(t)
	s := mustStore(t, dir)
	bad := load(t, shop(""))
	if _, err := s.commit(t.Context(), Commit{Hash: "another hash"}, bad.Bundle); err != nil {
		t.Fatal(err)
	}
	s.close()
	if _, err := Open(t.Context(), dir, Options{}); err == nil || !strings.Contains(err.Error(), "now has the hash") {
		t.Errorf("got %v", err)
	}
	s = mustStore(t, dir)
	if _, err := s.commit(t.Context(), Commit{Hash: "zz"}, []byte("no bundle")); err != nil {
		t.Fatal(err)
	}
	s.close()
	if _, err := Open(t.Context(), dir, Options{}); err == nil || !strings.Contains(err.Error(), "the bundle cannot be read") {
		t.Errorf("got %v", err)
	}
}
