package httpfield

import (
	"errors"
	"strings"
)

const (
	// MaxName is how many bytes the name of a field may have.
	MaxName = 128
	// maxDigits is how many digits a length may have, so that it fits 63 bits.
	maxDigits = 18
)

// Field is one field of a message.
type Field struct {
	Name, Value string // Value without the white space around it
	Class       Class  // what the name means to a gate
}

// Get finds a field by name, ignoring case. It returns the first value and how
// many fields have the name.
func Get(fields []Field, name string) (value string, count int) {
	for i := range fields {
		if EqualFold(fields[i].Name, name) {
			if count == 0 {
				value = fields[i].Value
			}
			count++
		}
	}
	return value, count
}

// EqualFold compares ASCII without case. Unlike strings.EqualFold it has no
// Unicode folding: U+212A is not a k here.
func EqualFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := 0; i < len(a); i++ {
		if Lower(a[i]) != Lower(b[i]) {
			return false
		}
	}
	return true
}

// Lower is c, or the small letter of a capital one.
func Lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c | 0x20
	}
	return c
}

// ValidName reports whether s can be the name of a field.
func ValidName(s string) bool {
	for i := 0; i < len(s); i++ {
		if !Is(s[i], Token) {
			return false
		}
	}
	return s != "" && len(s) <= MaxName
}

// ValidValue reports whether s can be the value of a field: printable ASCII and
// tabs, no white space around it. A line end in a value would be another field.
func ValidValue(s string) bool {
	for i := 0; i < len(s); i++ {
		if !Is(s[i], Text) && s[i] != '\t' {
			return false
		}
	}
	return s == "" || !isSpace(s[0]) && !isSpace(s[len(s)-1])
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' }

// ValidHost checks the syntax of host or host:port (RFC 9110 7.2): a name or an
// IPv4 address, or an IPv6 address in brackets, and no user, escape or empty
// port. Package canon makes it canonical.
func ValidHost(s string) bool {
	if len(s) > 261 { // a name of 255, a colon, five digits
		return false
	}
	i := 0
	if strings.HasPrefix(s, "[") {
		for i = 1; i < len(s) && (IsHex(s[i]) || s[i] == ':' || s[i] == '.'); i++ {
		}
		if i < 3 || i == len(s) || s[i] != ']' {
			return false
		}
		i++
	} else {
		for i < len(s) && Is(s[i], HostName) {
			i++
		}
		if i == 0 {
			return false
		}
	}
	return i == len(s) || s[i] == ':' && validPort(s[i+1:])
}

// validPort accepts 1 to 65535 without padding.
func validPort(s string) bool {
	if len(s) == 0 || len(s) > 5 || s[0] == '0' {
		return false
	}
	n := 0
	for i := 0; i < len(s); i++ {
		if !IsDigit(s[i]) {
			return false
		}
		n = n*10 + int(s[i]-'0')
	}
	return n <= 65535
}

// IsDigit and IsHex report whether c is a digit of a number.
func IsDigit(c byte) bool { return '0' <= c && c <= '9' }

func IsHex(c byte) bool { return IsDigit(c) || 'a' <= Lower(c) && Lower(c) <= 'f' }

// Why a length cannot be read.
var (
	ErrLength         = errors.New("not a length")
	ErrLengthOverflow = errors.New("a length beyond all bounds")
)

// Length reads the value of Content-Length: digits only, none of them a padding
// zero, since some read a leading zero as octal (RFC 9110 8.6).
func Length(value string) (int64, error) {
	if value == "" || value[0] == '0' && len(value) > 1 {
		return 0, ErrLength
	}
	n := int64(0)
	for i := 0; i < len(value); i++ {
		c := value[i] - '0'
		if c > 9 {
			return 0, ErrLength
		}
		if i >= maxDigits {
			return 0, ErrLengthOverflow
		}
		n = n*10 + int64(c)
	}
	return n, nil
}

// Disguised reports whether a name folds to one that matters to a gate on the
// way of the message. Behind CGI, WSGI or PHP a name with odd characters would
// be that other one.
func Disguised(class Class, k Kind, response bool) bool {
	if response {
		return class&(HopByHop|Framing) != 0
	}
	return class != 0 || k != Other
}
