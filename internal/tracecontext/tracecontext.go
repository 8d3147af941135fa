// Package tracecontext reads and writes the two fields in which a call tells
// which trace it belongs to (W3C Trace Context,
// https://www.w3.org/TR/trace-context/). It reads strictly: what is not as the
// standard has it is no trace context at all.
package tracecontext

import "encoding/hex"

// Length is that of a traceparent as this package writes it.
const Length = 2 + 1 + 32 + 1 + 16 + 1 + 2

// Flags of a Context.
const (
	Sampled byte = 1 << iota // the caller records this trace
	Random                   // the trace's id is random (level 2)
)

// Context is the value of a traceparent.
type Context struct {
	Trace [16]byte
	Span  [8]byte // the caller's
	Flags byte
}

// Parse reads the value of the one traceparent of a message (3.2). Flags that it
// does not know are dropped; what a later version adds at the end, too.
func Parse(s string) (c Context, ok bool) {
	if len(s) < Length || s[2] != '-' || s[35] != '-' || s[52] != '-' {
		return Context{}, false
	}
	var version, flags [1]byte
	if !lowerHex(version[:], s[:2]) || !lowerHex(c.Trace[:], s[3:35]) || !lowerHex(c.Span[:], s[36:52]) || !lowerHex(flags[:], s[53:55]) {
		return Context{}, false
	}
	switch {
	case version[0] == 0xff, c.Trace == [16]byte{}, c.Span == [8]byte{}:
		return Context{}, false
	case len(s) > Length && (version[0] == 0 || s[Length] != '-'):
		return Context{}, false
	}
	c.Flags = flags[0] & (Sampled | Random)
	return c, true
}

// lowerHex decodes s, which has twice the length of dst. Capital letters are
// refused, as the standard wants.
func lowerHex(dst []byte, s string) bool {
	for i := range dst {
		high, low := digit(s[2*i]), digit(s[2*i+1])
		if high|low > 15 {
			return false
		}
		dst[i] = high<<4 | low
	}
	return true
}

// digit is the value of a digit, or more than 15.
func digit(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	}
	return 0xff
}

// Append writes a traceparent.
func (c *Context) Append(dst []byte) []byte {
	dst = append(dst, "00-"...)
	dst = hex.AppendEncode(dst, c.Trace[:])
	dst = append(dst, '-')
	dst = hex.AppendEncode(dst, c.Span[:])
	dst = append(dst, '-', '0', '0'+c.Flags&(Sampled|Random))
	return dst
}

// Bounds of a tracestate (3.3.1).
const (
	MaxState = 512 // bytes of all its fields; the standard asks for at least that
	members  = 32
	maxKey   = 256
)

// State counts what the fields of a tracestate hold, which belong together.
type State struct {
	bytes, members int
}

// Add reports whether one more field of a tracestate is as it should be (3.3).
func (s *State) Add(value string) bool {
	if s.bytes += len(value) + 1; s.bytes > MaxState+1 {
		return false
	}
	for rest, more := value, true; more; {
		var member string
		member, rest, more = cut(rest, ',')
		if member = trim(member); member == "" {
			continue // "a list member may be empty"
		}
		if s.members++; s.members > members || !validMember(member) {
			return false
		}
	}
	return true
}

func cut(s string, c byte) (before, after string, found bool) {
	for i := range len(s) {
		if s[i] == c {
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

// trim removes optional white space at both ends.
func trim(s string) string {
	for s != "" && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for s != "" && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

// validMember reports whether s is key=value (3.3.1.3).
func validMember(s string) bool {
	key, value, found := cut(s, '=')
	if !found || key == "" || len(key) > maxKey || value == "" || len(value) > maxKey {
		return false
	}
	for i := range len(key) {
		c := key[i]
		letter := 'a' <= c && c <= 'z' || '0' <= c && c <= '9'
		if !letter && (i == 0 || c != '_' && c != '-' && c != '*' && c != '/' && c != '@') {
			return false
		}
	}
	for i := range len(value) {
		if c := value[i]; c < ' ' || c > '~' || c == '=' || c == ',' {
			return false
		}
	}
	return true
}
