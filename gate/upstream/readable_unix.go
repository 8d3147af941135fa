//go:build unix

package upstream

import (
	"net"
	"syscall"
)

// peeker tells whether a read of a socket would return at once. It does not
// read, and does not touch the readiness that the poller keeps for the
// connection. It is made once per connection, so that a look costs no memory.
type peeker struct {
	raw   syscall.RawConn
	look  func(fd uintptr)
	ready bool
}

func newPeeker(nc net.Conn) *peeker {
	p := new(peeker)
	if sc, ok := nc.(syscall.Conn); ok {
		p.raw, _ = sc.SyscallConn()
	}
	p.look = func(fd uintptr) {
		err := syscall.EINTR
		for err == syscall.EINTR {
			err = peek(fd)
		}
		p.ready = err != syscall.EAGAIN
	}
	return p
}

// readable reports whether there is something to read: bytes, the end, or an
// error. One caller at a time.
func (p *peeker) readable() bool {
	if p.raw == nil {
		return false
	}
	return p.raw.Control(p.look) != nil || p.ready
}
