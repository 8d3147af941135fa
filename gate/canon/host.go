package canon

import (
	"net/netip"
	"strings"
	"unsafe"

	"golang.org/x/net/idna"
)

const (
	maxHost  = 253 // RFC 1035 2.3.4, as text
	maxLabel = 63
)

// Host returns the canonical form of the raw value of a Host field or of an
// authority: the name in lower case without port and final dot, or the address
// (an IPv6 address in brackets, as RFC 5952 writes it). It is a part of raw
// when that is canonical, else a view into buf, which should have a capacity of
// len(raw).
//
// Refused: characters above ASCII (a client that means such a name sends its
// A-labels); A-labels that IDNA2008 would not make, among them all that hide
// ASCII; escapes, user names and empty labels; ports that are empty, padded or
// out of range; and numbers that some resolvers take for an IPv4 address, such
// as "127.1" and "0x7f.0.0.1".
func Host(raw string, buf []byte) (host string, err error) {
	name, port, hasPort := raw, "", false
	if strings.HasPrefix(raw, "[") {
		end := strings.IndexByte(raw, ']')
		if end < 0 {
			return "", refuse("host_address")
		}
		name = raw[:end+1]
		switch rest := raw[end+1:]; {
		case rest == "":
		case rest[0] == ':':
			port, hasPort = rest[1:], true
		default:
			return "", refuse("host_character")
		}
	} else {
		name, port, hasPort = strings.Cut(raw, ":")
	}
	if hasPort && !validPort(port) {
		return "", refuse("host_port")
	}
	if strings.HasPrefix(name, "[") {
		return address(name, buf)
	}
	return domain(name, buf)
}

// address makes an IPv6 literal canonical.
func address(name string, buf []byte) (string, error) {
	addr, err := netip.ParseAddr(name[1 : len(name)-1])
	if err != nil || !addr.Is6() || addr.Zone() != "" {
		return "", refuse("host_address")
	}
	buf = append(buf[:0], '[')
	buf = addr.AppendTo(buf)
	buf = append(buf, ']')
	if string(buf) == name {
		return name, nil
	}
	return unsafe.String(unsafe.SliceData(buf), len(buf)), nil
}

// domain makes a name or an IPv4 address canonical.
func domain(name string, buf []byte) (string, error) {
	name = strings.TrimSuffix(name, ".")
	if name == "" {
		return "", refuse("host_empty")
	}
	if len(name) > maxHost {
		return "", refuse("host_too_long")
	}
	clean := true
	for i := 0; i < len(name); i++ {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '.', c == '_':
		case 'A' <= c && c <= 'Z':
			clean = false
		case c >= 0x80:
			return "", refuse("host_not_ascii")
		default:
			return "", refuse("host_character")
		}
	}
	if !clean {
		buf = append(buf[:0], name...)
		for i, c := range buf {
			if 'A' <= c && c <= 'Z' {
				buf[i] = c | 0x20
			}
		}
		name = unsafe.String(unsafe.SliceData(buf), len(buf))
	}
	if err := labels(name); err != nil {
		return "", err
	}
	return name, nil
}

// labels checks each label of a lower-case name, and that a name that ends in a
// number is an IPv4 address in its one form (WHATWG URL 3.5, "ends in a
// number").
func labels(name string) error {
	label := ""
	for rest, more := name, true; more; {
		label, rest, more = strings.Cut(rest, ".")
		switch {
		case label == "":
			return refuse("host_label_empty")
		case len(label) > maxLabel:
			return refuse("host_label_too_long")
		case label[0] == '-' || label[len(label)-1] == '-':
			return refuse("host_label_hyphen")
		case strings.HasPrefix(label, "xn--") && !validALabel(label):
			return refuse("host_label_idna")
		}
	}
	if isNumber(label) {
		if addr, err := netip.ParseAddr(name); err != nil || !addr.Is4() {
			return refuse("host_address")
		}
	}
	return nil
}

// validALabel reports whether label is the A-label of a U-label (RFC 5890
// 2.3.2.1). A label such as "xn--google-" that decodes to ASCII is another
// spelling of a name that exists.
func validALabel(label string) bool {
	unicode, err := idna.Lookup.ToUnicode(label)
	if err != nil || unicode == label {
		return false
	}
	ascii := true
	for i := 0; i < len(unicode); i++ {
		ascii = ascii && unicode[i] < 0x80
	}
	back, err := idna.Lookup.ToASCII(unicode)
	return !ascii && err == nil && back == label
}

// isNumber reports whether some resolver takes label for a number: decimal,
// octal or hexadecimal.
func isNumber(label string) bool {
	digits := strings.TrimPrefix(label, "0x")
	for i := 0; i < len(digits); i++ {
		if unhex(digits[i]) > 9 && (len(digits) == len(label) || unhex(digits[i]) > 15) {
			return false
		}
	}
	return true
}

// validPort accepts 1 to 65535 without padding.
func validPort(s string) bool {
	if s == "" || len(s) > 5 || s[0] == '0' {
		return false
	}
	n := 0
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
		n = n*10 + int(s[i]-'0')
	}
	return n <= 65535
}
