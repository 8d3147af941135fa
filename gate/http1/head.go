package http1

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"slices"
	"strings"
	"unicode/utf8"

	"merlon/internal/httpfield"
)

const maxOptions = 16 // options of all Connection fields together

// headEnd finds the end of the head that buf begins with: the index after the
// blank line, or 0 when more bytes are needed. It looks at each byte once
// however slowly they come: seen is how many were looked at before.
//
// What it refuses depends on a prefix of the head only, so the answer is the
// same for any way of cutting the input.
func headEnd(buf []byte, seen *int, lim *Limits) (int, error) {
	end := min(len(buf), lim.Head)
	for i := *seen; i < end; {
		j := bytes.IndexByte(buf[i:end], '\n')
		if j < 0 {
			break
		}
		j += i
		switch {
		case j == 0 || buf[j-1] != '\r':
			return 0, refuse(400, "bare_lf")
		case j > 2 && buf[j-2] == '\n':
			return j + 1, nil
		}
		i = j + 1
	}
	*seen = end
	if len(buf) < lim.Head {
		return 0, nil
	}
	if bytes.IndexByte(buf[:end], '\n') < 0 {
		return 0, refuse(414, "target_too_long")
	}
	return 0, refuse(431, "head_too_large")
}

// quickEnd is headEnd for the usual case, a head that comes whole: it returns
// the length of a part of buf that has the end of the head in it, or is it, or 0
// if it does not know. Most requests have no body, so buf just ends in a blank
// line. What it does not look at is for the parser of the lines, which refuses
// every bare LF itself and stops at the first blank line.
func quickEnd(buf []byte, lim *Limits) int {
	const blank = "\r\n\r\n"
	end := min(len(buf), lim.Head)
	if end >= len(blank) && string(buf[end-len(blank):end]) == blank {
		return end
	}
	i := bytes.Index(buf[:end], []byte(blank))
	if i < 0 {
		return 0
	}
	return i + len(blank)
}

// rank returns the refusal of a whole head that a slow reader would have met
// first: a bare LF, else err.
func rank(err error, buf []byte, lim *Limits) error {
	seen := 0
	if _, lf := headEnd(buf, &seen, lim); lf != nil {
		return lf
	}
	return err
}

// head collects what the fields of one message say about it.
type head struct {
	response bool
	count    [httpfield.Kinds]uint8

	host, upgrade, expect, authorization, contentType string

	transfer   string
	length     int64 // -1: no Content-Length
	connection string

	close, keepAlive, upgrading bool // options of Connection
	trailers                    bool // of TE
}

// fields parses the field lines of a head, appends them to dst, and returns
// where the head ends. s has a blank line in it, pos is where the first field
// begins; buf is the same bytes.
func (h *head) fields(dst []Field, buf []byte, s string, pos int, lim *Limits) (_ []Field, end int, err error) {
	h.length = -1
	for s[pos] != '\r' || s[pos+1] != '\n' {
		start := pos
		name, seen := tokenAt(s[pos:])
		pos += len(name)
		if s[pos] != ':' || name == "" {
			return dst, 0, h.badName(name, s[pos:])
		}
		for pos++; s[pos] == ' ' || s[pos] == '\t'; pos++ {
		}
		end, err = h.value(buf, pos)
		if err != nil {
			return dst, 0, err
		}
		value := trimRight(s[pos:end])
		pos = end + len("\r\n")
		class, k := classify(name)
		switch {
		case pos-start > lim.Field, len(name) > httpfield.MaxName:
			return dst, 0, refuse(431, "field_too_large")
		case len(dst) >= lim.Fields:
			return dst, 0, refuse(431, "too_many_fields")
		case seen&odd != 0 && httpfield.Disguised(class, k, h.response):
			// Behind CGI, WSGI or PHP this name would be another.
			return dst, 0, refuse(400, "field_name_disguised")
		}
		if len(dst) == cap(dst) {
			dst = slices.Grow(dst, 16)
		}
		dst = dst[:len(dst)+1]
		f := &dst[len(dst)-1]
		f.Name, f.Value, f.Class = name, value, class
		if k != other {
			if err = h.known(k, value); err != nil {
				return dst, 0, err
			}
		}
	}
	return dst, pos + len("\r\n"), nil
}

// tokenAt returns the token that s begins with, and what its characters may be
// part of, together.
func tokenAt(s string) (name string, seen httpfield.Set) {
	for i := 0; i < len(s); i++ {
		c := httpfield.Of(s[i])
		if c&token == 0 {
			return s[:i], seen
		}
		seen |= c
	}
	return s, seen
}

// badName says what is wrong with a line whose name is not followed by a
// colon. rest begins at the offending byte.
func (h *head) badName(name, rest string) error {
	space := rest[0] == ' ' || rest[0] == '\t'
	switch {
	case name == "" && space:
		return refuse(400, "obs_fold") // RFC 9112 5.2
	case space:
		return refuse(400, "space_before_colon") // RFC 9112 5.1
	case name == "" && rest[0] == ':':
		return refuse(400, "field_name_empty")
	case rest[0] == '\r' && rest[1] == '\n':
		return refuse(400, "colon_missing")
	case rest[0] == '\r':
		return refuse(400, "bare_cr")
	}
	return refuse(400, "field_name_invalid")
}

// value returns the index of the CRLF that ends the value beginning at pos. The
// head is known to end in one.
func (h *head) value(buf []byte, pos int) (int, error) {
	for ; ; pos++ {
		pos = plain(buf, pos)
		switch c := buf[pos]; {
		case c == '\t':
		case c == '\r':
			if buf[pos+1] != '\n' {
				return 0, refuse(400, "bare_cr")
			}
			return pos, nil
		case c < 0x80:
			return 0, refuse(400, "field_value_control")
		case !h.response:
			// RFC 9110 5.5 calls these opaque; Latin-1, UTF-8 and best-fit
			// readers make different characters of them, some of them line ends.
			return 0, refuse(400, "field_value_not_ascii")
		default:
			// Responses carry file names in UTF-8, and are read by browsers.
			size := printable(buf[pos:])
			if size == 0 {
				return 0, refuse(400, "field_value_not_utf8")
			}
			pos += size - 1
		}
	}
}

// printable is the length of the UTF-8 character b begins with; 0 when it is
// malformed or one of the control characters U+0080 to U+009F.
func printable(b []byte) int {
	r, size := utf8.DecodeRune(b)
	if r == utf8.RuneError && size == 1 || r < 0xa0 {
		return 0
	}
	return size
}

// plain returns the index of the first byte from pos on that is not SP or
// VCHAR, eight at a time. There must be one.
func plain(buf []byte, pos int) int {
	const ones = 0x0101010101010101
	for ; pos+8 <= len(buf); pos += 8 {
		x := binary.LittleEndian.Uint64(buf[pos:])
		// The high bit of a byte is set for x >= 0x80, x < 0x20 and x == 0x7f. A
		// borrow only spoils bytes above one that is found, never below.
		if m := (x | (x - 0x20*ones) | ((x ^ 0x7f*ones) - ones)) & (0x80 * ones); m != 0 {
			return pos + bits.TrailingZeros64(m)/8
		}
	}
	for is(buf[pos], text) {
		pos++
	}
	return pos
}

func trimRight(s string) string {
	for len(s) > 0 && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

// known takes note of a field the parser must understand.
func (h *head) known(k kind, value string) error {
	first := h.count[k] == 0
	if first {
		h.count[k] = 1
	}
	switch k {
	case connection:
		if !first {
			h.count[k] = 2
		}
		h.connection = value
		return nil
	case protected, traceParent:
		return nil
	case contentType:
		// Two readers of a body may each believe another one.
		if !first && !h.response {
			return refuse(400, "content_type_repeated")
		}
		h.contentType = value
		return nil
	case contentLength:
		if !first {
			return refuse(400, "content_length_repeated")
		}
		return h.contentLength(value)
	case transferEncoding:
		if !first {
			return refuse(400, "transfer_encoding_repeated")
		}
		h.transfer = value
		return nil
	case te:
		h.trailers = h.trailers || takesTrailers(value)
		return nil
	case upgrade:
		if !first {
			return refuse(400, "upgrade_repeated")
		}
		h.upgrade = value
		return nil
	}
	if h.response {
		return nil // the others mean nothing in a response
	}
	switch k {
	case host:
		if !first {
			return refuse(400, "host_repeated")
		}
		h.host = value
	case expect:
		if !first {
			return refuse(400, "expect_repeated")
		}
		h.expect = value
	case authorization:
		if !first {
			return refuse(400, "authorization_repeated")
		}
		h.authorization = value
	}
	return nil
}

// takesTrailers reports whether a value of TE says that trailers are taken (RFC
// 9110 10.1.4).
func takesTrailers(value string) bool {
	for more := true; more; {
		var coding string
		coding, value, more = strings.Cut(value, ",")
		if equalFold(strings.Trim(coding, " \t"), "trailers") {
			return true
		}
	}
	return false
}

// contentLength reads a length.
func (h *head) contentLength(value string) error {
	n, err := httpfield.Length(value)
	switch err {
	case nil:
		h.length = n
		return nil
	case httpfield.ErrLengthOverflow:
		return refuse(400, "content_length_overflow")
	}
	return refuse(400, "content_length_invalid")
}

// chunked checks Transfer-Encoding: "chunked" in HTTP/1.1 and nothing else, not
// even in capitals, because somebody down the line compares bytes.
func (h *head) chunked(minor int) (bool, error) {
	if h.count[transferEncoding] == 0 {
		return false, nil
	}
	switch {
	case h.transfer != "chunked":
		return false, refuse(501, "transfer_encoding_unknown")
	case minor == 0:
		return false, refuse(400, "transfer_encoding_in_http10") // RFC 9112 6.1
	case h.count[contentLength] != 0:
		return false, refuse(400, "length_and_transfer_encoding") // RFC 9112 6.3
	}
	return true, nil
}

// options reads the Connection fields (RFC 9110 7.6.1). Fields they name become
// hop-by-hop. Naming a field that proves or frames something is an old way to
// make a proxy remove what the next one relies on, and is refused.
func (h *head) options(fields []Field) error {
	switch {
	case h.count[connection] == 0:
		return nil
	case h.count[connection] == 1 && equalFold(h.connection, "keep-alive"):
		h.keepAlive = true
		return nil
	case h.count[connection] == 1 && equalFold(h.connection, "close"):
		h.close = true
		return nil
	}
	left := maxOptions
	for i := range fields {
		if fields[i].Class&HopByHop == 0 || !equalFold(fields[i].Name, "connection") {
			continue
		}
		for rest, more := fields[i].Value, true; more; {
			var option string
			option, rest, more = strings.Cut(rest, ",")
			if left--; left < 0 {
				return refuse(431, "connection_too_long")
			}
			if err := h.option(strings.Trim(option, " \t"), fields); err != nil {
				return err
			}
		}
	}
	return nil
}

// option takes one option of Connection.
func (h *head) option(option string, fields []Field) error {
	for i := 0; i < len(option); i++ {
		if !is(option[i], token) {
			return refuse(400, "connection_invalid")
		}
	}
	switch {
	case option == "": // RFC 9110 5.6.1: an empty element means nothing
		return nil
	case equalFold(option, "close"):
		h.close = true
		return nil
	case equalFold(option, "keep-alive"):
		h.keepAlive = true
		return nil
	case equalFold(option, "upgrade"):
		h.upgrading = true
		return nil
	}
	class, k := classify(option)
	if class&(Framing|Forwarding|Identity) != 0 || k >= authorization {
		return refuse(400, "connection_names_field")
	}
	for i := range fields {
		if equalName(fields[i].Name, option) {
			fields[i].Class |= HopByHop
		}
	}
	return nil
}
