package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"syscall"

	"merlon"
	"merlon/internal/wire"
)

var errPlain = errors.New("the endpoint must prove who it is, and there is no TLS configuration to check it with")

// dial makes a connection in the place that is reserved for it, and gives the
// place up if it cannot. It counts the failure and settles the trial, unless
// the caller went away.
func (ep *endpoint) dial(caller context.Context, t *trial) (*Conn, *Error) {
	ctx, cancel := context.WithTimeout(caller, ep.c.cfg.ConnectTimeout)
	defer cancel()
	defer context.AfterFunc(ep.c.ctx, cancel)()
	var config *tls.Config
	var state any
	if ep.c.cfg.TLS != nil {
		var err error
		if config, state, err = ep.c.cfg.TLS(ep.Endpoint); err != nil {
			return nil, ep.noConn(ReasonUnready, err)
		}
	}
	nc, sock, below, err := ep.connect(ctx, config)
	if err == nil {
		ep.c.counts.connects.Add(1)
		var raw syscall.RawConn
		if sc, ok := sock.(syscall.Conn); ok {
			raw, _ = sc.SyscallConn()
		}
		return &Conn{Conn: nc, Raw: raw, Wire: below, Endpoint: ep.Endpoint, State: state, ep: ep, sock: sock, peeker: newPeeker(sock), born: ep.c.now(), lent: true}, nil
	}
	switch {
	case ep.c.ctx.Err() != nil:
		return nil, ep.noConn(ReasonClosed, err)
	case caller.Err() != nil:
		return nil, ep.noConn(ReasonCancelled, err)
	}
	return nil, ep.undialled(t, err)
}

// undialled counts that no connection could be made, and gives its place up.
func (ep *endpoint) undialled(t *trial, err error) *Error {
	ep.c.counts.failed.Add(1)
	ep.failed(*t)
	*t = none
	ep.c.resolveSoon(ep)
	return ep.noConn(ReasonConnect, err)
}

// noConn gives up the place of a connection that could not be made.
func (ep *endpoint) noConn(reason merlon.Reason, cause error) *Error {
	err := ep.c.fail(reason, ep.Address, cause)
	if ep.c.cfg.Mux != nil {
		ep.giveUp(err)
		return err
	}
	ep.mu.Lock()
	defer ep.mu.Unlock()
	ep.vacate()
	return err
}

// connect makes a TCP connection and, if the endpoint has it, TLS on it.
func (ep *endpoint) connect(ctx context.Context, config *tls.Config) (nc, sock net.Conn, below *wire.Conn, err error) {
	if config == nil && (ep.ID != "" || ep.TLSName != "") {
		return nil, nil, nil, errPlain
	}
	sock, err = ep.c.cfg.Dial(ctx, ep.Address)
	if err != nil || config == nil {
		return sock, sock, nil, err
	}
	below = wire.New(sock)
	secure := tls.Client(below, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		sock.Close()
		return nil, nil, nil, err
	}
	return secure, sock, below, nil
}
