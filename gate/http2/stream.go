package http2

import "slices"

// stream is one entry of the stream table. It stays there until it is closed
// and its work has ended, so that work in progress is bounded by Config.Streams
// however fast a peer opens and resets (CVE-2023-44487).
type stream struct {
	id        uint32
	request   Request
	response  Response
	bodiless  bool  // the answer has no body whatever its head says: the method is HEAD
	peerEnded bool  // END_STREAM came
	ended     bool  // END_STREAM was sent
	reset     reset // by whom
	refused   bool  // its body is of no interest
	done      bool  // the work has ended
	began     bool  // the final head of the answer was sent, or came
	left      int64 // of content-length; -1 without one
	send      int64 // bytes that the peer's window has room for; negative after it shrank (RFC 9113 6.9.2)
	room      int   // bytes that the peer may send
	credit    int   // bytes passed on and not yet told to the peer
	trailers  list
}

// reset says who ended a stream early.
type reset uint8

const (
	notReset reset = iota
	byUs
	byPeer
)

func (s *stream) closed() bool { return s.reset != notReset || s.peerEnded && s.ended }

// find is the stream in the table, or nil.
func (c *Conn) find(id uint32) *stream {
	if i := slices.Index(c.ids, id); i >= 0 {
		return c.streams[i]
	}
	return nil
}

// open makes an entry, not yet in the table.
func (c *Conn) open(id uint32) *stream {
	var s *stream
	if n := len(c.free); n > 0 {
		s, c.free = c.free[n-1], c.free[:n-1]
	} else {
		s = new(stream)
	}
	*s = stream{id: id, request: s.request, response: s.response, trailers: s.trailers, left: -1, send: c.initialSend, room: c.cfg.StreamWindow}
	return s
}

// put gives the memory of an entry back.
func (c *Conn) put(s *stream) {
	const keep = 8
	if len(c.free) < keep {
		s.request.reset()
		s.response.list.reset()
		s.trailers.reset()
		c.free = append(c.free, s)
	}
}

func (c *Conn) add(s *stream) {
	c.ids = append(c.ids, s.id)
	c.streams = append(c.streams, s)
}

// settle takes the stream out of the table if there is nothing more to it.
func (c *Conn) settle(s *stream) {
	if !s.done || !s.closed() {
		return
	}
	i := slices.Index(c.ids, s.id)
	last := len(c.ids) - 1
	c.ids[i], c.streams[i] = c.ids[last], c.streams[last]
	c.streams[last] = nil
	c.ids, c.streams = c.ids[:last], c.streams[:last]
	c.remember(s.id, s.reset)
	c.put(s)
}

// closing is what is remembered of a stream that has left the table.
type closing struct {
	id uint32
	by reset
}

func (c *Conn) remember(id uint32, by reset) {
	c.recent[c.forget%maxRecent] = closing{id, by}
	c.forget++
}

// past is how a stream with an id below the newest ended, as far as it is
// remembered.
func (c *Conn) past(id uint32) (by reset, known bool) {
	for i := range c.recent {
		if c.recent[i].id == id {
			return c.recent[i].by, true
		}
	}
	// A client has opened every one of them, and may have reset it long ago.
	return byUs, c.cfg.Client
}

// kill resets a stream that is in the table.
func (c *Conn) kill(s *stream, code Code) {
	if s.closed() {
		return
	}
	s.reset = byUs
	c.appendReset(s.id, code)
}
