package workloadapi

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/emptypb"

	"merlon/authority"
	"merlon/identity/spiffe"
)

// lawless is a trust domain whose root signs whatever name it is asked to.
type lawless struct {
	root *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newLawless(t *testing.T) *lawless {
	t.Helper()
	l := &lawless{}
	l.root, l.key = l.sign(t, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		URIs: []*url.URL{{Scheme: "spiffe", Host: "partner.example"}}})
	return l
}

// sign makes a certificate, signed by the root, or the root itself.
func (l *lawless) sign(t *testing.T, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := l.root, l.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func (l *lawless) bundle(t *testing.T) *spiffe.Bundle {
	t.Helper()
	text, err := spiffe.EncodeBundle([][]byte{l.root.Raw}, []byte(`{"keys":[]}`), 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	b, err := spiffe.ParseBundle("partner.example", text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// client is a client that shows a certificate of this name and looks at nothing.
func (l *lawless) client(t *testing.T, id string) *tls.Config {
	t.Helper()
	u, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	cert, key := l.sign(t, &x509.Certificate{URIs: []*url.URL{u}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}}
}

// asks reports whether the server at addr answers a client, and with which
// certificate.
func asks(addr string, config *tls.Config) (serial string, ok bool) {
	conn, err := tls.Dial("tcp", addr, config)
	if err != nil {
		return "", false
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
	b := make([]byte, 12)
	if _, err := conn.Read(b); err != nil || string(b) != "HTTP/1.1 200" {
		return "", false
	}
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.String(), true
}

// startEnvoy starts a real Envoy that gets its secrets from the estate.
func startEnvoy(t *testing.T, e *estate, api, roots string) (addr string, said func() string) {
	t.Helper()
	envoy, err := exec.LookPath("envoy")
	if err != nil {
		t.Skip("envoy is not installed: that it gets its certificates is not shown")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr = l.Addr().String()
	_, port, _ := net.SplitHostPort(addr)
	l.Close()
	config, err := os.ReadFile("testdata/envoy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "envoy.yaml")
	text := strings.NewReplacer("SOCKET", e.path, "PORT", port, "API", api, "ROOTS", roots).Replace(string(config))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(envoy, "-c", file, "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait(); log.Close() })
	return addr, func() string {
		text, _ := os.ReadFile(log.Name())
		return string(text)
	}
}

// A real Envoy serves TLS with the SVID that it gets over its Secret Discovery
// Service, in each of the two ways to ask for it, takes a client by the bundle,
// and goes on with the next SVID. With the roots of all trust domains it takes a
// partner's workload too, as long as it has a partner's name.
func TestEnvoy(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		api, roots string
		partner    bool
	}{{"GRPC", "ROOTCA", false}, {"DELTA_GRPC", "ALL", true}, {"DELTA_GRPC", "spiffe://shop.example", false}} {
		t.Run(tt.api+" "+strings.TrimPrefix(tt.roots, "spiffe://"), func(t *testing.T) {
			t.Parallel()
			testEnvoy(t, tt.api, tt.roots, tt.partner)
		})
	}
}

func testEnvoy(t *testing.T, api, roots string, partner bool) {
	e := start(t, authority.Options{Lifetime: 10 * time.Second}, me(t, "web"))
	theirs := newLawless(t)
	e.partners.set(theirs.bundle(t))
	addr, said := startEnvoy(t, e, api, roots)
	own, err := e.authority.Source(t.Context(), "spiffe://shop.example/client", nil)
	if err != nil {
		t.Fatal(err)
	}
	serials := map[string]bool{}
	for ctx := within(t); len(serials) < 2; time.Sleep(100 * time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatalf("%d SVIDs of Envoy were seen\n%s", len(serials), said())
		}
		if serial, ok := asks(addr, spiffe.ClientConfig(own, "spiffe://shop.example/web")); ok {
			serials[serial] = true
		}
	}
	// By the same bundle it refuses who has no SVID.
	if _, ok := asks(addr, &tls.Config{InsecureSkipVerify: true}); ok {
		t.Error("Envoy lets in a client without SVID")
	}
	if _, ok := asks(addr, theirs.client(t, "spiffe://partner.example/client")); ok != partner {
		t.Errorf("a partner's workload is let in: %v\n%s", ok, said())
	}
	if _, ok := asks(addr, theirs.client(t, "spiffe://shop.example/client")); ok {
		t.Error("a partner's root proves a workload of ours")
	}
	if !partner {
		return
	}
	e.partners.set() // no partner any more: Envoy is told
	for ctx := within(t); ; time.Sleep(50 * time.Millisecond) {
		if _, ok := asks(addr, theirs.client(t, "spiffe://partner.example/client")); !ok {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("one that is no partner any more is still let in\n%s", said())
		}
	}
	if _, ok := asks(addr, spiffe.ClientConfig(own, "spiffe://shop.example/web")); !ok {
		t.Errorf("our own is not let in without partners\n%s", said())
	}
}

// secretsOf reads the secrets of a DiscoveryResponse, by name.
func secretsOf(t *testing.T, b []byte) (secrets map[string][]byte, version, nonce string) {
	t.Helper()
	secrets = map[string][]byte{}
	for _, f := range fields(t, b) {
		switch f.number {
		case 1:
			version = string(f.value)
		case 5:
			nonce = string(f.value)
		case 2:
			resource := fields(t, f.value)
			if string(resource[0].value) != secretType {
				t.Errorf("type %s", resource[0].value)
			}
			secret := fields(t, resource[1].value)
			secrets[string(secret[0].value)] = secret[1].value
		}
	}
	return
}

type wireField struct {
	number protowire.Number
	value  []byte
}

func fields(t *testing.T, b []byte) (all []wireField) {
	t.Helper()
	for len(b) > 0 {
		number, _, n := protowire.ConsumeTag(b)
		v, m := protowire.ConsumeBytes(b[max(n, 0):])
		if n < 0 || m < 0 {
			t.Fatal("not a message of strings")
		}
		all, b = append(all, wireField{number, v}), b[n+m:]
	}
	return
}

func request(names ...string) *emptypb.Empty {
	var b []byte
	for _, name := range names {
		b = field(b, 3, name)
	}
	m := new(emptypb.Empty)
	m.ProtoReflect().SetUnknown(field(b, 4, secretType))
	return m
}

func TestSDS(t *testing.T) {
	t.Parallel()
	e := start(t, authority.Options{}, me(t, "web"))
	c, err := grpc.NewClient("unix://"+e.path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const service = "/envoy.service.secret.v3.SecretDiscoveryService/"
	fetch := func(names ...string) (map[string][]byte, error) {
		out := new(emptypb.Empty)
		err := c.Invoke(within(t), service+"FetchSecrets", request(names...), out)
		if err != nil {
			return nil, err
		}
		all, version, nonce := secretsOf(t, out.ProtoReflect().GetUnknown())
		if version == "" || nonce == "" {
			t.Error("no version or nonce")
		}
		return all, nil
	}
	for _, tt := range []struct{ ask, want string }{
		{"", "ROOTCA default"}, {"default", "default"}, {"ROOTCA", "ROOTCA"}, {"default ROOTCA", "ROOTCA default"},
		{"spiffe://shop.example/web spiffe://shop.example", "spiffe://shop.example spiffe://shop.example/web"},
		{"spiffe://shop.example/orders", ""},
	} {
		all, err := fetch(strings.Fields(tt.ask)...)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, name := range []string{"ROOTCA", "default", "spiffe://shop.example", "spiffe://shop.example/web", "spiffe://shop.example/orders"} {
			if all[name] != nil {
				got = append(got, name)
			}
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%q gives %q", tt.ask, got)
		}
	}
	testSecretStream(t, e, c, service)
	// What is no request of secrets is refused, and over TCP there is none.
	e.apply(t, me(t, "web"))
	out, wrong := new(emptypb.Empty), new(emptypb.Empty)
	wrong.ProtoReflect().SetUnknown(field(nil, 4, "type.googleapis.com/envoy.config.cluster.v3.Cluster"))
	if err := c.Invoke(within(t), service+"FetchSecrets", wrong, out); status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
	tcp, err := grpc.NewClient(e.tcp, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	if err := tcp.Invoke(within(t), service+"FetchSecrets", request(), out); status.Code(err) != codes.PermissionDenied {
		t.Error(err)
	}
}

// testSecretStream holds a stream: it is told of what is asked for anew, and of
// the end.
func testSecretStream(t *testing.T, e *estate, c *grpc.ClientConn, service string) {
	t.Helper()
	stream, err := c.NewStream(within(t), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, service+"StreamSecrets")
	if err != nil {
		t.Fatal(err)
	}
	out := new(emptypb.Empty)
	for _, name := range []string{"default", "ROOTCA"} {
		if err := stream.SendMsg(request(name)); err != nil {
			t.Fatal(err)
		}
		if err := stream.RecvMsg(out); err != nil {
			t.Fatal(err)
		}
		all, _, _ := secretsOf(t, out.ProtoReflect().GetUnknown())
		if len(all) != 1 || all[name] == nil {
			t.Errorf("%q gives %d secrets", name, len(all))
		}
		if name == "ROOTCA" {
			pool := x509.NewCertPool()
			if trusted := fields(t, fields(t, all[name])[0].value); !pool.AppendCertsFromPEM(trusted[0].value) {
				t.Errorf("%q is no PEM", trusted[0].value)
			}
		}
	}
	e.apply(t)
	if err := stream.RecvMsg(out); status.Code(err) != codes.PermissionDenied {
		t.Errorf("an identity that was taken away: %v", err)
	}
}

// talkDelta is a stream of DeltaSecrets.
type talkDelta struct {
	grpc.ClientStream
	t *testing.T
}

func (d talkDelta) ask(subscribe, unsubscribe []string, has map[string]string) {
	d.t.Helper()
	b := field(nil, 2, secretType)
	for _, name := range subscribe {
		b = field(b, 3, name)
	}
	for _, name := range unsubscribe {
		b = field(b, 4, name)
	}
	for name, version := range has {
		b = field(b, 5, field(field(nil, 1, name), 2, version))
	}
	m := new(emptypb.Empty)
	m.ProtoReflect().SetUnknown(b)
	if err := d.SendMsg(m); err != nil {
		d.t.Fatal(err)
	}
}

// hears reads one answer: versions by name, and the names of what is gone.
func (d talkDelta) hears() (versions map[string]string, removed []string) {
	d.t.Helper()
	m := new(emptypb.Empty)
	if err := d.RecvMsg(m); err != nil {
		d.t.Fatal(err)
	}
	versions = map[string]string{}
	nonce := false
	for _, f := range fields(d.t, m.ProtoReflect().GetUnknown()) {
		switch f.number {
		case 2:
			r := fields(d.t, f.value)
			secret := fields(d.t, fields(d.t, r[1].value)[1].value)
			if string(secret[0].value) != string(r[2].value) {
				d.t.Errorf("%q holds %q", r[2].value, secret[0].value)
			}
			versions[string(r[2].value)] = string(r[0].value)
		case 5:
			nonce = true
		case 6:
			removed = append(removed, string(f.value))
		}
	}
	if !nonce {
		d.t.Error("no nonce")
	}
	return versions, removed
}

// DeltaSecrets tells what is new to the client, and nothing twice.
func TestDeltaSecrets(t *testing.T) {
	t.Parallel()
	e := start(t, authority.Options{}, me(t, "web"))
	c, err := grpc.NewClient("unix://"+e.path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	begin := func() talkDelta {
		s, err := c.NewStream(within(t), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets")
		if err != nil {
			t.Fatal(err)
		}
		return talkDelta{s, t}
	}
	expect := func(d talkDelta, names string, gone string) map[string]string {
		t.Helper()
		versions, removed := d.hears()
		if got := strings.Join(slices.Sorted(maps.Keys(versions)), " "); got != names || strings.Join(removed, " ") != gone {
			t.Fatalf("%q, and gone %q; want %q and %q", got, removed, names, gone)
		}
		return versions
	}
	const partner = "spiffe://partner.example"
	d := begin()
	d.ask([]string{"default"}, nil, nil)
	had := expect(d, "default", "")
	d.ask(nil, nil, nil) // taken
	d.ask([]string{"ROOTCA", "nothing"}, nil, nil)
	expect(d, "ROOTCA", "nothing")
	d.ask([]string{"ALL", partner}, nil, nil)
	all := expect(d, "ALL", partner)
	e.partners.set(newLawless(t).bundle(t))
	if now := expect(d, "ALL "+partner, ""); now["ALL"] == all["ALL"] {
		t.Error("other bundles have the same version")
	}
	d.ask(nil, []string{"ALL"}, nil)
	d.ask([]string{"default"}, nil, nil) // again: all that is before it was heard
	expect(d, "default", "")
	e.partners.set()
	expect(d, "", partner)
	e.apply(t, me(t, "orders")) // becomes another service
	if now := expect(d, "default", ""); now["default"] == had["default"] {
		t.Error("another SVID has the same version")
	}
	e.apply(t, me(t, "web"))
	expect(d, "default", "")

	again := begin() // a client that was connected before has some of it
	again.ask([]string{"default", "ROOTCA"}, nil, map[string]string{"ROOTCA": "older"})
	had = expect(again, "ROOTCA default", "")
	again = begin()
	again.ask([]string{"default", "ROOTCA"}, nil, map[string]string{"default": had["default"], "ROOTCA": "older"})
	expect(again, "ROOTCA", "")
	plain := begin() // who names nothing gets what is usual
	plain.ask(nil, nil, nil)
	expect(plain, "ROOTCA default", "")

	var many []string
	for i := range maxNames {
		many = append(many, fmt.Sprint("n", i))
	}
	d.ask(many, nil, nil)
	if err := d.RecvMsg(new(emptypb.Empty)); status.Code(err) != codes.InvalidArgument {
		t.Errorf("more names than are allowed: %v", err)
	}
	e.apply(t)
	if err := again.RecvMsg(new(emptypb.Empty)); status.Code(err) != codes.PermissionDenied {
		t.Errorf("an identity that was taken away: %v", err)
	}
}

func FuzzDiscovery(f *testing.F) {
	f.Add([]byte(request("default").ProtoReflect().GetUnknown()))
	f.Add(field(field(field(nil, 2, secretType), 3, "default"), 5, field(field(nil, 1, "ROOTCA"), 2, "1")))
	f.Add([]byte{0x1a, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		var w whole
		if _, err := w.hear(b); err == nil && len(w.names) > maxNames {
			t.Errorf("%d names", len(w.names))
		}
		var d delta
		for range 2 {
			if _, err := d.hear(b); err == nil && (len(d.names) > maxNames || len(d.known) > 2*maxNames) {
				t.Errorf("%d names, %d versions", len(d.names), len(d.known))
			}
		}
	})
}
