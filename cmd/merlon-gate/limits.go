package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"syscall"

	"merlon"
	"merlon/gate"
	"merlon/internal/cgroup"
)

// What a gate needs at worst, in bytes.
const (
	memoryAlone         = 32 << 20  // without connections: the program, its orders, records to be written
	memoryPerConnection = 320 << 10 // with TLS on both sides and bodies in progress both ways
)

// What a gate needs at worst, in descriptors.
const (
	filesAlone         = 64
	filesPerConnection = 2 // to the client and to an upstream
)

const (
	defaultConnections = 20_000
	leastConnections   = 16
)

// limits fits the process into what the system leaves it, and says what it
// chose. The bounds are for the gate.
func (s *server) limits(place merlon.Place) gate.Bounds {
	opt, log := s.opt, s.log
	connections, why := opt.connections, "-connections"
	if connections == 0 {
		connections, why = defaultConnections, "default"
	}
	lower := func(n int, because string) {
		if n = max(n, leastConnections); n < connections {
			connections, why = n, because
		}
	}
	memory, err := cgroup.Memory(os.DirFS("/"))
	if err != nil {
		log.Warn("the bound on memory could not be read", "error", err)
	}
	heap := "no bound"
	if memory.Bytes > 0 {
		usable := memory.Bytes / 10 * 9
		heap = fmt.Sprintf("%d MiB, 90 %% of %s", usable>>20, memory.File)
		if os.Getenv("GOMEMLIMIT") == "" {
			debug.SetMemoryLimit(usable)
		} else {
			heap = "GOMEMLIMIT"
		}
		lower(int((usable-memoryAlone)/memoryPerConnection), memory.File)
	}
	// The Go runtime has raised the soft limit to the hard one already.
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err == nil {
		lower(int((min(files.Cur, 1<<30)-min(files.Cur, filesAlone))/filesPerConnection), fmt.Sprintf("%d descriptors", files.Cur))
	}
	procs := processors(opt.procs, place)
	log.Info("limits", "processors", runtime.GOMAXPROCS(0), "because", procs, "memory", heap, "connections", connections, "as", why)
	s.paced = procs == byLoad
	return gate.Bounds{Connections: connections}
}

// processors sets how many processors are used, and says why. Beside a service
// a gate has little to do, and waking a second processor for it costs more than
// it gains. At the edge they are all that cpu.max gives, or one while that is
// enough (keepPace).
func processors(asked int, place merlon.Place) (why string) {
	switch {
	case asked > 0:
		runtime.GOMAXPROCS(asked)
		return "-procs"
	case os.Getenv("GOMAXPROCS") != "":
		return "GOMAXPROCS"
	case place != merlon.Edge:
		runtime.GOMAXPROCS(1)
		return "beside a service"
	}
	return byLoad
}

// byLoad is why a gate at the edge has the processors it has.
const byLoad = "at the edge, by load"
