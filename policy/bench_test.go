package policy

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"merlon"
)

// estate is an intent of 1,000 services and 10,000 rules: every service has
// ten operations and ten callers.
func estate(t testing.TB) *draft {
	d := newDraft(t).gateway("shop.example", "staff")
	const services, each = 1000, 10
	for i := range services {
		ops := make([]string, each)
		for j := range ops {
			ops[j] = fmt.Sprintf("op%d GET /s%d/items%d/{id}?page", j, i, j)
		}
		d.service(fmt.Sprintf("service-%04d", i), ops...)
	}
	for i := range services {
		name := fmt.Sprintf("service-%04d", i)
		for j := range each - 1 {
			d.rule(name, fmt.Sprintf("service-%04d: op%d op%d op%d", (i+j*97+1)%services, j, (j+1)%each, (j+5)%each), "")
		}
		when := ""
		if i%10 == 0 {
			when = `claims.role == "support" && path.id != "0"`
		}
		d.rule(name, "staff: op1 op2", when)
	}
	for i := range 10 {
		d.guardrail(fmt.Sprint("g", i), fmt.Sprintf("service-%04d -> service-%04d", i, i+1))
	}
	return d
}

// estateCalls are calls of all kinds, in random order.
func estateCalls(n int) []merlon.Call {
	r := rand.New(rand.NewPCG(3, 4))
	calls := make([]merlon.Call, n)
	for i := range calls {
		callee := r.IntN(1000)
		op := r.IntN(10)
		calls[i] = merlon.Call{Caller: workload(fmt.Sprintf("service-%04d", (callee+r.IntN(9)*97+1)%1000)),
			Service: fmt.Sprintf("service-%04d", callee), Operation: fmt.Sprintf("op%d", op), Method: "GET",
			Host: "shop.example", Path: fmt.Sprintf("/s%d/items%d/7", callee, op)}
	}
	return calls
}

func BenchmarkDecide(b *testing.B) {
	p := estate(b).compile()
	calls := estateCalls(1 << 16)
	allowed := 0
	for i := range calls {
		if p.Decide(&calls[i]).Effect == merlon.Allow {
			allowed++
		}
	}
	if allowed < len(calls)/10 || allowed > len(calls)*9/10 {
		b.Fatalf("%d of %d calls are allowed", allowed, len(calls))
	}
	b.Run("same", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			p.Decide(&calls[0])
		}
	})
	b.Run("random", func(b *testing.B) {
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			p.Decide(&calls[i&(len(calls)-1)])
			i++
		}
	})
	b.Run("cold", func(b *testing.B) { // the caches are full of something else
		b.ReportAllocs()
		noise := make([]byte, 64<<20)
		i, sum := 0, byte(0)
		for b.Loop() {
			if i&63 == 0 {
				b.StopTimer()
				for j := 0; j < len(noise); j += 64 {
					sum += noise[j]
				}
				b.StartTimer()
			}
			p.Decide(&calls[i&(len(calls)-1)])
			i++
		}
		_ = sum
	})
	b.Run("condition", func(b *testing.B) {
		b.ReportAllocs()
		call := merlon.Call{Caller: login("staff", map[string]any{"role": "support"}), Service: "service-0010", Operation: "op1",
			Params: []merlon.Param{{Name: "id", Value: "7"}}}
		if p.Decide(&call).Effect != merlon.Allow {
			b.Fatal("denied")
		}
		for b.Loop() {
			p.Decide(&call)
		}
	})
}

func BenchmarkRoute(b *testing.B) {
	p := estate(b).compile()
	calls := estateCalls(1 << 14)
	params := make([]merlon.Param, 0, 8)
	b.Run("edge", func(b *testing.B) {
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			c := &calls[i&(len(calls)-1)]
			p.RouteEdge(c.Host, c.Method, c.Path, params)
			i++
		}
	})
	b.Run("service", func(b *testing.B) {
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			c := &calls[i&(len(calls)-1)]
			p.RouteService(c.Service, c.Method, c.Path, params)
			i++
		}
	})
}

func BenchmarkCompile(b *testing.B) {
	d := estate(b)
	for b.Loop() {
		d.compile()
	}
}

func BenchmarkScope(b *testing.B) {
	in := estate(b).in
	b.Run("one", func(b *testing.B) {
		sc := NewScoper(in)
		for b.Loop() {
			sc.Scope(merlon.Place{Service: "service-0500"})
		}
	})
	b.Run("all", func(b *testing.B) {
		for b.Loop() {
			sc := NewScoper(in)
			sc.Scope(merlon.Edge)
			for i := range in.Services {
				sc.Scope(merlon.Place{Service: in.Services[i].Name})
			}
		}
	})
}

// TestDecideDoesNotAllocate holds for every reason without a condition.
func TestDecideDoesNotAllocate(t *testing.T) {
	d := shop(t)
	d.guardrail("no refunds", "* -> payments.Refund")
	p := d.compile()
	for _, c := range []merlon.Call{
		{Caller: workload("web"), Service: "orders", Operation: "createOrder"},
		{Caller: anyone(), Service: "web", Operation: "home"},
		{Caller: login("staff", map[string]any{"role": "x"}), Service: "web", Operation: "home"},
		{Caller: workload("web"), Service: "payments", Operation: "Charge"},
		{Caller: workload("orders"), Service: "payments", Operation: "Refund"},
		{Caller: workload("web"), Service: "nowhere"},
		{Caller: workload("web"), Service: "orders", Operation: "nothing"},
		{},
	} {
		if n := testing.AllocsPerRun(100, func() { p.Decide(&c) }); n != 0 {
			t.Errorf("%+v: %v allocations (%s)", c, n, p.Decide(&c).Reason)
		}
	}
	params := make([]merlon.Param, 0, 8)
	if n := testing.AllocsPerRun(100, func() {
		p.RouteEdge("shop.example", "GET", "/assets/a/b", params)
		p.RouteEdge("shop.example", "GET", "/orders", params)
		p.RouteEdge("other.example", "GET", "/", params)
		p.RouteService("orders", "GET", "/orders/7", params)
	}); n != 0 {
		t.Errorf("routing: %v allocations", n)
	}
}
