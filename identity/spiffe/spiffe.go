// Package spiffe proves which workload is at the other end of a connection.
//
// Both ends show an X.509-SVID (SPIFFE X509-SVID), and each end checks the
// other's by hand: crypto/tls would check host names and system roots, which
// say nothing about workloads. The check is the same in both directions; see
// Verify. What changes while a process runs (its own SVID, the roots) comes
// from a Source and is read anew in every handshake.
//
// Sessions are never resumed. A resumed session would carry a proof made
// under an older SVID and older roots past their rotation or revocation; a
// full handshake between gates costs less than explaining that.
package spiffe

import (
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Source gives a workload's own SVID and the roots it trusts. It is safe for
// concurrent use, cheap, and gives new answers after a rotation. Either
// answer may be nil: no handshake succeeds then.
type Source interface {
	// SVID is the chain and key to show, nil when there is none that is valid.
	SVID() *tls.Certificate
	// Roots are the only roots of the trust domain.
	Roots() *x509.CertPool
}

// ServerConfig is the TLS of a gate's inner side: it shows the workload's
// SVID and lets in any workload of trustDomain, whose ID PeerID tells. A
// trustDomain that is not well formed lets nobody in.
//
// A test that needs another clock sets Time on the result itself.
func ServerConfig(src Source, trustDomain string) *tls.Config {
	return FederatedConfig(src, trustDomain, nil)
}

// AdmissionConfig is ServerConfig that also lets in who shows no certificate, and
// of whom PeerID then says nothing: for an endpoint where peers get their first
// SVID.
func AdmissionConfig(src Source, trustDomain string) *tls.Config {
	c := ServerConfig(src, trustDomain)
	c.ClientAuth = tls.RequestClientCert
	verify := c.VerifyConnection
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return nil
		}
		return verify(s)
	}
	return c
}

// FederatedConfig is ServerConfig that lets in workloads of other trust domains
// too: of those that foreign gives roots for, each verified by the roots of its
// own trust domain and by no others. It is not asked about trustDomain itself,
// so that no partner can name a workload of ours.
func FederatedConfig(src Source, trustDomain string, foreign func(trustDomain string) *x509.CertPool) *tls.Config {
	c := &tls.Config{
		MinVersion: tls.VersionTLS13,
		ClientAuth: tls.RequireAnyClientCert, // verified below
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return own(src)
		},
		SessionTicketsDisabled: true,
	}
	c.VerifyConnection = func(s tls.ConnectionState) error {
		return verify(s, c, x509.ExtKeyUsageClientAuth, func(id spiffeid.ID) (*x509.CertPool, error) {
			switch of := id.TrustDomain().Name(); {
			case trustDomain != "" && of == trustDomain:
				return src.Roots(), nil
			case trustDomain != "" && foreign != nil:
				if roots := foreign(of); roots != nil {
					return roots, nil
				}
			}
			return nil, fmt.Errorf("peer %q is not of trust domain %q", id, trustDomain)
		})
	}
	return c
}

// ClientConfig is the TLS of a call to the gate that must prove to be wantID.
// It shows the workload's own SVID. Host names play no part.
//
// A test that needs another clock sets Time on the result itself.
func ClientConfig(src Source, wantID string) *tls.Config {
	c := &tls.Config{
		MinVersion: tls.VersionTLS13,
		// Not insecure: VerifyConnection does the whole verification. Without
		// this, crypto/tls would demand a host name in the certificate.
		InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return own(src)
		},
		SessionTicketsDisabled: true, // and ClientSessionCache stays nil
	}
	c.VerifyConnection = func(s tls.ConnectionState) error {
		err := verify(s, c, x509.ExtKeyUsageServerAuth, func(id spiffeid.ID) (*x509.CertPool, error) {
			// Byte for byte: no pattern, no case folding (Istio GO-2026-5289).
			if id.String() != wantID {
				return nil, fmt.Errorf("peer is %q, want %q", id, wantID)
			}
			return src.Roots(), nil
		})
		if err != nil {
			return &UnprovenError{err}
		}
		return nil
	}
	return c
}

// UnprovenError says why the other end of a connection did not prove to be who
// was meant to be there.
type UnprovenError struct{ err error }

func (e *UnprovenError) Error() string { return e.err.Error() }

// Unwrap is the cause.
func (e *UnprovenError) Unwrap() error { return e.err }

// PeerID is the SPIFFE ID that the peer of a connection proved. The state must
// come from a finished handshake under ServerConfig or ClientConfig: PeerID
// reads the proof, it does not make it. Call it once per connection.
func PeerID(s tls.ConnectionState) (string, error) {
	if !s.HandshakeComplete {
		return "", errors.New("the handshake is not complete")
	}
	if len(s.PeerCertificates) == 0 {
		return "", errors.New("the peer showed no certificate")
	}
	return ID(s.PeerCertificates[0])
}

// Name is the workload's name in a SPIFFE ID of trustDomain, such as "orders"
// in spiffe://shop.example/orders. Names are compared byte for byte; an ID
// whose path has several segments names no workload of an intent.
func Name(id, trustDomain string) (workload string, err error) {
	path, ok := inTrustDomain(id, trustDomain)
	if !ok {
		return "", fmt.Errorf("%q is no SPIFFE ID of trust domain %q", id, trustDomain)
	}
	if path == "" || strings.Contains(path[1:], "/") {
		return "", fmt.Errorf("%q does not name one workload", id)
	}
	return path[1:], nil
}

// Key is the key of an SVID and a name for it, which no other key has. The
// name takes a hash: ask once per SVID or connection. The key is nil when
// there is no SVID.
func Key(svid *tls.Certificate) (key crypto.Signer, kid string) {
	if svid == nil {
		return nil, ""
	}
	key, ok := svid.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, ""
	}
	if kid = KeyName(key.Public()); kid == "" {
		return nil, ""
	}
	return key, kid
}

// KeyName is a name for a public key, which no other key has; "" when it is of
// no kind that has one.
func KeyName(public crypto.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return ""
	}
	hash := sha256.Sum256(der)
	return base64.RawURLEncoding.EncodeToString(hash[:16])
}

// ForeignName is the name of a workload of another trust domain, such as
// partner.example/billing for spiffe://partner.example/billing. No service of
// an intent can have one: it has a slash.
func ForeignName(id string) (trustDomain, workload string, err error) {
	parsed, err := spiffeid.FromString(id)
	if err != nil || parsed.Path() == "" {
		return "", "", fmt.Errorf("%q does not name a workload", id)
	}
	return parsed.TrustDomain().Name(), parsed.TrustDomain().Name() + parsed.Path(), nil
}

// inTrustDomain splits off the path of a well-formed ID of trustDomain.
func inTrustDomain(id, trustDomain string) (path string, ok bool) {
	parsed, err := spiffeid.FromString(id)
	if err != nil || trustDomain == "" || parsed.TrustDomain().Name() != trustDomain {
		return "", false
	}
	return parsed.Path(), true
}

func own(src Source) (*tls.Certificate, error) {
	// An answer without a certificate would let the handshake go on anonymously.
	if svid := src.SVID(); svid != nil && len(svid.Certificate) > 0 {
		return svid, nil
	}
	return nil, errors.New("this workload has no valid SVID")
}

// Snapshot is src as it is now. A connection dialled with a snapshot shows a
// certificate that the dialler knows, and may sign for later (see package
// assertion), whatever is rotated meanwhile.
func Snapshot(src Source) Source { return snapshot{src.SVID(), src.Roots()} }

type snapshot struct {
	svid  *tls.Certificate
	roots *x509.CertPool
}

func (s snapshot) SVID() *tls.Certificate { return s.svid }
func (s snapshot) Roots() *x509.CertPool  { return s.roots }
