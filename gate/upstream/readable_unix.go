//go:build unix

package upstream

// canRead reports whether a read would return at once. It does not read, and
// does not touch the readiness that the poller keeps for the connection.
func (c *Conn) canRead() bool {
	if c.Raw == nil {
		return false
	}
	if c.probe == nil {
		c.probe = func(fd uintptr) { c.readable = peek(fd) }
	}
	return c.Raw.Control(c.probe) != nil || c.readable
}
