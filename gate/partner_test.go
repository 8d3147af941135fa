package gate_test

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"merlon"
	"merlon/authority"
)

// bank is a trust domain of which a workload is called.
const bank = `
trustDomain: shop.example
federation:
  bank.example: {bundle: https://bank.example/bundle}
services:
  web:
    operations: {home: GET /}
  ledger:
    operations: {post: POST /entries}
    callers: {bank.example/billing: all}
external:
  billing:
    spiffe: bank.example/billing
    hosts: [billing.bank.example]
    operations: {invoice: 'GET /invoices/{id}'}
    callers: {web: [invoice]}
`

// certificates are those of DER.
func certificates(t *testing.T, list [][]byte) (all []*x509.Certificate) {
	t.Helper()
	for _, der := range list {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	return all
}

func newAuthority(t *testing.T, trustDomain string) *authority.Authority {
	t.Helper()
	a, err := authority.Open(filepath.Join(t.TempDir(), "authority"), trustDomain, authority.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

// foreigner serves as a workload of another trust domain would that is no gate:
// by go-spiffe, with an SVID of a, for who proves to be admits.
func foreigner(t *testing.T, ours, a *authority.Authority, id, admits string, h http.Handler) (address string) {
	t.Helper()
	source, err := a.Source(t.Context(), id, nil)
	if err != nil {
		t.Fatal(err)
	}
	shown := source.SVID()
	svid := &x509svid.SVID{ID: spiffeid.RequireFromString(id), Certificates: certificates(t, shown.Certificate), PrivateKey: shown.PrivateKey.(crypto.Signer)}
	roots := x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString("shop.example"), certificates(t, ours.Trust().DER))
	l, err := tls.Listen("tcp", "127.0.0.1:0", tlsconfig.MTLSServerConfig(svid, roots, tlsconfig.AuthorizeID(spiffeid.RequireFromString(admits))))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0)}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return l.Addr().String()
}

// TestPartnerCalled: a service of ours calls a workload of another trust domain,
// which is no gate and holds us to our SPIFFE ID as we hold it to its own.
func TestPartnerCalled(t *testing.T) {
	t.Parallel()
	theirs, others := newAuthority(t, "bank.example"), newAuthority(t, "bank.example")
	var bundle atomic.Pointer[x509.CertPool]
	rootsOf := func(trustDomain string) *x509.CertPool {
		if trustDomain != "bank.example" {
			t.Errorf("the roots of %s are asked for", trustDomain)
		}
		return bundle.Load()
	}
	e := setup{apps: map[string]http.Handler{"web": echo("web"), "ledger": echo("ledger")}, rootsOf: rootsOf}.start(t, bank)
	const id, web = "spiffe://bank.example/billing", "spiffe://shop.example/web"
	seen := make(chan *http.Request, 1)
	app := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- r
		w.Header().Set("Merlon-Reason", "chosen")
		io.WriteString(w, "invoice")
	})
	place := merlon.Place{Service: "web"}
	calls := func(what, address, path string, status int, reason string) {
		t.Helper()
		o := e.orders(load(t, bank, nil), place)
		o.Endpoints["billing"] = []merlon.Endpoint{{Address: address, ID: id}}
		if _, err := o.Encode(); err != nil {
			t.Fatal(err)
		}
		if err := e.gates[place].Swap(o); err != nil {
			t.Fatal(err)
		}
		for _, host := range []string{"billing", "billing.bank.example"} {
			a := do(t, e.as("web"), "GET", "http://"+host+path)
			if a.status != status || a.reason != reason {
				t.Errorf("%s, by %s: %d %s, want %d %s", what, host, a.status, a.reason, status, reason)
			}
			if status != 200 {
				continue
			}
			r := <-seen
			if r.Host != host || r.TLS.PeerCertificates[0].URIs[0].String() != web {
				t.Errorf("%s: it sees %s as %v", what, r.Host, r.TLS.PeerCertificates[0].URIs)
			}
			for name := range r.Header {
				if strings.HasPrefix(name, "Merlon") || name == "Traceparent" || strings.HasPrefix(name, "X-Forwarded") {
					t.Errorf("%s: it learns %s", what, name)
				}
			}
		}
	}
	good := foreigner(t, e.auth, theirs, id, web, app)
	calls("before the bundle is there", good, "/invoices/1", 503, "no_bundle")
	bundle.Store(theirs.Roots())
	calls("as the rules say", good, "/invoices/1", 200, "")
	calls("another operation", good, "/other", 404, "no_operation")
	calls("another workload", foreigner(t, e.auth, theirs, id+"/x", web, app), "/invoices/1", 502, "upstream_unproven")
	calls("of the same name, by another authority", foreigner(t, e.auth, others, id, web, app), "/invoices/1", 502, "upstream_unproven")
	calls("one of ours", foreigner(t, e.auth, e.auth, "spiffe://shop.example/billing", web, app), "/invoices/1", 502, "upstream_unproven")
	calls("who takes us for another", foreigner(t, e.auth, theirs, id, "spiffe://shop.example/ledger", app), "/invoices/1", 502, "upstream_broken")
	bundle.Store(e.auth.Roots())
	calls("by our own roots", foreigner(t, e.auth, theirs, id, web, app), "/invoices/1", 502, "upstream_unproven")
}

// TestCalledIsNoGuest: whom a service calls may not even greet it, unless a rule
// names a caller of that trust domain.
func TestCalledIsNoGuest(t *testing.T) {
	t.Parallel()
	theirs := newAuthority(t, "bank.example")
	e := setup{apps: map[string]http.Handler{"web": echo("web"), "ledger": echo("ledger")},
		rootsOf: func(string) *x509.CertPool { return theirs.Roots() }}.start(t, bank)
	source, err := theirs.Source(t.Context(), "spiffe://bank.example/billing", nil)
	if err != nil {
		t.Fatal(err)
	}
	for service, guest := range map[string]bool{"web": false, "ledger": true} {
		c, err := tls.Dial("tcp", e.in[service], &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*source.SVID()}})
		if err != nil {
			t.Fatal(err) // TLS 1.3 tells the client of its refusal with the first byte
		}
		c.SetDeadline(time.Now().Add(patience))
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if n, err := c.Read(make([]byte, 1)); (n == 1) != guest {
			t.Errorf("%s: %d %v", service, n, err)
		}
		c.Close()
	}
}
