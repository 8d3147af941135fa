package spiffe_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"merlon/identity/spiffe"
)

const filesID = "spiffe://shop.example/orders"

// texts are the files of an SVID.
func texts(t testing.TB, svid *tls.Certificate, roots ...*x509.Certificate) map[string]string {
	t.Helper()
	block := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	key, err := x509.MarshalPKCS8PrivateKey(svid.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{"key.pem": block("PRIVATE KEY", key)}
	for _, der := range svid.Certificate {
		all["svid.pem"] += block("CERTIFICATE", der)
	}
	for _, root := range roots {
		all["bundle.pem"] += block("CERTIFICATE", root.Raw)
	}
	return all
}

func put(t testing.TB, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func putAll(t testing.TB, dir string, all map[string]string) {
	t.Helper()
	for name, text := range all {
		put(t, dir, name, text)
	}
}

// TestTornFiles: a writer that stops anywhere, in whatever order it writes, is never
// met halfway: the SVID and the roots are the old ones or the new ones.
func TestTornFiles(t *testing.T) {
	t.Parallel()
	one, two := newCA(t), newCA(t)
	before, after := texts(t, one.leaf(t, nil, filesID), one.cert), texts(t, two.leaf(t, nil, filesID), two.cert)
	for _, order := range [][]string{{"svid.pem", "key.pem", "bundle.pem"}, {"bundle.pem", "key.pem", "svid.pem"}, {"key.pem", "bundle.pem", "svid.pem"}} {
		dir := t.TempDir()
		putAll(t, dir, before)
		f, err := spiffe.ReadFiles(dir, filesID, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		old := f.SVID()
		for i, name := range order {
			text := after[name]
			for _, cut := range []int{0, 1, 30, len(text) / 2, len(text) - 20, len(text)} {
				last := i == len(order)-1 && cut == len(text)
				put(t, dir, name, text[:cut])
				said := 0
				for range 4 {
					changed, err := f.Look()
					if err != nil {
						said++
					}
					if changed != (f.SVID() != old) && !last {
						t.Fatalf("%v: %s cut at %d is taken up", order, name, cut)
					}
				}
				svid, roots := f.SVID(), f.Roots()
				if _, err := svid.Leaf.Verify(x509.VerifyOptions{Roots: roots}); err != nil || (svid != old) != last {
					t.Fatalf("%v: %s cut at %d: %v", order, name, cut, err)
				}
				if said > 1 {
					t.Errorf("%v: %s cut at %d is reported %d times", order, name, cut, said)
				}
			}
		}
	}
}

// TestFilesSettle: what changes between two looks is not read before it is the same
// at two.
func TestFilesSettle(t *testing.T) {
	t.Parallel()
	a, dir := newCA(t), t.TempDir()
	putAll(t, dir, texts(t, a.leaf(t, nil, filesID), a.cert))
	f, err := spiffe.ReadFiles(dir, filesID, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	old := f.SVID()
	putAll(t, dir, texts(t, a.leaf(t, nil, filesID), a.cert))
	if changed, err := f.Look(); changed || err != nil || f.SVID() != old {
		t.Errorf("taken at once: %v", err)
	}
	if changed, err := f.Look(); !changed || err != nil || f.SVID() == old {
		t.Errorf("not taken at the second look: %v", err)
	}
	if changed, err := f.Look(); changed || err != nil {
		t.Errorf("taken again: %v", err)
	}
}

// TestFilesInTime: what has expired is not shown, and what is not valid yet is
// taken when it is.
func TestFilesInTime(t *testing.T) {
	t.Parallel()
	now := time.Now()
	a, dir := newCA(t), t.TempDir()
	until := func(from, to time.Duration) map[string]string {
		return texts(t, a.leaf(t, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(from), now.Add(to) }, filesID), a.cert)
	}
	clock := now
	putAll(t, dir, until(-time.Minute, time.Hour))
	f, err := spiffe.ReadFiles(dir, filesID, func() time.Time { return clock })
	if err != nil {
		t.Fatal(err)
	}
	look := func(want string) {
		t.Helper()
		for range 2 {
			if _, err = f.Look(); err != nil {
				break
			}
		}
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	putAll(t, dir, until(-2*time.Hour, -time.Hour))
	look("has expired")
	if f.SVID() == nil {
		t.Error("one that has expired took the place of one that has not")
	}
	putAll(t, dir, until(2*time.Hour, 4*time.Hour))
	look("not yet valid")
	clock = now.Add(90 * time.Minute)
	if f.SVID() != nil {
		t.Error("one that has expired is shown")
	}
	clock = now.Add(3 * time.Hour)
	look("")
	if f.SVID() == nil {
		t.Error("the next is not shown")
	}
	if _, err := spiffe.ReadFiles(dir, filesID, func() time.Time { return now.Add(5 * time.Hour) }); err != nil {
		t.Errorf("a gate does not wait for the next: %v", err)
	}
}

// FuzzBundleFile: the roots of another trust domain are certificates of CAs and
// nothing else.
func FuzzBundleFile(f *testing.F) {
	a := newCA(f)
	all := texts(f, a.leaf(f, nil, filesID), a.cert)
	for _, name := range []string{"bundle.pem", "svid.pem", "key.pem"} {
		f.Add([]byte(all[name]))
		f.Add([]byte(all[name] + all[name]))
		f.Add([]byte(all[name][:len(all[name])/2]))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		putAll(t, dir, all)
		if err := os.Mkdir(filepath.Join(dir, "bundles"), 0o700); err != nil {
			t.Fatal(err)
		}
		put(t, dir, "bundles/partner.example.pem", string(text))
		files, err := spiffe.ReadFiles(dir, filesID, time.Now)
		if err != nil {
			return
		}
		roots := files.RootsOf("partner.example")
		if roots == nil || !strings.Contains(string(text), "-----BEGIN CERTIFICATE-----") || files.RootsOf("shop.example") != nil {
			t.Errorf("taken for roots: %q", text)
		}
	})
}
