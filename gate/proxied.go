package gate

import (
	"errors"
	"fmt"
	"net/netip"

	"merlon/internal/proxyproto"
)

var errTooMany = errors.New("the client has as many connections as it may")

// proxied reports whether connections from an address must begin with the header
// of the PROXY protocol. From all others it is never read: anyone could be
// anybody.
func (g *Gate) proxied(from netip.Addr) bool {
	f := g.force.Load()
	return f != nil && len(f.proxied) > 0 && among(f.proxied, from)
}

// readProxied reads who is behind the proxy at the other end: from then on the
// connection is the client's, for every limit, record and field.
func (c *conn) readProxied() error {
	c.watch.start(c.g, c.net, c.g.cfg.Bounds.Head, busy)
	defer c.watch.stop()
	h, err := proxyproto.Read(c.net)
	if err != nil {
		return fmt.Errorf("PROXY protocol: %w", err)
	}
	if h.Client.IsValid() {
		addr := h.Client.Addr().Unmap().WithZone("")
		c.peer.addr, c.peer.client = addr, addr.String()
	}
	if c.counted = c.g.open.admitClient(c.peer.addr); !c.counted {
		return errTooMany
	}
	return nil
}
