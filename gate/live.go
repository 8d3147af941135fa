package gate

import (
	"sync"
	"syscall"
)

// There are two I/O layers. The portable one reads and writes net.Conns; it is
// the reference, it serves everything, and it is the only one on most systems.
//
// The live one (live_linux.go) serves what nearly all requests are, and nothing
// else: the request is whole in the buffer, and its answer is written at once.
// The connection's goroutine stays inside one RawConn.Read for all of them, and
// returns to the portable layer for anything else, with what was read in c.in.
// Both layers run the same serve; they differ in who reads the request, in how
// it and its answer are written, and in the first read of the answer.

// live is what a connection needs for the live layer.
type live struct {
	on     bool            // the layer is in use
	raw    syscall.RawConn // of the client's socket; nil if the client is served by the portable layer
	inside bool            // the goroutine is in the callback of raw, and fd is good
	fd     uintptr
	closed bool // the connection ends

	wrote bool   // the request at hand was written
	rest  []byte // of it, what the socket had no room for
	err   error

	// The callbacks, made once: a method value allocates.
	onClient, onUpstream func(uintptr) bool
}

// write sends b to the client.
func (c *conn) write(b []byte) error {
	if c.live.inside {
		if b = b[c.writeNow(b):]; len(b) == 0 {
			return nil
		}
	}
	c.watch.start(c.g, c.net, c.g.cfg.Bounds.Stall, busy)
	_, err := c.net.Write(b)
	return err
}

// An idle connection holds no buffers: at 16 KiB each they would be nearly all
// the memory that it costs. They come from pools, and the one used last comes
// first: it is still in the processor's cache.
var (
	inputs = sync.Pool{New: func() any { return new([bufferSize]byte) }}
	works  = sync.Pool{New: func() any { return &work{out: make([]byte, 0, bufferSize+2048)} }}
)

// work is the memory of a call, but for what is read from the client.
type work struct {
	up  [bufferSize]byte
	out []byte
}

// maxSpare is the largest output buffer that is kept for other calls.
const maxSpare = 64 << 10

// hold takes the buffers that a call needs.
func (c *conn) hold() {
	c.holdInput()
	if c.work == nil {
		c.work = works.Get().(*work)
		c.up.buf, c.up.r, c.up.w = c.work.up[:], 0, 0
		c.out = c.work.out[:0]
	}
}

// holdInput takes the buffer for what is read from the client.
func (c *conn) holdInput() {
	if c.input == nil {
		c.input = inputs.Get().(*[bufferSize]byte)
		c.in.buf, c.in.r, c.in.w = c.input[:], 0, 0
	}
}

// rest gives back the buffers of the last call, and with all the one for what
// is read from the client. Views of them are worthless from here on.
func (c *conn) rest(all bool) {
	if w := c.work; w != nil {
		if cap(c.out) <= maxSpare {
			w.out = c.out[:0]
		}
		c.work, c.out, c.up.buf, c.up.r, c.up.w = nil, nil, nil, 0, 0
		works.Put(w)
	}
	if all && c.input != nil {
		inputs.Put(c.input)
		c.input, c.in.buf, c.in.r, c.in.w = nil, nil, 0, 0
	}
}
