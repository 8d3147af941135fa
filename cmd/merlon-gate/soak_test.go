package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"merlon"
	"merlon/intent"
	"merlon/policy"
)

var soakTime = flag.Duration("soak", 10*time.Second, "how long TestSoak lasts; 5m for all of its 500 changes and 10 upgrades")

// soak is the edge and the gates of service b, which speaks HTTP/1.1, and of c,
// which speaks gRPC, with their apps, under load from outside.
type soak struct {
	*traffic
	edge *stand
	b, c *stand
	pids map[*stand]int // of those that serve now
	gone []int          // of those that served before
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
	s.clients.Wait()
	s.streams.Wait()
	s.rest()
	s.none()
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
	s := &soak{traffic: newTraffic(t)}
	s.host, s.grpc = "shop.example", "shop.example"
	s.b = newStand(t, http.HandlerFunc(s.app))
	s.edge = &stand{t: t, dir: t.TempDir(), auth: s.b.auth, ended: make(chan error, 1)}
	s.edge.svid("gateway")
	s.c = &stand{t: t, dir: t.TempDir(), auth: s.b.auth, app: talker(t), ended: make(chan error, 1)}
	s.c.svid("c")
	cert, chain, err := s.b.auth.EdgeCertificate([]string{"shop.example"})
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	s.secure = &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "shop.example"}
	s.secure.RootCAs.AppendCertsFromPEM(chain)
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
