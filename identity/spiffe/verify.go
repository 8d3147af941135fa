package spiffe

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// maxChain is how many certificates a peer may show: its own and what lies
// between it and the root. It bounds the ways that a peer can have us try, before
// it has proved anything.
const maxChain = 4

// verify checks what the peer of a connection showed, see Verify. crypto/tls
// has checked already that the peer holds the key.
//
// It hangs on VerifyConnection and not on VerifyPeerCertificate, which
// crypto/tls skips for a resumed session.
func verify(s tls.ConnectionState, c *tls.Config, usage x509.ExtKeyUsage, rootsOf func(spiffeid.ID) (*x509.CertPool, error)) error {
	var now time.Time // zero: the system's clock
	if c.Time != nil {
		now = c.Time()
	}
	_, err := Verify(s.PeerCertificates, usage, now, rootsOf)
	return err
}

// Verify checks that certs begin with an X.509-SVID that chains to the roots
// that are of its trust domain, for this use, and returns the ways there, from
// the SVID to the root (X509-SVID 4 and 5). rootsOf gives the roots, or says
// why the SPIFFE ID is refused. A zero now is the system's clock.
func Verify(certs []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time, rootsOf func(spiffeid.ID) (*x509.CertPool, error)) ([][]*x509.Certificate, error) {
	switch n := len(certs); {
	case n == 0:
		return nil, errors.New("the peer showed no certificate")
	case n > maxChain:
		return nil, fmt.Errorf("the peer showed %d certificates, at most %d are read", n, maxChain)
	}
	if err := checkLeaf(certs[0]); err != nil {
		return nil, err
	}
	text, err := ID(certs[0])
	if err != nil {
		return nil, err
	}
	id, err := spiffeid.FromString(text)
	if err != nil {
		return nil, err
	}
	roots, err := rootsOf(id)
	if err != nil {
		return nil, err
	}
	if roots == nil {
		// x509 takes nil for the system's roots: every public CA could name workloads.
		return nil, errors.New("there are no roots to verify the peer by")
	}
	chains, err := build(certs, usage, now, roots)
	if err != nil {
		return nil, err
	}
	chains = slices.DeleteFunc(chains, func(chain []*x509.Certificate) bool { return !permitted(chain, id.TrustDomain().Name()) })
	if len(chains) == 0 {
		return nil, fmt.Errorf("a CA above the peer may not sign for trust domain %q", id.TrustDomain())
	}
	return chains, nil
}

// build finds the ways from the first certificate to a root (RFC 5280 6): of
// all names that the certificates have, not only those that count here, none
// may violate a constraint of a CA above it.
func build(certs []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time, roots *x509.CertPool) ([][]*x509.Certificate, error) {
	between := x509.NewCertPool()
	for _, cert := range certs[1:] {
		between.AddCert(cert)
	}
	return certs[0].Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: between,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{usage},
	})
}

// permitted holds a chain to the URIs that its CAs may sign for, to the letter
// of RFC 5280 4.2.1.10: a constraint names one host, and only one that begins
// with a period those below. x509 takes the first for both, as it is with DNS
// names, so that a CA of shop.example could name workloads of eu.shop.example.
func permitted(chain []*x509.Certificate, trustDomain string) bool {
	for _, ca := range chain[1:] {
		names := func(constraint string) bool {
			return constraint == "" || strings.EqualFold(constraint, trustDomain) ||
				constraint[0] == '.' && len(trustDomain) > len(constraint) && strings.EqualFold(constraint, trustDomain[len(trustDomain)-len(constraint):])
		}
		if len(ca.PermittedURIDomains) > 0 && !slices.ContainsFunc(ca.PermittedURIDomains, names) {
			return false
		}
	}
	return true
}

// checkLeaf holds a leaf to X509-SVID 4.1, 4.3, 4.4 and 5.2.
func checkLeaf(leaf *x509.Certificate) error {
	switch {
	case leaf.IsCA:
		return errors.New("the peer's certificate is a CA's, not a workload's")
	case leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return errors.New("the peer's certificate may sign certificates, a workload's may not")
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return errors.New("the peer's certificate lacks the key usage digitalSignature")
	case len(leaf.ExtKeyUsage) == 0:
		// x509 takes none for any. An SVID says what it is for.
		return errors.New("the peer's certificate lacks an extended key usage")
	}
	return nil
}

// ID is the SPIFFE ID of an X.509-SVID: its only URI name, well formed, byte
// for byte as it was signed. ID does not verify the certificate.
func ID(cert *x509.Certificate) (string, error) {
	id, err := onlyURI(cert)
	if err != nil {
		return "", err
	}
	if _, err := spiffeid.FromString(id); err != nil {
		return "", fmt.Errorf("%q is no SPIFFE ID: %w", id, err)
	}
	return id, nil
}

// onlyURI reads the certificate's one URI name (X509-SVID 2). It does not take
// cert.URIs: url.URL folds the scheme's case and drops an empty fragment, so
// several different names would read as one.
func onlyURI(cert *x509.Certificate) (string, error) {
	const tagURI = 6 // uniformResourceIdentifier (RFC 5280 4.2.1.6)
	found, uri := 0, ""
	for _, ext := range cert.Extensions {
		if !ext.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}) {
			continue
		}
		var names asn1.RawValue
		if rest, err := asn1.Unmarshal(ext.Value, &names); err != nil || len(rest) != 0 {
			return "", errors.New("the certificate's names cannot be read")
		}
		for rest := names.Bytes; len(rest) > 0; {
			var name asn1.RawValue
			var err error
			if rest, err = asn1.Unmarshal(rest, &name); err != nil {
				return "", errors.New("the certificate's names cannot be read")
			}
			if name.Class == asn1.ClassContextSpecific && name.Tag == tagURI {
				found, uri = found+1, string(name.Bytes)
			}
		}
	}
	if found != 1 {
		return "", fmt.Errorf("the certificate has %d URI names, an SVID has exactly one", found)
	}
	return uri, nil
}
