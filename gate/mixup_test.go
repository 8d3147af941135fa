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

	"merlon/gate"
)

const pages = `
trustDomain: shop.example
gateway:
  hosts: [shop.example]
  certificate: none
services:
  web:
    operations: {page: 'GET /pages/{nonce}/{mode}/{size}', look: 'HEAD /pages/{nonce}/{mode}/{size}', send: 'POST /pages/{nonce}/{mode}/{size}'}
    callers: {anyone: all}
    timeout: 1s
    maxBody: 16MiB
`

// pattern is n bytes that only the call with this nonce may see.
func pattern(nonce string, n int) []byte {
	return bytes.Repeat([]byte(nonce), n/len(nonce)+1)[:n]
}

// confusing is an application that answers each call in the way its path says,
// always with the call's own nonce, and behaves badly between.
func confusing(c net.Conn, r *bufio.Reader) {
	for {
		req := readRequest(r)
		if req == nil {
			return
		}
		parts := strings.Split(req.URL.Path, "/") // "", pages, nonce, mode, size
		nonce, mode := parts[2], parts[3]
		size, _ := strconv.Atoi(parts[4])
		body := pattern(nonce, size)
		head := fmt.Sprintf("HTTP/1.1 200 OK\r\nX-Nonce: %s\r\n", nonce)
		length := fmt.Sprintf("Content-Length: %d\r\n\r\n", size)
		switch mode {
		case "length":
			io.WriteString(c, head+length)
			if req.Method != "HEAD" {
				c.Write(body)
			}
		case "chunks":
			io.WriteString(c, head+"Transfer-Encoding: chunked\r\n\r\n")
			if req.Method == "HEAD" {
				continue
			}
			for len(body) > 0 {
				n := 1 + rand.IntN(len(body))
				fmt.Fprintf(c, "%x\r\n%s\r\n", n, body[:n])
				body = body[n:]
			}
			io.WriteString(c, "0\r\n\r\n")
		case "close":
			io.WriteString(c, head+"\r\n")
			if req.Method != "HEAD" {
				c.Write(body)
			}
			return
		case "none":
			fmt.Fprintf(c, "HTTP/1.1 %d X\r\nX-Nonce: %s\r\n\r\n", []int{204, 304}[size%2], nonce)
		case "interim":
			io.WriteString(c, "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n"+head+length)
			if req.Method != "HEAD" {
				c.Write(body)
			}
		case "more": // and a second answer, at once
			io.WriteString(c, head+length+string(body)+"HTTP/1.1 200 OK\r\nX-Nonce: poison\r\nContent-Length: 6\r\n\r\npoison")
		case "cut":
			io.WriteString(c, head+length)
			c.Write(body[:size/2])
			return
		case "invalid":
			io.WriteString(c, head+"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"+head+length)
		case "silent":
			io.Copy(io.Discard, r)
			return
		}
	}
}

// TestClass09NoAnswerOfAnother: many clients share few connections to an
// application that answers in every framing, breaks off, says too much, too
// late or nothing. Each sees its own answer or a clear failure, never a byte of
// somebody else's, and never a part that looks like the whole.
func TestClass09NoAnswerOfAnother(t *testing.T) {
	t.Parallel()
	// Only who is never answered is not waited for, also on a busy machine.
	text := strings.Replace(pages, "timeout: 1s", "timeout: 60s", 1) + strings.ReplaceAll(pages[strings.Index(pages, "  web:"):], "pages", "quiet")
	text = strings.Replace(text, "    maxBody: 16MiB\n  web:", "    maxBody: 16MiB\n  quiet:", 1)
	address := app(t, confusing)
	e := setup{addresses: map[string]string{"web": address, "quiet": address}, bounds: gate.Bounds{Connect: time.Minute}}.start(t, text)
	modes := []string{"length", "length", "length", "chunks", "chunks", "close", "none", "interim", "more", "cut", "invalid", "silent"}
	var wg sync.WaitGroup
	for client := range 12 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(9, uint64(client)))
			var w *wire
			silent := 0
			for call := range 120 {
				if w == nil {
					w = newWire(t, dial(t, e.edge))
				}
				w.SetDeadline(time.Now().Add(time.Minute))
				mode := modes[rnd.IntN(len(modes))]
				if mode == "silent" {
					if silent++; silent > 1 {
						mode = "length"
					}
				}
				size := []int{2, 100, 16 << 10, 100 << 10}[rnd.IntN(4)] + rnd.IntN(50)
				method := []string{"GET", "GET", "HEAD", "POST"}[rnd.IntN(4)]
				nonce := fmt.Sprintf("c%dx%d.", client, call)
				pages := "pages"
				if mode == "silent" {
					pages = "quiet"
				}
				request := fmt.Sprintf("%s /%s/%s/%s/%d HTTP/1.1\r\nHost: shop.example\r\n", method, pages, nonce, mode, size)
				if method == "POST" {
					request += fmt.Sprintf("Content-Length: %d\r\n\r\n%s", size, pattern(nonce, size))
				} else {
					request += "\r\n"
				}
				if _, err := io.WriteString(w, request); err != nil {
					t.Errorf("%s: %v", request[:30], err)
					return
				}
				if call%11 == 10 { // goes away with the answer under way
					w.Close()
					w = nil
					continue
				}
				if !ownAnswer(t, w, method, mode, nonce, size) {
					w.Close()
					w = nil
				}
			}
		})
	}
	wg.Wait()
}

// ownAnswer reads one answer, holds it to what was asked, and reports whether
// the connection goes on. A call fails if its own answer was bad, and for no
// other reason: what it leaves behind is nobody else's.
func ownAnswer(t *testing.T, w *wire, method, mode, nonce string, size int) bool {
	res, err := http.ReadResponse(w.r, &http.Request{Method: method})
	if err != nil {
		t.Errorf("%s %s: %v", method, mode, err)
		return false
	}
	body, err := io.ReadAll(res.Body)
	goesOn := err == nil && !res.Close
	if reason := res.Header.Get("Merlon-Reason"); reason != "" {
		want := map[string]string{"invalid": "upstream_invalid", "silent": "upstream_timeout"}[mode]
		if reason != want {
			t.Errorf("%s %s: %d %q", method, mode, res.StatusCode, reason)
		}
		return goesOn
	}
	if got := res.Header.Get("X-Nonce"); got != nonce {
		t.Errorf("%s %s: asked as %q, got the answer to %q", method, mode, nonce, got)
		return false
	}
	want := pattern(nonce, size)
	if method == "HEAD" || mode == "none" {
		want = nil
	}
	switch {
	case mode == "cut" && method != "HEAD" && err == nil:
		t.Errorf("%s %s: a broken answer of %d bytes looks whole", method, mode, len(body))
	case !bytes.HasPrefix(want, body):
		t.Errorf("%s %s of %d: the answer has bytes of somebody else", method, mode, size)
	case mode != "cut" && (err != nil || len(body) != len(want)):
		t.Errorf("%s %s of %d: %d bytes, %v", method, mode, size, len(body), err)
	}
	return goesOn
}

// TestClass15RequestSmugglingFromClients: what could be read as two requests
// is refused, the connection with it, and the application sees nothing of it.
func TestClass15RequestSmugglingFromClients(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var urls []string
	apps := shopApps()
	apps["web"] = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		mu.Lock()
		urls = append(urls, r.RequestURI)
		mu.Unlock()
	})
	e := start(t, shop, apps)
	const inner = "GET /pages/smuggled HTTP/1.1\r\nHost: shop.example\r\n\r\n"
	for _, c := range []struct{ fields, body, reason string }{
		{"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n" + inner, "length_and_transfer_encoding"},
		{"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n" + inner, "transfer_encoding_repeated"},
		{"Transfer-Encoding: xchunked\r\n", "0\r\n\r\n" + inner, "transfer_encoding_unknown"},
		{"Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n" + inner, "transfer_encoding_unknown"},
		{"Transfer-Encoding : chunked\r\n", "0\r\n\r\n" + inner, "space_before_colon"},
		{"Transfer_Encoding: chunked\r\n", "0\r\n\r\n" + inner, "field_name_disguised"},
		{"X: y\r\n Transfer-Encoding: chunked\r\n", "0\r\n\r\n" + inner, "obs_fold"},
		{"X: y\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n" + inner, "bare_lf"},
		{"X: y\rTransfer-Encoding: chunked\r\n", "0\r\n\r\n" + inner, "bare_cr"},
		{"Content-Length: 0\r\nContent-Length: 54\r\n", inner, "content_length_repeated"},
		{"Content-Length: 0, 54\r\n", inner, "content_length_invalid"},
		{"Content-Length: +0\r\n", inner, "content_length_invalid"},
		{"Content_Length: 54\r\n", inner, "field_name_disguised"},
		{"Transfer-Encoding: chunked\r\n", "0\r\nX: y\r\n\r\n" + inner, "body_invalid"},
		{"Transfer-Encoding: chunked\r\n", "0\n\n" + inner, "body_invalid"},
		{"Transfer-Encoding: chunked\r\n", "2\r\nabX\r\n0\r\n\r\n" + inner, "body_invalid"},
		{"Transfer-Encoding: chunked\r\n", "-1\r\n" + inner, "body_invalid"},
		{"Transfer-Encoding: chunked\r\n", "100000000\r\n" + inner, "body_invalid"},
		{"Transfer-Encoding: chunked\r\n", "0;" + strings.Repeat("x", 100) + "\r\n\r\n" + inner, "body_invalid"},
		{"Upgrade: h2c\r\nConnection: upgrade, http2-settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: 54\r\n", inner, "upgrade_with_body"},
	} {
		w := e.wire()
		a := w.ask("POST /send HTTP/1.1\r\nHost: shop.example\r\n" + c.fields + "\r\n" + c.body)
		if a.status < 400 || a.reason != c.reason {
			t.Errorf("%q: %d %q, want %q", c.fields, a.status, a.reason, c.reason)
		}
		if !w.ended() {
			t.Errorf("%q: the connection goes on", c.fields)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for _, u := range urls {
		if u != "/send" { // the beginning of a body that turns out to be invalid may arrive
			t.Errorf("the application sees %s", u)
		}
	}
}

// TestClass15RequestSmugglingFromUpstreams: an application's answer that could
// be read as two, or in two ways, poisons nothing.
func TestClass15RequestSmugglingFromUpstreams(t *testing.T) {
	t.Parallel()
	const poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nX-Poison: yes\r\n\r\npoison"
	const good = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood"
	flood := strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n", 1000)
	for name, c := range map[string]struct {
		answer string
		method string
		status int
		reason string
	}{
		"extra bytes":             {good + "extra", "GET", 200, ""},
		"two answers":             {good + poison, "GET", 200, ""},
		"a body for HEAD":         {good + poison, "HEAD", 200, ""},
		"a body for 204":          {"HTTP/1.1 204 No Content\r\n\r\n" + poison, "GET", 204, ""},
		"a body for 304":          {"HTTP/1.1 304 Not Modified\r\nContent-Length: 59\r\n\r\n" + poison, "GET", 304, ""},
		"length for 204":          {"HTTP/1.1 204 No Content\r\nContent-Length: 59\r\n\r\n" + poison, "GET", 502, "upstream_invalid"},
		"length and chunked":      {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + poison, "GET", 502, "upstream_invalid"},
		"two lengths":             {"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 59\r\n\r\n" + poison, "GET", 502, "upstream_invalid"},
		"a list of lengths":       {"HTTP/1.1 200 OK\r\nContent-Length: 4, 4\r\n\r\ngood", "GET", 502, "upstream_invalid"},
		"another coding":          {"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "GET", 502, "upstream_invalid"},
		"bare LF":                 {"HTTP/1.1 200 OK\nContent-Length: 4\n\ngood", "GET", 502, "upstream_invalid"},
		"split by bare CR":        {"HTTP/1.1 200 OK\r\nX: y\rSet-Cookie: a=b\r\nContent-Length: 4\r\n\r\ngood", "GET", 502, "upstream_invalid"},
		"split by NUL":            {"HTTP/1.1 200 OK\r\nX: y\x00z\r\nContent-Length: 4\r\n\r\ngood", "GET", 502, "upstream_invalid"},
		"folded":                  {"HTTP/1.1 200 OK\r\nX: y\r\n z\r\nContent-Length: 4\r\n\r\ngood", "GET", 502, "upstream_invalid"},
		"HTTP/0.9":                {"good", "GET", 502, "upstream_invalid"},
		"HTTP/2":                  {"HTTP/2.0 200 OK\r\nContent-Length: 4\r\n\r\ngood", "GET", 502, "upstream_invalid"},
		"status 999":              {"HTTP/1.1 999 X\r\nContent-Length: 4\r\n\r\ngood", "GET", 502, "upstream_invalid"},
		"switched unasked":        {"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n" + poison, "GET", 502, "upstream_invalid"},
		"a flood of interim":      {flood + good, "GET", 502, "upstream_invalid"},
		"interim with a length":   {"HTTP/1.1 103 X\r\nContent-Length: 4\r\n\r\ngood" + poison, "GET", 502, "upstream_invalid"},
		"a head without end":      {"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("y", 20<<10), "GET", 502, "upstream_invalid"},
		"a name that is gates'":   {"HTTP/1.1 200 OK\r\nMerlon-Reason: no_rule\r\nMerlon-Request-Id: x\r\nContent-Length: 4\r\n\r\ngood", "GET", 200, ""},
		"leading line ends":       {"\r\n\r\n" + good, "GET", 502, "upstream_invalid"},
		"nothing":                 {"", "GET", 502, "upstream_broken"},
		"half a head":             {"HTTP/1.1 200 OK\r\nContent-", "GET", 502, "upstream_broken"},
		"interim and then an end": {"HTTP/1.1 100 Continue\r\n\r\n", "GET", 502, "upstream_broken"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			evil := true
			var mu sync.Mutex
			address := app(t, func(conn net.Conn, r *bufio.Reader) {
				for {
					if readRequest(r) == nil {
						return
					}
					mu.Lock()
					now := evil
					evil = false
					mu.Unlock()
					if !now {
						io.WriteString(conn, good)
						continue
					}
					io.WriteString(conn, c.answer)
					if c.reason == "upstream_broken" {
						return
					}
				}
			})
			e := setup{addresses: map[string]string{"web": address}}.start(t, strings.Replace(pages, "timeout: 1s", "retries: {budget: 0%}", 1))
			w := e.wire()
			request := " /pages/a/b/c HTTP/1.1\r\nHost: shop.example\r\n\r\n"
			a := w.ask(c.method + request)
			if a.status != c.status || a.reason != c.reason {
				t.Errorf("%d %q, want %d %q", a.status, a.reason, c.status, c.reason)
			}
			if len(a.header["Merlon-Request-Id"]) != 1 || len(a.header.Get("Merlon-Request-Id")) != 20 {
				t.Errorf("request ids %q", a.header["Merlon-Request-Id"])
			}
			// On the same connection, and on another one.
			for _, w := range []*wire{w, e.wire(), w} {
				if a := w.ask("GET" + request); a.status != 200 || a.body != "good" || a.header.Get("X-Poison") != "" {
					t.Errorf("the next call gets %d %q %q", a.status, a.reason, a.body)
				}
			}
		})
	}
}

// TestClass15AnswerNobodyAskedFor: bytes that come after the answer, when the
// connection is in the pool already, are nobody's answer.
func TestClass15AnswerNobodyAskedFor(t *testing.T) {
	t.Parallel()
	sent := make(chan net.Conn, 1)
	address := app(t, func(c net.Conn, r *bufio.Reader) {
		for readRequest(r) != nil {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood")
			sent <- c
		}
	})
	e := setup{addresses: map[string]string{"web": address}}.start(t, pages)
	w := e.wire()
	for range 5 {
		if a := w.ask("GET /pages/a/b/c HTTP/1.1\r\nHost: shop.example\r\n\r\n"); a.body != "good" {
			t.Fatalf("%d %q %q", a.status, a.reason, a.body)
		}
		// On loopback, what is written is there to be read when write returns.
		io.WriteString(<-sent, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
	}
}

// TestClass15NoReuseAfterHead: an application that answers HEAD with a body, or
// 304 with a length, sends it when it likes. By then no other call may be on the
// connection.
func TestClass15NoReuseAfterHead(t *testing.T) {
	t.Parallel()
	address := app(t, func(c net.Conn, r *bufio.Reader) {
		for past := ""; ; {
			req := readRequest(r)
			if req == nil {
				return
			}
			if past != "" {
				t.Errorf("%s %s comes over a connection on which a body may follow: %s", req.Method, req.URL.Path, past)
			}
			head := "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
			if strings.HasSuffix(req.URL.Path, "304") {
				head = "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n"
			} else if req.Method == "GET" {
				head += "good"
			}
			if req.Method == "HEAD" || strings.HasSuffix(req.URL.Path, "304") {
				past = req.Method + " " + req.URL.Path
			}
			io.WriteString(c, head)
		}
	})
	e := setup{addresses: map[string]string{"web": address}}.start(t, pages)
	w := e.wire()
	for _, call := range []string{"HEAD /pages/a/b/c", "GET /pages/a/b/304", "GET /pages/a/b/c"} {
		for range 2 {
			if a := w.ask(call + " HTTP/1.1\r\nHost: shop.example\r\n\r\n"); a.reason != "" {
				t.Errorf("%s: %d %q", call, a.status, a.reason)
			}
		}
	}
}

// TestBrokenAnswersLookBroken: an answer that breaks off is never one that a
// client can take for the whole, in any version and framing.
func TestBrokenAnswersLookBroken(t *testing.T) {
	t.Parallel()
	for name, head := range map[string]string{
		"length":  "Content-Length: 1000\r\n",
		"chunked": "Transfer-Encoding: chunked\r\n",
		"close":   "",
	} {
		for _, version := range []string{"HTTP/1.0", "HTTP/1.1"} {
			for _, secure := range []bool{false, true} {
				t.Run(fmt.Sprint(name, " ", version, " ", secure), func(t *testing.T) {
					t.Parallel()
					address := app(t, func(c net.Conn, r *bufio.Reader) {
						readRequest(r)
						io.WriteString(c, "HTTP/1.1 200 OK\r\n"+head+"\r\n5\r\nhello\r\n")
						c.(*net.TCPConn).SetLinger(0) // a close-delimited answer only breaks by a reset
					})
					text := pages
					if secure {
						text = strings.Replace(pages, "  certificate: none\n", "", 1)
					}
					e := setup{addresses: map[string]string{"web": address}}.start(t, text)
					w := e.wire()
					w.send("GET /pages/a/b/c " + version + "\r\nHost: shop.example\r\n\r\n")
					a, err := w.receive("GET")
					if err == nil && a.reason != "upstream_broken" {
						t.Errorf("looks whole: %d %q", a.status, a.body)
					}
				})
			}
		}
	}
}
