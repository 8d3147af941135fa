package spiffe

import (
	"crypto"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"merlon/internal/jws"
)

const (
	// Skew is how far the clocks of an authority and of those who verify its
	// SVIDs may be apart.
	Skew = time.Minute

	maxJWT       = 8 << 10 // bytes
	maxAudiences = 16
	maxAudience  = 1 << 10 // bytes

)

// JWT is what a JWT-SVID proves.
type JWT struct {
	ID     string // the SPIFFE ID of the workload
	Until  time.Time
	Claims map[string]any
}

// VerifyJWT checks a JWT-SVID of trustDomain for audience (JWT-SVID 2 to 4 and
// 6): key gives the domain's public key of a name, or nil.
//
// The header's kid chooses among the keys that were published and does nothing
// else; the algorithm has to be the one of that key.
func VerifyJWT(token, audience, trustDomain string, key func(kid string) *jose.JSONWebKey, now time.Time) (JWT, error) {
	if len(token) > maxJWT {
		return JWT{}, errors.New("the token is too large")
	}
	if audience == "" {
		return JWT{}, errors.New("an audience is needed to verify a JWT-SVID by")
	}
	parts, err := jws.Split(token, 8)
	if err != nil {
		return JWT{}, fmt.Errorf("the token cannot be read: %w", err)
	}
	public, alg, err := jwtKey(parts.Header, key)
	if err != nil {
		return JWT{}, err
	}
	svid, err := jwtClaims(parts.Payload, audience, trustDomain, now)
	if err != nil {
		return JWT{}, err
	}
	if jws.Verify(token, alg, public) != nil {
		return JWT{}, errors.New("the token's signature is not good")
	}
	return svid, nil
}

// jwtKey reads the header (JWT-SVID 2).
func jwtKey(h map[string]any, key func(kid string) *jose.JSONWebKey) (crypto.PublicKey, jose.SignatureAlgorithm, error) {
	name, _ := h["alg"].(string)
	alg := jose.SignatureAlgorithm(name)
	if !slices.Contains(jwtAlgorithms(), alg) {
		return nil, "", errors.New("the token's algorithm is not one of JWT-SVIDs")
	}
	for name := range h {
		switch name {
		case "alg", "kid", "typ":
		case "crit", "b64", "jwk", "x5c", "jku", "x5u", "enc", "zip": // ways to choose how one is verified
			return nil, "", fmt.Errorf("a JWT-SVID has no %q in its header", name)
		}
	}
	if typ, given := h["typ"]; given && typ != "JWT" && typ != "JOSE" {
		return nil, "", errors.New("the token is of another type")
	}
	kid, _ := h["kid"].(string)
	if !jws.Text(kid, 1<<10) {
		return nil, "", errors.New("the token names no key")
	}
	public := key(kid)
	switch {
	case public == nil:
		return nil, "", errors.New("the token's key is not in the bundle")
	case public.Algorithm != "" && public.Algorithm != name:
		return nil, "", fmt.Errorf("the token's key is for %q alone", public.Algorithm)
	}
	return public.Key, alg, nil
}

func jwtAlgorithms() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{jose.ES256, jose.ES384, jose.ES512, jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512}
}

// jwtClaims reads the payload (JWT-SVID 3).
func jwtClaims(m map[string]any, audience, trustDomain string, now time.Time) (JWT, error) {
	sub, _ := m["sub"].(string)
	id, err := spiffeid.FromString(sub)
	if err != nil || id.Path() == "" {
		return JWT{}, errors.New("the token's subject is no SPIFFE ID of a workload")
	}
	if _, ok := inTrustDomain(sub, trustDomain); !ok {
		return JWT{}, fmt.Errorf("%q is no workload of trust domain %q", sub, trustDomain)
	}
	if !jws.Audience(m["aud"], audience) {
		return JWT{}, fmt.Errorf("the token is not for the audience %q", audience)
	}
	exp, ok := jws.Date(m["exp"])
	if !ok {
		return JWT{}, errors.New("the token has no end")
	}
	until := time.Unix(exp, 0)
	if !now.Before(until.Add(Skew)) {
		return JWT{}, fmt.Errorf("the token ended at %v", until.UTC().Format(time.RFC3339))
	}
	for _, name := range [...]string{"nbf", "iat"} {
		v, given := m[name]
		if !given {
			continue
		}
		date, ok := jws.Date(v)
		if !ok {
			return JWT{}, fmt.Errorf("the token's %q cannot be read", name)
		}
		if now.Before(time.Unix(date, 0).Add(-Skew)) {
			return JWT{}, errors.New("the token is not valid yet")
		}
	}
	return JWT{ID: sub, Until: until, Claims: m}, nil
}

// CheckAudience refuses what cannot be the audience of a JWT-SVID.
func CheckAudience(audience []string) error {
	switch {
	case len(audience) == 0:
		return errors.New("a JWT-SVID needs an audience")
	case len(audience) > maxAudiences:
		return fmt.Errorf("a JWT-SVID has at most %d audiences", maxAudiences)
	}
	for i, name := range audience {
		if !jws.Text(name, maxAudience) {
			return errors.New("an audience is empty, too long or no text")
		}
		if slices.Contains(audience[:i], name) {
			return fmt.Errorf("the audience %q is named twice", name)
		}
	}
	return nil
}
