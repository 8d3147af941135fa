package gate

import (
	"crypto/tls"
	"errors"
	"net"
	"time"

	"merlon/gate/http2"
	"merlon/gate/upstream"
)

// Towards upstreams HTTP/2 is translated as it is at the door (see mux.go), in
// the other direction: calls of many clients share a connection, and each has a
// stream of it (upLane) that takes an HTTP/1.1 request and gives an HTTP/1.1
// answer.
//
// One goroutine reads the frames of a connection; who has frames to write does it
// as at the door (link.flush).

// upMux is one connection to an upstream over which HTTP/2 is spoken.
type upMux struct {
	link
	first   *upstream.Conn
	scheme  string
	renew   time.Time // no call begins after this; the zero time is never
	changed func()
	clock   func() int64

	// Guarded by mu.
	lanes    map[uint32]*upLane
	promised int       // lanes whose stream has not begun
	opening  []*upLane // of these, some that wait for room in the output
	awake    []*upLane // which the batch at hand has something for
	closing  bool      // all there is to write is to be written, and no more

	// Whether the upstream is alive is asked when calls wait and nothing comes.
	silence    *time.Timer
	every      time.Duration
	heard      bool // since the last look
	asked      bool // and no answer yet
	questions  int  // since the last answer to a call; some upstreams mind many (grpc-go)
	unanswered int  // calls whose answer has not begun
}

// maxQuestions is how often an upstream is asked whether it is alive before it
// has to answer a call.
const maxQuestions = 2

// upConnWindow has room for all that streams may hold. With less, a few clients
// who do not read their answers would stop those of all others.
const upConnWindow = streamsPerConn * 65535

var (
	errNotHTTP2 = errors.New("the endpoint does not speak HTTP/2")
	errSilent   = errors.New("the upstream does not answer a PING")
	errGoneAway = errors.New("the upstream takes no more calls on this connection")
)

// refusedError says that nothing was done about a call: it may be sent again,
// whatever it is (RFC 9113 8.7).
type refusedError struct{ cause error }

func (e *refusedError) Error() string { return e.cause.Error() }
func (e *refusedError) Unwrap() error { return e.cause }

// newUpMux speaks HTTP/2 over a connection that was just made.
func (g *Gate) newUpMux(first *upstream.Conn, changed func()) (upstream.Mux, error) {
	m := &upMux{first: first, scheme: "http", changed: changed, clock: g.clock.Nanos, lanes: map[uint32]*upLane{}, every: g.cfg.Bounds.Connect}
	if secure, ok := first.Conn.(*tls.Conn); ok {
		if secure.ConnectionState().NegotiatedProtocol != "h2" {
			return nil, errNotHTTP2
		}
		m.scheme = "https"
	}
	if s, mutual := first.State.(*session); mutual {
		s.holds(first, time.Now())
		m.renew = s.renew
	}
	m.written.L, m.side = &m.mu, m
	m.attach(g, first.Conn, first.Wire)
	m.core.Init(http2.Config{
		Client:     true,
		Streams:    streamsPerConn,
		ConnWindow: upConnWindow,
		HeaderList: bufferSize - headMargin,
		Fields:     maxHTTP2Fields,
	})
	m.silence = time.AfterFunc(m.every, m.listen)
	go m.serve()
	return m, nil
}

// Open promises a stream.
func (m *upMux) Open() net.Conn {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.over() || m.core.Room() <= m.promised {
		return nil
	}
	m.promised++
	return newUpLane(m)
}

// Over reports whether the connection takes no more calls.
func (m *upMux) Over() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.over()
}

func (m *upMux) over() bool {
	return m.err != nil || m.closing || m.core.Leaving() || !m.renew.IsZero() && time.Now().After(m.renew)
}

// Close says goodbye.
func (m *upMux) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closing = true
	m.core.GoAway()
	m.hurry()
}

// serve reads frames until the connection is over, and ends it.
func (m *upMux) serve() {
	m.end(m.read())
	m.mu.Lock()
	for m.writing {
		m.written.Wait()
	}
	m.mute = true
	m.mu.Unlock()
	m.first.Socket().Close()
}

// read reads frames until the connection is over, and says why.
func (m *upMux) read() (err error) {
	defer m.guard(&err)
	m.flushNow()
	buf := inputs.Get().(*[bufferSize]byte)
	defer inputs.Put(buf)
	for {
		n, err := m.net.Read(buf[:])
		if n > 0 {
			err = m.batch(buf[:n])
		}
		if err != nil {
			return err
		}
	}
}

// batch handles what one read gave.
func (m *upMux) batch(in []byte) error {
	changed, err := m.takeAll(in)
	// Now, since none could go on before.
	for _, l := range m.awake {
		l.cond.Broadcast()
	}
	clear(m.awake)
	m.awake = m.awake[:0]
	if changed {
		m.changed()
	}
	return err
}

// takeAll handles frames, and reports whether more or fewer calls may begin than
// before.
func (m *upMux) takeAll(in []byte) (changed bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.heard, m.asked = true, false
	room := m.core.Room()
	for {
		n, ev, err := m.core.Next(in, m.clock())
		if err != nil {
			m.flush()
			return false, err
		}
		if in = in[n:]; ev.Kind != http2.None {
			m.handle(&ev)
		} else if len(in) == 0 {
			break
		}
	}
	m.flush()
	return m.core.Leaving() || m.core.Room() > room, nil
}

// handle takes one event; m.mu is held.
func (m *upMux) handle(ev *http2.Event) {
	switch ev.Kind {
	case http2.GoneAway:
		for id, l := range m.lanes {
			if id > ev.Stream {
				l.end(&refusedError{errGoneAway})
			}
		}
		return
	case http2.Answer, http2.Data:
		m.questions = 0
	}
	if l := m.lanes[ev.Stream]; l != nil {
		l.take(ev)
	} else if ev.Kind == http2.Writable && m.waiting > 0 {
		m.wake()
	}
}

// stalling does nothing: who waits for the connection has a deadline of his own.
func (m *upMux) stalling(bool) {}

// unwritten ends the connection, but not at once: what the upstream has said before it
// closed may still be read, such as which calls it did nothing about.
func (m *upMux) unwritten(error) {
	m.closing = true
	m.first.Socket().SetReadDeadline(time.Now().Add(maxDrain))
}

// flushed ends a connection that is to be closed.
func (m *upMux) flushed() {
	if m.err != nil || m.closing {
		m.first.Socket().SetReadDeadline(past)
	}
}

// wake makes every lane look again; m.mu is held.
func (m *upMux) wake() {
	for _, l := range m.lanes {
		l.cond.Broadcast()
	}
	for _, l := range m.opening {
		l.cond.Broadcast()
	}
	clear(m.opening)
	m.opening = m.opening[:0]
}

// listen finds out whether an upstream that says nothing while calls wait is
// still there.
func (m *upMux) listen() {
	m.mu.Lock()
	silent := m.unanswered > 0 && !m.heard
	dead := silent && m.asked
	if silent && !dead && m.questions < maxQuestions {
		m.questions++
		m.asked = true
		m.core.Ping()
		m.flush()
	}
	m.heard = false
	if m.err == nil {
		m.silence.Reset(m.every)
	}
	m.mu.Unlock()
	if dead {
		m.end(errSilent)
	}
}

// end makes every call in progress fail at its next read or write.
func (m *upMux) end(err error) {
	m.mu.Lock()
	m.endLocked(err)
	m.mu.Unlock()
	m.changed()
}

func (m *upMux) endLocked(err error) {
	if m.err != nil {
		return
	}
	m.err = err
	m.silence.Stop()
	m.hurry()
	m.wake()
}

// hurry has what there is written, and ends the connection; m.mu is held.
func (m *upMux) hurry() {
	m.first.Socket().SetWriteDeadline(time.Now().Add(maxDrain))
	m.flush()
}
