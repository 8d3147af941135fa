package gate

import (
	"fmt"
	"testing"

	"merlon"
	"merlon/gate/http1"
	"merlon/record"
)

// BenchmarkCount is what metrics add to a call.
func BenchmarkCount(b *testing.B) {
	in := &merlon.Intent{Services: []merlon.Service{{Name: "web", Operations: make([]merlon.Operation, 20)}}}
	g := new(Gate)
	g.metrics.init(2, "gateway")
	c := &conn{g: g}
	c.x.f = &force{series: g.metrics.series(in)}
	c.x.service, c.x.operation = &in.Services[0], &in.Services[0].Operations[7]
	c.x.call.Caller.Kind = merlon.Anyone
	r := &record.Record{Status: 200, Duration: 200e3, BytesOut: 1024, Verdict: merlon.Verdict{Effect: merlon.Allow, Reason: merlon.ReasonAllowed}}
	b.ReportAllocs()
	for b.Loop() {
		c.count(r)
	}
}

// BenchmarkJoinTrace is what a call costs that is in no trace, and one that
// begins one which is not sampled.
func BenchmarkJoinTrace(b *testing.B) {
	for name, traces := range map[string]*merlon.Traces{"off": nil, "on": {Sample: 0}} {
		b.Run(name, func(b *testing.B) {
			x := &exchange{f: &force{traces: traces}, req: &http1.Request{Fields: make([]http1.Field, 10)}}
			b.ReportAllocs()
			for b.Loop() {
				x.joinTrace()
			}
		})
	}
}

// TestCellsAreBounded: orders with more operations and callers than a gate has
// cells for, one after the other, fill no memory, and the calls are counted
// nevertheless.
func TestCellsAreBounded(t *testing.T) {
	t.Parallel()
	g := new(Gate)
	g.metrics.init(1, "gateway")
	c := &conn{g: g}
	r := &record.Record{Status: 200, Verdict: merlon.Verdict{Effect: merlon.Allow, Reason: merlon.ReasonAllowed}}
	calls := 0
	for version := range 4 {
		in := &merlon.Intent{Services: make([]merlon.Service, 5)}
		for i := range in.Services {
			svc := &in.Services[i]
			svc.Name = fmt.Sprintf("s%d-%d", version, i)
			svc.Operations = make([]merlon.Operation, 1000)
			for j := range svc.Operations {
				svc.Operations[j].Name = fmt.Sprint("op", j)
			}
		}
		c.x.f = &force{series: g.metrics.series(in)}
		before := len(g.metrics.cells)
		if version > 1 && before > 0 {
			t.Errorf("%d cells of old orders are left", before)
		}
		for i := range in.Services {
			for j := range in.Services[i].Operations {
				for _, caller := range []string{"", in.Services[0].Name, in.Services[1].Name} {
					c.x.service, c.x.operation = &in.Services[i], &in.Services[i].Operations[j]
					c.x.call.Caller = merlon.Caller{Kind: merlon.Login, Name: caller}
					c.count(r)
					calls++
				}
			}
		}
		if n := len(g.metrics.cells); n > maxCells+positions {
			t.Fatalf("%d cells", n)
		}
		if version > 0 {
			continue
		}
		counted := uint64(0)
		for _, cell := range g.metrics.all() {
			counted += cell.sum(func(p *stripe) uint64 { return p.answered[2].Load() })
		}
		if counted != uint64(calls) {
			t.Errorf("%d calls, %d counted", calls, counted)
		}
	}
}

// TestOutcomesAreBounded: so are the outcomes of a cell.
func TestOutcomesAreBounded(t *testing.T) {
	t.Parallel()
	var c cell
	const n = 1000
	for i := range n {
		for range 2 {
			c.outcome("deny", merlon.Reason(fmt.Sprint(i)), 4).n.Add(1)
		}
	}
	counted := uint64(0)
	for _, o := range *c.outcomes.Load() {
		counted += o.n.Load()
	}
	if got := len(*c.outcomes.Load()); got > maxOutcomes+1 || counted != 2*n {
		t.Errorf("%d outcomes, %d counted", got, counted)
	}
}
