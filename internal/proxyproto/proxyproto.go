// Package proxyproto reads the header of the PROXY protocol, versions 1 and 2
// (haproxy.org/download/3.2/doc/proxy-protocol.txt): the first bytes of a
// connection, by which a proxy says who is behind it. It is strict, for whoever
// reads such a header believes it: what has two readings is refused, and nothing
// behind the header is touched.
package proxyproto

import (
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"strconv"
	"strings"
)

// Header is what a proxy says.
type Header struct {
	// Client is who connected to the proxy. It is not valid if the proxy speaks
	// for itself, as for a health check, or does not know.
	Client netip.AddrPort
}

const (
	signature = "\r\n\r\n\x00\r\nQUIT\n"
	begin1    = "PROXY "
	maxLine   = 107     // bytes of version 1 with its line end
	fixed     = 16      // bytes of version 2 before the addresses
	maxRest   = 4 << 10 // bytes of version 2 after that: addresses and what else is said of the connection
)

// Errors.
var (
	ErrNone    = errors.New("proxyproto: the connection does not begin with a header")
	ErrInvalid = errors.New("proxyproto: the header is not valid")
	ErrTooLong = errors.New("proxyproto: the header is too long")
)

// Read reads a header, and not a byte more.
func Read(r io.Reader) (Header, error) {
	buf := make([]byte, 0, maxLine)
	for {
		h, n, err := Parse(buf)
		if err != nil || n == len(buf) && n > 0 {
			return h, err
		}
		need := missing(buf)
		if cap(buf)-len(buf) < need {
			buf = append(make([]byte, 0, len(buf)+need), buf...)
		}
		n, err = io.ReadFull(r, buf[len(buf):len(buf)+need])
		if buf = buf[:len(buf)+n]; err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return Header{}, err
		}
	}
}

// missing is how many bytes a header that begins with b has still at least.
func missing(b []byte) int {
	const shortest = len("PROXY UNKNOWN\r\n")
	switch {
	case len(b) < shortest:
		return shortest - len(b)
	case b[0] == begin1[0]:
		return 1 // or two, but the line end may have begun
	case len(b) < fixed:
		return fixed - len(b)
	}
	return fixed + int(binary.BigEndian.Uint16(b[14:])) - len(b)
}

// Parse reads the header that b begins with, and returns its length; 0 when it
// is not whole yet. What it returns does not depend on how the bytes were cut.
func Parse(b []byte) (h Header, n int, err error) {
	switch {
	case begins(b, signature):
		return parse2(b)
	case begins(b, begin1):
		return parse1(b)
	}
	return Header{}, 0, ErrNone
}

// begins reports whether b begins with s, as far as there is something of it.
func begins(b []byte, s string) bool {
	n := min(len(b), len(s))
	return string(b[:n]) == s[:n]
}

func parse1(b []byte) (h Header, n int, err error) {
	line, _, whole := strings.Cut(string(b[:min(len(b), maxLine)]), "\r\n")
	switch {
	case !whole && len(b) >= maxLine:
		return Header{}, 0, ErrTooLong
	case strings.ContainsAny(strings.TrimSuffix(line, "\r"), "\r\n"), whole && strings.HasSuffix(line, "\r"):
		return Header{}, 0, ErrInvalid
	case !whole:
		return Header{}, 0, nil
	}
	n = len(line) + len("\r\n")
	words := strings.Split(line, " ")
	if words[1] == "UNKNOWN" { // whatever follows
		return Header{}, n, nil
	}
	if len(words) != 6 || words[1] != "TCP4" && words[1] != "TCP6" {
		return Header{}, 0, ErrInvalid
	}
	for i, at := range [...]int{2, 3} {
		addr, err := netip.ParseAddr(words[at])
		port, ok := portOf(words[at+2])
		if err != nil || !ok || addr.Zone() != "" || addr.Is4() != (words[1] == "TCP4") {
			return Header{}, 0, ErrInvalid
		}
		if i == 0 {
			h.Client = netip.AddrPortFrom(addr.Unmap(), port)
		}
	}
	return h, n, nil
}

func portOf(s string) (uint16, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil && s[0] != '+' && (s[0] != '0' || s == "0")
}

func parse2(b []byte) (h Header, n int, err error) {
	if len(b) > 12 && (b[12]>>4 != 2 || b[12]&0xf > 1) {
		return Header{}, 0, ErrInvalid
	}
	if len(b) < fixed {
		return Header{}, 0, nil
	}
	size := int(binary.BigEndian.Uint16(b[14:]))
	local, family, transport := b[12]&0xf == 0, b[13]>>4, b[13]&0xf
	if size > maxRest {
		return Header{}, 0, ErrTooLong
	}
	if family > 3 || transport > 2 {
		return Header{}, 0, ErrInvalid
	}
	addresses := [...]int{0, 12, 36, 216}[family] // what each family takes
	if !local && size < addresses || transport == 2 && !local {
		return Header{}, 0, ErrInvalid // datagrams do not come over a connection
	}
	if n = fixed + size; len(b) < n {
		return Header{}, 0, nil
	}
	if local || transport == 0 {
		return Header{}, n, nil
	}
	rest := b[fixed:n]
	switch family {
	case 1:
		h.Client = netip.AddrPortFrom(netip.AddrFrom4([4]byte(rest)), binary.BigEndian.Uint16(rest[8:]))
	case 2:
		h.Client = netip.AddrPortFrom(netip.AddrFrom16([16]byte(rest)).Unmap(), binary.BigEndian.Uint16(rest[32:]))
	}
	if err := further(rest[addresses:]); err != nil {
		return Header{}, 0, err
	}
	return h, n, nil
}

// further checks that what else is said is whole; nothing of it is used.
func further(rest []byte) error {
	for len(rest) > 0 {
		if len(rest) < 3 {
			return ErrInvalid
		}
		size := 3 + int(binary.BigEndian.Uint16(rest[1:]))
		if size > len(rest) {
			return ErrInvalid
		}
		rest = rest[size:]
	}
	return nil
}
