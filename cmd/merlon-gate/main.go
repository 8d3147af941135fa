// Command merlon-gate is one gate alone: it enforces the orders it finds in a
// file and takes up new ones when the file changes. merlon up runs gates in its
// own process; this program is for a gate on a host of its own.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"merlon"
	"merlon/gate"
	"merlon/record"
)

// maxOrders bounds the file of orders, in bytes.
const maxOrders = 64 << 20

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "merlon-gate:", err)
		os.Exit(1)
	}
}

type options struct {
	orders, svid, records, in, out string
	portable                       bool
}

func run() error {
	var o options
	flag.StringVar(&o.orders, "orders", "", "`file` of orders, in JSON; read again when it changes")
	flag.StringVar(&o.svid, "svid", "", "`directory` with svid.pem, key.pem and bundle.pem")
	flag.StringVar(&o.records, "records", "", "`directory` for the records of decisions")
	flag.StringVar(&o.in, "in", "", "`address` for calls from other gates (a gate beside a service)")
	flag.StringVar(&o.out, "out", "", "`address` for calls of the own service (a gate beside a service)")
	flag.BoolVar(&o.portable, "portable", false, "do without the I/O layer made for Linux")
	flag.Parse()
	if o.orders == "" || o.svid == "" || o.records == "" || flag.NArg() > 0 {
		flag.Usage()
		return errors.New("-orders, -svid and -records are needed")
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	orders, err := readOrders(o.orders)
	if err != nil {
		return err
	}
	// Beside a service a gate has little to do, and waking a second processor
	// for it costs more than it gains. GOMAXPROCS says otherwise.
	if orders.Place != merlon.Edge && os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(1)
	}
	source, err := readSVID(o.svid)
	if err != nil {
		return err
	}
	records, err := record.Open(o.records, record.Options{
		Now:         time.Now,
		TrustDomain: orders.Intent.TrustDomain,
		Place:       orders.Place.String(),
	})
	if err != nil {
		return err
	}
	defer records.Close()
	w := new(own)
	g, err := gate.New(gate.Config{
		Own:         w.check,
		Place:       orders.Place,
		TrustDomain: orders.Intent.TrustDomain,
		Source:      source,
		Records:     records,
		Log:         log,
		Portable:    o.portable,
	})
	if err != nil {
		return err
	}
	if err := w.swap(g, orders); err != nil {
		return fmt.Errorf("%s: %w", o.orders, err)
	}
	return serve(g, w, orders, o, log)
}

// serve runs the gate until a signal, then lets calls in progress finish.
func serve(g *gate.Gate, w *own, orders *merlon.Orders, o options, log *slog.Logger) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	listeners, err := listen(orders, o)
	if err != nil {
		return err
	}
	for at, l := range listeners {
		log.Info("serving", "place", orders.Place.String(), "at", at.String(), "address", l.Addr().String())
		go g.Serve(l, at)
	}
	watch(ctx, g, w, orders, o.orders, log)
	stop() // a second signal ends the gate at once
	log.Info("stopping: calls in progress are finished")
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return g.Drain(ctx)
}

func listen(orders *merlon.Orders, o options) (map[gate.Position]net.Listener, error) {
	want := map[gate.Position]string{gate.Inbound: o.in, gate.Outbound: o.out}
	if orders.Place == merlon.Edge {
		if orders.Intent.Gateway == nil {
			return nil, errors.New("the orders are for the edge, but the intent has no gateway")
		}
		want = map[gate.Position]string{gate.AtEdge: orders.Intent.Gateway.Listen}
	}
	listeners := map[gate.Position]net.Listener{}
	for at, address := range want {
		if address == "" {
			continue
		}
		l, err := net.Listen("tcp", address)
		if err != nil {
			return nil, fmt.Errorf("%v of %v: %w", at, orders.Place, err)
		}
		listeners[at] = l
	}
	if len(listeners) == 0 {
		return nil, errors.New("nothing to serve: a gate beside a service needs -in or -out")
	}
	return listeners, nil
}

// watch takes up orders whenever their file changes, until ctx ends. Orders
// that cannot be enforced are refused and the old ones stay.
func watch(ctx context.Context, g *gate.Gate, w *own, first *merlon.Orders, name string, log *slog.Logger) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	seen, _ := os.Stat(name) // nil when it is just being replaced: then it is read again
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		info, err := os.Stat(name)
		if err != nil || seen != nil && os.SameFile(info, seen) && info.ModTime().Equal(seen.ModTime()) && info.Size() == seen.Size() {
			continue
		}
		seen = info
		orders, err := readOrders(name)
		if err == nil {
			err = follow(g, w, first, orders)
		}
		if err != nil {
			log.Error("orders refused; the old ones stay in force", "file", name, "error", err)
			continue
		}
		log.Info("orders in force", "hash", orders.Hash)
	}
}

// follow puts new orders in force. A gate cannot move: it listens where its
// first orders said, and refuses others rather than half obey them.
func follow(g *gate.Gate, w *own, first, orders *merlon.Orders) error {
	if was, is := first.Intent.Gateway, orders.Intent.Gateway; first.Place == merlon.Edge {
		switch {
		case is == nil:
			return errors.New("the intent has no gateway any more: stop this gate")
		case was.Listen != is.Listen:
			return fmt.Errorf("the gateway listens on %s and is to listen on %s: start this gate again", was.Listen, is.Listen)
		}
	}
	return w.swap(g, orders)
}

func readOrders(name string) (*merlon.Orders, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxOrders {
		return nil, fmt.Errorf("%s: larger than %d bytes", name, maxOrders)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	orders, err := merlon.DecodeOrders(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return orders, nil
}

// files is an SVID read from files; who writes them rotates them by a restart.
type files struct {
	cert  tls.Certificate
	roots *x509.CertPool
}

func (f *files) SVID() *tls.Certificate { return &f.cert }
func (f *files) Roots() *x509.CertPool  { return f.roots }

func readSVID(dir string) (*files, error) {
	key := filepath.Join(dir, "key.pem")
	info, err := os.Stat(key)
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%s: others can read the key (mode %04o): if nobody has, run chmod 600 %s", key, mode, key)
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "svid.pem"), key)
	if err != nil {
		return nil, err
	}
	bundle, err := os.ReadFile(filepath.Join(dir, "bundle.pem"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(bundle) {
		return nil, fmt.Errorf("%s/bundle.pem: no certificate in it", dir)
	}
	return &files{cert, roots}, nil
}
