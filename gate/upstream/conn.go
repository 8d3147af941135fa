package upstream

import (
	"net"
	"syscall"

	"merlon"
	"merlon/internal/wire"
)

// Conn is a connection on loan from a Cluster. One goroutine uses it, from Get
// until Release; after Release it belongs to someone else.
type Conn struct {
	net.Conn // *tls.Conn, handshake done, or *net.TCPConn

	// Reused says that the connection has carried calls before.
	Reused bool
	// Endpoint is where the connection leads.
	Endpoint merlon.Endpoint
	// State is the user's own: it stays with the connection from call to call.
	State any
	// Raw is the TCP socket, below TLS; nil where there is no access to it.
	Raw syscall.RawConn
	// Wire is what TLS reads and writes; nil without TLS.
	Wire *wire.Conn

	ep     *endpoint
	sock   net.Conn // below TLS
	peeker *peeker  // of sock
	born   int64
	since  int64   // when it was last released
	lent   bool    // guarded by ep.mu
	mux    *shared // whose stream it is, if it is one
	trial  trial   // what this loan means to its endpoint
	told   bool    // the outcome of this loan has been counted
	alone  bool    // it has left the count of its endpoint's connections; guarded by ep.mu
}

// Failure is what went wrong with an endpoint.
type Failure uint8

const (
	Stale   Failure = iota // a reused connection was dead before a byte came: says nothing about the endpoint
	Reset                  // the connection broke before the answer was whole, or the answer was no HTTP
	Timeout                // the answer did not begin in time
	Gateway                // the answer was 502, 503 or 504
	Refused                // the connection took no more calls, and nothing was done about this one: says nothing either
)

// Failed tells what the call on this connection saw. It counts once per loan,
// and does not close the connection. What the client did (hanging up, a body
// that stopped) is no failure of the endpoint and must not be told.
func (c *Conn) Failed(kind Failure) {
	switch {
	case c.told, kind == Refused:
	case kind == Stale && c.Reused:
		c.ep.stale(c.since)
	default:
		c.told = true
		c.ep.failed(c.trial)
		c.trial = none
	}
}

// Succeeded tells that the endpoint answered: any whole response but those
// that are a Failure.
func (c *Conn) Succeeded() {
	if !c.told {
		c.told = true
		c.ep.succeeded(c.trial)
		c.trial = none
	}
}

// Release gives the connection back: with keep it may be used again, else it
// is closed. Keep it only if the exchange is complete and not one byte is left
// to read: what is left would be the answer to someone else's call. The second
// of two Releases in a row does nothing.
// A stream of a shared connection ends either way.
func (c *Conn) Release(keep bool) {
	if c.mux != nil {
		c.ep.hangUp(c)
	} else {
		c.ep.put(c, keep)
	}
}

// Detach takes the connection out of those that its endpoint may have at once:
// it will be in use for a long time, as a tunnel, and calls need the room. Its
// user bounds how many there are. It is not used again after Release.
func (c *Conn) Detach() {
	ep := c.ep
	ep.mu.Lock()
	defer ep.mu.Unlock()
	if c.lent && !c.alone {
		c.alone = true
		ep.vacate()
	}
}

// Socket is the TCP connection, below TLS if there is any.
func (c *Conn) Socket() net.Conn { return c.sock }

// closeNow closes the socket without the close_notify of TLS, which could
// block for seconds on a peer that does not read.
func (c *Conn) closeNow() { c.sock.Close() }
