package gate

import (
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"

	"merlon"
	"merlon/gate/http1"
)

// A service that speaks TCP is called by CONNECT, and by nothing else: by its
// caller's application if that knows proxies, or by the gate in the name of one
// that connects to a local port. Between gates CONNECT travels over mutual TLS
// under a protocol of its own (RFC 7301), which the gate of a TCP service alone
// speaks, and it nothing else: no byte of a tunnel is ever read as HTTP by the
// gate of another service, nor a request as bytes of a tunnel.

// tunnelProtocol is what gates agree on in the handshake.
const tunnelProtocol = "merlon-tcp"

var errNotTunnel = errors.New("the other gate does not speak " + tunnelProtocol)

// named is the service that an application means by the host of its request.
func (x *exchange) named() (name string, known bool) {
	if x.peer.toward.IsValid() {
		return x.dialed()
	}
	if x.connects() { // exactly the host and the port that the intent names
		if name, known = x.f.names[x.call.Host+x.port]; known {
			return name, true
		}
	}
	name, known = x.f.names[x.call.Host]
	return name, known
}

// appendConnect asks another gate for a tunnel to its service.
func (x *exchange) appendConnect(dst []byte) []byte {
	const port = ":1" // the other gate knows the address of its service
	for _, s := range [...]string{"CONNECT ", x.service.Name, port, " HTTP/1.1\r\nHost: ", x.service.Name, port, "\r\n"} {
		dst = append(dst, s...)
	}
	return dst
}

// tunnelTLS is upstreamTLS to the gate of a TCP service.
func (g *Gate) tunnelTLS(e merlon.Endpoint) (*tls.Config, any, error) {
	c, state, err := g.upstreamTLS(e)
	if c == nil {
		return nil, nil, err
	}
	c.NextProtos = []string{tunnelProtocol}
	prove := c.VerifyConnection
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if s.NegotiatedProtocol != tunnelProtocol {
			return errNotTunnel
		}
		return prove(s)
	}
	return c, state, nil
}

// speaksTCP reports whether the gate stands beside a service that speaks TCP.
func (f *force) speaksTCP() bool {
	own := f.orders.Intent.Service(f.orders.Place.Service)
	return own != nil && own.Protocol == merlon.TCP
}

// proveTunnel refuses whoever has not said that it wants a tunnel.
func (c *conn) proveTunnel() error {
	tc, ok := c.net.(*tls.Conn)
	if !ok || tc.ConnectionState().NegotiatedProtocol != tunnelProtocol {
		return errNotTunnel
	}
	return nil
}

// serveLocal serves a connection to a local port: the gate asks for the tunnel
// in its client's place, who sees nothing but the tunnel.
func (c *conn) serveLocal() {
	f := c.g.force.Load()
	name := f.locals[c.door.port]
	if name == "" {
		return // a swap has just closed the port
	}
	port := strconv.Itoa(int(c.door.port))
	if s := f.orders.Intent.Service(name); s.External {
		name, port, _ = net.SplitHostPort(s.Hosts[0])
	}
	c.openTunnel(net.JoinHostPort(name, port))
}

// openTunnel asks for the tunnel to target in the client's place.
func (c *conn) openTunnel(target string) {
	c.mute = true
	c.keepInput()
	c.hold()
	head := append(c.in.buf[:0], "CONNECT "...)
	head = append(append(head, target...), " HTTP/1.1\r\n"...)
	head = http1.AppendField(head, "Host", target)
	c.in.w = len(http1.AppendEnd(head))
	c.next()
}

// prepareLocal finds the local ports and what they lead to.
func (f *force) prepareLocal() error {
	own := f.orders.Intent.Service(f.orders.Place.Service)
	if own == nil {
		return nil
	}
	f.locals = map[uint16]string{}
	for _, name := range slices.Sorted(maps.Keys(own.LocalPorts)) {
		port := own.LocalPorts[name]
		s := f.orders.Intent.Service(name)
		switch {
		case s == nil:
			continue // nothing that it may call any more
		case s.Protocol != merlon.TCP, s.External && len(s.Hosts) != 1:
			return fmt.Errorf("%v: local port %d leads to %s, which is not one service that speaks tcp", own.Pos, port, name)
		case f.locals[port] != "":
			return fmt.Errorf("%v: local port %d leads to %s and to %s", own.Pos, port, f.locals[port], name)
		}
		f.locals[port] = name
	}
	return nil
}

// ports are the listeners of local ports. Nothing is accepted there before Serve:
// until an heir is ready, the process before it serves the sockets of both.
type ports struct {
	mu      sync.Mutex
	open    map[uint16]net.Listener
	serving bool
}

// bindPorts opens the local ports that are wanted and not open yet: all of them
// or none. A gate that leaves opens none: they are for the one that comes.
func (g *Gate) bindPorts(wanted map[uint16]string) (fresh map[uint16]net.Listener, err error) {
	p := &g.ports
	p.mu.Lock()
	defer p.mu.Unlock()
	fresh = map[uint16]net.Listener{}
	if g.leaving.Load() {
		return fresh, nil
	}
	for port, name := range wanted {
		if p.open[port] != nil {
			continue
		}
		address := "127.0.0.1:" + strconv.Itoa(int(port))
		l, err := g.cfg.Listen("local "+address, address)
		if err != nil {
			closeAll(fresh)
			return nil, fmt.Errorf("local port %d for %s: %w", port, name, err)
		}
		fresh[port] = l
	}
	return fresh, nil
}

func closeAll(listeners map[uint16]net.Listener) {
	for _, l := range listeners {
		l.Close()
	}
}

// settlePorts takes up the ports that are new, and closes those that are no
// longer wanted.
func (g *Gate) settlePorts(f *force) {
	p := &g.ports
	p.mu.Lock()
	defer p.mu.Unlock()
	for port, l := range p.open {
		if f.locals[port] == "" {
			g.open.forget(l)
			l.Close()
			delete(p.open, port)
		}
	}
	if p.open == nil {
		p.open = map[uint16]net.Listener{}
	}
	for port, l := range f.fresh {
		if !g.open.addListener(l) {
			l.Close()
			continue
		}
		p.open[port] = l
		if p.serving {
			go g.accept(l, Outbound, door{port: port})
		}
	}
	f.fresh = nil
}

// servePorts begins to accept at the local ports, those there are and all to come.
func (g *Gate) servePorts() {
	p := &g.ports
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.serving {
		return
	}
	p.serving = true
	for port, l := range p.open {
		go g.accept(l, Outbound, door{port: port})
	}
}

// tlsFor is how endpoints of a service prove themselves.
func (g *Gate) tlsFor(s *merlon.Service) func(merlon.Endpoint) (*tls.Config, any, error) {
	if s != nil && s.Protocol == merlon.TCP {
		return g.tunnelTLS
	}
	return g.upstreamTLS
}

// sameProtocol reports whether two versions of a service are spoken to alike, so
// that the connections to it can stay.
func sameProtocol(a, b *merlon.Service) bool {
	return (a == nil) == (b == nil) && (a == nil || a.Protocol == b.Protocol)
}
