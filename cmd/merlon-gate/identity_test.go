package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
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
// refused.
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
}

// shown is the serial number of the certificate that the gate shows.
func (s *stand) shown() string {
	s.t.Helper()
	c, err := tls.Dial("tcp", strings.TrimPrefix(s.url, "https://"), s.client.Transport.(*http.Transport).TLSClientConfig)
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// written is that of the certificate in the gate's files.
func (s *stand) written() string {
	s.t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(s.dir, "svid.pem"), filepath.Join(s.dir, "key.pem"))
	if err != nil {
		s.t.Fatal(err)
	}
	return pair.Leaf.SerialNumber.String()
}

// TestSVIDFiles: what somebody writes to the directory of the SVID counts from the
// next handshake on, whole or not at all.
func TestSVIDFiles(t *testing.T) {
	t.Parallel()
	s := newStand(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "done") }))
	s.start()
	s.want("/hello", 200, "done")
	shown, written := s.shown, s.written
	first := shown()

	// Half of a new one is none, however long the other half takes.
	old, err := os.ReadFile(filepath.Join(s.dir, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	s.svid("b")
	key, err := os.ReadFile(filepath.Join(s.dir, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	s.write("key.pem", old)
	s.until("half an SVID is refused", func() bool { return strings.Contains(s.said(), "does not match public key") })
	if shown() != first {
		t.Error("half an SVID is shown")
	}
	s.write("key.pem", key)
	s.until("the new one is shown", func() bool { return shown() == written() })
	if n := strings.Count(s.said(), "are not taken up"); n > 2 {
		t.Errorf("the log says %d times that the files are not taken up", n)
	}

	// Of another service, or of nobody's: the one at hand stays.
	second := shown()
	for _, tt := range []struct {
		spoil func()
		want  string
	}{
		{func() { s.svid("a") }, "it is that of spiffe://" + trustDomain + "/a"},
		{func() { s.svid("b"); s.write("bundle.pem", nil) }, "bundle.pem: no certificate"},
		{func() { s.svid("b"); s.write("svid.pem", []byte("-----BEGIN CERTIFICATE-----\nMIIB")) }, "svid.pem and key.pem"},
		{func() { s.svid("b"); os.Chmod(filepath.Join(s.dir, "key.pem"), 0o640) }, "others can read the key"},
		{func() { os.Remove(filepath.Join(s.dir, "svid.pem")) }, "svid.pem: no such file"},
	} {
		before := len(s.said())
		tt.spoil()
		s.until(tt.want, func() bool { return strings.Contains(s.said()[before:], tt.want) })
		if shown() != second {
			t.Errorf("%q: another SVID is shown", tt.want)
		}
		s.want("/hello", 200, "done")
	}
	s.svid("b")
	s.until("a whole one is taken again", func() bool { return shown() == written() })
}

// TestBundleFiles: the roots of other trust domains are in files too, and say
// nothing about our own.
func TestBundleFiles(t *testing.T) {
	t.Parallel()
	s := newStand(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "done") }))
	s.orders("callers: {a: [hello], partner.example/billing: [hello]}\nfederation: {partner.example: {bundle: 'https://partner.example/bundle'}}", nil)
	s.start()
	partner, bundle := foreign(t, "partner.example")
	forger, forged := foreign(t, trustDomain)
	if err := os.Mkdir(filepath.Join(s.dir, "bundles"), 0o700); err != nil {
		t.Fatal(err)
	}
	const billing = "spiffe://partner.example/billing"
	if _, _, err := s.call(partner, billing, "/hello"); err == nil || !strings.Contains(s.said(), "no bundle of a trust domain") {
		t.Errorf("a workload gets in before its bundle: %v", err)
	}
	roots := func(b *spiffe.Bundle) (text []byte) {
		for _, der := range b.DER {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
		return text
	}
	gets := func(want bool) {
		t.Helper()
		s.until(fmt.Sprintf("the partner's workload gets in: %v", want), func() bool {
			status, _, err := s.call(partner, billing, "/hello")
			return (err == nil && status == 200) == want
		})
	}
	s.write("bundles/partner.example.pem", roots(bundle))
	gets(true)
	if status, says, err := s.call(partner, "spiffe://partner.example/other", "/hello"); err != nil || status != 403 {
		t.Errorf("another workload of the partner: %d %s %v", status, says, err)
	}
	s.write("bundles/partner.example.pem", append(roots(bundle), "-----BEGIN CERT"...))
	s.until("half a bundle is refused", func() bool { return strings.Contains(s.said(), "what follows certificate 1 is none") })
	gets(true)
	s.write("bundles/partner.example.pem", roots(forged))
	gets(false)
	s.write("bundles/"+trustDomain+".pem", roots(forged))
	s.until("a bundle of the own trust domain is refused", func() bool { return strings.Contains(s.said(), "is of the own trust domain") })
	if status, _, err := s.call(forger, "spiffe://"+trustDomain+"/a", "/hello"); err == nil {
		t.Errorf("a partner's file made a workload of ours: %d", status)
	}
	if err := errors.Join(os.Remove(filepath.Join(s.dir, "bundles", trustDomain+".pem")), os.Remove(filepath.Join(s.dir, "bundles", "partner.example.pem"))); err != nil {
		t.Fatal(err)
	}
	s.svid("b")
	s.until("the bundles are gone", func() bool { return s.shown() == s.written() })
	s.want("/hello", 200, "done")
}

// TestAge: what is not renewed is said once at each age, and what is renewed never.
func TestAge(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	log := slog.New(slog.NewTextHandler(&text, nil))
	start := time.Now()
	svid := func(at, life time.Duration) *tls.Certificate {
		return &tls.Certificate{Leaf: &x509.Certificate{NotBefore: start.Add(at - time.Minute), NotAfter: start.Add(at + life)}}
	}
	var a age
	first, second := svid(0, 20*time.Second), svid(13*time.Second, 20*time.Second)
	for at := time.Duration(0); at < 13*time.Second; at += 100 * time.Millisecond {
		a.look(first, start.Add(at), log)
	}
	for at := 13 * time.Second; at < 40*time.Second; at += 100 * time.Millisecond {
		shown := second
		if at >= 33*time.Second {
			shown = nil
		}
		a.look(shown, start.Add(at), log)
	}
	a.look(svid(40*time.Second, time.Minute), start.Add(40*time.Second), log)
	want := []string{"level=WARN", "a quarter of its life is left", "left=5s", "level=ERROR", "a tenth of its life is left", "left=2s", "level=ERROR", "has expired", "left=0s", "level=INFO", "is renewed"}
	rest := text.String()
	for _, w := range want {
		_, after, found := strings.Cut(rest, w)
		if !found {
			t.Fatalf("%q is not next in\n%s", w, text.String())
		}
		rest = after
	}
	if n := strings.Count(text.String(), "\n"); n != 4 {
		t.Errorf("%d lines:\n%s", n, text.String())
	}
	// A machine that slept hears of the last age alone.
	text.Reset()
	a = age{}
	a.look(first, start, log)
	a.look(nil, start.Add(time.Hour), log)
	if n := strings.Count(text.String(), "\n"); n != 1 || !strings.Contains(text.String(), "has expired") {
		t.Error(text.String())
	}
}
