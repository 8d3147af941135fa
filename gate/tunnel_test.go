package gate_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"merlon"
	"merlon/gate"
)

const chatIntent = `
trustDomain: shop.example
gateway: {hosts: [shop.example], certificate: CERT}
services:
  web: {}
  chat:
    operations: {room: "GET /rooms/{id}", plain: GET /plain, say: POST /say}
    webSockets: [room]
    callers: {anyone: all, web: all}
`

// rfcKey and rfcAccept are the example of RFC 6455 1.3.
const (
	rfcKey    = "dGhlIHNhbXBsZSBub25jZQ=="
	rfcAccept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
)

// handshake is a WebSocket's, but for the fields that are to be otherwise; one
// with an empty value is left out.
func handshake(method, path string, otherwise ...string) string {
	names := []string{"Host", "Upgrade", "Connection", "Sec-WebSocket-Key", "Sec-WebSocket-Version"}
	values := map[string]string{"Host": "shop.example", "Upgrade": "websocket", "Connection": "Upgrade",
		"Sec-WebSocket-Key": rfcKey, "Sec-WebSocket-Version": "13"}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\n", method, path)
	var more string
	for i := 0; i < len(otherwise); i += 2 {
		if _, known := values[otherwise[i]]; known {
			values[otherwise[i]] = otherwise[i+1]
		} else {
			more += otherwise[i] + ": " + otherwise[i+1] + "\r\n"
		}
	}
	for _, name := range names {
		if values[name] != "" {
			b.WriteString(name + ": " + values[name] + "\r\n")
		}
	}
	return b.String() + more + "\r\n"
}

// chat is an app that accepts WebSockets, and echoes bytes: what they mean is no
// business of a gate's.
func chat() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
			fmt.Fprint(w, "plain")
			return
		}
		nc, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		defer nc.Close()
		switch r.URL.Query().Get("answer") {
		case "200":
			io.WriteString(nc, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			return
		case "403":
			io.WriteString(nc, "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
			return
		case "accept":
			io.WriteString(nc, "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "+rfcKey+"\r\n\r\n")
			return
		case "other":
			io.WriteString(nc, "HTTP/1.1 101 X\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "+rfcAccept+"\r\n\r\n")
			return
		}
		fmt.Fprintf(nc, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\nSec-WebSocket-Protocol: chat\r\n\r\nhello ",
			gate.AcceptKey(r.Header.Get("Sec-WebSocket-Key")))
		io.Copy(nc, rw) // and then the end
	})
}

func startChat(t testing.TB, certificate string, bounds ...gate.Bounds) *estate {
	return start(t, strings.Replace(chatIntent, "CERT", certificate, 1), map[string]http.Handler{"chat": chat()}, bounds...)
}

// peers speak to a gate, with a deadline far off.
func (e *estate) open(request string) (net.Conn, *bufio.Reader, *http.Response) {
	e.t.Helper()
	return converse(e.t, e.dialEdge(), request)
}

func converse(t testing.TB, c net.Conn, request string) (net.Conn, *bufio.Reader, *http.Response) {
	t.Helper()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	method, _, _ := strings.Cut(request, " ")
	res, err := http.ReadResponse(r, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%.60q: %v", request, err)
	}
	return c, r, res
}

func expect(t testing.TB, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("read %.100q, %v; want %.100q", got[:n], err, want)
	}
}

func closeWrite(t testing.TB, c net.Conn) {
	t.Helper()
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
}

// TestWebSocket goes through two gates. What the client sends early is kept until
// the service has agreed, and half of a tunnel may end before the other.
func TestWebSocket(t *testing.T) {
	t.Parallel()
	for _, certificate := range []string{"self-signed", "none"} {
		e := startChat(t, certificate)
		c, r, res := e.open(handshake("GET", "/rooms/1") + "early GET /say HTTP/1.1\r\n\r\n")
		if res.StatusCode != 101 || res.Header.Get("Sec-WebSocket-Accept") != rfcAccept ||
			res.Header.Get("Sec-WebSocket-Protocol") != "chat" || res.Header.Get("Merlon-Request-Id") == "" {
			t.Fatalf("answer %v", res)
		}
		expect(t, r, "hello early GET /say HTTP/1.1\r\n\r\n")
		big := strings.Repeat("0123456789abcdef", 1<<16)
		go io.WriteString(c, big)
		expect(t, r, big)
		closeWrite(t, c)
		if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
			t.Errorf("after the end: %q, %v", rest, err)
		}
		e.stop()
		for _, place := range []merlon.Place{merlon.Edge, {Service: "chat"}} {
			all := e.evidence(place)
			if len(all) != 2 || all[0].ID != all[1].ID || all[0].Detail != "tunnel opened" || all[1].Detail != "tunnel ended: the client ended it" ||
				all[1].BytesIn != int64(len(big)+len("early GET /say HTTP/1.1\r\n\r\n")) || all[1].BytesOut != all[1].BytesIn+int64(len("hello ")) ||
				all[0].Status != 101 || all[0].Verdict.Rule != "chat: anyone" || all[0].Path != "/rooms/1" || all[1].Path != "/rooms/1" {
				t.Errorf("%v recorded %+v", place, all)
			}
		}
	}
}

// TestWebSocketRefused: who asks for a WebSocket gets one or a reason, and what
// follows the request is never taken for another.
func TestWebSocketRefused(t *testing.T) {
	t.Parallel()
	e := startChat(t, "none")
	for _, tt := range []struct {
		name, request string
		status        int
		reason        string
	}{
		{"an operation without", handshake("GET", "/plain"), 501, "upgrade_not_spoken"},
		{"another method", handshake("POST", "/say"), 501, "upgrade_not_spoken"},
		{"another protocol", handshake("GET", "/rooms/1", "Upgrade", "tls/1.0"), 501, "upgrade_not_spoken"},
		{"two protocols", handshake("GET", "/rooms/1", "Upgrade", "websocket, h2c"), 501, "upgrade_not_spoken"},
		{"no operation", handshake("GET", "/nowhere"), 404, "no_operation"},
		{"no key", handshake("GET", "/rooms/1", "Sec-WebSocket-Key", ""), 400, "websocket_invalid"},
		{"two keys", handshake("GET", "/rooms/1", "sec-websocket-key", rfcKey), 400, "websocket_invalid"},
		{"a short key", handshake("GET", "/rooms/1", "Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25j"), 400, "websocket_invalid"},
		{"a long key", handshake("GET", "/rooms/1", "Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZTE3"), 400, "websocket_invalid"},
		{"a loose key", handshake("GET", "/rooms/1", "Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZR=="), 400, "websocket_invalid"},
		{"a key of the connection's", handshake("GET", "/rooms/1", "Connection", "Upgrade, Sec-WebSocket-Key"), 400, "websocket_invalid"},
		{"an old version", handshake("GET", "/rooms/1", "Sec-WebSocket-Version", "8"), 426, "websocket_version"},
		{"no version", handshake("GET", "/rooms/1", "Sec-WebSocket-Version", ""), 426, "websocket_version"},
		{"a body", handshake("GET", "/rooms/1", "Content-Length", "5") + "hello", 400, "upgrade_with_body"},
		{"chunks", handshake("GET", "/rooms/1", "Transfer-Encoding", "chunked") + "0\r\n\r\n", 400, "upgrade_with_body"},
		{"the service says 200", handshake("GET", "/rooms/1?answer=200"), 502, "upstream_invalid"},
		{"the service says 403", handshake("GET", "/rooms/1?answer=403"), 403, ""},
		{"a wrong accept", handshake("GET", "/rooms/1?answer=accept"), 502, "upstream_invalid"},
		{"another protocol's 101", handshake("GET", "/rooms/1?answer=other"), 502, "upstream_invalid"},
		{"CONNECT", "CONNECT chat:80 HTTP/1.1\r\nHost: chat:80\r\n\r\n", 501, "connect_not_spoken"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, r, res := converse(t, e.dialEdge(), tt.request+"GET /plain HTTP/1.1\r\nHost: shop.example\r\n\r\n")
			if res.StatusCode != tt.status || res.Header.Get("Merlon-Reason") != tt.reason {
				t.Fatalf("got %d %s, want %d %s", res.StatusCode, res.Header.Get("Merlon-Reason"), tt.status, tt.reason)
			}
			if v := res.Header.Get("Sec-WebSocket-Version"); (v == "13") != (tt.status == 426) {
				t.Errorf("version %q", v)
			}
			io.Copy(io.Discard, res.Body)
			if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
				t.Errorf("what followed was answered: %q, %v", rest, err)
			}
		})
	}
	// h2c is an offer that may be ignored, and a switch that nobody asked for is
	// not one.
	if _, _, res := e.open(handshake("GET", "/plain", "Upgrade", "h2c", "Connection", "Upgrade, HTTP2-Settings", "HTTP2-Settings", "AAMAAABkAAQAAP__")); res.StatusCode != 200 {
		t.Errorf("an offer of h2c: %d", res.StatusCode)
	}
}

// TestWebSocketUnasked: an upstream that switches protocols in answer to an
// ordinary request.
func TestWebSocketUnasked(t *testing.T) {
	t.Parallel()
	e := start(t, strings.Replace(chatIntent, "CERT", "none", 1), map[string]http.Handler{"chat": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		nc, _, _ := w.(http.Hijacker).Hijack()
		defer nc.Close()
		fmt.Fprintf(nc, "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", rfcAccept)
	})})
	for _, request := range []string{"GET /rooms/1 HTTP/1.1\r\nHost: shop.example\r\n\r\n", handshake("GET", "/plain", "Connection", "keep-alive")} {
		if _, _, res := e.open(request); res.StatusCode != 502 || res.Header.Get("Merlon-Reason") != "upstream_invalid" {
			t.Errorf("answer %v", res)
		}
	}
}

// TestTunnelRevoked: orders that do not allow a tunnel any more end it at once,
// and no others do.
func TestTunnelRevoked(t *testing.T) {
	t.Parallel()
	text := strings.Replace(chatIntent, "CERT", "none", 1)
	for name, change := range map[string][2]string{
		"the rule is gone":      {"callers: {anyone: all, web: all}", "callers: {anyone: [plain], web: all}"},
		"no WebSockets there":   {"webSockets: [room]", "webSockets: [plain]"},
		"another path":          {"/rooms/{id}", "/halls/{id}"},
		"a guardrail":           {"services:", "guardrails: [{name: no, deny: anyone -> chat.room}]\nservices:"},
		"the operation is gone": {"room: \"GET /rooms/{id}\", ", "room: GET /other, every: \"GET /{rest...}\", "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := startChat(t, "none")
			c, r, _ := e.open(handshake("GET", "/rooms/1"))
			expect(t, r, "hello ")
			e.swap(strings.Replace(text, "web: {}", "web: {}\n  other: {operations: {a: GET /a}}", 1))
			io.WriteString(c, "still there")
			expect(t, r, "still there")
			next := strings.Replace(text, change[0], change[1], 1)
			if next == text {
				t.Fatal("nothing changes")
			}
			e.swap(next)
			if n, err := r.Read(make([]byte, 1)); n > 0 || err == nil {
				t.Fatalf("the tunnel goes on")
			}
			e.stop()
			revoked := false // by the gate that was quicker, at least
			for _, place := range []merlon.Place{merlon.Edge, {Service: "chat"}} {
				all := e.evidence(place)
				last := all[len(all)-1]
				revoked = revoked || last.Verdict.Effect == merlon.Deny && last.Verdict.Reason == gate.ReasonRevoked
			}
			if !revoked {
				t.Error("nobody recorded that the tunnel was revoked")
			}
		})
	}
}

// TestTunnelsAndSwaps: changes that are about something else drop no tunnel, not
// a byte of any, and one that is about all of them drops all.
func TestTunnelsAndSwaps(t *testing.T) {
	t.Parallel()
	e := startChat(t, "none")
	text := strings.Replace(chatIntent, "CERT", "none", 1)
	const tunnels, swaps = 40, 25
	var talking, ended sync.WaitGroup
	quit := make(chan struct{})
	for i := range tunnels {
		c, r, res := e.open(handshake("GET", "/rooms/1"))
		if res.StatusCode != 101 {
			t.Fatal(res.Status)
		}
		expect(t, r, "hello ")
		talking.Add(1)
		ended.Go(func() {
			piece, got := bytes.Repeat([]byte{byte(i)}, 100+1000*i), make([]byte, 100+1000*i)
			for n := 0; ; n++ {
				_, err := c.Write(piece)
				if err == nil {
					_, err = io.ReadFull(r, got)
				}
				select {
				case <-quit:
					if err != nil {
						return
					}
					continue
				default:
				}
				if err != nil || !bytes.Equal(got, piece) {
					t.Errorf("tunnel %d, piece %d: %v", i, n, err)
				}
				if n == 0 {
					talking.Done()
				}
				if err != nil {
					return
				}
			}
		})
	}
	talking.Wait()
	for i := range swaps {
		e.swap(strings.Replace(text, "web: {}", fmt.Sprintf("web: {}\n  other%d: {operations: {a: GET /a}, callers: {anyone: all}}", i%3), 1))
	}
	close(quit)
	e.swap(strings.Replace(text, "webSockets: [room]", "", 1))
	ended.Wait()
}

// TestTunnelQuiet: one direction with bytes keeps the other open.
func TestTunnelQuiet(t *testing.T) {
	t.Parallel()
	e := startChat(t, "none", gate.Bounds{Quiet: 2 * time.Second, Stall: 100 * time.Millisecond})
	_, r, _ := e.open(handshake("GET", "/rooms/1"))
	expect(t, r, "hello ")
	if n, err := r.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Fatal("the tunnel goes on")
	}
	e.stop()
	all := e.evidence(merlon.Edge)
	if last := all[len(all)-1]; last.Verdict.Reason != gate.ReasonTunnelQuiet && last.Verdict.Reason != gate.ReasonTunnelBroken || last.Duration < int64(time.Second) {
		t.Errorf("recorded %+v", last)
	}
}

// TestTunnelDrain: tunnels may finish until the drain's deadline.
func TestTunnelDrain(t *testing.T) {
	t.Parallel()
	e := startChat(t, "none")
	first, r1, _ := e.open(handshake("GET", "/rooms/1"))
	_, r2, _ := e.open(handshake("GET", "/rooms/1"))
	expect(t, r1, "hello ")
	expect(t, r2, "hello ")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.gates[merlon.Edge].Drain(ctx) }()
	until(t, "the drain", func() bool {
		c, err := net.Dial("tcp", e.edge)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	io.WriteString(first, "still there")
	expect(t, r1, "still there")
	closeWrite(t, first)
	if _, err := io.ReadAll(r1); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err == nil {
		t.Error("the drain was not cut short")
	}
	if _, err := r2.Read(make([]byte, 1)); err == nil {
		t.Error("the tunnel goes on")
	}
	e.stop()
	ended := 0
	for _, r := range e.evidence(merlon.Edge) {
		if strings.HasPrefix(r.Detail, "tunnel ended") {
			ended++
		}
	}
	if ended != 2 {
		t.Errorf("%d ends are recorded", ended)
	}
}
