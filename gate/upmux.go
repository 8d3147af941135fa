package gate

import (
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"

	"merlon/gate/http2"
	"merlon/gate/upstream"
)

// Towards upstreams HTTP/2 is translated as it is at the door (see mux.go), in
// the other direction: calls of many clients share a connection, and each has a
// stream of it (upLane) that takes an HTTP/1.1 request and gives an HTTP/1.1
// answer.
//
// One goroutine reads the frames of a connection and one writes them, all there
// are at a time. So no call waits in a write for others, and its deadlines hold
// whatever the connection does.

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
	closing  bool      // all there is to write is to be written, and no more
	output   sync.Cond // there is something to write, or the end
	writer   sync.WaitGroup

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
	m.net, m.push = first.Conn, m.signal
	if w := first.Wire; w != nil {
		w.Conn = g.hush(w.Conn)
	} else {
		m.net = g.hush(m.net)
	}
	m.output.L = &m.mu
	m.core.Init(http2.Config{
		Client:     true,
		Streams:    streamsPerConn,
		ConnWindow: upConnWindow,
		HeaderList: bufferSize - headMargin,
		Fields:     maxHTTP2Fields,
	})
	m.silence = time.AfterFunc(m.every, m.listen)
	m.writer.Add(1)
	go m.read()
	go m.write()
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

// read reads frames until the connection is over.
func (m *upMux) read() {
	buf := inputs.Get().(*[bufferSize]byte)
	defer inputs.Put(buf)
	for {
		n, err := m.net.Read(buf[:])
		if n > 0 {
			err = m.batch(buf[:n])
		}
		if err != nil {
			m.end(err)
			m.writer.Wait()
			m.first.Socket().Close()
			return
		}
	}
}

// batch handles what one read gave.
func (m *upMux) batch(in []byte) error {
	m.mu.Lock()
	m.heard, m.asked = true, false
	room := m.core.Room()
	var err error
	for {
		var n int
		var ev http2.Event
		if n, ev, err = m.core.Next(in, m.clock()); err != nil {
			break
		}
		if in = in[n:]; ev.Kind != http2.None {
			m.handle(&ev)
		} else if len(in) == 0 {
			break
		}
	}
	m.signal()
	changed := err == nil && (m.core.Leaving() || m.core.Room() > room)
	m.mu.Unlock()
	if changed {
		m.changed()
	}
	return err
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

// write writes what the core has to say, until the connection is over.
func (m *upMux) write() {
	defer m.writer.Done()
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		out := m.core.Output()
		if len(out) == 0 {
			if m.err == nil && !m.closing {
				m.output.Wait()
				continue
			}
			m.first.Socket().SetReadDeadline(past)
			return
		}
		m.mu.Unlock()
		n, err := m.net.Write(out)
		m.mu.Lock()
		if m.core.Sent(n); err != nil {
			// What the upstream has said before it closed may still be read, such
			// as which calls it did nothing about.
			m.closing = true
			m.first.Socket().SetReadDeadline(time.Now().Add(maxDrain))
			return
		}
		if m.waiting > 0 {
			m.wake()
		}
	}
}

// signal has the writer look; m.mu is held.
func (m *upMux) signal() {
	if len(m.core.Output()) > 0 {
		m.output.Signal()
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
		m.signal()
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

// end makes every call in progress fail at its next read or write, and the
// writer close the connection.
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

// hurry has the writer write what there is and end; m.mu is held.
func (m *upMux) hurry() {
	m.first.Socket().SetWriteDeadline(time.Now().Add(maxDrain))
	m.output.Signal()
}
