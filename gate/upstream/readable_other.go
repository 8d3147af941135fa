//go:build !unix

package upstream

import "net"

// readable cannot be told here without reading: dead connections are met by
// the calls themselves.
func readable(net.Conn) bool { return false }
