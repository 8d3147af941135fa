package gate

import (
	"errors"
	"fmt"

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
	rest     []byte        // what was read beyond the body; valid after done
	buf, out []byte
}

func newStream(c *conn, up *upstream.Conn) *stream {
	return &stream{c: c, up: up, done: make(chan struct{}), buf: make([]byte, bufferSize), out: make([]byte, 0, bufferSize+64)}
}

var (
	errBodyTooLarge = errors.New("the body is larger than the service takes")
	errClientBody   = errors.New("the client's body is not well-formed")
	errRevoked      = errors.New("the orders changed and do not allow this call any more")
	errClientGone   = errors.New("the client stopped before the end of its body")
)

// run sends the body. Whatever ends it early also ends the upstream's wait, so
// that a body cut short is never answered as if it were whole.
func (s *stream) run() {
	if s.err = s.copy(); s.err != nil {
		s.up.SetDeadline(past)
	} else {
		// Only now is it the upstream's turn.
		s.c.watch.follow(s.c.g, s.up.Conn, s.c.x.service.Timeout)
	}
	close(s.done)
}

// ended reports whether the body ended early by cause.
func (s *stream) ended(cause error) bool {
	select {
	case <-s.done:
		return errors.Is(s.err, cause)
	default:
		return false
	}
}

func (s *stream) copy() error {
	c := s.c
	b := body{kind: c.req.Body, left: c.req.Length}
	room := c.x.service.MaxBody
	in := c.in.bytes()
	for {
		out, done := s.out[:0], false
		for len(in) > 0 || b.kind == http1.BodyLength && b.left == 0 {
			n, data, last, err := b.next(in)
			if err != nil {
				return fmt.Errorf("%w: %w", errClientBody, err)
			}
			if room -= int64(len(data)); room < 0 {
				return errBodyTooLarge
			}
			in, done = in[n:], last
			if b.kind == http1.BodyChunked {
				if len(data) > 0 {
					out = http1.AppendChunk(out, data)
				}
			} else {
				out = append(out, data...)
			}
			if done || n == 0 {
				break
			}
		}
		if done && b.kind == http1.BodyChunked {
			out = http1.AppendLastChunk(out)
		}
		if len(out) > 0 {
			c.bodyWatch.start(c.g, s.up.Conn, c.g.cfg.Bounds.Stall)
			if _, err := s.up.Write(out); err != nil {
				return err
			}
		}
		if done {
			s.rest = in
			return nil
		}
		if c.g.force.Load() != c.x.f && !c.g.allows(&c.x.call) {
			return errRevoked
		}
		c.bodyWatch.start(c.g, c.net, c.g.cfg.Bounds.Stall)
		kept := copy(s.buf, in)
		n, err := c.net.Read(s.buf[kept:s.space(&b, kept)])
		if n == 0 && err != nil {
			return errClientGone
		}
		in = s.buf[:kept+n]
	}
}

// space is how far the buffer may be filled: not beyond a body of known length,
// so that the next request stays where it belongs.
func (s *stream) space(b *body, kept int) int {
	if b.kind == http1.BodyLength {
		return int(min(int64(len(s.buf)), int64(kept)+b.left))
	}
	return len(s.buf)
}

// finish ends the stream, if it has not ended, and reports whether the whole
// body was sent.
func (s *stream) finish() bool {
	select {
	case <-s.done:
	default:
		s.c.net.SetReadDeadline(past)
		s.up.SetWriteDeadline(past)
		<-s.done
		s.c.net.SetReadDeadline(noDeadline)
		s.up.SetWriteDeadline(noDeadline)
	}
	s.c.bodyWatch.reset()
	return s.err == nil
}
