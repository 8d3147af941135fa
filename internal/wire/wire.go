// Package wire is a connection below crypto/tls that can be fed from memory, so
// that whoever waits for a socket himself can use TLS all the same: what was
// read from the socket goes in by Feed, and records to be written collect until
// they are sent together.
//
// It rests on crypto/tls keeping its state when a read fails with a temporary
// error, as it must for read deadlines.
package wire

import "net"

// Conn is a connection that is either plain, when reads and writes are those of
// the connection below, or in memory. One goroutine uses it at a time.
type Conn struct {
	net.Conn
	memory bool
	in     []byte // read from the socket and not yet by TLS
	out    []byte // written by TLS and not yet to the socket

	// TLS reads ahead if it can. In memory it is given one record at a time,
	// so that what it has left is known.
	header [headerLen]byte // of the record being read
	have   int             // bytes of header
	left   int             // bytes of the record to come
	known  bool            // TLS holds nothing that was read before a record was counted
}

// headerLen is the length of the header of a record (RFC 8446 5.1); its last two
// bytes are the length of the rest.
const headerLen = 5

// New makes a Conn over c. It begins plain.
func New(c net.Conn) *Conn { return &Conn{Conn: c} }

// ErrEmpty is the error of a read in memory when all that was fed is read.
var ErrEmpty net.Error = empty{}

type empty struct{}

func (empty) Error() string   { return "wire: nothing more to read now" }
func (empty) Timeout() bool   { return true }
func (empty) Temporary() bool { return true }

// Read takes what was fed, and then what the connection has.
func (c *Conn) Read(b []byte) (int, error) {
	if len(c.in) > 0 {
		n := copy(b, c.in[:c.step(c.in[:min(len(b), len(c.in))])])
		if c.in = c.in[n:]; len(c.in) == 0 {
			c.in = nil // its memory may be somebody else's from here on
		}
		return n, nil
	}
	if c.memory {
		c.known = true // TLS asks for more only when it has nothing to give
		return 0, ErrEmpty
	}
	n, err := c.Conn.Read(b)
	c.known = false
	for b = b[:n]; len(b) > 0; {
		b = b[c.step(b):]
	}
	return n, err
}

// step counts bytes that TLS is given, but not beyond the end of a record, and
// returns how many those are.
func (c *Conn) step(b []byte) int {
	n := 0
	for c.left == 0 && n < len(b) && c.have < headerLen {
		c.header[c.have] = b[n]
		if c.have, n = c.have+1, n+1; c.have == headerLen {
			c.left = int(c.header[3])<<8 | int(c.header[4])
		}
	}
	rest := min(c.left, len(b)-n)
	if c.left -= rest; c.left == 0 && c.have == headerLen {
		c.have = 0
	}
	return n + rest
}

// Exhausted reports that a read through TLS could only give ErrEmpty, if the one
// before did not fill its buffer. When it reports false, nothing is said.
func (c *Conn) Exhausted() bool { return c.known && len(c.in) == 0 }

// Between reports whether what was read ends with a record.
func (c *Conn) Between() bool { return c.have == 0 && c.left == 0 }

// Write collects, or writes to the connection.
func (c *Conn) Write(b []byte) (int, error) {
	if c.memory {
		c.out = append(c.out, b...)
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// Enter begins to work in memory; what is written collects in out.
func (c *Conn) Enter(out []byte) { c.memory, c.out = true, out[:0] }

// Feed adds what was read from the socket. It must stay until it is read or
// kept; nothing may be left of the last time.
func (c *Conn) Feed(b []byte) { c.in = b }

// Keep copies what was fed and is not yet read, so that its memory may be used
// for something else.
func (c *Conn) Keep() {
	if len(c.in) > 0 {
		c.in = append([]byte(nil), c.in...)
	} else {
		c.in = nil
	}
}

// Out is what was written since the last Sent.
func (c *Conn) Out() []byte { return c.out }

// Sent says that Out was written to the socket, or will be.
func (c *Conn) Sent() { c.out = c.out[:0] }

// Leave ends the work in memory and gives back the memory of Enter, which may
// have grown.
func (c *Conn) Leave() (out []byte) {
	out, c.memory, c.out = c.out, false, nil
	return out
}
