package spiffe

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Names of the files of an SVID.
const (
	svidFile   = "svid.pem"   // the certificate, and what lies between it and its root
	keyFile    = "key.pem"    // its key, for nobody else to read
	bundleFile = "bundle.pem" // the roots of its trust domain
	bundlesDir = "bundles"    // TRUSTDOMAIN.pem: the roots of another
)

// Bounds of the files of an SVID.
const (
	maxFile    = 1 << 20 // bytes
	maxBundles = 1000
)

// Files is the SVID of one workload as somebody else keeps it in a directory, with
// the roots of its trust domain and of others. It is a Source that changes when
// Look finds that the files have. One goroutine calls Look.
type Files struct {
	dir     string
	id      string
	now     func() time.Time
	current atomic.Pointer[fetched]

	taken   map[string]fs.FileInfo // the files as they were when they were read last
	settled map[string]fs.FileInfo // and at the last look
	failure string                 // what was wrong with them; "" if nothing was
}

// ReadFiles reads the SVID with this SPIFFE ID from dir. One that has expired is
// taken, in the hope of another: SVID does not show it.
func ReadFiles(dir, id string, now func() time.Time) (*Files, error) {
	f := &Files{dir: dir, id: id, now: now}
	var err error
	if f.taken, err = f.stat(); err != nil { // before they are read: what comes between is found by Look
		return nil, err
	}
	next, err := f.read()
	if err != nil {
		return nil, err
	}
	f.settled = f.taken
	f.current.Store(next)
	return f, nil
}

// SVID is the SVID to show, or nil when it has expired.
func (f *Files) SVID() *tls.Certificate {
	c := f.current.Load()
	if !f.now().Before(c.svid.Leaf.NotAfter) {
		return nil
	}
	return c.svid
}

// Roots are the roots of the workload's own trust domain.
func (f *Files) Roots() *x509.CertPool { return f.current.Load().roots }

// RootsOf are the roots of another trust domain, or nil.
func (f *Files) RootsOf(trustDomain string) *x509.CertPool {
	return f.current.Load().foreign[trustDomain]
}

// Look takes up the files if they are others and have stayed so since the last
// look: who writes them one after the other, or one in pieces, is not met between.
// changed reports that there is another SVID or other roots than before. The error
// says why the old ones stay; it comes once, though they are tried again.
func (f *Files) Look() (changed bool, err error) {
	defer func() {
		text := ""
		if err != nil {
			text = err.Error()
		}
		if text == f.failure {
			err = nil
		}
		f.failure = text
	}()
	found, err := f.stat()
	if err != nil {
		f.settled = nil
		return false, err
	}
	quiet := maps.EqualFunc(found, f.settled, sameFile)
	f.settled = found
	switch {
	case !quiet && f.failure != "":
		return false, errors.New(f.failure) // as before
	case !quiet, f.failure == "" && maps.EqualFunc(found, f.taken, sameFile):
		return false, nil
	}
	next, err := f.read()
	if err == nil {
		// What changed while it was read was perhaps read in part.
		if found, err = f.stat(); err == nil && !maps.EqualFunc(found, f.settled, sameFile) {
			f.settled = found
			return false, nil
		}
	}
	f.taken = f.settled
	switch {
	case err != nil:
		return false, err
	case !f.now().Before(next.svid.Leaf.NotAfter):
		return false, fmt.Errorf("%s: the SVID has expired", filepath.Join(f.dir, svidFile))
	}
	f.current.Store(next)
	return true, nil
}

func sameFile(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size() && a.Mode() == b.Mode()
}

// stat finds the files, by name.
func (f *Files) stat() (map[string]fs.FileInfo, error) {
	names := []string{svidFile, keyFile, bundleFile}
	bundles, err := f.bundles()
	if err != nil {
		return nil, err
	}
	found := map[string]fs.FileInfo{}
	for _, name := range append(names, bundles...) {
		info, err := os.Stat(filepath.Join(f.dir, name))
		if err != nil {
			return nil, err
		}
		found[name] = info
	}
	return found, nil
}

// bundles are the files of other trust domains' roots. What begins with a dot is
// the business of whoever writes them.
func (f *Files) bundles() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(f.dir, bundlesDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		if names = append(names, filepath.Join(bundlesDir, e.Name())); len(names) > maxBundles {
			return nil, fmt.Errorf("%s holds more than %d bundles", filepath.Join(f.dir, bundlesDir), maxBundles)
		}
	}
	return names, nil
}

// read reads all of it anew: what it gives is whole and fits together.
func (f *Files) read() (*fetched, error) {
	certs, err := f.file(svidFile)
	if err != nil {
		return nil, err
	}
	key, err := f.file(keyFile)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certs, key) // its errors quote no key
	if err != nil {
		return nil, fmt.Errorf("%s and %s in %s: %w", svidFile, keyFile, f.dir, err)
	}
	out := &fetched{svid: &pair, foreign: map[string]*x509.CertPool{}}
	if out.roots, err = f.roots(bundleFile); err != nil {
		return nil, err
	}
	if err := f.check(out); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(f.dir, svidFile), err)
	}
	names, err := f.bundles()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		of, named := strings.CutSuffix(filepath.Base(name), ".pem")
		td, err := spiffeid.TrustDomainFromString(of)
		switch _, own := inTrustDomain(f.id, of); {
		case err != nil || !named || td.Name() != of:
			return nil, fmt.Errorf("%s is not named as a bundle is: TRUSTDOMAIN.pem", filepath.Join(f.dir, name))
		case own: // or a partner's file could verify workloads of ours
			return nil, fmt.Errorf("%s is of the own trust domain, whose roots are in %s", filepath.Join(f.dir, name), bundleFile)
		}
		if out.foreign[of], err = f.roots(name); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// check holds the SVID to what peers will: whose it is, and that what came with
// it leads to the roots. A writer that stopped between two files left one that
// does not.
func (f *Files) check(c *fetched) error {
	leaf := c.svid.Leaf
	id, err := ID(leaf)
	if err != nil {
		return err
	}
	if id != f.id {
		return fmt.Errorf("it is that of %s, and not of %s", id, f.id)
	}
	if err := checkLeaf(leaf); err != nil {
		return err
	}
	between, when := x509.NewCertPool(), f.now()
	for _, der := range c.svid.Certificate[1:] {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		between.AddCert(cert)
	}
	if when.After(leaf.NotAfter) {
		when = leaf.NotAfter
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: c.roots, Intermediates: between, CurrentTime: when, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return fmt.Errorf("%s does not verify it: %w", bundleFile, err)
	}
	return nil
}

// roots reads a file of certificates and nothing else: a piece of it is an error.
func (f *Files) roots(name string) (*x509.CertPool, error) {
	text, err := f.file(name)
	if err != nil {
		return nil, err
	}
	pool, n := x509.NewCertPool(), 0
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		switch {
		case block.Type != "CERTIFICATE" || err != nil:
			return nil, fmt.Errorf("%s: certificate %d cannot be read", filepath.Join(f.dir, name), n+1)
		case !cert.IsCA:
			return nil, fmt.Errorf("%s: certificate %d is not a CA's", filepath.Join(f.dir, name), n+1)
		}
		pool.AddCert(cert)
		n++
	}
	switch rest := strings.TrimSpace(string(text)); {
	case n == 0:
		return nil, fmt.Errorf("%s: no certificate in it", filepath.Join(f.dir, name))
	case rest != "":
		return nil, fmt.Errorf("%s: what follows certificate %d is none", filepath.Join(f.dir, name), n)
	}
	return pool, nil
}

// file reads a file.
func (f *Files) file(name string) ([]byte, error) {
	path := filepath.Join(f.dir, name)
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	switch mode := info.Mode(); {
	case !mode.IsRegular():
		return nil, fmt.Errorf("%s is no file", path)
	case info.Size() > maxFile:
		return nil, fmt.Errorf("%s: larger than %d bytes", path, maxFile)
	case name == keyFile && mode.Perm()&0o077 != 0:
		return nil, fmt.Errorf("%s: others can read the key (mode %04o): if nobody has, run chmod 600 %s", path, mode.Perm(), path)
	}
	return os.ReadFile(path)
}
