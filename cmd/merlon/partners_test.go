package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"merlon/authority"
	"merlon/identity/spiffe"
)

// realm is a site of a trust domain of its own: its service a calls the workload
// of another one that the intent names peer, and its service b may be called from there.
type realm struct {
	*site
	name   string
	up     *upped
	bundle string // what the other one begins with
}

func newRealm(t *testing.T, name string) *realm {
	r := &realm{site: newSite(t), name: name}
	r.write("merlon.yaml", r.text(""))
	r.up = r.site.up("--bundle-endpoint", r.c)
	c := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	res, err := c.Get(r.up.Bundle)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	r.bundle = string(text)
	return r
}

func (r *realm) text(more string) string {
	return fmt.Sprintf("trustDomain: %s\ngateway: {listen: %q, hosts: [localhost], certificate: none}\n%s", r.name, r.gateway, more)
}

// in is where the gate of b is called.
func (r *realm) in() string {
	i := slices.IndexFunc(r.up.Places, func(p struct{ Place, In, Out string }) bool { return p.Place == "gate of b" })
	return r.up.Places[i].In
}

// with makes other a partner of r: peer is whom a calls there, and guests are who
// may call b from there; first is the bundle to begin with.
func (r *realm) with(other *realm, peer, address, guests, first string) {
	r.t.Helper()
	r.write("partner.json", first)
	r.write("merlon.yaml", r.text(fmt.Sprintf(`federation:
  %s: {bundle: %q, profile: https_spiffe, endpointID: spiffe://%s/%s, first: partner.json, allowLocal: true}
external:
  peer: {spiffe: %s, address: '%s', operations: {hello: GET /hello}, callers: {a: all}}
`, other.name, other.up.Bundle, other.name, endpointPath, peer, address)))
	r.service("a", r.a, "anyone: all", "PEER: peer")
	r.service("b", r.b, guests)
	r.must("apply", "--widen")
}

// calls has a call its peer, until it is answered so.
func (r *realm) calls(status int, says string) {
	r.t.Helper()
	var last reply
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if a, err := fetch(r.url("/call"), ""); err == nil {
			if last = a; a.status == status && strings.Contains(a.body, says) {
				return
			}
		}
	}
	r.t.Errorf("a of %s is answered %d %q, want %d %q\n%s", r.name, last.status, last.body, status, says, r.log())
}

// TestPartners: two systems, each with an authority of its own, call each other as
// the rules of both say. Who is called has to prove exactly the ID that the intent
// names, by the bundle of its own trust domain.
func TestPartners(t *testing.T) {
	t.Parallel()
	shop, bank := newRealm(t, "shop.example"), newRealm(t, "bank.example")
	shop.with(bank, "bank.example/b", bank.in(), "bank.example/a: [hello]", bank.bundle)
	bank.with(shop, "shop.example/b", shop.in(), "shop.example/a: [hello]", shop.bundle)
	shop.calls(200, "b")
	bank.calls(200, "b")
	for _, r := range []*realm{shop, bank} {
		if out := r.must("can", "a -> peer.hello"); !strings.Contains(out, "allow") {
			t.Error(out)
		}
		r.fails(3, []string{"can", "b -> peer.hello"}, "no rule lets b call peer.hello")
	}

	// Another workload of the partner answers there.
	shop.with(bank, "bank.example/a", bank.in(), "bank.example/a: [hello]", bank.bundle)
	shop.calls(502, "upstream_unproven")
	eventually(t, "the record says who answers", func() bool {
		return strings.Contains(shop.must("record", "tail", "-n", "20", "--json"), `peer is \"spiffe://bank.example/b\", want \"spiffe://bank.example/a\"`)
	})
	// A workload of ours answers there, of the same name.
	shop.with(bank, "bank.example/b", shop.in(), "bank.example/a: [hello]", bank.bundle)
	shop.calls(502, "upstream_unproven")
	shop.with(bank, "bank.example/b", bank.in(), "bank.example/a: [hello]", bank.bundle)
	shop.calls(200, "b")

	// The partner's own rules decide too.
	bank.with(shop, "shop.example/b", shop.in(), "shop.example/a: [slow]", shop.bundle)
	shop.calls(403, "no_rule")
	bank.calls(200, "b")
	bank.with(shop, "shop.example/b", shop.in(), "shop.example/a: [hello]", shop.bundle)
	shop.calls(200, "b")
}

// TestPartnerBundle: nothing but the bundle of the partner's trust domain verifies it.
func TestPartnerBundle(t *testing.T) {
	t.Parallel()
	bank, shop := newRealm(t, "bank.example"), newRealm(t, "shop.example")
	forger, err := authority.Open(filepath.Join(t.TempDir(), "authority"), "bank.example", authority.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer forger.Close()
	forged, err := spiffe.EncodeBundle(forger.Trust().DER, forger.Trust().JWKS, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	bank.with(shop, "shop.example/b", shop.in(), "shop.example/a: [hello]", shop.bundle)
	shop.with(bank, "bank.example/b", bank.in(), "a: [hello]", string(forged)) // which does not verify the endpoint either
	shop.calls(502, "upstream_unproven")
	shop.write("merlon.yaml", shop.text(fmt.Sprintf(`federation: {bank.example: {bundle: "https://%s/bundle"}}
external:
  peer: {spiffe: bank.example/b, address: '%s', operations: {hello: GET /hello}, callers: {a: all}}
`, shop.b, bank.in())))
	shop.must("apply", "--widen")
	shop.calls(503, "no_bundle")
	shop.with(bank, "bank.example/b", bank.in(), "a: [hello]", bank.bundle)
	shop.calls(200, "b")
}
