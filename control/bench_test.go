package control

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"merlon/intent"
)

// estate is n services; each may be called by five others, and one in ten by
// anyone.
func estate(n, changed int) string {
	var b strings.Builder
	b.WriteString("trustDomain: big.example\ngateway: {hosts: [big.example], certificate: none, listen: \"127.0.0.1:8080\"}\nservices:\n")
	for i := range n {
		fmt.Fprintf(&b, "  s%d:\n    address: 10.0.0.1:%d\n    operations: {get%d: \"GET /s%d/{id}\", put%d: \"PUT /s%d/{id}\", list%d: GET /s%d}\n    callers:\n", i, 1000+i, i, i, i, i, i, i)
		for k := 1; k <= 5; k++ {
			fmt.Fprintf(&b, "      s%d: [get%d, list%d]\n", (i+k*k*7)%n, i, i)
		}
		if i%10 == 0 {
			fmt.Fprintf(&b, "      anyone: [list%d]\n", i)
		}
		if i == changed {
			fmt.Fprintf(&b, "      s%d: [put%d]\n", (i+1)%n, i)
		}
	}
	return b.String()
}

// BenchmarkChangeLive measures a change from its record to the last of 2,001
// acknowledgements, on one core: live-ms by the clock, cpu-ms of processor time
// (on a machine that does other things, only the second says much). Compiling
// and comparing come before and are in ns/op. "one rule" is a change that is
// local; "every line" moves all sentences of the intent to other lines, so that
// every place has other orders.
func BenchmarkChangeLive(b *testing.B) {
	const services = 2000
	for _, tc := range []struct{ name, before, after string }{
		{"one rule", estate(services, -1), strings.Replace(estate(services, -1), "[get1000, list1000]", "[get1000, put1000]", 1)},
		{"every line", estate(services, -1), "# a line\n" + estate(services, -1)},
	} {
		b.Run(tc.name, func(b *testing.B) {
			runtime.GOMAXPROCS(1)
			b.Cleanup(func() { runtime.GOMAXPROCS(runtime.NumCPU()) })
			c := open(b, b.TempDir()+"/state", Options{AckWait: time.Minute})
			for i := range services {
				gate(b, c, hello(fmt.Sprintf("s%d", i), 1000+i), nil)
			}
			gate(b, c, hello("", 0), nil)
			changes := []*intent.Loaded{load(b, tc.before), load(b, tc.after)}
			var live, cpu time.Duration
			n := 0
			for b.Loop() {
				before := processorTime(b)
				r, err := c.Apply(context.Background(), changes[n%2], ApplyOptions{Widen: true})
				if err != nil || !r.Live {
					b.Fatalf("not live: %v", err)
				}
				cpu += processorTime(b) - before
				live += r.Took
				n++
			}
			b.ReportMetric(float64(live.Microseconds())/1000/float64(n), "live-ms")
			b.ReportMetric(float64(cpu.Microseconds())/1000/float64(n), "cpu-ms(whole)")
		})
	}
}

func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkStatus(b *testing.B) {
	const services = 2000
	c := open(b, b.TempDir()+"/state", Options{AckWait: time.Minute})
	for i := range services {
		gate(b, c, hello(fmt.Sprintf("s%d", i), 1000+i), nil)
	}
	gate(b, c, hello("", 0), nil)
	if _, err := c.Apply(context.Background(), load(b, estate(services, -1)), ApplyOptions{}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if st := c.Status(); !st.Live() {
			b.Fatal("not live")
		}
	}
}
