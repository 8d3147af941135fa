package gate_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"merlon"
	"merlon/gate"
	"merlon/record"
)

// plainShop is shop without TLS in front.
func plainShop() string {
	return strings.Replace(shop, "hosts: [shop.example]", "hosts: [shop.example]\n  certificate: none", 1)
}

// TestSlowClients: who sends a head or a body too slowly, or does not read, is
// cut off, and holds nothing of the application that others need.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	bounds := gate.Bounds{Head: 300 * time.Millisecond, Stall: 400 * time.Millisecond, Idle: 300 * time.Millisecond, Handshake: 300 * time.Millisecond}
	var broken atomic.Int64
	apps := map[string]http.Handler{"web": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			broken.Add(1)
			return
		}
		if r.URL.Path == "/pages/endless" {
			for {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					broken.Add(1)
					return
				}
			}
		}
	})}
	e := setup{apps: apps, bounds: bounds}.start(t, plainShop())
	for name, c := range map[string]struct{ first, drip, reason string }{
		"a head byte by byte":         {"GET / HTTP/1.1\r\nHost: shop.example\r\nX: ", "y", ""},
		"nothing at all":              {"", "", ""},
		"one byte":                    {"G", "", ""},
		"a small body that stops":     {"POST /send HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 10\r\n\r\nx", "", "client_gone"},
		"a large body that stops":     {"POST /send HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 100000\r\n\r\nx", "", "client_gone"},
		"chunks that stop":            {"POST /send HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe", "", "client_gone"},
		"a body after 100 that stops": {"POST /send HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n", "", "client_gone"},
		"a large body in drips":       {"POST /send HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 100000\r\n\r\nx", "y", "client_gone"},
		"chunks in drips":             {"POST /send HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n", "client_gone"},
		"a keep-alive that idles":     {get("/"), "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWire(t, dial(t, e.edge))
			w.send(c.first)
			stop := make(chan struct{})
			defer close(stop)
			if c.drip != "" {
				go func() {
					tick := time.NewTicker(20 * time.Millisecond)
					defer tick.Stop()
					for {
						select {
						case <-stop:
							return
						case <-tick.C:
							io.WriteString(w.Conn, c.drip)
						}
					}
				}()
			}
			w.SetReadDeadline(time.Now().Add(8 * time.Second))
			all, err := io.ReadAll(w.r)
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Fatalf("goes on after 8 seconds; got %q", all)
			}
			if c.reason != "" && !bytes.Contains(all, []byte("Merlon-Reason: "+c.reason+"\r\n")) {
				t.Errorf("answered %q, want reason %q", all, c.reason)
			}
		})
	}
	t.Run("a reader that stops", func(t *testing.T) {
		t.Parallel()
		before := broken.Load()
		w := newWire(t, dial(t, e.edge))
		w.send(get("/pages/endless"))
		until(t, "the endless answer to be cut", func() bool { return broken.Load() > before })
	})
}

// TestSlowClientsAreNoSlowEndpoints: what clients do slowly is never held
// against the application: nobody can have an endpoint ejected that way.
func TestSlowClientsAreNoSlowEndpoints(t *testing.T) {
	t.Parallel()
	text := strings.Replace(plainShop(), "callers: {anyone: all}", "callers: {anyone: all}\n    timeout: 2s", 1)
	e := setup{apps: shopApps()}.start(t, text)
	var uploads sync.WaitGroup
	for range 8 { // more than eject an endpoint
		uploads.Go(func() {
			w := e.wire()
			io.WriteString(w, "POST /send HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
			// Longer than the service may take to answer, and than the sweeper sleeps beyond that.
			<-time.After(2500 * time.Millisecond)
			io.WriteString(w, "5\r\nhello\r\n0\r\n\r\n")
			if a, err := w.receive("POST"); err != nil || a.status != 200 || !strings.Contains(a.body, `"Body":10`) {
				t.Errorf("a slow upload: %d %q %q %v", a.status, a.reason, a.body, err)
			}
		})
	}
	uploads.Wait()
}

// TestHeadFloods: heads beyond the bounds are refused early.
func TestHeadFloods(t *testing.T) {
	t.Parallel()
	e := start(t, plainShop(), shopApps())
	for name, c := range map[string]struct {
		request string
		status  int
	}{
		"many fields":      {get("/", strings.Repeat("X: y\r\n", 200)+"Z: z"), 431},
		"one large field":  {get("/", "X: "+strings.Repeat("y", 20<<10)), 431},
		"a large head":     {get("/", strings.Repeat("X: "+strings.Repeat("y", 1000)+"\r\n", 30)+"Z: z"), 431},
		"a long target":    {get("/pages/" + strings.Repeat("a", 9<<10)), 414},
		"a long name":      {get("/", strings.Repeat("X", 200)+": y"), 431},
		"a long method":    {strings.Repeat("G", 30) + " / HTTP/1.1\r\nHost: shop.example\r\n\r\n", 501},
		"an endless line":  {"GET /" + strings.Repeat("a", 40<<10), 414},
		"TLS":              {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400},
		"HTTP/2":           {"GET / HTTP/2.0\r\nHost: shop.example\r\n\r\n", 505},
		"WebSocket":        {get("/", "Connection: Upgrade", "Upgrade: websocket"), 501},
		"CONNECT":          {"CONNECT shop.example:443 HTTP/1.1\r\nHost: shop.example\r\n\r\n", 501},
		"TRACE":            {"TRACE / HTTP/1.1\r\nHost: shop.example\r\n\r\n", 501},
		"asterisk":         {"OPTIONS * HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400},
		"an unknown wish":  {get("/", "Expect: money"), 417},
		"HTTP/1.0 chunked": {"POST /send HTTP/1.0\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		"HTTP/1.2":         {"GET / HTTP/1.2\r\nHost: shop.example\r\n\r\n", 505},
		"no host":          {"GET / HTTP/1.1\r\n\r\n", 400},
		"absolute form":    {get("http://shop.example/"), 400},
	} {
		w := e.wire()
		io.WriteString(w, c.request) // may break when the answer is there already
		a, err := w.receive("GET")
		if err != nil || a.status != c.status || a.reason == "" {
			t.Errorf("%s: %d %q %v, want %d", name, a.status, a.reason, err, c.status)
		}
	}
	// The one place where a proxy is spoken to.
	w := newWire(t, dial(t, e.out["web"]))
	if a := w.ask("GET http://orders/orders/1 HTTP/1.1\r\nHost: orders\r\n\r\n"); a.status != 200 || a.seen(t).URI != "/orders/1" {
		t.Errorf("absolute form to a service's own gate: %d %q %s", a.status, a.reason, a.body)
	}
	for _, request := range []string{
		"GET http://orders/orders/1 HTTP/1.1\r\nHost: ledger\r\n\r\n",
		"GET https://orders/orders/1 HTTP/1.1\r\nHost: orders\r\n\r\n",
		"CONNECT orders:443 HTTP/1.1\r\nHost: ledger:443\r\n\r\n",
		"CONNECT nobody:443 HTTP/1.1\r\nHost: nobody:443\r\n\r\n",
		"GET http://user@orders/orders/1 HTTP/1.1\r\nHost: orders\r\n\r\n",
	} {
		if a := newWire(t, dial(t, e.out["web"])).ask(request); a.status < 400 || a.reason == "" {
			t.Errorf("%.40q: %d %q", request, a.status, a.reason)
		}
	}
}

// TestIdleConnections: a thousand idle connections are served when they wake.
func TestIdleConnections(t *testing.T) {
	t.Parallel()
	e := start(t, plainShop(), shopApps())
	var all []net.Conn
	for range 1000 {
		c, err := net.Dial("tcp", e.edge)
		if err != nil {
			t.Skipf("SKIPPED after %d connections: %v", len(all), err)
		}
		defer c.Close()
		all = append(all, c)
	}
	for i := 0; i < len(all); i += 37 {
		if a := newWire(t, all[i]).ask(get("/")); a.status != 200 {
			t.Errorf("connection %d: %d %q", i, a.status, a.reason)
		}
	}
}

// TestPipelining: requests that come in one packet, with bodies of all sizes
// and framings, are answered each in turn.
func TestPipelining(t *testing.T) {
	t.Parallel()
	e := start(t, plainShop(), shopApps())
	large := strings.Repeat("x", 30<<10)
	requests := []struct {
		text string
		uri  string
		body int
	}{
		{get("/pages/1"), "/pages/1", 0},
		{"POST /send HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 5\r\n\r\nhello", "/send", 5},
		{"POST /send HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", "/send", 6},
		{get("/pages/2"), "/pages/2", 0},
		{"POST /send HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 30720\r\n\r\n" + large, "/send", 30720},
		{fmt.Sprintf("POST /send HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n\r\n%x;x=y\r\n%s\r\n0\r\n\r\n", len(large), large), "/send", 30720},
		{"POST /send HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 0\r\n\r\n", "/send", 0},
		{get("/nowhere"), "", 0},
		{"POST /nowhere HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 5\r\n\r\nhello", "", 0},
		{get("/pages/3"), "/pages/3", 0},
	}
	text := ""
	for _, r := range requests {
		text += r.text
	}
	for _, piece := range []int{len(text), 1 << 12, 777, 13} {
		w := e.wire()
		go func() {
			for rest := text; rest != ""; {
				n := min(piece, len(rest))
				io.WriteString(w.Conn, rest[:n])
				rest = rest[n:]
			}
		}()
		for i, r := range requests {
			a, err := w.receive("GET")
			if err != nil {
				t.Fatalf("pieces of %d, answer %d: %v", piece, i, err)
			}
			if r.uri == "" {
				if a.status != 404 {
					t.Errorf("pieces of %d, answer %d: %d %q", piece, i, a.status, a.reason)
				}
				continue
			}
			if s := a.seen(t); s.URI != r.uri || s.Body != r.body {
				t.Errorf("pieces of %d, answer %d: the application saw %s with %d bytes", piece, i, s.URI, s.Body)
			}
		}
	}
}

// TestVersionsAndMethods: answers in the framing that the client can read.
func TestVersionsAndMethods(t *testing.T) {
	t.Parallel()
	apps := map[string]http.Handler{"web": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/pages/204":
			w.WriteHeader(204)
		case "/pages/304":
			w.WriteHeader(304)
		case "/pages/chunked":
			io.WriteString(w, "chu")
			w.(http.Flusher).Flush()
			io.WriteString(w, "nked")
		default:
			io.Copy(io.Discard, r.Body)
			io.WriteString(w, "length!")
		}
	})}
	text := strings.Replace(plainShop(), "page: 'GET /pages/{id}'", "page: 'GET /pages/{id}', look: 'HEAD /pages/{id}'", 1)
	e := setup{apps: apps}.start(t, text)
	for _, c := range []struct {
		request, body  string
		status         int
		length, coding string
		goesOn         bool
	}{
		{"GET /pages/x HTTP/1.1\r\n", "length!", 200, "7", "", true},
		{"GET /pages/x HTTP/1.1\r\nConnection: close\r\n", "length!", 200, "7", "", false},
		{"GET /pages/x HTTP/1.0\r\n", "length!", 200, "7", "", false},
		{"GET /pages/x HTTP/1.0\r\nConnection: keep-alive\r\n", "length!", 200, "7", "", true},
		{"GET /pages/chunked HTTP/1.1\r\n", "chunked", 200, "", "chunked", true},
		{"GET /pages/chunked HTTP/1.0\r\n", "chunked", 200, "", "", false},
		{"GET /pages/chunked HTTP/1.0\r\nConnection: keep-alive\r\n", "chunked", 200, "", "", false},
		{"HEAD /pages/x HTTP/1.1\r\n", "", 200, "7", "", true},
		{"HEAD /pages/chunked HTTP/1.1\r\n", "", 200, "", "", true},
		{"GET /pages/204 HTTP/1.1\r\n", "", 204, "", "", true},
		{"GET /pages/304 HTTP/1.1\r\n", "", 304, "", "", true},
		{"HEAD /nowhere HTTP/1.1\r\n", "", 404, "-", "", true},
		{"GET /pages/x HTTP/1.1\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n", "length!", 200, "7", "", true},
	} {
		w := e.wire()
		method, _, _ := strings.Cut(c.request, " ")
		w.send(c.request + "Host: shop.example\r\n\r\n")
		res, err := http.ReadResponse(w.r, &http.Request{Method: method})
		if err != nil {
			t.Errorf("%q: %v", c.request, err)
			continue
		}
		body, err := io.ReadAll(res.Body)
		if err != nil || string(body) != c.body || res.StatusCode != c.status {
			t.Errorf("%q: %d %q %v", c.request, res.StatusCode, body, err)
		}
		if got := res.Header.Get("Content-Length"); got != c.length && c.length != "-" {
			t.Errorf("%q: Content-Length %q, want %q", c.request, got, c.length)
		}
		if got := strings.Join(res.TransferEncoding, ","); got != c.coding {
			t.Errorf("%q: Transfer-Encoding %q, want %q", c.request, got, c.coding)
		}
		if c.goesOn {
			if a := w.ask(get("/pages/x")); a.body != "length!" {
				t.Errorf("%q: the next answer on the connection is %q", c.request, a.body)
			}
		} else if !w.ended() {
			t.Errorf("%q: the connection goes on", c.request)
		}
	}
}

// TestContinue: a body that waits to be asked for is asked for only when the
// call is allowed.
func TestContinue(t *testing.T) {
	t.Parallel()
	e := start(t, plainShop(), shopApps())
	for _, framing := range []string{"Content-Length: 5", "Content-Length: 20000", "Transfer-Encoding: chunked"} {
		w := e.wire()
		w.send("POST /send HTTP/1.1\r\nHost: shop.example\r\nExpect: 100-continue\r\n" + framing + "\r\n\r\n")
		line, _ := w.r.ReadString('\n')
		if blank, _ := w.r.ReadString('\n'); line != "HTTP/1.1 100 Continue\r\n" || blank != "\r\n" {
			t.Fatalf("%s: %q", framing, line)
		}
		want := 5
		switch framing {
		case "Content-Length: 5":
			w.send("hello")
		case "Content-Length: 20000":
			want = 20000
			w.send(strings.Repeat("x", want))
		default:
			w.send("5\r\nhello\r\n0\r\n\r\n")
		}
		if a, err := w.receive("POST"); err != nil || a.seen(t).Body != want {
			t.Errorf("%s: %v %v", framing, a, err)
		}
	}
	w := e.wire()
	if a := w.ask("POST /nowhere HTTP/1.1\r\nHost: shop.example\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"); a.status != 404 {
		t.Errorf("a refused call is answered with %d", a.status)
	}
	if !w.ended() {
		t.Error("after a refusal in place of 100, the next bytes are a body or a request")
	}
}

// TestFullDuplex: an application that answers while it reads gets and gives
// all, through two gates, with a body larger than all buffers between.
func TestFullDuplex(t *testing.T) {
	t.Parallel()
	address := app(t, func(c net.Conn, r *bufio.Reader) {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		out := httputil.NewChunkedWriter(c)
		io.Copy(out, req.Body)
		out.Close()
		io.WriteString(c, "\r\n")
	})
	e := setup{addresses: map[string]string{"web": address}}.start(t, pages)
	data := make([]byte, 10<<20)
	rand.Read(data)
	w := newWire(t, dial(t, e.edge))
	w.send("POST /pages/a/b/c HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n\r\n")
	go func() {
		out := httputil.NewChunkedWriter(w.Conn)
		for rest := data; len(rest) > 0; {
			n := min(50_000, len(rest))
			out.Write(rest[:n])
			rest = rest[n:]
		}
		out.Close()
		io.WriteString(w.Conn, "\r\n")
	}()
	res, err := http.ReadResponse(w.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(res.Body)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes came back of %d: %v", len(got), len(data), err)
	}
}

// TestEarlyAnswer: an answer that comes before the application has read the
// body reaches a client that sends and sends.
func TestEarlyAnswer(t *testing.T) {
	t.Parallel()
	for name, serve := range map[string]func(net.Conn, *bufio.Reader){
		"and closes": func(c net.Conn, r *bufio.Reader) {
			http.ReadRequest(r)
			io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlarge")
			c.(*net.TCPConn).CloseWrite()
			r.Discard(300 << 10)
		},
		"and reads no more": func(c net.Conn, r *bufio.Reader) {
			http.ReadRequest(r)
			io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nlarge")
			until(t, "the connection to be given up", func() bool { _, err := io.WriteString(c, "x"); return err != nil })
		},
		"and reads all": func(c net.Conn, r *bufio.Reader) {
			req, _ := http.ReadRequest(r)
			io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nlarge")
			io.Copy(io.Discard, req.Body)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := setup{addresses: map[string]string{"web": app(t, serve)}}.start(t, pages)
			for _, framing := range []string{"Content-Length: 10485760", "Transfer-Encoding: chunked"} {
				w := e.wire()
				w.send("POST /pages/a/b/c HTTP/1.1\r\nHost: shop.example\r\n" + framing + "\r\n\r\n")
				go func() {
					piece := make([]byte, 64<<10)
					for range 160 {
						if framing[0] == 'T' {
							io.WriteString(w.Conn, "10000\r\n")
						}
						if _, err := w.Conn.Write(piece); err != nil {
							return
						}
						if framing[0] == 'T' {
							io.WriteString(w.Conn, "\r\n")
						}
					}
				}()
				if a, err := w.receive("POST"); err != nil || a.status != 413 || a.body != "large" {
					t.Errorf("%s: %d %q %v", framing, a.status, a.reason, err)
				}
			}
		})
	}
}

// TestUpstreamThatNeverAnswers: 504 when the service's time is over, whatever
// the upstream does or does not read.
func TestUpstreamThatNeverAnswers(t *testing.T) {
	t.Parallel()
	for name, serve := range map[string]func(net.Conn, *bufio.Reader){
		"reads": func(_ net.Conn, r *bufio.Reader) { io.Copy(io.Discard, r) },
		"does not read": func(c net.Conn, _ *bufio.Reader) {
			until(t, "the end", func() bool { _, err := io.WriteString(c, ""); return err != nil || t.Context().Err() != nil })
		},
		"half a head": func(c net.Conn, r *bufio.Reader) { io.WriteString(c, "HTTP/1.1 200 OK\r\n"); io.Copy(io.Discard, r) },
	} {
		for what, request := range map[string]string{
			"no body":    get("/pages/a/b/c"),
			"a body":     "POST /pages/a/b/c HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 5\r\n\r\nhello",
			"large body": "POST /pages/a/b/c HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 8388608\r\n\r\n" + strings.Repeat("x", 8<<20),
		} {
			t.Run(name+" "+what, func(t *testing.T) {
				t.Parallel()
				e := setup{addresses: map[string]string{"web": app(t, serve)}}.start(t, pages)
				w := e.wire()
				go io.WriteString(w.Conn, request)
				if a, err := w.receive("GET"); err != nil || a.status != 504 || a.reason != "upstream_timeout" {
					t.Errorf("%d %q %v", a.status, a.reason, err)
				}
			})
		}
	}
}

// TestRetries: only what may be repeated is, and only when nothing was heard.
func TestRetries(t *testing.T) {
	t.Parallel()
	var calls sync.Map // nonce -> *atomic.Int64
	address := app(t, func(c net.Conn, r *bufio.Reader) {
		for first := true; ; first = false {
			req := readRequest(r)
			if req == nil {
				return
			}
			nonce := strings.Split(req.URL.Path, "/")[2]
			n, _ := calls.LoadOrStore(nonce, new(atomic.Int64))
			n.(*atomic.Int64).Add(1)
			if strings.HasPrefix(nonce, "half") {
				io.WriteString(c, "HTTP/1.1 20")
				return
			}
			if !first && strings.HasPrefix(nonce, "break") {
				return // without a word, on a connection that has served before
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	text := strings.Replace(pages, "timeout: 1s", "retries: {budget: 0%}", 1)
	e := setup{addresses: map[string]string{"web": address}}.start(t, text)
	for _, c := range []struct {
		method, nonce, body string
		status, calls       int
	}{
		{"GET", "break1", "", 200, 2},
		{"HEAD", "break2", "", 200, 2},
		{"POST", "break3", "", 502, 1},
		{"POST", "break4", "hello", 502, 1},
		{"GET", "half1", "", 502, 1},
	} {
		w := e.wire()
		w.ask(get("/pages/warm/x/y")) // leaves a connection in the pool
		a := w.ask(fmt.Sprintf("%s /pages/%s/x/y HTTP/1.1\r\nHost: shop.example\r\nContent-Length: %d\r\n\r\n%s", c.method, c.nonce, len(c.body), c.body))
		n, _ := calls.LoadOrStore(c.nonce, new(atomic.Int64))
		if got := int(n.(*atomic.Int64).Load()); a.status != c.status || got != c.calls {
			t.Errorf("%s %s: %d %q after %d calls, want %d after %d", c.method, c.nonce, a.status, a.reason, got, c.status, c.calls)
		}
	}
}

// TestRecords: every decision is recorded exactly once, at each place that it
// passed, with its reason, whatever became of the call.
func TestRecords(t *testing.T) {
	t.Parallel()
	address := app(t, confusing)
	bounds := gate.Bounds{Stall: 300 * time.Millisecond}
	e := setup{addresses: map[string]string{"web": address}, bounds: bounds}.start(t, pages)
	type want struct {
		reason string
		status int
		inner  bool
	}
	wanted := map[string]want{} // by request id
	try := func(request string, w want) {
		t.Helper()
		c := e.wire()
		io.WriteString(c, request)
		method, _, _ := strings.Cut(request, " ")
		res, err := http.ReadResponse(c.r, &http.Request{Method: method})
		if err != nil {
			t.Fatalf("%.50q: %v", request, err)
		}
		io.Copy(io.Discard, res.Body)
		id := res.Header.Get("Merlon-Request-Id")
		if _, double := wanted[id]; double || len(id) != 20 {
			t.Fatalf("%.50q: request id %q", request, id)
		}
		w.status = res.StatusCode
		wanted[id] = w
		c.Close()
	}
	post := func(path, fields, body string) string {
		return "POST " + path + " HTTP/1.1\r\nHost: shop.example\r\n" + fields + "\r\n" + body
	}
	try(get("/pages/n/length/100"), want{"allowed", 0, true})
	try(get("/pages/n/chunks/100"), want{"allowed", 0, true})
	try(post("/pages/n/length/100", "Content-Length: 30000\r\n", strings.Repeat("x", 30000)), want{"allowed", 0, true})
	try(get("/nowhere"), want{"no_operation", 0, false})
	try(get("/pages/%00"), want{"path_control", 0, false})
	try("GET  / HTTP/1.1\r\n\r\n", want{"target_invalid", 0, false})
	try(get("/pages/n/length/1", "Upgrade: websocket", "Connection: Upgrade"), want{"upgrade_not_spoken", 0, false})
	try(post("/pages/n/length/1", "Content-Length: 99999999\r\n", ""), want{"body_too_large", 0, false})
	try(get("/pages/n/invalid/10"), want{"allowed", 0, true})                    // what the inner gate answers is an answer
	try(get("/pages/n/silent/10"), want{"allowed or upstream_timeout", 0, true}) // whichever gate is first
	try(get("/pages/n/cut/1000"), want{"upstream_broken", 0, true})
	try(post("/pages/n/length/1", "Transfer-Encoding: chunked\r\n", "zz\r\n"), want{"body_invalid", 0, true})
	try(post("/pages/n/length/1", "Transfer-Encoding: chunked\r\n", "5\r\nhel"), want{"client_gone or allowed", 0, true}) // likewise
	e.stop()
	seen := map[string]int{}
	for _, r := range e.evidence(merlon.Edge) {
		w, known := wanted[r.ID]
		if seen[r.ID]++; !known || seen[r.ID] > 1 {
			t.Errorf("recorded though nobody called, or twice: %+v", r)
			continue
		}
		if !slices.Contains(strings.Split(w.reason, " or "), string(r.Verdict.Reason)) || r.Status != w.status || r.At != "edge" || r.Client != "127.0.0.1" {
			t.Errorf("recorded %q with status %d, want %q with %d: %+v", r.Verdict.Reason, r.Status, w.reason, w.status, r)
		}
	}
	if len(seen) != len(wanted) {
		t.Errorf("%d calls, %d records", len(wanted), len(seen))
	}
	inner := map[string]int{}
	for _, r := range e.evidence(merlon.Place{Service: "web"}) {
		if inner[r.ID]++; inner[r.ID] > 1 || !wanted[r.ID].inner {
			t.Errorf("recorded by the inner gate: %+v", r)
		}
	}
	for id, w := range wanted {
		if w.inner && inner[id] == 0 {
			t.Errorf("the inner gate has no record of %+v", w)
		}
	}
}

// TestAbortsAreRecorded: a client that goes away leaves one record, too.
func TestAbortsAreRecorded(t *testing.T) {
	t.Parallel()
	e := setup{addresses: map[string]string{"web": app(t, confusing)}}.start(t, pages)
	const n = 40
	for i := range n {
		w := e.wire()
		switch i % 4 {
		case 0: // in the middle of the answer
			io.WriteString(w, get("/pages/n/length/5000000"))
			w.r.ReadByte()
			w.Conn.(*net.TCPConn).SetLinger(0)
		case 1: // before it
			io.WriteString(w, get("/pages/n/length/100"))
		case 2: // in the middle of the body
			io.WriteString(w, "POST /pages/n/length/1 HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 100000\r\n\r\nhello")
		case 3:
			io.WriteString(w, "POST /pages/n/length/1 HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel")
			w.Conn.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, w.r)
		}
		w.Close()
	}
	until(t, "all calls to end", func() bool { return scrape(t, e.gates[merlon.Edge]).sum("merlon_requests_total") == n })
	e.stop()
	if got := len(e.evidence(merlon.Edge)); got != n {
		t.Errorf("%d calls, %d records", n, got)
	}
}

// TestRecordFull: when evidence cannot be kept, no call passes.
func TestRecordFull(t *testing.T) {
	t.Parallel()
	var reached atomic.Int64
	apps := map[string]http.Handler{"web": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { reached.Add(1) })}
	e := setup{apps: apps, records: record.Options{Wait: 20 * time.Millisecond}}.start(t, plainShop())
	w := e.wire()
	if a := w.ask(get("/")); a.status != 200 {
		t.Fatalf("%d %q", a.status, a.reason)
	}
	// Somebody removes the file under the writer of the edge: it refuses from
	// then on, since it can keep no chain.
	dir := e.records[merlon.Edge]
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		os.Remove(dir + "/" + entry.Name())
	}
	until(t, "calls to be refused", func() bool { return w.ask(get("/")).reason == "record_full" })
	before := reached.Load()
	for range 5 {
		if a := w.ask(get("/")); a.status != 503 || a.reason != "record_full" {
			t.Errorf("%d %q", a.status, a.reason)
		}
	}
	if a := w.ask(get("/nowhere")); a.status != 404 {
		t.Errorf("a call that is denied anyway: %d %q", a.status, a.reason)
	}
	if reached.Load() != before {
		t.Error("a call without evidence reached the application")
	}
	// Full for a moment: the bound on memory is that of one record.
	tight := setup{apps: apps, records: record.Options{Wait: 10 * time.Millisecond, Buffer: 1}}.start(t, plainShop())
	first, second := tight.wire(), tight.wire()
	before = reached.Load()
	inFlight := "POST /send HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
	first.send(inFlight)
	until(t, "the call to be under way", func() bool { return reached.Load() > before })
	if a := second.ask(get("/")); a.status != 503 || a.reason != "record_full" {
		t.Errorf("a call while the room for one record is used up: %d %q", a.status, a.reason)
	}
	first.send("0\r\n\r\n")
	if a, err := first.receive("POST"); err != nil || a.status != 200 {
		t.Errorf("the call that had its record reserved: %d %q %v", a.status, a.reason, err)
	}
	until(t, "room for one record again", func() bool { return second.ask(get("/")).status == 200 })
}
