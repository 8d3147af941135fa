package exposition

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

// TestFormat: values, labels and histograms as the format has them.
func TestFormat(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	w := New(&out)
	w.Family("a_total", Counter, "All of a.")
	w.Count("", 1<<63)
	w.Count(Label("x", "plain", "y", "q\"b\\n\nl\xff"), 2)
	w.Family("b", Gauge, "B.")
	w.Value(Label("x", "").With("y", "1"), 0.1)
	w.Value(Labels("").With(), -1e9)
	w.Family("c_seconds", Histogram, "C.")
	w.Distribution(Label("x", "1"), []float64{0.5, 1}, []uint64{1, 0, 2}, 7.5)
	w.Distribution("", []float64{1}, []uint64{0, 0}, 0)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	const want = `# HELP a_total All of a.
# TYPE a_total counter
a_total 9223372036854775808
a_total{x="plain",y="q\"b\\n\nl` + "\uFFFD" + `"} 2
# HELP b B.
# TYPE b gauge
b{x="",y="1"} 0.1
b -1e+09
# HELP c_seconds C.
# TYPE c_seconds histogram
c_seconds_bucket{x="1",le="0.5"} 1
c_seconds_bucket{x="1",le="1"} 1
c_seconds_bucket{x="1",le="+Inf"} 3
c_seconds_sum{x="1"} 7.5
c_seconds_count{x="1"} 3
c_seconds_bucket{le="1"} 0
c_seconds_bucket{le="+Inf"} 0
c_seconds_sum 0
c_seconds_count 0
`
	if got := out.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestError: a reader that goes away is noticed.
func TestError(t *testing.T) {
	t.Parallel()
	w := New(broken{})
	w.Family("a", Gauge, strings.Repeat("long ", 10_000))
	w.Count("", 1)
	if err := w.Flush(); !errors.Is(err, errBroken) {
		t.Error(err)
	}
}

type broken struct{}

var errBroken = errors.New("gone")

func (broken) Write([]byte) (int, error) { return 0, errBroken }

// TestProcess: what a process says of itself on a system with /proc.
func TestProcess(t *testing.T) {
	t.Parallel()
	if procStat() == nil {
		t.Skip("there is no /proc here")
	}
	var out bytes.Buffer
	w := New(&out)
	w.Build("a_build_info")
	w.Process()
	w.Runtime()
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines)%3 != 0 {
		t.Fatalf("not every family has one series:\n%s", out.String())
	}
	for i := 0; i < len(lines); i += 3 {
		name := strings.Fields(lines[i])[2]
		value := lines[i+2][strings.LastIndexByte(lines[i+2], ' ')+1:]
		if !strings.HasPrefix(lines[i+2], name) || strings.HasPrefix(value, "-") || value == "0" && name != "process_cpu_seconds_total" && name != "go_gc_cycles_total" {
			t.Errorf("%s", strings.Join(lines[i:i+3], "\n"))
		}
	}
}
