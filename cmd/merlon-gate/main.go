// Command merlon-gate is one gate alone: it enforces the orders it finds in a
// file and takes up new ones when the file changes. merlon up runs gates in its
// own process; this program is for a gate on a host of its own.
//
// SIGTERM ends it when the calls in progress are finished. SIGUSR2 starts the
// program anew from its file, as it then is, and hands the sockets on: nobody
// who calls notices. docs/operations.md says how to run it.
package main

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"merlon/internal/handover"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "merlon-gate:", err)
		os.Exit(1)
	}
}

type options struct {
	orders, svid, records, in, out string
	admin, probe                   string
	drain, outlive                 time.Duration
	procs, connections             int
	capture                        uint
	portable                       bool
}

func parse() (o options, err error) {
	flag.StringVar(&o.orders, "orders", "", "`file` of orders, in JSON; read again when it changes")
	flag.StringVar(&o.svid, "svid", "", "`directory` with svid.pem, key.pem and bundle.pem, or the address of a SPIFFE Workload API, unix:///PATH or tcp://IP:PORT")
	flag.StringVar(&o.records, "records", "", "`directory` for the records of decisions")
	flag.StringVar(&o.in, "in", "", "`address` for calls from other gates (a gate beside a service)")
	flag.StringVar(&o.out, "out", "", "`address` for calls of the own service (a gate beside a service)")
	flag.UintVar(&o.capture, "capture", 0, "`port` of 127.0.0.1 and ::1 to which merlon capture brings calls of the own service (a gate beside a service)")
	flag.StringVar(&o.admin, "admin", "", "`address` for /livez, /readyz and /metrics, such as 127.0.0.1:9901; default is none")
	flag.StringVar(&o.probe, "probe", "", "ask the gate at -admin whether it is `live or ready`, and end with status 0 or 1")
	flag.DurationVar(&o.drain, "drain", 30*time.Second, "how long calls may still take after SIGTERM")
	flag.DurationVar(&o.outlive, "outlive", time.Hour, "how long calls, streams and WebSockets may still take after an upgrade")
	flag.IntVar(&o.procs, "procs", 0, "`number` of processors to use; default is 1 beside a service, and at the edge 1 or all, by load")
	flag.IntVar(&o.connections, "connections", 0, "`number` of connections and streams at once; default is 20,000, or what memory and descriptors allow")
	flag.BoolVar(&o.portable, "portable", false, "do without the I/O layer made for Linux")
	flag.Parse()
	switch {
	case flag.NArg() > 0:
		err = fmt.Errorf("%q is no flag", flag.Arg(0))
	case o.procs < 0, o.connections < 0, o.drain < 0, o.outlive < 0:
		err = errors.New("-procs, -connections, -drain and -outlive are not negative")
	case o.capture > 65535:
		err = fmt.Errorf("-capture %d is no port", o.capture)
	case o.capture != 0 && os.Geteuid() == 0:
		err = errors.New("-capture needs a gate that runs as a user of its own: as root, what it captures could not be told from its own calls")
	case o.probe != "" && o.admin == "":
		err = errors.New("-probe needs -admin")
	case o.probe == "" && (o.orders == "" || o.svid == "" || o.records == ""):
		flag.Usage()
		err = errors.New("-orders, -svid and -records are needed")
	}
	return o, err
}

func run() error {
	// First, for SIGUSR2 kills a process that does not know it.
	again := make(chan os.Signal, 1)
	signal.Notify(again, syscall.SIGUSR2)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	o, err := parse()
	if err != nil {
		return err
	}
	if o.probe != "" {
		return probe(o.admin, o.probe)
	}
	s := &server{opt: o, log: slog.New(slog.NewTextHandler(os.Stderr, nil)), file: orderFile{name: o.orders}}
	if s.program, err = program(); err != nil {
		return err
	}
	if s.sockets, err = inherited(); err != nil {
		return err
	}
	if err := s.open(); err != nil {
		return err
	}
	defer s.records.Close()
	if err := s.serve(); err != nil {
		s.gate.Close()
		return err
	}
	return s.loop(again, stop)
}

// inherited are the sockets that another gate or systemd has given us. What
// says so is for this process alone.
func inherited() (*handover.Sockets, error) {
	defer func() {
		for _, name := range []string{handover.Variable, "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
			os.Unsetenv(name)
		}
	}()
	if value := os.Getenv(handover.Variable); value != "" {
		return handover.Inherit(value, os.Getppid())
	}
	return handover.FromSystemd(os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES"), os.Getpid())
}
