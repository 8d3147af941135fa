package spiffe

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"merlon/internal/jws"
)

// Bounds of a bundle document.
const (
	MaxBundle     = 1 << 20 // bytes
	maxBundleKeys = 256
	maxKeyID      = 256 // bytes
)

const useX509, useJWT = "x509-svid", "jwt-svid"

// Bundle is what the SVIDs of one trust domain are verified by, and of no
// other: bundles are never joined. It never changes.
type Bundle struct {
	TrustDomain string
	Sequence    uint64        // 0 when the document has none
	Hint        time.Duration // how often to look for another; 0 when the document has none
	Roots       *x509.CertPool
	DER         [][]byte // the same
	JWKS        []byte   // the keys of JWT-SVIDs alone

	keys map[string]*jose.JSONWebKey
}

// Key is the key of JWT-SVIDs with this name, or nil.
func (b *Bundle) Key(kid string) *jose.JSONWebKey { return b.keys[kid] }

// Keys says how many keys of JWT-SVIDs there are.
func (b *Bundle) Keys() int { return len(b.keys) }

// document is a bundle as it is written (SPIFFE Trust Domain and Bundle 4.1).
type document struct {
	Keys     []json.RawMessage `json:"keys"`
	Sequence uint64            `json:"spiffe_sequence,omitempty"`
	Hint     int64             `json:"spiffe_refresh_hint,omitempty"`
}

// ParseBundle reads the bundle document of trustDomain. Keys of a kind or use
// that is unknown are passed over (SPIFFE Trust Domain and Bundle 4.1.3, 4.2.2); what is
// wrong with one of a known use is an error, and so is a bundle that verifies
// nothing.
func ParseBundle(trustDomain string, text []byte) (*Bundle, error) {
	if td, err := spiffeid.TrustDomainFromString(trustDomain); err != nil || td.Name() != trustDomain {
		return nil, fmt.Errorf("%q is no trust domain", trustDomain)
	}
	if len(text) > MaxBundle {
		return nil, fmt.Errorf("the bundle has more than %d bytes", MaxBundle)
	}
	var doc document
	if err := json.Unmarshal(text, &doc); err != nil { // names are exact and come once
		return nil, errors.New("the bundle is not a JSON Web Key Set")
	}
	switch {
	case doc.Keys == nil:
		return nil, errors.New("the bundle has no keys")
	case len(doc.Keys) > maxBundleKeys:
		return nil, fmt.Errorf("the bundle has more than %d keys", maxBundleKeys)
	case doc.Hint < 0:
		return nil, errors.New("the bundle's refresh hint is negative")
	}
	const forever = int64(365 * 24 * time.Hour / time.Second)
	b := &Bundle{TrustDomain: trustDomain, Sequence: doc.Sequence, Hint: time.Duration(min(doc.Hint, forever)) * time.Second,
		Roots: x509.NewCertPool(), keys: map[string]*jose.JSONWebKey{}}
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for i, raw := range doc.Keys {
		var kind struct {
			Type string   `json:"kty"`
			Use  string   `json:"use"`
			Ops  []string `json:"key_ops"`
		}
		if err := json.Unmarshal(raw, &kind); err != nil {
			return nil, fmt.Errorf("key %d of the bundle cannot be read", i+1)
		}
		if kind.Type != "EC" && kind.Type != "RSA" || kind.Use != useX509 && kind.Use != useJWT {
			continue
		}
		if kind.Ops != nil && !slices.Contains(kind.Ops, "verify") { // RFC 7517 4.3
			return nil, fmt.Errorf("key %d of the bundle: its key_ops lack %q", i+1, "verify")
		}
		var key jose.JSONWebKey
		if err := key.UnmarshalJSON(raw); err != nil {
			return nil, fmt.Errorf("key %d of the bundle cannot be read", i+1) // the cause may quote it
		}
		if err := b.add(&key); err != nil {
			return nil, fmt.Errorf("key %d of the bundle: %w", i+1, err)
		}
		if key.Use == useJWT {
			set.Keys = append(set.Keys, *b.keys[key.KeyID])
		}
	}
	if len(b.DER) == 0 && len(b.keys) == 0 {
		return nil, errors.New("the bundle holds no key for SVIDs")
	}
	var err error
	b.JWKS, err = json.Marshal(set)
	return b, err
}

// unfit reports a character that JSON writes as several: a bundle that is read
// and written again must not grow beyond what is read.
func unfit(r rune) bool { return r < '!' || r > '~' || strings.ContainsRune(`<>&"\`, r) }

// add takes one key.
func (b *Bundle) add(key *jose.JSONWebKey) error {
	if !key.IsPublic() {
		return errors.New("it is not a public key")
	}
	if key.Use == useX509 {
		if len(key.Certificates) != 1 { // X509-SVID 6.2
			return errors.New("x5c does not hold exactly one certificate")
		}
		cert := key.Certificates[0]
		if !cert.IsCA || !cert.BasicConstraintsValid {
			return errors.New("its certificate is not a CA's")
		}
		b.Roots.AddCert(cert)
		b.DER = append(b.DER, cert.Raw)
		return nil
	}
	if err := jws.CheckKey(key.Key); err != nil {
		return err
	}
	if key.KeyID == "" { // JWT-SVID 5
		return errors.New("it has no kid")
	}
	if len(key.KeyID) > maxKeyID || strings.ContainsFunc(key.KeyID, unfit) {
		return fmt.Errorf("its kid has more than %d bytes, or characters that no kid needs", maxKeyID)
	}
	if b.keys[key.KeyID] != nil {
		return fmt.Errorf("two keys are named %q", key.KeyID)
	}
	if key.Algorithm != "" && !jws.Fits(jose.SignatureAlgorithm(key.Algorithm), key.Key) {
		return fmt.Errorf("it is not a key for %q", key.Algorithm)
	}
	b.keys[key.KeyID] = &jose.JSONWebKey{Key: key.Key, KeyID: key.KeyID, Algorithm: key.Algorithm, Use: useJWT}
	return nil
}

// EncodeBundle writes the bundle document of roots (DER) and of the keys of
// JWT-SVIDs in jwks.
func EncodeBundle(roots [][]byte, jwks []byte, sequence uint64, hint time.Duration) ([]byte, error) {
	doc := document{Keys: []json.RawMessage{}, Sequence: sequence, Hint: int64(hint / time.Second)}
	for _, der := range roots {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		raw, err := jose.JSONWebKey{Key: cert.PublicKey, Certificates: []*x509.Certificate{cert}, Use: useX509}.MarshalJSON()
		if err != nil {
			return nil, err
		}
		doc.Keys = append(doc.Keys, raw)
	}
	var set document
	if err := json.Unmarshal(jwks, &set); err != nil {
		return nil, err
	}
	doc.Keys = append(doc.Keys, set.Keys...)
	return json.Marshal(doc)
}
