package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"merlon/authority"
	"merlon/federation"
	"merlon/identity/spiffe"
)

// trusts is a source with the SVID of one authority and the roots of another.
type trusts struct {
	spiffe.Source
	pool *x509.CertPool
}

func (r trusts) Roots() *x509.CertPool { return r.pool }

const partnerEndpoint = "spiffe://partner.example/endpoint"

// servePartner serves the bundle of another trust domain by an SVID of its own.
func servePartner(t *testing.T) (partner *authority.Authority, address string, first []byte) {
	t.Helper()
	partner, err := authority.Open(filepath.Join(t.TempDir(), "authority"), "partner.example", authority.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { partner.Close() })
	source, err := partner.Source(t.Context(), partnerEndpoint, nil)
	if err != nil {
		t.Fatal(err)
	}
	e, err := federation.NewEndpoint(partner.Trust, t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go e.Serve(l, federation.SourceConfig(source))
	t.Cleanup(e.Close)
	if first, err = spiffe.EncodeBundle(partner.Trust().DER, partner.Trust().JWKS, 0, 0); err != nil {
		t.Fatal(err)
	}
	return partner, l.Addr().String(), first
}

// ourBundle fetches the bundle that merlon up serves, whoever serves it.
func ourBundle(t *testing.T, url string) *spiffe.Bundle {
	t.Helper()
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	res, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := spiffe.ID(res.TLS.PeerCertificates[0]); err != nil || id != "spiffe://test.example/"+endpointPath {
		t.Errorf("%q %v", id, err)
	}
	ours, err := spiffe.ParseBundle("test.example", text)
	if err != nil {
		t.Fatal(err)
	}
	return ours
}

// foreignCall calls service b at its gate, as a workload of another authority.
func foreignCall(t *testing.T, partner *authority.Authority, roots *x509.CertPool, address, id, path string) (status int, says string, err error) {
	t.Helper()
	own, err := partner.Source(t.Context(), id, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		TLSClientConfig: spiffe.ClientConfig(trusts{own, roots}, "spiffe://test.example/b")}}
	req, err := http.NewRequest(http.MethodGet, "https://"+address+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "b"
	res, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return res.StatusCode, res.Header.Get("Merlon-Reason"), err
}

// TestFederation: two trust domains, each with the other's bundle: a workload of
// a partner calls what a rule lets it, and nothing else.
func TestFederation(t *testing.T) {
	t.Parallel()
	partner, endpoint, first := servePartner(t)
	s := newSite(t)
	s.write("partner.json", string(first))
	s.write("merlon.yaml", fmt.Sprintf(`trustDomain: test.example
federation:
  partner.example: {bundle: "https://%s/bundle", profile: https_spiffe, endpointID: %q, first: partner.json, allowLocal: true}
gateway: {listen: %q, hosts: [localhost], certificate: none}
tests:
  - {call: partner.example/billing -> b.hello, expect: allow}
  - {call: partner.example/other -> b.hello, expect: deny}
`, endpoint, partnerEndpoint, s.gateway))
	s.service("b", s.b, "a: [hello], partner.example/billing: [hello]")
	u := s.up("--bundle-endpoint", "127.0.0.1:0")
	s.want("/call", 200, "b")
	if out := s.must("can", "partner.example/billing -> b.hello"); !strings.Contains(out, "b: partner.example/billing lets partner.example/billing call b.hello") {
		t.Error(out)
	}
	s.fails(3, []string{"can", "partner.example/billing -> b.slow"}, "no rule lets partner.example/billing call b.slow")

	ours := ourBundle(t, u.Bundle)
	at := slices.IndexFunc(u.Places, func(p struct{ Place, In, Out string }) bool { return p.Place == "gate of b" })
	call := func(id, path string) (int, string, error) {
		t.Helper()
		return foreignCall(t, partner, ours.Roots, u.Places[at].In, id, path)
	}
	for _, tt := range []struct {
		id, path, says string
		status         int
	}{
		{"spiffe://partner.example/billing", "/hello", "", 200},
		{"spiffe://partner.example/billing", "/slow", "no_rule", 403},
		{"spiffe://partner.example/a", "/hello", "no_rule", 403},
	} {
		if status, says, err := call(tt.id, tt.path); err != nil || status != tt.status || says != tt.says {
			t.Errorf("%s %s: %d %s %v\n%s", tt.id, tt.path, status, says, err, s.log())
		}
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		out := s.must("id", "status")
		if strings.Contains(out, "partner.example") && strings.Contains(out, "https_spiffe") && !strings.Contains(out, "never") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the partner's bundle is not fetched\n%s", out)
		}
		time.Sleep(20 * time.Millisecond)
	}
	// Who is no partner any more has no way in.
	s.head(s.gateway)
	s.service("b", s.b, "a: [hello]")
	s.apply()
	if status, _, err := call("spiffe://partner.example/billing", "/hello"); err == nil {
		t.Errorf("a stranger gets in: %d", status)
	}
}

// TestBundleFlags: what cannot work is refused before anything runs.
func TestBundleFlags(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--bundle-cert", "x"}, "go together"},
		{[]string{"--bundle-cert", "x", "--bundle-key", "y"}, "without --bundle-endpoint"},
		{[]string{"--bundle-endpoint", ":0", "--jwt-issuer", "https://id.shop.example"}, "knows no SVID"},
		{[]string{"--bundle-endpoint", ":0", "--bundle-cert", "x", "--bundle-key", "y", "--jwt-issuer", "http://id"}, "is no issuer"},
	} {
		s.fails(4, append([]string{"up"}, tt.args...), tt.want)
	}
	s.fails(1, []string{"up", "--bundle-ca", filepath.Join(s.dir, "none")}, "no such file")
}
