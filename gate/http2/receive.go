package http2

import "encoding/binary"

// headers takes a HEADERS frame (RFC 9113 6.2).
func (c *Conn) headers(p []byte, ev *Event) *Error {
	f := &c.f
	pad := 0
	if f.has(flagPadded) {
		if len(p) < 1 {
			return broken(FrameSizeError, "frame_size_wrong")
		}
		pad, p = int(p[0]), p[1:]
	}
	b := &c.block
	b.self = false
	if f.has(flagPriority) {
		if len(p) < 5 {
			return broken(FrameSizeError, "frame_size_wrong")
		}
		b.self = binary.BigEndian.Uint32(p)&maxWindow == f.stream // RFC 7540 5.3.1
		p = p[5:]
	}
	if pad > len(p) {
		return broken(ProtocolError, "padding_too_long")
	}
	p = p[:len(p)-pad]
	b.stream, b.ended, b.frames = f.stream, f.has(flagEndStream), 0
	if f.has(flagEndHeaders) {
		return c.endBlock(p, ev)
	}
	b.buf = append(b.buf[:0], p...)
	return nil
}

// continuation takes a CONTINUATION frame (RFC 9113 6.10). A block that never
// ends, or in ever so many pieces, costs memory and time (CVE-2024-27316).
func (c *Conn) continuation(p []byte, ev *Event) *Error {
	b := &c.block
	if b.stream == 0 {
		return broken(ProtocolError, "continuation_alone")
	}
	if len(p) == 0 {
		c.strain.charge(costEmpty, "continuation_flood")
	}
	b.frames++
	// What is larger than its list may be cannot be meant well; a list that is
	// too large is only told so.
	if b.frames > maxContinuations || len(b.buf)+len(p) > 2*c.cfg.HeaderList {
		return broken(EnhanceYourCalm, "continuation_flood")
	}
	b.buf = append(b.buf, p...)
	if !c.f.has(flagEndHeaders) {
		return nil
	}
	err := c.endBlock(b.buf, ev)
	b.buf = trim(b.buf)
	return err
}

// endBlock takes a whole header block. It is decoded whatever becomes of it,
// since the next block builds on it (RFC 9113 4.3).
func (c *Conn) endBlock(p []byte, ev *Event) *Error {
	b := &c.block
	id := b.stream
	b.stream = 0
	switch c.dec.decode(p, c.cfg.HeaderList, c.cfg.Fields+int(pseudos)) {
	case nil:
	case errBomb:
		return broken(EnhanceYourCalm, "header_bomb")
	default:
		return broken(CompressionError, "header_block_invalid")
	}
	defer func() { c.dec.out = trim(c.dec.out) }()
	if id > c.newest {
		c.newStream(id, ev)
		return nil
	}
	if s := c.find(id); s != nil {
		if s.closed() && s.reset == notReset {
			return broken(StreamClosed, "stream_closed")
		}
		c.moreHeaders(s, ev)
		return nil
	}
	switch by, known := c.past(id); {
	case known && by == byUs: // it was on its way (RFC 9113 5.1)
		c.strain.charge(costIgnored, "ignored_flood")
	case by == byPeer:
		c.strain.charge(costReset, "rapid_fault")
		c.appendReset(id, StreamClosed)
	case known:
		return broken(StreamClosed, "stream_closed")
	default:
		return broken(ProtocolError, "stream_id_invalid") // RFC 9113 5.1.1
	}
	return nil
}

// newStream begins a stream with the request that was decoded.
func (c *Conn) newStream(id uint32, ev *Event) {
	c.newest = id
	if c.going == gone || len(c.ids) >= c.cfg.Streams {
		// The client may try again elsewhere (RFC 9113 8.7).
		c.strain.charge(costReset, "streams_flood")
		c.remember(id, byUs)
		c.appendReset(id, RefusedStream)
		return
	}
	s := c.open(id)
	err := s.request.parse(&c.dec, &c.cfg, c.block.ended)
	if err == nil && c.block.self {
		err = malformed("depends_on_itself")
	}
	if err != nil && err.Status == 0 {
		c.strain.charge(costReset, "rapid_fault")
		c.remember(id, byUs)
		c.appendReset(id, err.Code)
		c.put(s)
		*ev = Event{Kind: Refused, Stream: id, Err: err}
		return
	}
	s.peerEnded = c.block.ended
	s.left = s.request.Length
	s.refused = err != nil
	c.add(s)
	*ev = Event{Kind: Begin, End: s.peerEnded, Stream: id, Request: &s.request}
	if err != nil {
		ev.Kind, ev.Err = Refused, err
	}
}

// moreHeaders takes a block for a stream in the table: to a server trailers, at
// most; to a client heads of answers before that.
func (c *Conn) moreHeaders(s *stream, ev *Event) {
	switch {
	case s.reset == byUs:
		c.strain.charge(costIgnored, "ignored_flood")
	case s.reset == byPeer || s.peerEnded:
		c.fault(s, broken(StreamClosed, "stream_closed"), ev)
	case c.block.self:
		c.fault(s, malformed("depends_on_itself"), ev)
	case c.cfg.Client && !s.began:
		c.answer(s, ev)
	case !c.block.ended:
		c.fault(s, malformed("trailers_without_end"), ev) // RFC 9113 8.1
	case s.left > 0:
		c.fault(s, malformed("content_length_differs"), ev)
	default:
		if err := s.trailers.parseTrailers(&c.dec, c.cfg.Client); err != nil {
			err.Code = ProtocolError
			c.fault(s, err, ev)
			return
		}
		s.peerEnded = true
		if !s.refused && !s.done {
			*ev = Event{Kind: Trailers, End: true, Stream: s.id, Fields: s.trailers.fields}
		}
		c.settle(s)
	}
}

// beginData judges a DATA frame by its header (RFC 9113 6.1).
func (c *Conn) beginData(ev *Event) *Error {
	f := &c.f
	if f.length == 0 {
		if !f.has(flagEndStream) {
			c.strain.charge(costEmpty, "empty_data_flood") // CVE-2019-9518
		}
		if f.has(flagPadded) {
			return broken(FrameSizeError, "frame_size_wrong")
		}
	}
	// All of the frame counts, padding too, and also when nobody wants it
	// (RFC 9113 6.9.1).
	if c.room -= f.length; c.room < 0 {
		return broken(FlowControlError, "window_exceeded")
	}
	if s := c.wanted(ev); s != nil {
		s.room -= f.length
	}
	c.left, c.padding, c.state = f.length, 0, inData
	if f.has(flagPadded) {
		c.state = inPadLength
		return nil
	}
	return c.endPadLength(0, ev)
}

// wanted is the stream that the DATA frame at hand is for, or nil.
func (c *Conn) wanted(ev *Event) *stream {
	s := c.find(c.f.stream)
	if s == nil {
		if by, known := c.past(c.f.stream); known && by == byUs {
			c.ignoreData()
		} else {
			c.strain.charge(costReset, "rapid_fault")
			c.appendReset(c.f.stream, StreamClosed)
		}
		return nil
	}
	switch {
	case s.reset == byUs:
		c.ignoreData()
	case s.reset == byPeer || s.peerEnded:
		c.fault(s, broken(StreamClosed, "stream_closed"), ev)
	case c.cfg.Client && !s.began:
		c.fault(s, malformed("data_before_head"), ev) // RFC 9113 8.1
	case s.room < c.f.length:
		c.fault(s, broken(FlowControlError, "window_exceeded"), ev)
	default:
		return s
	}
	return nil
}

// ignoreData takes note of a DATA frame for a stream that was reset by this
// end. A client is not hurt by what it let the server send: or whoever makes it
// reset streams could have it leave all others on the connection.
func (c *Conn) ignoreData() {
	if !c.cfg.Client || c.f.length == 0 {
		c.strain.charge(costIgnored, "ignored_flood")
	}
}

// padLength takes the first byte of a padded DATA frame.
func (c *Conn) padLength(pad int, ev *Event) *Error {
	c.left--
	if pad > c.left {
		return broken(ProtocolError, "padding_too_long")
	}
	c.state = inData
	return c.endPadLength(pad, ev)
}

// endPadLength begins the data of a DATA frame. Padding is used up as it comes,
// so its windows open at once.
func (c *Conn) endPadLength(pad int, ev *Event) *Error {
	c.padding = pad
	s := c.find(c.f.stream)
	if c.f.has(flagPadded) {
		c.creditConn(pad + 1)
		if s != nil {
			c.creditStream(s, pad+1)
		}
	}
	size := c.left - pad
	if s != nil && s.reset == notReset && s.left >= 0 {
		if s.left -= int64(size); s.left < 0 || c.f.has(flagEndStream) && s.left > 0 {
			c.fault(s, malformed("content_length_differs"), ev) // RFC 9113 8.1.1
		}
	}
	if c.left == 0 {
		c.endData(nil, ev)
	}
	return nil
}

// data takes a piece of a DATA frame.
func (c *Conn) data(in []byte, ev *Event) int {
	if size := c.left - c.padding; size > 0 {
		n := min(len(in), size)
		if c.left -= n; c.left == 0 {
			c.endData(in[:n], ev)
		} else {
			c.pass(in[:n], ev)
		}
		return n
	}
	n := min(len(in), c.left)
	if c.left -= n; c.left == 0 {
		c.endData(nil, ev)
	}
	return n
}

// pass hands data on, or drops it when nobody wants it any more.
func (c *Conn) pass(data []byte, ev *Event) {
	s := c.find(c.f.stream)
	if s == nil || s.reset != notReset || s.done || s.refused {
		c.creditConn(len(data))
		if s != nil {
			c.creditStream(s, len(data))
		}
		return
	}
	if len(data) > 0 {
		*ev = Event{Kind: Data, Stream: s.id, Data: data}
	}
}

// endData ends a DATA frame with the last piece of its data.
func (c *Conn) endData(data []byte, ev *Event) {
	c.state = inHeader
	if ev.Kind != None {
		return // the frame was at fault
	}
	c.pass(data, ev)
	if !c.f.has(flagEndStream) {
		return
	}
	s := c.find(c.f.stream)
	if s == nil || s.reset != notReset {
		return
	}
	s.peerEnded = true
	if !s.done && !s.refused {
		*ev = Event{Kind: Data, End: true, Stream: s.id, Data: data}
	}
	c.settle(s)
}
