package main

import (
	"bufio"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"merlon"
	"merlon/intent"
	"merlon/policy"
)

var soakTime = flag.Duration("soak", 10*time.Second, "how long TestSoak lasts; 5m for all of its 500 changes and 10 upgrades")

const (
	soakClients = 8                     // of HTTP/1.1, and as many of HTTP/2
	soakPause   = 10 * time.Millisecond // between two calls of a client
	soakStreams = 2                     // of each version, that last all the time
	soakPooled  = 2 * (soakClients + soakStreams)
)

// soak is the edge and the gates of service b, which speaks HTTP/1.1, and of c,
// which speaks gRPC, with their apps, under load from outside.
type soak struct {
	t        *testing.T
	edge     *stand
	b, c     *stand
	pids     map[*stand]int // of those that serve now
	gone     []int          // of those that served before
	listen   string
	roots    *x509.CertPool
	quit     chan struct{} // ends the load
	finish   chan struct{} // ends the streams
	rest     func()        // ends what clients keep open
	wg       sync.WaitGroup
	calls    [3]atomic.Int64 // by version of HTTP
	lines    atomic.Int64    // of streams
	messages atomic.Int64    // of gRPC
	texts    atomic.Int64    // of WebSockets
	failures chan error
}

// TestSoak: for as long as -soak says, gates are upgraded and get new orders
// under load. No call fails, nothing that streams is cut off, nothing leaks.
func TestSoak(t *testing.T) {
	t.Parallel()
	part := soakTime.Minutes() / 5
	swaps, upgrades := min(max(int(500*part), 20), 500), min(max(int(10*part), 2), 10)
	s := newSoak(t)
	before, after := map[*stand]footprint{}, map[*stand]footprint{}
	for _, g := range s.gates() {
		before[g] = s.footprint(g)
	}
	s.load()
	s.change(swaps, upgrades)
	close(s.quit)
	close(s.finish)
	s.wg.Wait()
	s.rest()
	if n := len(s.failures); n > 0 {
		for range min(n, 10) {
			t.Error(<-s.failures)
		}
		t.Errorf("%d calls failed or were cut off", n)
	}
	for _, g := range s.gates() {
		pooled := soakPooled
		if g == s.edge {
			pooled = 0
		}
		g.until("all connections of clients end", func() bool { return s.live(g).Connections <= pooled })
		after[g] = s.footprint(g)
		after[g].within(t, before[g])
	}
	for _, pid := range s.gone {
		s.b.until(fmt.Sprintf("process %d ends, whose place another took", pid), func() bool { return !runs(pid) })
	}
	s.end()
	t.Logf("soak %v: %d calls over HTTP/1.1, %d over HTTP/2, %d streams with %d lines, %d of gRPC with %d messages, %d WebSockets with %d; %d changes of orders, %d upgrades of each gate; edge %v, then %v; gate of b %v, then %v; gate of c %v, then %v",
		*soakTime, s.calls[1].Load(), s.calls[2].Load(), 2*soakStreams, s.lines.Load(), soakStreams, s.messages.Load(), soakStreams, s.texts.Load(), swaps, upgrades,
		before[s.edge], after[s.edge], before[s.b], after[s.b], before[s.c], after[s.c])
}

func (s *soak) gates() []*stand { return []*stand{s.edge, s.b, s.c} }

func newSoak(t *testing.T) *soak {
	s := &soak{t: t, quit: make(chan struct{}), finish: make(chan struct{}), failures: make(chan error, 1<<16)}
	s.b = newStand(t, http.HandlerFunc(s.app))
	s.edge = &stand{t: t, dir: t.TempDir(), auth: s.b.auth, ended: make(chan error, 1)}
	s.edge.svid("gateway")
	talk := httptest.NewUnstartedServer(http.HandlerFunc(talk))
	talk.Config.Protocols = new(http.Protocols)
	talk.Config.Protocols.SetUnencryptedHTTP2(true)
	talk.Start()
	t.Cleanup(talk.Close)
	s.c = &stand{t: t, dir: t.TempDir(), auth: s.b.auth, app: talk.Listener.Addr().String(), ended: make(chan error, 1)}
	s.c.svid("c")
	cert, chain, err := s.b.auth.EdgeCertificate([]string{"shop.example"})
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	s.roots = x509.NewCertPool()
	s.roots.AppendCertsFromPEM(chain)
	s.edge.write("edge.pem", chain)
	s.edge.write("edge.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
	// As systemd does, so that the port is ours from the beginning.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s.listen = l.Addr().String()
	socket, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	for _, g := range []*stand{s.b, s.c} {
		s.orders(0, g)
		g.start("-admin", "127.0.0.1:0")
	}
	s.orders(0, s.edge)
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, build(t), "-orders", filepath.Join(s.edge.dir, "orders.json"),
		"-svid", s.edge.dir, "-records", filepath.Join(s.edge.dir, "records"), "-admin", "127.0.0.1:0")
	cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "LISTEN_FDNAMES=edge")
	cmd.ExtraFiles = []*os.File{socket}
	s.edge.run(cmd)
	s.edge.address("edge")
	s.pids = map[*stand]int{}
	for _, g := range s.gates() {
		s.pids[g] = g.cmd.Process.Pid
	}
	return s
}

// talk is an application of gRPC that says again what it is told.
func talk(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status")
	w.WriteHeader(200)
	for buf := make([]byte, 4<<10); ; {
		http.NewResponseController(w).Flush()
		n, err := r.Body.Read(buf)
		w.Write(buf[:n])
		if err == io.EOF {
			w.Header().Set("Grpc-Status", "0")
			return
		}
		if err != nil {
			return
		}
	}
}

// app answers, echoes and streams.
func (s *soak) app(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/echo":
		body, _ := io.ReadAll(r.Body)
		w.Write(body)
	case "/room":
		room(w, r)
	case "/stream":
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ; n++ {
			fmt.Fprintf(w, "line %d\n", n)
			http.NewResponseController(w).Flush()
			select {
			case <-r.Context().Done():
				return
			case <-s.finish:
				io.WriteString(w, "end\n")
				return
			case <-tick.C:
			}
		}
	default:
		io.WriteString(w, "done")
	}
}

// room is a WebSocket that says again what it is told: the frames of its client
// are masked with zeros, and all of one length.
func room(w http.ResponseWriter, r *http.Request) {
	sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) // RFC 6455 1.3
	c, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		base64.StdEncoding.EncodeToString(sum[:]))
	for frame := make([]byte, len(maskedHead)+8); ; {
		if _, err := io.ReadFull(buf, frame); err != nil {
			return
		}
		if _, err := c.Write(append([]byte("\x81\x08"), frame[len(maskedHead):]...)); err != nil {
			return
		}
	}
}

// maskedHead begins a text of 8 bytes from a client.
const maskedHead = "\x81\x88\x00\x00\x00\x00"

// enter is a client of room.
func (s *soak) enter(config *tls.Config, begun *sync.WaitGroup) error {
	var once sync.Once
	defer once.Do(begun.Done)
	c, err := tls.Dial("tcp", s.listen, config)
	if err != nil {
		return err
	}
	defer c.Close()
	io.WriteString(c, "GET /room HTTP/1.1\r\nHost: shop.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	r := bufio.NewReader(c)
	res, err := http.ReadResponse(r, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		return fmt.Errorf("%v, %w", res, err)
	}
	for n := 0; ; n++ {
		select {
		case <-s.finish:
			return nil
		case <-time.After(50 * time.Millisecond):
		}
		text := fmt.Sprintf("%08d", n)
		c.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := io.WriteString(c, maskedHead+text); err != nil {
			return fmt.Errorf("message %d: %w", n, err)
		}
		got := make([]byte, 2+len(text))
		if _, err := io.ReadFull(r, got); err != nil || string(got) != "\x81\x08"+text {
			return fmt.Errorf("message %d: %q, %w", n, got, err)
		}
		s.texts.Add(1)
		once.Do(begun.Done)
	}
}

// orders writes orders that say the same as all before about what is called,
// and something new about what is not.
func (s *soak) orders(n int, g *stand) (hash string) {
	s.t.Helper()
	text := fmt.Sprintf(`trustDomain: %s
gateway: {hosts: [shop.example], listen: '%s', certificate: {cert: %s, key: %s}}
services:
  b:
    address: %s
    operations: {hello: GET /hello, echo: POST /echo, stream: GET /stream, room: GET /room, other: GET /other/%d}
    webSockets: [room]
    callers: {anyone: all}
  c:
    address: %s
    contract: c.proto
    callers: {anyone: all}
`, trustDomain, s.listen, filepath.Join(s.edge.dir, "edge.pem"), filepath.Join(s.edge.dir, "edge.key"), s.b.app, n, s.c.app)
	l, ds := intent.Load(fstest.MapFS{"merlon.yaml": {Data: []byte(text)}, "c.proto": {Data: []byte(soakContract)}})
	if ds.Failed() {
		s.t.Fatal(ds)
	}
	place, endpoints := merlon.Edge, map[string][]merlon.Endpoint{}
	for name, inner := range map[string]*stand{"b": s.b, "c": s.c} {
		switch g {
		case inner:
			place, endpoints[name] = merlon.Place{Service: name}, []merlon.Endpoint{{Address: inner.app}}
		case s.edge:
			endpoints[name] = []merlon.Endpoint{{Address: strings.TrimPrefix(inner.url, "https://"), ID: l.Intent.SPIFFEID(name)}}
		}
	}
	o := merlon.Orders{Version: merlon.OrdersVersion, Place: place, Of: l.Hash, Intent: policy.Scope(l.Intent, place), Endpoints: endpoints}
	data, err := o.Encode()
	if err != nil {
		s.t.Fatal(err)
	}
	g.write("orders.json", data)
	return o.Hash
}

// change gives new orders and replaces processes, evenly over the time.
func (s *soak) change(swaps, upgrades int) {
	tick := time.NewTicker(*soakTime / time.Duration(swaps))
	defer tick.Stop()
	hashes := map[*stand]string{}
	for i := 1; i <= swaps; i++ {
		<-tick.C
		for _, g := range s.gates() {
			hashes[g] = s.orders(i, g)
		}
		every := swaps / upgrades
		for g, at := range map[*stand]int{s.b: every / 4, s.c: every / 2, s.edge: 3 * every / 4} {
			if i%every == at {
				s.gone = append(s.gone, s.pids[g])
				s.pids[g] = g.upgrade(s.pids[g])
			}
		}
		if len(s.failures) > 0 {
			return
		}
	}
	for g, hash := range hashes {
		g.until("the last orders are in force", func() bool {
			var ready readiness
			return fetch(s.t, g.address("admin"), "/readyz", &ready) == 200 && ready.Orders == hash
		})
	}
}

// load begins to call and to stream.
func (s *soak) load() {
	config := &tls.Config{RootCAs: s.roots, ServerName: "shop.example"}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", s.listen)
	}
	one := func() *http.Client { // over a connection of its own
		return &http.Client{Transport: &http.Transport{DialContext: dial, TLSClientConfig: config.Clone()}}
	}
	two := &http.Client{Transport: &http.Transport{DialContext: dial, TLSClientConfig: config.Clone(), ForceAttemptHTTP2: true}}
	s.t.Cleanup(two.CloseIdleConnections)
	s.rest = two.CloseIdleConnections
	begun := new(sync.WaitGroup)
	for range soakStreams {
		for _, c := range []*http.Client{one(), two} {
			begun.Add(1)
			s.wg.Go(func() { s.fail("stream", s.stream(c, begun)) })
		}
		begun.Add(2)
		s.wg.Go(func() { s.fail("gRPC", s.converse(two, begun)) })
		s.wg.Go(func() { s.fail("WebSocket", s.enter(config, begun)) })
	}
	begun.Wait()
	for range soakClients {
		s.wg.Go(func() { s.fail("HTTP/1.1", s.plain(config)) })
		s.wg.Go(func() { s.fail("HTTP/2", s.client(two)) })
	}
}

func (s *soak) fail(what string, err error) {
	if err != nil {
		s.failures <- fmt.Errorf("%s: %w", what, err)
	}
}

// pause waits before the next call, and reports whether there is to be one.
func (s *soak) pause() bool {
	select {
	case <-s.quit:
		return false
	case <-time.After(soakPause):
		return true
	}
}

// plain calls over one connection at a time, and never sends a call again.
func (s *soak) plain(config *tls.Config) error {
	var c net.Conn
	var r *bufio.Reader
	defer func() {
		if c != nil {
			c.Close()
		}
	}()
	for n := 0; s.pause(); n++ {
		if c == nil {
			var err error
			if c, err = tls.Dial("tcp", s.listen, config); err != nil {
				return err
			}
			r = bufio.NewReader(c)
		}
		c.SetDeadline(time.Now().Add(30 * time.Second))
		request, want := "GET /hello HTTP/1.1\r\nHost: shop.example\r\n\r\n", "done"
		if n%4 == 0 {
			want = strings.Repeat(strconv.Itoa(n), 1+n%2000)
			request = fmt.Sprintf("POST /echo HTTP/1.1\r\nHost: shop.example\r\nContent-Length: %d\r\n\r\n%s", len(want), want)
		}
		if _, err := io.WriteString(c, request); err != nil {
			return fmt.Errorf("call %d: %w", n, err)
		}
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			return fmt.Errorf("call %d: %w", n, err)
		}
		if err := same(res, want); err != nil {
			return fmt.Errorf("call %d: %w", n, err)
		}
		s.calls[1].Add(1)
		if res.Close {
			c.Close()
			c = nil
		}
	}
	return nil
}

func same(res *http.Response, want string) error {
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 200 || string(body) != want {
		return fmt.Errorf("%d %s %.40q, %w", res.StatusCode, res.Header.Get("Merlon-Reason"), body, err)
	}
	return nil
}

// client calls by the standard library's client.
func (s *soak) client(c *http.Client) error {
	for n := 0; s.pause(); n++ {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		method, path, want := http.MethodGet, "/hello", "done"
		var body io.Reader
		if n%4 == 0 {
			want = strings.Repeat(strconv.Itoa(n), 1+n%2000)
			method, path, body = http.MethodPost, "/echo", strings.NewReader(want)
		}
		req, err := http.NewRequestWithContext(ctx, method, "https://shop.example"+path, body)
		if err == nil {
			var res *http.Response
			if res, err = c.Do(req); err == nil {
				if err = same(res, want); err == nil && res.ProtoMajor != 2 {
					err = fmt.Errorf("answered in %s", res.Proto)
				}
			}
		}
		cancel()
		if err != nil {
			return fmt.Errorf("call %d: %w", n, err)
		}
		s.calls[2].Add(1)
	}
	return nil
}

// stream reads an answer that lasts as long as the test, whoever serves.
func (s *soak) stream(c *http.Client, begun *sync.WaitGroup) error {
	defer c.CloseIdleConnections()
	var once sync.Once
	defer once.Do(begun.Done)
	res, err := c.Get("https://shop.example/stream")
	if err != nil {
		return err
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	for n := 0; lines.Scan(); n++ {
		if lines.Text() == "end" {
			return nil
		}
		if want := fmt.Sprintf("line %d", n); lines.Text() != want {
			return fmt.Errorf("%q instead of %q", lines.Text(), want)
		}
		s.lines.Add(1)
		once.Do(begun.Done)
	}
	return fmt.Errorf("cut off: %v", lines.Err())
}

const soakContract = `syntax = "proto3";
package talk;
message M {}
service Talk {
  rpc Again(stream M) returns (stream M);
}
`

// converse has one stream of gRPC, with messages both ways, in step.
func (s *soak) converse(c *http.Client, begun *sync.WaitGroup) error {
	var once sync.Once
	defer once.Do(begun.Done)
	say, body := net.Pipe()
	defer say.Close()
	req, err := http.NewRequest(http.MethodPost, "https://shop.example/talk.Talk/Again", body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	answers := bufio.NewReader(res.Body)
	for n := 0; ; n++ {
		select {
		case <-s.finish:
			say.Close()
			if _, err := io.Copy(io.Discard, answers); err != nil || res.Trailer.Get("Grpc-Status") != "0" {
				return fmt.Errorf("message %d: the end is %q, %v", n, res.Trailer.Get("Grpc-Status"), err)
			}
			return nil
		case <-time.After(50 * time.Millisecond):
		}
		text := fmt.Sprintf("\x00\x00\x00\x00\x08%08d", n)
		if _, err := io.WriteString(say, text); err != nil {
			return fmt.Errorf("message %d: %w", n, err)
		}
		got := make([]byte, len(text))
		if _, err := io.ReadFull(answers, got); err != nil || string(got) != text {
			return fmt.Errorf("message %d: %q, %w", n, got, err)
		}
		s.messages.Add(1)
		once.Do(begun.Done)
	}
}

// footprint is what a process holds.
type footprint struct {
	files, others, goroutines int // descriptors, those that are no sockets, goroutines
	resident, peak            int // KiB
}

func (f footprint) String() string {
	return fmt.Sprintf("%d descriptors, %d goroutines, %.1f MB resident (at most %.1f)", f.files, f.goroutines, float64(f.resident)/1024, float64(f.peak)/1024)
}

// within holds a process at rest to what one held before any call, and to the
// connections that are pooled.
func (f footprint) within(t *testing.T, before footprint) {
	t.Helper()
	if f.files > before.files+2*soakPooled || f.others > before.others || f.goroutines > before.goroutines+soakPooled || f.resident > 128<<10 {
		t.Errorf("%v, %d of them no sockets; before all calls it was %v, %d of them no sockets", f, f.others, before, before.others)
	}
}

func (s *soak) live(g *stand) liveness {
	var l liveness
	fetch(s.t, g.address("admin"), "/livez", &l)
	return l
}

func (s *soak) footprint(g *stand) (f footprint) {
	s.t.Helper()
	live := s.live(g)
	if live.PID != s.pids[g] {
		s.t.Errorf("process %d answers, %d is to serve", live.PID, s.pids[g])
	}
	f.goroutines = live.Goroutines
	dir := fmt.Sprintf("/proc/%d/", live.PID)
	list, err := os.ReadDir(dir + "fd")
	if err != nil {
		s.t.Fatal(err)
	}
	f.files = len(list)
	for _, e := range list {
		if to, err := os.Readlink(dir + "fd/" + e.Name()); err == nil && !strings.HasPrefix(to, "socket:") {
			f.others++
		}
	}
	f.resident, f.peak = memory(s.t, live.PID)
	return f
}

// memory is what a process has resident, now and at most, in KiB.
func memory(t *testing.T, pid int) (now, most int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		fmt.Sscanf(line, "VmRSS: %d kB", &now)
		fmt.Sscanf(line, "VmHWM: %d kB", &most)
	}
	return now, most
}

// end stops the gates, and holds their records to what was answered.
func (s *soak) end() {
	for g, pid := range s.pids {
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			s.t.Error(err)
		}
		g.until("the gate ends", func() bool { return !runs(pid) })
	}
	want := int(s.calls[1].Load() + s.calls[2].Load())
	for g, name := range map[*stand]string{s.edge: "edge", s.b: "gate of b", s.c: "gate of c"} {
		got := g.evidence()
		// A WebSocket has two records: that it was let through, and how it ended.
		calls, streams, talks := got["/hello"]+got["/echo"], got["/stream"], got["/talk.Talk/Again"]
		if g != s.c && (calls != want || streams != 2*soakStreams || got["/room"] != 2*soakStreams) || g != s.b && talks != soakStreams {
			s.t.Errorf("%s: %v in the records; %d calls, %d streams, %d of gRPC and %d WebSockets were answered",
				name, got, want, 2*soakStreams, soakStreams, soakStreams)
		}
	}
}
