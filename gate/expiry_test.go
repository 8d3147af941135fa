package gate_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"merlon"
)

// svidAt is an SVID as the authority issued it at that time.
func (e *estate) svidAt(id string, at time.Time) *tls.Certificate {
	e.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		e.t.Fatal(err)
	}
	chain, _, err := e.auth.Issue(id, key.Public(), at)
	if err != nil {
		e.t.Fatal(err)
	}
	return &tls.Certificate{Certificate: chain, PrivateKey: key}
}

// TestExpiredInbound: a caller's connection carries no call beyond the end of the
// certificate that was shown on it, whatever the caller makes of being told.
func TestExpiredInbound(t *testing.T) {
	t.Parallel()
	const life = 3 * time.Second
	e := setup{apps: shopApps(), lifetime: life}.start(t, shop)
	open := func(protocol string) (net.Conn, time.Time) {
		t.Helper()
		svid := e.svidAt("spiffe://shop.example/web", time.Now())
		c, err := tls.Dial("tcp", e.in["orders"], &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*svid}, NextProtos: []string{protocol}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c, time.Now().Add(life)
	}
	c1, _ := open("http/1.1")
	c2, ends := open("h2")
	one := newWire(t, c1)
	two := &frames2{Framer: xhttp2.NewFramer(c2, c2), Conn: c2}
	two.enc = hpack.NewEncoder(&two.block)
	c2.SetDeadline(time.Now().Add(patience))
	io.WriteString(c2, xhttp2.ClientPreface)
	two.WriteSettings()
	const request = "GET /orders/1 HTTP/1.1\r\nHost: orders\r\n\r\n"
	if a := one.ask(request); a.status != 200 {
		t.Fatalf("before the end: %d %s", a.status, a.reason)
	}
	two.request(1, true, "GET", "/orders/1")
	if s := two.status(t); s != "200" {
		t.Fatalf("before the end, over HTTP/2: %s", s)
	}
	time.Sleep(time.Until(ends)) // nothing but time ends a certificate
	if a := one.ask(request); a.status != 403 || a.reason != "peer_expired" || !one.ended() {
		t.Errorf("after the end: %d %s", a.status, a.reason)
	}
	two.request(3, true, "GET", "/orders/1")
	if s := two.status(t); s != "403" && s != "GOAWAY" {
		t.Errorf("after the end, over HTTP/2: %s", s)
	}
	e.stop()
	if list := e.evidence(merlon.Place{Service: "orders"}); len(list) < 3 || list[2].Verdict.Reason != "peer_expired" {
		t.Errorf("%+v", list)
	}
}

// status reads to the status of the next answer, or to the end of the connection.
func (f *frames2) status(t *testing.T) (status string) {
	t.Helper()
	d := hpack.NewDecoder(4096, func(h hpack.HeaderField) {
		if h.Name == ":status" {
			status = h.Value
		}
	})
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return err.Error()
		}
		switch frame := frame.(type) {
		case *xhttp2.HeadersFrame:
			if d.Write(frame.HeaderBlockFragment()); status != "" {
				return status
			}
		case *xhttp2.GoAwayFrame:
			return "GOAWAY"
		}
	}
}

// TestExpiredOwn: a gate whose own certificate has ended sends no call, over pooled
// connections as little as over new ones, and says why; nobody is ejected for it,
// so that calls go on when there is another.
func TestExpiredOwn(t *testing.T) {
	t.Parallel()
	const life = 3 * time.Second
	text := strings.Replace(shop, "  ledger:", "  pay: {address: '127.0.0.1:1', protocol: http2, operations: {pay: POST /pay}, callers: {web: all}}\n  ledger:", 1)
	apps := shopApps()
	apps["pay"] = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "paid") })
	e := setup{apps: apps, lifetime: life}.start(t, text)
	web := e.as("web")
	calls := map[string]string{"http://orders/orders": "POST", "http://pay/pay": "POST"}
	for url, method := range calls {
		if a := do(t, web, method, url); a.status != 200 {
			t.Fatalf("%s: %d %s", url, a.status, a.reason)
		}
	}
	e.auth.Close() // nothing is renewed any more
	time.Sleep(life)
	for range 8 { // more often than failures eject
		for url, method := range calls {
			if a := do(t, web, method, url); a.status != 503 || a.reason != "svid_expired" {
				t.Errorf("%s: %d %s", url, a.status, a.reason)
			}
		}
	}
	e.stop()
	n := 0
	for _, r := range e.evidence(merlon.Place{Service: "web"}) {
		if r.Verdict.Reason == "svid_expired" && strings.Contains(r.Detail, "has ended and was not renewed") {
			n++
		}
	}
	if n != 16 {
		t.Errorf("%d calls in the record say why", n)
	}
}

// TestExpiredUpstream: a gate that shows a certificate that has ended is not spoken to.
func TestExpiredUpstream(t *testing.T) {
	t.Parallel()
	e := setup{apps: shopApps(), lifetime: 3 * time.Second}.start(t, shop)
	old := e.svidAt("spiffe://shop.example/orders", time.Now().Add(-30*time.Second))
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{*old}, ClientAuth: tls.RequireAnyClientCert})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.(*tls.Conn).Handshake()
			c.Close()
		}
	}()
	e.in["orders"] = l.Addr().String()
	place := merlon.Place{Service: "web"}
	if err := e.gates[place].Swap(e.orders(load(t, shop, nil), place)); err != nil {
		t.Fatal(err)
	}
	if a := do(t, e.as("web"), "POST", "http://orders/orders"); a.status != 502 || a.reason != "upstream_expired" {
		t.Errorf("%d %s", a.status, a.reason)
	}
	e.stop()
	if list := e.evidence(place); len(list) != 1 || !strings.Contains(list[0].Detail, "has expired") {
		t.Errorf("%+v", list)
	}
}
