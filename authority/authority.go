// Package authority is the certificate authority of a trust domain: it issues
// the SVIDs by which workloads prove themselves, certificates (SPIFFE
// X509-SVID) and tokens (SPIFFE JWT-SVID).
//
// A root of ten years signs intermediates of ninety days, and the intermediate
// signs SVIDs of an hour; a JWT key of thirty days signs tokens of five
// minutes. Verifiers hold the roots and the JWT keys, the trust bundle: so a new
// intermediate needs no word to anyone, as each SVID brings the one that signed
// it, but a new root or JWT key is in the bundle for a day before it signs, and
// an old one stays until all that it signed has ended. Every kind has a
// successor from half of its life on, and sooner if what it signs would come
// short; see line and advance.
//
// The keys lie in the state directory, in files that only their owner can
// read, each written once and whole. A file that is not as it should be is an
// error and is left alone: a new root in place of one that cannot be read would
// cut off every workload.
//
// What is about to be signed is written down before it is signed: see journal.
package authority

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"merlon/identity/spiffe"
)

const (
	// Skew is how far clocks may be apart. Certificates are dated back by it,
	// so that a peer whose clock is behind takes a new one; whose clock is ahead
	// takes an old one, since SVIDs are renewed while two thirds of their life are
	// left: if that is less than Skew, it is the bound. Whoever verifies a JWT-SVID
	// allows for it.
	Skew = spiffe.Skew

	day             = 24 * time.Hour
	rootLifetime    = 3653 * day
	betweenLifetime = 90 * day
	jwtKeyLifetime  = 30 * day
	svidLifetime    = time.Hour
	maxSVIDLifetime = 7 * day
	jwtLifetime     = 5 * time.Minute
	maxJWTLifetime  = day
	leastLifetime   = time.Second // an SVID that would end sooner is not worth signing
)

// Options of an Authority. The zero value is good.
type Options struct {
	// Nothing outlives what signed it: 0 is less if that lives for less.
	Lifetime     time.Duration // of an X.509-SVID; 0 is one hour, at most seven days
	JWTLifetime  time.Duration // of a JWT-SVID; 0 is five minutes, at most a day
	Intermediate time.Duration // 0 is ninety days
	Root         time.Duration // 0 is ten years
	JWTKey       time.Duration // 0 is thirty days

	// Notice is how long a new root or JWT key is in the bundle before it
	// signs: longer than a bundle takes to reach everyone. 0 is a day, or a tenth
	// of the key's life if that is less.
	Notice time.Duration

	Issuer   string           // iss of JWT-SVIDs, for who takes them as tokens of OpenID Connect; "" for none
	Upstream Upstream         // signs the intermediates, instead of a root of our own; may be nil
	Now      func() time.Time // nil is time.Now
	Log      *slog.Logger     // hears of failed renewals and of what nears its end; nil is nowhere
}

// fill sets what is not given, and refuses what cannot work.
func (o *Options) fill() error {
	root := cmp.Or(o.Root, rootLifetime)
	between := cmp.Or(o.Intermediate, min(betweenLifetime, root))
	for _, l := range []struct {
		name           string
		life           *time.Duration
		usual, longest time.Duration
	}{
		{"an SVID", &o.Lifetime, min(svidLifetime, between), maxSVIDLifetime},
		{"a JWT-SVID", &o.JWTLifetime, jwtLifetime, maxJWTLifetime},
		{"an intermediate", &o.Intermediate, between, rootLifetime},
		{"a root", &o.Root, root, 3 * rootLifetime},
		{"a JWT key", &o.JWTKey, jwtKeyLifetime, rootLifetime},
	} {
		if *l.life == 0 {
			*l.life = l.usual
		}
		if *l.life < leastLifetime || *l.life > l.longest {
			return fmt.Errorf("a lifetime of %v is not between %v and %v, as that of %s must be", *l.life, leastLifetime, l.longest, l.name)
		}
	}
	least := min(o.Root, o.JWTKey)
	if o.Notice == 0 {
		o.Notice = min(day, least/10)
	}
	if o.Notice < 0 || o.Notice > least/4 {
		return fmt.Errorf("a notice of %v is more than a quarter of the life of a root or JWT key, %v", o.Notice, least)
	}
	if o.Intermediate > o.Root {
		return fmt.Errorf("a lifetime of %v is longer than that of the root which signs an intermediate, %v", o.Intermediate, o.Root)
	}
	if o.Lifetime > o.Intermediate {
		return fmt.Errorf("a lifetime of %v is longer than that of the intermediate which signs an SVID, %v", o.Lifetime, o.Intermediate)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Authority issues the SVIDs of one trust domain. It is safe for concurrent
// use.
type Authority struct {
	dir         string
	trustDomain string
	opt         Options
	journal     *journal
	state       atomic.Pointer[state]
	failure     atomic.Pointer[string] // of what is due and could not be done
	closed      atomic.Bool
	edge        sync.Mutex // of the edge's certificate

	keeping sync.Mutex // of what follows, and of changes of state
	again   [kinds]time.Time
	failed  [kinds]error
	alarmed [kinds]alarmed
}

// Open opens the authority of trustDomain in dir, or makes one if dir is
// absent or holds none. What is there and is not good is an error that says
// what to do; nothing is overwritten.
func Open(dir, trustDomain string, opt Options) (*Authority, error) {
	if err := opt.fill(); err != nil {
		return nil, err
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
	if err := a.load(opt.Now()); err != nil {
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

// load reads what is there, and makes what is absent or has ended.
//
// A root or JWT key that was made before the last end may never have been in
// anyone's bundle: its notice begins anew, unless it has signed already.
func (a *Authority) load(now time.Time) error {
	s, err := a.read(now)
	if err != nil {
		return err
	}
	for _, k := range [...]kind{roots, jwtKeys} {
		for i := range s.lines[k] {
			p := &s.lines[k][i]
			used := func(child pair) bool { return k == roots && p.signed(&child) }
			if i > 0 && !slices.ContainsFunc(s.lines[intermediates], used) {
				p.usable = now.Add(a.opt.Notice)
			}
		}
	}
	a.keeping.Lock()
	defer a.keeping.Unlock()
	a.publish(s, now)
	a.advance(now)
	if s = a.state.Load(); s.lines[intermediates].youngest(now) == nil {
		return errors.New(*a.failure.Load())
	}
	return nil
}

// read reads what is there.
func (a *Authority) read(now time.Time) (*state, error) {
	s := &state{}
	for k := range kinds {
		var err error
		if s.lines[k], err = readLine(a.dir, k); err != nil {
			return nil, err
		}
	}
	return s, a.check(s, now)
}

// check holds what was read to what the authority would have left there.
func (a *Authority) check(s *state, now time.Time) error {
	if len(s.lines[roots]) == 0 && len(s.lines[intermediates]) > 0 {
		return a.broken(fileName(roots.String(), 0), errors.New("it is absent while "+s.lines[intermediates][0].file+" is there"))
	}
	for k := range kinds {
		l := s.lines[k]
		if n := len(l); n > 0 && now.Before(l[0].cert.NotBefore) && l.youngest(now) == nil {
			return a.broken(l[0].file, fmt.Errorf("its certificate begins at %v: compare the clock", l[0].cert.NotBefore.UTC().Format(time.RFC3339)))
		}
		for i := range l {
			if err := a.checkPair(s, k, &l[i], now); err != nil {
				return a.broken(l[i].file, err)
			}
		}
	}
	for i := range s.lines[roots] {
		uris := s.lines[roots][i].cert.URIs
		if s.lines[roots][i].key != nil && (len(uris) != 1 || uris[0].String() != "spiffe://"+a.trustDomain) {
			return fmt.Errorf("the authority in %s is of trust domain %v, not of %q: use another state directory for another trust domain",
				a.dir, uris, a.trustDomain)
		}
	}
	return nil
}

func (a *Authority) checkPair(s *state, k kind, p *pair, now time.Time) error {
	switch {
	case k == jwtKeys:
		if p.cert.IsCA || p.cert.CheckSignature(p.cert.SignatureAlgorithm, p.cert.RawTBSCertificate, p.cert.Signature) != nil {
			return errors.New("its certificate is not that of a JWT key")
		}
		return nil
	case k == roots && p.key == nil:
		return checkAnchor(p.cert)
	case !p.cert.IsCA || p.cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("its certificate is not a CA's")
	case k == roots:
		if err := p.cert.CheckSignatureFrom(p.cert); err != nil {
			return fmt.Errorf("its certificate is not signed by itself: %w", err)
		}
		return nil
	}
	if len(p.chain) > 0 {
		return nil // verified when it came, see ask
	}
	signed := func(root pair) bool { return p.cert.CheckSignatureFrom(root.cert) == nil }
	if slices.ContainsFunc(s.lines[roots], signed) {
		return nil
	}
	if !p.valid(now) {
		return nil // its root may have been dropped since; nothing is signed by it
	}
	return errors.New("its certificate is not signed by the root")
}

func (a *Authority) broken(file string, err error) error { return brokenState(a.dir, file, err) }

func brokenState(dir, file string, err error) error {
	return fmt.Errorf("the authority in %s cannot be used: %s: %w; restore the directory from a backup, "+
		"or move it away to begin a new trust domain (every workload then needs a new SVID)", dir, file, err)
}

// caTemplate is what root and intermediate have in common. They may sign for
// this trust domain only, whatever their key is used for (RFC 5280 4.2.1.10).
func (a *Authority) caTemplate(name string, now time.Time, lifetime time.Duration, depth int) *x509.Certificate {
	return &x509.Certificate{
		// The number keeps the names of a line apart (RFC 5280 4.1.2.4).
		Subject: pkix.Name{CommonName: name + " of " + a.trustDomain, Organization: []string{"Merlon"},
			SerialNumber: hex.EncodeToString(random(8))},
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

func (a *Authority) betweenTemplate(root *pair, now time.Time) *x509.Certificate {
	t := a.caTemplate("intermediate", now, a.opt.Intermediate, 0)
	if end := root.cert.NotAfter; t.NotAfter.After(end) {
		t.NotAfter = end
	}
	t.ExtKeyUsage = svidUsage()
	return t
}

// sign gives the certificate its serial number, writes it to the journal, and
// only then signs it.
func (a *Authority) sign(kind string, t *x509.Certificate, parent pair, public crypto.PublicKey) ([]byte, error) {
	t.SerialNumber = new(big.Int).SetBytes(random(16))
	e, err := certEntry(kind, t, parent.cert, public)
	if err == nil {
		err = a.journal.add(e)
	}
	if err != nil {
		return nil, fmt.Errorf("nothing is signed that cannot be recorded: %w", err)
	}
	return x509.CreateCertificate(rand.Reader, t, parent.cert, public, parent.key)
}

func svidUsage() []x509.ExtKeyUsage {
	return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} // X509-SVID 4.4
}

// workload checks that id is one of this trust domain's.
func (a *Authority) workload(id string) (path string, err error) {
	parsed, err := spiffeid.FromString(id)
	if err != nil || parsed.TrustDomain().Name() != a.trustDomain || parsed.Path() == "" {
		return "", fmt.Errorf("%q is no workload of trust domain %q", id, a.trustDomain)
	}
	return parsed.Path(), nil
}

var errClosed = errors.New("the authority is closed")

// Issue signs an SVID for the workload with this SPIFFE ID and P-256 key. The
// chain is the SVID and its intermediate, DER. Whoever calls has proved that
// the key is the workload's.
func (a *Authority) Issue(id string, public crypto.PublicKey, now time.Time) (chain [][]byte, notAfter time.Time, err error) {
	path, err := a.workload(id)
	if err != nil {
		return nil, time.Time{}, err
	}
	key, ok := public.(*ecdsa.PublicKey)
	if !ok || key == nil || key.Curve != elliptic.P256() {
		return nil, time.Time{}, errors.New("an SVID is for a P-256 key")
	}
	if a.closed.Load() {
		return nil, time.Time{}, errClosed
	}
	between := a.fresh(now).lines[intermediates].youngest(now)
	if between == nil {
		return nil, time.Time{}, errors.New("there is no valid intermediate, and none could be made")
	}
	notAfter = now.Add(a.opt.Lifetime)
	if end := between.cert.NotAfter; notAfter.After(end) {
		notAfter = end
	}
	notAfter = notAfter.Truncate(time.Second) // as the certificate will say
	if notAfter.Sub(now) < leastLifetime/2 {
		return nil, time.Time{}, fmt.Errorf("the intermediate ends at %v and could not be renewed", between.cert.NotAfter)
	}
	der, err := a.sign("svid", &x509.Certificate{
		// No subject: the URI name alone says who it is, and x509 then marks
		// the names critical (RFC 5280 4.2.1.6).
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: a.trustDomain, Path: path}},
		NotBefore:             now.Add(-Skew),
		NotAfter:              notAfter,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           svidUsage(),
	}, *between, key)
	if err != nil {
		return nil, time.Time{}, err
	}
	return append([][]byte{der, between.cert.Raw}, between.chain...), notAfter, nil
}

// keyName is the name of a certificate's key, as spiffe.Key has it.
func keyName(cert *x509.Certificate) string { return spiffe.KeyName(cert.PublicKey) }

// Lifetime is that of an X.509-SVID which nothing cuts short.
func (a *Authority) Lifetime() time.Duration { return a.opt.Lifetime }

// Close closes the journal. Nothing can be issued after it.
func (a *Authority) Close() error {
	a.closed.Store(true)
	return a.journal.close()
}
