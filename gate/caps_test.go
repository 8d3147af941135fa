package gate_test

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"merlon/gate"
)

// TestConnectionCaps: connections are bounded for each client and for all.
func TestConnectionCaps(t *testing.T) {
	t.Parallel()
	e := setup{apps: shopApps(), bounds: gate.Bounds{ConnectionsPerClient: 5}}.start(t, plainShop())
	var open []*wire
	for range 5 {
		w := e.wire()
		w.ask(get("/"))
		open = append(open, w)
	}
	if !e.wire().ended() {
		t.Error("a sixth connection of one client is served")
	}
	open[0].Close()
	until(t, "room for another connection", func() bool {
		w := e.wire()
		io.WriteString(w, get("/"))
		_, err := w.receive("GET")
		w.Close()
		return err == nil
	})
	for _, w := range open[1:] {
		if a := w.ask(get("/")); a.status != 200 {
			t.Errorf("a connection within the cap: %d %q", a.status, a.reason)
		}
	}
	all := setup{apps: shopApps(), bounds: gate.Bounds{Connections: 3}}.start(t, plainShop())
	for range 3 {
		all.wire().ask(get("/"))
	}
	if !all.wire().ended() {
		t.Error("a connection beyond all of the gate's is served")
	}
}

// TestClass10StreamsPerClient: streams count as connections do, so that over
// HTTP/2 one client has no more of the gate than over HTTP/1.1.
func TestClass10StreamsPerClient(t *testing.T) {
	t.Parallel()
	e := setup{apps: shopApps(), bounds: gate.Bounds{ConnectionsPerClient: 10}}.start(t, plainShop())
	f := dial2(t, e.edge)
	for i := range 15 {
		f.request(uint32(2*i+1), false, "POST", "/send")
	}
	for refused := 0; refused < 6; { // the connection is one of the ten
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatalf("%v after %d refusals", err, refused)
		}
		if reset, ok := frame.(*xhttp2.RSTStreamFrame); ok {
			if reset.ErrCode != xhttp2.ErrCodeRefusedStream || reset.StreamID < 19 {
				t.Errorf("%v", reset)
			}
			refused++
		}
	}
	if !e.wire().ended() {
		t.Error("another connection of the client is served")
	}
	f.WriteData(1, true, nil)
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if h := frame.Header(); h.StreamID == 1 && h.Flags.Has(xhttp2.FlagDataEndStream) {
			break
		}
	}
	until(t, "room for another connection", func() bool {
		w := e.wire()
		defer w.Close()
		io.WriteString(w, get("/"))
		_, err := w.receive("GET")
		return err == nil
	})
}

// TestCapsBehindProxies: who is behind a proxy is bounded, and not the proxy.
func TestCapsBehindProxies(t *testing.T) {
	t.Parallel()
	proxied := func(header string) string {
		return strings.Replace(plainShop(), "certificate: none", "certificate: none\n  "+header+": [127.0.0.1/32]", 1)
	}
	e := setup{apps: shopApps(), bounds: gate.Bounds{ConnectionsPerClient: 5}}.start(t, proxied("trustedProxies"))
	for i := range 10 { // each is idle, but for the first five
		w := e.wire()
		if a := w.ask(get("/", fmt.Sprint("X-Forwarded-For: 192.0.2.", i))); a.status != 200 {
			t.Fatalf("connection %d of the proxy: %d %s", i, a.status, a.reason)
		}
	}
	f := dial2(t, e.edge)
	for i := range 12 {
		f.request(uint32(2*i+1), false, "POST", "/send", "x-forwarded-for=192.0.2."+fmt.Sprint(i/10))
	}
	for range 5 {
		frame, err := f.until(xhttp2.FrameHeaders)
		if err != nil || frame.Header().StreamID > 19 {
			t.Fatalf("refused is %v, %v", frame, err)
		}
		fields, err := hpack.NewDecoder(4096, nil).DecodeFull(frame.(*xhttp2.HeadersFrame).HeaderBlockFragment())
		if err != nil || fields[0].Value != "429" || !slices.Contains(fields, hpack.HeaderField{Name: "merlon-reason", Value: "client_busy"}) {
			t.Errorf("%v %v", fields, err)
		}
	}
	busy := func() bool { return e.wire().ask(get("/", "X-Forwarded-For: 192.0.2.0")).status == 429 }
	if !busy() {
		t.Error("one more call of that client is served")
	}
	f.Conn.Close()
	until(t, "the end of its calls", func() bool { return !busy() })

	e = setup{apps: shopApps(), bounds: gate.Bounds{ConnectionsPerClient: 5}}.start(t, proxied("proxyProtocol"))
	from := func(client int) *wire {
		w := e.wire()
		io.WriteString(w, fmt.Sprintf("PROXY TCP4 192.0.2.%d 192.0.2.100 4711 443\r\n", client)+get("/"))
		return w
	}
	for i := range 10 {
		if a, err := from(i / 5).receive("GET"); err != nil || a.status != 200 {
			t.Errorf("connection %d through the balancer: %d %v", i, a.status, err)
		}
	}
	if !from(0).ended() {
		t.Error("a sixth connection of one client is served")
	}
}

// TestSlowBodies: bodies on their way never hold all connections of an endpoint,
// and those of one client hold few of them.
func TestSlowBodies(t *testing.T) {
	t.Parallel()
	var begun atomic.Int64
	app := echo("web")
	apps := map[string]http.Handler{"web": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun.Add(1)
		app.ServeHTTP(w, r)
	})}
	e := setup{apps: apps}.start(t, strings.Replace(plainShop(), "certificate: none", "certificate: none\n  trustedProxies: [127.0.0.1/32]", 1))
	begin := func(client string) *wire {
		w := e.wire()
		w.send("POST /send HTTP/1.1\r\nHost: shop.example\r\nX-Forwarded-For: " + client + "\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
		return w
	}
	var held []*wire
	for range 1024 / 8 {
		held = append(held, begin("192.0.2.1"))
	}
	until(t, "the bodies to be on their way", func() bool { return begun.Load() == 1024/8 })
	if a, err := begin("192.0.2.1").receive("POST"); err != nil || a.status != 503 || a.reason != "bodies_waiting" {
		t.Errorf("one more: %d %s %v", a.status, a.reason, err)
	}
	for _, request := range []string{
		get("/", "X-Forwarded-For: 192.0.2.1"),
		"POST /send HTTP/1.1\r\nHost: shop.example\r\nX-Forwarded-For: 192.0.2.1\r\nContent-Length: 2\r\n\r\nhi",
		"POST /send HTTP/1.1\r\nHost: shop.example\r\nX-Forwarded-For: 192.0.2.2\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
	} {
		if a := e.wire().ask(request); a.status != 200 {
			t.Errorf("%q: %d %s", request, a.status, a.reason)
		}
	}
	for i, w := range held[:3] { // whose answers make room
		if a := w.ask("0\r\n\r\n"); a.status != 200 {
			t.Errorf("body %d: %d %s", i, a.status, a.reason)
		}
	}
	w := begin("192.0.2.1")
	if a := w.ask("0\r\n\r\n"); a.status != 200 {
		t.Errorf("when there is room again: %d %s", a.status, a.reason)
	}
}
