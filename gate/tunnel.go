package gate

import (
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"merlon"
	"merlon/gate/http1"
	"merlon/gate/upstream"
)

// A tunnel is what some calls become once they are allowed: bytes both ways,
// which nobody reads any more. A WebSocket is one (RFC 6455), and so is CONNECT
// to a service that speaks TCP; see tcp.go. Until the service has agreed the
// call is a request like any other: nothing that a client sends behind it is
// passed on before, and afterwards nothing is ever taken for a request.
//
// Who is in a tunnel was proved when it began. Whether it may be is asked again
// whenever the orders change.

const (
	websocket        = "websocket"
	websocketVersion = "13"
	upgradeFields    = "Connection: Upgrade\r\nUpgrade: websocket\r\n"
)

// wantsTunnel reports whether the request asks for a tunnel. What follows such
// a request on its connection is not a request.
func (x *exchange) wantsTunnel() bool {
	return x.connects() || x.req.Upgrade != "" && !strings.EqualFold(x.req.Upgrade, "h2c")
}

func (x *exchange) connects() bool { return x.req.Method == "CONNECT" }

var connected = []byte("HTTP/1.1 200 Connection Established\r\n\r\n")

// asksForProxy reports whether the gate's own service asks by CONNECT for the way
// to one that speaks HTTP, as clients of gRPC do that know of a proxy. The gate
// is at the end of it itself: every request that comes then is decided like any
// other, and CONNECT is no call.
func (x *exchange) asksForProxy() bool {
	return x.at == Outbound && x.connects() && x.verdict.Reason == ReasonTunnel && !x.service.External
}

func (x *exchange) upgrades() bool { return strings.EqualFold(x.req.Upgrade, websocket) }

// upgrade refuses a WebSocket that the operation does not offer, and a handshake
// that is not one (RFC 6455 4.2.1): a lenient reader further on would take part
// in it, and a strict one leave the client's bytes to be read as requests.
func (x *exchange) upgrade() merlon.Verdict {
	if !x.upgrades() {
		return pass
	}
	key, keys := endToEnd(x.req.Fields, "Sec-WebSocket-Key")
	version, versions := endToEnd(x.req.Fields, "Sec-WebSocket-Version")
	var nonce [18]byte // what 24 characters can hold
	n := 0
	if len(key) == 24 {
		n, _ = base64.StdEncoding.Strict().Decode(nonce[:], []byte(key))
	}
	switch {
	case x.operation == nil || !x.operation.WebSocket || x.req.Method != "GET":
		return deny(ReasonUpgrade)
	case versions != 1 || version != websocketVersion:
		return deny(ReasonWebSocketVersion)
	case keys != 1 || n != 16:
		return deny(ReasonWebSocketInvalid)
	}
	return pass
}

// endToEnd finds a field that travels on, and tells how many of the name there
// are.
func endToEnd(fields []http1.Field, name string) (value string, count int) {
	for i := range fields {
		if f := &fields[i]; f.Class == 0 && len(f.Name) == len(name) && strings.EqualFold(f.Name, name) {
			value = f.Value
			count++
		}
	}
	return value, count
}

// acceptKey is what proves that the server has read the handshake (RFC 6455
// 4.2.2), and did not find it in a cache.
func acceptKey(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// judge refuses an answer that does not fit what was asked: bytes would follow
// it that one side takes for a tunnel and the other for HTTP.
func (x *exchange) judge(res *http1.Response) failure {
	switch {
	case !x.upgrades():
		if res.Status == 101 {
			return invalid(errors.New("the upstream switched protocols unasked"))
		}
	case res.Status == 101:
		key, _ := endToEnd(x.req.Fields, "Sec-WebSocket-Key")
		accept, n := http1.Get(res.Fields, "Sec-WebSocket-Accept")
		if !strings.EqualFold(res.Upgrade, websocket) || n != 1 || accept != acceptKey(key) {
			return invalid(errors.New("the upstream's side of the WebSocket handshake is not valid"))
		}
	case res.Status < 300:
		// Over HTTP/2 this would mean that the WebSocket is open (RFC 8441 5).
		return invalid(fmt.Errorf("the upstream answered %d to the WebSocket handshake", res.Status))
	}
	return failure{}
}

// switched reports whether the answer that was read opens a tunnel.
func (c *conn) switched() bool {
	return c.res.Status == 101 || c.x.connects() && c.res.Status < 300
}

// tunnel is one in progress. The connection's goroutine carries what comes from
// the upstream; another carries what comes from the client.
type tunnel struct {
	c      *conn
	up     *upstream.Conn
	active atomic.Int64 // when a byte last came, either way, on the gate's clock
	at     Position
	cell   *cell // in which its bytes are counted
	down   flow  // to the client
	back   flow  // from the client

	mu   sync.Mutex
	cut  failure // why it was ended, by the first who did
	half bool    // one direction has ended
	over bool    // c belongs to somebody else
}

// flow is one direction.
type flow struct {
	t        *tunnel
	from, to net.Conn
	source   string // of from, for the record
	watch    *watch // of what this direction waits for
	bytes    atomic.Int64
	small    [512]byte
}

// bulk is the memory of a flow that carries more than a little at a time. One
// that waits holds none.
var bulk = sync.Pool{New: func() any { return new([32 << 10]byte) }}

var errEnded = errors.New("the gate was stopped")

// tunnel carries bytes until both sides have ended. There is a record from the
// beginning, since the end may be a long time away, and another with what became
// of it.
func (c *conn) tunnel(up *upstream.Conn) bool {
	up.Succeeded()
	up.Detach()
	c.watch.stop()
	c.endBody()
	c.buildSwitch()
	first, early := slices.Concat(c.out, c.up.bytes()), slices.Clone(c.in.bytes())
	begun := int64(len(c.up.bytes()))
	c.in.r = c.in.w
	c.x.keep()
	c.x.detail = "tunnel opened"
	c.record(c.res.Status, 0)
	t := &tunnel{c: c, up: up, at: c.at, cell: c.cell()}
	c.shed(up)

	t.active.Store(c.g.clock.Nanos())
	t.down = flow{t: t, from: up.Conn, to: c.net, source: "service", watch: &c.watch}
	t.back = flow{t: t, from: c.net, to: up.Conn, source: "client", watch: &c.bodyWatch}
	t.down.bytes.Store(begun)
	t.back.bytes.Store(int64(len(early)))
	c.g.tunnels.add(t)
	t.ask(c.g.force.Load()) // orders that came meanwhile did not see it
	done := make(chan struct{})
	go func() {
		defer close(done)
		t.back.run(early)
	}()
	t.down.run(first)
	<-done
	t.end()
	return false
}

// buildSwitch writes to c.out the answer that opens the tunnel; nothing for who
// has not asked for it in HTTP.
func (c *conn) buildSwitch() {
	c.out = c.out[:0]
	switch {
	case c.mute:
	case c.res.Status != 101:
		c.out = http1.AppendStatusLine(c.out, 200, "")
		c.out = c.x.appendVerdict(c.out)
		c.out = http1.AppendEnd(c.out)
	default:
		c.out = append(c.appendHead(c.out), upgradeFields+"\r\n"...)
	}
}

// keep clones what the exchange has of buffers that are given back.
func (x *exchange) keep() {
	call := &x.call
	for _, s := range []*string{&call.Method, &call.Host, &call.Path, &call.Query, &call.Caller.Client, &x.id} {
		*s = strings.Clone(*s)
	}
	params := make([]merlon.Param, len(call.Params))
	for i, p := range call.Params {
		params[i] = merlon.Param{Name: strings.Clone(p.Name), Value: strings.Clone(p.Value)}
	}
	call.Params = params
}

// shed gives back the buffers of the call and lets go of the orders under which
// it began, which would stay in memory for as long as the tunnel lasts.
func (c *conn) shed(up *upstream.Conn) {
	c.x.f, c.x.service, c.x.operation, c.peer.under = nil, nil, nil, nil
	c.websocket = c.x.upgrades()
	c.req.Reset()
	c.res.Reset()
	if up.Wire != nil {
		up.Wire.Keep()
	}
	c.dropInput()
	c.rest()
}

// run carries what comes from one side to the other until that side ends, and
// then ends the other's, which may still have something to say.
func (f *flow) run(first []byte) {
	defer func() {
		if p := recover(); p != nil {
			f.t.c.g.cfg.Log.Error("tunnel ended by a defect", "panic", p, "stack", stack())
			f.t.stop(failure{reason: ReasonDefect, cause: errDefect})
		}
		f.watch.stop()
	}()
	err := f.write(first)
	if err == nil {
		err = f.carry()
	}
	if errors.Is(err, io.EOF) {
		if err = f.closeWrite(); err == nil {
			return
		}
	}
	f.t.stop(failure{reason: ReasonTunnelBroken, cause: err})
}

func (f *flow) carry() error {
	var big *[32 << 10]byte
	defer func() {
		if big != nil {
			bulk.Put(big)
		}
	}()
	for buf := f.small[:]; ; {
		n, err := f.read(buf)
		if n > 0 {
			f.bytes.Add(int64(n))
			if werr := f.write(buf[:n]); werr != nil {
				return werr
			}
		}
		if err != nil {
			return err
		}
		switch {
		case n == len(f.small) && big == nil:
			big = bulk.Get().(*[32 << 10]byte)
			buf = big[:]
		case n < len(f.small) && big != nil:
			bulk.Put(big)
			big, buf = nil, f.small[:]
		}
	}
}

// read waits for bytes as long as either direction has some.
func (f *flow) read(buf []byte) (int, error) {
	g := f.t.c.g
	for {
		left := f.t.quiet() - time.Duration(g.clock.Nanos()-f.t.active.Load())
		if left <= 0 {
			f.t.stop(failure{reason: ReasonTunnelQuiet, cause: errQuiet})
		}
		f.watch.start(g, readSide{f.from}, max(left, 1), busy)
		n, err := f.from.Read(buf)
		if n > 0 {
			f.t.active.Store(g.clock.Nanos())
		}
		if n == 0 && err != nil && f.watch.timedOut() && left > 0 {
			continue // and the other direction is looked at
		}
		if err != nil && !errors.Is(err, io.EOF) {
			err = fmt.Errorf("the %s broke off: %w", f.source, err)
		}
		return n, err
	}
}

func (f *flow) write(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	g := f.t.c.g
	f.watch.start(g, writeSide{f.to}, g.cfg.Bounds.Quiet, busy)
	if _, err := f.to.Write(b); err != nil {
		return fmt.Errorf("what the %s sent could not be passed on: %w", f.source, err)
	}
	return nil
}

// closeWrite tells the other side that nothing more will come.
func (f *flow) closeWrite() error {
	t, bounds := f.t, &f.t.c.g.cfg.Bounds
	half, ok := f.to.(interface{ CloseWrite() error })
	if !ok {
		return io.ErrClosedPipe
	}
	t.mu.Lock()
	if !t.half && t.cut.reason == "" {
		t.cut.cause = fmt.Errorf("the %s ended it", f.source)
	}
	t.half = true
	t.mu.Unlock()
	other := &t.down
	if f == other {
		other = &t.back
	}
	other.watch.restart(t.c.g, readSide{other.from}, bounds.Idle, busy)
	f.watch.start(t.c.g, writeSide{f.to}, bounds.Stall, busy)
	return half.CloseWrite()
}

// quiet is how long no byte may come. When one side has ended, the other is not
// waited for as long: one whose end is only half of a close would hold the
// tunnel, at no cost to itself.
func (t *tunnel) quiet() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.half {
		return t.c.g.cfg.Bounds.Idle
	}
	return t.c.g.cfg.Bounds.Quiet
}

// stop ends both directions at once, if they have not ended. The first reason
// counts.
func (t *tunnel) stop(why failure) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return
	}
	if t.cut.reason == "" {
		t.cut = why
	}
	t.c.watch.end()
	t.c.bodyWatch.end()
}

// ask cuts the tunnel if the orders in force do not allow it any more: the call
// that opened it must still lead where it led, and be allowed.
func (t *tunnel) ask(f *force) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over || f != nil && t.allowed(f) {
		return
	}
	if t.cut.reason == "" {
		t.cut = failure{reason: ReasonRevoked, cause: errRevoked}
	}
	t.c.watch.end()
	t.c.bodyWatch.end()
}

func (t *tunnel) allowed(f *force) bool {
	c, call := t.c, &t.c.x.call
	var room [16]merlon.Param
	route := f.policy.RouteService(call.Service, call.Method, call.Path, room[:0])
	if c.at == AtEdge {
		route = f.policy.RouteEdge(call.Host, call.Method, call.Path, room[:0])
	}
	return route.Reason == "" && route.Operation != nil && route.Service.Name == call.Service &&
		route.Operation.Name == call.Operation &&
		(c.websocket && route.Operation.WebSocket || !c.websocket && route.Service.Protocol == merlon.TCP) &&
		f.policy.Decide(call).Effect == merlon.Allow
}

// prove asks again whether the gate's own service is at the other end of the
// local side.
func (t *tunnel) prove(own func(net.Conn) error) {
	t.mu.Lock()
	var local net.Conn
	if !t.over && t.c.at == Outbound {
		local = t.c.net
	}
	t.mu.Unlock()
	if local == nil {
		return
	}
	if err := own(t.c.peer.dialing(local)); err != nil {
		t.stop(failure{reason: ReasonNotOwn, cause: err})
	}
}

// TunnelEnded begins the detail of the second record of a tunnel, so that who
// counts calls can tell it from the first.
const TunnelEnded = "tunnel ended: "

// end closes what the tunnel leads to, and records what became of it.
func (t *tunnel) end() {
	c := t.c
	c.g.tunnels.remove(t)
	t.mu.Lock()
	t.over = true
	why := t.cut
	t.mu.Unlock()
	c.watch.reset()
	c.bodyWatch.reset()
	verdict := c.x.verdict
	switch {
	case why.reason == "":
	case c.g.draining.Load() && why.reason == ReasonTunnelBroken:
		why.cause = errEnded
		fallthrough
	default:
		// An end that is not clean, for both: what came may not be all.
		if tcp, ok := t.up.Socket().(*net.TCPConn); ok {
			tcp.SetLinger(0)
		}
		c.abort()
		verdict.Reason = why.reason
		if why.reason == ReasonRevoked || why.reason == ReasonNotOwn {
			verdict = deny(why.reason)
		}
	}
	c.giveBack(t.up, false)
	r := &c.rec
	r.Verdict, r.Detail = verdict, TunnelEnded+why.cause.Error()
	r.BytesIn, r.BytesOut = t.back.bytes.Load(), t.down.bytes.Load()
	r.Duration = int64(time.Since(c.x.start))
	t.count(r)
	if err := c.g.cfg.Records.Add(r); err != nil {
		c.g.cfg.Log.Error("the end of a tunnel could not be recorded", "request", r.ID, "error", err)
	}
}

// tunnels are those in progress.
type tunnels struct {
	mu   sync.Mutex
	open map[*tunnel]struct{}
}

func (ts *tunnels) add(t *tunnel) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.open == nil {
		ts.open = map[*tunnel]struct{}{}
	}
	ts.open[t] = struct{}{}
}

func (ts *tunnels) remove(t *tunnel) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	delete(ts.open, t)
}

func (ts *tunnels) all() []*tunnel {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	all := make([]*tunnel, 0, len(ts.open))
	for t := range ts.open {
		all = append(all, t)
	}
	return all
}

// askTunnels asks every tunnel again: first the policy, which takes no time, and
// then who is at the local side, for which the kernel is asked.
func (g *Gate) askTunnels() {
	all := g.tunnels.all()
	for _, t := range all {
		t.ask(g.force.Load())
	}
	if g.cfg.Own == nil {
		return
	}
	for _, t := range all {
		t.prove(g.cfg.Own)
	}
}
