package authority

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"testing"
	"time"
)

// jwtHead is the name of the key in a token's header.
func jwtHead(t *testing.T, part string) string {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		t.Fatal(err)
	}
	var h struct{ Kid, Alg, Typ string }
	if err := json.Unmarshal(b, &h); err != nil || h.Alg != "ES256" || h.Typ != "JWT" {
		t.Fatalf("%s: %v", b, err)
	}
	return h.Kid
}

// fakeUpstream is another authority's root that signs requests.
type fakeUpstream struct {
	ca                     *pair
	now                    func() time.Time
	err                    error
	noRoot, otherKey, noCA bool
	usage                  []x509.ExtKeyUsage
	twice                  int // the root in the chain, too
}

func (u *fakeUpstream) Sign(_ context.Context, csr []byte, lifetime time.Duration) (chain, anchors [][]byte, err error) {
	if u.err != nil {
		return nil, nil, u.err
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, nil, err
	}
	if err := req.CheckSignature(); err != nil {
		return nil, nil, err
	}
	t := &x509.Certificate{
		Subject: req.Subject, URIs: req.URIs, NotBefore: u.now().Add(-Skew), NotAfter: u.now().Add(lifetime),
		BasicConstraintsValid: true, IsCA: !u.noCA, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign, ExtKeyUsage: u.usage,
	}
	public := req.PublicKey
	if u.otherKey {
		key, err := newKeyPair()
		if err != nil {
			return nil, nil, err
		}
		public = key.Public()
	}
	der, err := x509.CreateCertificate(rand.Reader, t, u.ca.cert, public, u.ca.key)
	if u.noRoot {
		return [][]byte{der}, nil, err
	}
	chain = [][]byte{der}
	for range u.twice {
		chain = append(chain, u.ca.cert.Raw)
	}
	return chain, [][]byte{u.ca.cert.Raw}, err
}
