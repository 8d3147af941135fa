package gate_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"merlon"
)

const flooded = `
trustDomain: shop.example
gateway:
  hosts: [shop.example]
services:
  web:
    operations: {home: GET /, big: GET /big, send: POST /send}
    callers: {anyone: all}
`

// TestActAsFlooded is no test: run by another, it is two gateways in a process
// of their own, one with TLS and one without, straight before an application.
func TestActAsFlooded(t *testing.T) {
	app := os.Getenv("GATE_TEST_FLOODED")
	if app == "" {
		return // run with all others, there is nothing to do
	}
	plain := strings.Replace(flooded, "hosts: [shop.example]", "hosts: [shop.example]\n  certificate: none", 1)
	for _, text := range []string{flooded, plain} {
		e := setup{addresses: map[string]string{"web": app}}.start(t, text)
		o := e.orders(load(t, text, nil), merlon.Edge)
		o.Endpoints["web"] = []merlon.Endpoint{{Address: app}}
		if err := e.gates[merlon.Edge].Swap(o); err != nil {
			t.Fatal(err)
		}
		fmt.Println("gateway:", e.edge)
	}
	io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// victim is a process with two gateways.
type victim struct {
	t          testing.TB
	pid        int
	tls, plain string // addresses
}

func startVictim(t *testing.T) *victim {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil || r.URL.Path != "/big" {
			return
		}
		for piece := make([]byte, 64<<10); ; {
			if _, err := w.Write(piece); err != nil {
				return
			}
		}
	}))
	t.Cleanup(app.Close)
	cmd := exec.Command(os.Args[0], "-test.run=^TestActAsFlooded$")
	cmd.Env = append(os.Environ(), "GATE_TEST_FLOODED="+app.Listener.Addr().String())
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	v := &victim{t: t, pid: cmd.Process.Pid}
	lines := bufio.NewScanner(out)
	for _, address := range []*string{&v.tls, &v.plain} {
		for *address == "" {
			if !lines.Scan() {
				t.Fatal("the gateways do not start")
			}
			if found, ok := strings.CutPrefix(lines.Text(), "gateway: "); ok {
				*address = found
			}
		}
	}
	go io.Copy(io.Discard, out)
	return v
}

// memory is a line of /proc/PID/status, in MiB.
func (v *victim) memory(line string) int {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", v.pid))
	if err != nil {
		v.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), line+":")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		v.t.Fatal(err)
	}
	return kib >> 10
}

// resetPeak makes VmHWM the highest since now (proc(5), clear_refs).
func (v *victim) resetPeak() {
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", v.pid), []byte("5"), 0); err != nil {
		v.t.Fatal(err)
	}
}

// dial makes the n-th connection of an attack. One address has 500 at most, and
// none has that of the well-behaved client.
func (v *victim) dial(address string, n int) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 7, 7, byte(1+n/500))}, Timeout: 20 * time.Second}
	c, err := d.Dial("tcp", address)
	if err == nil {
		c.SetDeadline(time.Now().Add(60 * time.Second))
	}
	return c, err
}

// serves calls as a well-behaved client does, over both gateways.
func (v *victim) serves(h2 *http.Client) error {
	for range 3 {
		c, err := net.Dial("tcp", v.plain)
		if err != nil {
			return err
		}
		w := &wire{c, v.t, bufio.NewReader(c)}
		c.SetDeadline(time.Now().Add(30 * time.Second))
		io.WriteString(c, get("/"))
		a, err := w.receive("GET")
		c.Close()
		if err != nil || a.status != 200 {
			return fmt.Errorf("over HTTP/1.1: %d %q %v", a.status, a.reason, err)
		}
		req, _ := http.NewRequest("GET", "https://"+v.tls+"/", nil)
		req.Host = "shop.example"
		res, err := h2.Do(req)
		if err != nil {
			return fmt.Errorf("over HTTP/2: %w", err)
		}
		res.Body.Close()
		if res.StatusCode != 200 || res.ProtoMajor != 2 {
			return fmt.Errorf("over HTTP/2: %s %s", res.Proto, res.Status)
		}
	}
	return nil
}

// raw2 is the beginning of a connection of HTTP/2 and what write adds.
func raw2(write func(f *frames2)) []byte {
	var out bytes.Buffer
	f := &frames2{Framer: xhttp2.NewFramer(&out, nil)}
	f.AllowIllegalWrites = true
	f.enc = hpack.NewEncoder(&f.block)
	out.WriteString(xhttp2.ClientPreface)
	f.WriteSettings()
	write(f)
	return out.Bytes()
}

func rounds(n int, round func(f *frames2, id uint32)) []byte {
	return raw2(func(f *frames2) {
		for i := range n {
			round(f, uint32(2*i+1))
		}
	})
}

// flood is what each of a number of connections sends and then holds.
type flood struct {
	name  string
	n     int
	send  []byte
	tls   bool // to the gateway with TLS
	ended bool // the gate ends each of them
	mb    int  // by which the gate's memory may grow, at most
}

func floods() []flood {
	hello := func() []byte { // of a client that says no more
		var out recorder
		tls.Client(&out, &tls.Config{ServerName: "shop.example"}).Handshake()
		return out.Bytes()
	}()
	post := "POST /send HTTP/1.1\r\nHost: shop.example\r\n"
	manyFields := "GET / HTTP/1.1\r\nHost: shop.example\r\n"
	for i := range 3000 {
		manyFields += fmt.Sprintf("X-%d: y\r\n", i)
	}
	open := func(f *frames2, id uint32) { f.request(id, false, "POST", "/send") }
	after := func(round func(f *frames2)) []byte {
		return raw2(func(f *frames2) {
			open(f, 1)
			for range 20_000 {
				round(f)
			}
		})
	}
	return []flood{
		{name: "closed windows", n: 8, send: raw2(func(f *frames2) {
			f.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingInitialWindowSize, Val: 0})
			for i := range 50 {
				f.request(uint32(2*i+1), true, "GET", "/big")
			}
		}), mb: 100},
		{name: "streams left open", n: 8, send: rounds(50, open), mb: 100},
		{name: "rapid reset", n: 20, send: rounds(2000, func(f *frames2, id uint32) {
			f.request(id, true, "GET", "/")
			f.WriteRSTStream(id, xhttp2.ErrCodeCancel)
		}), ended: true, mb: 60},
		{name: "CONTINUATION flood", n: 20, send: raw2(func(f *frames2) {
			f.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x82}})
			for range 2000 {
				f.WriteContinuation(1, false, bytes.Repeat([]byte{0x82}, 1000))
			}
		}), ended: true, mb: 60},
		{name: "SETTINGS flood", n: 20, send: after(func(f *frames2) { f.WriteSettings() }), ended: true, mb: 60},
		{name: "PING flood", n: 20, send: after(func(f *frames2) { f.WritePing(false, [8]byte{}) }), ended: true, mb: 60},
		{name: "WINDOW_UPDATE flood", n: 20, send: after(func(f *frames2) { f.WriteWindowUpdate(1, 1) }), ended: true, mb: 60},
		{name: "empty DATA flood", n: 20, send: after(func(f *frames2) { f.WriteData(1, false, nil) }), ended: true, mb: 60},
		{name: "PRIORITY flood", n: 20, send: after(func(f *frames2) { f.WritePriority(3, xhttp2.PriorityParam{StreamDep: 1}) }), ended: true, mb: 60},
		{name: "HPACK bomb", n: 20, send: raw2(func(f *frames2) {
			f.request(1, true, "GET", "/", "x-a="+strings.Repeat("a", 4000))
			for i := range 10 { // 14 KB that name 56 MB
				f.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: uint32(2*i + 3), BlockFragment: bytes.Repeat([]byte{0x80 | 62}, 14_000), EndHeaders: true, EndStream: true})
			}
		}), ended: true, mb: 60},

		{name: "slow loris", n: 1000, send: []byte("GET / HTTP/1.1\r\nHost: shop.example\r\nX: y"), mb: 120},
		{name: "slow bodies", n: 500, send: []byte(post + "Content-Length: 1000000\r\n\r\nx"), mb: 120},
		{name: "slow chunks", n: 500, send: []byte(post + "Transfer-Encoding: chunked\r\n\r\n1\r\nx"), mb: 120},
		{name: "slow readers", n: 50, send: []byte(get("/big")), mb: 100},
		{name: "header flood", n: 300, send: []byte(manyFields), ended: true, mb: 60},
		{name: "huge fields", n: 300, send: []byte("GET / HTTP/1.1\r\nX: " + strings.Repeat("y", 1<<20)), ended: true, mb: 60},

		// Last, since a process that has been large is never as small again.
		{name: "handshakes that stop", n: 1000, send: hello, tls: true, mb: 150},
		{name: "half-open", n: 10_000, tls: true, mb: 250},
	}
}

// recorder is a connection that takes all and gives nothing.
type recorder struct {
	bytes.Buffer
	net.Conn
}

func (r *recorder) Read([]byte) (int, error)        { return 0, io.EOF }
func (r *recorder) Write(b []byte) (int, error)     { return r.Buffer.Write(b) }
func (r *recorder) SetDeadline(time.Time) error     { return nil }
func (r *recorder) SetReadDeadline(time.Time) error { return nil }
func (r *recorder) Close() error                    { return nil }

// attack opens the connections of a flood and sends what each has to say. It
// returns when the gate has taken or refused all of it.
func (v *victim) attack(f flood) (end func(), err error) {
	address := v.plain
	if f.tls {
		address = v.tls
	}
	conns := make([]net.Conn, f.n)
	var all sync.WaitGroup
	var failed atomic.Pointer[error]
	for worker := range 20 {
		all.Go(func() {
			for i := worker; i < f.n; i += 20 {
				c, err := v.dial(address, i)
				if err != nil {
					failed.Store(&err)
					return
				}
				conns[i] = c
				if _, err := c.Write(f.send); err != nil && !f.ended {
					failed.Store(&err)
				}
				if f.ended {
					if _, err := io.Copy(io.Discard, c); os.IsTimeout(err) {
						err = fmt.Errorf("the gate holds the connection: %w", err)
						failed.Store(&err)
					}
				}
			}
		})
	}
	all.Wait()
	end = func() {
		for _, c := range conns {
			if c != nil {
				c.(*net.TCPConn).SetLinger(0)
				c.Close()
			}
		}
	}
	if e := failed.Load(); e != nil {
		return end, *e
	}
	return end, nil
}

// TestClass10FloodsOfTheGateway sends every kind of flood to a gateway in a process of its
// own. Its memory stays within a bound for each, and a well-behaved client is
// served throughout.
func TestClass10FloodsOfTheGateway(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("SKIPPED: memory of another process is told by /proc")
	}
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); limit.Max < 11_000 {
		t.Skipf("SKIPPED: %d open files are not enough for 10,000 connections", limit.Max)
	}
	if portable {
		return // its buffers are the same in number, but for one of each idle connection
	}
	// Not at the same time as tests that have certificates of seconds.
	v := startVictim(t)
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "shop.example"}, ForceAttemptHTTP2: true}
	t.Cleanup(tr.CloseIdleConnections)
	client := &http.Client{Transport: tr, Timeout: 30 * time.Second}
	for _, f := range floods() {
		if err := v.serves(client); err != nil {
			t.Fatalf("before %s: %v", f.name, err)
		}
		v.resetPeak()
		before := v.memory("VmRSS")
		began := time.Now()
		served := make(chan error, 1)
		go func() { served <- v.serves(client) }() // while it begins
		end, err := v.attack(f)
		if err != nil {
			t.Errorf("%s: %v", f.name, err)
		}
		if err := <-served; err != nil {
			t.Errorf("while %s begins, others are not served: %v", f.name, err)
		}
		if err := v.serves(client); err != nil { // while it lasts
			t.Errorf("during %s, others are not served: %v", f.name, err)
		}
		grown := v.memory("VmHWM") - before
		end()
		t.Logf("%-22s %6d connections, %8d bytes each: %3d MiB more than %d (%v)", f.name, f.n, len(f.send), grown, before, time.Since(began))
		if grown > f.mb*memoryFactor {
			t.Errorf("%s: memory grew by %d MiB, by more than %d", f.name, grown, f.mb*memoryFactor)
		}
	}
}
