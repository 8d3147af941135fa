package gate_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"merlon"
	"merlon/authority"
	"merlon/gate"
	"merlon/intent"
	"merlon/policy"
	"merlon/record"
)

// estate is a running system made from an intent: real gates with real SVIDs
// between real servers, all on loopback.
type estate struct {
	t       testing.TB
	edge    string // address
	gates   map[merlon.Place]*gate.Gate
	in, out map[string]string // service -> address of its gate
	apps    map[string]string // service -> address
	auth    *authority.Authority
	records map[merlon.Place]string
	writers map[merlon.Place]*record.Writer
	edgePEM []byte
	files   fstest.MapFS // beside the intent
	setup   setup
}

// load reads an intent; files are "name: content" pairs beside it.
func load(t testing.TB, text string, files fstest.MapFS) *intent.Loaded {
	t.Helper()
	tree := fstest.MapFS{"merlon.yaml": {Data: []byte(text)}}
	for name, f := range files {
		tree[name] = f
	}
	l, ds := intent.Load(tree)
	if ds.Failed() {
		t.Fatalf("the test's intent is wrong: %v", ds)
	}
	return l
}

// start runs an estate. The intent leaves addresses out; every service whose
// name is a key of apps gets a server, and every service a gate.
func start(t testing.TB, text string, apps map[string]http.Handler, bounds ...gate.Bounds) *estate {
	return startWith(t, text, nil, apps, bounds...)
}

func startWith(t testing.TB, text string, files fstest.MapFS, apps map[string]http.Handler, bounds ...gate.Bounds) *estate {
	t.Helper()
	s := setup{files: files, apps: apps}
	if len(bounds) > 0 {
		s.bounds = bounds[0]
	}
	return s.start(t, text)
}

// setup is what an estate may be started with beside its intent.
type setup struct {
	files     fstest.MapFS // beside the intent
	apps      map[string]http.Handler
	addresses map[string]string // of apps that the test runs itself
	bounds    gate.Bounds
	lifetime  time.Duration  // of SVIDs
	records   record.Options // of every gate
	own       func(net.Conn) error
	captured  func(net.Conn) (netip.AddrPort, error)
	rootsOf   func(trustDomain string) *x509.CertPool
	dialOwn   func(ctx context.Context, service, address string) (net.Conn, error)
	listen    func(name, address string) (net.Listener, error)
}

func (s setup) start(t testing.TB, text string) *estate {
	t.Helper()
	l := load(t, text, s.files)
	e := &estate{
		t:       t,
		gates:   map[merlon.Place]*gate.Gate{},
		in:      map[string]string{},
		out:     map[string]string{},
		apps:    map[string]string{},
		records: map[merlon.Place]string{},
		writers: map[merlon.Place]*record.Writer{},
		files:   s.files,
		setup:   s,
	}
	var err error
	e.auth, err = authority.Open(filepath.Join(t.TempDir(), "authority"), l.Intent.TrustDomain, authority.Options{Lifetime: s.lifetime})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.auth.Close() })
	maps.Copy(e.apps, s.addresses)
	for name, h := range s.apps {
		server := httptest.NewUnstartedServer(h)
		server.Config.Protocols = new(http.Protocols)
		server.Config.Protocols.SetHTTP1(true)
		server.Config.Protocols.SetUnencryptedHTTP2(true)
		server.Start()
		t.Cleanup(server.Close)
		e.apps[name] = server.Listener.Addr().String()
	}
	serve := map[merlon.Place]map[gate.Position]net.Listener{}
	if l.Intent.Gateway != nil {
		lis := listen(t)
		e.edge = lis.Addr().String()
		serve[merlon.Edge] = map[gate.Position]net.Listener{gate.AtEdge: lis}
	}
	for _, svc := range l.Intent.Services {
		if svc.External {
			continue
		}
		in, out := listen(t), listen(t)
		e.in[svc.Name], e.out[svc.Name] = in.Addr().String(), out.Addr().String()
		serve[merlon.Place{Service: svc.Name}] = map[gate.Position]net.Listener{gate.Inbound: in, gate.Outbound: out}
	}
	for place, listeners := range serve {
		g := e.gate(l.Intent, place)
		if err := g.Swap(e.orders(l, place)); err != nil {
			t.Fatalf("%v: %v", place, err)
		}
		for at, lis := range listeners {
			go g.Serve(lis, at)
		}
	}
	return e
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (e *estate) gate(in *merlon.Intent, place merlon.Place) *gate.Gate {
	e.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	e.t.Cleanup(cancel)
	log := slog.New(slog.NewTextHandler(testWriter{e.t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	source, err := e.auth.Source(ctx, in.SPIFFEID(place.Workload()), log)
	if err != nil {
		e.t.Fatal(err)
	}
	dir := filepath.Join(e.t.TempDir(), "records")
	e.records[place] = dir
	opt := e.setup.records
	opt.Now = time.Now
	if opt.FlushEvery == 0 {
		opt.FlushEvery = 5 * time.Millisecond
	}
	records, err := record.Open(dir, opt)
	if err != nil {
		e.t.Fatal(err)
	}
	e.writers[place] = records
	var dialOwn func(context.Context, string) (net.Conn, error)
	if f := e.setup.dialOwn; f != nil {
		dialOwn = func(ctx context.Context, address string) (net.Conn, error) { return f(ctx, place.Service, address) }
	}
	g, err := gate.New(gate.Config{
		Place:       place,
		DialOwn:     dialOwn,
		TrustDomain: in.TrustDomain,
		Source:      source,
		Records:     records,
		Log:         log,
		Bounds:      e.setup.bounds,
		Own:         e.setup.own,
		Captured:    e.setup.captured,
		Listen:      e.setup.listen,
		RootsOf:     e.setup.rootsOf,
		Portable:    portable,
		EdgeCertificate: func(hosts []string) (*tls.Certificate, error) {
			cert, pem, err := e.auth.EdgeCertificate(hosts)
			e.edgePEM = pem
			return cert, err
		},
	})
	if err != nil {
		e.t.Fatal(err)
	}
	e.gates[place] = g
	e.t.Cleanup(func() {
		g.Close()
		records.Close()
	})
	return g
}

// orders is what control would send to a place.
func (e *estate) orders(l *intent.Loaded, place merlon.Place) *merlon.Orders {
	e.t.Helper()
	o := &merlon.Orders{
		Version:   merlon.OrdersVersion,
		Place:     place,
		Of:        l.Hash,
		Intent:    policy.Scope(l.Intent, place),
		Endpoints: map[string][]merlon.Endpoint{},
	}
	for _, s := range o.Intent.Services {
		switch {
		case s.Name == place.Service, s.External:
			o.Endpoints[s.Name] = []merlon.Endpoint{{Address: e.apps[s.Name]}}
		default:
			o.Endpoints[s.Name] = []merlon.Endpoint{{Address: e.in[s.Name], ID: l.Intent.SPIFFEID(s.Name)}}
		}
	}
	if _, err := o.Encode(); err != nil {
		e.t.Fatal(err)
	}
	return o
}

// swap puts a new intent in force everywhere.
func (e *estate) swap(text string) {
	e.t.Helper()
	l := load(e.t, text, e.files)
	for place, g := range e.gates {
		if err := g.Swap(e.orders(l, place)); err != nil {
			e.t.Fatalf("%v: %v", place, err)
		}
	}
}

// stop ends all gates and closes their records.
func (e *estate) stop() {
	for _, g := range e.gates {
		g.Close()
	}
	for _, w := range e.writers {
		w.Close()
	}
}

// evidence is what a place has recorded, after stop.
func (e *estate) evidence(place merlon.Place) []record.Record {
	e.t.Helper()
	var all []record.Record
	for r, err := range record.Read(e.records[place], record.Filter{}) {
		if err != nil {
			e.t.Fatalf("records of %v: %v", place, err)
		}
		all = append(all, r)
	}
	if _, err := record.Verify(e.records[place]); err != nil {
		e.t.Errorf("records of %v: %v", place, err)
	}
	return all
}

// until waits for a condition, and fails the test if it does not come.
func until(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(patience)
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for !condition() {
		select {
		case <-look.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// client is an HTTP client of the gateway.
func (e *estate) client() *http.Client {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(e.edgePEM)
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", e.edge)
		},
		MaxIdleConnsPerHost: 64,
	}
	e.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 2 * patience}
}

// as is an HTTP client that calls as a service does, through its gate.
func (e *estate) as(service string) *http.Client {
	tr := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", e.out[service])
		},
		MaxIdleConnsPerHost: 64,
	}
	e.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 2 * patience}
}

// answer is what a client sees of one call.
type answer struct {
	status int
	reason string
	body   string
	header http.Header
	closes bool // the gate says that the connection ends
}

func do(t testing.TB, c *http.Client, method, url string, change ...func(*http.Request)) answer {
	t.Helper()
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		f(req)
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: body: %v", method, url, err)
	}
	return answer{res.StatusCode, res.Header.Get("Merlon-Reason"), string(body), res.Header, res.Close}
}

func dial(t testing.TB, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (e *estate) dialEdge() net.Conn {
	e.t.Helper()
	if e.edgePEM == nil {
		return dial(e.t, e.edge)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(e.edgePEM)
	c, err := tls.Dial("tcp", e.edge, &tls.Config{RootCAs: roots, ServerName: "shop.example"})
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { c.Close() })
	return c
}

// echo is an app that tells what it was asked.
func echo(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(seen{name, r.Method, r.RequestURI, r.Host, r.Header, len(body)})
	})
}

type seen struct {
	App, Method, URI, Host string
	Header                 http.Header
	Body                   int
}

func (a answer) seen(t testing.TB) seen {
	t.Helper()
	var s seen
	if err := json.Unmarshal([]byte(a.body), &s); err != nil {
		t.Fatalf("answer %d %s is not of an app: %q", a.status, a.reason, a.body)
	}
	return s
}

// testWriter logs to the test, line by line.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	if testing.Verbose() {
		fmt.Print(strings.TrimRight(w.t.Name()+": "+string(p), "\n"), "\n")
	}
	return len(p), nil
}
