//go:build !linux || !(amd64 || arm64 || riscv64 || loong64)

package gate

import (
	"net"

	"merlon/gate/upstream"
)

// Without the live layer all is portable.

func (c *conn) enliven() {}

func (c *conn) stay() bool { return true }

func (c *conn) writeNow([]byte) int { return 0 }

func (c *conn) exchange(up *upstream.Conn) error {
	_, err := up.Write(c.out)
	return err
}

func (g *Gate) hush(nc net.Conn) net.Conn { return nc }

func (c *conn) look() bool { return false }
