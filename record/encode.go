package record

import (
	"strconv"
	"time"
	"unicode/utf8"
)

// encoder writes records as JSON lines. It remembers the last second it
// formatted, which most records share.
type encoder struct {
	second int64
	stamp  [len("2006-01-02T15:04:05.")]byte
}

// appendRecord appends r as one line, including its line feed. It does not
// allocate when dst has room.
func (e *encoder) appendRecord(dst []byte, seq uint64, r *Record, query bool) []byte {
	dst = append(dst, `{"seq":`...)
	dst = strconv.AppendUint(dst, seq, 10)
	dst = append(dst, `,"time":"`...)
	dst = e.appendTime(dst, r.Time)
	dst = append(dst, '"')
	dst = appendString(dst, `,"id":"`, r.ID)
	dst = appendString(dst, `,"place":"`, r.Place)
	dst = appendString(dst, `,"at":"`, r.At)
	dst = appendString(dst, `,"caller":"`, r.Caller)
	dst = appendString(dst, `,"callerKind":"`, r.CallerKind)
	dst = appendString(dst, `,"subject":"`, r.Subject)
	dst = appendString(dst, `,"client":"`, r.Client)
	dst = appendString(dst, `,"service":"`, r.Service)
	dst = appendString(dst, `,"operation":"`, r.Operation)
	dst = appendString(dst, `,"method":"`, r.Method)
	dst = appendString(dst, `,"host":"`, r.Host)
	dst = appendString(dst, `,"path":"`, r.Path)
	if query {
		dst = appendString(dst, `,"query":"`, r.Query)
	}
	dst = appendInt(dst, `,"status":`, int64(r.Status))
	dst = appendString(dst, `,"grpc":"`, r.GRPC)
	dst = appendVerdict(dst, r)
	dst = appendString(dst, `,"detail":"`, r.Detail)
	dst = appendString(dst, `,"upstream":"`, r.Upstream)
	dst = appendString(dst, `,"intent":"`, r.Intent)
	dst = appendInt(dst, `,"duration":`, r.Duration)
	dst = appendInt(dst, `,"bytesIn":`, r.BytesIn)
	dst = appendInt(dst, `,"bytesOut":`, r.BytesOut)
	dst = appendString(dst, `,"trace":"`, r.Trace)
	return append(dst, '}', '\n')
}

func appendVerdict(dst []byte, r *Record) []byte {
	v := &r.Verdict
	dst = append(dst, `,"verdict":{"effect":"`...)
	dst = append(dst, v.Effect.String()...)
	dst = append(dst, `","reason":"`...)
	dst = appendEscaped(dst, string(v.Reason))
	dst = append(dst, '"')
	if !v.Pos.IsZero() {
		dst = append(dst, `,"pos":"`...)
		dst = appendEscaped(dst, v.Pos.File)
		if v.Pos.Line != 0 {
			dst = append(dst, ':')
			dst = strconv.AppendInt(dst, int64(v.Pos.Line), 10)
			if v.Pos.Column != 0 {
				dst = append(dst, ':')
				dst = strconv.AppendInt(dst, int64(v.Pos.Column), 10)
			}
		}
		dst = append(dst, '"')
	}
	dst = appendString(dst, `,"rule":"`, v.Rule)
	if v.Shadow {
		dst = append(dst, `,"shadow":true`...)
	}
	return append(dst, '}')
}

// appendTime appends t, unix nanoseconds, in RFC 3339 with nine digits. Every
// int64 is a year of four digits.
func (e *encoder) appendTime(dst []byte, t int64) []byte {
	second, nanos := t/1e9, t%1e9
	if nanos < 0 {
		second, nanos = second-1, nanos+1e9
	}
	if second != e.second || e.stamp[0] == 0 {
		time.Unix(second, 0).UTC().AppendFormat(e.stamp[:0], "2006-01-02T15:04:05.")
		e.second = second
	}
	dst = append(dst, e.stamp[:]...)
	dst = append(dst, "000000000Z"...)
	for i := len(dst) - 2; nanos > 0; i-- {
		dst[i] = byte('0' + nanos%10)
		nanos /= 10
	}
	return dst
}

func appendInt(dst []byte, key string, n int64) []byte {
	if n == 0 {
		return dst
	}
	dst = append(dst, key...)
	return strconv.AppendInt(dst, n, 10)
}

// appendString appends key and s, and nothing when s is empty. The key ends
// with the opening quote.
func appendString(dst []byte, key, s string) []byte {
	if s == "" {
		return dst
	}
	dst = append(dst, key...)
	dst = appendEscaped(dst, s)
	return append(dst, '"')
}

// appendEscaped appends s as the inside of a JSON string (RFC 8259 7).
//
// Beyond what JSON asks, everything that could move the cursor or turn the
// direction of text is escaped: a caller chooses paths, and an operator reads
// them on a terminal. Bytes that are not UTF-8 become U+FFFD.
func appendEscaped(dst []byte, s string) []byte {
	if len(s) <= maxField && harmless(s) {
		return append(dst, s...)
	}
	rest := 0
	if len(s) > maxField {
		cut := maxField
		for cut > maxField-utf8.UTFMax && !utf8.RuneStart(s[cut]) {
			cut--
		}
		s, rest = s[:cut], len(s)-cut
	}
	start := 0 // of what is not yet appended
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && size == 1 || unprintable(r) {
			dst = append(dst, s[start:i]...)
			dst = appendEscape(dst, r)
			start = i + size
		}
		i += size
	}
	dst = append(dst, s[start:]...)
	if rest > 0 {
		dst = append(dst, "...("...)
		dst = strconv.AppendInt(dst, int64(rest), 10)
		dst = append(dst, " bytes cut)"...)
	}
	return dst
}

// harmless reports whether s is printable ASCII without quote and backslash,
// as nearly every string is. It looks at eight bytes at a time.
func harmless(s string) bool {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	for len(s) >= 8 {
		x := uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
			uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
		quote, slash, del := x^(ones*'"'), x^(ones*'\\'), x^(ones*0x7f)
		// (v - ones) &^ v has a byte's high bit set where that byte of v is
		// zero. It may set more only above such a byte.
		if (x|(x-ones*0x20)&^x|(quote-ones)&^quote|(slash-ones)&^slash|(del-ones)&^del)&highs != 0 {
			return false
		}
		s = s[8:]
	}
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

// unprintable reports whether r is escaped: by JSON's rules, or because it can
// confuse a terminal: C0 and C1 controls, line and paragraph separators, and
// the controls of bidirectional text (Unicode TR 9, "Trojan Source").
func unprintable(r rune) bool {
	return r < 0x20 || r == '"' || r == '\\' || r >= 0x7f && r < 0xa0 || r == 0x200e || r == 0x200f || r >= 0x2028 && r <= 0x202e ||
		r >= 0x2066 && r <= 0x2069 || r == 0x061c || r == 0xfeff
}

func appendEscape(dst []byte, r rune) []byte {
	switch r {
	case '"', '\\':
		return append(dst, '\\', byte(r))
	case '\n':
		return append(dst, '\\', 'n')
	case '\r':
		return append(dst, '\\', 'r')
	case '\t':
		return append(dst, '\\', 't')
	}
	const hex = "0123456789abcdef"
	return append(dst, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
}
