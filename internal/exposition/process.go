package exposition

import (
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
)

// Build writes what was built, as one series whose labels say it.
func (w *Writer) Build(family string) {
	version, revision := "devel", ""
	if info, ok := debug.ReadBuildInfo(); ok {
		if v := info.Main.Version; v != "" && v != "(devel)" {
			version = v
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				revision = s.Value
			}
		}
	}
	w.Family(family, Gauge, "What this program was built from; always 1.")
	w.Count(Label("version", version, "revision", revision, "go", runtime.Version()), 1)
}

// goMetrics are what the runtime says of itself, by the names that Prometheus
// knows from other Go programs where there are such.
var goMetrics = [...]struct {
	name   string
	kind   Kind
	help   string
	source string
}{
	{"go_goroutines", Gauge, "Goroutines that exist.", "/sched/goroutines:goroutines"},
	{"go_gomaxprocs", Gauge, "Processors that may run Go code at once.", "/sched/gomaxprocs:threads"},
	{"go_heap_objects_bytes", Gauge, "Memory of objects, live or not yet swept.", "/memory/classes/heap/objects:bytes"},
	{"go_memory_bytes", Gauge, "All memory that the runtime has mapped.", "/memory/classes/total:bytes"},
	{"go_heap_allocated_bytes_total", Counter, "Memory allocated since the start.", "/gc/heap/allocs:bytes"},
	{"go_gc_cycles_total", Counter, "Garbage collections since the start.", "/gc/cycles/total:gc-cycles"},
}

// Runtime writes what the Go runtime says of itself. It stops nothing.
func (w *Writer) Runtime() {
	samples := make([]metrics.Sample, len(goMetrics))
	for i := range goMetrics {
		samples[i].Name = goMetrics[i].source
	}
	metrics.Read(samples)
	for i, m := range goMetrics {
		w.Family(m.name, m.kind, m.help)
		if samples[i].Value.Kind() == metrics.KindUint64 {
			w.Count("", samples[i].Value.Uint64())
		}
	}
}

// ticksPerSecond is the kernel's unit of times in /proc on every architecture
// that Go runs on (proc(5): sysconf(_SC_CLK_TCK)).
const ticksPerSecond = 100

// Process writes what the kernel says of this process; where it does not say it
// in /proc, the families have no series.
func (w *Writer) Process() {
	stat := procStat()
	field := func(i int) (float64, bool) { // numbered as in proc(5)
		if i -= 3; i >= len(stat) {
			return 0, false
		}
		v, err := strconv.ParseFloat(stat[i], 64)
		return v, err == nil
	}
	w.Family("process_cpu_seconds_total", Counter, "Processor time that was used.")
	user, ok := field(14)
	if system, too := field(15); ok && too {
		w.Value("", (user+system)/ticksPerSecond)
	}
	w.Family("process_resident_memory_bytes", Gauge, "Memory that is in use.")
	if pages, ok := field(24); ok {
		w.Value("", pages*float64(os.Getpagesize()))
	}
	w.Family("process_virtual_memory_bytes", Gauge, "Memory that is mapped.")
	if size, ok := field(23); ok {
		w.Value("", size)
	}
	w.Family("process_start_time_seconds", Gauge, "When the process began, in seconds since 1970.")
	if began, ok := field(22); ok {
		if boot, ok := bootTime(); ok {
			w.Value("", boot+began/ticksPerSecond)
		}
	}
	w.Family("process_open_fds", Gauge, "File descriptors that are open.")
	if n, ok := openFiles(); ok {
		w.Count("", n)
	}
	w.Family("process_max_fds", Gauge, "File descriptors that may be open.")
	if most, ok := maxFiles(); ok {
		w.Value("", most)
	}
}

// procStat is /proc/self/stat from the third field on: the second is a name in
// parentheses, with anything in it.
func procStat() []string {
	b, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return nil
	}
	return strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
}

func bootTime() (float64, bool) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "btime "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			return v, err == nil
		}
	}
	return 0, false
}

// openFiles counts the descriptors, less the one that counting takes.
func openFiles() (uint64, bool) {
	dir, err := os.Open(filepath.FromSlash("/proc/self/fd"))
	if err != nil {
		return 0, false
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	return uint64(max(len(names)-1, 0)), err == nil
}

func maxFiles() (float64, bool) {
	b, err := os.ReadFile("/proc/self/limits")
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "Max open files"); ok {
			if fields := strings.Fields(rest); len(fields) > 0 {
				v, err := strconv.ParseFloat(fields[0], 64)
				return v, err == nil
			}
		}
	}
	return 0, false
}
