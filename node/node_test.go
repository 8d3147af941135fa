package node

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"merlon"
	"merlon/attest"
	"merlon/authority"
	"merlon/identity/spiffe"
)

const domain = "test.example"

// site is a server of nodes with its authority.
type site struct {
	t       *testing.T
	dir     string
	auth    *authority.Authority
	server  *Server
	address string
	log     *logged
	cluster *attest.Cluster

	mu  sync.Mutex
	now time.Time // zero is the system's
}

// logged is a log to read.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (s *site) clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now.IsZero() {
		return time.Now()
	}
	return s.now
}

func (s *site) set(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = now
}

// newSite serves an intent: c is on n1, d on n2.
func newSite(t *testing.T, nodes ...merlon.Node) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir(), log: new(logged)}
	s.open("127.0.0.1:0")
	s.server.Set(intentOf(nodes...))
	return s
}

func intentOf(nodes ...merlon.Node) *merlon.Intent {
	if len(nodes) == 0 {
		nodes = []merlon.Node{{Name: "n1", JoinToken: true}, {Name: "n2", JoinToken: true}}
	}
	svc := func(name, node string) merlon.Service {
		return merlon.Service{Name: name, Workload: &merlon.WorkloadRule{UnixUser: "0"}, Nodes: []string{node}}
	}
	return &merlon.Intent{TrustDomain: domain, Nodes: nodes, Services: []merlon.Service{svc("c", "n1"), svc("d", "n2"), {Name: "here"}}}
}

// open starts the authority and the server, with what they left before.
func (s *site) open(address string) {
	s.t.Helper()
	var err error
	log := slog.New(slog.NewTextHandler(s.log, nil))
	if s.auth, err = authority.Open(filepath.Join(s.dir, "authority"), domain, authority.Options{Now: s.clock}); err != nil {
		s.t.Fatal(err)
	}
	if s.server, err = NewServer(Config{Authority: s.auth, TrustDomain: domain, Dir: s.dir, Cluster: s.cluster, Now: s.clock, Log: log}); err != nil {
		s.t.Fatal(err)
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.address = l.Addr().String()
	server, auth := s.server, s.auth
	var wg sync.WaitGroup
	wg.Go(func() { server.Serve(l) })
	s.t.Cleanup(func() { server.Close(); wg.Wait(); auth.Close() })
}

func (s *site) token(node string) string {
	s.t.Helper()
	t, err := s.server.JoinToken(node, time.Minute)
	if err != nil {
		s.t.Fatal(err)
	}
	return t.String()
}

// agent is an agent with a state directory of its own.
func (s *site) agent(change func(*AgentConfig)) *Agent {
	s.t.Helper()
	cfg := AgentConfig{Server: s.address, Dir: filepath.Join(s.t.TempDir(), "agent"), Now: s.clock, Log: slog.New(slog.NewTextHandler(s.log, nil))}
	change(&cfg)
	a, err := OpenAgent(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	return a
}

func withToken(token string) func(*AgentConfig) {
	return func(c *AgentConfig) { c.Token = func() ([]byte, error) { return []byte(token + "\n"), nil } }
}

// joined is the SVID that a node gets, by its agent's own code.
func (s *site) joined(node string) *tls.Certificate {
	s.t.Helper()
	a := s.agent(withToken(s.token(node)))
	own, err := a.prove(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return own.SVID()
}

// shows is a spiffe.Source for tests.
type shows struct {
	cert  *tls.Certificate
	roots *x509.CertPool
}

func (s shows) SVID() *tls.Certificate { return s.cert }
func (s shows) Roots() *x509.CertPool  { return s.roots }

// dial is a client with a certificate of its own, or none, that speaks the
// protocol by hand.
func (s *site) dial(cert *tls.Certificate) *grpc.ClientConn {
	s.t.Helper()
	a := s.agent(func(c *AgentConfig) { c.TrustDomain = domain; c.Roots = s.auth.Bundle() })
	c := spiffe.ClientConfig(shows{cert, s.auth.Roots()}, EndpointID(domain))
	if cert == nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return new(tls.Certificate), nil }
	}
	conn, err := a.dial(c, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	return conn
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func csrOf(t testing.TB, key crypto.Signer, template *x509.CertificateRequest) []byte {
	t.Helper()
	csr, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func call(t *testing.T, c *grpc.ClientConn, path string, in, out any) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return c.Invoke(ctx, path, in, out)
}

// TestNodeAsksForMore: a node gets SVIDs of the services on it, for keys that it
// has, and nothing else.
func TestNodeAsksForMore(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := s.dial(s.joined("n1"))
	key := newKey(t)
	good := csrOf(t, key, &x509.CertificateRequest{})
	var out signed
	if err := call(t, c, signPath, &signRequest{"c", good}, &out); err != nil {
		t.Fatal(err)
	}
	if _, err := checkChain(out.Chain, key, "spiffe://"+domain+"/c"); err != nil {
		t.Error(err)
	}
	rsaLike := func() []byte { // a P-384 key
		k, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return csrOf(t, k, &x509.CertificateRequest{})
	}()
	forged := bytes.Clone(good)
	forged[len(forged)-1] ^= 1
	foreign := &url.URL{Scheme: "spiffe", Host: domain, Path: "/d"}
	for _, tt := range []struct {
		name, service string
		csr           []byte
		want          codes.Code
	}{
		{"another node's service", "d", good, codes.NotFound},
		{"a service of the control plane's host", "here", good, codes.NotFound},
		{"no service", "", good, codes.NotFound},
		{"the gateway", "gateway", good, codes.NotFound},
		{"another node", "merlon/node/n2", good, codes.NotFound},
		{"itself", "merlon/node/n1", good, codes.NotFound},
		{"the endpoint", endpointPath, good, codes.NotFound},
		{"a way out", "../d", good, codes.NotFound},
		{"a request with the name of another", "c", csrOf(t, key, &x509.CertificateRequest{URIs: []*url.URL{foreign}}), codes.InvalidArgument},
		{"a request with its own name", "c", csrOf(t, key, &x509.CertificateRequest{URIs: []*url.URL{{Scheme: "spiffe", Host: domain, Path: "/c"}}}), codes.InvalidArgument},
		{"a request with a host", "c", csrOf(t, key, &x509.CertificateRequest{DNSNames: []string{"d"}}), codes.InvalidArgument},
		{"a request with a subject", "c", csrOf(t, key, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "d"}}), codes.InvalidArgument},
		{"a request for a CA", "c", csrOf(t, key, &x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 19}, Value: []byte{0x30, 3, 1, 1, 0xff}}}}), codes.InvalidArgument},
		{"another kind of key", "c", rsaLike, codes.InvalidArgument},
		{"a forged request", "c", forged, codes.InvalidArgument},
		{"no request", "c", nil, codes.InvalidArgument},
	} {
		if err := call(t, c, signPath, &signRequest{tt.service, tt.csr}, &out); status.Code(err) != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	var jwt tokenAnswer
	if err := call(t, c, tokenPath, &tokenRequest{"c", []string{"https://db"}}, &jwt); err != nil || strings.Count(jwt.Token, ".") != 2 || jwt.Until.IsZero() {
		t.Error(jwt, err)
	}
	if err := call(t, c, tokenPath, &tokenRequest{"d", []string{"https://db"}}, &jwt); status.Code(err) != codes.NotFound {
		t.Errorf("another node's JWT-SVID: %v", err)
	}
	if err := call(t, c, tokenPath, &tokenRequest{"c", nil}, &jwt); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a token for everybody: %v", err)
	}
	if !strings.Contains(s.log.String(), "a node asks for an identity that is not on it") {
		t.Error("nobody hears of it")
	}
	// What it does not understand it does not take for something else.
	if err := call(t, c, signPath, map[string]any{"service": "c", "csr": good, "lifetime": "1h"}, &out); err == nil {
		t.Error("an unknown field is passed over")
	}
}

// TestNobodyElse: who is no node gets nothing: strangers, workloads, nodes of
// another trust domain.
func TestNobodyElse(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	svid := func(a *authority.Authority, id string) *tls.Certificate {
		source, err := a.Source(t.Context(), id, nil)
		if err != nil {
			t.Fatal(err)
		}
		return source.SVID()
	}
	other, err := authority.Open(filepath.Join(t.TempDir(), "authority"), domain, authority.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	csr := csrOf(t, newKey(t), &x509.CertificateRequest{})
	for _, tt := range []struct {
		name string
		cert *tls.Certificate
		want codes.Code
	}{
		{"a stranger", nil, codes.Unauthenticated},
		{"the workload of the node's service", svid(s.auth, "spiffe://"+domain+"/c"), codes.Unavailable},
		{"a workload called merlon", svid(s.auth, "spiffe://"+domain+"/merlon"), codes.Unavailable},
		{"the endpoint itself", svid(s.auth, EndpointID(domain)), codes.Unavailable},
		{"a node's child", svid(s.auth, "spiffe://"+domain+"/merlon/node/n1/x"), codes.Unavailable},
		{"a node that the intent has not", svid(s.auth, "spiffe://"+domain+"/merlon/node/n3"), codes.PermissionDenied},
		{"a node of another authority of this name", svid(other, "spiffe://"+domain+"/merlon/node/n1"), codes.Unavailable},
	} {
		c := s.dial(tt.cert)
		for path, in := range map[string]any{
			signPath: &signRequest{"c", csr}, renewPath: &signRequest{"", csr}, tokenPath: &tokenRequest{"c", []string{"x"}},
		} {
			if err := call(t, c, path, in, new(map[string]any)); status.Code(err) != tt.want {
				t.Errorf("%s %s: %v, want %v", tt.name, path, err, tt.want)
			}
		}
		stream, err := c.NewStream(t.Context(), &watchDesc, watchPath)
		if err == nil {
			stream.SendMsg(&nothing{})
			stream.CloseSend()
			err = stream.RecvMsg(new(View))
		}
		if status.Code(err) != tt.want {
			t.Errorf("%s watches: %v, want %v", tt.name, err, tt.want)
		}
	}
	// And a node is no workload: its name is none that a service can have.
	if name, err := spiffe.Name("spiffe://"+domain+"/merlon/node/n1", domain); err == nil {
		t.Errorf("a node is taken for service %q", name)
	}
}

// TestJoinToken: a token is good once, for its node, until it ends or another is
// made, whatever happens to the server.
func TestJoinToken(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	try := func(token string) error {
		_, err := s.agent(withToken(token)).prove(t.Context())
		return err
	}
	used := s.token("n1")
	if err := try(used); err != nil {
		t.Fatal(err)
	}
	refused := func(what, token, says string) {
		t.Helper()
		before := len(s.log.String())
		if err := try(token); !errors.Is(err, errJoin) {
			t.Errorf("%s: %v", what, err)
		}
		if said := s.log.String()[before:]; !strings.Contains(said, says) || !strings.Contains(said, "node=n") {
			t.Errorf("%s is logged as %q, want %q", what, said, says)
		}
	}
	refused("a used token", used, "the token was used already")
	s.server.Close()
	s.auth.Close()
	s.open("127.0.0.1:0")
	s.server.Set(intentOf())
	refused("a used token after a restart", used, "the token was used already")

	old := s.token("n1")
	s.token("n1")
	refused("the one before", old, "is not the node's last one")
	parts := strings.Split(s.token("n1"), ":")
	parts[2] = "n2"
	refused("a token under another name", strings.Join(parts, ":"), "there is no token for the node")
	parts[2] = "n3"
	refused("a token of no node", strings.Join(parts, ":"), "the intent has no such node")

	late := s.token("n2")
	s.set(time.Now().Add(2 * time.Minute))
	refused("a token that has ended", late, "the token was good until")
	s.set(time.Time{})

	gone := s.token("n2")
	s.server.Set(intentOf(merlon.Node{Name: "n1", JoinToken: true}))
	s.server.Set(intentOf())
	refused("a token of a node that was removed", gone, "there is no token for the node")
	for name, ttl := range map[string]time.Duration{"n1": 0, "n2": 25 * time.Hour, "n9": time.Minute} {
		if _, err := s.server.JoinToken(name, ttl); err == nil {
			t.Errorf("a token of %s for %v", name, ttl)
		}
	}
	text, err := os.ReadFile(filepath.Join(s.dir, "nodes.json"))
	if err != nil || strings.Contains(string(text), strings.Split(late, ":")[3]) {
		t.Errorf("the secret is kept: %v", err)
	}
}

// TestOneWins: of many who have the token at once, one is the node.
func TestOneWins(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	token := s.token("n1")
	won := make(chan bool, 8)
	for range cap(won) {
		a := s.agent(withToken(token))
		go func() {
			_, err := a.prove(t.Context())
			won <- err == nil
		}()
	}
	n := 0
	for range cap(won) {
		if <-won {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d are the node", n)
	}
}

// TestImpersonated: an agent says nothing to a server that is not the authority's
// node endpoint.
func TestImpersonated(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	evil := newSite(t) // of the same trust domain, by another authority
	token := s.token("n1")
	a := s.agent(func(c *AgentConfig) { withToken(token)(c); c.Server = evil.address })
	if _, err := a.prove(t.Context()); err == nil || errors.Is(err, errJoin) || !strings.Contains(err.Error(), "not of the authority that made the token") {
		t.Error(err)
	}
	// Whoever has the SVID of a workload is no endpoint either.
	workload, err := s.auth.Source(t.Context(), "spiffe://"+domain+"/c", nil)
	if err != nil {
		t.Fatal(err)
	}
	real := s.server.source
	asked := make(chan struct{}, 1)
	fake := grpc.NewServer(grpc.ForceServerCodec(codec{}), grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error { asked <- struct{}{}; return nil }),
		grpc.Creds(credentials.NewTLS(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			root, err := s.server.rootOf(real.SVID())
			if err != nil {
				return nil, err
			}
			with := *workload.SVID()
			with.Certificate = append(with.Certificate, root.Raw)
			return &with, nil
		}})))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go fake.Serve(l)
	t.Cleanup(fake.Stop)
	for name, change := range map[string]func(*AgentConfig){
		"by a token":  withToken(token),
		"by a bundle": func(c *AgentConfig) { c.TrustDomain, c.Roots, c.KubernetesFile = domain, s.auth.Bundle(), os.DevNull },
	} {
		a := s.agent(func(c *AgentConfig) { change(c); c.Server = l.Addr().String() })
		if _, err := a.prove(t.Context()); err == nil || !strings.Contains(err.Error(), "spiffe://test.example/c") {
			t.Errorf("%s: %v", name, err)
		}
	}
	select {
	case <-asked:
		t.Error("the fake server was told something")
	default:
	}
	// The token is still good where it belongs.
	if _, err := s.agent(withToken(token)).prove(t.Context()); err != nil {
		t.Error(err)
	}
}
