package gate

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"merlon/gate/grpc"
	"merlon/gate/http1"
	"merlon/gate/upstream"
)

// stream carries a request body that was not read whole with its head. It has
// a goroutine of its own, since the answer may begin and end before the body
// does: with one goroutine for both directions, a client and an upstream that
// each wait for the other to read would wait for ever.
type stream struct {
	c        *conn
	up       *upstream.Conn
	done     chan struct{} // closed when the goroutine has ended
	err      error         // why the body was not sent whole; valid after done
	rest     []byte        // what was read and not sent; in the end, beyond the body; valid after done
	taken    int64         // bytes of the body that were read; valid after done
	body     body          // as far as it was read
	first    []byte        // all that was sent, while it is little and may be refused
	firm     bool          // too much was sent for it to be sent again
	begun    atomic.Bool   // the answer has begun
	last     atomic.Bool   // the end of the body is being written, or was
	reads    readSide      // of the client
	buf, out []byte

	waited   int64 // for the client, in nanoseconds
	room     int64 // bytes of the body that the service still takes
	messages grpc.Messages
	text     grpc.Text
	decoded  []byte // of text
}

// streams keeps the memory of streams that have ended.
var streams = sync.Pool{New: func() any {
	return &stream{buf: make([]byte, bufferSize), out: make([]byte, 0, bufferSize+64)}
}}

func newStream(c *conn, up *upstream.Conn) *stream {
	s := streams.Get().(*stream)
	s.c, s.reads = c, readSide{c.net}
	s.room, s.waited = c.x.service.MaxBody, 0
	s.body, s.rest = body{kind: c.req.Body, left: c.req.Length}, c.in.bytes()
	s.begin(up)
	return s
}

// begin sends the body to up, from the beginning.
func (s *stream) begin(up *upstream.Conn) {
	s.up, s.done, s.err = up, make(chan struct{}), nil
	go s.run()
}

// rewind gets the body ready to begin again with another upstream, since this
// one has done nothing about the call. It reports whether it could.
func (s *stream) rewind() bool {
	s.halt()
	halted := s.err == nil || errors.Is(s.err, errUpstream) || errors.Is(s.err, errClientGone)
	return halted && !s.firm
}

// release gives the memory back. The goroutine has ended.
func (s *stream) release() {
	s.c, s.up, s.done, s.err, s.rest, s.taken, s.reads = nil, nil, nil, nil, nil, 0, readSide{}
	s.body, s.first, s.firm = body{}, s.first[:0], false
	s.messages, s.text = grpc.Messages{}, grpc.Text{}
	s.begun.Store(false)
	s.last.Store(false)
	streams.Put(s)
}

// Why a body ended early.
var (
	errBodyTooLarge = errors.New("the body is larger than the service takes")
	errClientBody   = errors.New("the client's body is not well-formed")
	errClientGone   = errors.New("the client stopped before the end of its body")
	errDefect       = errors.New("the gate met a defect of its own")
	errUpstream     = errors.New("the upstream takes no more of the body")
	errStalled      = errors.New("the upstream did not take the body in time")
)

// run sends the body. What ends it early, but for the upstream itself, also
// ends the wait for an answer: a body cut short is never answered as if it were
// whole. An upstream that takes no more may have answered already, and that
// answer must be heard.
func (s *stream) run() {
	c, up := s.c, s.up
	s.err = s.guarded()
	c.bodyCame()
	c.bodyWatch.stop()
	if s.err == nil || errors.Is(s.err, errUpstream) {
		c.watch.restart(c.g, up.Conn, c.x.within(c.x.service.Timeout), answering)
		close(s.done)
		return
	}
	close(s.done) // first: who is woken by the deadline asks why; s and c may be gone then
	up.SetDeadline(past)
}

// guarded is copy, but a bug in it ends this call only.
func (s *stream) guarded() (err error) {
	defer func() {
		if p := recover(); p != nil {
			s.c.g.cfg.Log.Error("body ended by a defect", "at", s.c.at, "panic", p, "stack", stack())
			err = errDefect
		}
	}()
	return s.copy()
}

// ended is why the body ended early, or nil.
func (s *stream) ended() error {
	if s.over() {
		return s.err
	}
	return nil
}

// answered notes that the answer has begun, which gives the upstream more time
// for the body. It reports whether the whole body was sent before.
func (s *stream) answered() bool {
	s.begun.Store(true)
	s.c.bodyWatch.restart(s.c.g, s.up.Conn, s.c.x.stall(s.c.x.lasting()), busy)
	if !s.over() && s.last.Load() {
		// An answer can be quicker than the goroutine that has just written the
		// end of the body; the connection would be closed for nothing.
		select {
		case <-s.done:
		case <-time.After(20 * time.Millisecond):
		}
	}
	return s.over() && s.err == nil
}

// over reports whether the goroutine has ended.
func (s *stream) over() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// copy sends the body from where it was left.
func (s *stream) copy() error {
	if err := s.write(s.first); err != nil { // what another upstream has refused
		return err
	}
	for !s.last.Load() {
		out, used, done, err := s.recode(s.out[:0], s.rest)
		if err != nil {
			return err
		}
		s.rest = s.rest[used:]
		s.last.Store(done)
		s.remember(out)
		if err := s.write(out); err != nil || done {
			return err
		}
		kept := copy(s.buf, s.rest)
		n, err := s.read(s.buf[kept:s.space(kept)])
		s.rest = s.buf[:kept+n]
		if err != nil {
			return err
		}
	}
	return nil
}

// remember keeps what is sent over HTTP/2, which alone refuses calls (RFC 9113
// 8.7), for as long as it is no more than what is buffered anyway.
func (s *stream) remember(out []byte) {
	if _, refuses := s.up.Conn.(*upLane); !refuses || s.firm {
		return
	}
	if s.firm = s.begun.Load() || len(s.first)+len(out) > bufferSize; !s.firm {
		s.first = append(s.first, out...)
	}
}

// recode appends to out the part of a body that in holds, framed anew, and
// tells how much of in that was and whether the body is complete.
func (s *stream) recode(out, in []byte) (_ []byte, used int, done bool, err error) {
	b := &s.body
	chunked := b.kind == http1.BodyChunked || s.c.x.kind == grpc.WebText
	for used < len(in) && !done {
		var n int
		var data []byte
		if n, data, done, err = b.next(in[used:]); err != nil {
			return out, used, false, fmt.Errorf("%w: %w", errClientBody, err)
		}
		s.taken += int64(len(data))
		if data, err = s.check(data, done); err != nil {
			return out, used, false, err
		}
		if used += n; chunked {
			out = http1.AppendChunk(out, data)
		} else {
			out = append(out, data...)
		}
		if n == 0 {
			break
		}
	}
	if done && chunked {
		out = http1.AppendLastChunk(out)
	}
	return out, used, done, nil
}

// check decodes a piece of the body, if it is text, and bounds it: as a whole, or
// each message of a call that lasts.
func (s *stream) check(data []byte, done bool) (_ []byte, err error) {
	x := &s.c.x
	if x.kind == grpc.WebText {
		if s.decoded, err = s.text.Append(s.decoded[:0], data); err != nil {
			return nil, fmt.Errorf("%w: %w", errClientBody, err)
		}
		if data = s.decoded; done && !s.text.Whole() {
			return nil, fmt.Errorf("%w: %w", errClientBody, grpc.ErrText)
		}
	}
	if x.kind == grpc.None || !x.lasting() {
		if s.room -= int64(len(data)); s.room < 0 {
			return nil, errBodyTooLarge
		}
		return data, nil
	}
	switch err = s.messages.Scan(data, x.service.MaxBody); err {
	case nil:
		return data, nil
	case grpc.ErrTooLarge:
		return nil, errBodyTooLarge
	}
	return nil, fmt.Errorf("%w: %w", errClientBody, err)
}

// write sends a piece to the upstream, which has the service's timeout to take
// it, or longer once it answers: then it may be the client who does not read.
func (s *stream) write(out []byte) error {
	c := s.c
	if len(out) == 0 {
		return nil
	}
	bound := c.x.within(c.x.service.Timeout)
	if c.x.lasting() {
		bound = c.x.stall(true)
	}
	c.bodyWatch.start(c.g, s.up.Conn, bound, busy)
	if s.begun.Load() {
		c.bodyWatch.restart(c.g, s.up.Conn, c.x.stall(c.x.lasting()), busy)
	}
	switch _, err := s.up.Write(out); {
	case err == nil:
		return nil
	case c.bodyWatch.timedOut():
		return errStalled
	default:
		return errUpstream
	}
}

// read reads from the client.
func (s *stream) read(buf []byte) (int, error) {
	c := s.c
	for {
		c.bodyWatch.start(c.g, &s.reads, s.patience(), streaming)
		if !c.x.stillAllowed() {
			return 0, errRevoked
		}
		began := c.g.clock.Nanos()
		n, err := c.net.Read(buf)
		s.waited += c.g.clock.Nanos() - began
		switch {
		case n > 0:
			if c.x.lasting() {
				c.moved.Store(c.g.clock.Nanos())
			}
			return n, nil
		case err != nil && !c.goesOn(&c.bodyWatch, c.x.lasting()):
			return 0, errClientGone
		}
	}
}

// minBodyRate is what a body must bring at least, in bytes a second on average:
// one that drips holds a connection of the upstream.
const minBodyRate = 500

// patience is how long the next piece of the body may take: as long as a stall,
// which the body as a whole may take beyond what minBodyRate gives it.
func (s *stream) patience() time.Duration {
	x := &s.c.x
	stall := x.stall(x.lasting())
	if x.lasting() {
		return stall
	}
	left := stall + time.Duration(s.taken)*(time.Second/minBodyRate) - time.Duration(s.waited)
	return min(stall, max(left, time.Millisecond))
}

// space is how far the buffer may be filled: not beyond a body of known length,
// so that the next request stays where it belongs.
func (s *stream) space(kept int) int {
	if b := &s.body; b.kind == http1.BodyLength {
		return int(min(int64(len(s.buf)), int64(kept)+b.left))
	}
	return len(s.buf)
}

// finish ends the stream, if it has not ended, and reports whether the whole
// body was sent.
func (s *stream) finish() bool {
	s.halt()
	return s.err == nil
}

// halt ends the goroutine, if it has not ended.
func (s *stream) halt() {
	if s.over() {
		return
	}
	c, up := s.c, s.up
	c.bodyWatch.end()
	<-s.done
	c.bodyWatch.reset()
	c.net.SetDeadline(noDeadline)
	up.SetDeadline(noDeadline)
}
