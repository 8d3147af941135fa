package gate_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	xhttp2 "golang.org/x/net/http2"
)

const (
	poison    = "HTTP/1.1 200 OK\r\nX-Nonce: poison\r\nContent-Length: 6\r\n\r\npoison"
	earlyHint = "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n"
	lenHead   = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
	chunkHead = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
)

// hostileAnswer is what an application says to one request. It has one reading,
// or is not passed on as whole.
type hostileAnswer struct {
	raw   string
	whole bool // it has one reading, which is passed on
	ends  bool // the application closes after it
}

// hostileAnswers are answers that somebody reads otherwise, each with more
// behind it that no one asked for.
var hostileAnswers = []hostileAnswer{
	{raw: lenHead + "good" + poison, whole: true},
	{raw: chunkHead + "4\r\ngood\r\n0\r\n\r\n" + poison, whole: true},
	{raw: chunkHead + "1\r\ng\r\n3;x=y\r\nood\r\n000\r\n\r\n" + poison, whole: true},
	{raw: earlyHint + earlyHint + lenHead + "good" + poison, whole: true},
	{raw: "HTTP/1.1 200 OK\r\n\r\ngood" + poison, whole: true, ends: true},
	{raw: "HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\ngood" + poison, whole: true},
	{raw: "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\ngood" + poison, whole: true},
	{raw: "HTTP/1.1 204 No Content\r\n\r\n" + poison, whole: true},
	{raw: "HTTP/1.1 304 Not Modified\r\n\r\n" + poison, whole: true},
	{raw: "HTTP/1.1 304 Not Modified\r\nContent-Length: 65\r\n\r\n" + poison, whole: true},
	{raw: "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n0\r\n\r\n" + poison, whole: true},
	{raw: "HTTP/1.1 200 \r\nContent-Length: 4\r\n\r\ngood" + poison, whole: true},

	// Framing.
	{raw: "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + poison},
	{raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n" + poison},
	{raw: "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 0\r\n\r\ngood" + poison},
	{raw: "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\ngood" + poison},
	{raw: "HTTP/1.1 200 OK\r\nContent-Length: 4, 4\r\n\r\ngood" + poison},
	{raw: "HTTP/1.1 200 OK\r\nContent-Length: +4\r\n\r\ngood" + poison},
	{raw: "HTTP/1.1 200 OK\r\nContent-Length: 4 \t4\r\n\r\ngood" + poison},
	{raw: "HTTP/1.1 200 OK\r\nContent-Length: 0x4\r\n\r\ngood" + poison},
	{raw: "HTTP/1.1 200 OK\r\nContent-Length: -4\r\n\r\ngood" + poison},
	{raw: "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n" + poison},
	{raw: "HTTP/1.1 200 OK\r\nContent-Length : 4\r\n\r\ngood" + poison},
	{raw: "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\ngood" + poison},
	{raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n" + poison},
	{raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n" + poison},
	{raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n" + poison},
	{raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n" + poison},
	{raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + poison},
	{raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + poison},
	{raw: "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + poison},
	{raw: "HTTP/1.1 204 No Content\r\nContent-Length: 65\r\n\r\n" + poison},
	{raw: "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + poison},

	// Lines.
	{raw: "HTTP/1.1 200 OK\nContent-Length: 4\n\ngood" + poison},
	{raw: "HTTP/1.1 200 OK\r\nX: y\nContent-Length: 4\r\n\r\ngood" + poison},
	{raw: "HTTP/1.1 200 OK\r\nX: y\rContent-Length: 0\r\nContent-Length: 4\r\n\r\ngood" + poison},
	{raw: "HTTP/1.1 200 OK\r\nX: y\r\n z\r\nContent-Length: 4\r\n\r\ngood" + poison},
	{raw: "HTTP/1.1 200 OK\r\n X: y\r\nContent-Length: 4\r\n\r\ngood" + poison},
	{raw: "HTTP/1.1 200 OK\r\nX: y\x00\r\nContent-Length: 4\r\n\r\ngood" + poison},
	{raw: "HTTP/1.1 200 OK\r\nX\r\nContent-Length: 4\r\n\r\ngood" + poison},
	{raw: "HTTP/1.1 200 OK\r\n: y\r\nContent-Length: 4\r\n\r\ngood" + poison},
	{raw: "HTTP/1.1 200 OK\r\nX y: z\r\nContent-Length: 4\r\n\r\ngood" + poison},
	{raw: "\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood" + poison},
	{raw: "HTTP/1.1  200 OK\r\nContent-Length: 4\r\n\r\ngood" + poison},
	{raw: "HTTP/1.1 20 OK\r\nContent-Length: 4\r\n\r\ngood" + poison},
	{raw: "HTTP/1.1 2000 OK\r\nContent-Length: 4\r\n\r\ngood" + poison},
	{raw: "HTTP/1.1 099 OK\r\nContent-Length: 4\r\n\r\ngood" + poison},
	{raw: "HTTP/1.2 200 OK\r\nContent-Length: 4\r\n\r\ngood" + poison},
	{raw: "HTTP/2 200 OK\r\nContent-Length: 4\r\n\r\ngood" + poison},
	{raw: "http/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood" + poison},
	{raw: "ICY 200 OK\r\nContent-Length: 4\r\n\r\ngood" + poison},
	{raw: "good" + poison},

	// Interim answers.
	{raw: "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n" + poison},
	{raw: strings.Repeat(earlyHint, 500) + lenHead + "good" + poison},
	{raw: "HTTP/1.1 100 Continue\r\nContent-Length: 4\r\n\r\ngood" + poison},
	{raw: "HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + poison},
	{raw: earlyHint, ends: true},

	// Chunks.
	{raw: chunkHead + "4\r\ngood0\r\n\r\n" + poison},
	{raw: chunkHead + "4\ngood\n0\n\n" + poison},
	{raw: chunkHead + "4\r\ngood\n0\r\n\r\n" + poison},
	{raw: chunkHead + "4 \r\ngood\r\n0\r\n\r\n" + poison},
	{raw: chunkHead + " 4\r\ngood\r\n0\r\n\r\n" + poison},
	{raw: chunkHead + "0x4\r\ngood\r\n0\r\n\r\n" + poison},
	{raw: chunkHead + "+4\r\ngood\r\n0\r\n\r\n" + poison},
	{raw: chunkHead + "-1\r\n" + poison},
	{raw: chunkHead + "ffffffffffffffff\r\n" + poison},
	{raw: chunkHead + "100000000000000004\r\ngood\r\n0\r\n\r\n" + poison},
	{raw: chunkHead + "\r\n4\r\ngood\r\n0\r\n\r\n" + poison},
	{raw: chunkHead + "4;" + strings.Repeat("x", 200) + "\r\ngood\r\n0\r\n\r\n" + poison},
	{raw: chunkHead + "4;x\ngood\r\n0\r\n\r\n" + poison},
	{raw: chunkHead + "3\r\ngood\r\n0\r\n\r\n" + poison},
	{raw: chunkHead + "0\r\nX\r\n\r\n" + poison},
	{raw: chunkHead + "0\r\nX: y\nZ: z\r\n\r\n" + poison},
	{raw: chunkHead + "0\r\n X: y\r\n\r\n" + poison},
	{raw: chunkHead + "0\r\n" + strings.Repeat("X: "+strings.Repeat("y", 1000)+"\r\n", 100) + "\r\n" + poison},
	{raw: chunkHead + "0\n\n" + poison},
	{raw: chunkHead + "4\r\ngood\r\n0\r\n\n" + poison},

	// Ends.
	{raw: "", ends: true},
	{raw: "HTTP/1.1 200 OK\r\nContent-Le", ends: true},
	{raw: "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("y", 1000), ends: true}, // longer than the answer after it
	{raw: lenHead + "goo", ends: true},
	{raw: chunkHead + "4\r\ngood\r\n", ends: true},
	{raw: chunkHead + "4\r\ngood\r\n0\r\n", ends: true},
}

// serve answers /pages/NONCE/evil/N with h.app[N] and everything else well, and
// reads the next request on the same connection.
func (h *hostility) serve(t testing.TB) string {
	return app(t, func(c net.Conn, r *bufio.Reader) {
		for {
			req := readRequest(r)
			if req == nil {
				return
			}
			parts := strings.Split(req.URL.Path, "/")
			if parts[3] != "evil" {
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nX-Nonce: %s\r\nContent-Length: %d\r\n\r\n", parts[2], len(parts[2]))
				if req.Method != "HEAD" {
					io.WriteString(c, parts[2])
				}
				continue
			}
			n, _ := strconv.Atoi(parts[4])
			h.mu.Lock()
			a := h.app[n]
			h.mu.Unlock()
			io.WriteString(c, a.raw)
			if a.ends {
				return
			}
		}
	})
}

// hostility is a gate before a hostile application, and its clients.
type hostility struct {
	e     *estate
	mu    sync.Mutex
	app   []hostileAnswer
	calls int
	wires [2]*wire // of two clients
	two   *frames2 // a third, over HTTP/2
	id    uint32
}

func newHostility(t testing.TB, all []hostileAnswer) *hostility {
	text := strings.Replace(pages, "timeout: 1s", "retries: {budget: 0%}", 1)
	h := &hostility{app: all}
	h.e = setup{addresses: map[string]string{"web": h.serve(t)}}.start(t, text)
	t.Cleanup(func() {
		for _, w := range h.wires {
			if w != nil {
				w.Close()
			}
		}
	})
	return h
}

// ask makes one call for a client. ok says that the answer came whole and is
// the application's.
func (h *hostility) ask(t testing.TB, client int, method, path string) (res *http.Response, body string, ok bool) {
	t.Helper()
	w := h.wires[client]
	if w == nil {
		c, err := net.Dial("tcp", h.e.edge)
		if err != nil {
			t.Fatal(err)
		}
		w = newWire(t, c)
	}
	w.t = t
	h.wires[client] = nil
	w.SetDeadline(time.Now().Add(patience))
	w.send(method + " " + path + " HTTP/1.1\r\nHost: shop.example\r\n\r\n")
	var err error
	for res == nil || res.StatusCode < 200 {
		if res, err = http.ReadResponse(w.r, &http.Request{Method: method}); err != nil {
			w.Close()
			return nil, "", false
		}
	}
	all, err := io.ReadAll(res.Body)
	if err != nil || res.Close {
		w.Close()
	} else {
		if n := w.r.Buffered(); n > 0 {
			rest, _ := w.r.Peek(n)
			t.Errorf("%s %s: bytes after the answer: %q", method, path, rest)
		}
		h.wires[client] = w
	}
	return res, string(all), err == nil && res.Header.Get("Merlon-Reason") == ""
}

// attack makes the application give answer n to one client, and then calls for
// the same client and for another: each gets its own answer.
func (h *hostility) attack(t testing.TB, n int, method string) {
	t.Helper()
	a := h.app[n]
	res, body, ok := h.ask(t, 0, method, fmt.Sprintf("/pages/x/evil/%d", n))
	if ok {
		h.sameAsStandard(t, a, method, res, body)
	}
	for client := range 2 {
		h.calls++
		nonce := fmt.Sprintf("n%d", h.calls)
		res, body, ok := h.ask(t, client, "GET", "/pages/"+nonce+"/good/0")
		if !ok || body != nonce || res.Header.Get("X-Nonce") != nonce {
			t.Errorf("after %s %.200q, client %d: %v %+v %q", method, a.raw, client, ok, res, body)
		}
	}
	if method == "GET" && ok != a.whole {
		t.Errorf("%.200q: passed on as whole %v, want %v", a.raw, ok, a.whole)
	}
}

// sameAsStandard holds an answer that was passed on to what net/http reads.
func (h *hostility) sameAsStandard(t testing.TB, a hostileAnswer, method string, res *http.Response, body string) {
	t.Helper()
	in := bufio.NewReader(strings.NewReader(a.raw))
	for {
		std, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil {
			t.Errorf("passed on is what net/http does not read: %.200q, %v", a.raw, err)
			return
		}
		if std.StatusCode < 200 {
			continue
		}
		want, err := io.ReadAll(std.Body)
		if err != nil || std.StatusCode != res.StatusCode || string(want) != body {
			t.Errorf("passed on is %d %q of %.200q; net/http reads %d %q, %v", res.StatusCode, body, a.raw, std.StatusCode, want, err)
		}
		return
	}
}

// attack2 is attack on a client of HTTP/2, whose other streams go on.
func (h *hostility) attack2(t testing.TB, n int) {
	t.Helper()
	if h.two == nil {
		h.two, h.id = dial2(t, h.e.edge), 1
	}
	h.two.SetDeadline(time.Now().Add(patience))
	evil, good := h.id, h.id+2
	h.id += 4
	h.calls++
	nonce := fmt.Sprintf("m%d", h.calls)
	h.two.request(evil, true, "GET", fmt.Sprintf("/pages/x/evil/%d", n))
	var bodies [2]bytes.Buffer
	for ended := 0; ended < 2; {
		frame, err := h.two.ReadFrame()
		if err != nil {
			t.Fatalf("after %.200q: the connection ends: %v", h.app[n].raw, err)
		}
		head := frame.Header()
		if data, ok := frame.(*xhttp2.DataFrame); ok {
			bodies[(head.StreamID-evil)/2].Write(data.Data())
		}
		if head.Type == xhttp2.FrameRSTStream || (head.Type == xhttp2.FrameHeaders || head.Type == xhttp2.FrameData) && head.Flags.Has(xhttp2.FlagDataEndStream) {
			if ended++; ended == 1 {
				h.two.request(good, true, "GET", "/pages/"+nonce+"/good/0")
			}
		}
	}
	if got := bodies[1].String(); got != nonce {
		t.Errorf("after %.200q over HTTP/2: asked as %q, got %q", h.app[n].raw, nonce, got)
	}
}

// TestClass15HostileAnswers: whatever an application answers, the next call of
// the same client and those of others get their own answers; and what a client
// gets as whole is what any other reader finds in it.
func TestClass15HostileAnswers(t *testing.T) {
	t.Parallel()
	all := hostileAnswers
	rnd := rand.New(rand.NewPCG(15, 15))
	for range 300 {
		all = append(all, hostileAnswer{raw: mutate(rnd, pick(rnd, hostileAnswers...).raw), ends: true})
	}
	h := newHostility(t, all)
	for n, a := range all {
		if n < len(hostileAnswers) {
			h.attack(t, n, "GET")
			h.attack(t, n, "HEAD")
			h.attack2(t, n)
			continue
		}
		h.attackUnknown(t, n, a)
	}
}

// attackUnknown is attack with an answer of which is not known what it is.
func (h *hostility) attackUnknown(t testing.TB, n int, a hostileAnswer) {
	t.Helper()
	res, body, ok := h.ask(t, 0, "GET", fmt.Sprintf("/pages/x/evil/%d", n))
	if ok {
		h.sameAsStandard(t, a, "GET", res, body)
	}
	h.calls++
	nonce := fmt.Sprintf("n%d", h.calls)
	if _, body, ok := h.ask(t, 1, "GET", "/pages/"+nonce+"/good/0"); !ok || body != nonce {
		t.Errorf("after %.200q: %v %q", a.raw, ok, body)
	}
}

// FuzzHostileAnswer searches for an answer that is passed on as what it is not,
// or that reaches a call after its own.
func FuzzHostileAnswer(f *testing.F) {
	for _, a := range hostileAnswers {
		if len(a.raw) < 1000 {
			f.Add([]byte(a.raw))
		}
	}
	h := newHostility(f, make([]hostileAnswer, 1))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > fuzzMax {
			return
		}
		a := hostileAnswer{raw: string(raw), ends: true}
		h.mu.Lock()
		h.app[0] = a
		h.mu.Unlock()
		h.attackUnknown(t, 0, a)
	})
}
