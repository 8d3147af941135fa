// Package origdst says where a connection was going when the kernel brought it
// here by a redirect of netfilter.
package origdst

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// ErrDirect is for a connection that nothing redirected: its client dialed the
// address that took it.
var ErrDirect = errors.New("the connection was not redirected: its client dialed the gate itself")

// ErrUnsupported is for systems without netfilter.
var ErrUnsupported = errors.New("this system does not tell where a connection was going: Linux is needed")

var errAddress = errors.New("the kernel's answer is no address")

// The families of the kernel's socket addresses (linux/socket.h).
const (
	inet  = 2
	inet6 = 10
)

// parse reads what the kernel answers: a sockaddr_in (ip(7)) or sockaddr_in6
// (ipv6(7)). Only the first two bytes are in the order of the machine.
func parse(b []byte) (netip.AddrPort, error) {
	if len(b) < 2 {
		return netip.AddrPort{}, errAddress
	}
	var addr netip.Addr
	switch family := binary.NativeEndian.Uint16(b); {
	case family == inet && len(b) >= 8:
		addr = netip.AddrFrom4([4]byte(b[4:8]))
	case family == inet6 && len(b) >= 24:
		addr = netip.AddrFrom16([16]byte(b[8:24])).Unmap()
	default:
		return netip.AddrPort{}, errAddress
	}
	to := netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b[2:4]))
	if to.Port() == 0 || addr.IsUnspecified() {
		return netip.AddrPort{}, errAddress
	}
	return to, nil
}
