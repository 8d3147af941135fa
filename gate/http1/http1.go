// Package http1 is the strict HTTP/1.1 core of the gate (RFC 9110, RFC 9112):
// bytes in, values out. It does no I/O, starts no goroutine, reads no clock,
// and allocates nothing once its values are warm.
//
// Strict means that a message two implementations could read differently is
// refused and never repaired: whoever forwards what this package accepts, with
// framing and connection fields of its own (see AppendFraming and Class),
// sends a message that has one reading only. That is the whole defence against
// request smuggling, so a doubt is always a refusal.
//
// What is refused beyond the grammar, because parsers disagree about it:
// Content-Length beside Transfer-Encoding, or either twice; a length that is
// signed, padded or a list; any transfer coding but "chunked", in lower case;
// HTTP/1.0 with a transfer coding; lines that end in a bare CR or LF; folded
// lines; space before a colon; bytes above ASCII in a request; a missing,
// empty or second Host; asterisk-form, authority-form and, unless
// Limits.Absolute, absolute-form; a name that becomes a sensitive one when
// '_' or '.' is read as '-' (as CGI, WSGI and PHP do); Connection options that
// name end-to-end fields; trailers of chunked bodies, unless asked for (see Trailer).
//
// Strings of a Request or Response are views into the buffer given to Parse.
// They die when the buffer is reused; who keeps one clones it.
package http1

import "unsafe"

// Limits bounds one head. A zero field means its default.
type Limits struct {
	Head     int  // bytes of the head, first line and blank line included; 32 KiB
	Target   int  // bytes of the request target; 8 KiB
	Fields   int  // number of fields; 100
	Field    int  // bytes of one field line; 16 KiB
	Absolute bool // accept "http://host/path" as target, as a proxy for local programs must
	Connect  bool // accept CONNECT, whose target is "host:port"
}

// setDefaults fills in what the zero value leaves open.
func (l *Limits) setDefaults() {
	if l.Head <= 0 {
		l.Head = 32 << 10
	}
	if l.Target <= 0 {
		l.Target = 8 << 10
	}
	if l.Fields <= 0 {
		l.Fields = 100
	}
	if l.Field <= 0 {
		l.Field = 16 << 10
	}
}

// Error is a refusal. The connection it was read from cannot be used further:
// where the next message would begin is unknown.
type Error struct {
	Status int    // to answer with: 400, 414, 417, 431, 501 or 505; 502 for a response
	Reason string // stable code, such as "host_missing"
}

// Error is the reason, for logs.
func (e *Error) Error() string { return "http1: " + e.Reason }

// refuse makes a refusal. It is the only place that does, so that the tests
// can find every reason in the source.
func refuse(status int, reason string) error { return &Error{status, reason} }

// Body says how the end of a message is found (RFC 9112 6.3).
type Body uint8

// Ways to find the end of a body.
const (
	BodyNone    Body = iota // there is none
	BodyLength              // Length bytes follow
	BodyChunked             // chunks follow; see Chunks
	BodyClose               // all until the connection ends; responses only
)

// String is the body's name in tests and messages.
func (b Body) String() string {
	switch b {
	case BodyNone:
		return "none"
	case BodyLength:
		return "length"
	case BodyChunked:
		return "chunked"
	case BodyClose:
		return "close"
	}
	return "invalid"
}

// view is b as a string without a copy.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
