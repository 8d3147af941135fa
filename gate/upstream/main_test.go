package upstream

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"merlon"
	"merlon/internal/peertest"
)

// TestMain fails if a goroutine of this package outlives all tests: every
// cluster and server of a test is closed by then.
func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if left := leaked(); left != "" {
			os.Stderr.WriteString("goroutines left behind:\n" + left + "\n")
			code = 1
		}
	}
	os.Exit(code)
}

// leaked is the goroutines that still run code of this package, after they had
// ample time to end.
func leaked() (left string) {
	for range 1000 {
		buf := make([]byte, 1<<20)
		left = ""
		for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(g, "merlon/gate/upstream") && !strings.Contains(g, "upstream.TestMain") {
				left += g + "\n\n"
			}
		}
		if left == "" {
			return ""
		}
		<-time.After(2 * time.Millisecond)
	}
	return left
}

// clock is a time that tests move.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// server is a real listener on loopback that gives each connection to serve.
type server struct {
	net.Listener
	endpoint merlon.Endpoint
	mu       sync.Mutex
	conns    map[net.Conn]bool
	accepted chan struct{} // one for each connection, dropped if nobody looks
	wg       sync.WaitGroup
}

func serve(t testing.TB, handle func(net.Conn)) *server {
	t.Helper()
	return serveAt(t, "127.0.0.1:0", handle)
}

func serveAt(t testing.TB, address string, handle func(net.Conn)) *server {
	t.Helper()
	ln, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{Listener: ln, conns: map[net.Conn]bool{}, accepted: make(chan struct{}, 1<<16)}
	s.endpoint.Address = ln.Addr().String()
	s.accept(handle)
	t.Cleanup(s.stop)
	return s
}

func (s *server) accept(handle func(net.Conn)) {
	s.wg.Go(func() {
		for {
			nc, err := s.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns[nc] = true
			s.mu.Unlock()
			s.accepted <- struct{}{}
			s.wg.Go(func() {
				handle(nc)
				s.mu.Lock()
				delete(s.conns, nc)
				s.mu.Unlock()
				nc.Close()
			})
		}
	})
}

func (s *server) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for nc := range s.conns {
		nc.Close()
	}
}

func (s *server) stop() {
	s.Close()
	s.hangUp()
	s.wg.Wait()
}

// echo answers every byte with the same byte.
func echo(nc net.Conn) { io.Copy(nc, nc) }

// refused is an address on which nobody listens.
func refused(t testing.TB) merlon.Endpoint {
	t.Helper()
	return merlon.Endpoint{Address: peertest.Address(t)}
}

// open makes a cluster that is closed with the test. Its background work
// stands still unless cfg.after says otherwise.
func open(t testing.TB, cfg Config, endpoints ...merlon.Endpoint) *Cluster {
	t.Helper()
	cfg.Name = "orders"
	if endpoints != nil {
		cfg.Endpoints = endpoints
	}
	if cfg.after == nil {
		cfg.after = func(time.Duration) <-chan time.Time { return nil }
	}
	c := New(cfg)
	t.Cleanup(c.Close)
	return c
}

func get(t testing.TB, c *Cluster, fresh bool) *Conn {
	t.Helper()
	conn, err := c.get(context.Background(), fresh, merlon.Endpoint{})
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// call sends one byte and reads one.
func call(conn *Conn) error {
	b := []byte{'x'}
	if _, err := conn.Write(b); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, b)
	return err
}

func wantReason(t testing.TB, err error, want merlon.Reason) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Reason != want {
		t.Fatalf("got %v, want reason %q", err, want)
	}
}

// until waits for a condition that another goroutine brings about.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

func status(t testing.TB, c *Cluster, e merlon.Endpoint) Status {
	t.Helper()
	for _, s := range c.Status() {
		if s.Endpoint == e {
			return s
		}
	}
	t.Fatalf("%s is no endpoint of the cluster", e.Address)
	return Status{}
}
