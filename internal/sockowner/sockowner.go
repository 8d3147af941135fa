// Package sockowner says which process of this host is at the other end of an
// accepted TCP connection or Unix socket, as far as the kernel vouches for it.
//
// Peer finds the other end's socket by the addresses of the connection: its
// user and its inode. A Process is pinned, so that its number cannot pass to
// another process unnoticed, and says whether it or what it started holds that
// inode. Everything is bounded, and every doubt is an error: a socket that
// nobody holds any more, a connection that was replaced by another with the
// same addresses, a process that may not be looked into.
//
// Only the network namespace of the calling thread is seen: a peer elsewhere is
// ErrNotFound.
package sockowner

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// Errors of this package. Each means: it is not known who is there.
var (
	// ErrUnsupported says that this system cannot tell.
	ErrUnsupported = fmt.Errorf("who is at the other end of a connection cannot be checked here: %w", errors.ErrUnsupported)
	// ErrNotFound says that no socket of this network namespace is the other
	// end, or that none is any more.
	ErrNotFound = errors.New("the other end of the connection is no socket of this host")
	// ErrAbandoned says that the other end has been closed by all who held it.
	// The kernel no longer says whose it was: older ones call it root's.
	ErrAbandoned = errors.New("the other end of the connection is held by no process any more")
	// ErrGone says that a process has ended.
	ErrGone = errors.New("the process has ended")
	// ErrNotHeld says that no process of a tree holds a socket.
	ErrNotHeld = errors.New("no process of the tree holds the socket")
)

// Socket is one end of a connection.
type Socket struct {
	UID   uint32 // of the user who made it, in the own user namespace
	Inode uint64 // names it on this host as long as anybody holds it; never 0
}

// Credentials are whom a process runs as.
type Credentials struct {
	RealUID, UID uint32 // real and effective
	GID          uint32 // effective
	Groups       []uint32
}

// tuple is a connection as one of its ends sees it.
type tuple struct{ local, remote netip.AddrPort }

// entry is what the kernel says of one end of a connection.
type entry struct {
	tuple
	state uint8
	Socket
}

// States of a TCP socket, as the kernel numbers them (tcp_states.h).
const (
	established = 1
	finWait1    = 4
	finWait2    = 5
	closeWait   = 8
)

// held is the socket of an end that a process still holds. Half-closed ends
// are welcome: a client may say that it has no more to send.
//
// An end in SYN_SENT is a new connection that wants the addresses of one that
// is over; one in TIME_WAIT or without an inode has no owner.
func (e *entry) held(want tuple) (Socket, error) {
	switch {
	case e.tuple != want:
		return Socket{}, ErrNotFound // a listener, which the kernel offers where no connection is
	case e.Inode == 0:
		return Socket{}, ErrAbandoned
	case e.state != established && e.state != finWait1 && e.state != finWait2:
		return Socket{}, ErrNotFound
	}
	return e.Socket, nil
}

// peerTuple is the connection as its other end sees it.
func peerTuple(c net.Conn) (tuple, error) {
	local, err := addrPort(c.LocalAddr())
	if err != nil {
		return tuple{}, err
	}
	remote, err := addrPort(c.RemoteAddr())
	if err != nil {
		return tuple{}, err
	}
	if local.Addr().Is4() != remote.Addr().Is4() {
		return tuple{}, fmt.Errorf("%v and %v are of two families", local, remote)
	}
	return tuple{local: remote, remote: local}, nil
}

// addrPort is an address in the one form that compares: an IPv4 address that is
// mapped into IPv6 (RFC 4291 2.5.5.2) is the IPv4 address.
func addrPort(a net.Addr) (netip.AddrPort, error) {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("%v is no TCP address", a)
	}
	ap := t.AddrPort()
	ip := ap.Addr().Unmap().WithZone("")
	if !ip.IsValid() {
		return netip.AddrPort{}, fmt.Errorf("%v has no address", a)
	}
	return netip.AddrPortFrom(ip, ap.Port()), nil
}
