package sockowner

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"testing"
)

func ports(a, b string) tuple { return tuple{netip.MustParseAddrPort(a), netip.MustParseAddrPort(b)} }

func TestParseLine(t *testing.T) {
	t.Parallel()
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the lines below are of a little-endian machine")
	}
	for _, tt := range []struct {
		line string
		want entry
		ok   bool
	}{
		{"   0: 0100007F:1F90 0200007F:C350 01 00000000:00000000 00:00000000 00000000  1001        0 4242 1 0000000000000000 20 4 30 10 -1",
			entry{ports("127.0.0.1:8080", "127.0.0.2:50000"), 1, Socket{1001, 4242}}, true},
		{"   1: 00000000000000000000000001000000:0001 00000000000000000000000001000000:0002 08 0:0 00:0 0 0 0 7 1",
			entry{ports("[::1]:1", "[::1]:2"), 8, Socket{0, 7}}, true},
		{"   2: 0000000000000000FFFF00000100007F:0001 0000000000000000FFFF00000100007F:0002 01 0:0 00:0 0 0 0 7 1",
			entry{ports("127.0.0.1:1", "127.0.0.1:2"), 1, Socket{0, 7}}, true},
		{"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode", entry{}, false},
		{"   0: 0100007F:1F90 0200007F:C350 01 0:0 00:0 0 1001", entry{}, false},
		{"   0: 0100007F:1F90 0200007F:C350 01 0:0 00:0 0 -1 0 4242 1", entry{}, false},
		{"   0: 0100007F:1F90 0200007F:C350 101 0:0 00:0 0 1 0 4242 1", entry{}, false},
		{"   0: 0100007F:1F90F 0200007F:C350 01 0:0 00:0 0 1 0 4242 1", entry{}, false},
		{"", entry{}, false},
	} {
		got, ok := parseLine([]byte(tt.line))
		if ok != tt.ok || ok && got != tt.want {
			t.Errorf("%q\n got %+v %v\nwant %+v %v", tt.line, got, ok, tt.want, tt.ok)
		}
	}
}

func TestParseStat(t *testing.T) {
	t.Parallel()
	rest := " S 7 8 9 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 12345 1 1"
	for _, tt := range []struct {
		text string
		want stat
		ok   bool
	}{
		{"42 (web)" + rest, stat{7, 9}, true},
		{"42 (a b)" + rest, stat{7, 9}, true},
		{"42 (x) S 1 1 1 (y)" + rest, stat{7, 9}, true}, // a name that pretends
		{"42 (x\n) S 1 1 1)" + rest, stat{7, 9}, true},
		{"42 (web) S 7 8", stat{}, false},
		{"42 (web) S -7 8 9 0", stat{}, false},
		{"42 web S 7 8 9", stat{}, false},
		{"", stat{}, false},
	} {
		got, ok := parseStat([]byte(tt.text))
		if ok != tt.ok || ok && got != tt.want {
			t.Errorf("%q: got %+v %v, want %+v %v", tt.text, got, ok, tt.want, tt.ok)
		}
	}
}

// answer is a message of the kernel about a socket.
func answer(t tuple, seq uint32, state uint8, s Socket) []byte {
	b := appendRequest(nil, t, seq, false)
	msg := append([]byte(nil), b[:netlinkHeader]...)
	family := uint8(familyIPv4)
	if t.local.Addr().Is6() {
		family = familyIPv6
	}
	msg = append(msg, family, state, 0, 0)
	msg = append(msg, b[netlinkHeader+8:]...) // the id
	msg = append(msg, make([]byte, 12)...)
	msg = binary.NativeEndian.AppendUint32(msg, s.UID)
	msg = binary.NativeEndian.AppendUint32(msg, uint32(s.Inode))
	binary.NativeEndian.PutUint32(msg, uint32(len(msg)))
	return msg
}

func TestParseAnswer(t *testing.T) {
	t.Parallel()
	for _, tu := range []tuple{ports("127.0.0.1:1", "127.0.0.1:65535"), ports("[::1]:1", "[fe80::2]:2")} {
		want := entry{tu, 1, Socket{1001, 4242}}
		msg := answer(tu, 9, 1, want.Socket)
		if got, err := parseAnswer(msg, 9); err != nil || got != want {
			t.Errorf("got %+v %v, want %+v", got, err, want)
		}
		if _, err := parseAnswer(msg, 8); err == nil {
			t.Error("the answer to another question is taken")
		}
		for n := range msg {
			if _, err := parseAnswer(msg[:n], 9); err == nil {
				t.Errorf("an answer cut after %d bytes is taken", n)
			}
		}
	}
	errno := func(n int32) []byte {
		b := answer(ports("127.0.0.1:1", "127.0.0.1:2"), 9, 1, Socket{})[:netlinkHeader+8]
		binary.NativeEndian.PutUint32(b, uint32(len(b)))
		binary.NativeEndian.PutUint16(b[4:], netlinkError)
		binary.NativeEndian.PutUint32(b[netlinkHeader:], uint32(n))
		return b
	}
	if _, err := parseAnswer(errno(-int32(syscall.ENOENT)), 9); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("got %v, want ENOENT", err)
	}
	for _, n := range []int32{0, 1, -1 << 31} {
		if _, err := parseAnswer(errno(n), 9); err == nil {
			t.Errorf("error number %d is taken for an answer", n)
		}
	}
}

// TestHeld has the ends that belong to nobody, or not to the one who asks.
func TestHeld(t *testing.T) {
	t.Parallel()
	want := ports("127.0.0.1:1", "127.0.0.1:2")
	s := Socket{1001, 4242}
	for _, tt := range []struct {
		name string
		e    entry
		err  error
	}{
		{"established", entry{want, established, s}, nil},
		{"half-closed by the client", entry{want, finWait2, s}, nil},
		{"closed: an older kernel says uid 0", entry{want, finWait2, Socket{0, 0}}, ErrAbandoned},
		{"time wait", entry{want, 6, Socket{0, 0}}, ErrAbandoned},
		{"another that begins, from the same port", entry{want, 2, s}, ErrNotFound},
		{"a listener", entry{ports("127.0.0.1:1", "0.0.0.0:0"), 10, s}, ErrNotFound},
		{"the other direction", entry{tuple{want.remote, want.local}, established, s}, ErrNotFound},
	} {
		if got, err := tt.e.held(want); err != tt.err || err == nil && got != s {
			t.Errorf("%s: got %+v %v, want %v", tt.name, got, err, tt.err)
		}
	}
}

func FuzzParseAnswer(f *testing.F) {
	f.Add(answer(ports("127.0.0.1:1", "127.0.0.1:2"), 9, 1, Socket{1, 2}), uint32(9))
	f.Add(answer(ports("[::1]:1", "[::1]:2"), 9, 1, Socket{1, 2}), uint32(9))
	f.Add([]byte{}, uint32(0))
	f.Fuzz(func(t *testing.T, b []byte, seq uint32) {
		e, err := parseAnswer(b, seq)
		if err != nil && e != (entry{}) {
			t.Errorf("%+v with the error %v", e, err)
		}
		if err == nil && (!e.local.IsValid() || !e.remote.IsValid() || e.local.Addr().Is4In6()) {
			t.Errorf("%+v has no canonical addresses", e)
		}
	})
}

func FuzzParseLine(f *testing.F) {
	f.Add("   0: 0100007F:1F90 0200007F:C350 01 00000000:00000000 00:00000000 00000000  1001        0 4242 1")
	f.Add("   1: 00000000000000000000000001000000:0001 00000000000000000000000001000000:0002 08 0:0 00:0 0 0 0 7 1")
	f.Fuzz(func(t *testing.T, line string) {
		e, ok := parseLine([]byte(line))
		if ok && (!e.local.IsValid() || !e.remote.IsValid() || e.local.Addr().Is4In6()) {
			t.Errorf("%+v has no canonical addresses", e)
		}
	})
}

func FuzzParseStat(f *testing.F) {
	f.Add("web", "7", "9")
	f.Add("x) S 1 1 1 (y", "1", "2")
	f.Fuzz(func(t *testing.T, name, parent, session string) {
		s, ok := parseStat([]byte("42 (" + name + ") S " + parent + " 8 " + session + " 0 -1"))
		if !ok || strings.Contains(parent+session, ")") || len(strings.Fields(parent)) != 1 || strings.Fields(parent)[0] != parent {
			return
		}
		if p, ok := parseUint([]byte(parent), 10, 31); !ok || int(p) != s.parent {
			t.Errorf("parent %q was read as %d", parent, s.parent)
		}
	})
}
