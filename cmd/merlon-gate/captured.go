package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"

	"merlon"
	"merlon/internal/origdst"
	"merlon/internal/sockowner"
)

// listenCaptured opens the port to which the kernel brings captured connections,
// on the loopback addresses, where a redirect of what this host opens ends.
func (s *server) listenCaptured() (all []net.Listener, err error) {
	if s.opt.capture == 0 {
		return nil, nil
	}
	switch {
	case s.orders.Place == merlon.Edge:
		return nil, errors.New("-capture is for a gate beside a service")
	case !origdst.Supported() || !sockowner.Supported():
		return nil, fmt.Errorf("-capture: %w", origdst.ErrUnsupported)
	}
	for _, host := range []string{"127.0.0.1", "::1"} {
		address := net.JoinHostPort(host, strconv.Itoa(int(s.opt.capture)))
		l, err := s.sockets.Listen("capture "+host, address)
		if host == "::1" && (errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT)) {
			s.log.Warn("there is no IPv6 here: what is captured of it is refused")
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("-capture: %w", err)
		}
		all = append(all, l)
	}
	return all, nil
}

var errLoop = errors.New("the gate's own connection was captured: merlon capture was told of another user than the gate's")

// captured is gate.Config.Captured. A connection of the gate's own user is
// refused, so that no rule that is wrong can make calls go in circles.
func captured(c net.Conn) (netip.AddrPort, error) {
	to, err := origdst.Of(c)
	if err != nil {
		return to, err
	}
	s, err := sockowner.Peer(farther{c, to})
	if err == nil && int(s.UID) == os.Geteuid() {
		err = errLoop
	}
	return to, err
}

// farther is a connection as its client sees it, who does not know that it was
// captured.
type farther struct {
	net.Conn
	to netip.AddrPort
}

func (f farther) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(f.to) }

func (f farther) SyscallConn() (syscall.RawConn, error) {
	sc, ok := f.Conn.(syscall.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	return sc.SyscallConn()
}
