package gate_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"merlon"
)

const capturedIntent = `
trustDomain: shop.example
services:
  web: {callers: {}}
  chat: {address: ["10.9.0.1:80", "[fd09::1]:80", "dns:localhost:81"], operations: {room: GET /}, callers: {web: all}}
  shop: {address: "10.9.0.2:80", operations: {room: GET /}, callers: {web: all}}
  vault: {address: "10.9.0.3:80", operations: {room: GET /}}
  ledger: {address: "10.9.0.4:5432", protocol: tcp, callers: {web: all}}
external:
  lan: {hosts: ["10.9.0.5:5432"], protocol: tcp, callers: {web: all}}
`

// TestCaptured: where the application was going says which service it means. A Host
// that names another is no way to that, and what leads nowhere gets not a byte.
func TestCaptured(t *testing.T) {
	t.Parallel()
	ledger := greet(t, "ledger ready\n")
	var to atomic.Value
	s := setup{
		apps:      map[string]http.Handler{"chat": echo("chat"), "shop": echo("shop"), "vault": echo("vault")},
		addresses: map[string]string{"ledger": ledger.Addr().String(), "lan": ledger.Addr().String()},
		captured: func(net.Conn) (netip.AddrPort, error) {
			if text := to.Load().(string); text != "" {
				return netip.MustParseAddrPort(text), nil
			}
			return netip.AddrPort{}, errors.New("nothing brought it here")
		},
	}
	e := s.start(t, capturedIntent)
	place := merlon.Place{Service: "web"}
	door := listen(t)
	go e.gates[place].ServeCaptured(door)
	get := func(host string) string { return "GET / HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n\r\n" }
	for _, tt := range []struct{ to, send, want string }{
		{"10.9.0.1:80", get("chat"), "200"},
		{"10.9.0.1:80", get("10.9.0.1"), "200"},
		{"10.9.0.1:80", get("10.9.0.1:80"), "200"},
		{"[fd09::1]:80", get("[fd09::1]"), "200"},
		{"[::ffff:10.9.0.1]:80", get("chat"), "200"},
		{"127.0.0.1:81", get("localhost:81"), "200"},
		{"10.9.0.1:80", get("shop"), "misdirected"},
		{"10.9.0.1:80", get("vault"), "misdirected"},
		{"10.9.0.1:80", get("10.9.0.2"), "misdirected"},
		{"10.9.0.1:80", get("10.9.0.1:81"), "misdirected"},
		{"10.9.0.1:80", get("evil.example"), "misdirected"},
		{"10.9.0.1:80", "GET http://shop/ HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n", "misdirected"},
		{"10.9.0.1:80", connect("shop:80"), "connect_not_spoken"},
		{"10.9.0.4:5432", "", "ledger ready"},
		{"10.9.0.5:5432", "", "ledger ready"},
		{"10.9.0.4:5433", get("ledger"), "closed"},
		{"10.9.0.1:8080", get("chat"), "closed"},
		{"10.9.0.3:80", get("vault"), "closed"}, // no rule: its address is not even known here
		{"10.9.9.9:80", get("chat"), "closed"},
		{"169.254.169.254:80", get("chat"), "closed"},
		{"", get("chat"), "closed"},
	} {
		to.Store(tt.to)
		c := dial(t, door.Addr().String())
		c.SetDeadline(time.Now().Add(30 * time.Second))
		io.WriteString(c, tt.send)
		var said string
		if strings.HasPrefix(tt.want, "ledger") {
			said, _ = bufio.NewReader(c).ReadString('\n')
		} else {
			text, _ := io.ReadAll(c)
			said = string(text)
		}
		if tt.want == "closed" {
			if said != "" {
				t.Errorf("%s %q: the gate says %q to who speaks a protocol that nobody knows", tt.to, tt.send, said)
			}
		} else if !strings.Contains(said, tt.want) {
			t.Errorf("%s %q: %q, want %s", tt.to, tt.send, said, tt.want)
		}
		c.Close()
	}
	e.stop()
	denied := map[merlon.Reason]int{}
	for _, r := range e.evidence(place) {
		if r.Verdict.Effect != merlon.Allow {
			denied[r.Verdict.Reason]++
		}
	}
	if denied["misdirected"] != 6 || denied[merlon.ReasonNoService] != 5 {
		t.Errorf("recorded %v", denied)
	}
}
