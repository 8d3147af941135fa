package gate_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"merlon"
	"merlon/gate"
	"merlon/identity/spiffe"
)

const tcpIntent = `
trustDomain: shop.example
services:
  web: {localPorts: {ledger: PORT}, operations: {home: GET /}, callers: {other: all}}
  other: {}
  chat: {operations: {room: GET /}, callers: {web: all}}
  ledger: {protocol: tcp, callers: {web: all}}
external:
  db: {hosts: [db.example.com:5432], protocol: tcp, callers: {web: all}}
  lan: {hosts: ["10.1.2.3:5432"], protocol: tcp, callers: {web: all}}
  site: {hosts: [www.example.com], callers: {web: all}}
`

// greeter is an app that speaks first, and echoes what comes until that ends.
type greeter struct {
	net.Listener
	says string
	mu   sync.Mutex
	last net.Conn
}

func greet(t testing.TB, says string) *greeter {
	g := &greeter{Listener: listen(t), says: says}
	t.Cleanup(func() { g.Close() })
	go func() {
		for {
			c, err := g.Accept()
			if err != nil {
				return
			}
			g.mu.Lock()
			g.last = c
			g.mu.Unlock()
			go func() {
				defer c.Close()
				io.WriteString(c, g.says)
				if _, err := io.Copy(c, c); err == nil {
					io.WriteString(c, "bye")
				}
			}()
		}
	}()
	return g
}

func (g *greeter) reset() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last.(*net.TCPConn).SetLinger(0)
	g.last.Close()
}

var takenPorts sync.Map // handed out in this process

// freePort is a port that nothing listens on. It is below the range from which
// systems take ports by themselves, so that it stays free.
func freePort(t testing.TB) string {
	t.Helper()
	for {
		port := strconv.Itoa(12000 + rand.IntN(20000))
		l, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err != nil {
			continue
		}
		l.Close()
		if _, again := takenPorts.LoadOrStore(port, true); !again {
			return port
		}
	}
}

type tcpEstate struct {
	*estate
	port, text  string
	ledger, far *greeter
}

func startTCP(t testing.TB, own func(net.Conn) error, bounds ...gate.Bounds) *tcpEstate {
	e := &tcpEstate{port: freePort(t), ledger: greet(t, "ledger ready\n"), far: greet(t, "far ready\n")}
	e.text = strings.Replace(tcpIntent, "PORT", e.port, 1)
	s := setup{
		apps: map[string]http.Handler{"chat": echo("chat"), "web": echo("web")},
		addresses: map[string]string{"ledger": e.ledger.Addr().String(), "db": e.far.Addr().String(), "lan": e.far.Addr().String(),
			"site": e.far.Addr().String()},
		own: own,
	}
	if len(bounds) > 0 {
		s.bounds = bounds[0]
	}
	e.estate = s.start(t, e.text)
	return e
}

// local connects to the local port of web.
func (e *tcpEstate) local() (net.Conn, *bufio.Reader) {
	e.t.Helper()
	c := dial(e.t, "127.0.0.1:"+e.port)
	c.SetDeadline(time.Now().Add(30 * time.Second))
	return c, bufio.NewReader(c)
}

func connect(host string, fields ...string) string {
	return "CONNECT " + host + " HTTP/1.1\r\nHost: " + host + "\r\n" + strings.Join(append(fields, ""), "\r\n") + "\r\n"
}

// TestTCP goes through two gates: a service that speaks first is heard before
// the client has said a word, and each side ends when it likes.
func TestTCP(t *testing.T) {
	t.Parallel()
	e := startTCP(t, nil)
	c, r := e.local()
	expect(t, r, "ledger ready\n")
	big := strings.Repeat("0123456789abcdef", 1<<16)
	go func() {
		io.WriteString(c, big)
		c.(*net.TCPConn).CloseWrite()
	}()
	expect(t, r, big+"bye")
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
	_, r, res := converse(t, dial(t, e.out["web"]), connect("ledger:5432"))
	if res.StatusCode != 200 || res.Header.Get("Merlon-Request-Id") == "" {
		t.Fatalf("CONNECT: %v", res)
	}
	expect(t, r, "ledger ready\n")
	e.stop()
	out, in := e.evidence(merlon.Place{Service: "web"}), e.evidence(merlon.Place{Service: "ledger"})
	if len(out) != 4 || len(in) != 4 {
		t.Fatalf("recorded %+v, %+v", out, in)
	}
	ids := map[string]int{}
	for i, r := range append(out, in...) {
		ids[r.ID]++
		if r.Caller != "web" || r.Service != "ledger" || r.Verdict.Rule != "ledger: web" || r.Method+r.Path+r.Host != "" || r.Status != 200 {
			t.Errorf("%d: recorded %+v", i, r)
		}
	}
	if len(ids) != 2 {
		t.Errorf("the two gates give different ids: %v", ids)
	}
	for _, r := range out[:2] {
		if r.Detail == "tunnel ended: the client ended it" && (r.BytesIn != int64(len(big)) || r.BytesOut != int64(len(big)+len("ledger ready\nbye"))) {
			t.Errorf("counted %+v", r)
		}
	}
}

// TestConnect leads where the intent says, to the byte, and nowhere else.
func TestConnect(t *testing.T) {
	t.Parallel()
	e := startTCP(t, nil)
	for _, tt := range []struct {
		as, request string
		status      int
		reason      string
	}{
		{"web", connect("db.example.com:5432"), 200, ""},
		{"web", connect("DB.example.com:5432"), 200, ""},
		{"web", connect("10.1.2.3:5432"), 200, ""},
		{"web", "CONNECT db.example.com:5432 HTTP/1.0\r\n\r\n", 200, ""},
		{"web", connect("db.example.com:5433"), 404, "no_service"},
		{"web", connect("db.example.com:22"), 404, "no_service"},
		{"web", connect("db.example.com"), 404, "no_service"},
		{"web", connect("db.example.com:05432"), 400, "target_invalid"},
		{"web", connect("db.example.com.:5432"), 200, ""},
		{"web", connect("evil.example.com:5432"), 404, "no_service"},
		{"web", connect("10.1.2.3:22"), 404, "no_service"},
		{"web", connect("10.1.2.4:5432"), 404, "no_service"},
		{"web", connect("127.0.0.1:22"), 404, "no_service"},
		{"web", connect("[::1]:22"), 404, "no_service"},
		{"web", connect("169.254.169.254:80"), 404, "no_service"},
		{"web", connect("www.example.com:443"), 405, "tunnel_wrong"},
		{"web", "GET http://ledger/ HTTP/1.1\r\nHost: ledger\r\n\r\n", 405, "tunnel_wrong"},
		{"web", "GET http://db.example.com:5432/ HTTP/1.1\r\nHost: db.example.com:5432\r\n\r\n", 404, "no_service"},
		{"web", connect("ledger:5432", "Content-Length: 3"), 400, "connect_with_body"},
		{"web", connect("ledger:5432", "Transfer-Encoding: chunked"), 400, "connect_with_body"},
		{"web", "CONNECT ledger:5432 HTTP/1.1\r\nHost: chat\r\n\r\n", 400, "connect_host_differs"},
		{"web", "CONNECT ledger:5432 HTTP/1.1\r\n\r\n", 400, "host_missing"},
		{"web", "CONNECT http://ledger:5432/ HTTP/1.1\r\nHost: ledger:5432\r\n\r\n", 400, "target_invalid"},
		{"web", connect("ledger:5432", "Upgrade: websocket", "Connection: Upgrade"), 501, "upgrade_not_spoken"},
		{"other", connect("ledger:5432"), 404, "no_service"},
	} {
		_, r, res := converse(t, dial(t, e.out[tt.as]), tt.request+"GET http://chat/ HTTP/1.1\r\nHost: chat\r\n\r\n")
		if res.StatusCode != tt.status || res.Header.Get("Merlon-Reason") != tt.reason {
			t.Errorf("%.60q: got %d %s, want %d %s", tt.request, res.StatusCode, res.Header.Get("Merlon-Reason"), tt.status, tt.reason)
			continue
		}
		if tt.status == 200 {
			expect(t, r, "far ready\nGET http://chat/ HTTP/1.1\r\nHost: chat\r\n\r\n")
			continue
		}
		io.Copy(io.Discard, res.Body)
		if !strings.HasPrefix(tt.request, "CONNECT") {
			continue
		}
		if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
			t.Errorf("%.60q: what followed was answered: %.100q, %v", tt.request, rest, err)
		}
	}
}

// TestTunnelProtocol: the gate of a service that speaks TCP takes nothing but
// tunnels, and no other gate takes any.
func TestTunnelProtocol(t *testing.T) {
	t.Parallel()
	e := startTCP(t, nil)
	meet := func(as, service string, protocols ...string) (*tls.Conn, error) {
		source, err := e.auth.Source(t.Context(), "spiffe://shop.example/"+as, nil)
		if err != nil {
			t.Fatal(err)
		}
		config := spiffe.ClientConfig(source, "spiffe://shop.example/"+service)
		config.NextProtos = protocols
		c, err := tls.Dial("tcp", e.in[service], config)
		if err == nil {
			c.SetDeadline(time.Now().Add(30 * time.Second))
			t.Cleanup(func() { c.Close() })
		}
		return c, err
	}
	for _, tt := range []struct {
		service   string
		protocols []string
	}{
		{"ledger", []string{"http/1.1"}},
		{"ledger", []string{"h2", "http/1.1"}},
		{"ledger", nil},
		{"chat", []string{"merlon-tcp"}},
	} {
		c, err := meet("web", tt.service, tt.protocols...)
		if err != nil {
			continue
		}
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if b, err := io.ReadAll(c); len(b) > 0 || err == nil && len(tt.protocols) > 0 {
			t.Errorf("%s takes %q: %q, %v", tt.service, tt.protocols, b, err)
		}
	}
	for _, tt := range []struct {
		as, request string
		status      int
		reason      string
	}{
		{"other", connect("ledger:1"), 403, "no_rule"},
		{"web", "GET / HTTP/1.1\r\nHost: ledger\r\n\r\n", 405, "tunnel_wrong"},
		{"web", "GET http://ledger/ HTTP/1.1\r\nHost: ledger\r\n\r\n", 400, "absolute_form"},
		{"web", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "http2_not_spoken"},
		{"web", connect("anything:1"), 200, ""},
	} {
		c, err := meet(tt.as, "ledger", "merlon-tcp")
		if err != nil {
			t.Fatal(err)
		}
		_, _, res := converse(t, c, tt.request)
		if res.StatusCode != tt.status || res.Header.Get("Merlon-Reason") != tt.reason {
			t.Errorf("%s, %.60q: got %d %s, want %d %s", tt.as, tt.request, res.StatusCode, res.Header.Get("Merlon-Reason"), tt.status, tt.reason)
		}
	}
	c, err := meet("web", "chat", "http/1.1")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, res := converse(t, c, connect("chat:1")); res.StatusCode != 501 {
		t.Errorf("CONNECT to a service with HTTP: %d", res.StatusCode)
	}
}

// TestTCPRefused: an application that connects to a local port in vain sees the
// end of the connection, and the record says why.
func TestTCPRefused(t *testing.T) {
	t.Parallel()
	e := startTCP(t, nil)
	e.ledger.Close()
	_, r := e.local()
	if b, err := io.ReadAll(r); len(b) > 0 || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
	e.stop()
	out, in := e.evidence(merlon.Place{Service: "web"}), e.evidence(merlon.Place{Service: "ledger"})
	if len(out) != 1 || out[0].Status != 502 || len(in) != 1 || in[0].Verdict.Reason != "upstream_connect" || in[0].ID != out[0].ID {
		t.Errorf("recorded %+v, %+v", out, in)
	}
}

// TestTCPReset: an end that is not clean stays one.
func TestTCPReset(t *testing.T) {
	t.Parallel()
	e := startTCP(t, nil)
	_, r := e.local()
	expect(t, r, "ledger ready\n")
	e.ledger.reset()
	if b, err := io.ReadAll(r); len(b) > 0 || err == nil {
		t.Errorf("read %q, %v", b, err)
	}
	e.stop()
	for _, place := range []string{"web", "ledger"} {
		all := e.evidence(merlon.Place{Service: place})
		if len(all) != 2 || all[1].Verdict.Reason != gate.ReasonTunnelBroken || all[1].Verdict.Effect != merlon.Allow {
			t.Errorf("%s recorded %+v", place, all)
		}
	}
}

// TestLocalPortsWait: a gate that does not serve yet accepts nothing at its local
// ports, for the process before it still does, at the same sockets.
func TestLocalPortsWait(t *testing.T) {
	t.Parallel()
	e := startTCP(t, nil)
	place := merlon.Place{Service: "web"}
	shared := listen(t).(*net.TCPListener)
	defer shared.Close()
	e.setup.listen = func(string, string) (net.Listener, error) {
		f, err := shared.File()
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return net.FileListener(f)
	}
	l := load(t, e.text, nil)
	heir := e.gate(l.Intent, place)
	if err := heir.Swap(e.orders(l, place)); err != nil {
		t.Fatal(err)
	}
	shared.SetDeadline(time.Now().Add(patience))
	for i := range 50 {
		c := dial(t, shared.Addr().String())
		got, err := shared.Accept()
		if err != nil {
			t.Fatalf("connection %d of 50: %v", i, err)
		}
		if got.Close(); got.RemoteAddr().String() != c.LocalAddr().String() {
			t.Fatalf("connection %d of 50 was accepted by who does not serve", i)
		}
	}
	go heir.Serve(listen(t), gate.Outbound)
	expect(t, newWire(t, dial(t, shared.Addr().String())).r, "ledger ready\n")
}

// TestLocalPorts come and go with the orders. One that cannot be had makes the
// gate refuse them.
func TestLocalPorts(t *testing.T) {
	t.Parallel()
	e := startTCP(t, nil)
	place := merlon.Place{Service: "web"}
	old, oldReader := e.local()
	expect(t, oldReader, "ledger ready\n")

	taken := listen(t)
	defer taken.Close()
	_, port, _ := net.SplitHostPort(taken.Addr().String())
	before := e.gates[place].Hash()
	more := "{ledger: " + e.port + ", db: " + port + "}"
	refused := load(t, strings.Replace(e.text, "{ledger: "+e.port+"}", more, 1), nil)
	if err := e.gates[place].Swap(e.orders(refused, place)); err == nil || !strings.Contains(err.Error(), "local port "+port+" for db") {
		t.Fatalf("orders with a port that is taken: %v", err)
	}
	if e.gates[place].Hash() != before {
		t.Fatal("the orders are in force")
	}
	_, r := e.local()
	expect(t, r, "ledger ready\n")

	e.swap(strings.Replace(e.text, e.port, freePort(t), 1))
	if c, err := net.Dial("tcp", "127.0.0.1:"+e.port); err == nil {
		c.Close()
		t.Error("the old port is open still")
	}
	io.WriteString(old, "still there")
	expect(t, oldReader, "still there") // the port is gone, the permission is not
	e.swap(e.text)
	_, r = e.local()
	expect(t, r, "ledger ready\n")
	e.swap(strings.Replace(strings.Replace(e.text, "callers: {web: all}}\nexternal", "callers: {other: all}}\nexternal", 1), "localPorts: {ledger: "+e.port+"}, ", "", 1))
	for _, r := range []*bufio.Reader{oldReader, r} {
		if _, err := r.ReadByte(); err == nil {
			t.Error("a tunnel goes on")
		}
	}
}

// TestTunnelOwn: a local port is for the gate's own service, as the outbound port
// is; and who stops being it loses its tunnels.
func TestTunnelOwn(t *testing.T) {
	t.Parallel()
	var stranger atomic.Bool
	e := startTCP(t, func(net.Conn) error {
		if stranger.Load() {
			return errors.New("a stranger")
		}
		return nil
	})
	_, r := e.local()
	expect(t, r, "ledger ready\n")
	stranger.Store(true)
	_, other := e.local()
	if b, err := io.ReadAll(other); len(b) > 0 || err != nil {
		t.Errorf("a stranger read %q, %v", b, err)
	}
	e.gates[merlon.Place{Service: "web"}].AskOwn()
	if _, err := r.ReadByte(); err == nil {
		t.Error("the tunnel goes on")
	}
	e.stop()
	reasons := map[merlon.Reason]int{}
	for _, r := range e.evidence(merlon.Place{Service: "web"}) {
		reasons[r.Verdict.Reason]++
	}
	if fmt.Sprint(reasons) != "map[allowed:1 not_own_workload:2]" {
		t.Errorf("recorded %v", reasons)
	}
}

// TestTunnelMany: tunnels leave the endpoint room for more connections than it
// may have at once for calls, and are bounded as connections are.
func TestTunnelMany(t *testing.T) {
	t.Parallel()
	e := startTCP(t, nil, gate.Bounds{Connections: 30})
	for range 30 {
		_, r := e.local()
		expect(t, r, "ledger ready\n")
	}
	_, r := e.local()
	if b, _ := io.ReadAll(r); len(b) > 0 {
		t.Errorf("one more than the bound: %q", b)
	}
}

// TestTunnelHalf: a client that has ended does not hold the tunnel for long,
// even if the service does not notice.
func TestTunnelHalf(t *testing.T) {
	t.Parallel()
	held := make(chan struct{})
	t.Cleanup(func() { close(held) })
	address := app(t, func(c net.Conn, r *bufio.Reader) {
		io.Copy(io.Discard, r)
		<-held
	})
	port := freePort(t)
	s := setup{addresses: map[string]string{"ledger": address}, bounds: gate.Bounds{Idle: time.Second}}
	e := s.start(t, "trustDomain: shop.example\nservices:\n  web: {localPorts: {ledger: "+port+"}}\n  ledger: {protocol: tcp, callers: {web: all}}\n")
	c := dial(t, "127.0.0.1:"+port)
	c.SetDeadline(time.Now().Add(30 * time.Second))
	closeWrite(t, c)
	if b, err := io.ReadAll(c); len(b) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %q, %v", b, err)
	}
	e.stop()
	all := e.evidence(merlon.Place{Service: "web"})
	if last := all[len(all)-1]; last.Verdict.Reason != gate.ReasonTunnelQuiet && last.Verdict.Reason != gate.ReasonTunnelBroken {
		t.Errorf("recorded %+v", last)
	}
}
