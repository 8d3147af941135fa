//go:build amd64 || arm64 || riscv64 || loong64

package gate

import (
	"io"
	"net"
	"sync"
	"syscall"
	"unsafe"

	"merlon/gate/upstream"
	"merlon/internal/wire"
)

// What the live layer leans on. Each has a stress test; -portable turns the
// layer off should a release of Go change one.
//
//   - RawConn.Read waits whenever its callback returns false, and forgets an
//     edge of readiness only on entry: what comes while the callback runs, or
//     before it, is met by the next call of it. So a callback that has read all
//     there was can wait without the read that would give EAGAIN.
//   - A read that gives less than was asked for has emptied a TCP socket
//     (epoll(7)), but for the end of the stream, which it does not show: an end
//     that came in the same edge as the last bytes is met by the sweeper
//     (watch.look).
//   - crypto/tls keeps its state when a read fails with a temporary error
//     (package wire).
//   - A deadline in the past ends the wait, also one that is set meanwhile.
//   - While the callback runs the descriptor cannot be closed, so fd is the
//     connection's.
//   - RawSyscall does not tell the scheduler, so it may only be used for what
//     returns at once: sockets that do not block, and a bounded amount.

// maxRaw is the most that one raw call moves, in bytes.
const maxRaw = 64 << 10

// enliven makes the live layer serve c, as far as it can.
func (c *conn) enliven() {
	l := &c.live
	if c.g.cfg.Portable {
		return
	}
	if l.on = true; l.onClient == nil {
		l.onClient, l.onUpstream = c.ready, c.upstreamReady
	}
	below := c.net
	if l.wire != nil {
		below = l.wire.Conn
	}
	if tcp, ok := below.(*net.TCPConn); ok {
		l.raw, _ = tcp.SyscallConn()
	}
}

// stay serves requests as long as each is whole in the buffer. It reports
// whether the connection goes on, with a request that is not.
func (c *conn) stay() bool {
	l := &c.live
	if l.raw == nil {
		return true
	}
	l.full = true // the portable layer may have left something there
	for {
		l.closed = false
		err := l.raw.Read(l.onClient)
		l.inside = false
		if left := c.leaveWire(); len(left) > 0 {
			c.watch.start(c.g, c.net, c.g.cfg.Bounds.Stall, busy)
			l.wire.Conn.Write(left)
		}
		switch {
		case err == nil:
			return !l.closed
		case !c.watch.interrupted():
			return false
		}
		// By a drain, or because the sweeper saw that an edge was missed: the
		// callback finds out.
		c.watch.start(c.g, c.net, c.g.cfg.Bounds.Idle, idle)
	}
}

// ready serves what can be read from the client. It runs inside RawConn.Read,
// which waits for more whenever it returns false.
func (c *conn) ready(fd uintptr) (leave bool) {
	l := &c.live
	l.inside, l.fd, l.drained = true, fd, false
	c.hold()
	if l.wire != nil {
		l.wire.Enter(c.work.sealed.inOut)
	}
	for {
		for c.in.r < c.in.w {
			served, keep := c.serveBuffered()
			if !served {
				return true
			}
			if !keep {
				l.closed = true
				return true
			}
		}
		n, err := c.pull()
		if n == 0 && err == wire.ErrEmpty {
			break
		}
		if n == 0 {
			l.closed = true
			return true
		}
		c.in.r, c.in.w = 0, n
	}
	// What TLS has to say of its own, such as new keys.
	if left := c.leaveWire(); len(left) > 0 && c.writeNow(left) < len(left) {
		l.closed = true
		return true
	}
	c.forget()
	c.rest()
	c.dropInput()
	c.watch.start(c.g, c.net, c.g.cfg.Bounds.Idle, idle)
	// Asked after the wait is known: a drain either sees it or is seen.
	l.closed = c.g.draining.Load()
	return l.closed
}

// pull reads from the client, until the socket is drained and TLS has nothing
// more either; then the error is wire.ErrEmpty.
func (c *conn) pull() (int, error) {
	l := &c.live
	buf := c.in.buf
	if l.wire != nil {
		buf = room(&c.work.sealed.in)
	}
	for {
		if w := l.wire; w != nil && (l.full || !w.Exhausted()) {
			n, err := c.net.Read(c.in.buf)
			if l.full = n == len(c.in.buf); n > 0 || err != wire.ErrEmpty {
				return n, err
			}
		}
		if l.drained {
			return 0, wire.ErrEmpty
		}
		n, errno := rawRead(l.fd, buf)
		l.drained = n < len(buf)
		switch {
		case errno == syscall.EAGAIN:
			return 0, wire.ErrEmpty
		case errno != 0:
			return 0, errno
		case n == 0:
			return 0, io.EOF
		case l.wire == nil:
			return n, nil
		}
		l.wire.Feed(buf[:n])
	}
}

// room is a buffer for what is read from a socket below TLS.
func room(b *[]byte) []byte {
	if *b == nil {
		*b = make([]byte, bufferSize)
	}
	return *b
}

// leaveWire ends the work of the client's TLS in memory. What it gives is still
// to be written.
func (c *conn) leaveWire() (left []byte) {
	w := c.live.wire
	if w == nil || c.work == nil {
		return nil
	}
	w.Keep()
	left = w.Leave()
	c.work.sealed.inOut = left[:0]
	return left
}

// serveBuffered serves the request that the buffer begins with, if it is whole
// there; if not, all is as before.
func (c *conn) serveBuffered() (served, keep bool) {
	c.req.Reset()
	n, err := c.req.Parse(c.in.bytes(), c.at.limits())
	if err != nil || n == 0 {
		return false, false
	}
	c.in.r += n
	if !c.bodyBuffered() || c.x.wantsTunnel() {
		c.in.r -= n
		return false, false
	}
	return true, c.serve() && c.takeUnread()
}

// writeNow writes to the client what its socket takes at once. What is wrong,
// if anything, is for the portable write of the rest to say.
func (c *conn) writeNow(b []byte) int {
	n, _ := rawWrite(c.live.fd, b)
	return n
}

// exchange sends the request and reads the beginning of the answer into c.up,
// or nothing yet.
func (c *conn) exchange(up *upstream.Conn) error {
	l := &c.live
	if !l.on || up.Raw == nil {
		_, err := up.Write(c.out)
		return err
	}
	l.up, l.bytes, l.wrote, l.err = up, c.out, false, nil
	to := up.Conn
	if w := up.Wire; w != nil {
		to = w.Conn
		w.Enter(c.work.sealed.upOut)
		defer c.leaveUpstream(w)
		if _, err := up.Conn.Write(c.out); err != nil {
			return err
		}
		l.bytes = w.Out()
		w.Sent()
	}
	if err := up.Raw.Read(l.onUpstream); err != nil {
		return err
	}
	if len(l.bytes) > 0 && l.err == nil {
		_, l.err = to.Write(l.bytes)
	}
	return l.err
}

// leaveUpstream ends the work of the upstream's TLS in memory. What it was fed
// and has not used is good until the call ends.
func (c *conn) leaveUpstream(w *wire.Conn) {
	left := w.Leave()
	if len(left) > 0 && c.live.err == nil {
		_, c.live.err = w.Conn.Write(left)
	}
	c.work.sealed.upOut = left[:0]
}

// upstreamReady runs inside RawConn.Read of the upstream's socket: the first
// time at once, to write the request, and then when an answer has begun.
func (c *conn) upstreamReady(fd uintptr) (leave bool) {
	l := &c.live
	if !l.wrote {
		l.wrote = true
		n, errno := rawWrite(fd, l.bytes)
		l.bytes = l.bytes[n:]
		if errno != 0 && errno != syscall.EAGAIN {
			l.err = errno
			return true
		}
		return len(l.bytes) > 0
	}
	buf, w := c.up.buf, l.up.Wire
	if w != nil {
		buf = room(&c.work.sealed.up)
	}
	n, errno := rawRead(fd, buf)
	switch {
	case errno == syscall.EAGAIN:
		return false
	case errno != 0:
		l.err = errno
	case n == 0:
		l.err = io.EOF
	case w == nil:
		c.up.w = n
	default:
		w.Feed(buf[:n])
		if n, err := l.up.Conn.Read(c.up.buf); n > 0 {
			c.up.w = n
		} else if err != wire.ErrEmpty {
			l.err = err
		}
	}
	return true
}

// look reports whether something can be read from the client although nobody
// has been told.
func (c *conn) look() (more bool) {
	if c.live.raw == nil {
		return false
	}
	c.live.raw.Control(func(fd uintptr) {
		var b [1]byte
		_, errno := rawReceive(fd, b[:], syscall.MSG_PEEK)
		more = errno != syscall.EAGAIN
	})
	return more
}

// quiet is a TCP connection whose system calls the scheduler does not hear of,
// for who must wait for reads and for writes in different goroutines. At an
// ordinary load a system call that it hears of often costs the goroutine its
// processor, and another thread is woken. Reads have one user at a time.
type quiet struct {
	*net.TCPConn
	raw syscall.RawConn
	in  transfer

	mu  sync.Mutex
	out transfer
	// full is what the socket did not take at once.
	full []byte
}

// transfer is a read or write in progress.
type transfer struct {
	b     []byte
	n     int
	errno syscall.Errno
	wait  bool                         // for room
	step  func(fd uintptr) (done bool) // made once
}

// hush makes a connection of which nobody else reads or writes quiet, if it can.
func (g *Gate) hush(nc net.Conn) net.Conn {
	tcp, ok := nc.(*net.TCPConn)
	if !ok || g.cfg.Portable {
		return nc
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nc
	}
	q := &quiet{TCPConn: tcp, raw: raw}
	q.in.step = func(fd uintptr) bool {
		t := &q.in
		t.n, t.errno = rawRead(fd, t.b)
		return t.errno != syscall.EAGAIN
	}
	q.out.step = func(fd uintptr) bool {
		t := &q.out
		for t.n < len(t.b) && t.errno == 0 {
			var n int
			n, t.errno = rawWrite(fd, t.b[t.n:])
			t.n += n
		}
		if t.errno == syscall.EAGAIN {
			t.errno = 0
			return !t.wait
		}
		return true
	}
	return q
}

// Read reads once.
func (q *quiet) Read(b []byte) (int, error) {
	t := &q.in
	t.b, t.n, t.errno = b, 0, 0
	err := q.raw.Read(t.step)
	t.b = nil
	switch {
	case err != nil:
		return 0, err
	case t.errno != 0:
		return 0, t.errno
	case t.n == 0 && len(b) > 0:
		return 0, io.EOF
	}
	return t.n, nil
}

// maxHeld bounds what waits for the socket: more than one output of the core.
const maxHeld = 256 << 10

// Write takes all of b, and waits only if too much waits already.
func (q *quiet) Write(b []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	if len(q.full) > maxHeld {
		if err := q.drainLocked(); err != nil {
			return 0, err
		}
	}
	if len(q.full) == 0 {
		var err error
		if n, err = q.put(b, false); err != nil {
			return n, err
		}
	}
	q.full = append(q.full, b[n:]...)
	return len(b), nil
}

// put writes what the socket takes of b; with wait, all.
func (q *quiet) put(b []byte, wait bool) (int, error) {
	t := &q.out
	t.b, t.n, t.errno, t.wait = b, 0, 0, wait
	err := q.raw.Write(t.step)
	t.b = nil
	if err == nil && t.errno != 0 {
		err = t.errno
	}
	return t.n, err
}

func (q *quiet) holds() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.full) > 0
}

func (q *quiet) drain() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.drainLocked()
}

func (q *quiet) drainLocked() error {
	_, err := q.put(q.full, true)
	q.full = nil // it is rarely needed
	return err
}

func rawRead(fd uintptr, b []byte) (int, syscall.Errno) { return rawReceive(fd, b, 0) }

func rawReceive(fd uintptr, b []byte, flags uintptr) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))),
			uintptr(min(len(b), maxRaw)), flags|syscall.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return int(n), 0
		case syscall.EINTR:
			continue
		}
		return 0, errno
	}
}

// rawWrite writes without SIGPIPE: that the peer is gone is no news.
func rawWrite(fd uintptr, b []byte) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))),
			uintptr(min(len(b), maxRaw)), syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case 0:
			return int(n), 0
		case syscall.EINTR:
			continue
		}
		return 0, errno
	}
}
