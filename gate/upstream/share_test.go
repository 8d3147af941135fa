package upstream

import (
	"net"
	"net/netip"
	"testing"

	"merlon"
)

// TestShare: bodies on their way leave connections for other calls, and those of
// one client leave some for other bodies.
func TestShare(t *testing.T) {
	t.Parallel()
	c := open(t, Config{MaxConns: 16}, merlon.Endpoint{Address: "192.0.2.1:1"}, merlon.Endpoint{Address: "192.0.2.2:1"})
	client := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}) }
	held := map[netip.Addr]int{}
	for i := range 8 {
		for c.Hold(client(i)) {
			held[client(i)]++
		}
	}
	if len(held) != 6 || held[client(0)] != 4 || held[client(5)] != 4 {
		t.Errorf("held %v, want 24 of 32 in all and 4 for each", held)
	}
	if c.Hold(netip.Addr{}) {
		t.Error("there is room for who has no address")
	}
	for client, n := range held {
		for range n {
			c.LetGo(client)
		}
	}
	if c.bodies.all != 0 || len(c.bodies.of) != 0 {
		t.Errorf("left are %+v", &c.bodies)
	}
	for range 24 {
		if !c.Hold(netip.Addr{}) {
			t.Fatal("no room for who has no address")
		}
	}
	if c.Hold(client(1)) {
		t.Error("there is room in a full share")
	}

	many := open(t, Config{MaxConns: 1, Mux: func(*Conn, func()) (Mux, error) { return nil, net.ErrClosed }}, merlon.Endpoint{Address: "192.0.2.1:1"})
	for range 100 {
		if !many.Hold(client(1)) {
			t.Fatal("streams of a connection are counted as connections")
		}
	}
}
