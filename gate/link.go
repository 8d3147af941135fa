package gate

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"merlon/gate/http1"
	"merlon/gate/http2"
	"merlon/internal/wire"
)

// link is a connection over which HTTP/2 is spoken, with a client (mux) or with
// an upstream (upMux).
type link struct {
	g      *Gate
	net    net.Conn
	prompt prompt // below net; nil if its writes may wait
	waits  bool   // who writes may wait
	side   side

	mu      sync.Mutex
	core    http2.Conn
	err     error // why the connection has ended
	waiting int   // streams that wait to write

	writing bool      // the core's output
	written sync.Cond // writing became false
	soon    bool      // a stream will flush when others have had their turn
	mute    bool      // nothing more is written
	later   func()    // is drain; a method value allocates
}

// side is what differs between the ends of a connection; mu is held.
type side interface {
	wake()               // makes every stream look again
	stalling(begin bool) // a write may wait, or has ended; mu is not held
	unwritten(err error) // nothing more can be written
	flushed()            // all there was is written
}

// prompt is a connection whose Write takes all, and holds what the socket has no
// room for until drain writes it.
type prompt interface {
	holds() bool
	drain() error
}

// maxRounds is how often one call writes what others have to say before it
// goes on with what is its own.
const maxRounds = 8

// attach takes the connection, whose system calls the scheduler need not hear of.
func (k *link) attach(g *Gate, nc net.Conn, below *wire.Conn) {
	k.g, k.net = g, nc
	if below == nil {
		k.net = g.hush(nc)
		k.prompt, _ = k.net.(prompt)
	} else {
		below.Conn = g.hush(below.Conn)
		k.prompt, _ = below.Conn.(prompt)
	}
	if k.later == nil {
		k.later = k.drain
	}
}

// flush has the core's output written, unless somebody does already; mu is held,
// but not while it writes. It does not wait: what the socket has no room for, a
// goroutine writes. So no call waits in a write for others, and its deadlines hold
// whatever the connection does.
func (k *link) flush() {
	if !k.writing {
		k.writing = true
		k.write(k.waits, maxRounds)
	}
}

// flushNow is flush for who does not hold mu.
func (k *link) flushNow() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.flush()
}

// guard makes an error of a defect that the frames of a peer met: it ends this
// connection and no other. What the core has to say is not written any more. It is
// deferred by who reads.
func (k *link) guard(err *error) {
	if p := recover(); p != nil {
		k.g.metrics.defects.Add(1)
		k.g.cfg.Log.Error("connection of HTTP/2 ended by a defect", "panic", p, "stack", stack())
		k.mu.Lock()
		k.mute, *err = true, errDefect
		k.mu.Unlock()
	}
}

// flushSoon is flush after the goroutines that can run now: what their calls have
// to say leaves in the same write. One of them waits for all.
func (k *link) flushSoon() {
	if k.writing || k.soon {
		return
	}
	if k.core.Streams() > 1 {
		k.soon = true
		k.mu.Unlock()
		runtime.Gosched()
		k.mu.Lock()
		k.soon = false
	}
	k.flush()
}

// drain is flush for who may wait.
func (k *link) drain() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.write(true, -1)
}

// write writes all there is, for who has set writing. What takes too long is left
// to a goroutine of its own.
func (k *link) write(mayWait bool, rounds int) {
	for ; ; rounds-- {
		out, held := k.core.Output(), k.prompt != nil && k.prompt.holds()
		switch {
		case k.mute || len(out) == 0 && !held:
			k.writing = false
			k.written.Broadcast()
			if !k.mute {
				k.side.flushed()
			}
			return
		case rounds == 0 || !mayWait && (held || k.prompt == nil):
			go k.later()
			return
		}
		k.mu.Unlock()
		n, err := k.writeOnce(out, held, mayWait)
		k.mu.Lock()
		if k.core.Sent(n); err != nil {
			k.mute = true
			k.side.unwritten(err)
		}
		if k.waiting > 0 {
			k.side.wake()
		}
	}
}

func (k *link) writeOnce(out []byte, held, mayWait bool) (n int, err error) {
	if mayWait {
		k.side.stalling(true)
		defer k.side.stalling(false)
	}
	if held {
		return 0, k.prompt.drain()
	}
	return k.net.Write(out)
}

// linkStream is one stream of a link as a connection of HTTP/1.1 with one call:
// what a lane and an upLane have in common. It is a net.Conn for the call's
// goroutines, which may read and write at the same time. All but immutable fields
// is guarded by on.mu.
type linkStream struct {
	on   *link
	id   uint32    // 0 while it has not begun
	cond sync.Cond // of on.mu

	in     inflow // what is read
	head   []byte // of what is written, while it is not whole
	headed bool   // the head was sent; an interim one does not count
	body   body   // of what is written
	whole  bool   // all of it was sent

	err    error // why the stream has ended early
	closed bool
	late   struct{ read, write bool } // a deadline has passed
}

// gone is why nothing more comes or goes, if so.
func (l *linkStream) gone(late bool) error {
	switch {
	case l.closed:
		return net.ErrClosed
	case late:
		return os.ErrDeadlineExceeded
	case l.err != nil:
		return l.err
	}
	return l.on.err
}

// untaken is why the core takes nothing more, which says err.
func (l *linkStream) untaken(err error) error {
	if why := l.gone(l.late.write); why != nil {
		return why
	}
	return err
}

// Read reads what has come. What is read is passed on, and opens the windows of
// the other end.
func (l *linkStream) Read(b []byte) (int, error) {
	on := l.on
	on.mu.Lock()
	defer on.mu.Unlock()
	for !l.in.ready() || l.late.read || l.closed {
		if err := l.gone(l.late.read); err != nil {
			return 0, err
		}
		l.cond.Wait()
	}
	n, data := l.in.read(b)
	if n == 0 {
		return 0, io.EOF
	}
	on.core.Consumed(l.id, data)
	on.flush()
	return n, nil
}

// write sends a message of HTTP/1.1. send sends its head, which it finds at the
// beginning of whole, and tells how long that is; 0 if it does not end there.
func (l *linkStream) write(b []byte, send func(whole []byte) (int, error)) (int, error) {
	total := len(b)
	for len(b) > 0 && !l.whole {
		var n int
		var err error
		switch {
		case l.closed:
			err = net.ErrClosed
		case l.headed:
			n, err = l.writeBody(b)
		default:
			n, err = l.writeHead(b, send)
		}
		if err != nil {
			return total - len(b), err
		}
		b = b[n:]
	}
	return total, nil
}

// writeHead takes of b what belongs to a head.
func (l *linkStream) writeHead(b []byte, send func(whole []byte) (int, error)) (used int, err error) {
	whole, before := b, len(l.head)
	if before > 0 {
		l.head = append(l.head, b...)
		whole = l.head
	}
	n, err := send(whole)
	switch {
	case err != nil:
		return 0, err
	case n > 0:
		l.head = l.head[:0]
		return n - before, nil
	case before == 0:
		l.head = append(l.head, b...)
	}
	return len(b), nil
}

// writeBody takes of b what belongs to a body.
func (l *linkStream) writeBody(b []byte) (used int, err error) {
	if err := l.gone(l.late.write); err != nil {
		return 0, err
	}
	used, data, done, err := l.body.next(b)
	if err != nil {
		return 0, err
	}
	var trailers []http1.Field
	if t := l.body.chunks.Trailer; done && t != nil {
		trailers = t.Fields
	}
	if err := l.send(data, done && len(trailers) == 0); err != nil {
		return 0, err
	}
	if len(trailers) > 0 {
		if err := l.untilTaken(func() error { return l.on.core.WriteTrailers(l.id, trailers, 0) }); err != nil {
			return 0, err
		}
	}
	l.whole = done
	return used, nil
}

// send writes data, and with end the end of the message.
func (l *linkStream) send(data []byte, end bool) error {
	core := &l.on.core
	for len(data) > 0 || end {
		n, err := core.WriteData(l.id, data, end)
		if err != nil {
			return l.untaken(err)
		}
		if data = data[n:]; len(data) == 0 && (!end || !core.Takes(l.id)) {
			break
		}
		if err := l.await(); err != nil {
			return err
		}
	}
	return nil
}

// untilTaken writes when the core has room for it.
func (l *linkStream) untilTaken(write func() error) error {
	err := l.gone(l.late.write)
	for err == nil {
		switch err = write(); {
		case err == nil:
			return nil
		case !errors.Is(err, http2.ErrFull):
			return l.untaken(err)
		}
		err = l.await()
	}
	return err
}

// await waits until the core may take more.
func (l *linkStream) await() error {
	on := l.on
	before := len(on.core.Output())
	on.flush()
	if len(on.core.Output()) < before {
		return nil // and others may have been heard meanwhile: look again
	}
	if err := l.gone(l.late.write); err != nil {
		return err
	}
	on.waiting++
	l.cond.Wait()
	on.waiting--
	return nil
}

// done ends the stream for the core. What was not read is dropped.
func (l *linkStream) done() {
	l.on.core.Consumed(l.id, l.in.unread())
	l.on.core.Done(l.id)
}

// SetDeadline ends waits when t has passed; the gate sets no other.
func (l *linkStream) SetDeadline(t time.Time) error { return l.setLate(t, true, true) }

// SetReadDeadline is SetDeadline for reads.
func (l *linkStream) SetReadDeadline(t time.Time) error { return l.setLate(t, true, false) }

// SetWriteDeadline is SetDeadline for writes.
func (l *linkStream) SetWriteDeadline(t time.Time) error { return l.setLate(t, false, true) }

func (l *linkStream) setLate(t time.Time, read, write bool) error {
	l.on.mu.Lock()
	defer l.on.mu.Unlock()
	if read {
		l.late.read = !t.IsZero()
	}
	if write {
		l.late.write = !t.IsZero()
	}
	l.cond.Broadcast()
	return nil
}

// LocalAddr is that of the connection.
func (l *linkStream) LocalAddr() net.Addr { return l.on.net.LocalAddr() }

// RemoteAddr is that of the connection.
func (l *linkStream) RemoteAddr() net.Addr { return l.on.net.RemoteAddr() }

// String names the stream in logs.
func (l *linkStream) String() string { return "stream " + strconv.FormatUint(uint64(l.id), 10) }

// ownLimits bound a head that the gate has written itself, or let through.
func ownLimits() http1.Limits {
	return http1.Limits{Head: maxSpare, Fields: 150, Field: maxSpare, Target: maxSpare}
}

// unframe has Content-Length travel on, which frames nothing in HTTP/2.
func unframe(fields []http1.Field) {
	if i := slices.IndexFunc(fields, func(f http1.Field) bool { return len(f.Name) == len("Content-Length") && f.Class == http1.Framing }); i >= 0 {
		fields[i].Class = 0
	}
}

// spare is the memory of b for another stream, if it is not too much to keep.
func spare(b []byte) []byte {
	if cap(b) > bufferSize {
		return nil
	}
	return b[:0]
}
