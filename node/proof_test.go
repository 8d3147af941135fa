package node

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	josejwt "github.com/go-jose/go-jose/v4/jwt"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"merlon"
	"merlon/attest"
)

// ca signs the certificates of hosts.
type ca struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newCA(t *testing.T) *ca {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{Subject: pkix.Name{CommonName: "nodes"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &ca{key, cert}
}

func (c *ca) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Raw}))
}

// sign writes a certificate and a key to files.
func (c *ca) sign(t *testing.T, key crypto.Signer, change func(*x509.Certificate)) (certFile, keyFile string) {
	t.Helper()
	template := &x509.Certificate{DNSNames: []string{"db1.shop.example"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, c.cert, key.Public(), c.key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

const hostName = "db1.shop.example"

// withCert makes an agent that proves itself by a certificate.
func (s *site) withCert(cert, key string) *Agent {
	return s.agent(func(c *AgentConfig) {
		c.TrustDomain, c.Roots, c.CertFile, c.KeyFile = domain, s.auth.Bundle(), cert, key
	})
}

// TestX509: the key of a certificate proves a node, if the certificate is what the
// intent says, whatever kind of key it is.
func TestX509(t *testing.T) {
	t.Parallel()
	authority, stranger := newCA(t), newCA(t)
	s := newSite(t, merlon.Node{Name: "n1", X509: &merlon.NodeX509{CA: authority.pem(), DNS: hostName}},
		merlon.Node{Name: "n2", X509: &merlon.NodeX509{CA: stranger.pem(), DNS: "db2.shop.example"}})
	same := func(*x509.Certificate) {}
	prove := func(cert, key string) (string, error) {
		a := s.withCert(cert, key)
		_, err := a.prove(t.Context())
		return a.shownID(), err
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"P-256": newKey(t), "P-384": p384, "RSA": rsaKey, "Ed25519": edKey} {
		if id, err := prove(authority.sign(t, key, same)); err != nil || id != nodeID(domain, "n1") {
			t.Errorf("%s: %q %v", name, id, err)
		}
	}
	key := newKey(t)
	for name, change := range map[string]func(*x509.Certificate){
		"another name":      func(c *x509.Certificate) { c.DNSNames = []string{"db3.shop.example"} },
		"a wildcard":        func(c *x509.Certificate) { c.DNSNames = []string{"*.shop.example"} },
		"a common name":     func(c *x509.Certificate) { c.DNSNames, c.Subject.CommonName = nil, hostName },
		"capital letters":   func(c *x509.Certificate) { c.DNSNames = []string{"DB1.shop.example"} },
		"the other CA's":    func(c *x509.Certificate) { c.DNSNames = []string{"db2.shop.example"} },
		"it has ended":      func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) },
		"it has not begun":  func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) },
		"it is for servers": func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} },
		"it is that of a CA": func(c *x509.Certificate) {
			c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		},
	} {
		if id, err := prove(authority.sign(t, key, change)); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %q %v", name, id, err)
		}
	}
	if id, err := prove(stranger.sign(t, key, same)); status.Code(err) != codes.PermissionDenied {
		t.Errorf("another CA: %q %v", id, err)
	}
	// Who has it proves itself anew, and gets nothing for the SVID alone.
	a := s.withCert(authority.sign(t, key, same))
	own, err := a.prove(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := call(t, s.dial(own.SVID()), renewPath, &signRequest{"", csrOf(t, key, &x509.CertificateRequest{})}, new(signed)); status.Code(err) != codes.FailedPrecondition {
		t.Error(err)
	}
}

// TestChallenge: a certificate without its key proves nothing, nor does a
// signature that was made for something else.
func TestChallenge(t *testing.T) {
	t.Parallel()
	authority := newCA(t)
	s := newSite(t, merlon.Node{Name: "n1", X509: &merlon.NodeX509{CA: authority.pem(), DNS: hostName}})
	key, other := newKey(t), newKey(t)
	certFile, keyFile := authority.sign(t, key, func(*x509.Certificate) {})
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	csr := csrOf(t, newKey(t), &x509.CertificateRequest{})
	var old []byte // a nonce
	try := func(answer func(nonce []byte) any) error {
		t.Helper()
		stream, err := s.dial(nil).NewStream(t.Context(), &attestDesc, attestPath)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.SendMsg(&hello{X509: cert.Certificate, CSR: csr}); err != nil {
			t.Fatal(err)
		}
		var q challenge
		if err := stream.RecvMsg(&q); err != nil {
			t.Fatal(err)
		}
		if old == nil {
			old = q.Nonce
		}
		stream.SendMsg(answer(q.Nonce))
		stream.CloseSend()
		return stream.RecvMsg(new(admitted))
	}
	signedBy := func(key crypto.Signer, message []byte) *response {
		b, err := sign(key, message)
		if err != nil {
			t.Fatal(err)
		}
		return &response{b}
	}
	for _, tt := range []struct {
		name   string
		answer func(nonce []byte) any
		want   codes.Code
	}{
		{"another key", func(n []byte) any { return signedBy(other, challenged(n, csr)) }, codes.PermissionDenied},
		{"an old challenge", func([]byte) any { return signedBy(key, challenged(old, csr)) }, codes.PermissionDenied},
		{"another key for the SVID", func(n []byte) any {
			return signedBy(key, challenged(n, csrOf(t, other, &x509.CertificateRequest{})))
		}, codes.PermissionDenied},
		{"the bare nonce", func(n []byte) any { return signedBy(key, n) }, codes.PermissionDenied},
		{"nothing", func([]byte) any { return &response{} }, codes.PermissionDenied},
		{"something else", func([]byte) any { return &challenge{old} }, codes.Internal},
		{"the key", func(n []byte) any { return signedBy(key, challenged(n, csr)) }, codes.OK},
	} {
		if err := try(tt.answer); status.Code(err) != tt.want {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	// Two proofs, or none, are none.
	for _, h := range []*hello{{CSR: csr}, {X509: cert.Certificate, Kubernetes: "a.b.c", CSR: csr}, {X509: cert.Certificate, Join: &ticketProof{"n1", ""}, CSR: csr}} {
		stream, err := s.dial(nil).NewStream(t.Context(), &attestDesc, attestPath)
		if err != nil {
			t.Fatal(err)
		}
		stream.SendMsg(h)
		if err := stream.RecvMsg(new(admitted)); status.Code(err) != codes.PermissionDenied {
			t.Error(err)
		}
	}
}

const clusterIssuer = "https://kubernetes.default.svc"

// newCluster is a Kubernetes cluster, and what signs its tokens.
func newCluster(t *testing.T) (*attest.Cluster, func(change func(claims map[string]any)) string) {
	t.Helper()
	key := newKey(t)
	jwks, err := (jose.JSONWebKey{Key: key.Public(), KeyID: "1", Algorithm: "ES256", Use: "sig"}).MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	c, err := attest.NewCluster(clusterIssuer, EndpointID(domain), []byte(`{"keys":[`+string(jwks)+`]}`))
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "1"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c, func(change func(map[string]any)) string {
		claims := map[string]any{"iss": clusterIssuer, "aud": []string{EndpointID(domain)}, "sub": "system:serviceaccount:shop:merlon-agent",
			"iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
			"kubernetes.io": map[string]any{"namespace": "shop", "serviceaccount": map[string]any{"name": "merlon-agent"},
				"pod": map[string]any{"name": "merlon-agent-x", "uid": "7c1f1b5e-0d7c-4a39-9c4b-0d6a6a3f3a11"}}}
		change(claims)
		token, err := josejwt.Signed(signer).Claims(claims).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
}

// TestKubernetes: the token of the agent's pod proves a node, if it is for this
// very authority.
func TestKubernetes(t *testing.T) {
	t.Parallel()
	c, sign := newCluster(t)
	_, forge := newCluster(t)
	s := &site{t: t, dir: t.TempDir(), log: new(logged), cluster: c}
	s.open("127.0.0.1:0")
	s.server.Set(intentOf(merlon.Node{Name: "n1", Kubernetes: "shop/merlon-agent"}, merlon.Node{Name: "n2", JoinToken: true}))
	prove := func(token string) (string, error) {
		file := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
		a := s.agent(func(c *AgentConfig) { c.TrustDomain, c.Roots, c.KubernetesFile = domain, s.auth.Bundle(), file })
		_, err := a.prove(t.Context())
		return a.shownID(), err
	}
	same := func(map[string]any) {}
	if id, err := prove(sign(same)); err != nil || id != nodeID(domain, "n1") {
		t.Errorf("%q %v", id, err)
	}
	for name, token := range map[string]string{
		"another cluster's":     forge(same),
		"for the API server":    sign(func(c map[string]any) { c["aud"] = []string{clusterIssuer} }),
		"for another authority": sign(func(c map[string]any) { c["aud"] = []string{EndpointID("other.example")} }),
		"ended":                 sign(func(c map[string]any) { c["exp"] = time.Now().Add(-time.Hour).Unix() }),
		"another account's": sign(func(c map[string]any) {
			c["sub"] = "system:serviceaccount:shop:web"
			c["kubernetes.io"].(map[string]any)["serviceaccount"] = map[string]any{"name": "web"}
		}),
		"bound to no pod": sign(func(c map[string]any) { delete(c["kubernetes.io"].(map[string]any), "pod") }),
		"garbage":         "a.b.c",
		"a join token":    s.token("n2"),
	} {
		if id, err := prove(token); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %q %v", name, id, err)
		}
	}
	if err := s.server.Check(intentOf(merlon.Node{Name: "n1", Kubernetes: "shop/x"})); err != nil {
		t.Error(err)
	}
	if err := newSite(t).server.Check(intentOf(merlon.Node{Name: "n1", Kubernetes: "shop/x"})); err == nil {
		t.Error("a node that could never prove itself")
	}
}

// TestRemoved: a node that was taken out of the intent is refused at once, and
// stays so when another gets its name.
func TestRemoved(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	cert := s.joined("n1")
	c := s.dial(cert)
	stream, err := c.NewStream(t.Context(), &watchDesc, watchPath)
	if err != nil {
		t.Fatal(err)
	}
	stream.SendMsg(&nothing{})
	stream.CloseSend()
	var v View
	if err := stream.RecvMsg(&v); err != nil || len(v.Services) != 1 || v.Services[0].Name != "c" || len(v.Bundle) == 0 {
		t.Fatalf("%+v %v", v, err)
	}
	csr := csrOf(t, newKey(t), &x509.CertificateRequest{})
	if err := call(t, c, renewPath, &signRequest{"", csr}, new(signed)); err != nil {
		t.Error(err)
	}
	s.server.Set(intentOf(merlon.Node{Name: "n2", JoinToken: true}))
	if err := stream.RecvMsg(&v); status.Code(err) != codes.PermissionDenied {
		t.Errorf("its stream: %v", err)
	}
	check := func(what string) {
		t.Helper()
		for path, in := range map[string]any{signPath: &signRequest{"c", csr}, renewPath: &signRequest{"", csr}, tokenPath: &tokenRequest{"c", []string{"x"}}} {
			if err := call(t, c, path, in, new(map[string]any)); status.Code(err) != codes.PermissionDenied {
				t.Errorf("%s, %s: %v", what, path, err)
			}
		}
	}
	check("removed")
	s.server.Set(intentOf()) // within the second, perhaps
	check("another is called so")
	s.server.Close()
	s.auth.Close()
	s.open("127.0.0.1:0")
	s.server.Set(intentOf())
	c = s.dial(cert)
	check("another is called so, after a restart")
	if err := call(t, s.dial(s.joined("n1")), signPath, &signRequest{"c", csr}, new(signed)); err != nil {
		t.Errorf("the other: %v", err)
	}
}

// TestExpired: a connection is worth no more than the SVID that it began with.
func TestExpired(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := s.dial(s.joined("n1"))
	csr := csrOf(t, newKey(t), &x509.CertificateRequest{})
	if err := call(t, c, signPath, &signRequest{"c", csr}, new(signed)); err != nil {
		t.Fatal(err)
	}
	s.set(time.Now().Add(2 * time.Hour))
	if err := call(t, c, signPath, &signRequest{"c", csr}, new(signed)); status.Code(err) != codes.Unauthenticated {
		t.Error(err)
	}
}

// TestFloods: strangers and nodes are bounded, each by itself.
func TestFloods(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	node := s.dial(s.joined("n1"))
	csr := csrOf(t, newKey(t), &x509.CertificateRequest{})
	if err := call(t, node, signPath, &signRequest{"c", csr}, new(signed)); err != nil {
		t.Fatal(err)
	}
	var idle []*tls.Conn
	for range maxStrangersA {
		c, err := tls.Dial("tcp", s.address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		idle = append(idle, c)
	}
	one, err := tls.Dial("tcp", s.address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err == nil {
		one.Close()
		t.Error("an address may have any number of connections that prove nothing")
	}
	// Who is a node already does not notice.
	if err := call(t, node, signPath, &signRequest{"c", csr}, new(signed)); err != nil {
		t.Error(err)
	}
	// A stranger who proves nothing is sent away.
	for _, c := range idle {
		c.SetReadDeadline(time.Now().Add(time.Minute))
		b := make([]byte, 1<<10)
		for err = nil; err == nil; _, err = c.Read(b) {
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("a stranger may stay for ever")
		}
	}
	// Large messages are refused.
	big := &hello{Kubernetes: strings.Repeat("a", maxMessage), CSR: csr}
	for err, deadline := error(nil), time.Now().Add(time.Minute); status.Code(err) != codes.ResourceExhausted; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) { // there is room when those who were sent away are gone
			t.Fatal(err)
		}
		stream, serr := s.dial(nil).NewStream(t.Context(), &attestDesc, attestPath)
		if err = serr; err == nil {
			stream.SendMsg(big)
			err = stream.RecvMsg(new(admitted))
		}
	}
	// A node gets no more SVIDs than it can need; the clock stands still.
	s.set(time.Now())
	busy := false
	for range signBurst + 1 {
		err := call(t, node, tokenPath, &tokenRequest{"c", []string{"x"}}, new(tokenAnswer))
		if busy = status.Code(err) == codes.ResourceExhausted; busy {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if !busy {
		t.Error("a node gets any number of SVIDs")
	}
}

// TestEarly: before the first intent is in force nobody hears of being removed from
// it, which would make a node forget all it has.
func TestEarly(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	cert, token := s.joined("n1"), s.token("n1")
	s.server.Close()
	s.auth.Close()
	s.open("127.0.0.1:0")
	var out signed
	if err := call(t, s.dial(cert), renewPath, &signRequest{CSR: csrOf(t, newKey(t), new(x509.CertificateRequest))}, &out); status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
	if _, err := s.agent(withToken(token)).prove(t.Context()); status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
	if _, err := s.server.JoinToken("n1", time.Minute); err == nil || len(s.server.Status()) != 0 {
		t.Error(err)
	}
	s.server.Set(intentOf())
	if _, err := s.agent(withToken(token)).prove(t.Context()); err != nil {
		t.Error("the token was lost: ", err)
	}
}

// TestSlotsComeBack: the end of what was proved gives the place back, whether or not
// gRPC came to use the connection.
func TestSlotsComeBack(t *testing.T) {
	t.Parallel()
	near, far := net.Pipe()
	defer far.Close()
	released := make(chan struct{})
	newConn(near, -time.Millisecond, sync.OnceFunc(func() { close(released) }))
	<-released
}

// TestStateOfAnother: who owns the state directory could put an agent's keys where
// they can read them.
func TestStateOfAnother(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := openStore(dir); err != nil {
		t.Error(err)
	}
	if os.Getuid() != 0 {
		return // nothing can be given to another user
	}
	if err := os.Chown(dir, 65534, -1); err != nil {
		t.Fatal(err)
	}
	if _, err := openStore(dir); err == nil || !strings.Contains(err.Error(), "another user") {
		t.Error(err)
	}
}
