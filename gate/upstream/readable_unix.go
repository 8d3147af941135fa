//go:build unix

package upstream

import "syscall"

// canRead reports whether a read would return at once. It does not read, and
// does not touch the readiness that the poller keeps for the connection.
func (c *Conn) canRead() bool {
	if c.Raw == nil {
		return false
	}
	if c.probe == nil {
		c.probe = c.peek
	}
	return c.Raw.Control(c.probe) != nil || c.readable
}

func (c *Conn) peek(fd uintptr) {
	var b [1]byte
	for {
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		if err == syscall.EINTR {
			continue
		}
		c.readable = err != syscall.EAGAIN
		return
	}
}
