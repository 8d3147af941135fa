// Package canon gives a path and a host the one form that policy, filters and
// upstream all see. What has two readings is refused, never repaired: if the
// policy reads "/public/..%2fadmin" one way and the application another, the
// policy protects nothing.
//
// A canonical value is its own canonical form, so it can be passed on, stored
// and compared byte by byte.
package canon

import (
	"unicode/utf8"
	"unsafe"
)

// MaxPath is the length of the longest path, in bytes.
const MaxPath = 8 << 10

// Error is a refusal; to be answered with 400.
type Error struct {
	Reason string // stable code, such as "path_dot_segment"
}

// Error is the reason, for logs.
func (e *Error) Error() string { return "canon: " + e.Reason }

func refuse(reason string) error { return &Error{reason} }

// Path returns the canonical form of the raw path of a request, without its
// query. It is raw itself when that is canonical, else a view into buf, which
// should have a capacity of len(raw): then nothing is allocated.
//
// Canonical (RFC 3986 6.2.2): begins with '/', every character that may stand
// in a segment stands there as itself, every other octet is %XX in upper case.
// Two exceptions stay as they come, because applications tell them apart: %2B,
// which some read as '+' and some '+' as a space, and %3B, see below. The path
// is decoded once, here; the result is still encoded.
//
// Refused: octets that a path cannot have; broken escapes; an escaped slash,
// unless keepSlash (then it stays %2F inside its segment); a backslash, raw or
// escaped; segments "." and ".." in any disguise; empty segments; what would
// decode a second time ("%252e"); control characters; what is not UTF-8; and
// ';' parameters, which servlet containers cut off before they look for "..".
func Path(raw string, keepSlash bool, buf []byte) (path string, err error) {
	switch {
	case len(raw) > MaxPath:
		return "", refuse("path_too_long")
	case raw == "" || raw[0] != '/':
		return "", refuse("path_not_absolute")
	}
	i := glance(raw)
	if i == len(raw) {
		return raw, nil
	}
	buf, same, err := decode(append(buf[:0], raw[:i]...), raw[i:], keepSlash)
	if err != nil {
		return "", err
	}
	if !same {
		raw = unsafe.String(unsafe.SliceData(buf), len(buf))
	}
	if err := segments(raw); err != nil {
		return "", err
	}
	return raw, nil
}

// glance returns the length of the beginning of raw that is canonical whatever
// follows. Most paths are so whole: nothing escaped, no segment empty or with a
// dot in front.
func glance(raw string) int {
	for i := 0; i < len(raw); i++ {
		if octets[raw[i]] != plain || raw[i] == '/' && i+1 < len(raw) && (raw[i+1] == '/' || raw[i+1] == '.') {
			return i
		}
	}
	return len(raw)
}

// decode appends the canonical form of raw, a part of a path, to dst. same says
// that it equals raw.
func decode(dst []byte, raw string, keepSlash bool) (_ []byte, same bool, err error) {
	same = true
	high := false // octets above ASCII were seen
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		switch octets[c] {
		case plain:
			dst = append(dst, c)
			continue
		case escape:
		case backslash:
			return nil, false, refuse("path_backslash")
		case semicolon:
			return nil, false, refuse("path_parameter")
		default:
			return nil, false, refuse("path_character")
		}
		if i+2 >= len(raw) || unhex(raw[i+1]) > 15 || unhex(raw[i+2]) > 15 {
			return nil, false, refuse("path_escape")
		}
		c = unhex(raw[i+1])<<4 | unhex(raw[i+2])
		switch {
		case c < 0x20 || c == 0x7f:
			return nil, false, refuse("path_control")
		case c == '\\':
			return nil, false, refuse("path_backslash")
		case c == '/' && !keepSlash:
			return nil, false, refuse("path_encoded_slash")
		case c == '/' || c == '+' || octets[c] != plain:
			high = high || c >= 0x80
			a, b := upper(raw[i+1]), upper(raw[i+2])
			same = same && a == raw[i+1] && b == raw[i+2]
			dst = append(dst, '%', a, b)
		default:
			dst, same = append(dst, c), false
		}
		i += 2
	}
	if high && !validUTF8(dst) {
		return nil, false, refuse("path_not_utf8")
	}
	return dst, same, nil
}

// segments checks what a decoded path says. It looks at the result, so that no
// mixture of raw and escaped characters hides anything.
func segments(path string) error {
	start := 1 // of the segment, or of its part between kept slashes
	for i := 1; ; i++ {
		end := i == len(path) || path[i] == '/'
		cut := !end && path[i] == '%'
		if !end && !cut {
			continue
		}
		if cut {
			switch path[i+1 : i+3] {
			case "25":
				// "%252e": whoever decodes again sees a dot. The same for "%25u002e".
				if rest := path[i+3:]; len(rest) > 1 && (rest[0] == 'u' || unhex(rest[0]) < 16) && unhex(rest[1]) < 16 {
					return refuse("path_double_encoding")
				}
				continue
			case "2F", "3B", "3F", "23", "20": // '/' ';' '?' '#' ' '
				// Who decodes and then cuts here, or trims, finds the segment before.
			default:
				continue
			}
		}
		if part := path[start:i]; part == "." || part == ".." {
			return refuse("path_dot_segment")
		}
		switch {
		case i == len(path):
			return nil
		case cut && path[i+1:i+3] == "2F":
			start = i + 3
		case cut:
		case i == start:
			return refuse("path_empty_segment")
		default:
			start = i + 1
		}
	}
}

// validUTF8 reports whether the octets escaped in path are UTF-8 (RFC 3629), and
// none of them one of the control characters U+0080 to U+009F.
func validUTF8(path []byte) bool {
	var char [utf8.UTFMax]byte
	for i := 0; i < len(path); {
		n := 0
		for n < len(char) && i+3*n+2 < len(path) && path[i+3*n] == '%' {
			char[n] = unhex(path[i+3*n+1])<<4 | unhex(path[i+3*n+2])
			n++
		}
		if n == 0 {
			i++
			continue
		}
		r, size := utf8.DecodeRune(char[:n])
		if r == utf8.RuneError && size == 1 || 0x80 <= r && r < 0xa0 {
			return false
		}
		i += 3 * size
	}
	return true
}

// What an octet is in a path.
type octet uint8

const (
	illegal   octet = iota
	plain           // stands for itself
	escape          // '%'
	backslash       // a separator, to some
	semicolon       // begins parameters, to some
)

// octets describes every octet (RFC 3986 3.3: pchar, but not ';'). It is never
// written after it is built.
var octets = octetTable()

func octetTable() (t [256]octet) {
	const pchar = "/-._~!$&'()*+,=:@"
	for i := 0; i < len(pchar); i++ {
		t[pchar[i]] = plain
	}
	for c := '0'; c <= '9'; c++ {
		t[c] = plain
	}
	for c := 'a'; c <= 'z'; c++ {
		t[c], t[c-'a'+'A'] = plain, plain
	}
	t['%'], t['\\'], t[';'] = escape, backslash, semicolon
	return t
}

// unhex is the value of a hexadecimal digit, or more than 15.
func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 0xff
}

func upper(c byte) byte {
	if 'a' <= c && c <= 'z' {
		return c - 'a' + 'A'
	}
	return c
}
