package gate

import (
	"sync"
	"syscall"

	"merlon"
	"merlon/gate/http1"
	"merlon/gate/upstream"
	"merlon/internal/wire"
	"merlon/record"
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
	wire   *wire.Conn      // below the client's TLS; nil without
	inside bool            // the goroutine is in the callback of raw, and fd is good
	fd     uintptr
	closed bool // the connection ends

	drained bool           // the client's socket was
	full    bool           // TLS may have more than it has given
	up      *upstream.Conn // of the call at hand
	bytes   []byte         // of the request, what is not yet written
	wrote   bool           // that was tried
	err     error

	// The callbacks, made once: a method value allocates.
	onClient, onUpstream func(uintptr) bool
}

// write sends b to the client.
func (c *conn) write(b []byte) error {
	if c.mute {
		return nil
	}
	to := c.net
	if c.live.inside {
		if w := c.live.wire; w != nil {
			if _, err := c.net.Write(b); err != nil {
				return err
			}
			b, to = w.Out(), w.Conn
			w.Sent()
		}
		if b = b[c.writeNow(b):]; len(b) == 0 {
			return nil
		}
	}
	c.watch.start(c.g, c.net, c.x.stall(c.x.lasts()), busy)
	_, err := to.Write(b)
	return err
}

// An idle connection holds no buffers: at 16 KiB each they would be nearly all
// the memory that it costs. They come from a pool, and the ones used last come
// first: they are still in the processor's cache. Only the portable layer, which
// reads into what it has while it waits, and a head that is not whole keep one.
var (
	works  = sync.Pool{New: func() any { return &work{out: make([]byte, 0, bufferSize+2048)} }}
	inputs = sync.Pool{New: func() any { return new([bufferSize]byte) }}
)

// work is the memory of a call.
type work struct {
	in, up [bufferSize]byte
	out    []byte

	// For TLS: what was read from the sockets, and what will be written.
	sealed struct {
		in, up       []byte
		inOut, upOut []byte
	}
}

// maxSpare is the largest output buffer that is kept for other calls.
const maxSpare = 64 << 10

// hold takes the buffers that a call needs.
func (c *conn) hold() {
	if c.work != nil {
		return
	}
	c.work = works.Get().(*work)
	c.up.buf, c.up.r, c.up.w = c.work.up[:], 0, 0
	c.out = c.work.out[:0]
	if c.in.buf == nil {
		c.in.buf, c.in.r, c.in.w = c.work.in[:], 0, 0
	}
}

// keepInput takes a buffer for what is read from the client that outlasts a call,
// until dropInput.
func (c *conn) keepInput() {
	c.input = inputs.Get().(*[bufferSize]byte)
	c.in.buf, c.in.r, c.in.w = c.input[:], 0, 0
}

// dropInput gives that buffer back, with what is in it.
func (c *conn) dropInput() {
	if c.input != nil {
		inputs.Put(c.input)
		c.input, c.in.buf = nil, nil
	}
}

// maxFields is how many fields of a head a connection keeps room for, and maxPath
// how many bytes of a path, while it is idle.
const (
	maxFields = 32
	maxPath   = 1 << 10
)

// forget lets go of the views of the last call, which would keep its buffers in
// memory for as long as the connection is idle, and of what that call alone
// needed.
func (c *conn) forget() {
	c.req.Reset()
	c.res.Reset()
	if cap(c.req.Fields) > maxFields {
		c.req.Fields = nil
	}
	if cap(c.res.Fields) > maxFields {
		c.res.Fields = nil
	}
	x := &c.x
	c.rec, x.call, c.live.bytes, c.live.up, c.up.conn = record.Record{}, merlon.Call{}, nil, nil, nil
	x.id, x.port = "", ""
	clear(x.params[:])
	if cap(x.pathBuf) > maxPath {
		x.pathBuf = nil
	}
	if cap(c.text) > 0 {
		c.text = nil
	}
	if c.ending.Fields != nil {
		c.ending = http1.Trailer{}
	}
}

// awaitHead keeps what has come of a head, and gives back all else: a client may
// take its time, and many clients may.
func (c *conn) awaitHead() {
	if c.input == nil {
		read := c.in.bytes()
		c.keepInput()
		c.in.w = copy(c.in.buf, read)
	}
	c.rest()
}

// rest gives back what hold took. Views of it are worthless from here on.
func (c *conn) rest() {
	w := c.work
	if w == nil {
		return
	}
	if cap(c.out) <= maxSpare {
		w.out = c.out[:0]
	}
	c.work, c.out, c.up.buf, c.up.r, c.up.w = nil, nil, nil, 0, 0
	if c.input == nil {
		c.in.buf, c.in.r, c.in.w = nil, 0, 0
	}
	works.Put(w)
}
