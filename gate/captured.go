package gate

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"merlon"
)

// A captured connection is one that an application opened to the address of a
// service, and that the kernel brought to the gate beside the application
// instead (internal/capture). Where it was going says which service is meant, and
// nothing else does: bytes go to the gate of that service, by its identity, never
// to the address. What leads to no service that the orders name is denied. The
// Host of a request may name the service at the address or the address itself:
// one that names another would let who writes the Host choose the service, where
// the application has chosen the address with care.

var errNotCaptured = errors.New("this gate takes no captured connections")

// target is where a service is dialed.
type target struct {
	service string
	host    string     // a name, or
	addr    netip.Addr // an address
	port    uint16
}

// targets are all that the own service may dial.
type targets []target

func targetsOf(o *merlon.Orders) (all targets) {
	for i := range o.Intent.Services {
		s := &o.Intent.Services[i]
		if s.Name == o.Place.Service {
			continue
		}
		for _, address := range dialedAt(s) {
			host, port, err := net.SplitHostPort(address)
			n, perr := strconv.ParseUint(port, 10, 16)
			if err != nil || perr != nil {
				continue
			}
			p := target{service: s.Name, port: uint16(n)}
			if addr, err := netip.ParseAddr(host); err == nil {
				p.addr = addr.Unmap()
			} else {
				p.host = host
			}
			all = append(all, p)
		}
	}
	return all
}

// dialedAt is where an application dials a service. An external one that speaks
// HTTP is dialed without TLS, which its gate adds.
func dialedAt(s *merlon.Service) []string {
	var all []string
	switch {
	case !s.External:
		for _, a := range s.Addresses {
			all = append(all, strings.TrimPrefix(a, "dns:"))
		}
	case s.Protocol == merlon.TCP:
		return s.Hosts
	default:
		for _, h := range s.Hosts {
			all = append(all, net.JoinHostPort(strings.Trim(h, "[]"), "80"))
		}
	}
	return all
}

// at lists the services that are dialed at to. Names are asked for only when
// some service has one with that port.
func (ps targets) at(to netip.AddrPort, resolve func(host string) []netip.Addr) (services []string) {
	for _, p := range ps {
		if p.port != to.Port() || slices.Contains(services, p.service) {
			continue
		}
		if p.addr == to.Addr() || p.host != "" && slices.Contains(resolve(p.host), to.Addr()) {
			services = append(services, p.service)
		}
	}
	return services
}

// track finds out where the client was going. Unless all that is there speaks
// HTTP, no byte of the client is read as HTTP, and none of the gate's is written.
func (c *conn) track() error {
	g, f := c.g, c.g.force.Load()
	if g.cfg.Captured == nil {
		return errNotCaptured
	}
	to, err := g.cfg.Captured(c.net)
	if err != nil {
		return err
	}
	if f == nil {
		return errors.New("no orders")
	}
	c.peer.toward = netip.AddrPortFrom(to.Addr().Unmap().WithZone(""), to.Port())
	c.peer.meant = f.targets.at(c.peer.toward, g.resolve)
	c.mute = len(c.peer.meant) == 0
	for _, name := range c.peer.meant {
		c.mute = c.mute || f.orders.Intent.Service(name).Protocol == merlon.TCP
	}
	return nil
}

// dialed is the service that the application of a captured connection means: the
// one at the address it dialed, if the Host agrees.
func (x *exchange) dialed() (name string, known bool) {
	for _, service := range x.peer.meant {
		if x.connects() || x.agrees(service) {
			if known {
				return "", false // two of them: nobody can tell which
			}
			name, known = service, true
		}
	}
	return name, known
}

// agrees reports whether the Host may be meant for a service: by its name, by one
// under which it is dialed, or, for one of ours, by the address that was dialed.
func (x *exchange) agrees(service string) bool {
	host := x.call.Host
	if x.f.names[host] == service {
		return true
	}
	for _, p := range x.f.targets {
		if p.service == service && p.host != "" && strings.EqualFold(p.host, host) {
			return true
		}
	}
	s := x.f.orders.Intent.Service(service)
	if s == nil || s.External {
		return false
	}
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && addr.Unmap() == x.peer.toward.Addr() && (x.port == "" || x.port[1:] == strconv.Itoa(int(x.peer.toward.Port())))
}

// dialing is the connection as the application sees it: with the address that
// it dialed at this end.
func (p *peer) dialing(c net.Conn) net.Conn {
	if !p.toward.IsValid() {
		return c
	}
	return farther{c, net.TCPAddrFromAddrPort(p.toward)}
}

type farther struct {
	net.Conn
	to net.Addr
}

func (f farther) LocalAddr() net.Addr { return f.to }

func (f farther) SyscallConn() (syscall.RawConn, error) {
	if sc, ok := f.Conn.(syscall.Conn); ok {
		return sc.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// dialed remembers what names stand for, for a while: an application that dials
// nowhere does not make the gate ask more often.
type dialed struct {
	mu    sync.Mutex
	names map[string]*answer
}

type answer struct {
	asking sync.Mutex
	at     time.Time
	addrs  []netip.Addr
}

const (
	answerHolds   = 5 * time.Second
	answerTimeout = 3 * time.Second
)

// resolve is the addresses of a name. The last ones stay good when the name server
// is away: who is there is proved anyway.
func (g *Gate) resolve(host string) []netip.Addr {
	d := &g.dialed
	d.mu.Lock()
	if d.names == nil {
		d.names = map[string]*answer{}
	}
	a := d.names[host]
	if a == nil { // as many as all orders had names
		a = new(answer)
		d.names[host] = a
	}
	d.mu.Unlock()
	a.asking.Lock()
	defer a.asking.Unlock()
	if now := g.clock.Now(); a.at.IsZero() || now.Sub(a.at) > answerHolds {
		ctx, cancel := context.WithTimeout(context.Background(), answerTimeout)
		addrs, err := g.cfg.Resolve(ctx, host)
		cancel()
		if a.at = g.clock.Now(); err == nil {
			a.addrs = nil
			for _, addr := range addrs {
				a.addrs = append(a.addrs, addr.Unmap().WithZone(""))
			}
		}
	}
	return a.addrs
}
