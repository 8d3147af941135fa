// Package grpc is what a gate must know of gRPC to carry it, and to speak it in
// its own name: statuses, deadlines, the frames of messages, and gRPC-Web,
// which is gRPC for browsers. It does no I/O and reads no clock; messages
// themselves are never looked at.
//
// The standard is the gRPC project's own: doc/PROTOCOL-HTTP2.md and
// doc/PROTOCOL-WEB.md of github.com/grpc/grpc.
package grpc

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"merlon/internal/httpfield"
)

// Code is the status of a call, as grpc-status has it.
type Code uint8

// Codes that a gate says itself.
const (
	OK                Code = 0
	Canceled          Code = 1
	Unknown           Code = 2
	InvalidArgument   Code = 3
	DeadlineExceeded  Code = 4
	PermissionDenied  Code = 7
	ResourceExhausted Code = 8
	Unimplemented     Code = 12
	Internal          Code = 13
	Unavailable       Code = 14
	dataLoss          Code = 15
	Unauthenticated   Code = 16
)

var codes = [...]string{
	"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED",
	"FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
}

// String is the code's registered name.
func (c Code) String() string {
	if int(c) < len(codes) {
		return codes[c]
	}
	return codes[Unknown]
}

// Named is the code with a registered name; Unknown for any other.
func Named(name string) Code {
	if i := slices.Index(codes[:], name); i >= 0 {
		return Code(i)
	}
	return Unknown
}

// ParseCode reads the value of grpc-status. What is no known code is Unknown,
// as clients take it.
func ParseCode(s string) Code {
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil || int(n) >= len(codes) || len(s) > 2 {
		return Unknown
	}
	return Code(n)
}

// Class is the class of the HTTP status that would say the same: 2, or 4 for
// what the caller did, or 5 for what the service did.
func (c Code) Class() int {
	switch c {
	case OK:
		return 2
	case Unknown, DeadlineExceeded, Internal, Unavailable, dataLoss:
		return 5
	}
	return 4
}

// FromHTTP is the code of a refusal that HTTP says with status.
func FromHTTP(status int) Code {
	switch status {
	case 401:
		return Unauthenticated
	case 403:
		return PermissionDenied
	case 404, 501:
		return Unimplemented
	case 413, 429, 431:
		return ResourceExhausted
	case 502, 503:
		return Unavailable
	case 504:
		return DeadlineExceeded
	case 500:
		return Internal
	}
	if 400 <= status && status < 500 {
		return InvalidArgument
	}
	return Unknown
}

// Kind is what a content type says of the messages of a body.
type Kind uint8

// Kinds of content.
const (
	None    Kind = iota // no gRPC
	Native              // application/grpc
	Web                 // application/grpc-web
	WebText             // application/grpc-web-text: the same in base64
)

// KindOf reads a content type; how the messages are written follows a '+', and
// nobody here asks.
func KindOf(contentType string) Kind {
	const prefix = "application/grpc"
	if len(contentType) < len(prefix) || !httpfield.EqualFold(contentType[:len(prefix)], prefix) {
		return None
	}
	rest := contentType[len(prefix):]
	kind := Native
	for _, more := range [...]struct {
		suffix string
		kind   Kind
	}{{"-web-text", WebText}, {"-web", Web}} {
		if len(rest) >= len(more.suffix) && httpfield.EqualFold(rest[:len(more.suffix)], more.suffix) {
			rest, kind = rest[len(more.suffix):], more.kind
			break
		}
	}
	if rest != "" && rest[0] != '+' && rest[0] != ';' && rest[0] != ' ' {
		return None
	}
	return kind
}

var types = [...]string{None: "", Native: "application/grpc", Web: "application/grpc-web", WebText: "application/grpc-web-text"}

// AppendContentType appends the content type of kind k for messages that are
// written as another content type says, after its '+'.
func AppendContentType(dst []byte, k Kind, like string) []byte {
	dst = append(dst, types[k]...)
	begin := strings.IndexAny(like, "+; ")
	if begin < 0 || like[begin] != '+' {
		return dst
	}
	end := begin + 1
	for end < len(like) && httpfield.Is(like[end], httpfield.Token) {
		end++
	}
	return append(dst, like[begin:end]...)
}

// maxTimeoutDigits is how many digits a timeout has at most.
const maxTimeoutDigits = 8

var units = [...]struct {
	letter byte
	size   time.Duration
}{{'n', 1}, {'u', time.Microsecond}, {'m', time.Millisecond}, {'S', time.Second}, {'M', time.Minute}, {'H', time.Hour}}

// ParseTimeout reads the value of grpc-timeout: one to eight digits and a unit.
// What does not fit a Duration is the longest there is.
func ParseTimeout(s string) (d time.Duration, ok bool) {
	last := len(s) - 1
	if last < 1 || last > maxTimeoutDigits {
		return 0, false
	}
	n := int64(0)
	for i := range last {
		if !httpfield.IsDigit(s[i]) {
			return 0, false
		}
		n = n*10 + int64(s[i]-'0')
	}
	for _, u := range units {
		if u.letter == s[last] {
			if n > math.MaxInt64/int64(u.size) {
				return math.MaxInt64, true
			}
			return time.Duration(n) * u.size, true
		}
	}
	return 0, false
}

// AppendTimeout appends d as ParseTimeout reads it, in the finest unit that has
// room for it, rounded up.
func AppendTimeout(dst []byte, d time.Duration) []byte {
	const limit = 1e8
	d = max(d, 0)
	for _, u := range units {
		n := d / u.size
		if d%u.size != 0 {
			n++
		}
		if n < limit {
			return append(strconv.AppendInt(dst, int64(n), 10), u.letter)
		}
	}
	return append(dst, "99999999H"...)
}
