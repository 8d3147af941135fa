// Package netns makes and enters network namespaces, in which sockets and
// programs see no network but their own.
//
// A socket belongs to the namespace in which it was made, for good. So a
// process that listens and dials in another namespace needs a thread in there
// for that moment only: what it accepts and has dialed is used from anywhere.
// A new namespace holds a loopback interface and nothing else: no link, no
// address, no route and no rule lead out of it or into it. It has no name
// either, and so ends with the last process and the last descriptor in it,
// whatever becomes of who made it.
//
// A nil *Namespace is the one that the process is in.
package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// ErrUnsupported is for systems without network namespaces.
var ErrUnsupported = fmt.Errorf("network namespaces are there on Linux only: %w", errors.ErrUnsupported)

// maxInside bounds the threads that are in one namespace at a time: the process
// that lives there decides how many connections it opens, and takes, at once.
const maxInside = 64

// Do runs f on a thread that is in the namespace; sockets that f makes, and
// programs that it starts, are too. Goroutines that f starts are not.
func (n *Namespace) Do(f func() error) error { return n.do(context.Background(), f) }

// Listen listens for TCP connections in the namespace.
func (n *Namespace) Listen(address string) (l net.Listener, err error) {
	err = n.Do(func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	return l, err
}

// Dial opens a TCP connection in the namespace. Names are resolved outside.
func (n *Namespace) Dial(ctx context.Context, address string) (c net.Conn, err error) {
	dialer := net.Dialer{KeepAlive: 15 * time.Second, FallbackDelay: -1} // not by two goroutines at once
	if n == nil {
		return dialer.DialContext(ctx, "tcp", address)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	addrs := []netip.Addr{netip.IPv4Unspecified()} // as if no host were there
	if host != "" {
		if addrs, err = net.DefaultResolver.LookupNetIP(ctx, "ip", host); err != nil {
			return nil, err
		}
	}
	for _, a := range addrs {
		err = n.do(ctx, func() (err error) {
			c, err = dialer.DialContext(ctx, "tcp", net.JoinHostPort(a.Unmap().String(), port))
			return err
		})
		if err == nil {
			return c, nil
		}
	}
	return nil, err
}
