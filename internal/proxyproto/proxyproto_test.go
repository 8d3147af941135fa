package proxyproto

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

const v2 = signature + "\x21"

var ip4 = "\xcb\x00\x71\x07\xc0\x00\x02\x01\x12\x67\x01\xbb"

func samples() []struct {
	raw, client string
	err         error
} {
	ip6 := "\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x07" + strings.Repeat("\x00", 15) + "\x01\x12\x67\x01\xbb"
	mapped := strings.Repeat("\x00", 10) + "\xff\xff\xcb\x00\x71\x07" + strings.Repeat("\x00", 15) + "\x01\x12\x67\x01\xbb"
	return []struct {
		raw, client string
		err         error
	}{
		{"PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\r\n", "203.0.113.7:4711", nil},
		{"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", "255.255.255.255:65535", nil},
		{"PROXY TCP6 2001:db8::7 ::1 4711 443\r\n", "[2001:db8::7]:4711", nil},
		{"PROXY TCP6 ::ffff:203.0.113.7 ::1 4711 443\r\n", "203.0.113.7:4711", nil},
		{"PROXY UNKNOWN\r\n", "", nil},
		{"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", "", nil},
		{"PROXY\r\n1234567890", "", ErrNone},
		{"PROXY TCP4\r\n12345", "", ErrInvalid},
		{"PROXY TCP4 203.0.113.7 192.0.2.1 4711\r\n", "", ErrInvalid},
		{"PROXY TCP4 203.0.113.7 192.0.2.1 4711 443 1\r\n", "", ErrInvalid},
		{"PROXY TCP4  203.0.113.7 192.0.2.1 4711 443\r\n", "", ErrInvalid},
		{"PROXY TCP4 203.0.113.7 192.0.2.1 4711 443 \r\n", "", ErrInvalid},
		{"PROXY TCP4 2001:db8::7 192.0.2.1 4711 443\r\n", "", ErrInvalid},
		{"PROXY TCP6 203.0.113.7 ::1 4711 443\r\n", "", ErrInvalid},
		{"PROXY TCP6 fe80::1%eth0 ::1 4711 443\r\n", "", ErrInvalid},
		{"PROXY TCP4 203.0.113.07 192.0.2.1 4711 443\r\n", "", ErrInvalid},
		{"PROXY TCP4 203.0.113.7 192.0.2.1 65536 443\r\n", "", ErrInvalid},
		{"PROXY TCP4 203.0.113.7 192.0.2.1 04711 443\r\n", "", ErrInvalid},
		{"PROXY TCP4 203.0.113.7 192.0.2.1 +4711 443\r\n", "", ErrInvalid},
		{"PROXY tcp4 203.0.113.7 192.0.2.1 4711 443\r\n", "", ErrInvalid},
		{"PROXY UDP4 203.0.113.7 192.0.2.1 4711 443\r\n", "", ErrInvalid},
		{"PROXY TCP4 203.0.113.7\n192.0.2.1 4711 443\r\n", "", ErrInvalid},
		{"PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\n\r\n", "", ErrInvalid},
		{"PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\r\r\n", "", ErrInvalid},
		{"PROXY UNKNOWN " + strings.Repeat("x", 91) + "\r\n", "", nil},
		{"PROXY UNKNOWN " + strings.Repeat("x", 92) + "\r\n", "", ErrTooLong},
		{"PROXX TCP4 203.0.113.7 192.0.2.1 4711 443\r\n", "", ErrNone},
		{"GET / HTTP/1.1\r\n\r\n", "", ErrNone},
		{"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 and so on", "", ErrNone},
		{v2 + "\x11\x00\x0c" + ip4, "203.0.113.7:4711", nil},
		{v2 + "\x11\x00\x11" + ip4 + "\x04\x00\x02ab", "203.0.113.7:4711", nil},
		{v2 + "\x21\x00\x24" + ip6, "[2001:db8::7]:4711", nil},
		{v2 + "\x21\x00\x24" + mapped, "203.0.113.7:4711", nil},
		{v2 + "\x31\x00\xd8" + strings.Repeat("\x00", 216), "", nil}, // over a Unix socket
		{v2 + "\x00\x00\x00", "", nil},
		{v2 + "\x10\x00\x0c" + ip4, "", nil},
		{signature + "\x20\x00\x00\x00", "", nil},
		{signature + "\x20\x11\x00\x0c" + ip4, "", nil},
		{v2 + "\x11\x00\x0b" + ip4, "", ErrInvalid},
		{v2 + "\x12\x00\x0c" + ip4, "", ErrInvalid}, // datagrams
		{v2 + "\x41\x00\x0c" + ip4, "", ErrInvalid},
		{v2 + "\x13\x00\x0c" + ip4, "", ErrInvalid},
		{signature + "\x22\x11\x00\x0c" + ip4, "", ErrInvalid},
		{signature + "\x11\x11\x00\x0c" + ip4, "", ErrInvalid},
		{v2 + "\x11\x00\x0e" + ip4 + "\x04\x00", "", ErrInvalid},
		{v2 + "\x11\x00\x11" + ip4 + "\x04\x00\x03ab", "", ErrInvalid},
		{v2 + "\x11\x10\x01" + ip4, "", ErrTooLong},
		{signature[:11] + "\r" + "\x21\x11\x00\x0c" + ip4, "", ErrNone},
	}
}

// TestRead reads each sample in one go and byte by byte, with more behind it
// that must be left alone.
func TestRead(t *testing.T) {
	t.Parallel()
	for _, s := range samples() {
		for _, slow := range []bool{false, true} {
			const more = "\r\nmore\r\n"
			in := strings.NewReader(s.raw + more)
			var r io.Reader = in
			if slow {
				r = iotest.OneByteReader(r)
			}
			h, err := Read(r)
			got := ""
			if err == nil && h.Client.IsValid() {
				got = h.Client.String()
			}
			if !errors.Is(err, s.err) || err != nil && s.err == nil || got != s.client {
				t.Errorf("%q: %q, %v; want %q, %v", s.raw, got, err, s.client, s.err)
			}
			if rest, _ := io.ReadAll(in); err == nil && string(rest) != more {
				t.Errorf("%q: left %q", s.raw, rest)
			}
			if s.err == nil {
				for i := range len(s.raw) {
					if _, err := Read(strings.NewReader(s.raw[:i])); !errors.Is(err, io.ErrUnexpectedEOF) {
						t.Errorf("%q: %v", s.raw[:i], err)
					}
				}
			}
		}
	}
}

// FuzzParse: what is returned does not depend on how the bytes are cut, and
// bytes behind the header change nothing.
func FuzzParse(f *testing.F) {
	for _, s := range samples() {
		f.Add([]byte(s.raw))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, n, err := Parse(b)
		if n < 0 || n > len(b) || err == nil && n > fixed+maxRest {
			t.Fatalf("%d of %d bytes", n, len(b))
		}
		if err != nil {
			if h, _, again := Parse(append(b[:len(b):len(b)], "\r\nmore"...)); again == nil {
				t.Fatalf("%q was refused, and with more behind it is %v", b, h)
			}
			return
		}
		if n == 0 {
			return
		}
		r := bytes.NewReader(b)
		again, err := Read(r)
		if err != nil || again != h || r.Len() != len(b)-n {
			t.Fatalf("%q: parsed %v in %d, read %v with %d left, %v", b, h, n, again, r.Len(), err)
		}
		for i := range n {
			if h, m, err := Parse(b[:i]); m != 0 || err != nil {
				t.Fatalf("%q: the first %d bytes are %v, %v", b, i, h, err)
			}
		}
	})
}
