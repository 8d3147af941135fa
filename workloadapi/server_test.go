package workloadapi

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"merlon"
	"merlon/attest"
	"merlon/authority"
	"merlon/internal/sockowner"
)

const td = "shop.example"

// estate is an authority, a Workload API, and an intent that can change.
type estate struct {
	*Server
	authority *authority.Authority
	path      string // of the socket
	tcp       string
	partners  *federation

	mu      sync.Mutex
	in      *attest.Attestor
	changed chan struct{}
}

func (e *estate) identify(ctx context.Context, p *sockowner.Process) (string, error) {
	e.mu.Lock()
	a := e.in
	e.mu.Unlock()
	return a.Identify(ctx, p)
}

func (e *estate) stale() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.changed
}

// apply puts another intent in force.
func (e *estate) apply(t testing.TB, services ...merlon.Service) {
	t.Helper()
	a, err := attest.New(&merlon.Intent{TrustDomain: td, Services: services}, attest.Options{Docker: "/nowhere"})
	if err != nil {
		t.Fatal(err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.in = a
	close(e.changed)
	e.changed = make(chan struct{})
}

// me is a service that is this test's own user.
func me(t testing.TB, name string) merlon.Service {
	t.Helper()
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	return merlon.Service{Name: name, Pos: merlon.Pos{File: "merlon.yaml", Line: 3}, Workload: &merlon.WorkloadRule{UnixUser: u.Uid}}
}

func start(t testing.TB, opt authority.Options, services ...merlon.Service) *estate {
	t.Helper()
	if !sockowner.Supported() {
		t.Skip("this system does not tell who is at the other end of a socket")
	}
	a, err := authority.Open(t.TempDir()+"/authority", td, opt)
	if err != nil {
		t.Fatal(err)
	}
	e := &estate{authority: a, partners: &federation{changed: make(chan struct{})}, changed: make(chan struct{})}
	e.apply(t, services...)
	e.Server, err = New(Config{Authority: a, TrustDomain: td, Identify: e.identify, Changed: e.stale, Federated: e.partners.get})
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "wl") // t.TempDir may be longer than a socket's path
	if err != nil {
		t.Fatal(err)
	}
	e.path = filepath.Join(dir, "api.sock")
	l, err := Listen(e.path)
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e.tcp = tcp.Addr().String()
	var wg sync.WaitGroup
	for _, l := range []net.Listener{l, tcp} {
		wg.Go(func() {
			if err := e.Serve(l); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		e.Close()
		wg.Wait()
		a.Close()
		os.RemoveAll(dir)
	})
	return e
}

func (e *estate) addresses() []string { return []string{"unix://" + e.path, "tcp://" + e.tcp} }

func (e *estate) client(t testing.TB, address string) *workloadapi.Client {
	t.Helper()
	c, err := workloadapi.New(t.Context(), workloadapi.WithAddr(address))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// within is a generous bound on what happens at once.
func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// go-spiffe, the reference, fetches everything over both kinds of socket.
func TestGoSPIFFE(t *testing.T) {
	t.Parallel()
	e := start(t, authority.Options{}, me(t, "web"), merlon.Service{Name: "db"})
	for _, address := range e.addresses() {
		c, ctx := e.client(t, address), within(t)
		x, err := c.FetchX509Context(ctx)
		if err != nil {
			t.Fatal(address, err)
		}
		if id := x.DefaultSVID().ID.String(); id != "spiffe://shop.example/web" || len(x.SVIDs) != 1 {
			t.Errorf("%s: %s, %d SVIDs", address, id, len(x.SVIDs))
		}
		bundles, err := c.FetchX509Bundles(ctx)
		if err != nil || bundles.Len() != 1 {
			t.Fatal(address, err)
		}
		audience := jwtsvid.Params{Audience: "db", ExtraAudiences: []string{"other"}}
		token, err := c.FetchJWTSVID(ctx, audience)
		if err != nil {
			t.Fatal(address, err)
		}
		jwt, err := c.FetchJWTBundles(ctx)
		if err != nil {
			t.Fatal(address, err)
		}
		if got, err := jwtsvid.ParseAndValidate(token.Marshal(), jwt, []string{"db"}); err != nil || got.ID != x.DefaultSVID().ID {
			t.Errorf("%s: %v, %v", address, got, err)
		}
		if d := time.Until(token.Expiry); d < 4*time.Minute || d > 5*time.Minute+time.Second {
			t.Errorf("%s: a token for %v", address, d)
		}
		got, err := c.ValidateJWTSVID(ctx, token.Marshal(), "other")
		if err != nil || got.ID != x.DefaultSVID().ID {
			t.Errorf("%s: %v, %v", address, got, err)
		}
		if _, err := c.ValidateJWTSVID(ctx, token.Marshal(), "third"); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: a token for another audience: %v", address, err)
		}
		if _, err := c.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "db", Subject: spiffeid.RequireFromString("spiffe://shop.example/db")}); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: another's identity: %v", address, err)
		}
		if _, err := c.FetchJWTSVID(ctx, jwtsvid.Params{}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: a token for everybody: %v", address, err)
		}
	}
}

// Two programs that know nothing but their sockets do mutual TLS.
func TestMutualTLS(t *testing.T) {
	t.Parallel()
	server := start(t, authority.Options{}, me(t, "orders"))
	source, err := workloadapi.NewX509Source(within(t), workloadapi.WithClientOptions(workloadapi.WithAddr("unix://"+server.path)))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	id := spiffeid.RequireFromString("spiffe://shop.example/orders")
	l, err := tls.Listen("tcp", "127.0.0.1:0", tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeID(id)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			fmt.Fprint(c, "hello")
			c.Close()
		}
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(id)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b := make([]byte, 5)
	if _, err := c.Read(b); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
}

// raw is a client that sends what it likes.
func raw(t testing.TB, e *estate) workload.SpiffeWorkloadAPIClient {
	t.Helper()
	c, err := grpc.NewClient("unix://"+e.path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return workload.NewSpiffeWorkloadAPIClient(c)
}

func withHeader(ctx context.Context, v ...string) context.Context {
	for _, v := range v {
		ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", v)
	}
	return ctx
}

// Without the header that tricked servers do not send there is nothing.
func TestHeaderIsRequired(t *testing.T) {
	t.Parallel()
	e := start(t, authority.Options{}, me(t, "web"))
	c := raw(t, e)
	for _, header := range [][]string{nil, {""}, {"false"}, {"True"}, {"true", "true"}} {
		ctx := withHeader(within(t), header...)
		calls := map[string]func() error{
			"FetchX509SVID": func() error {
				s, err := c.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
				return first(err, func() error { _, err := s.Recv(); return err })
			},
			"FetchX509Bundles": func() error {
				s, err := c.FetchX509Bundles(ctx, &workload.X509BundlesRequest{})
				return first(err, func() error { _, err := s.Recv(); return err })
			},
			"FetchJWTBundles": func() error {
				s, err := c.FetchJWTBundles(ctx, &workload.JWTBundlesRequest{})
				return first(err, func() error { _, err := s.Recv(); return err })
			},
			"FetchJWTSVID": func() error {
				_, err := c.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"a"}})
				return err
			},
			"ValidateJWTSVID": func() error {
				_, err := c.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{})
				return err
			},
		}
		for name, call := range calls {
			if err := call(); status.Code(err) != codes.InvalidArgument {
				t.Errorf("%s with %q: %v", name, header, err)
			}
		}
	}
}

func first(err error, then func() error) error {
	if err != nil {
		return err
	}
	return then()
}

// Who matches no service, or two, gets nothing, and hears nothing of why.
func TestNoIdentity(t *testing.T) {
	t.Parallel()
	stranger := me(t, "other")
	stranger.Workload = &merlon.WorkloadRule{UnixUser: "4242"}
	for name, services := range map[string][]merlon.Service{
		"none":                 {stranger},
		"no service at all":    nil,
		"nothing says how":     {{Name: "web"}},
		"two":                  {me(t, "web"), me(t, "orders")},
		"one selector of two":  {func() merlon.Service { s := me(t, "web"); s.Workload.SHA256 = strings.Repeat("0", 64); return s }()},
		"cannot be checked":    {func() merlon.Service { s := me(t, "web"); s.Workload.Executable = "/nowhere"; return s }()},
		"of a container":       {{Name: "web", Workload: &merlon.WorkloadRule{DockerLabels: map[string]string{"app": "web"}}}},
		"of a unit":            {{Name: "web", Workload: &merlon.WorkloadRule{SystemdUnit: "web.service"}}},
		"of an outside system": {{Name: "web", External: true, Workload: me(t, "web").Workload}},
	} {
		e := start(t, authority.Options{}, services...)
		c, ctx := raw(t, e), withHeader(within(t), "true")
		s, err := c.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
		if err == nil {
			_, err = s.Recv()
		}
		_, jerr := c.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"a"}})
		_, verr := c.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: "a", Svid: "x"})
		for _, err := range []error{err, jerr, verr} {
			if status.Code(err) != codes.PermissionDenied || strings.Contains(err.Error(), "web") {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// A renewed SVID, a new bundle and the end of an identity are pushed.
func TestPush(t *testing.T) {
	t.Parallel()
	e := start(t, authority.Options{Lifetime: 4 * time.Second, Intermediate: 8 * time.Second, Root: 12 * time.Second, JWTKey: 12 * time.Second}, me(t, "web"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go e.authority.Run(ctx)
	c := raw(t, e)
	stream, err := c.FetchX509SVID(withHeader(within(t), "true"), &workload.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := c.FetchJWTBundles(withHeader(within(t), "true"), &workload.JWTBundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	serials, bundles := map[string]bool{}, map[string]bool{}
	for len(serials) < 4 || len(bundles) < 3 {
		r, err := stream.Recv()
		if err != nil {
			t.Fatalf("after %d SVIDs and %d bundles: %v", len(serials), len(bundles), err)
		}
		svid := r.Svids[0]
		certs, err := x509.ParseCertificates(svid.X509Svid)
		if err != nil {
			t.Fatal(err)
		}
		id := certs[0].SerialNumber.String() + string(svid.Bundle)
		if serials[id] {
			t.Error("the same twice")
		}
		serials[id], bundles[string(svid.Bundle)] = true, true
		roots, between := x509.NewCertPool(), x509.NewCertPool()
		anchors, err := x509.ParseCertificates(svid.Bundle)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range anchors {
			roots.AddCert(c)
		}
		for _, c := range certs[1:] {
			between.AddCert(c)
		}
		if _, err := certs[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between}); err != nil {
			t.Error(err)
		}
		if _, err := x509.ParsePKCS8PrivateKey(svid.X509SvidKey); err != nil {
			t.Error(err)
		}
	}
	for range 2 { // the keys change too
		if _, err := keys.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	testRevoked(t, e, c, stream, keys)
}

// testRevoked takes the identity of two streams away: both end.
func testRevoked(t *testing.T, e *estate, c workload.SpiffeWorkloadAPIClient, stream grpc.ServerStreamingClient[workload.X509SVIDResponse],
	keys grpc.ServerStreamingClient[workload.JWTBundlesResponse]) {
	t.Helper()
	var err error
	other := me(t, "web") // the intent names another user now
	other.Workload = &merlon.WorkloadRule{UnixUser: "4242"}
	e.apply(t, other)
	for {
		_, err = stream.Recv()
		if err != nil {
			break
		}
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("an identity that was taken away: %v", err)
	}
	for {
		if _, err = keys.Recv(); err != nil {
			break
		}
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("bundles for one that was taken away: %v", err)
	}
	// And it comes back as another service.
	e.apply(t, me(t, "orders"))
	r, err := c.FetchX509SVID(withHeader(within(t), "true"), &workload.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := r.Recv(); err != nil || m.Svids[0].SpiffeId != "spiffe://shop.example/orders" {
		t.Error(m, err)
	}
}

// A stream whose workload becomes another service is told at once.
func TestRenamed(t *testing.T) {
	t.Parallel()
	e := start(t, authority.Options{}, me(t, "web"))
	s, err := raw(t, e).FetchX509SVID(withHeader(within(t), "true"), &workload.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"web", "orders", "web"} {
		r, err := s.Recv()
		if err != nil || r.Svids[0].SpiffeId != "spiffe://shop.example/"+want {
			t.Fatalf("%v, %v", r, err)
		}
		e.apply(t, me(t, map[string]string{"web": "orders", "orders": "web"}[want]))
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.Server.mu.Lock()
	defer e.Server.mu.Unlock()
	if n := len(e.svids); n > 2 {
		t.Errorf("%d SVIDs are held for one stream", n)
	}
}

// What a caller may ask for is bounded.
func TestBounds(t *testing.T) {
	t.Parallel()
	e := start(t, authority.Options{}, me(t, "web"))
	c, ctx := raw(t, e), withHeader(within(t), "true")
	_, err := c.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: "a", Svid: strings.Repeat("x", maxMessage+1)})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a huge message: %v", err)
	}
	for i := 0; ; i++ {
		_, err := c.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"a"}})
		if status.Code(err) == codes.ResourceExhausted {
			if i < maxTokens {
				t.Errorf("refused after %d", i)
			}
			break
		}
		if err != nil || i > 100*maxTokens {
			t.Fatal(i, err)
		}
	}
	// One process holds a few connections and no more.
	var held []net.Conn
	for range 3 * maxConnsProcess {
		conn, err := net.Dial("unix", e.path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		held = append(held, conn)
	}
	closed := 0
	for _, conn := range held {
		conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		// A connection that is served begins with SETTINGS; one too many is closed.
		if _, err := conn.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			closed++
		}
	}
	if closed < 2*maxConnsProcess {
		t.Errorf("%d of %d connections were closed", closed, len(held))
	}
	for _, conn := range held {
		conn.Close()
	}
	for {
		e.callers.mu.Lock()
		n := e.callers.all
		e.callers.mu.Unlock()
		if n <= 1 { // that of c
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("%d connections are counted after all are closed", n)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestListen(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "wl")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "a.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "another process serves") {
		t.Errorf("a socket that answers: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o777 {
		t.Error(info, err)
	}
	// A killed process leaves its socket.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if l, err = Listen(path); err != nil {
		t.Fatal(err)
	}
	l.Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file: %v", err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "mine" {
		t.Error("a file that is no socket was touched")
	}
	if _, err := Listen(filepath.Join(dir, strings.Repeat("x", 108))); err == nil || !strings.Contains(err.Error(), "choose a shorter") {
		t.Errorf("a long path: %v", err)
	}
	e := start(t, authority.Options{})
	any, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Serve(any); err == nil {
		t.Error("the Workload API is served to the network")
	}
}
