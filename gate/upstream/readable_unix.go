//go:build unix

package upstream

import (
	"net"
	"syscall"
)

// readable reports whether a read would return at once. It does not read, and
// does not touch the readiness that the poller keeps for the connection.
func readable(nc net.Conn) bool {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	ready := false
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		for {
			_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
			if err == syscall.EINTR {
				continue
			}
			ready = err != syscall.EAGAIN
			return
		}
	})
	return ready || err != nil
}
