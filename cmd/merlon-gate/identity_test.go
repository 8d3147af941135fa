package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"merlon/authority"
	"merlon/identity/spiffe"
	"merlon/internal/sockowner"
	"merlon/workloadapi"
)

// api is a Workload API that takes whoever asks for service b.
type api struct {
	mu      sync.Mutex
	list    []*spiffe.Bundle
	changed chan struct{}
}

func (a *api) federated() ([]*spiffe.Bundle, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.list, a.changed
}

func (a *api) set(list ...*spiffe.Bundle) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.list = list
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *api) serve(s *stand, path string) *workloadapi.Server {
	s.t.Helper()
	server, err := workloadapi.New(workloadapi.Config{Authority: s.auth, TrustDomain: trustDomain, Federated: a.federated,
		Changed:  func() <-chan struct{} { return nil },
		Identify: func(context.Context, *sockowner.Process) (string, error) { return "b", nil }})
	if err != nil {
		s.t.Fatal(err)
	}
	l, err := workloadapi.Listen(path)
	if err != nil {
		s.t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { server.Serve(l) })
	s.t.Cleanup(func() { server.Close(); wg.Wait() })
	return server
}

func foreign(t *testing.T, name string) (*authority.Authority, *spiffe.Bundle) {
	t.Helper()
	a, err := authority.Open(filepath.Join(t.TempDir(), "authority"), name, authority.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	text, err := spiffe.EncodeBundle(a.Trust().DER, a.Trust().JWKS, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	b, err := spiffe.ParseBundle("partner.example", text)
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

// roots is a source with the SVID of one authority and the roots of another.
type roots struct {
	spiffe.Source
	pool *x509.CertPool
}

func (r roots) Roots() *x509.CertPool { return r.pool }

// call calls the gate as a workload of some authority, on a connection of its
// own.
func (s *stand) call(a *authority.Authority, id, path string) (int, string, error) {
	s.t.Helper()
	source, err := a.Source(s.t.Context(), id, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	c := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		TLSClientConfig: spiffe.ClientConfig(roots{source, s.auth.Roots()}, "spiffe://"+trustDomain+"/b")}}
	req, err := http.NewRequest(http.MethodGet, s.url+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Host = "b"
	req.Header.Set("Merlon-Request-Id", "chosen-by-the-caller")
	res, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if id := res.Header.Get("Merlon-Request-Id"); id == "chosen-by-the-caller" {
		s.t.Error("a workload of another trust domain names the call")
	}
	if reason := res.Header.Get("Merlon-Reason"); reason != "" {
		return res.StatusCode, reason, err
	}
	return res.StatusCode, string(body), err
}

// TestWorkloadAPI: a gate waits for its SVID, goes on when the Workload API is
// away, and takes calls of another trust domain by the bundle that comes with
// the SVID: by that alone, and for that trust domain alone.
func TestWorkloadAPI(t *testing.T) {
	t.Parallel()
	if !sockowner.Supported() {
		t.Skip("this system does not tell who is at the other end of a socket")
	}
	s := newStand(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "done") }))
	hash := s.orders("callers: {a: [hello, slow], partner.example/ns/billing: [hello]}\nfederation: {partner.example: {bundle: 'https://partner.example/bundle'}}", nil)
	dir, err := os.MkdirTemp("", "wl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "api.sock")
	w := &api{changed: make(chan struct{})}
	s.run(exec.Command(build(t), s.arguments("-svid", "unix://"+socket)...))
	s.until("the gate waits", func() bool {
		return strings.Contains(s.said(), "waiting for the first SVID") && strings.Contains(s.said(), "no such file")
	})
	server := w.serve(s, socket)
	s.url, s.out = "https://"+s.address("in"), s.address("out")
	s.want("/hello", 200, "done")

	partner, bundle := foreign(t, "partner.example")
	const billing = "spiffe://partner.example/ns/billing"
	if status, _, err := s.call(partner, billing, "/hello"); err == nil {
		t.Errorf("a workload gets in before its bundle: %d", status)
	}
	w.set(bundle)
	s.until("the partner's workload gets in", func() bool {
		status, says, err := s.call(partner, billing, "/hello")
		return err == nil && status == 200 && says == "done"
	})
	for name, tt := range map[string]struct{ id, path string }{
		"another operation": {billing, "/slow"},
		"another workload":  {"spiffe://partner.example/billing", "/hello"},
		"a longer name":     {billing + "/x", "/hello"},
		"the name of ours":  {"spiffe://partner.example/a", "/hello"},
		"the gateway":       {"spiffe://partner.example/gateway", "/hello"},
	} {
		if status, says, err := s.call(partner, tt.id, tt.path); err != nil || status != 403 || !strings.Contains(says, "no_rule") {
			t.Errorf("%s: %d %q %v", name, status, says, err)
		}
	}
	// A root of the partner signs for our own trust domain.
	forger, forged := foreign(t, trustDomain)
	w.set(bundle, forged)
	for _, id := range []string{"spiffe://" + trustDomain + "/a", "spiffe://" + trustDomain + "/gateway"} {
		if status, _, err := s.call(forger, id, "/hello"); err == nil {
			t.Errorf("a partner's root made %s: %d", id, status)
		}
	}
	if !strings.Contains(s.said(), "an SVID came") {
		t.Error("the gate does not say that the SVID came")
	}

	server.Close()
	s.until("the gate says that the Workload API is away", func() bool { return strings.Contains(s.said(), "the SVID at hand ends at") })
	s.client.CloseIdleConnections()
	s.want("/hello", 200, "done")
	w.set(forged) // the partner's bundle is another: its old root is worth nothing
	w.serve(s, socket)
	s.until("the old root is refused", func() bool { _, _, err := s.call(partner, billing, "/hello"); return err != nil })
	if n := strings.Count(s.said(), "hash="+hash); n > 1 {
		t.Errorf("the bundle came by new orders")
	}
	s.want("/hello", 200, "done")
	s.upgrade(s.cmd.Process.Pid)
	s.client.CloseIdleConnections()
	s.want("/hello", 200, "done")
}

// TestWorkloadAPIWait: a signal ends the wait, and an address that is none is
// refused; SVIDs in files bring no bundle of others, so that orders that need
// one are refused.
func TestWorkloadAPIWait(t *testing.T) {
	t.Parallel()
	s := newStand(t, http.NotFoundHandler())
	s.run(exec.Command(build(t), s.arguments("-svid", "unix://"+filepath.Join(s.dir, "none"))...))
	s.until("the gate waits", func() bool { return strings.Contains(s.said(), "no such file") })
	s.cmd.Process.Signal(syscall.SIGTERM)
	err := <-s.ended
	s.ended <- err
	if err == nil || !strings.Contains(s.said(), "there is no SVID: context canceled") {
		t.Errorf("%v\n%s", err, s.said())
	}
	fails := func(want string, more ...string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, build(t), s.arguments(more...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%q: %v %q", more, err, out)
		}
	}
	fails("no address of a Workload API", "-svid", "http://127.0.0.1")
	fails("no address of a Workload API", "-svid", "tcp://localhost:1")
	fails("no address of a Workload API", "-svid", "unix://relative/path")
	s.orders("callers: {partner.example/billing: [hello]}\nfederation: {partner.example: {bundle: 'https://partner.example/bundle'}}", nil)
	fails("is given no bundle of trust domain partner.example")
}
