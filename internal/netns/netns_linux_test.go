package netns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func newNetns(t *testing.T) *Namespace {
	t.Helper()
	n, err := New("a network namespace")
	if errors.Is(err, unix.EPERM) {
		t.Skipf("SKIP: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// here is the namespace that the calling thread is in.
func here(t *testing.T) string {
	t.Helper()
	name, err := os.Readlink(own)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// serve answers every connection with a word.
func serve(l net.Listener, word string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		io.WriteString(c, word)
		c.Close()
	}
}

func hear(t *testing.T, n *Namespace, address string) string {
	t.Helper()
	c, err := n.Dial(t.Context(), address)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	text, err := io.ReadAll(c)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// TestNetnsApart: one address is another socket in each namespace.
func TestNetnsApart(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go serve(l, "host")
	address := l.Addr().String()
	_, port, _ := net.SplitHostPort(address)
	a, b := newNetns(t), newNetns(t)
	for _, n := range []*Namespace{a, b} {
		if c, err := n.Dial(t.Context(), address); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%v reaches the host: %v %v", n, c, err)
		}
		if n.Host() {
			t.Error("it is taken for the host's")
		}
	}
	in, err := a.Listen(address)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	go serve(in, "a")
	for n, want := range map[*Namespace]string{nil: "host", a: "a"} {
		if got := hear(t, n, address); got != want {
			t.Errorf("%v: %q", n, got)
		}
	}
	if got := hear(t, a, "localhost:"+port); got != "a" {
		t.Errorf("by a name: %q", got)
	}
	if _, err := b.Dial(t.Context(), address); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("b reaches a: %v", err)
	}
	if _, err := a.Dial(t.Context(), "192.0.2.1:80"); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("there is a way out: %v", err)
	}
	err = a.Do(func() error {
		all, err := net.Interfaces()
		if err == nil && (len(all) == 0 || all[0].Name != "lo") {
			err = fmt.Errorf("interfaces: %v", all)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	again, err := Open(a.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if got := hear(t, again, address); got != "a" {
		t.Errorf("by its path: %q", got)
	}
}

// TestNetnsThreads: however many are inside, and whatever they come to, no thread
// is anywhere else afterwards, and there are never more than the bound.
func TestNetnsThreads(t *testing.T) {
	t.Parallel()
	n, home := newNetns(t), here(t)
	var wg sync.WaitGroup
	var inside, most atomic.Int64
	failed := errors.New("failed")
	for i := range 4 * maxInside {
		wg.Go(func() {
			err := n.Do(func() error {
				defer inside.Add(-1)
				for now := inside.Add(1); ; {
					if m := most.Load(); now <= m || most.CompareAndSwap(m, now) {
						break
					}
				}
				if name, err := os.Readlink(own); err != nil || name == home {
					t.Errorf("inside is %s, %v", name, err)
				}
				time.Sleep(time.Millisecond) // another takes the processor
				if i%2 == 0 {
					return failed
				}
				return nil
			})
			if (err == failed) != (i%2 == 0) {
				t.Error(err)
			}
			if name, err := os.Readlink(own); err != nil || name != home {
				t.Errorf("outside is %s, %v", name, err)
			}
		})
	}
	wg.Wait()
	if m := most.Load(); m > maxInside {
		t.Errorf("%d threads were inside", m)
	}

	// Who finds no room waits no longer than it wants.
	leave := make(chan struct{})
	for range maxInside {
		wg.Go(func() { n.Do(func() error { inside.Add(1); <-leave; return nil }) })
	}
	for inside.Load() < maxInside {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := n.Dial(ctx, "127.0.0.1:1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	close(leave)
	wg.Wait()
}

// TestNetnsClosed: nothing is entered that is closed, and nothing else instead.
func TestNetnsClosed(t *testing.T) {
	t.Parallel()
	n := newNetns(t)
	n.Close()
	if err := n.Do(func() error { t.Error("inside"); return nil }); err == nil {
		t.Error("it was entered")
	}
}

func TestNil(t *testing.T) {
	t.Parallel()
	var n *Namespace
	l, err := n.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go serve(l, "here")
	if got := hear(t, n, l.Addr().String()); got != "here" {
		t.Error(got)
	}
	ran := 0
	run := func() error { ran++; return nil }
	if err := errors.Join(n.Do(run), n.Start(run), n.Close()); err != nil || ran != 2 || !n.Host() || n.Path() != "" {
		t.Error(err, ran)
	}
}

func TestOpen(t *testing.T) {
	t.Parallel()
	n, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	for _, wrong := range []string{"no-such-name", "/dev/null", "/proc/self/ns/mnt", "2147483647"} {
		if _, err := Open(wrong); err == nil {
			t.Errorf("%s was opened", wrong)
		}
	}
}
