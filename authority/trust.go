package authority

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"

	"merlon/identity/spiffe"
)

// Trust is the trust bundle: all that SVIDs of the trust domain are verified
// by. It never changes; when there is a newer one, Stale is closed.
type Trust struct {
	Roots *x509.CertPool // of X.509-SVIDs
	DER   [][]byte       // the same
	PEM   []byte         // the same
	JWKS  []byte         // the keys of JWT-SVIDs (SPIFFE Trust Domain and Bundle 4.2)

	key   func(kid string) *jose.JSONWebKey
	stale chan struct{}
}

// PublishedTrust is the bundle that an authority elsewhere has published. Who has
// a newer one says so by Retire.
func PublishedTrust(b *spiffe.Bundle) *Trust {
	t := &Trust{Roots: b.Roots, DER: b.DER, JWKS: b.JWKS, key: b.Key, stale: make(chan struct{})}
	for _, der := range b.DER {
		t.PEM = pemAppend(t.PEM, der)
	}
	return t
}

// Retire says that there is a newer bundle. It is called once.
func (t *Trust) Retire() { close(t.stale) }

// Key is the key of JWT-SVIDs with this name, or nil.
func (t *Trust) Key(kid string) *jose.JSONWebKey { return t.key(kid) }

// Stale is closed when the authority has another bundle.
func (t *Trust) Stale() <-chan struct{} { return t.stale }

// bundle is what the authority publishes in this state.
func (s *state) bundle(now time.Time) (*Trust, error) {
	keys := map[string]*jose.JSONWebKey{}
	t := &Trust{Roots: x509.NewCertPool(), key: func(kid string) *jose.JSONWebKey { return keys[kid] }, stale: make(chan struct{})}
	for i := range s.lines[roots] {
		if p := &s.lines[roots][i]; p.published(now) {
			t.Roots.AddCert(p.cert)
			t.DER = append(t.DER, p.cert.Raw)
			t.PEM = pemAppend(t.PEM, p.cert.Raw)
		}
	}
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for i := range s.lines[jwtKeys] {
		if p := &s.lines[jwtKeys][i]; p.published(now) {
			kid := keyName(p.cert)
			keys[kid] = &jose.JSONWebKey{Key: p.cert.PublicKey, KeyID: kid, Use: "jwt-svid"}
			set.Keys = append(set.Keys, *keys[kid])
		}
	}
	var err error
	t.JWKS, err = json.Marshal(set)
	return t, err
}

func (t *Trust) equal(o *Trust) bool {
	return slices.EqualFunc(t.DER, o.DER, bytes.Equal) && bytes.Equal(t.JWKS, o.JWKS)
}

func pemAppend(to, der []byte) []byte {
	return append(to, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
}

// Trust is the bundle of now.
func (a *Authority) Trust() *Trust { return a.state.Load().trust }

// Roots are the roots to verify workloads of the trust domain by.
func (a *Authority) Roots() *x509.CertPool { return a.Trust().Roots }

// Bundle is the roots of the trust bundle, PEM.
func (a *Authority) Bundle() []byte { return a.Trust().PEM }
