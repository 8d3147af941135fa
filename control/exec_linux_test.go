package control

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestExec: a lease is for the process that asks, and lasts as long as it asks.
func TestExec(t *testing.T) {
	t.Parallel()
	released := make(chan struct{}, 1)
	c := open(t, tempState(t), Options{Exec: func(_ context.Context, service string, pid, uid int) (Way, func(), error) {
		if service != "web" || pid != os.Getpid() || uid != os.Getuid() {
			return Way{}, nil, errors.New("not you")
		}
		return Way{Address: "127.0.0.1:7", Namespace: "/proc/1/fd/9"}, func() { released <- struct{}{} }, nil
	}})
	a := serve(t, c)
	client := NewClient(filepath.Dir(a.Path()))
	wait := func(what string) {
		t.Helper()
		select {
		case <-released:
		case <-time.After(20 * time.Second):
			t.Fatalf("not released: %s", what)
		}
	}

	ctx, cancel := context.WithCancel(t.Context())
	lease, err := client.Exec(ctx, "web")
	if err != nil || lease.Way != (Way{"127.0.0.1:7", "/proc/1/fd/9"}) {
		t.Fatalf("got %+v %v", lease, err)
	}
	cancel() // has nothing to do with the lease any more
	second, err := client.Exec(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	if len(released) > 0 {
		t.Error("the lease ended with the context that it was asked for under")
	}
	lease.Release()
	wait("by its holder")

	if _, err := client.Exec(t.Context(), "orders"); err == nil || !strings.Contains(err.Error(), "not you") {
		t.Errorf("another service: %v", err)
	}
	began := time.Now()
	if err := a.Close(t.Context()); err != nil || time.Since(began) > 10*time.Second {
		t.Errorf("a lease keeps the API from closing: %v after %v", err, time.Since(began))
	}
	wait("by the end of the API")
	second.Release()
}

// TestExecNotOffered: without a system behind it there is nothing to lend.
func TestExecNotOffered(t *testing.T) {
	t.Parallel()
	a := serve(t, open(t, tempState(t), Options{}))
	if _, err := NewClient(filepath.Dir(a.Path())).Exec(t.Context(), "web"); err == nil || !strings.Contains(err.Error(), "no programs can be run") {
		t.Errorf("got %v", err)
	}
}
