package authority

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"merlon/identity/spiffe"
)

// Upstream signs the intermediates of an authority that has no root of its own.
type Upstream interface {
	// Sign gives a CA certificate for a certificate request, what lies between
	// it and a root, and all roots that verifiers have to trust, DER.
	Sign(ctx context.Context, csr []byte, lifetime time.Duration) (chain, roots [][]byte, err error)
}

// askTime is how long an upstream authority may take.
const askTime = 30 * time.Second

// ask has the upstream authority sign an intermediate. If it brings a root that
// is new to verifiers, the root is published now, and the intermediate asked
// for again when it has had its notice, for as long as the old one lives.
func (a *Authority) ask(s *state, now time.Time) error {
	key, err := newKeyPair()
	if err != nil {
		return err
	}
	csr, err := certificateRequest(a.trustDomain, key)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), askTime)
	defer cancel()
	chain, anchors, err := a.opt.Upstream.Sign(ctx, csr, a.opt.Intermediate)
	if err != nil {
		return err
	}
	cert, root, err := a.checkChain(chain, anchors, key, now)
	if err != nil {
		return fmt.Errorf("what the upstream authority gave is not used: %w", err)
	}
	for _, der := range anchors {
		if err := a.anchor(s, der, now); err != nil {
			return err
		}
	}
	i := slices.IndexFunc(s.lines[roots], func(p pair) bool { return p.cert.Equal(root) })
	if anchor := &s.lines[roots][i]; s.lines[intermediates].youngest(now) != nil && now.Before(anchor.usable) {
		a.again[intermediates] = anchor.usable
		return errNotice
	}
	return a.keepIntermediate(s, cert, root, chain, key, now)
}

// keepIntermediate stores an intermediate that was signed elsewhere.
func (a *Authority) keepIntermediate(s *state, cert, root *x509.Certificate, chain [][]byte, key crypto.Signer, now time.Time) error {
	l := s.lines[intermediates]
	e, err := certEntry(intermediates.String(), cert, root, key.Public())
	if err == nil {
		err = a.journal.add(e)
	}
	if err != nil {
		return fmt.Errorf("nothing is used that cannot be recorded: %w", err)
	}
	p, err := a.store(intermediates, l.next(), chain, key)
	if err != nil {
		return err
	}
	s.lines[intermediates] = append(slices.Clip(l), p)
	return a.prune(s, intermediates, now)
}

// installed takes up what Install has left since the authority was opened.
func (a *Authority) installed(s *state, now time.Time) error {
	next, err := a.read(now)
	if err != nil {
		return err
	}
	had, have := s.lines[intermediates].next(), next.lines[intermediates].next()
	for i := range next.lines[roots] {
		if p := &next.lines[roots][i]; p.number >= s.lines[roots].next() {
			p.usable = now.Add(a.opt.Notice)
			s.lines[roots] = append(slices.Clip(s.lines[roots]), *p)
		}
	}
	if have == had {
		return errOffline
	}
	p := &next.lines[intermediates][len(next.lines[intermediates])-1]
	for i := range s.lines[roots] {
		r := &s.lines[roots][i]
		if r.signed(p) && now.Before(r.usable) && s.lines[intermediates].youngest(now) != nil {
			a.again[intermediates] = r.usable
			return errNotice
		}
	}
	s.lines[intermediates] = next.lines[intermediates]
	return nil
}

// errNotice says that a new upstream root is being made known first.
var errNotice = errors.New("the upstream root is new and is being published first")

// errOffline says what only a person can do.
var errOffline = errors.New("its root is offline and has to sign another: merlon id csr writes what it is to sign, merlon id install takes the answer")

// anchor puts an upstream root into the bundle, if it is not there.
func (a *Authority) anchor(s *state, der []byte, now time.Time) error {
	l := s.lines[roots]
	if slices.ContainsFunc(l, func(p pair) bool { return slices.Equal(p.cert.Raw, der) }) {
		return nil
	}
	cert, err := x509.ParseCertificate(der)
	if err == nil {
		err = checkAnchor(cert)
	}
	if err != nil {
		return err
	}
	p, err := a.store(roots, l.next(), [][]byte{der}, nil)
	if err != nil {
		return err
	}
	if len(l) > 0 {
		p.usable = now.Add(a.opt.Notice)
	}
	s.lines[roots] = append(slices.Clip(l), p)
	return a.prune(s, roots, now)
}

// checkAnchor checks a root that is another's. Whoever gave it is trusted to
// know it; one that does not say what its key is for may sign (RFC 5280
// 4.2.1.3).
func checkAnchor(cert *x509.Certificate) error {
	if !cert.IsCA || cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return errors.New("its certificate is not a CA's")
	}
	return nil
}

// certificateRequest asks for an intermediate of the trust domain (RFC 2986).
func certificateRequest(trustDomain string, key crypto.Signer) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "intermediate of " + trustDomain, Organization: []string{"Merlon"}},
		URIs:    []*url.URL{{Scheme: "spiffe", Host: trustDomain}},
	}, key)
}

// checkChain checks that an intermediate that was signed elsewhere is for this
// key and can sign what it is for: with a trial, since name constraints, path
// lengths and usages of all that is above it have a say in that.
func (a *Authority) checkChain(chain, anchors [][]byte, key crypto.Signer, now time.Time) (cert, root *x509.Certificate, err error) {
	if len(chain) == 0 || len(anchors) == 0 {
		return nil, nil, errors.New("it lacks a certificate or a root")
	}
	all, err := parseAll(chain)
	if err != nil {
		return nil, nil, err
	}
	cert = all[0]
	if public, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(key.Public()) {
		return nil, nil, errors.New("the certificate is for another key than the request")
	}
	if !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return nil, nil, errors.New("the certificate is not a CA's")
	}
	if cert.NotAfter.Sub(now) < leastLifetime {
		return nil, nil, fmt.Errorf("the certificate ends at %v", cert.NotAfter)
	}
	trusted, err := parseAll(anchors)
	if err != nil {
		return nil, nil, err
	}
	roots := x509.NewCertPool()
	for _, c := range trusted {
		roots.AddCert(c)
	}
	trial, err := newKeyPair()
	if err != nil {
		return nil, nil, err
	}
	der, err := a.sign("trial", &x509.Certificate{
		URIs:      []*url.URL{{Scheme: "spiffe", Host: a.trustDomain, Path: "/trial"}},
		NotBefore: now.Add(-time.Second), NotAfter: now.Add(time.Second), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: svidUsage(),
	}, pair{cert: cert, key: key}, trial.Public())
	if err != nil {
		return nil, nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, err
	}
	// As gates will verify it, in both directions.
	shown := append([]*x509.Certificate{leaf}, all...)
	for _, usage := range svidUsage() {
		chains, err := spiffe.Verify(shown, usage, now, func(spiffeid.ID) (*x509.CertPool, error) { return roots, nil })
		if err != nil {
			return nil, nil, fmt.Errorf("what it signs for spiffe://%s would be refused: %w", a.trustDomain, err)
		}
		for _, above := range chains[0][1:] {
			if above.NotAfter.Before(cert.NotAfter) { // SVIDs would look good and be refused
				return nil, nil, fmt.Errorf("the certificate ends at %v, after %q above it, at %v: have it signed for no longer than that",
					cert.NotAfter, above.Subject, above.NotAfter)
			}
		}
		root = chains[0][len(chains[0])-1]
	}
	return cert, root, nil
}

func parseAll(ders [][]byte) ([]*x509.Certificate, error) {
	if len(ders) > maxUpstream {
		return nil, fmt.Errorf("it has %d certificates, at most %d are read", len(ders), maxUpstream)
	}
	var all []*x509.Certificate
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

const maxUpstream = 16
