//go:build !linux

package origdst

import (
	"net"
	"net/netip"
)

// Supported reports whether this system can tell.
func Supported() bool { return false }

// Of cannot say anything here.
func Of(net.Conn) (netip.AddrPort, error) { return netip.AddrPort{}, ErrUnsupported }
