package http1

import (
	"strings"
	"testing"
)

// TestSlowDelivery: each byte is looked at once, so a head that comes byte by
// byte costs as much as its length, not its square.
func TestSlowDelivery(t *testing.T) {
	t.Parallel()
	raw := []byte("GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: "+strings.Repeat("y", 97)+"\r\n", 90) + "\r\n")
	var r Request
	for i := 1; i < len(raw); i++ {
		if n, err := r.Parse(raw[:i], Limits{}); n != 0 || err != nil {
			t.Fatalf("after %d bytes: %d, %v", i, n, err)
		}
		if r.seen != i || len(r.Fields) != 0 {
			t.Fatalf("after %d bytes: %d seen, %d fields parsed", i, r.seen, len(r.Fields))
		}
	}
	if n, err := r.Parse(raw, Limits{}); n != len(raw) || err != nil || r.seen != 0 {
		t.Errorf("%d, %v, %d seen", n, err, r.seen)
	}
	var p Response
	raw = append([]byte("HTTP/1.1 200 OK\r\n"), raw[len("GET / HTTP/1.1\r\nHost: a\r\n"):]...)
	for i := 1; i < len(raw); i++ {
		if n, err := p.Parse(raw[:i], "GET", Limits{}); n != 0 || err != nil || p.seen != i {
			t.Fatalf("response after %d bytes: %d, %v, %d seen", i, n, err, p.seen)
		}
	}
}

// TestPlain compares the eight-at-a-time scan with the table, for every byte at
// every place.
func TestPlain(t *testing.T) {
	t.Parallel()
	for c := range 256 {
		for at := range 20 {
			for pad := range 10 {
				buf := []byte(strings.Repeat("~", at) + string([]byte{byte(c)}) + strings.Repeat(" ", pad) + "\r\n")
				want := at
				if is(byte(c), text) {
					want = at + 1 + pad
				}
				if got := plain(buf, 0); got != want {
					t.Fatalf("byte %#x at %d of %d: stopped at %d, want %d", c, at, len(buf), got, want)
				}
			}
		}
	}
}
