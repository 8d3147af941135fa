package upstream

import (
	"context"
	"net"
	"syscall"
	"testing"
	"time"

	"merlon"
)

// blackHole is an address where SYNs are dropped: a listener whose backlog is
// one and full.
func blackHole(t testing.TB) merlon.Endpoint {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	raw, err := ln.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var shrunk error
	if err := raw.Control(func(fd uintptr) { shrunk = syscall.Listen(int(fd), 0) }); err != nil || shrunk != nil {
		t.Fatal(err, shrunk)
	}
	for range 10 {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		nc, err := new(net.Dialer).DialContext(ctx, "tcp", ln.Addr().String())
		cancel()
		if err != nil {
			return merlon.Endpoint{Address: ln.Addr().String()}
		}
		t.Cleanup(func() { nc.Close() })
	}
	t.Skip("the backlog of a listener cannot be filled here")
	return merlon.Endpoint{}
}
