package authority

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	rootFile         = "root.pem"
	intermediateFile = "intermediate.pem"

	td     = "shop.example"
	orders = "spiffe://shop.example/orders"
)

// clock is a clock that tests set.
type clock struct{ now atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.now.Store(time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC).UnixNano())
	return c
}
func (c *clock) Now() time.Time          { return time.Unix(0, c.now.Load()) }
func (c *clock) Advance(d time.Duration) { c.now.Add(int64(d)) }

func open(t testing.TB, dir string, opt Options) *Authority {
	t.Helper()
	a, err := Open(dir, td, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// signing is the pair that signs now.
func (a *Authority) signing(k kind) *pair {
	return a.state.Load().lines[k].signer(a.opt.Now(), 0)
}

// issue gives the parsed chain.
func issue(t testing.TB, a *Authority, public crypto.PublicKey, now time.Time) (leaf, between *x509.Certificate) {
	t.Helper()
	chain, notAfter, err := a.Issue(orders, public, now)
	if err != nil {
		t.Fatal(err)
	}
	if len(chain) != 2 {
		t.Fatalf("a chain of %d", len(chain))
	}
	for i, out := range []**x509.Certificate{&leaf, &between} {
		if *out, err = x509.ParseCertificate(chain[i]); err != nil {
			t.Fatal(err)
		}
	}
	if !leaf.NotAfter.Equal(notAfter) {
		t.Errorf("ends at %v, but it was said to end at %v", leaf.NotAfter, notAfter)
	}
	return leaf, between
}

func verify(a *Authority, leaf, between *x509.Certificate, now time.Time) error {
	pool := x509.NewCertPool()
	pool.AddCert(between)
	_, err := leaf.Verify(x509.VerifyOptions{Roots: a.Roots(), Intermediates: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err
}

func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = string(b)
	}
	return all
}

func TestSVID(t *testing.T) {
	t.Parallel()
	c := newClock()
	a, key := open(t, filepath.Join(t.TempDir(), "new"), Options{Now: c.Now}), newKey(t)
	leaf, between := issue(t, a, key.Public(), c.Now())
	if err := verify(a, leaf, between, c.Now()); err != nil {
		t.Error(err)
	}
	if err := verify(a, leaf, between, c.Now().Add(-Skew)); err != nil {
		t.Error("a peer whose clock is behind:", err)
	}
	if leaf.NotAfter.Sub(c.Now()) != time.Hour || c.Now().Sub(leaf.NotBefore) != Skew {
		t.Errorf("from %v to %v", leaf.NotBefore, leaf.NotAfter)
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != orders || len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) != 0 {
		t.Errorf("names %v %v", leaf.URIs, leaf.DNSNames)
	}
	if leaf.IsCA || !leaf.BasicConstraintsValid || leaf.KeyUsage != x509.KeyUsageDigitalSignature || len(leaf.ExtKeyUsage) != 2 || leaf.Subject.String() != "" {
		t.Errorf("CA %v, usage %v %v, subject %q", leaf.IsCA, leaf.KeyUsage, leaf.ExtKeyUsage, leaf.Subject)
	}
	critical := map[string]bool{}
	for _, e := range leaf.Extensions {
		critical[e.Id.String()] = e.Critical
	}
	if !critical["2.5.29.17"] || !critical["2.5.29.15"] {
		t.Error("names and key usage must be critical", critical)
	}
	if leaf.SerialNumber.BitLen() < 64 {
		t.Errorf("serial number %x", leaf.SerialNumber)
	}
	if other, _ := issue(t, a, key.Public(), c.Now()); other.SerialNumber.Cmp(leaf.SerialNumber) == 0 {
		t.Error("the same serial number twice")
	}
	root := a.signing(roots).cert
	if !between.IsCA || !between.MaxPathLenZero || between.MaxPathLen != 0 || root.MaxPathLen != 1 || between.KeyUsage != x509.KeyUsageCertSign {
		t.Error("root or intermediate may sign what it should not")
	}
	if d := root.NotAfter.Sub(c.Now()); d < 3650*day || d > 3660*day {
		t.Errorf("the root lives for %v", d)
	}
}

func TestIssueRefuses(t *testing.T) {
	t.Parallel()
	a, key := open(t, t.TempDir()+"/a", Options{}), newKey(t)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	before := len(a.entries(t))
	for _, tt := range []struct {
		id  string
		key crypto.PublicKey
	}{
		{"", key.Public()}, {"orders", key.Public()}, {"spiffe://shop.example", key.Public()}, {"spiffe://shop.example/", key.Public()},
		{"spiffe://other.example/orders", key.Public()}, {"spiffe://shop.example.evil/orders", key.Public()},
		{"spiffe://SHOP.example/orders", key.Public()}, {"spiffe://shop.example/../x", key.Public()}, {"spiffe://shop.example/a?b", key.Public()},
		{"spiffe://shop.example/a%2fb", key.Public()}, {"https://shop.example/orders", key.Public()},
		{orders, nil}, {orders, (*ecdsa.PublicKey)(nil)}, {orders, p384.Public()}, {orders, ed}, {orders, key},
	} {
		if chain, _, err := a.Issue(tt.id, tt.key, time.Now()); err == nil || chain != nil {
			t.Errorf("%q with a %T was issued", tt.id, tt.key)
		}
	}
	if len(a.entries(t)) != before {
		t.Error("a refusal is in the journal of what is signed")
	}
	a.Close()
	if _, _, err := a.Issue(orders, key.Public(), time.Now()); err == nil {
		t.Error("issued after Close")
	}
	if _, _, err := a.EdgeCertificate([]string{"a"}); err == nil {
		t.Error("an edge certificate after Close")
	}
}

// entries reads the journal, and fails if a line is torn.
func (a *Authority) entries(t *testing.T) []entry {
	t.Helper()
	f, err := os.Open(filepath.Join(a.dir, journalFile))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []entry
	for s := bufio.NewScanner(f); s.Scan(); {
		var e entry
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			t.Fatalf("%q: %v", s.Text(), err)
		}
		all = append(all, e)
	}
	return all
}

func TestReopen(t *testing.T) {
	t.Parallel()
	dir, key := t.TempDir()+"/state", newKey(t)
	a := open(t, dir, Options{})
	leaf, between := issue(t, a, key.Public(), time.Now())
	a.Close()
	b := open(t, dir, Options{})
	if err := verify(b, leaf, between, time.Now()); err != nil {
		t.Error("an SVID from before the restart:", err)
	}
	if !bytes.Equal(a.Bundle(), b.Bundle()) {
		t.Error("the root changed")
	}
	for name := range files(t, dir) {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", name, info.Mode(), err)
		}
		if strings.HasPrefix(name, ".") {
			t.Errorf("%s was left over", name)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory has mode %v, %v", info.Mode(), err)
	}
}

// A state directory that is not as it should be is reported with what to do,
// and every byte of it stays.
func TestBrokenState(t *testing.T) {
	t.Parallel()
	otherRoot := func(t *testing.T) string {
		dir := t.TempDir() + "/other"
		open(t, dir, Options{})
		return files(t, dir)[rootFile]
	}
	put := func(name string, change func(t *testing.T, old string) string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			path := filepath.Join(dir, name)
			old, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(change(t, string(old))), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	const move = "move it away to begin a new trust domain"
	tests := []struct {
		name   string
		change func(t *testing.T, dir string)
		want   string
	}{
		{"root empty", put(rootFile, func(*testing.T, string) string { return "" }), move},
		{"root garbage", put(rootFile, func(*testing.T, string) string { return "garbage" }), move},
		{"root cut off", put(rootFile, func(_ *testing.T, s string) string { return s[:len(s)/2] }), move},
		{"root without key", put(rootFile, func(_ *testing.T, s string) string { s, _, _ = strings.Cut(s, "-----BEGIN PRIVATE"); return s }), "lacks a private key"},
		{"root with another key", put(rootFile, func(t *testing.T, s string) string {
			s, _, _ = strings.Cut(s, "-----BEGIN PRIVATE")
			_, key, _ := strings.Cut(otherRoot(t), "-----BEGIN PRIVATE")
			return s + "-----BEGIN PRIVATE" + key
		}), "not the certificate's"},
		{"root of another authority", put(rootFile, func(t *testing.T, _ string) string { return otherRoot(t) }), "not signed by the root"},
		{"root is an intermediate", func(t *testing.T, dir string) {
			must(os.WriteFile(filepath.Join(dir, rootFile), []byte(files(t, dir)[intermediateFile]), 0o600))
		}, move},
		{"root huge", put(rootFile, func(_ *testing.T, s string) string { return s + strings.Repeat("x", maxFile) }), move},
		{"root gone", func(t *testing.T, dir string) { must(os.Remove(filepath.Join(dir, rootFile))) }, "absent while intermediate.pem is there"},
		{"intermediate garbage", put(intermediateFile, func(*testing.T, string) string { return "x" }), move},
		{"intermediate of another root", put(intermediateFile, func(t *testing.T, _ string) string {
			dir := t.TempDir() + "/other"
			open(t, dir, Options{})
			return files(t, dir)[intermediateFile]
		}), "not signed by the root"},
		{"root readable by the group", func(t *testing.T, dir string) { must(os.Chmod(filepath.Join(dir, rootFile), 0o640)) }, "chmod 600"},
		{"intermediate readable by all", func(t *testing.T, dir string) { must(os.Chmod(filepath.Join(dir, intermediateFile), 0o604)) }, "chmod 600"},
		{"journal writable by all", func(t *testing.T, dir string) { must(os.Chmod(filepath.Join(dir, journalFile), 0o602)) }, "chmod 600"},
		{"directory open", func(t *testing.T, dir string) { must(os.Chmod(dir, 0o755)) }, "chmod 700"},
		{"root a link", func(t *testing.T, dir string) {
			must(os.Rename(filepath.Join(dir, rootFile), filepath.Join(dir, "x")))
			must(os.Symlink("x", filepath.Join(dir, rootFile)))
		}, "not what the authority left"},
		{"journal a directory", func(t *testing.T, dir string) {
			must(os.Remove(filepath.Join(dir, journalFile)))
			must(os.Mkdir(filepath.Join(dir, journalFile), 0o700))
		}, "not what the authority left"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir() + "/state"
			open(t, dir, Options{}).Close()
			tt.change(t, dir)
			var before map[string]string
			if tt.name != "journal a directory" {
				before = files(t, dir)
			}
			_, err := Open(dir, td, Options{})
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "PRIVATE KEY") {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if before != nil {
				if after := files(t, dir); fmt.Sprint(after) != fmt.Sprint(before) {
					t.Error("a broken state was changed")
				}
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir() + "/state"
	open(t, dir, Options{}).Close()
	if _, err := Open(dir, "other.example", Options{}); err == nil || !strings.Contains(err.Error(), "another state directory") {
		t.Errorf("another trust domain: %v", err)
	}
	for _, name := range []string{"", "Shop.example", "shop example", "shop.example/x", "10.0.0.1", "shop..example", ".shop", "shop.", "spiffe://shop"} {
		if _, err := Open(t.TempDir()+"/x", name, Options{}); err == nil {
			t.Errorf("%q is a trust domain", name)
		}
	}
	for _, d := range []time.Duration{-1, time.Millisecond, 8 * day} {
		if _, err := Open(t.TempDir()+"/x", td, Options{Lifetime: d}); err == nil {
			t.Errorf("a lifetime of %v", d)
		}
	}
	file := t.TempDir() + "/file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file, td, Options{}); err == nil {
		t.Error("a file as state directory")
	}
	c := newClock()
	old := t.TempDir() + "/old"
	open(t, old, Options{Now: c.Now}).Close()
	c.Advance(11 * 365 * day)
	c.Advance(-12 * 365 * day)
	if _, err := Open(old, td, Options{Now: c.Now}); err == nil || !strings.Contains(err.Error(), "compare the clock") {
		t.Errorf("a root from the future: %v", err)
	}
}

// Many processes that begin at once agree on one root.
func TestOpenAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir() + "/state"
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if a, err := Open(dir, td, Options{}); err == nil {
				a.Close()
			}
		})
	}
	wg.Wait()
	root := files(t, dir)[rootFile]
	if a := open(t, dir, Options{}); !strings.HasPrefix(root, string(a.Bundle())) {
		t.Error("the root was overwritten")
	}
}

// A crash at the first start, after the root was stored, is healed.
func TestIntermediateAbsent(t *testing.T) {
	t.Parallel()
	dir := t.TempDir() + "/state"
	a := open(t, dir, Options{})
	a.Close()
	if err := os.Remove(filepath.Join(dir, intermediateFile)); err != nil {
		t.Fatal(err)
	}
	b := open(t, dir, Options{})
	leaf, between := issue(t, b, newKey(t).Public(), time.Now())
	if err := verify(a, leaf, between, time.Now()); err != nil {
		t.Error(err)
	}
}

// The intermediate is replaced at half of its life; what the old one signed
// stays good; SVIDs never outlive their intermediate.
func TestIntermediateRotation(t *testing.T) {
	t.Parallel()
	c, dir := newClock(), t.TempDir()+"/state"
	a, key := open(t, dir, Options{Now: c.Now, Lifetime: 7 * day}), newKey(t)
	first, between := issue(t, a, key.Public(), c.Now())
	c.Advance(44 * day)
	if _, b := issue(t, a, key.Public(), c.Now()); !b.Equal(between) {
		t.Error("replaced too early")
	}
	old, oldBetween := issue(t, a, key.Public(), c.Now())
	c.Advance(day)
	next, b := issue(t, a, key.Public(), c.Now())
	if b.Equal(between) {
		t.Fatal("not replaced at half of its life")
	}
	if err := verify(a, next, b, c.Now()); err != nil {
		t.Error(err)
	}
	if err := verify(a, old, oldBetween, c.Now()); err != nil {
		t.Error("what the old one signed:", err)
	}
	if verify(a, first, between, c.Now()) == nil {
		t.Error("an expired SVID passes")
	}
	a.Close()
	if _, b2 := issue(t, open(t, dir, Options{Now: c.Now}), key.Public(), c.Now()); !b2.Equal(b) {
		t.Error("after a restart it is another one")
	}
	c.Advance(100 * day) // nobody was there for longer than it lives
	a = open(t, dir, Options{Now: c.Now})
	leaf, b := issue(t, a, key.Public(), c.Now())
	if err := verify(a, leaf, b, c.Now()); err != nil {
		t.Error(err)
	}
}

// If it cannot be replaced the old one serves on, loudly, to its end and no
// further.
func TestIntermediateRotationFails(t *testing.T) {
	t.Parallel()
	c, log := newClock(), &logs{}
	a, key := open(t, t.TempDir()+"/state", Options{Now: c.Now, Log: slog.New(log)}), newKey(t)
	// Nothing is stored over what is there, not even as root.
	if err := os.Mkdir(filepath.Join(a.dir, fileName("intermediate", 1)), 0o700); err != nil {
		t.Fatal(err)
	}
	c.Advance(50 * day)
	leaf, between := issue(t, a, key.Public(), c.Now())
	if err := verify(a, leaf, between, c.Now()); err != nil {
		t.Error(err)
	}
	if !log.has(slog.LevelError, "could not be renewed") {
		t.Error("nobody heard of it")
	}
	c.Advance(a.signing(intermediates).cert.NotAfter.Sub(c.Now()) - time.Minute)
	leaf, between = issue(t, a, key.Public(), c.Now())
	if leaf.NotAfter.After(between.NotAfter) {
		t.Error("an SVID outlives its intermediate")
	}
	c.Advance(time.Minute)
	if _, _, err := a.Issue(orders, key.Public(), c.Now()); err == nil {
		t.Error("issued by an expired intermediate")
	}
}

// The journal holds whatever exists, and the line is there before the
// signature: what cannot be written down is not signed.
func TestJournal(t *testing.T) {
	t.Parallel()
	a, key := open(t, t.TempDir()+"/state", Options{}), newKey(t)
	leaf, between := issue(t, a, key.Public(), time.Now())
	if _, _, err := a.EdgeCertificate([]string{"b.example", "a.example", "127.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	got := a.entries(t)
	var kinds []string
	for _, e := range got {
		kinds = append(kinds, e.Kind)
	}
	if strings.Join(kinds, " ") != "root intermediate jwt svid edge" {
		t.Fatalf("%+v", got)
	}
	spki := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	if e := got[3]; e.Serial != leaf.SerialNumber.Text(16) || len(e.Names) != 1 || e.Names[0] != orders || !e.NotAfter.Equal(leaf.NotAfter) ||
		e.Key != hex.EncodeToString(spki[:]) || e.Issuer != between.SerialNumber.Text(16) {
		t.Errorf("%+v", e)
	}
	if got[0].Issuer != "" || got[1].Issuer != got[0].Serial || got[4].Issuer != "" {
		t.Errorf("%+v", got)
	}
	// The disk fails.
	a.journal.file.Close()
	if chain, _, err := a.Issue(orders, key.Public(), time.Now()); err == nil || chain != nil {
		t.Error("signed without a line")
	}
	// It is back.
	issue(t, a, key.Public(), time.Now())
	if n := len(a.entries(t)); n != 6 {
		t.Errorf("%d lines", n)
	}
}

// Who comes while the disk is busy is written down by one write with others, and
// hears what became of it.
func TestJournalTogether(t *testing.T) {
	t.Parallel()
	a, key := open(t, t.TempDir()+"/state", Options{}), newKey(t)
	const many = 50
	together := func() (failed int) {
		done := make(chan error)
		a.journal.disk.Lock()
		for range many {
			go func() {
				_, _, err := a.Issue(orders, key.Public(), time.Now())
				done <- err
			}()
		}
		lines := func() int {
			a.journal.mu.Lock()
			defer a.journal.mu.Unlock()
			if a.journal.next == nil {
				return 0
			}
			return bytes.Count(a.journal.next.lines, []byte("\n"))
		}
		for lines() < many {
			time.Sleep(time.Millisecond)
		}
		a.journal.disk.Unlock()
		for range many {
			if <-done != nil {
				failed++
			}
		}
		return failed
	}
	before := len(a.entries(t))
	if failed, n := together(), len(a.entries(t))-before; failed > 0 || n != many {
		t.Errorf("%d failed, %d lines", failed, n)
	}
	a.journal.file.Close() // the disk fails
	if failed := together(); failed != many {
		t.Errorf("%d of %d were signed without a line", many-failed, many)
	}
}

// A line torn by a crash stays alone, and the journal stays bounded.
func TestJournalTornAndBounded(t *testing.T) {
	t.Parallel()
	dir, key := t.TempDir()+"/state", newKey(t)
	open(t, dir, Options{}).Close()
	path := filepath.Join(dir, journalFile)
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString(`{"kind":"svid","ser`)
	f.Close()
	a := open(t, dir, Options{})
	issue(t, a, key.Public(), time.Now())
	lines := strings.Split(strings.TrimSpace(files(t, dir)[journalFile]), "\n")
	if len(lines) != 5 || json.Valid([]byte(lines[3])) || !json.Valid([]byte(lines[4])) {
		t.Errorf("%q", lines)
	}
	a.journal.max = 2000
	for range 60 {
		issue(t, a, key.Public(), time.Now())
	}
	n, size := 0, 0
	for name, content := range files(t, dir) {
		if strings.HasPrefix(name, "issued.") {
			n, size = n+1, size+len(content)
			if len(content) > 2000 {
				t.Errorf("%s has %d bytes", name, len(content))
			}
		}
	}
	if n != journalKeep+1 || size < 4*1000 {
		t.Errorf("%d files of %d bytes", n, size)
	}
}

func TestEdgeCertificate(t *testing.T) {
	t.Parallel()
	c, dir := newClock(), t.TempDir()+"/state"
	c.now.Store(time.Now().UnixNano())
	a := open(t, dir, Options{Now: c.Now})
	get := func(hosts ...string) (*tls.Certificate, []byte) {
		t.Helper()
		cert, pem, err := a.EdgeCertificate(hosts)
		if err != nil {
			t.Fatal(err)
		}
		return cert, pem
	}
	if _, _, err := a.EdgeCertificate(nil); err == nil {
		t.Error("a certificate for nobody")
	}
	cert, pem := get("shop.example", "127.0.0.1")
	if again, _ := get("127.0.0.1", "shop.example"); !again.Leaf.Equal(cert.Leaf) {
		t.Error("the same hosts get another certificate")
	}
	if cert.Leaf.IsCA || cert.Leaf.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Error("whoever trusts it trusts too much")
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") }))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}, MinVersion: tls.VersionTLS13}
	server.StartTLS()
	defer server.Close()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
	if _, err := client.Get(server.URL); err != nil {
		t.Error(err)
	}
	t.Run("curl", func(t *testing.T) {
		curl, err := exec.LookPath("curl")
		if err != nil {
			t.Skip("curl is not installed: that it believes the certificate is not shown")
		}
		file := t.TempDir() + "/edge.crt"
		if err := os.WriteFile(file, pem, 0o600); err != nil {
			t.Fatal(err)
		}
		port := server.Listener.Addr().(*net.TCPAddr).Port
		for _, url := range []string{server.URL, fmt.Sprintf("https://shop.example:%d/", port)} {
			out, err := exec.Command(curl, "-sS", "--noproxy", "*", "--cacert", file, "--resolve", fmt.Sprintf("shop.example:%d:127.0.0.1", port), url).CombinedOutput()
			if err != nil || string(out) != "hello" {
				t.Errorf("%s: %s, %v", url, out, err)
			}
		}
	})
	if next, _ := get("shop.example"); next.Leaf.Equal(cert.Leaf) || len(next.Leaf.IPAddresses) != 0 {
		t.Error("other hosts get the old certificate")
	}
	cert, _ = get("shop.example")
	c.Advance(59 * day)
	if again, _ := get("shop.example"); !again.Leaf.Equal(cert.Leaf) {
		t.Error("renewed too early")
	}
	c.Advance(2 * day)
	if next, _ := get("shop.example"); next.Leaf.Equal(cert.Leaf) {
		t.Error("not renewed with a third left")
	}
	if err := os.WriteFile(filepath.Join(dir, edgeFile), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.EdgeCertificate([]string{"shop.example"}); err == nil || files(t, dir)[edgeFile] != "x" {
		t.Error("a broken file was overwritten")
	}
}

func BenchmarkIssue(b *testing.B) {
	a, key := open(b, b.TempDir()+"/state", Options{}), newKey(b)
	for b.Loop() {
		if _, _, err := a.Issue(orders, key.Public(), time.Now()); err != nil {
			b.Fatal(err)
		}
	}
}
