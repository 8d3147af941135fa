//go:build !unix

package upstream

// readable cannot be told here without reading: dead connections are met by
// the calls themselves.
func (c *Conn) canRead() bool { return false }
