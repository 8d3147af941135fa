package http2

import "encoding/binary"

// Conn is one side of one connection. Make one with New.
type Conn struct {
	cfg Config
	err *Error // why the connection has ended

	// What is being read.
	state   state
	have    int // bytes of the preface or of hdr
	hdr     [headerSize]byte
	f       frame
	part    []byte // payload that came in pieces
	left    int    // bytes of a payload still to come, for data and skip
	padding int    // of data: how many of left are padding
	settled bool   // the peer's first SETTINGS came
	block   block
	dec     decoder

	strain strain

	// Windows of the connection.
	send   int64
	room   int
	credit int

	initialSend int64 // of a new stream

	ids     []uint32 // of streams, in the same order
	streams []*stream
	free    []*stream
	newest  uint32 // id
	recent  [maxRecent]closing
	forget  int // index of the oldest in recent

	going     going
	peerGoing bool
	last      uint32 // to a client: the last stream that the server takes
	most      int    // to a client: how many streams the server takes at once

	out     []byte
	sent    int // bytes of out already written
	control int // bytes of frames in out that answer the peer's own
}

// state is what comes next.
type state uint8

const (
	inPreface state = iota
	inHeader
	inPayload
	inPadLength
	inData
	inSkip
)

// block is a header block in the making: no other frame may come between its
// frames (RFC 9113 6.10).
type block struct {
	stream uint32 // 0 for none
	ended  bool   // END_STREAM
	self   bool   // depends on itself
	frames int
	buf    []byte
}

// going is how far a shutdown of ours has come.
type going uint8

const (
	staying going = iota
	leaving       // told; streams that were on their way are taken
	gone          // the last stream is named
)

// New makes a connection whose first output is there already.
func New(cfg Config) *Conn {
	c := new(Conn)
	c.Init(cfg)
	return c
}

// Init makes a connection of c anew, and keeps its memory.
func (c *Conn) Init(cfg Config) {
	cfg.setDefaults()
	for _, s := range c.streams {
		c.put(s)
	}
	clear(c.streams)
	*c = Conn{
		cfg: cfg, send: 65535, room: cfg.ConnWindow, initialSend: 65535, last: maxWindow, most: cfg.Streams,
		ids: c.ids[:0], streams: c.streams[:0], free: c.free, out: c.out[:0], part: c.part[:0],
		block: block{buf: c.block.buf[:0]},
		dec:   decoder{spans: c.dec.spans[:0], out: c.dec.out[:0], dyn: table{mem: c.dec.dyn.mem[:0], ents: c.dec.dyn.ents[:0], max: tableSize}},
	}
	if cfg.Client {
		c.state = inHeader
		c.out = append(c.out, preface...)
	}
	at := len(c.out)
	c.out = appendFrame(c.out, 0, frameSettings, 0, 0)
	if cfg.Client {
		c.out = appendSetting(c.out, settingEnablePush, 0)
	} else {
		c.out = appendSetting(c.out, settingStreams, cfg.Streams)
	}
	c.out = appendSetting(c.out, settingHeaderList, cfg.HeaderList)
	c.out = appendSetting(c.out, settingNoPriorities, 1)
	if cfg.StreamWindow != 65535 {
		c.out = appendSetting(c.out, settingWindow, cfg.StreamWindow)
	}
	if cfg.Connect && !cfg.Client {
		c.out = appendSetting(c.out, settingConnect, 1)
	}
	appendFrame(c.out[:at], len(c.out)-at-headerSize, frameSettings, 0, 0)
	if more := cfg.ConnWindow - 65535; more > 0 {
		c.out = appendWindow(c.out, 0, more)
	}
}

// Streams is how many streams there are whose work has not ended.
func (c *Conn) Streams() int { return len(c.ids) }

// Next uses n bytes of in and returns at most one event. Call it again with
// what is left, until all is used and there is no event. now is any clock in
// nanoseconds. After an error the connection is over: write what Output has
// and close it; the error, always an *Error, stays.
func (c *Conn) Next(in []byte, now int64) (n int, ev Event, err error) {
	c.strain.rest(now)
	for c.err == nil && n < len(in) && ev.Kind == None {
		used, e := c.step(in[n:], &ev)
		n += used
		switch {
		case e != nil:
			c.fail(e)
		case c.strain.over:
			c.fail(broken(EnhanceYourCalm, c.strain.worst()))
		case c.control > maxWaitingForControl:
			c.fail(broken(EnhanceYourCalm, "peer_does_not_read"))
		}
	}
	if c.err != nil {
		return n, Event{}, c.err
	}
	return n, ev, nil
}

// fail ends the connection (RFC 9113 5.4.1).
func (c *Conn) fail(e *Error) {
	c.err = e
	last := c.newest
	if c.cfg.Client {
		last = 0 // of the server's own, which there are none of
	}
	c.appendGoAway(last, e.Code, e.Reason)
}

// broken makes the error that ends a connection.
func broken(code Code, reason string) *Error { return &Error{Code: code, Reason: reason} }

// step reads one thing: a piece of a frame, or all of it.
func (c *Conn) step(in []byte, ev *Event) (int, *Error) {
	switch c.state {
	case inPreface:
		n := min(len(in), len(preface)-c.have)
		if string(in[:n]) != preface[c.have:c.have+n] {
			return 0, broken(ProtocolError, "preface_invalid")
		}
		if c.have += n; c.have == len(preface) {
			c.state, c.have = inHeader, 0
		}
		return n, nil
	case inHeader:
		n := copy(c.hdr[c.have:], in)
		if c.have += n; c.have < headerSize {
			return n, nil
		}
		c.f, c.have = parseFrame(c.hdr[:]), 0
		return n, c.begin(ev)
	case inPayload:
		need := c.f.length - len(c.part)
		n := min(len(in), need)
		payload := in[:n]
		if n < need || len(c.part) > 0 {
			c.part = append(c.part, payload...)
			payload = c.part
		}
		if n < need {
			return n, nil
		}
		c.state = inHeader
		err := c.payload(payload, ev)
		c.part = trim(c.part)
		return n, err
	case inPadLength:
		return 1, c.padLength(int(in[0]), ev)
	case inData:
		return c.data(in, ev), nil
	}
	n := min(len(in), c.left)
	if c.left -= n; c.left == 0 {
		c.state = inHeader
	}
	return n, nil
}

// begin judges a frame by its header.
func (c *Conn) begin(ev *Event) *Error {
	f := &c.f
	switch {
	case f.length > frameSize:
		return broken(FrameSizeError, "frame_too_large")
	case !c.settled && (f.kind != frameSettings || f.has(flagAck)):
		return broken(ProtocolError, "settings_missing") // RFC 9113 3.4
	case c.block.stream != 0 && (f.kind != frameContinuation || f.stream != c.block.stream):
		return broken(ProtocolError, "continuation_missing") // RFC 9113 6.10
	}
	if err := c.checkFrame(); err != nil {
		return err
	}
	switch f.kind {
	case frameData:
		return c.beginData(ev)
	case frameHeaders, frameReset, frameSettings, framePing, frameGoAway, frameWindow, frameContinuation:
		if f.length == 0 {
			return c.payload(nil, ev)
		}
		c.state = inPayload
		return nil
	}
	// Priorities are ignored, and so is what nobody knows (RFC 9113 5.5).
	c.strain.charge(costIgnored, "ignored_flood")
	c.skip(f.length)
	return nil
}

// trim empties a buffer, and lets go a large one: most connections rest.
func trim(b []byte) []byte {
	if cap(b) > keepMemory {
		return nil
	}
	return b[:0]
}

// skip passes over what is left of a frame.
func (c *Conn) skip(n int) {
	if c.left = n; n > 0 {
		c.state = inSkip
	} else {
		c.state = inHeader
	}
}

// checkFrame checks what RFC 9113 6 says about a frame's length and stream.
func (c *Conn) checkFrame() *Error {
	f := &c.f
	onStream, size := false, -1
	switch f.kind {
	case frameData, frameHeaders, frameContinuation:
		onStream = true
	case framePriority:
		onStream, size = true, 5
	case frameReset:
		onStream, size = true, 4
	case frameWindow:
		size = 4
		onStream = f.stream != 0
	case framePing:
		size = 8
	case frameSettings:
		if f.has(flagAck) {
			size = 0
		} else if f.length%settingSize != 0 {
			return broken(FrameSizeError, "frame_size_wrong")
		}
	case frameGoAway:
		if f.length < 8 {
			return broken(FrameSizeError, "frame_size_wrong")
		}
	case framePush:
		return broken(ProtocolError, "push_refused") // RFC 9113 8.4, 6.6
	default:
		return nil
	}
	switch {
	case onStream != (f.stream != 0):
		return broken(ProtocolError, "stream_id_invalid")
	case size >= 0 && f.length != size:
		return broken(FrameSizeError, "frame_size_wrong")
	case onStream && f.kind != framePriority && f.stream&1 == 0:
		return broken(ProtocolError, "stream_id_invalid") // RFC 9113 5.1.1
	case onStream && f.stream > c.newest && f.kind != framePriority && (c.cfg.Client || f.kind != frameHeaders && f.kind != frameContinuation):
		return broken(ProtocolError, "stream_idle") // RFC 9113 5.1
	}
	return nil
}

// payload handles a frame that is there whole.
func (c *Conn) payload(p []byte, ev *Event) *Error {
	c.state = inHeader
	switch c.f.kind {
	case frameHeaders:
		return c.headers(p, ev)
	case frameContinuation:
		return c.continuation(p, ev)
	case frameReset:
		return c.peerReset(Code(binary.BigEndian.Uint32(p)), ev)
	case frameSettings:
		return c.settings(p, ev)
	case framePing:
		c.ping(p)
	case frameWindow:
		return c.window(int64(binary.BigEndian.Uint32(p)&maxWindow), ev)
	case frameGoAway:
		c.goneAway(binary.BigEndian.Uint32(p)&maxWindow, Code(binary.BigEndian.Uint32(p[4:])), ev)
	}
	return nil
}

func (c *Conn) ping(p []byte) {
	switch {
	case !c.f.has(flagAck):
		c.strain.charge(costPing, "ping_flood")
		c.appendControl(framePing, flagAck, p)
	case c.going == leaving && string(p) == leavingPing:
		c.nameLast()
	default:
		c.strain.charge(costIgnored, "ignored_flood")
	}
}

// settings takes the peer's settings (RFC 9113 6.5).
func (c *Conn) settings(p []byte, ev *Event) *Error {
	if c.f.has(flagAck) {
		c.strain.charge(costIgnored, "settings_flood")
		return nil
	}
	c.settled = true
	c.strain.charge(costSettings, "settings_flood")
	if len(p) > maxSettings*settingSize {
		return broken(EnhanceYourCalm, "settings_flood")
	}
	for ; len(p) > 0; p = p[settingSize:] {
		value := binary.BigEndian.Uint32(p[2:])
		switch setting(binary.BigEndian.Uint16(p)) {
		case settingEnablePush, settingConnect, settingNoPriorities:
			if value > 1 || c.cfg.Client && setting(binary.BigEndian.Uint16(p)) == settingEnablePush && value != 0 {
				return broken(ProtocolError, "setting_invalid")
			}
		case settingStreams:
			if more := int(min(value, uint32(c.cfg.Streams))); more != c.most {
				c.most = more
				*ev = Event{Kind: Writable}
			}
		case settingFrameSize:
			if value < frameSize || value > 1<<24-1 {
				return broken(ProtocolError, "setting_invalid")
			}
		case settingWindow:
			if value > maxWindow {
				return broken(FlowControlError, "setting_invalid")
			}
			if err := c.initialWindow(int64(value), ev); err != nil {
				return err
			}
		}
	}
	c.appendControl(frameSettings, flagAck, nil)
	return nil
}

// initialWindow changes the windows of all streams (RFC 9113 6.9.2).
func (c *Conn) initialWindow(size int64, ev *Event) *Error {
	more := size - c.initialSend
	c.initialSend = size
	for _, s := range c.streams {
		if s.send += more; s.send > maxWindow {
			return broken(FlowControlError, "window_overflow")
		}
	}
	if more > 0 && len(c.streams) > 0 {
		*ev = Event{Kind: Writable}
	}
	return nil
}

// window takes a WINDOW_UPDATE (RFC 9113 6.9).
func (c *Conn) window(more int64, ev *Event) *Error {
	if more < tiny {
		c.strain.charge(costEmpty, "window_flood")
	}
	if c.f.stream == 0 {
		switch c.send += more; {
		case more == 0:
			return broken(ProtocolError, "window_update_empty")
		case c.send > maxWindow:
			return broken(FlowControlError, "window_overflow")
		}
		*ev = Event{Kind: Writable}
		return nil
	}
	s := c.find(c.f.stream)
	if s == nil || s.closed() {
		c.strain.charge(costIgnored, "ignored_flood")
		return nil
	}
	switch s.send += more; {
	case more == 0:
		c.fault(s, broken(ProtocolError, "window_update_empty"), ev)
	case s.send > maxWindow:
		c.fault(s, broken(FlowControlError, "window_overflow"), ev)
	case !s.ended:
		*ev = Event{Kind: Writable, Stream: s.id}
	}
	return nil
}

// peerReset takes a RST_STREAM (RFC 9113 6.4).
func (c *Conn) peerReset(code Code, ev *Event) *Error {
	s := c.find(c.f.stream)
	if s == nil || s.reset != notReset {
		c.strain.charge(costIgnored, "ignored_flood")
		return nil
	}
	if !s.ended && !c.cfg.Client {
		c.strain.charge(costReset, "rapid_reset")
	}
	if s.closed() {
		return nil // answered whole; the work only has to end
	}
	s.reset = byPeer
	if s.done {
		c.settle(s)
		return nil
	}
	*ev = Event{Kind: Reset, Stream: s.id, Code: code}
	return nil
}

// goneAway takes a GOAWAY (RFC 9113 6.8). A second one may name an earlier
// stream, never a later one.
func (c *Conn) goneAway(last uint32, code Code, ev *Event) {
	c.strain.charge(costIgnored, "ignored_flood")
	if c.peerGoing && last >= c.last {
		return
	}
	c.peerGoing, c.last = true, min(last, c.last)
	*ev = Event{Kind: GoneAway, Stream: c.last, Code: code}
	if !c.cfg.Client {
		return
	}
	for i := 0; i < len(c.streams); {
		s := c.streams[i]
		if s.id > c.last && !s.closed() {
			s.reset = byPeer
			if s.done {
				c.settle(s) // puts another one in this place
				continue
			}
		}
		i++
	}
}

// fault resets a stream for the peer's fault (RFC 9113 5.4.2). It costs as much
// as a reset by the peer, or a peer would make us reset in its place
// (CVE-2025-8671).
func (c *Conn) fault(s *stream, e *Error, ev *Event) {
	c.strain.charge(costReset, "rapid_fault")
	if s.closed() {
		c.appendReset(s.id, e.Code) // for what came after the end
		return
	}
	c.kill(s, e.Code)
	if s.done {
		c.settle(s)
		return
	}
	*ev = Event{Kind: Reset, Stream: s.id, Code: e.Code, Err: e}
}
