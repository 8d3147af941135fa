package gate_test

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"merlon"
	"merlon/gate"
)

// portable says which I/O layer the gates of the tests run on.
var portable bool

// runBoth runs every test over both I/O layers: the portable one is the
// reference for the other.
func runBoth(m *testing.M) int {
	flag.Parse()
	code := m.Run()
	measuring := flag.Lookup("test.bench").Value.String()+flag.Lookup("test.fuzz").Value.String() != ""
	if runtime.GOOS == "linux" && code == 0 && !measuring {
		fmt.Println("again, over the portable I/O layer")
		portable = true
		code = m.Run()
	}
	return code
}

const open = `
trustDomain: shop.example
gateway:
  hosts: [shop.example]
  certificate: none
services:
  web:
    operations: {any: 'GET /{rest...}', send: 'POST /{rest...}'}
    callers: {anyone: all}
    timeout: 2s
    maxBody: 4MiB
`

// direct is an edge without TLS, straight in front of an app without TLS.
func direct(t testing.TB, address string, bounds gate.Bounds) (addr string, g *gate.Gate) {
	t.Helper()
	return directBy(t, open, address, bounds)
}

// directBy is direct with another intent.
func directBy(t testing.TB, text, address string, bounds gate.Bounds) (addr string, g *gate.Gate) {
	t.Helper()
	e := setup{addresses: map[string]string{"web": address}, bounds: bounds}.start(t, text)
	o := e.orders(load(t, text, nil), merlon.Edge)
	o.Endpoints["web"] = []merlon.Endpoint{{Address: address}}
	if err := e.gates[merlon.Edge].Swap(o); err != nil {
		t.Fatal(err)
	}
	return e.edge, e.gates[merlon.Edge]
}

// parrot answers each request with its path and the length of its body, and
// does what the path says: /slow takes a while, /split sends the answer in
// pieces, /big sends a megabyte, /chunked is chunked, /never gives none.
func parrot(t testing.TB) (address string) {
	return app(t, func(c net.Conn, r *bufio.Reader) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			n, err := io.Copy(io.Discard, req.Body)
			if err != nil {
				return
			}
			text := fmt.Sprintf("%s %d", req.URL.Path, n)
			word, _, _ := strings.Cut(req.URL.Path[1:], "/")
			switch word {
			case "slow":
				time.Sleep(20 * time.Millisecond)
			case "never":
				io.Copy(io.Discard, r)
				return
			case "big":
				text += strings.Repeat(".", 1<<20)
			}
			answer := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
			if word == "chunked" {
				answer = fmt.Sprintf("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(text), text)
			}
			for word == "split" && answer != "" {
				k := min(1+rand.IntN(40), len(answer))
				io.WriteString(c, answer[:k])
				answer = answer[k:]
				runtime.Gosched()
			}
			if _, err := io.WriteString(c, answer); err != nil {
				return
			}
		}
	})
}

// want is a request and the answer that parrot gives to it.
type want struct{ request, body string }

func someRequest(tag string) want {
	word := []string{"a", "a", "a", "a", "slow", "split", "big", "chunked"}[rand.IntN(8)]
	path := "/" + word + "/" + tag
	body := strings.Repeat("b", []int{0, 1, 900, 20_000}[rand.IntN(4)])
	w := want{body: fmt.Sprintf("%s %d", path, len(body))}
	if word == "big" {
		w.body += strings.Repeat(".", 1<<20)
	}
	switch rand.IntN(4) {
	case 0:
		w.request = fmt.Sprintf("POST %s HTTP/1.1\r\nHost: shop.example\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
	case 1:
		w.request = fmt.Sprintf("POST %s HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n\r\n", path)
		if body != "" {
			w.request += fmt.Sprintf("%x\r\n%s\r\n", len(body), body)
		}
		w.request += "0\r\n\r\n"
	default:
		w.body = strings.Replace(w.body, fmt.Sprintf(" %d", len(body)), " 0", 1)
		w.request = "GET " + path + " HTTP/1.1\r\nHost: shop.example\r\nX-Padding: " + strings.Repeat("x", rand.IntN(3000)) + "\r\n\r\n"
	}
	return w
}

// cut says how a client's bytes arrive.
var cuts = map[string]func(left int) int{
	"at once":        func(left int) int { return left },
	"byte by byte":   func(int) int { return 1 },
	"in odd pieces":  func(left int) int { return min(1+rand.IntN(5000), left) },
	"to the buffer":  func(left int) int { return min(16<<10, left) },
	"past the head":  func(left int) int { return min(70, left) },
	"nearly a block": func(left int) int { return min(16<<10-1, left) },
}

// TestPipelines sends requests of all kinds without waiting for answers, cut in
// all ways, while garbage is collected. Every answer must be the right one.
func TestPipelines(t *testing.T) {
	t.Parallel()
	plain, _ := direct(t, parrot(t), gate.Bounds{})
	e := setup{addresses: map[string]string{"web": parrot(t)}}.start(t, strings.Replace(open, "  certificate: none\n", "", 1))
	stop := collectGarbage()
	defer stop()
	t.Run("plain", func(t *testing.T) { pipelines(t, func() net.Conn { return dial(t, plain) }) })
	t.Run("TLS", func(t *testing.T) { pipelines(t, e.dialEdge) }) // and mutual TLS behind
}

func pipelines(t *testing.T, connect func() net.Conn) {
	var wg sync.WaitGroup
	for how, cut := range cuts {
		for client := range 2 {
			wg.Go(func() {
				var all strings.Builder
				var wants []want
				n := 40
				if how == "byte by byte" {
					n = 6
				}
				for i := range n {
					w := someRequest(fmt.Sprint(client, "-", i))
					wants = append(wants, w)
					all.WriteString(w.request)
				}
				w := newWire(t, connect())
				go func() {
					for text := all.String(); text != ""; {
						k := cut(len(text))
						if _, err := io.WriteString(w, text[:k]); err != nil {
							return
						}
						text = text[k:]
					}
				}()
				for i, want := range wants {
					a, err := w.receive("GET")
					if err != nil || a.status != 200 || a.body != want.body {
						t.Errorf("%s: answer %d to %.60q: %d %s %.60q, %v", how, i, want.request, a.status, a.reason, a.body, err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
}

// collectGarbage runs finalizers and moves stacks until it is stopped: what is
// held only by a callback must not be lost.
func collectGarbage() (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(25 * time.Millisecond):
				runtime.GC()
			}
		}
	})
	return func() { close(done); wg.Wait() }
}

// TestHalfClose ends the client's side together with its last request, so that
// there is no edge of its own for the end: it must be answered and then closed,
// long before the connection would be idle for too long.
func TestHalfClose(t *testing.T) {
	t.Parallel()
	addr, _ := direct(t, parrot(t), gate.Bounds{})
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			c := dial(t, addr)
			w := newWire(t, c)
			w.send("GET /a/1 HTTP/1.1\r\nHost: shop.example\r\n\r\nGET /slow/2 HTTP/1.1\r\nHost: shop.example\r\n\r\n")
			c.(*net.TCPConn).CloseWrite()
			for _, body := range []string{"/a/1 0", "/slow/2 0"} {
				if a, err := w.receive("GET"); err != nil || a.body != body {
					t.Errorf("answered %q, %v", a.body, err)
					return
				}
			}
			c.SetDeadline(time.Now().Add(5 * time.Second))
			if !w.ended() {
				t.Error("still open, seconds after the client's end")
			}
		})
	}
	wg.Wait()
}

// TestClientsLeave closes connections at every moment of a call. The gate must
// notice each, and its other connections none.
func TestClientsLeave(t *testing.T) {
	t.Parallel()
	addr, g := direct(t, parrot(t), gate.Bounds{})
	stop := collectGarbage()
	defer stop()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 150 {
				c := dial(t, addr)
				request := someRequest(fmt.Sprint(i, "-", j)).request
				switch j % 5 {
				case 0: // before a request
				case 1: // in the middle of it
					io.WriteString(c, request[:len(request)/2])
				case 2: // before the answer
					io.WriteString(c, request)
				case 3: // with a reset
					io.WriteString(c, request)
					c.(*net.TCPConn).SetLinger(0)
				case 4: // in the middle of the answer
					io.WriteString(c, request)
					c.SetReadDeadline(time.Now().Add(2 * time.Second))
					c.Read(make([]byte, 10))
				}
				c.Close()
			}
		})
	}
	wg.Go(func() {
		w := newWire(t, dial(t, addr))
		for i := range 300 {
			path := fmt.Sprintf("/a/%d", i)
			if a := w.ask("GET " + path + " HTTP/1.1\r\nHost: shop.example\r\n\r\n"); a.body != path+" 0" {
				t.Errorf("answered %d %q", a.status, a.body)
				return
			}
		}
		w.Close()
	})
	wg.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := g.Drain(ctx); err != nil {
		t.Errorf("connections that clients have left are still open: %v", err)
	}
}

// TestWaitsEnd sets the sweeper on every wait of a connection.
func TestWaitsEnd(t *testing.T) {
	t.Parallel()
	addr, _ := direct(t, parrot(t), gate.Bounds{Idle: 400 * time.Millisecond, Head: 400 * time.Millisecond})
	for name, before := range map[string]string{
		"before a request":   "",
		"between two":        "GET /a/1 HTTP/1.1\r\nHost: shop.example\r\n\r\n",
		"in a head":          "GET /a/1 HTTP/1.1\r\nHost: sh",
		"in a second head":   "GET /a/1 HTTP/1.1\r\nHost: shop.example\r\n\r\nGET /",
		"while none answers": "GET /never/1 HTTP/1.1\r\nHost: shop.example\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWire(t, dial(t, addr))
			w.send(before)
			if strings.Contains(before, "\r\n\r\n") {
				a, err := w.receive("GET")
				if err != nil || a.status != 200 && a.reason != "upstream_timeout" {
					t.Fatalf("answered %d %s, %v", a.status, a.reason, err)
				}
				if a.status == 504 { // the wait ended, the connection did not
					if a := w.ask("GET /a/2 HTTP/1.1\r\nHost: shop.example\r\n\r\n"); a.body != "/a/2 0" {
						t.Errorf("after a timeout: %d %q", a.status, a.body)
					}
				}
			}
			w.SetDeadline(time.Now().Add(5 * time.Second))
			if !w.ended() {
				t.Error("not ended")
			}
		})
	}
}

// TestUpstreamLeaves has an app that ends each connection some time after its
// answer. Calls that cannot be repeated must not be lost to a connection that
// had ended before.
func TestUpstreamLeaves(t *testing.T) {
	t.Parallel()
	left := make(chan struct{})
	addr, _ := direct(t, app(t, func(c net.Conn, r *bufio.Reader) {
		readRequest(r)
		c.Write(lightAnswer)
		c.Close()
		left <- struct{}{}
	}), gate.Bounds{})
	w := newWire(t, dial(t, addr))
	for i := range 200 {
		if a := w.ask("POST /a HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 3\r\n\r\nabc"); a.status != 200 {
			t.Fatalf("call %d: %d %s %q", i, a.status, a.reason, a.body)
		}
		<-left
	}
}

// TestReconnects opens and closes thousands of connections.
func TestReconnects(t *testing.T) {
	t.Parallel()
	addr, _ := direct(t, parrot(t), gate.Bounds{})
	stop := collectGarbage()
	defer stop()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := range 400 {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					t.Error(err)
					return
				}
				path := fmt.Sprintf("/a/%d-%d", i, j)
				a := newWire(t, c).ask("GET " + path + " HTTP/1.1\r\nHost: shop.example\r\n\r\n")
				c.Close()
				if a.body != path+" 0" {
					t.Errorf("answered %d %q", a.status, a.body)
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestSlowReader takes nothing of many large answers for a while: what the
// socket has no room for goes the portable way, and all of it arrives.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	addr, _ := direct(t, parrot(t), gate.Bounds{})
	w := newWire(t, dial(t, addr))
	go func() {
		for i := range 600 {
			fmt.Fprintf(w, "GET /a/%d HTTP/1.1\r\nHost: shop.example\r\n\r\n", i)
			if i%20 == 0 {
				fmt.Fprintf(w, "GET /big/%d HTTP/1.1\r\nHost: shop.example\r\n\r\n", i)
			}
		}
	}()
	time.Sleep(300 * time.Millisecond) // not a wait for the gate: the client is slow
	for i := range 600 {
		if a, err := w.receive("GET"); err != nil || a.body != fmt.Sprintf("/a/%d 0", i) {
			t.Fatalf("answer %d: %.40q, %v", i, a.body, err)
		}
		if i%20 == 0 {
			if a, err := w.receive("GET"); err != nil || len(a.body) < 1<<20 {
				t.Fatalf("large answer %d: %.40q, %v", i, a.body, err)
			}
		}
	}
}

// TestIdleConnectionsAreLight: an idle connection holds no buffers.
func TestIdleConnectionsAreLight(t *testing.T) {
	if poolLosses > 0 {
		t.Skip("the race detector makes pools forget")
	}
	if portable {
		return // it waits for a request with a buffer in its hands
	}
	addr, _ := direct(t, lightApp(t), gate.Bounds{})
	const n = 400
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	clients := make([]*lightClient, n)
	buf := make([]byte, 16<<10)
	before := heap()
	for i := range clients {
		clients[i] = &lightClient{dial(t, addr), []byte(browse), buf}
	}
	for _, c := range clients {
		if err := c.call(); err != nil {
			t.Fatal(err)
		}
	}
	per := (int64(heap()) - int64(before)) / n
	t.Logf("%d bytes of heap for an idle connection, and its client", per)
	if per > (12+8*poolLosses)<<10 { // the race detector keeps more
		t.Errorf("%d bytes of heap for an idle connection", per)
	}
	runtime.KeepAlive(clients)
}

// TestIdleConnectionsForget: nothing is left of a large head, or of the buffers
// of its call, when all who sent one at the same time are idle.
func TestIdleConnectionsForget(t *testing.T) {
	if poolLosses > 0 {
		t.Skip("the race detector makes pools forget")
	}
	if portable {
		return // it waits for a request with a buffer in its hands
	}
	const n = 1000
	var here atomic.Int64
	answer := make(chan struct{})
	addr, _ := directBy(t, strings.Replace(open, "timeout: 2s", "timeout: 60s", 1), app(t, func(c net.Conn, r *bufio.Reader) {
		for {
			if req := readRequest(r); req == nil {
				return
			}
			here.Add(1)
			<-answer
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"+strings.Repeat("X-Field: some value\r\n", 60)+"\r\nhi")
		}
	}), gate.Bounds{})
	head := get("/pages/"+strings.Repeat("%C3%A9", 500), "Cookie: "+strings.Repeat("c", 7000), strings.Repeat("X-Field: some value\r\n", 80)+"Y: z")
	clients := make([]net.Conn, n)
	buf := make([]byte, 64<<10)
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	for i := range clients {
		clients[i] = dial(t, addr)
		io.WriteString(clients[i], head)
		if i%50 == 49 { // no listener of a test has room for all at once
			until(t, "the calls", func() bool { return here.Load() == int64(i+1) })
		}
	}
	close(answer)
	for _, c := range clients {
		for got := 0; !bytes.HasSuffix(buf[:got], []byte("\r\n\r\nhi")); {
			m, err := c.Read(buf[got:])
			if err != nil {
				t.Fatalf("%v after %q", err, buf[:got])
			}
			if got += m; !bytes.HasPrefix(buf[:got], []byte("HTTP/1.1 200 ")) {
				t.Fatalf("answered with %q", buf[:got])
			}
		}
	}
	var per int64
	for range 20 { // the last of them may not be idle yet
		if per = (heap() - before) / n; per < 16<<10 {
			break
		}
	}
	if t.Logf("%d bytes of heap for an idle connection", per); per > 16<<10 {
		t.Errorf("%d bytes of heap for an idle connection", per)
	}
	runtime.KeepAlive(clients)
}

// TestSystemCalls counts them. At 64 connections of HTTP/1.1 a call is two reads,
// two writes and the look at a pooled connection; anything more is a wait that
// the engine need not have. At 64 streams of HTTP/2 calls share reads and writes
// of the client's connection, and of the upstream's if that speaks HTTP/2 too, and
// none of those is known to the scheduler, which sees only read and write.
func TestSystemCalls(t *testing.T) {
	if portable {
		return
	}
	if os.Getenv("MERLON_TEST_GATE") != "" {
		traced(t)
		return
	}
	const conns, calls, streams = 64, 300, 16
	count := countCalls(t, open, conns*calls, func(addr string, all *sync.WaitGroup) {
		for range conns {
			c := &lightClient{dial(t, addr), []byte(browse), make([]byte, 16<<10)}
			all.Go(func() {
				for range calls {
					if err := c.call(); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	})
	if moved := count["sendto"] + count["recvfrom"] + count["read"] + count["write"]; moved > 5.4 {
		t.Errorf("%.2f calls that move data; two reads, two writes and a look are five", moved)
	}
	for _, text := range []string{open, strings.Replace(open, "  web:\n", "  web:\n    protocol: http2\n", 1)} {
		count := countCalls(t, text, conns*calls, func(addr string, all *sync.WaitGroup) {
			for range conns / streams {
				callOver2(t, addr, streams, calls, all)
			}
		})
		if known := count["read"] + count["write"]; known > 0.4 {
			t.Errorf("%.2f calls over HTTP/2 that the scheduler knows of", known)
		}
		if moved := count["sendto"] + count["recvfrom"]; moved > 4 {
			t.Errorf("%.2f calls that move data over HTTP/2: they are not shared", moved)
		}
	}
}

// callOver2 makes calls over a connection of HTTP/2, so many streams at a time.
func callOver2(t *testing.T, addr string, streams, calls int, all *sync.WaitGroup) {
	tr := &http.Transport{MaxConnsPerHost: 1, Protocols: new(http.Protocols), DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("tcp", addr)
	}}
	tr.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(tr.CloseIdleConnections)
	for range streams {
		all.Go(func() {
			for range calls {
				req, _ := http.NewRequest("GET", "http://shop.example/pages/7", nil)
				res, err := tr.RoundTrip(req)
				if err != nil {
					t.Error(err)
					return
				}
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
		})
	}
}

// countCalls tells how often a gate makes each system call for one of n calls.
func countCalls(t *testing.T, text string, n int, drive func(addr string, all *sync.WaitGroup)) (count map[string]float64) {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed")
	}
	address := lightApp(t)
	if text != open {
		address = lightApp2(t, false)
	}
	dir := t.TempDir()
	cmd := exec.Command(strace, "-c", "-f", "-o", dir+"/calls", os.Args[0], "-test.run=^TestSystemCalls$", "-test.v")
	cmd.Env = append(os.Environ(), "MERLON_TEST_GATE="+address, "MERLON_TEST_INTENT="+text)
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	addr := ""
	lines := bufio.NewScanner(out)
	for addr == "" && lines.Scan() {
		addr, _ = strings.CutPrefix(lines.Text(), "serving ")
		if !strings.Contains(lines.Text(), "serving ") {
			addr = ""
		}
	}
	var wg sync.WaitGroup
	drive(addr, &wg)
	wg.Wait()
	in.Close()
	go io.Copy(io.Discard, out)
	if err := cmd.Wait(); err != nil {
		t.Skipf("strace cannot trace here: %v", err)
	}
	summary, err := os.ReadFile(dir + "/calls")
	if err != nil {
		t.Fatal(err)
	}
	count = map[string]float64{}
	for line := range strings.Lines(string(summary)) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		if times, err := strconv.Atoi(f[3]); err == nil {
			count[f[len(f)-1]] = float64(times) / float64(n)
		}
	}
	t.Logf("a call: %.2f sendto, %.2f recvfrom, %.2f read, %.2f write, %.2f epoll_pwait, %.2f futex",
		count["sendto"], count["recvfrom"], count["read"], count["write"], count["epoll_pwait"], count["futex"])
	if count["sendto"] == 0 {
		t.Fatalf("nothing was counted:\n%s", summary)
	}
	return count
}

// traced is the gate whose system calls are counted, in a process of its own.
func traced(t *testing.T) {
	addr, _ := directBy(t, os.Getenv("MERLON_TEST_INTENT"), os.Getenv("MERLON_TEST_GATE"), gate.Bounds{})
	fmt.Printf("serving %s\n", addr)
	io.Copy(io.Discard, os.Stdin)
}
