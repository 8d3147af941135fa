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
	if c.g.trusts(c.peer.addr) {
		return nil
	}
	if c.counted = c.g.open.admitClient(c.peer.addr); !c.counted {
		return errTooMany
	}
	return nil
}

// trusts reports whether an address is that of a proxy that says in
// X-Forwarded-For who is behind it. Its connections are all its clients', and
// count against the bound of the whole gate only; each call counts for its client.
func (g *Gate) trusts(addr netip.Addr) bool {
	f := g.force.Load()
	return f != nil && len(f.proxies) > 0 && f.trusts(addr)
}

// enter counts a call for its client behind a trusted proxy, until leave.
func (x *exchange) enter() bool {
	if !x.g.open.admitClient(x.from) {
		return false
	}
	x.behind = x.from
	return true
}

// leave ends what enter began, if it did.
func (x *exchange) leave() {
	if x.behind.IsValid() {
		x.g.open.leaveClient(x.behind)
		x.behind = netip.Addr{}
	}
}
