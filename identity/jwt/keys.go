package jwt

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"

	"merlon/internal/jws"
)

const (
	maxKeySet = 256 << 10 // bytes
	maxKeys   = 100
)

// known reports whether alg is a public key signature. There is no none and no
// HMAC: with HMAC, a public key would do as the secret (RFC 8725 2.1).
func known(alg jose.SignatureAlgorithm) bool {
	return slices.Contains(algorithmNames(), string(alg))
}

func algorithmNames() []string {
	return []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
}

// key is one public key of a key set.
type key struct {
	id     string
	alg    string // "" when the key does not say
	public any    // *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey
}

// fits reports whether the key may verify this algorithm: by its type and
// curve, and by what it says of itself. The token has no say in it.
func (k *key) fits(alg jose.SignatureAlgorithm) bool {
	if k.alg != "" && k.alg != string(alg) {
		return false
	}
	return jws.Fits(alg, k.public)
}

// keySet is a JWK set that was read. It never changes.
type keySet struct {
	keys    []key
	skipped int
	id      string // equal for sets with equal keys
}

// find picks the one key for a token. A token without a key's name gets a key
// only if there is no choice.
func (s *keySet) find(alg jose.SignatureAlgorithm, kid string) (*key, string) {
	var found *key
	named := false
	for i := range s.keys {
		k := &s.keys[i]
		if kid != "" && k.id != kid {
			continue
		}
		named = true
		if !k.fits(alg) {
			continue
		}
		if found != nil {
			return nil, AmbiguousKey
		}
		found = k
	}
	switch {
	case found != nil:
		return found, ""
	case named && kid != "":
		return nil, WrongKey
	}
	return nil, UnknownKey
}

// errOther says that a key is good, but for something else. Sets that are
// published hold such keys.
var errOther = errors.New("it is not for signatures")

// jwk is what is read of a JWK (RFC 7517 4, RFC 7518 6). Certificates and
// addresses in it are left alone.
type jwk struct {
	Kty string   `json:"kty"`
	Kid string   `json:"kid,omitempty"`
	Use string   `json:"use,omitempty"`
	Ops []string `json:"key_ops,omitempty"`
	Alg string   `json:"alg,omitempty"`

	Crv string `json:"crv,omitempty"`
	X   string `json:"x,omitempty"`
	Y   string `json:"y,omitempty"`
	N   string `json:"n,omitempty"`
	E   string `json:"e,omitempty"`

	D any `json:"d,omitempty"` // the private part
	K any `json:"k,omitempty"` // a shared secret
}

// parseKeys reads a JWK set (RFC 7517 5). A key that cannot be used is
// skipped, as the RFC says; problems tells why. A set in which there are keys
// but none to use is an error.
func parseKeys(b []byte) (set *keySet, problems []error, err error) {
	if len(b) > maxKeySet {
		return nil, nil, fmt.Errorf("the key set is larger than %d bytes", maxKeySet)
	}
	var raw struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(b, &raw); err != nil { // duplicate members are errors
		return nil, nil, fmt.Errorf("not a JWK set: %w", err)
	}
	if raw.Keys == nil {
		return nil, nil, errors.New(`not a JWK set: it has no "keys"`)
	}
	if len(raw.Keys) > maxKeys {
		return nil, nil, fmt.Errorf("the key set has %d keys, at most %d are read", len(raw.Keys), maxKeys)
	}
	set = &keySet{}
	var ids []string
	for i, r := range raw.Keys {
		k, id, err := parseKey(r)
		if err != nil {
			problems = append(problems, fmt.Errorf("key %d: %w", i+1, err))
			continue
		}
		set.keys = append(set.keys, k)
		ids = append(ids, id)
	}
	set.skipped = len(problems)
	if len(set.keys) == 0 && len(problems) > 0 {
		return nil, nil, fmt.Errorf("no key of the set can be used: %w", errors.Join(problems[:min(3, len(problems))]...))
	}
	slices.Sort(ids)
	set.id = strings.Join(ids, "\n")
	return set, problems, nil
}

// inlineKeys reads a key set that a person put into the intent: every key for
// signatures must be good.
func inlineKeys(b []byte) (*keySet, error) {
	set, problems, err := parseKeys(b)
	problems = slices.DeleteFunc(problems, func(err error) bool { return errors.Is(err, errOther) })
	switch {
	case err != nil:
		return nil, err
	case len(problems) > 0:
		return nil, errors.Join(problems...)
	case len(set.keys) == 0:
		return nil, errors.New("the key set is empty")
	}
	return set, nil
}

// parseKey reads one public signature key, and a text equal for equal keys.
func parseKey(b []byte) (key, string, error) {
	var j jwk
	if err := json.Unmarshal(b, &j); err != nil {
		return key{}, "", err
	}
	switch {
	case j.K != nil || j.Kty == "oct":
		return key{}, "", errors.New("a shared secret is no public key")
	case j.D != nil:
		return key{}, "", errors.New("the private key is in the set: whoever reads it can forge tokens")
	case j.Use != "" && j.Use != "sig":
		return key{}, "", fmt.Errorf("%w (use is %q)", errOther, j.Use)
	case j.Ops != nil && !slices.Contains(j.Ops, "verify"):
		return key{}, "", fmt.Errorf(`%w (key_ops lacks "verify")`, errOther)
	case j.Alg != "" && !known(jose.SignatureAlgorithm(j.Alg)):
		return key{}, "", fmt.Errorf("%w (alg is %q)", errOther, j.Alg)
	}
	plain, err := json.Marshal(jwk{Kty: j.Kty, Crv: j.Crv, X: j.X, Y: j.Y, N: j.N, E: j.E})
	if err != nil {
		return key{}, "", err
	}
	var parsed jose.JSONWebKey
	if err := parsed.UnmarshalJSON(plain); err != nil {
		return key{}, "", err
	}
	k := key{id: j.Kid, alg: j.Alg, public: parsed.Key}
	if err := jws.CheckKey(k.public); err != nil {
		return key{}, "", err
	}
	return k, fmt.Sprintf("%q %q %s", j.Kid, j.Alg, plain), nil
}
