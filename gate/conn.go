package gate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"merlon"
	"merlon/gate/grpc"
	"merlon/gate/http1"
	"merlon/gate/upstream"
	"merlon/identity/spiffe"
	"merlon/internal/wire"
	"merlon/record"
)

// bufferSize is the read buffer of a connection: the largest request head, and
// the largest body that travels in one write with its head.
const bufferSize = 16 << 10

// conn is one client connection and all the memory that its calls need. One
// goroutine serves it, and speaks to the upstream too.
type conn struct {
	g    *Gate
	at   Position
	net  net.Conn
	peer peer

	in    reader            // from the client
	up    reader            // from the upstream, while a call lasts
	out   []byte            // to either
	input *[bufferSize]byte // the memory of in, if that must outlast a call
	work  *work             // all other of these buffers; nil while idle
	live  live

	req    http1.Request
	res    http1.Response
	ending http1.Trailer // of that answer
	text   []byte        // a piece of it, in base64
	x      exchange
	stream *stream // the request body, when it was not read with its head
	sent   *stream // a stream that has ended, and holds unread
	unread []byte  // what was read beyond that body
	rec    record.Record
	// reserved says that the record of this call has room already.
	reserved bool

	lent      *upstream.Conn                   // the connection that this call has borrowed
	upReads   readSide                         // of that
	holding   atomic.Pointer[upstream.Cluster] // counts the body, which is on its way
	slot      int                              // among the open connections; guarded by their lock
	following bool                             // the client's losing interest ends its use
	moved     atomic.Int64                     // when a piece of a call that lasts came last, either way
	// lane says that this is a stream of HTTP/2, not a connection.
	lane bool
	// served says that a request came before.
	served bool
	// lingers says that the client may still be sending what nobody will use.
	lingers bool

	counted   bool // among the connections of its client
	door      door // that the client came in by
	mute      bool // the client does not speak HTTP, and gets none
	tunnels   bool // the other gate opens a tunnel, and nothing else
	websocket bool // the tunnel in progress is one

	watch     watch // of what this goroutine waits for
	bodyWatch watch // of what the goroutine of stream waits for
}

// reader is a connection and what was read from it but not yet used. The views
// that the protocol core takes of buf[r:w] hold until the next fill.
type reader struct {
	conn net.Conn
	buf  []byte
	r, w int
}

var errBufferFull = errors.New("gate: buffer full")

// fill reads once, keeping what is there.
func (rd *reader) fill() error {
	if rd.r == rd.w {
		rd.r, rd.w = 0, 0
	} else if rd.w == len(rd.buf) {
		if rd.r == 0 {
			return errBufferFull
		}
		rd.w = copy(rd.buf, rd.buf[rd.r:rd.w])
		rd.r = 0
	}
	n, err := rd.conn.Read(rd.buf[rd.w:])
	rd.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// more reads until n bytes are there, without moving any: views of what was
// read before stay good. There must be room for them.
func (rd *reader) more(n int) error {
	for rd.w-rd.r < n {
		m, err := rd.conn.Read(rd.buf[rd.w : rd.r+n])
		if rd.w += m; m == 0 && err != nil {
			return err
		}
	}
	return nil
}

func (rd *reader) bytes() []byte { return rd.buf[rd.r:rd.w] }

var conns = sync.Pool{New: func() any { return new(conn) }}

// serveConn owns nc until it is closed.
func (g *Gate) serveConn(nc net.Conn, at Position, client netip.Addr, counted bool, in door) {
	c := g.newConn(nc, at)
	c.peer.addr, c.peer.client = client, client.String()
	c.door = in
	c.counted = counted
	defer c.end()
	if !g.open.add(c) {
		return
	}
	var err error
	if in.proxied {
		err = c.readProxied()
	}
	if err == nil {
		err = c.prove()
	}
	switch {
	case err != nil:
		g.metrics.handshakes[at].Add(1)
		level := slog.LevelDebug
		if in.captured { // its own service, or rules that are wrong
			level = slog.LevelWarn
		}
		g.cfg.Log.Log(context.Background(), level, "connection refused", "at", at, "client", client, "error", err)
		return
	case c.door.port != 0:
		c.serveLocal()
	case c.door.captured && !c.mute:
		c.serveHTTP1()
	case c.door.captured:
		c.openTunnel(c.peer.toward.String())
	case c.speaksHTTP2():
		c.serveHTTP2()
	default:
		c.serveHTTP1()
	}
	if c.lingers {
		c.linger()
	}
}

func (c *conn) serveHTTP1() {
	c.enliven()
	if c.live.raw == nil {
		c.keepInput()
	}
	for c.stay() && c.next() {
	}
}

// newConn takes the memory that a connection needs.
func (g *Gate) newConn(nc net.Conn, at Position) *conn {
	c := conns.Get().(*conn)
	c.g, c.at, c.net = g, at, nc
	_, c.lane = nc.(*lane)
	c.in = reader{conn: nc}
	c.x.g, c.x.at, c.x.peer, c.x.req = g, at, &c.peer, &c.req
	return c
}

// end closes the connection and gives back what it holds.
func (c *conn) end() {
	// A bug met by one hostile request must not end every connection.
	if p := recover(); p != nil {
		c.g.metrics.defects.Add(1)
		c.g.cfg.Log.Error("connection ended by a defect", "at", c.at, "panic", p, "stack", stack())
		c.endBody()
		if c.lent != nil {
			c.lent.Release(false)
		}
		if c.reserved { // the call may have passed: there must be evidence
			c.x.verdict.Reason, c.x.detail = ReasonDefect, "the gate met a defect of its own"
			c.record(0, 0)
		}
	}
	c.x.leave()
	c.g.open.remove(c, c.peer.addr, c.counted)
	c.net.Close()
	c.release()
}

// release gives the memory back, holding on to nothing of the client's.
func (c *conn) release() {
	c.g, c.net, c.in.conn, c.up.conn = nil, nil, nil, nil
	c.peer, c.stream, c.lent, c.rec = peer{}, nil, nil, record.Record{}
	c.x.call, c.x.verdict, c.x.f, c.x.service, c.x.operation = merlon.Call{}, merlon.Verdict{}, nil, nil, nil
	c.req.Reset()
	c.res.Reset()
	c.ending.Reset()
	c.reserved, c.unread, c.lingers, c.served, c.following = false, nil, false, false, false
	c.upReads = readSide{}
	if cap(c.text) > maxSpare {
		c.text = nil
	}
	c.counted, c.door, c.mute, c.tunnels, c.websocket = false, door{}, false, false, false
	c.live = live{onClient: c.live.onClient, onUpstream: c.live.onUpstream}
	c.rest()
	c.dropInput()
	c.dropSent()
	c.watch.reset()
	c.bodyWatch.reset()
	conns.Put(c)
}

// prove finds out who is at the other end, as far as the connection tells.
func (c *conn) prove() error {
	c.watch.start(c.g, c.net, c.g.cfg.Bounds.Handshake, busy)
	switch c.at {
	case Inbound:
		config := c.g.inboundTLS()
		if err := c.proveWorkload(c.secure(config)); err != nil {
			return err
		}
		if c.tunnels = config.NextProtos[0] == tunnelProtocol; c.tunnels {
			return c.proveTunnel()
		}
	case AtEdge:
		f := c.g.force.Load()
		if f == nil || f.orders.Intent.Gateway == nil {
			return errors.New("no orders")
		}
		if f.edgeTLS != nil {
			tc := c.secure(f.edgeTLS)
			if err := tc.HandshakeContext(context.Background()); err != nil {
				return err
			}
			c.net, c.in.conn = tc, tc
		}
	}
	if c.door.captured {
		return c.track()
	}
	return nil // who is at the other end of Outbound depends on the orders
}

// AskOwn asks Config.Own again about every connection of the local side: before
// its next call, and about its tunnel at once.
func (g *Gate) AskOwn() {
	g.proofs.Add(1)
	go g.askTunnels()
}

// proveOwn finds out whether the gate's own service is at the other end: any
// other process of the host would borrow its identity. It is asked once for
// each version of the orders, so that a narrower one reaches open connections.
func (c *conn) proveOwn() {
	p, cfg := &c.peer, &c.g.cfg
	proof := c.g.proofs.Load() // first: what changes meanwhile is asked for again
	if p.under == c.x.f && p.proof == proof {
		return
	}
	p.caller, p.stranger, p.under, p.proof = merlon.Caller{}, "", c.x.f, proof
	if cfg.Own != nil {
		end := c.net
		if l, stream := end.(*lane); stream {
			end = l.m.net
		}
		if err := cfg.Own(p.dialing(end)); err != nil {
			p.stranger = err.Error()
			return
		}
	}
	own := cfg.Place.Service
	p.caller = merlon.Caller{Kind: merlon.Workload, Name: own, Subject: "spiffe://" + cfg.TrustDomain + "/" + own}
}

// secure is TLS over the connection.
func (c *conn) secure(config *tls.Config) *tls.Conn {
	c.live.wire = wire.New(c.net)
	return tls.Server(c.live.wire, config)
}

func (c *conn) proveWorkload(tc *tls.Conn) error {
	if err := tc.HandshakeContext(context.Background()); err != nil {
		return err
	}
	state := tc.ConnectionState()
	id, err := spiffe.PeerID(state)
	if err != nil {
		return err
	}
	name, err := c.g.peerName(id)
	if err != nil {
		return err
	}
	leaf := state.PeerCertificates[0]
	c.peer.key, c.peer.until = leaf.PublicKey, ends(state.PeerCertificates)
	c.peer.foreign = merlon.ForeignDomain(name) != ""
	if most := time.Now().Add(maxForeign); c.peer.foreign && c.peer.until.After(most) {
		c.peer.until = most
	}
	c.peer.renew = renewal(time.Now(), c.peer.until)
	c.peer.caller = merlon.Caller{Kind: merlon.Workload, Name: name, Subject: id}
	c.net, c.in.conn = tc, tc
	return nil
}

// maxForeign bounds connections of workloads of other trust domains: their bundle
// may be withdrawn while their certificates say that they live for years.
const maxForeign = time.Hour

// peerName is the name of a workload in rules, by the SPIFFE ID that it proved.
func (g *Gate) peerName(id string) (string, error) {
	of, foreign, err := spiffe.ForeignName(id)
	if err != nil {
		return "", err
	}
	if of == g.cfg.TrustDomain {
		return spiffe.Name(id, of)
	}
	return foreign, nil
}

// ends is when the first of a peer's certificates ends: what lies above an SVID may
// end before it.
func ends(certs []*x509.Certificate) time.Time {
	first := certs[0].NotAfter
	for _, cert := range certs[1:] {
		if cert.NotAfter.Before(first) {
			first = cert.NotAfter
		}
	}
	return first
}

// renewal is when a connection that rests on certificates until then should
// make way for a new one, so that none is used beyond their end.
func renewal(now, until time.Time) time.Time { return until.Add(-until.Sub(now) / 4) }

// next serves one request and reports whether another may follow.
func (c *conn) next() bool {
	limits := c.at.limits()
	limits.Connect = c.at == Outbound && (c.mute || !c.peer.toward.IsValid()) || c.tunnels
	c.req.Reset()
	for c.in.r == c.in.w {
		c.forget()
		c.rest()
		c.watch.start(c.g, c.net, c.g.cfg.Bounds.Idle, idle)
		// Asked after the wait is known: a drain either sees it or is seen.
		if c.g.draining.Load() {
			return false
		}
		if c.in.fill() != nil && !c.watch.interrupted() {
			return false
		}
	}
	for first := true; ; first = false {
		c.hold()
		n, err := c.req.Parse(c.in.bytes(), limits)
		if err != nil {
			if c.beginsHTTP2(err) {
				c.serveHTTP2()
			} else {
				c.refuseMalformed(err)
			}
			return false
		}
		if n > 0 {
			c.in.r += n
			c.watch.stop()
			return c.serve() && c.takeUnread()
		}
		if first {
			c.watch.start(c.g, c.net, c.g.cfg.Bounds.Head, busy)
		}
		c.awaitHead()
		if err := c.in.fill(); err != nil {
			if errors.Is(err, errBufferFull) {
				c.hold()
				c.refuseMalformed(&http1.Error{Status: 431, Reason: "head_too_large"})
			}
			return false
		}
	}
}

// serve decides and answers the request that was just parsed.
func (c *conn) serve() (keep bool) {
	x := &c.x
	x.begin()
	defer x.leave()
	c.served = true
	keep = !c.req.Close && !x.wantsTunnel() && (c.at != Inbound || x.start.Before(c.peer.renew))
	if c.at == Outbound && x.f != nil {
		c.proveOwn()
		// The next connection is asked anew.
		keep = keep && c.peer.caller.Kind == merlon.Workload
	}
	switch {
	case x.f == nil:
		x.verdict = deny(ReasonNoOrders)
	case c.at == Inbound && x.start.After(c.peer.until):
		x.verdict, keep = deny(ReasonPeerExpired), false
	default:
		x.ask()
	}
	if x.asksForProxy() {
		c.served = false // what follows may be HTTP/2
		return c.write(connected) == nil
	}
	if x.verdict.Effect == merlon.Allow {
		if max := x.service.MaxBody; c.req.Body == http1.BodyLength && c.req.Length > max && x.kind != grpc.WebText {
			x.verdict = merlon.Verdict{Reason: ReasonBodyTooLarge, Pos: x.service.Pos}
		} else if err := c.g.cfg.Records.Reserve(); err != nil {
			x.verdict, x.detail = deny(ReasonRecordFull), err.Error()
		} else {
			c.reserved = true
			return c.forward(keep)
		}
	}
	return c.refuse(keep)
}

// takeUnread puts bytes that belong to the next request where it is read from.
func (c *conn) takeUnread() bool {
	if c.unread != nil {
		c.in.r, c.in.w = 0, copy(c.in.buf, c.unread)
		c.unread = nil
	}
	c.dropSent()
	return true
}

func (c *conn) dropSent() {
	if c.sent != nil {
		c.sent.release()
		c.sent = nil
	}
}

// begin resets the exchange for the request at hand.
func (x *exchange) begin() {
	x.f = x.g.force.Load()
	x.call = merlon.Call{}
	if x.at == AtEdge {
		x.from, x.call.Caller.Client = x.peer.addr, x.peer.client
	}
	x.service, x.operation, x.limited, x.detail, x.upstream, x.status, x.bytesIn = nil, nil, nil, "", "", 0, 0
	x.verdict = merlon.Verdict{}
	x.kind, x.events, x.web, x.deadline, x.coded = grpc.None, false, false, 0, false
	x.start = time.Now()
	x.id = ""
	if x.at == Inbound && !x.peer.foreign {
		x.id = validID(lastField(x.req, headerRequest))
	}
	if x.id == "" {
		x.id = x.g.ids.next(x.idBuf[:0])
	}
	x.joinTrace()
}
