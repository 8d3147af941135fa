package http2

import (
	"encoding/binary"
	"errors"
)

// Why an answer is not taken.
var (
	// ErrClosed says that the stream takes no more: it has ended, or was reset.
	ErrClosed = errors.New("http2: the stream is closed")
	// ErrFull says that Output must be written first.
	ErrFull = errors.New("http2: too much waits to be written")
)

// Output is what is to be written, until Sent or another method of Conn.
func (c *Conn) Output() []byte { return c.out[c.sent:] }

// keepOutput is how large a buffer a connection without streams keeps.
const keepOutput = 16 << 10

// Sent says that the first n bytes of Output have been written.
func (c *Conn) Sent(n int) {
	if c.sent += n; c.sent < len(c.out) {
		if c.sent >= c.cfg.Output { // or one that never empties would grow
			c.out = c.out[:copy(c.out, c.out[c.sent:])]
			c.sent = 0
		}
		return
	}
	c.out, c.sent, c.control = c.out[:0], 0, 0
	// A connection that rests, as most do, holds no large buffer.
	if cap(c.out) > c.cfg.Output+2*frameSize || cap(c.out) > keepOutput && len(c.ids) == 0 {
		c.out = nil
	}
}

// full reports whether no more answers are taken.
func (c *Conn) full() bool { return len(c.out)-c.sent >= c.cfg.Output }

// WriteHeaders appends the head of an answer: those fields that have no class
// in drop. Names and values must satisfy httpfield.ValidName and ValidValue, or
// come from a parsed head. A status below 200 is an interim answer; with end
// there is no body. It returns ErrFull or ErrClosed when it did nothing.
func (c *Conn) WriteHeaders(id uint32, status int, fields []Field, drop Class, end bool) error {
	s, err := c.answering(id)
	if err != nil {
		return err
	}
	at := c.beginBlock()
	c.out = append(c.out, 0x20) // there is no dynamic table (RFC 7541 6.3)
	c.out = appendStatus(c.out, status)
	c.out = appendFields(c.out, fields, drop)
	s.began = status >= 200
	c.endHeaderBlock(at, s, end && s.began)
	return nil
}

// WriteTrailers appends the trailers of an answer, which end it.
func (c *Conn) WriteTrailers(id uint32, fields []Field, drop Class) error {
	s, err := c.answering(id)
	if err != nil {
		return err
	}
	at := c.beginBlock()
	c.out = appendFields(c.out, fields, drop)
	c.endHeaderBlock(at, s, true)
	return nil
}

// answering is the stream, if it still takes an answer and there is room for it.
func (c *Conn) answering(id uint32) (*stream, error) {
	s := c.find(id)
	switch {
	case s == nil || s.reset != notReset || s.ended || c.err != nil:
		return nil, ErrClosed
	case c.full():
		return nil, ErrFull
	}
	return s, nil
}

// beginBlock leaves room for the header of a frame.
func (c *Conn) beginBlock() int {
	at := len(c.out)
	c.out = appendFrame(c.out, 0, 0, 0, 0)
	return at
}

// endHeaderBlock makes frames of the block that begins after out[at:].
func (c *Conn) endHeaderBlock(at int, s *stream, end bool) {
	flags := byte(0)
	if end {
		flags, s.ended = flagEndStream, true
	}
	block := c.out[at+headerSize:]
	if len(block) <= frameSize {
		appendFrame(c.out[:at], len(block), frameHeaders, flags|flagEndHeaders, s.id)
	} else {
		rest := append([]byte(nil), block[frameSize:]...) // rare
		c.out = c.out[:at+headerSize+frameSize]
		appendFrame(c.out[:at], frameSize, frameHeaders, flags, s.id)
		for len(rest) > 0 {
			n := min(len(rest), frameSize)
			last := byte(0)
			if n == len(rest) {
				last = flagEndHeaders
			}
			c.out = append(appendFrame(c.out, n, frameContinuation, last, s.id), rest[:n]...)
			rest = rest[n:]
		}
	}
	c.settle(s)
}

// WriteData appends as much of data as the windows of stream and connection and
// the room in Output permit, and returns how much that was. When it takes less,
// there is more to take after a Writable event or after Output was written. end
// ends the answer, once all of data is taken. It returns ErrClosed when the
// stream takes no more, never ErrFull.
func (c *Conn) WriteData(id uint32, data []byte, end bool) (n int, err error) {
	s := c.find(id)
	if s == nil || s.reset != notReset || s.ended || c.err != nil {
		return 0, ErrClosed
	}
	for !c.full() {
		rest := data[n:]
		window := min(s.send, c.send)
		size := len(rest)
		if size > 0 && int64(size) > window {
			if window <= 0 {
				break
			}
			size = int(window)
		}
		size = min(size, frameSize)
		last := end && size == len(rest)
		if size == 0 && !last {
			break
		}
		if size < tiny && size < len(rest) {
			// A window opened byte by byte makes a frame of each
			// (CVE-2019-9511).
			c.strain.charge(costEmpty, "dribble")
		} else {
			c.strain.earn(costPing)
		}
		flags := byte(0)
		if last {
			flags, s.ended = flagEndStream, true
		}
		c.out = append(appendFrame(c.out, size, frameData, flags, id), rest[:size]...)
		s.send -= int64(size)
		c.send -= int64(size)
		if n += size; last {
			c.settle(s)
			break
		}
	}
	return n, nil
}

// Takes reports whether the answer of a stream has no end yet, and may have.
func (c *Conn) Takes(id uint32) bool {
	s := c.find(id)
	return s != nil && s.reset == notReset && !s.ended && c.err == nil
}

// Consumed gives back n bytes of a stream's Data events: they have been passed
// on, or dropped, and the peer may send as many more.
func (c *Conn) Consumed(id uint32, n int) {
	c.creditConn(n)
	if s := c.find(id); s != nil {
		c.creditStream(s, n)
	}
}

// creditConn opens the window of the connection, in large steps.
func (c *Conn) creditConn(n int) {
	if c.credit += n; c.credit >= c.cfg.ConnWindow/2 {
		c.room += c.credit
		c.control += headerSize + 4
		c.out = appendWindow(c.out, 0, c.credit)
		c.credit = 0
	}
}

func (c *Conn) creditStream(s *stream, n int) {
	if s.credit += n; s.credit >= c.cfg.StreamWindow/2 && !s.peerEnded && s.reset == notReset {
		s.room += s.credit
		c.control += headerSize + 4
		c.out = appendWindow(c.out, s.id, s.credit)
		s.credit = 0
	}
}

// Reset ends a stream early, with code.
func (c *Conn) Reset(id uint32, code Code) {
	if s := c.find(id); s != nil {
		c.kill(s, code)
		c.settle(s)
	}
}

// Done says that the work of a stream has ended: its views die. An answer that
// is not whole is reset, so that nobody takes it for whole; a request that is
// still coming is told that it need not (RFC 9113 8.1). A client cancels what
// has not ended.
func (c *Conn) Done(id uint32) {
	s := c.find(id)
	if s == nil {
		return
	}
	if s.done = true; !s.closed() {
		code := NoError
		switch {
		case c.cfg.Client:
			code = Cancel
		case !s.ended:
			code = InternalError
		}
		c.kill(s, code)
	}
	c.settle(s)
}

// leavingPing is what the PING of a shutdown carries.
const leavingPing = "leaving."

// GoAway begins a shutdown that loses no request (RFC 9113 6.8): streams that
// were on their way when the peer learns of it are still taken. Drained tells
// when it is complete.
func (c *Conn) GoAway() {
	if c.going != staying || c.err != nil {
		return
	}
	if c.cfg.Client { // nothing of the server's is on its way
		c.going = gone
		c.appendGoAway(0, NoError, "")
		return
	}
	c.going = leaving
	c.appendGoAway(maxWindow, NoError, "")
	c.out = append(appendFrame(c.out, len(leavingPing), framePing, 0, 0), leavingPing...)
}

// nameLast names the last stream that is taken.
func (c *Conn) nameLast() {
	c.going = gone
	c.appendGoAway(c.newest, NoError, "")
}

// Drained reports whether a shutdown is complete: the peer knows of it, and no
// stream is left.
func (c *Conn) Drained() bool { return c.going == gone && len(c.ids) == 0 }

func (c *Conn) appendGoAway(last uint32, code Code, why string) {
	c.out = appendFrame(c.out, 8+len(why), frameGoAway, 0, 0)
	c.out = binary.BigEndian.AppendUint32(c.out, last)
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(code))
	c.out = append(c.out, why...)
}

// appendControl appends a frame that answers one of the peer's.
func (c *Conn) appendControl(k kind, flags byte, payload []byte) {
	c.control += headerSize + len(payload)
	c.out = append(appendFrame(c.out, len(payload), k, flags, 0), payload...)
}

func (c *Conn) appendReset(id uint32, code Code) {
	c.control += headerSize + 4
	c.out = appendFrame(c.out, 4, frameReset, 0, id)
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(code))
}

func appendWindow(dst []byte, id uint32, more int) []byte {
	dst = appendFrame(dst, 4, frameWindow, 0, id)
	return binary.BigEndian.AppendUint32(dst, uint32(more))
}
