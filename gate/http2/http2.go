// Package http2 is the strict HTTP/2 core of the gate, both sides (RFC 9113, RFC
// 7541): bytes in, events out, bytes to write in a buffer. It does no I/O, starts no goroutine, reads no clock, and allocates nothing per request
// once its values are warm.
//
// A request means here what it means to package http1: names have the same
// classes (package httpfield), and what is refused there is refused here, with
// the same reason. On top comes what RFC 9113 8.2 and 8.3 demand, because who
// translates to HTTP/1.1 turns every leniency into request smuggling: no
// connection-specific fields, no capitals in names, no line end, NUL or outer
// white space in values, pseudo-fields once and first, a Host equal to
// :authority, a content-length equal to the data.
//
// # Bounds
//
// Memory is bounded by Config: streams, bytes that may arrive before they are
// passed on, header lists, output. Effort is bounded by a budget (see strain):
// whatever costs the server and moves no data is charged, and a peer that
// overdraws is told ENHANCE_YOUR_CALM and gone. That covers rapid reset, its
// twin in which the server is made to reset, and floods of PING, SETTINGS,
// CONTINUATION, empty DATA, PRIORITY and unknown frames.
//
// Priorities are ignored (RFC 9113 5.3.2). Server push does not exist.
//
// # Use
//
// One goroutine, or a lock, owns a Conn. It gives what it reads to Next until
// all is used and there are no more events, then writes Output and calls Sent.
// Every Begin event begins work that ends with exactly one Done; every byte
// of a Data event is given back by Consumed, which opens the peer's windows: so
// they open only as fast as data is passed on.
package http2

import (
	"unsafe"

	"merlon/internal/httpfield"
)

// Field and Class are those of package httpfield.
type (
	Field = httpfield.Field
	Class = httpfield.Class
)

// Config bounds a connection. A zero field means its default.
type Config struct {
	Client       bool // this end opens the streams
	Streams      int  // whose work has not ended, at once; 100
	StreamWindow int  // bytes of one body that may come before they are passed on; at least and by default 65,535
	ConnWindow   int  // the same for all bodies together; at least 65,535; 1 MiB
	HeaderList   int  // bytes of a header list, as RFC 9113 6.5.2 counts them; 16 KiB
	Fields       int  // fields of a header list, pseudo-fields not counted; 100
	Target       int  // bytes of a path with its query; 8 KiB
	Output       int  // bytes that may wait to be written before no more answers are taken; 64 KiB
	Connect      bool // extended CONNECT is offered and accepted (RFC 8441)
}

func (c *Config) setDefaults() {
	const window = 65535 // before settings are known (RFC 9113 6.9.2)
	setDefault(&c.Streams, 100)
	setDefault(&c.ConnWindow, 1<<20)
	setDefault(&c.HeaderList, 16<<10)
	setDefault(&c.Fields, 100)
	setDefault(&c.Target, 8<<10)
	setDefault(&c.Output, 64<<10)
	c.StreamWindow = min(max(c.StreamWindow, window), maxWindow)
	c.ConnWindow = min(max(c.ConnWindow, window), maxWindow)
}

func setDefault(p *int, value int) {
	if *p <= 0 {
		*p = value
	}
}

// Code is an error code (RFC 9113 7).
type Code uint32

// Error codes.
const (
	NoError            Code = 0x0
	ProtocolError      Code = 0x1
	InternalError      Code = 0x2
	FlowControlError   Code = 0x3
	StreamClosed       Code = 0x5
	FrameSizeError     Code = 0x6
	RefusedStream      Code = 0x7
	Cancel             Code = 0x8
	CompressionError   Code = 0x9
	ConnectError       Code = 0xa
	EnhanceYourCalm    Code = 0xb
	InadequateSecurity Code = 0xc
	HTTP11Required     Code = 0xd
)

// Error is a refusal: of a connection, when Next returns it, which has then
// said goodbye with Code; or of a stream, in an event.
type Error struct {
	Code   Code
	Status int    // of a stream: to answer with; 0 when the stream has been reset with Code
	Reason string // stable code, such as "field_name_disguised"
}

// Error is the reason, for logs.
func (e *Error) Error() string { return "http2: " + e.Reason }

// Kind says what an Event tells.
type Kind uint8

// Kinds of events.
const (
	None     Kind = iota
	Begin         // a request begins, to a server; its work ends with Done
	Interim       // an interim answer (RFC 9110 15.2), to a client
	Answer        // the final answer begins
	Data          // a piece of a body; its bytes go back by Consumed
	Trailers      // the fields after a body, and so its end
	Refused       // a request that is refused for Err; with Err.Status it waits for an answer and Done, without it has ended
	Reset         // the stream has ended early, by the peer or for the peer's fault, and takes no answer; Done is still due
	Writable      // WriteData may take more of Stream, or of all streams when that is 0
	GoneAway      // the peer takes no more streams: those above Stream have ended, and nothing was done about them
)

// Event is what Next found.
type Event struct {
	Kind    Kind
	End     bool // Begin, Answer, Data: the body ends here
	Stream  uint32
	Request *Request  // Begin; Refused with a status, as far as it was read; its views hold until Done
	Answer  *Response // Interim, Answer; its views hold until the next event of the stream
	Data    []byte    // a view of Next's input
	Fields  []Field   // Trailers; views that hold until Done
	Code    Code      // Reset, GoneAway
	Err     *Error    // Refused; Reset for the peer's fault
}

// view is b as a string without a copy.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
