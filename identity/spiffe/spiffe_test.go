package spiffe_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"merlon/identity/spiffe"
)

// ca is a small authority that also signs what it should not.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newCA(t testing.TB) *ca {
	t.Helper()
	key := newKey(t)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	return &ca{sign(t, c, c, key.Public(), key), key}
}

func sign(t testing.TB, c, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// leaf is a good SVID; change makes it a bad one.
func (a *ca) leaf(t testing.TB, change func(*x509.Certificate), uris ...string) *tls.Certificate {
	t.Helper()
	key := newKey(t)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(2),
		NotBefore:    time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	for _, s := range uris {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		c.URIs = append(c.URIs, u)
	}
	if change != nil {
		change(c)
	}
	cert := sign(t, c, a.cert, key.Public(), a.key)
	return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

func (a *ca) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

type source struct {
	svid  atomic.Pointer[tls.Certificate]
	roots *x509.CertPool
}

func newSource(svid *tls.Certificate, roots *x509.CertPool) *source {
	s := &source{roots: roots}
	s.svid.Store(svid)
	return s
}

func (s *source) SVID() *tls.Certificate { return s.svid.Load() }
func (s *source) Roots() *x509.CertPool  { return s.roots }

// handshake runs both ends over a real connection and moves one byte each way,
// so that both have accepted the other.
func handshake(t *testing.T, server, client *tls.Config) (atServer, atClient tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := l.Accept()
		if err != nil {
			serverErr = err
			return
		}
		defer raw.Close()
		raw.SetDeadline(time.Now().Add(20 * time.Second))
		conn := tls.Server(raw, server)
		if serverErr = conn.Handshake(); serverErr != nil {
			return
		}
		atServer = conn.ConnectionState()
		var b [1]byte
		if _, serverErr = conn.Read(b[:]); serverErr == nil {
			_, serverErr = conn.Write(b[:])
		}
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	raw.SetDeadline(time.Now().Add(20 * time.Second))
	conn := tls.Client(raw, client)
	if clientErr = conn.Handshake(); clientErr == nil {
		atClient = conn.ConnectionState()
		var b [1]byte
		if _, clientErr = conn.Write(b[:]); clientErr == nil {
			_, clientErr = conn.Read(b[:])
		}
	}
	raw.Close()
	<-done
	return
}

const td, web, orders = "shop.example", "spiffe://shop.example/web", "spiffe://shop.example/orders"

func TestHandshake(t *testing.T) {
	t.Parallel()
	a := newCA(t)
	atServer, atClient, serverErr, clientErr := handshake(t,
		spiffe.ServerConfig(newSource(a.leaf(t, nil, orders), a.pool()), td),
		spiffe.ClientConfig(newSource(a.leaf(t, nil, web), a.pool()), orders))
	if serverErr != nil || clientErr != nil {
		t.Fatal(serverErr, clientErr)
	}
	if id, err := spiffe.PeerID(atServer); id != web || err != nil {
		t.Errorf("the server sees %q, %v", id, err)
	}
	if id, err := spiffe.PeerID(atClient); id != orders || err != nil {
		t.Errorf("the client sees %q, %v", id, err)
	}
	if atServer.Version != tls.VersionTLS13 {
		t.Errorf("version %x", atServer.Version)
	}
	if _, err := spiffe.PeerID(tls.ConnectionState{}); err == nil {
		t.Error("an empty state has an ID")
	}
}

// badLeaves are certificates by the right root that are no SVIDs for us.
func badLeaves(t *testing.T, a *ca) map[string]*tls.Certificate {
	uri := func(raw ...string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			var names []asn1.RawValue
			for _, r := range raw {
				names = append(names, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(r)})
			}
			b, err := asn1.Marshal(names)
			if err != nil {
				t.Fatal(err)
			}
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: b}}
		}
	}
	return map[string]*tls.Certificate{
		"two names":           a.leaf(t, nil, web, orders),
		"the same name twice": a.leaf(t, nil, web, web),
		"no name":             a.leaf(t, func(c *x509.Certificate) { c.DNSNames = []string{"web"} }),
		"name by DNS only":    a.leaf(t, func(c *x509.Certificate) { c.DNSNames = []string{web} }),
		"CA": a.leaf(t, func(c *x509.Certificate) {
			c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
		}, web),
		"CA flag alone":           a.leaf(t, func(c *x509.Certificate) { c.IsCA = true }, web),
		"may sign certificates":   a.leaf(t, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, web),
		"may sign CRLs":           a.leaf(t, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }, web),
		"no digital signature":    a.leaf(t, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }, web),
		"no key usage":            a.leaf(t, func(c *x509.Certificate) { c.KeyUsage = 0 }, web),
		"other extended usage":    a.leaf(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }, web),
		"no extended usage":       a.leaf(t, func(c *x509.Certificate) { c.ExtKeyUsage = nil }, web),
		"expired":                 a.leaf(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }, web),
		"not yet valid":           a.leaf(t, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }, web),
		"other trust domain":      a.leaf(t, nil, "spiffe://evil.example/web"),
		"longer trust domain":     a.leaf(t, nil, "spiffe://shop.example.evil/web"),
		"subdomain":               a.leaf(t, nil, "spiffe://a.shop.example/web"),
		"class 12: dot":           a.leaf(t, nil, "spiffe://shopxexample/web"),
		"upper-case trust domain": a.leaf(t, uri("spiffe://SHOP.example/web")),
		"upper-case scheme":       a.leaf(t, uri("SPIFFE://shop.example/web")),
		"empty fragment":          a.leaf(t, uri("spiffe://shop.example/web#")),
		"percent":                 a.leaf(t, uri("spiffe://shop.example/we%62")),
		"dot segment":             a.leaf(t, uri("spiffe://shop.example/a/../web")),
		"trailing slash":          a.leaf(t, uri("spiffe://shop.example/web/")),
		"port":                    a.leaf(t, uri("spiffe://shop.example:443/web")),
		"user":                    a.leaf(t, uri("spiffe://u@shop.example/web")),
		"query":                   a.leaf(t, uri("spiffe://shop.example/web?x")),
		"other scheme":            a.leaf(t, uri("https://shop.example/web")),
		"other root":              newCA(t).leaf(t, nil, web),
	}
}

func TestBadPeers(t *testing.T) {
	t.Parallel()
	a := newCA(t)
	good := newSource(a.leaf(t, nil, web), a.pool())
	for name, bad := range badLeaves(t, a) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			src := newSource(bad, a.pool())
			if _, _, err, _ := handshake(t, spiffe.ServerConfig(good, td), spiffe.ClientConfig(src, web)); err == nil {
				t.Error("the server let it in")
			}
			if _, _, _, err := handshake(t, spiffe.ServerConfig(src, td), spiffe.ClientConfig(good, web)); err == nil {
				t.Error("the client believed it")
			}
		})
	}
}

// The usage must be the one of the direction, not just either.
func TestUsageByDirection(t *testing.T) {
	t.Parallel()
	a := newCA(t)
	good := newSource(a.leaf(t, nil, web), a.pool())
	only := func(u x509.ExtKeyUsage) *source {
		return newSource(a.leaf(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{u} }, web), a.pool())
	}
	if _, _, err, _ := handshake(t, spiffe.ServerConfig(good, td), spiffe.ClientConfig(only(x509.ExtKeyUsageServerAuth), web)); err == nil {
		t.Error("a server's certificate passed as a client's")
	}
	if _, _, _, err := handshake(t, spiffe.ServerConfig(only(x509.ExtKeyUsageClientAuth), td), spiffe.ClientConfig(good, web)); err == nil {
		t.Error("a client's certificate passed as a server's")
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	a := newCA(t)
	good := func() *source { return newSource(a.leaf(t, nil, web), a.pool()) }
	tests := []struct {
		name           string
		server, client *tls.Config
		atServer       bool // who refuses
	}{
		{"wrong service", spiffe.ServerConfig(good(), td), spiffe.ClientConfig(good(), orders), false},
		{"prefix of the service", spiffe.ServerConfig(good(), td), spiffe.ClientConfig(good(), "spiffe://shop.example/we"), false},
		{"no wanted ID", spiffe.ServerConfig(good(), td), spiffe.ClientConfig(good(), ""), false},
		{"no trust domain", spiffe.ServerConfig(good(), ""), spiffe.ClientConfig(good(), web), true},
		{"malformed trust domain", spiffe.ServerConfig(good(), "shop.example/web"), spiffe.ClientConfig(good(), web), true},
		{"server without roots", spiffe.ServerConfig(newSource(a.leaf(t, nil, web), nil), td), spiffe.ClientConfig(good(), web), true},
		{"client without roots", spiffe.ServerConfig(good(), td), spiffe.ClientConfig(newSource(a.leaf(t, nil, web), nil), web), false},
		{"server without SVID", spiffe.ServerConfig(newSource(nil, a.pool()), td), spiffe.ClientConfig(good(), web), true},
		{"client without SVID", spiffe.ServerConfig(good(), td), spiffe.ClientConfig(newSource(nil, a.pool()), web), false},
		{"anonymous client", spiffe.ServerConfig(good(), td), &tls.Config{InsecureSkipVerify: true}, true},
		{"TLS 1.2 client", spiffe.ServerConfig(good(), td), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}, true},
		{"TLS 1.2 server", &tls.Config{Certificates: []tls.Certificate{*a.leaf(t, nil, web)}, MaxVersion: tls.VersionTLS12}, spiffe.ClientConfig(good(), web), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, _, serverErr, clientErr := handshake(t, tt.server, tt.client)
			if tt.atServer && serverErr == nil || !tt.atServer && clientErr == nil {
				t.Errorf("not refused: %v, %v", serverErr, clientErr)
			}
		})
	}
}

// A chain longer than any of ours is not even looked at.
func TestLongChain(t *testing.T) {
	t.Parallel()
	a := newCA(t)
	long := a.leaf(t, nil, web)
	for range 4 {
		long.Certificate = append(long.Certificate, a.cert.Raw)
	}
	_, _, err, _ := handshake(t, spiffe.ServerConfig(newSource(a.leaf(t, nil, web), a.pool()), td),
		spiffe.ClientConfig(newSource(long, a.pool()), web))
	if err == nil || !strings.Contains(err.Error(), "5 certificates") {
		t.Error(err)
	}
}

// Even a client that asks for it gets no session to resume, and a session that
// a caller made possible anyway is verified like a new one.
func TestNoResumption(t *testing.T) {
	t.Parallel()
	a := newCA(t)
	src := newSource(a.leaf(t, nil, web), a.pool())
	server, client := spiffe.ServerConfig(src, td), spiffe.ClientConfig(src, web)
	client.SessionTicketsDisabled, client.ClientSessionCache, client.ServerName = false, tls.NewLRUClientSessionCache(8), "x"
	for range 3 {
		_, state, serverErr, clientErr := handshake(t, server, client)
		if serverErr != nil || clientErr != nil {
			t.Fatal(serverErr, clientErr)
		}
		if state.DidResume {
			t.Fatal("the session was resumed")
		}
	}
	server.SessionTicketsDisabled = false
	if _, _, err, err2 := handshake(t, server, client); err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	if _, state, err, err2 := handshake(t, server, client); err != nil || err2 != nil || !state.DidResume {
		t.Fatal("the test does not resume: it cannot show anything", err, err2)
	}
	src.roots = newCA(t).pool() // every SVID so far is revoked
	if _, _, err, _ := handshake(t, server, client); err == nil {
		t.Error("a resumed session outlived its roots")
	}
}

// A new SVID counts from the next handshake on.
func TestRotation(t *testing.T) {
	t.Parallel()
	a := newCA(t)
	src := newSource(a.leaf(t, nil, web), a.pool())
	server, client := spiffe.ServerConfig(src, td), spiffe.ClientConfig(src, web)
	for range 3 {
		next := a.leaf(t, nil, web)
		src.svid.Store(next)
		atServer, atClient, err, err2 := handshake(t, server, client)
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		if !atServer.PeerCertificates[0].Equal(next.Leaf) || !atClient.PeerCertificates[0].Equal(next.Leaf) {
			t.Error("an old SVID was shown")
		}
	}
	snap := spiffe.Snapshot(src)
	old := src.SVID()
	src.svid.Store(a.leaf(t, nil, web))
	if snap.SVID() != old || snap.Roots() != src.roots {
		t.Error("a snapshot moved")
	}
}

func TestTime(t *testing.T) {
	t.Parallel()
	a := newCA(t)
	src := newSource(a.leaf(t, nil, web), a.pool())
	server, client := spiffe.ServerConfig(src, td), spiffe.ClientConfig(src, web)
	server.Time = func() time.Time { return time.Now().Add(2 * time.Hour) }
	if _, _, err, _ := handshake(t, server, client); err == nil {
		t.Error("the server's clock was not asked")
	}
}

func TestName(t *testing.T) {
	t.Parallel()
	tests := []struct{ id, td, want string }{
		{"spiffe://shop.example/orders", td, "orders"},
		{"spiffe://shop.example/gateway", td, "gateway"},
		{"spiffe://shop.example/Orders", td, "Orders"},
		{"spiffe://shop.example/ns/orders", td, ""},
		{"spiffe://shop.example", td, ""},
		{"spiffe://shop.example/", td, ""},
		{"spiffe://other.example/orders", td, ""},
		{"spiffe://shop.example/orders", "shop.example.", ""},
		{"spiffe://shop.example/orders", "Shop.example", ""},
		{"spiffe:///orders", "", ""},
		{"", "", ""},
		{"orders", td, ""},
		{"spiffe://shop.example/or ders", td, ""},
		{"spiffe://shop.example/..", td, ""},
		{"spiffe://shop.example/orders\n", td, ""},
	}
	for _, tt := range tests {
		got, err := spiffe.Name(tt.id, tt.td)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("Name(%q, %q) = %q, %v; want %q", tt.id, tt.td, got, err, tt.want)
		}
	}
}

func TestKey(t *testing.T) {
	t.Parallel()
	a := newCA(t)
	one, two := a.leaf(t, nil, web), a.leaf(t, nil, web)
	k1, id1 := spiffe.Key(one)
	k2, id2 := spiffe.Key(two)
	if k1 != one.PrivateKey || k2 != two.PrivateKey || id1 == id2 || id1 == "" {
		t.Error(id1, id2)
	}
	if k, id := spiffe.Key(nil); k != nil || id != "" {
		t.Error("no SVID has a key")
	}
}

func FuzzName(f *testing.F) {
	f.Add("spiffe://shop.example/orders")
	f.Add("spiffe://shop.example/a/b")
	f.Add("spiffe://shop.example/%6f")
	f.Fuzz(func(t *testing.T, id string) {
		name, err := spiffe.Name(id, td)
		if err == nil && "spiffe://"+td+"/"+name != id {
			t.Errorf("%q is not the name of %q", name, id)
		}
	})
}

func BenchmarkHandshake(b *testing.B) {
	t := &testing.T{}
	a := newCA(t)
	src := newSource(a.leaf(t, nil, web), a.pool())
	server, client := spiffe.ServerConfig(src, td), spiffe.ClientConfig(src, web)
	for b.Loop() {
		if _, _, err, err2 := handshake(t, server, client); err != nil || err2 != nil {
			b.Fatal(err, err2)
		}
	}
}
