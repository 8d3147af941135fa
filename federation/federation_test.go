package federation

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	gospiffe "github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"merlon"
	"merlon/authority"
	"merlon/identity/spiffe"
)

func open(t *testing.T, name string, opt authority.Options) *authority.Authority {
	t.Helper()
	a, err := authority.Open(filepath.Join(t.TempDir(), "authority"), name, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// theirs is the bundle of an authority as another implementation has it.
func theirs(t *testing.T, a *authority.Authority, name string, sequence uint64) *spiffebundle.Bundle {
	t.Helper()
	td := spiffeid.RequireTrustDomainFromString(name)
	b := spiffebundle.New(td)
	for _, der := range a.Trust().DER {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		b.AddX509Authority(cert)
	}
	b.SetSequenceNumber(sequence)
	b.SetRefreshHint(time.Second)
	return b
}

func partners(t *testing.T, dir string, roots *x509.CertPool) *Partners {
	t.Helper()
	p, err := Open(Options{Dir: dir, Roots: roots, least: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func pool(s *httptest.Server) *x509.CertPool {
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return roots
}

// TestWeb follows an endpoint that go-spiffe serves, over a rotation, a failure
// and a restart.
func TestWeb(t *testing.T) {
	t.Parallel()
	a := open(t, "partner.example", authority.Options{})
	source := theirs(t, a, "partner.example", 1)
	handler, err := gospiffe.NewHandler(source.TrustDomain(), source)
	if err != nil {
		t.Fatal(err)
	}
	var broken atomic.Bool
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if broken.Load() {
			http.Error(w, "no", http.StatusBadGateway)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	dir := t.TempDir()
	p := partners(t, dir, pool(s))
	list := []merlon.Partner{{TrustDomain: "partner.example", Bundle: s.URL + "/x", AllowLocal: true}}
	_, stale := p.Bundles()
	p.Set(list)
	until(t, "a bundle", func() bool { return p.RootsOf("partner.example") != nil })
	<-stale
	if !p.RootsOf("partner.example").Equal(a.Trust().Roots) || p.RootsOf("shop.example") != nil || p.RootsOf("") != nil {
		t.Error("other roots than the partner's")
	}

	_, stale = p.Bundles()
	other := open(t, "partner.example", authority.Options{})
	cert, err := x509.ParseCertificate(other.Trust().DER[0])
	if err != nil {
		t.Fatal(err)
	}
	source.AddX509Authority(cert)
	source.SetSequenceNumber(2)
	<-stale
	if got := len(p.Bundle("partner.example").DER); got != 2 {
		t.Errorf("%d roots", got)
	}

	// An older one is not taken back: the root that it lacks may sign already.
	source.RemoveX509Authority(cert)
	source.SetSequenceNumber(1)
	until(t, "the old bundle is refused", func() bool { return strings.Contains(p.Status()[0].Err, "older than 2") })
	broken.Store(true)
	until(t, "the failure is said", func() bool { return strings.Contains(p.Status()[0].Err, "502") })
	if st := p.Status()[0]; st.Roots != 2 || st.Sequence != 2 || st.Fetched.IsZero() || st.Profile != "https_web" {
		t.Errorf("%+v", st)
	}
	p.Close()

	p = partners(t, dir, pool(s))
	p.Set(list)
	if b := p.Bundle("partner.example"); b == nil || len(b.DER) != 2 {
		t.Error("the last bundle did not outlive a restart")
	}
	// By another sentence nothing is known: what came from elsewhere proves nothing.
	list[0].Bundle = s.URL + "/y"
	p.Set(list)
	if p.Bundle("partner.example") != nil {
		t.Error("a bundle from another endpoint is used")
	}
	p.Set(nil)
	if len(p.Status()) != 0 || p.RootsOf("partner.example") != nil {
		t.Error("who is no partner any more is trusted")
	}
}

// TestRefused: what is no bundle from the very endpoint is not taken.
func TestRefused(t *testing.T) {
	t.Parallel()
	a := open(t, "partner.example", authority.Options{})
	good, err := theirs(t, a, "partner.example", 1).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/good", func(w http.ResponseWriter, _ *http.Request) { w.Write(good) })
	mux.HandleFunc("/redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/good", http.StatusFound) })
	mux.HandleFunc("/large", func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, spiffe.MaxBundle+1)) })
	mux.HandleFunc("/html", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") })
	s := httptest.NewTLSServer(mux)
	t.Cleanup(s.Close)
	plain := httptest.NewServer(mux)
	t.Cleanup(plain.Close)
	for name, tt := range map[string]struct {
		url   string
		local bool
		roots *x509.CertPool
		want  string
	}{
		"private":      {s.URL + "/good", false, pool(s), "not one that may be fetched from"},
		"redirect":     {s.URL + "/redirect", true, pool(s), "redirects"},
		"large":        {s.URL + "/large", true, pool(s), "more than"},
		"no bundle":    {s.URL + "/html", true, pool(s), "JSON Web Key Set"},
		"absent":       {s.URL + "/absent", true, pool(s), "404"},
		"unknown CA":   {s.URL + "/good", true, x509.NewCertPool(), "certificate"},
		"another name": {strings.Replace(s.URL, "127.0.0.1", "localhost", 1) + "/good", true, pool(s), "certificate"},
		"plain":        {plain.URL + "/good", true, pool(s), "https"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := partners(t, t.TempDir(), tt.roots)
			m := merlon.Partner{TrustDomain: "partner.example", Bundle: tt.url, AllowLocal: tt.local}
			b, _, err := p.fetch(t.Context(), &partner{Partner: m})
			if err == nil || b != nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	p := partners(t, t.TempDir(), pool(s))
	if _, _, err := p.fetch(t.Context(), &partner{Partner: merlon.Partner{TrustDomain: "partner.example", Bundle: s.URL + "/good", AllowLocal: true}}); err != nil {
		t.Errorf("the test shows nothing: %v", err)
	}
}

// endpoint serves the bundle of a.
func endpoint(t *testing.T, a *authority.Authority, dir, issuer string, config *tls.Config) string {
	t.Helper()
	e, err := NewEndpoint(a.Trust, dir, issuer)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go e.Serve(l, config)
	t.Cleanup(e.Close)
	return "https://" + l.Addr().String()
}

// TestSPIFFE: an endpoint that proves itself by an SVID, read by us and by
// go-spiffe.
func TestSPIFFE(t *testing.T) {
	t.Parallel()
	a := open(t, "partner.example", authority.Options{})
	const id = "spiffe://partner.example/merlon/bundle-endpoint"
	source, err := a.Source(t.Context(), id, nil)
	if err != nil {
		t.Fatal(err)
	}
	url := endpoint(t, a, t.TempDir(), "", SourceConfig(source)) + BundlePath
	first, err := theirs(t, a, "partner.example", 0).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	evil := open(t, "partner.example", authority.Options{}) // of the same name, with other keys
	false1, err := theirs(t, evil, "partner.example", 0).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	m := merlon.Partner{TrustDomain: "partner.example", Bundle: url, EndpointID: id, First: string(first), AllowLocal: true}
	p := partners(t, t.TempDir(), nil)
	p.Set([]merlon.Partner{m})
	until(t, "the bundle is fetched", func() bool { return p.Status()[0].Sequence == 1 })
	if b := p.Bundle("partner.example"); b.Keys() != 1 || b.Hint != hint || p.Status()[0].Profile != "https_spiffe" {
		t.Errorf("%+v", p.Status())
	}
	for name, change := range map[string]func(*merlon.Partner){
		"another ID":      func(m *merlon.Partner) { m.EndpointID = "spiffe://partner.example/billing" },
		"another bundle":  func(m *merlon.Partner) { m.First = string(false1) },
		"no bundle":       func(m *merlon.Partner) { m.First = "" },
		"certificate web": func(m *merlon.Partner) { m.EndpointID = "" },
	} {
		wrong := m
		change(&wrong)
		p := partners(t, t.TempDir(), nil)
		p.Set([]merlon.Partner{wrong})
		until(t, name+": the failure is said", func() bool { return p.Status()[0].Err != "" })
		if p.Status()[0].Sequence != 0 {
			t.Errorf("%s: fetched", name)
		}
	}

	start, err := spiffebundle.Parse(spiffeid.RequireTrustDomainFromString("partner.example"), first)
	if err != nil {
		t.Fatal(err)
	}
	got, err := gospiffe.FetchBundle(t.Context(), start.TrustDomain(), url, gospiffe.WithSPIFFEAuth(start, spiffeid.RequireFromString(id)))
	if err != nil {
		t.Fatal(err)
	}
	if n, ok := got.SequenceNumber(); !ok || n != 1 || len(got.X509Authorities()) != 1 || len(got.JWTAuthorities()) != 1 {
		t.Errorf("go-spiffe reads %v", got)
	}
}

// TestOIDC: JWT-SVIDs are tokens of OpenID Connect, for who only follows the
// issuer.
func TestOIDC(t *testing.T) {
	t.Parallel()
	web := httptest.NewTLSServer(http.NotFoundHandler()) // for its certificate
	defer web.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	issuer := "https://" + l.Addr().String() + "/id"
	a := open(t, "shop.example", authority.Options{Issuer: issuer})
	e, err := NewEndpoint(a.Trust, t.TempDir(), issuer)
	if err != nil {
		t.Fatal(err)
	}
	go e.Serve(l, &tls.Config{Certificates: web.TLS.Certificates})
	defer e.Close()
	token, _, err := a.IssueJWT("spiffe://shop.example/web", []string{"cloud"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	get := func(url string, into any) {
		t.Helper()
		res, err := web.Client().Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if kind := res.Header.Get("Content-Type"); res.StatusCode != 200 || kind != "application/json" {
			t.Errorf("%s: %d %s", url, res.StatusCode, kind)
		}
		if err := json.NewDecoder(res.Body).Decode(into); err != nil {
			t.Fatal(err)
		}
	}
	var found struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	get(issuer+"/.well-known/openid-configuration", &found)
	var set jose.JSONWebKeySet
	get(found.Keys, &set)
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	var claims jwt.Claims
	if err := parsed.Claims(set, &claims); err != nil || found.Issuer != issuer || set.Keys[0].Use != "sig" {
		t.Errorf("%v %+v %+v", err, found, set.Keys)
	}
	if err := claims.Validate(jwt.Expected{Issuer: issuer, AnyAudience: jwt.Audience{"cloud"}, Subject: "spiffe://shop.example/web", Time: time.Now()}); err != nil {
		t.Error(err)
	}
	t.Run("PyJWT", func(t *testing.T) {
		python := os.Getenv("MERLON_SPIFFE_PYTHON")
		if python == "" {
			t.Skip("MERLON_SPIFFE_PYTHON names no Python with PyJWT: that it takes a JWT-SVID is not shown")
		}
		ca := filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(ca, pemOf(web.Certificate()), 0o600); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		out, err := exec.CommandContext(ctx, python, "testdata/oidc.py", issuer, ca, token).CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != "spiffe://shop.example/web" {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

// TestEndpoint: exact paths, questions alone, and a sequence that outlives a
// restart and changes with the bundle.
func TestEndpoint(t *testing.T) {
	t.Parallel()
	a := open(t, "shop.example", authority.Options{})
	dir := t.TempDir()
	serve := func(trust func() *authority.Trust, issuer string) *Endpoint {
		t.Helper()
		e, err := NewEndpoint(trust, dir, issuer)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	e := serve(a.Trust, "")
	for _, tt := range []struct {
		method, path string
		want         int
	}{
		{"GET", "/bundle", 200}, {"HEAD", "/bundle", 200}, {"POST", "/bundle", 405}, {"DELETE", "/bundle", 405},
		{"GET", "/", 404}, {"GET", "/bundle/", 404}, {"GET", "/keys", 404}, {"GET", "/.well-known/openid-configuration", 404},
		{"GET", "/x/../bundle", 404},
	} {
		w := httptest.NewRecorder()
		e.ServeHTTP(w, httptest.NewRequest(tt.method, tt.path, nil))
		if w.Code != tt.want {
			t.Errorf("%s %s: %d, want %d", tt.method, tt.path, w.Code, tt.want)
		}
	}
	sequence := func(e *Endpoint, name string) uint64 {
		t.Helper()
		w := httptest.NewRecorder()
		e.ServeHTTP(w, httptest.NewRequest("GET", "/bundle", nil))
		b, err := spiffe.ParseBundle(name, w.Body.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if b.Key("") != nil || len(b.DER) != 1 || b.Keys() != 1 {
			t.Errorf("%+v", b)
		}
		return b.Sequence
	}
	if n := sequence(e, "shop.example"); n != 1 {
		t.Errorf("the first bundle is %d", n)
	}
	if n := sequence(serve(a.Trust, ""), "shop.example"); n != 1 {
		t.Errorf("the same bundle is %d after a restart", n)
	}
	other := open(t, "shop.example", authority.Options{})
	if n := sequence(serve(other.Trust, ""), "shop.example"); n != 2 {
		t.Errorf("another bundle is %d", n)
	}
	for _, bad := range []string{"http://id.shop.example", "https://id.shop.example/", "https://u@id.shop.example", "https://id.shop.example?x", "id"} {
		if _, err := NewEndpoint(a.Trust, dir, bad); err == nil {
			t.Errorf("%q is taken for an issuer", bad)
		}
	}
}

func pemOf(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}
