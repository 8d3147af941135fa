package workloadapi

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"merlon/authority"
	"merlon/identity/spiffe"
	"merlon/internal/sockowner"
)

// federation is bundles that change.
type federation struct {
	mu      sync.Mutex
	list    []*spiffe.Bundle
	changed chan struct{}
}

func (f *federation) get() ([]*spiffe.Bundle, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.list, f.changed
}

func (f *federation) set(list ...*spiffe.Bundle) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = list
	close(f.changed)
	f.changed = make(chan struct{})
}

func bundleOf(t *testing.T, a *authority.Authority, name string) *spiffe.Bundle {
	t.Helper()
	text, err := spiffe.EncodeBundle(a.Trust().DER, a.Trust().JWKS, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	b, err := spiffe.ParseBundle(name, text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// serveAs serves the Workload API to this process, as web, at an address.
func serveAs(t *testing.T, a *authority.Authority, path string, f *federation) *Server {
	t.Helper()
	if !sockowner.Supported() {
		t.Skip("this system does not tell who is at the other end of a socket")
	}
	s, err := New(Config{Authority: a, TrustDomain: td, Federated: f.get, Changed: func() <-chan struct{} { return nil },
		Identify: func(context.Context, *sockowner.Process) (string, error) { return "web", nil }})
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { s.Serve(l) })
	t.Cleanup(func() { s.Close(); wg.Wait() })
	return s
}

func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "wl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "api.sock")
}

// TestFederated: bundles of other trust domains reach workloads by all three
// calls, are pushed when they change, and verify tokens of their own.
func TestFederated(t *testing.T) {
	t.Parallel()
	ours, err := authority.Open(t.TempDir()+"/a", td, authority.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close() })
	theirs, err := authority.Open(t.TempDir()+"/a", "partner.example", authority.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { theirs.Close() })
	f := &federation{changed: make(chan struct{})}
	path := socketPath(t)
	serveAs(t, ours, path, f)
	c, err := workloadapi.New(t.Context(), workloadapi.WithAddr("unix://"+path))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	partner, own := spiffeid.RequireTrustDomainFromString("partner.example"), spiffeid.RequireTrustDomainFromString(td)
	source, err := workloadapi.NewX509Source(within(t), workloadapi.WithClientOptions(workloadapi.WithAddr("unix://"+path)))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	if _, err := source.GetX509BundleForTrustDomain(partner); err == nil {
		t.Error("a bundle of a stranger")
	}
	token, _, err := theirs.IssueJWT("spiffe://partner.example/billing", []string{"web"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ValidateJWTSVID(within(t), token, "web"); err == nil {
		t.Error("a stranger's token is good")
	}
	f.set(bundleOf(t, theirs, "partner.example"))
	for ctx := within(t); ; time.Sleep(time.Millisecond) {
		b, err := source.GetX509BundleForTrustDomain(partner)
		if err == nil {
			if len(b.X509Authorities()) != 1 || !b.X509Authorities()[0].Equal(certOf(t, theirs)) {
				t.Error("another bundle than the partner's")
			}
			break
		}
		if ctx.Err() != nil {
			t.Fatal("the bundle is not pushed")
		}
	}
	bundles, err := c.FetchX509Bundles(within(t))
	if err != nil || bundles.Len() != 2 || !bundles.Has(partner) || !bundles.Has(own) {
		t.Errorf("%v %v", bundles, err)
	}
	keys, err := c.FetchJWTBundles(within(t))
	if err != nil || keys.Len() != 2 || !keys.Has(partner) {
		t.Errorf("%v %v", keys, err)
	}
	svid, err := c.ValidateJWTSVID(within(t), token, "web")
	if err != nil || svid.ID.String() != "spiffe://partner.example/billing" {
		t.Errorf("%v %v", svid, err)
	}
	// A partner cannot speak for ours: only its own keys are asked about its own.
	forger, err := authority.Open(t.TempDir()+"/a", td, authority.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { forger.Close() })
	f.set(bundleOf(t, forger, "partner.example"))
	forged, _, err := forger.IssueJWT("spiffe://"+td+"/web", []string{"web"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ValidateJWTSVID(within(t), forged, "web"); err == nil {
		t.Error("a partner's key proves a workload of ours")
	}
}

func certOf(t *testing.T, a *authority.Authority) *x509.Certificate {
	t.Helper()
	cert, err := x509.ParseCertificate(a.Trust().DER[0])
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// listener keeps what a client reports.
type listener struct {
	mu   sync.Mutex
	said []string
}

func (l *listener) hear(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.said = append(l.said, err.Error())
	}
}

func (l *listener) heard(what string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(strings.Join(l.said, "\n"), what)
}

// TestFetch: our own client follows renewals, another bundle, and the end and
// return of the server, and keeps what it has meanwhile.
func TestFetch(t *testing.T) {
	t.Parallel()
	ours, err := authority.Open(t.TempDir()+"/a", td, authority.Options{Lifetime: 6 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close() })
	f := &federation{changed: make(chan struct{})}
	path := socketPath(t)
	l := &listener{}
	until := func(what string, ok func() bool) {
		t.Helper()
		for ctx := within(t); !ok(); time.Sleep(time.Millisecond) {
			if ctx.Err() != nil {
				t.Fatalf("never: %s", what)
			}
		}
	}
	const id = "spiffe://" + td + "/web"
	got := make(chan *spiffe.Fetched, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		s, err := spiffe.Fetch(ctx, "unix://"+path, id, time.Now, l.hear)
		if err != nil {
			t.Error(err)
		}
		got <- s
	}()
	until("it says that nobody serves", func() bool { return l.heard("no such file") })
	server := serveAs(t, ours, path, f)
	s := <-got
	if s == nil {
		return
	}
	first := s.SVID()
	if who, err := spiffe.ID(first.Leaf); err != nil || who != id || !s.Roots().Equal(ours.Roots()) || s.RootsOf("partner.example") != nil {
		t.Errorf("%v %v", who, err)
	}
	if _, ok := first.PrivateKey.(*ecdsa.PrivateKey); !ok {
		t.Error("no key")
	}
	until("a renewal", func() bool { svid := s.SVID(); return svid != nil && !svid.Leaf.Equal(first.Leaf) })
	theirs, err := authority.Open(t.TempDir()+"/a", "partner.example", authority.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { theirs.Close() })
	f.set(bundleOf(t, theirs, "partner.example"))
	until("the partner's bundle", func() bool { return s.RootsOf("partner.example").Equal(theirs.Roots()) })
	if s.RootsOf(td) != nil {
		t.Error("our own trust domain is among the others")
	}

	server.Close()
	until("the end is said", func() bool { return l.heard("the SVID at hand ends at") })
	last := first
	if svid := s.SVID(); svid != nil {
		last = svid
	}
	serveAs(t, ours, path, f)
	until("an SVID of the next server", func() bool { svid := s.SVID(); return svid != nil && !svid.Leaf.Equal(last.Leaf) })

	if _, err := spiffe.Fetch(ctx, "http://x", id, time.Now, l.hear); err == nil {
		t.Error("http is taken for a Workload API")
	}
	short, stop := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer stop()
	if _, err := spiffe.Fetch(short, "unix://"+path, "spiffe://"+td+"/orders", time.Now, l.hear); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if !l.heard(`it gives ["spiffe://shop.example/web"], and not spiffe://shop.example/orders`) {
		t.Error("it does not say what it got instead")
	}
	cancel()
	<-s.Done()
}
