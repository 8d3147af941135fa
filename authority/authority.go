// Package authority is the certificate authority of a trust domain: it issues
// the X.509-SVIDs (SPIFFE X509-SVID) by which workloads prove themselves.
//
// A root of ten years signs intermediates of ninety days, and the intermediate
// signs SVIDs of an hour. Verifiers hold only the root, so a new intermediate
// needs no word to anyone: each SVID brings the intermediate that signed it,
// and those signed by the old one stay good until they end.
//
// The keys lie in the state directory, in files that only their owner can
// read. A file that is not as it should be is an error and is left alone:
// a new root in place of one that cannot be read would cut off every workload.
//
// What is about to be signed is written down before it is signed: see journal.
package authority

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	// Skew is how far certificates are dated back, so that a peer whose clock
	// is behind takes a new one.
	Skew = time.Minute

	day              = 24 * time.Hour
	rootLifetime     = 3653 * day
	betweenLifetime  = 90 * day // renewed at half
	svidLifetime     = time.Hour
	maxSVIDLifetime  = 7 * day
	leastLifetime    = time.Second // an SVID that would end sooner is not worth signing
	rootFile         = "root.pem"
	intermediateFile = "intermediate.pem"
)

// Options of an Authority. The zero value is good.
type Options struct {
	Lifetime time.Duration    // of an SVID; 0 is one hour, at most seven days
	Now      func() time.Time // nil is time.Now
	Log      *slog.Logger     // hears of failed renewals and of what nears its end; nil is nowhere
}

// Authority issues the SVIDs of one trust domain. It is safe for concurrent
// use.
type Authority struct {
	dir         string
	trustDomain string
	opt         Options
	root        pair
	pool        *x509.CertPool

	mu      sync.Mutex
	between pair // the intermediate
	journal *journal
	closed  bool
}

// pair is a certificate and its key. The key may be anything that signs.
type pair struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// Open opens the authority of trustDomain in dir, or makes one if dir is
// absent or holds none. What is there and is not good is an error that says
// what to do; nothing is overwritten.
func Open(dir, trustDomain string, opt Options) (*Authority, error) {
	if opt.Lifetime == 0 {
		opt.Lifetime = svidLifetime
	}
	if opt.Lifetime < leastLifetime || opt.Lifetime > maxSVIDLifetime {
		return nil, fmt.Errorf("a lifetime of %v is not between %v and %v", opt.Lifetime, leastLifetime, maxSVIDLifetime)
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if err := checkTrustDomain(trustDomain); err != nil {
		return nil, err
	}
	if err := openDir(dir); err != nil {
		return nil, err
	}
	j, err := openJournal(dir)
	if err != nil {
		return nil, err
	}
	a := &Authority{dir: dir, trustDomain: trustDomain, opt: opt, journal: j}
	if err := a.load(); err != nil {
		j.close()
		return nil, err
	}
	return a, nil
}

// checkTrustDomain refuses, besides what SPIFFE-ID 2.1 does, names that a
// certificate's name constraints cannot hold.
func checkTrustDomain(name string) error {
	if id, err := spiffeid.FromString("spiffe://" + name); err != nil || id.TrustDomain().Name() != name {
		return fmt.Errorf("%q is no trust domain", name)
	}
	if _, err := netip.ParseAddr(name); err == nil || slices.Contains(strings.Split(name, "."), "") {
		return fmt.Errorf("trust domain %q is not written like a host name", name)
	}
	return nil
}

// load reads the root and the intermediate, and makes what is absent.
func (a *Authority) load() error {
	now := a.opt.Now()
	root, err := readPair(a.dir, rootFile)
	if errors.Is(err, errAbsent) {
		// An intermediate without its root is what is left of a broken state.
		if _, err := readPair(a.dir, intermediateFile); !errors.Is(err, errAbsent) {
			return a.broken(rootFile, errors.New("it is absent while "+intermediateFile+" is there"))
		}
		root, err = a.newRoot(now)
	}
	if err == nil {
		err = checkCA(root.cert, root.cert, now)
	}
	if err != nil {
		return a.broken(rootFile, err)
	}
	if uris := root.cert.URIs; len(uris) != 1 || uris[0].String() != "spiffe://"+a.trustDomain {
		return fmt.Errorf("the authority in %s is of trust domain %v, not of %q: use another state directory for another trust domain",
			a.dir, uris, a.trustDomain)
	}
	a.root, a.pool = root, x509.NewCertPool()
	a.pool.AddCert(root.cert)

	between, err := readPair(a.dir, intermediateFile)
	if errors.Is(err, errAbsent) || err == nil && now.After(between.cert.NotAfter) && between.cert.CheckSignatureFrom(root.cert) == nil {
		between, err = a.newIntermediate(now) // nothing is lost by a new one
	}
	if err == nil {
		err = checkCA(between.cert, root.cert, now)
	}
	if err != nil {
		return a.broken(intermediateFile, err)
	}
	a.between = between
	a.alarm(now)
	return nil
}

func (a *Authority) broken(file string, err error) error {
	return fmt.Errorf("the authority in %s cannot be used: %s: %w; restore the directory from a backup, "+
		"or move it away to begin a new trust domain (every workload then needs a new SVID)", a.dir, file, err)
}

// checkCA checks that cert is a CA certificate that parent signed and that its
// time is now.
func checkCA(cert, parent *x509.Certificate, now time.Time) error {
	switch {
	case !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("its certificate is not a CA's")
	case now.After(cert.NotAfter):
		return fmt.Errorf("its certificate ended at %v", cert.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(cert.NotBefore):
		return fmt.Errorf("its certificate begins at %v: compare the clock", cert.NotBefore.UTC().Format(time.RFC3339))
	}
	if err := cert.CheckSignatureFrom(parent); err != nil {
		return fmt.Errorf("its certificate is not signed by the root: %w", err)
	}
	return nil
}

// caTemplate is what root and intermediate have in common. They may sign for
// this trust domain only, whatever their key is used for (RFC 5280 4.2.1.10).
func (a *Authority) caTemplate(name string, now time.Time, lifetime time.Duration, depth int) *x509.Certificate {
	return &x509.Certificate{
		Subject:                     pkix.Name{CommonName: name + " of " + a.trustDomain, Organization: []string{"Merlon"}},
		URIs:                        []*url.URL{{Scheme: "spiffe", Host: a.trustDomain}},
		NotBefore:                   now.Add(-Skew),
		NotAfter:                    now.Add(lifetime),
		BasicConstraintsValid:       true,
		IsCA:                        true,
		MaxPathLen:                  depth,
		MaxPathLenZero:              depth == 0,
		KeyUsage:                    x509.KeyUsageCertSign, // X509-SVID 4.3
		PermittedDNSDomainsCritical: true,
		PermittedURIDomains:         []string{a.trustDomain},
	}
}

func (a *Authority) newRoot(now time.Time) (pair, error) {
	return a.newCA("root", rootFile, a.caTemplate("root", now, rootLifetime, 1), pair{}, writeNew)
}

func (a *Authority) newIntermediate(now time.Time) (pair, error) {
	t := a.caTemplate("intermediate", now, betweenLifetime, 0)
	if end := a.root.cert.NotAfter; t.NotAfter.After(end) {
		t.NotAfter = end
	}
	t.ExtKeyUsage = svidUsage()
	return a.newCA("intermediate", intermediateFile, t, a.root, replace)
}

// newCA makes a key and its certificate, signed by parent or by itself, and
// stores both in one file: no crash leaves one without the other.
func (a *Authority) newCA(kind, file string, t *x509.Certificate, parent pair, store func(dir, name string, data []byte) error) (pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair{}, err
	}
	if parent.cert == nil {
		parent = pair{t, key}
	}
	der, err := a.sign(kind, t, parent, key.Public())
	if err != nil {
		return pair{}, err
	}
	data, err := encodePair(der, key)
	if err != nil {
		return pair{}, err
	}
	if err := store(a.dir, file, data); err != nil {
		return pair{}, err
	}
	return readPair(a.dir, file) // what counts is what the disk gives back
}

// sign gives the certificate its serial number, writes it to the journal, and
// only then signs it.
func (a *Authority) sign(kind string, t *x509.Certificate, parent pair, public crypto.PublicKey) ([]byte, error) {
	t.SerialNumber = new(big.Int).SetBytes(random(16))
	if err := a.journal.add(kind, t, parent.cert, public); err != nil {
		return nil, fmt.Errorf("nothing is signed that cannot be recorded: %w", err)
	}
	return x509.CreateCertificate(rand.Reader, t, parent.cert, public, parent.key)
}

func svidUsage() []x509.ExtKeyUsage {
	return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} // X509-SVID 4.4
}

// Issue signs an SVID for the workload with this SPIFFE ID and P-256 key. The
// chain is the SVID and its intermediate, DER. Whoever calls has proved that
// the key is the workload's.
func (a *Authority) Issue(id string, public crypto.PublicKey, now time.Time) (chain [][]byte, notAfter time.Time, err error) {
	parsed, err := spiffeid.FromString(id)
	if err != nil || parsed.TrustDomain().Name() != a.trustDomain || parsed.Path() == "" {
		return nil, time.Time{}, fmt.Errorf("%q is no workload of trust domain %q", id, a.trustDomain)
	}
	key, ok := public.(*ecdsa.PublicKey)
	if !ok || key == nil || key.Curve != elliptic.P256() {
		return nil, time.Time{}, errors.New("an SVID is for a P-256 key")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, time.Time{}, errors.New("the authority is closed")
	}
	a.renew(now)
	notAfter = now.Add(a.opt.Lifetime)
	if end := a.between.cert.NotAfter; notAfter.After(end) {
		notAfter = end
	}
	notAfter = notAfter.Truncate(time.Second) // as the certificate will say
	if notAfter.Sub(now) < leastLifetime/2 {
		return nil, time.Time{}, fmt.Errorf("the intermediate ends at %v and could not be renewed", a.between.cert.NotAfter)
	}
	der, err := a.sign("svid", &x509.Certificate{
		// No subject: the URI name alone says who it is, and x509 then marks
		// the names critical (RFC 5280 4.2.1.6).
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: a.trustDomain, Path: parsed.Path()}},
		NotBefore:             now.Add(-Skew),
		NotAfter:              notAfter,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           svidUsage(),
	}, a.between, key)
	if err != nil {
		return nil, time.Time{}, err
	}
	return [][]byte{der, a.between.cert.Raw}, notAfter, nil
}

// renew replaces the intermediate when half its time is over. If that fails
// the old one serves on, loudly.
func (a *Authority) renew(now time.Time) {
	c := a.between.cert
	if now.Before(c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2)) {
		return
	}
	// What root there is left to renew by ends at the same time: nothing to gain.
	if !c.NotAfter.Before(a.root.cert.NotAfter) {
		a.alarm(now)
		return
	}
	next, err := a.newIntermediate(now)
	if err == nil {
		err = checkCA(next.cert, a.root.cert, now)
	}
	if err != nil {
		a.opt.Log.Error("the intermediate certificate could not be renewed",
			"err", err, "ends", c.NotAfter, "left", c.NotAfter.Sub(now), "directory", a.dir)
		return
	}
	a.between = next
	a.alarm(now)
}

// alarm says when the root nears its end: a year before, there is time.
func (a *Authority) alarm(now time.Time) {
	if left := a.root.cert.NotAfter.Sub(now); left < 365*day {
		a.opt.Log.Error("the root certificate ends soon: begin a new trust domain or restore a newer root",
			"ends", a.root.cert.NotAfter, "left", left, "directory", a.dir)
	}
}

// Roots are the roots to verify workloads of the trust domain by.
func (a *Authority) Roots() *x509.CertPool { return a.pool }

// Bundle is the trust bundle, PEM.
func (a *Authority) Bundle() []byte {
	var b bytes.Buffer
	pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: a.root.cert.Raw}) // a Buffer does not fail
	return b.Bytes()
}

// Close closes the journal. Nothing can be issued after it.
func (a *Authority) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	return a.journal.close()
}
