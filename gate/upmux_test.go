package gate_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"merlon"
	"merlon/gate"
	"merlon/internal/nginxtest"
	"merlon/internal/peertest"
)

// shop2 is the shop with services that read HTTP/2.
var shop2 = strings.ReplaceAll(shop, "    operations:", "    protocol: http2\n    maxBody: 100MiB\n    operations:")

// speaking has an app say in which version of HTTP it was called.
func speaking(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Proto", r.Proto)
		h.ServeHTTP(w, r)
	})
}

// bothClients are one of HTTP/1.1 and one of HTTP/2.
func bothClients(e *estate) []*http.Client { return []*http.Client{e.client(), e.client2()} }

// TestUpstreamHTTP2: a service that reads HTTP/2 is spoken to in it, also
// through its gate, and sees what one of HTTP/1.1 sees.
func TestUpstreamHTTP2(t *testing.T) {
	t.Parallel()
	apps := map[string]http.Handler{"web": speaking(echo("web")), "orders": speaking(echo("orders"))}
	e1, e2 := start(t, shop, apps), start(t, shop2, apps)
	for i, c := range bothClients(e2) {
		for _, call := range []struct{ method, path string }{{"GET", "/pages/7?a=b"}, {"GET", "/"}, {"POST", "/send"}, {"GET", "/pages/%2e"}, {"DELETE", "/send"}} {
			set := func(r *http.Request) {
				r.Header.Set("X-Kept", "yes")
				r.Header.Set("Merlon-Caller", "me")
				r.Header.Set("Cookie", "a=b")
			}
			one := do(t, bothClients(e1)[i], call.method, "https://shop.example"+call.path, set)
			two := do(t, c, call.method, "https://shop.example"+call.path, set)
			if one.status != two.status || one.reason != two.reason {
				t.Errorf("%s %s: %d %s, over HTTP/2 %d %s", call.method, call.path, one.status, one.reason, two.status, two.reason)
			}
			if two.status != 200 {
				continue
			}
			if got := two.header.Get("X-Proto"); got != "HTTP/2.0" || one.header.Get("X-Proto") != "HTTP/1.1" {
				t.Errorf("the app was called in %s", got)
			}
			a, b := one.seen(t), two.seen(t)
			for _, h := range []http.Header{a.Header, b.Header} {
				h.Del("Merlon-Caller")
				h.Del("Merlon-Request-Id")
			}
			b.Header.Del("Te")
			if fmt.Sprint(a) != fmt.Sprint(b) {
				t.Errorf("%s %s: the app saw %v, over HTTP/2 %v", call.method, call.path, a, b)
			}
		}
	}
	// Between services too, over mutual TLS.
	if a := do(t, e2.as("web"), "GET", "http://orders/orders/1"); a.status != 200 || a.header.Get("X-Proto") != "HTTP/2.0" {
		t.Errorf("between services: %d %s %s", a.status, a.reason, a.header.Get("X-Proto"))
	}
}

// TestUpstreamHTTP2Bodies: bodies of all sizes go both ways at once, over few
// connections, and do not mix.
func TestUpstreamHTTP2Bodies(t *testing.T) {
	t.Parallel()
	e := start(t, shop2, map[string]http.Handler{"web": mirror()})
	var all sync.WaitGroup
	for worker := range 16 {
		c := bothClients(e)[worker%2]
		all.Go(func() {
			rnd := rand.New(rand.NewPCG(5, uint64(worker)))
			for range 8 {
				body := make([]byte, []int{0, 1, 100, 16 << 10, 17 << 10, 70000, 1 << 20}[rnd.IntN(7)])
				for i := range body {
					body[i] = byte(worker*31 + i*7)
				}
				var r io.Reader = bytes.NewReader(body)
				if rnd.IntN(2) == 0 {
					r = struct{ io.Reader }{r}
				}
				res, err := c.Post("https://shop.example/send", "a/b", r)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(res.Body)
				res.Body.Close()
				if err != nil || !bytes.Equal(got, body) {
					t.Errorf("%d bytes came back as %d: %d %v", len(body), len(got), res.StatusCode, err)
				}
			}
		})
	}
	all.Wait()
}

// TestUpstreamHTTP2FullDuplex: the answer streams while the request does.
func TestUpstreamHTTP2FullDuplex(t *testing.T) {
	t.Parallel()
	e := start(t, shop2, map[string]http.Handler{"web": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(200)
		lines := bufio.NewScanner(r.Body)
		for http.NewResponseController(w).Flush(); lines.Scan(); http.NewResponseController(w).Flush() {
			fmt.Fprintln(w, "heard", lines.Text())
		}
	})})
	in, out := io.Pipe()
	res, err := e.client2().Post("https://shop.example/send", "a/b", in)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answers := bufio.NewReader(res.Body)
	for i := range 20 {
		fmt.Fprintln(out, i)
		if line, err := answers.ReadString('\n'); err != nil || line != fmt.Sprintln("heard", i) {
			t.Fatalf("%q %v", line, err)
		}
	}
	out.Close()
	if rest, err := io.ReadAll(answers); err != nil || len(rest) > 0 {
		t.Errorf("%q %v", rest, err)
	}
}

// TestUpstreamHTTP2BackPressure: what the other end does not take is not read,
// in either direction.
func TestUpstreamHTTP2BackPressure(t *testing.T) {
	t.Parallel()
	const total = 40 << 20
	const most = 16 << 20 // all buffers on the way, with those of the system
	var wrote atomic.Int64
	begun, release := make(chan struct{}), make(chan struct{})
	e := start(t, shop2, map[string]http.Handler{"web": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			close(begun)
			<-release
			n, _ := io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, n)
			return
		}
		piece := make([]byte, 32<<10)
		for range total / len(piece) {
			n, err := w.Write(piece)
			if err != nil {
				return
			}
			wrote.Add(int64(n))
		}
	})})
	settles := func(what string, n *atomic.Int64) {
		last, same := int64(-1), 0
		until(t, what+" to settle", func() bool {
			if now := n.Load(); now == last && now > 0 {
				same++
			} else {
				last, same = now, 0
			}
			return same > 100
		})
		if last > most {
			t.Errorf("%s: %d bytes were taken", what, last)
		}
	}
	c := e.client2()
	res, err := c.Get("https://shop.example/pages/1")
	if err != nil {
		t.Fatal(err)
	}
	settles("an answer that nobody reads", &wrote)
	if n, err := io.Copy(io.Discard, res.Body); n != total || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	res.Body.Close()

	up := &counter{left: total}
	done := make(chan string)
	go func() {
		res, err := c.Post("https://shop.example/send", "a/b", up)
		if err != nil {
			done <- err.Error()
			return
		}
		defer res.Body.Close()
		text, _ := io.ReadAll(res.Body)
		done <- string(text)
	}()
	<-begun
	settles("a body that nobody reads", &up.n)
	close(release)
	if got := <-done; got != fmt.Sprint(total) {
		t.Errorf("the app read %s", got)
	}
}

// counter is a body that counts what was read of it.
type counter struct {
	n    atomic.Int64
	left int
}

func (c *counter) Read(b []byte) (int, error) {
	if c.left == 0 {
		return 0, io.EOF
	}
	n := min(len(b), c.left)
	c.left -= n
	c.n.Add(int64(n))
	return n, nil
}

// TestUpstreamHTTP2Shares: a thousand calls at once need few connections.
func TestUpstreamHTTP2Shares(t *testing.T) {
	t.Parallel()
	calls := int64(1000)
	if poolLosses > 0 { // the race detector is on
		calls = 100 // each begins a connection with TLS here, which is slow then
	}
	var conns, waiting atomic.Int64
	release := make(chan struct{})
	app := newServer2(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if waiting.Add(1) == calls {
			close(release)
		}
		<-release
	}), &conns)
	// All of them are of one client.
	e := setup{addresses: map[string]string{"web": app}, bounds: gate.Bounds{Connect: 30 * time.Second, ConnectionsPerClient: 2 * int(calls)}}.start(t, strings.Replace(shop2, "    callers: {anyone: all}", "    timeout: 60s\n    callers: {anyone: all}", 1))
	c := e.client2()
	var all sync.WaitGroup
	for range calls {
		all.Go(func() {
			if a := do(t, c, "GET", "https://shop.example/"); a.status != 200 {
				t.Errorf("%d %s", a.status, a.reason)
			}
		})
	}
	all.Wait()
	if n := conns.Load(); n > 30 {
		t.Errorf("%d connections for %d calls", n, calls)
	}
}

// newServer2 is a server of HTTP/2 without TLS that counts its connections.
func newServer2(t testing.TB, h http.Handler, conns *atomic.Int64) (addr string) {
	lis := listen(t)
	s := &http.Server{Handler: h, Protocols: new(http.Protocols), ConnState: func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}}
	s.Protocols.SetUnencryptedHTTP2(true)
	go s.Serve(lis)
	t.Cleanup(func() { s.Close() })
	return lis.Addr().String()
}

// TestUpstreamHTTP2Nginx: nginx says goodbye after every few calls, also to
// some that are on their way. None fails, whatever its method.
func TestUpstreamHTTP2Nginx(t *testing.T) {
	t.Parallel()
	addr := peertest.Address(t)
	nginxtest.Start(t, fmt.Sprintf(`
		listen %s http2;
		keepalive_requests 20;
		lingering_close on;
		location / { add_header X-Proto $server_protocol; return 200 "read"; }
	`, addr))
	e := setup{addresses: map[string]string{"web": addr}}.start(t, shop2)
	var all sync.WaitGroup
	for worker := range 20 {
		c := bothClients(e)[worker%2]
		all.Go(func() {
			for i := range 50 {
				method, path := "GET", "/"
				if i%2 == 0 {
					method, path = "POST", "/send"
				}
				if a := do(t, c, method, "https://shop.example"+path); a.status != 200 || a.body != "read" || a.header.Get("X-Proto") != "HTTP/2.0" {
					t.Errorf("%s: %d %s %q %s", method, a.status, a.reason, a.body, a.header.Get("X-Proto"))
				}
			}
		})
	}
	all.Wait()
	if t.Failed() {
		for _, r := range e.peek(merlon.Place{Service: "web"}) {
			if r.Verdict.Reason == "upstream_broken" {
				t.Log(r.Detail)
			}
		}
	}
}

// scripted2 is an upstream of HTTP/2 made of x/net's framer. serve gets each
// connection after the greetings, and a function for whole answers.
func scripted2(t testing.TB, serve func(n int, f *frames2)) (addr string) {
	lis := listen(t)
	t.Cleanup(func() { lis.Close() })
	go func() {
		for n := 0; ; n++ {
			nc, err := lis.Accept()
			if err != nil {
				return
			}
			go func() {
				defer nc.Close()
				nc.SetDeadline(time.Now().Add(30 * time.Second))
				f := &frames2{Framer: xhttp2.NewFramer(nc, nc), Conn: nc}
				f.enc = hpack.NewEncoder(&f.block)
				if _, err := io.ReadFull(nc, make([]byte, len(xhttp2.ClientPreface))); err != nil {
					return
				}
				f.WriteSettings()
				serve(n, f)
			}()
		}
	}()
	return lis.Addr().String()
}

// answer writes a whole answer.
func (f *frames2) answer(id uint32, body string) {
	f.block.Reset()
	f.enc.WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
	f.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: id, BlockFragment: f.block.Bytes(), EndHeaders: true})
	f.WriteData(id, true, []byte(body))
}

// each calls do for every request, when it is whole.
func (f *frames2) each(do func(id uint32)) {
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			return
		}
		switch fr := fr.(type) {
		case *xhttp2.HeadersFrame:
			if fr.StreamEnded() {
				do(fr.StreamID)
			}
		case *xhttp2.DataFrame:
			if fr.StreamEnded() {
				do(fr.StreamID)
			}
		}
	}
}

// TestUpstreamHTTP2Refused: a call that an upstream has refused, and surely not
// begun, is sent again, whatever it is; one that it may have begun is not.
func TestUpstreamHTTP2Refused(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		first  func(f *frames2, id uint32)
		status int
	}{
		{"refused", func(f *frames2, id uint32) { f.WriteRSTStream(id, xhttp2.ErrCodeRefusedStream) }, 200},
		{"gone away before", func(f *frames2, id uint32) { f.WriteGoAway(0, xhttp2.ErrCodeNo, nil) }, 200},
		{"gone away after", func(f *frames2, id uint32) { f.WriteGoAway(id, xhttp2.ErrCodeNo, nil); f.Close() }, 502},
		{"reset", func(f *frames2, id uint32) { f.WriteRSTStream(id, xhttp2.ErrCodeInternal) }, 502},
		{"closed", func(f *frames2, id uint32) { f.Close() }, 502},
		{"no HTTP/2", func(f *frames2, id uint32) { io.WriteString(f.Conn, strings.Repeat("x", 1000)) }, 502},
		{"no answer", func(f *frames2, id uint32) { f.WriteData(id, true, []byte("x")) }, 502},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var calls atomic.Int64
			addr := scripted2(t, func(n int, f *frames2) {
				f.each(func(id uint32) {
					if calls.Add(1) == 1 {
						test.first(f, id)
					} else {
						f.answer(id, "second")
					}
				})
			})
			e := setup{addresses: map[string]string{"web": addr}}.start(t, shop2)
			a := do(t, e.client(), "POST", "https://shop.example/send", func(r *http.Request) {
				r.Body, r.ContentLength = io.NopCloser(strings.NewReader("body")), 4
			})
			if a.status != test.status || test.status == 200 && a.body != "second" {
				t.Errorf("%d %s %q", a.status, a.reason, a.body)
			}
			if want := int64(1 + test.status/200%2); test.status == 200 && calls.Load() != want {
				t.Errorf("%d calls", calls.Load())
			}
			// Whatever came of it, the next call is well.
			if a := do(t, e.client(), "GET", "https://shop.example/"); a.status != 200 || a.body != "second" {
				t.Errorf("the next call: %d %s %q", a.status, a.reason, a.body)
			}
		})
	}
}

// TestUpstreamHTTP2Silent: an upstream that answers nothing, not even a PING, is
// given up long before the call's own time is over; one that answers PINGs has
// all that time.
func TestUpstreamHTTP2Silent(t *testing.T) {
	t.Parallel()
	var slow atomic.Bool
	addr := scripted2(t, func(n int, f *frames2) {
		for {
			fr, err := f.ReadFrame()
			if err != nil {
				return
			}
			switch fr := fr.(type) {
			case *xhttp2.PingFrame:
				if slow.Load() {
					f.WritePing(true, fr.Data)
					f.answer(1, "slow")
				}
			}
		}
	})
	text := strings.Replace(shop2, "    callers: {anyone: all}", "    timeout: 25s\n    callers: {anyone: all}", 1)
	e := setup{addresses: map[string]string{"web": addr}, bounds: gate.Bounds{Connect: 2 * time.Second}}.start(t, text)
	if a := do(t, e.client(), "POST", "https://shop.example/send"); a.status != 502 || a.reason != "upstream_broken" {
		t.Errorf("silent: %d %s", a.status, a.reason)
	}
	slow.Store(true)
	if a := do(t, e.client(), "POST", "https://shop.example/send"); a.status != 200 || a.body != "slow" {
		t.Errorf("slow: %d %s %q", a.status, a.reason, a.body)
	}
}

// TestUpstreamHTTP2Killed: when an upstream dies, its calls fail, and those
// after it is back do not.
func TestUpstreamHTTP2Killed(t *testing.T) {
	t.Parallel()
	var here atomic.Int64
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" {
			io.WriteString(w, "first")
			http.NewResponseController(w).Flush()
			here.Add(1)
			<-r.Context().Done()
		}
	})
	addr := peertest.Address(t)
	take := func() net.Listener {
		lis, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		return lis
	}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	serve := func(lis net.Listener) *http.Server {
		s := &http.Server{Handler: h, Protocols: protocols}
		go s.Serve(lis)
		return s
	}
	s := serve(take())
	e := setup{addresses: map[string]string{"web": addr}}.start(t, shop2)
	c := e.client2()
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			res, err := c.Get("https://shop.example/pages/1")
			if err != nil {
				t.Error(err)
				return
			}
			defer res.Body.Close()
			if text, err := io.ReadAll(res.Body); err == nil {
				t.Errorf("a call that was cut off looks whole: %q", text)
			}
		})
	}
	until(t, "the calls", func() bool { return here.Load() == 10 })
	s.Close()
	all.Wait()
	defer serve(take()).Close()
	if a := do(t, c, "GET", "https://shop.example/"); a.status != 200 {
		t.Errorf("after the restart: %d %s", a.status, a.reason)
	}
}

// TestUpstreamHTTP2Revoked: a deny reaches a stream that is open, the upstream
// learns of it, and the connection goes on.
func TestUpstreamHTTP2Revoked(t *testing.T) {
	t.Parallel()
	var conns atomic.Int64
	ended := make(chan struct{}, 1)
	app := newServer2(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			return
		}
		io.WriteString(w, "first")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
		ended <- struct{}{}
	}), &conns)
	e := setup{addresses: map[string]string{"web": app}}.start(t, shop2)
	c := e.client2()
	res, err := c.Get("https://shop.example/pages/1")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if _, err := io.ReadFull(res.Body, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	e.swap(strings.Replace(shop2, "anyone: all", "anyone: [home]", 1))
	if _, err := io.ReadAll(res.Body); err == nil {
		t.Error("the answer went on")
	}
	<-ended
	if a := do(t, c, "GET", "https://shop.example/"); a.status != 200 {
		t.Errorf("another call: %d", a.status)
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// TestUpstreamHTTP2Trailers: an answer's trailers reach a client of HTTP/2.
func TestUpstreamHTTP2Trailers(t *testing.T) {
	t.Parallel()
	e := start(t, shop2, map[string]http.Handler{"web": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "Grpc-Status")
		io.WriteString(w, "body")
		http.NewResponseController(w).Flush()
		w.Header().Set("Grpc-Status", "7")
		w.Header().Set(http.TrailerPrefix+"Merlon-Caller", "me")
	})})
	res, err := e.client2().Get("https://shop.example/")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || string(text) != "body" || res.Trailer.Get("Grpc-Status") != "7" || res.Trailer.Get("Merlon-Caller") != "" {
		t.Errorf("%q %v, trailers %v", text, err, res.Trailer)
	}
}

// TestUpstreamHTTP2Protocol: new orders may say that a service reads another
// version, which holds from the next call on.
func TestUpstreamHTTP2Protocol(t *testing.T) {
	t.Parallel()
	e := start(t, shop2, map[string]http.Handler{"web": speaking(echo("web"))})
	if a := do(t, e.client(), "GET", "https://shop.example/"); a.status != 200 || a.header.Get("X-Proto") != "HTTP/2.0" {
		t.Fatalf("%d %s", a.status, a.header.Get("X-Proto"))
	}
	// The service is one of HTTP/1.1 from now on, and is spoken to so at once.
	e.swap(shop)
	if a := do(t, e.client(), "GET", "https://shop.example/"); a.status != 200 || a.header.Get("X-Proto") != "HTTP/1.1" {
		t.Errorf("after the change: %d %s", a.status, a.header.Get("X-Proto"))
	}
}
