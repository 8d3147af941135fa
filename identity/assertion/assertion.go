// Package assertion carries the caller's identity from the gate that proved it
// to the next gate and to the application: a compact JWT (RFC 7519) signed
// with ES256 (RFC 7518 3.4) by the key of the signing gate's SVID.
//
// An assertion is worth only what its signer is. Whoever verifies one names
// the key it must be signed with, the one that the peer proved in the TLS
// handshake, so an assertion that leaks is of no use on another connection:
// it says nothing there but what its own gate could say.
//
//	header  {"alg":"ES256","kid":KID,"typ":"merlon-caller+jwt"}
//	iss     SPIFFE ID of the gate that signs
//	aud     the workload that may believe it
//	sub     the caller's proved name; absent for anyone
//	iat exp an assertion lives for Lifetime
//	kind    "anyone", "login" or "workload"
//	name    of the login or service; absent for anyone
//	client  address of the client, as the edge saw it; absent when inside
//	claims  of the token that the caller showed; absent without one
package assertion

import (
	"crypto"
	"errors"
	"fmt"
	"hash/maphash"
	"reflect"
	"strings"
	"time"

	"merlon"
	"merlon/internal/hotcache"
	"merlon/internal/jws"
)

const (
	// Type is the typ of an assertion's header. It keeps assertions and every
	// other kind of JWT apart (RFC 8725 3.11).
	Type = "merlon-caller+jwt"
	// Lifetime is how long an assertion is valid. It is minted anew at half.
	Lifetime = 60 * time.Second
	// Skew is how far the clocks of two gates may be apart.
	Skew = 10 * time.Second
	// MaxToken is the longest assertion, in bytes. It fits one header line.
	MaxToken = 12 << 10

	maxName  = 2048 // bytes of a SPIFFE ID (SPIFFE-ID 2.3), and of any other name
	maxDepth = 24   // of claims; a token's may be 16 deep, and here they lie one deeper
	entries  = 4096 // assertions remembered, minted or verified
)

// Signer mints assertions. It is safe for concurrent use.
type Signer struct {
	key    func() (crypto.Signer, string)
	issuer string
	minted *hotcache.Cache[callerKey, minted]
	seed   maphash.Seed
}

// callerKey names a caller and an audience. Two callers with equal claims in
// different maps are two keys: only speed is lost by that.
type callerKey struct {
	kind                                 merlon.CallerKind
	name, subject, client, audience, kid string
	claims                               uintptr // identity of the map, which minted keeps alive
}

type minted struct {
	token string
	from  int64 // unix seconds when it was minted
	// claims keeps the map from being freed, so that no other map comes to
	// have its address while this entry lives: the claims of one caller would
	// be sent in the name of another.
	claims map[string]any
}

// NewSigner makes a Signer in the name of issuer, the gate's SPIFFE ID. The
// function key gives the SVID's P-256 key and a name for it, which changes
// with the key; it is asked for every token and must be cheap. A nil key
// means there is none, and no token is minted.
func NewSigner(key func() (crypto.Signer, string), issuer string) *Signer {
	s := &Signer{key: key, issuer: issuer, seed: maphash.MakeSeed()}
	s.minted = hotcache.New[callerKey, minted](entries, func(k callerKey) uint64 {
		var h maphash.Hash
		h.SetSeed(s.seed)
		h.WriteString(k.subject)
		h.WriteString(k.client)
		h.WriteString(k.audience)
		return h.Sum64()
	})
	return s
}

// Token is an assertion about c for audience, with at least half of Lifetime
// left. It allocates nothing while the last one for this caller and audience
// is young enough.
func (s *Signer) Token(c *merlon.Caller, audience string, now time.Time) (string, error) {
	key, kid := s.key()
	return s.TokenBy(key, kid, c, audience, now)
}

// TokenBy is Token with the key given. A connection that was made before a
// rotation proved the old key, and its peer believes nothing else: tokens sent
// on it are signed with that one.
func (s *Signer) TokenBy(key crypto.Signer, kid string, c *merlon.Caller, audience string, now time.Time) (string, error) {
	k := callerKey{c.Kind, c.Name, c.Subject, c.Client, audience, kid, reflect.ValueOf(c.Claims).Pointer()}
	sec := now.Unix()
	if m, ok := s.minted.Get(k); ok && m.from <= sec && sec < m.from+int64(Lifetime/2/time.Second) {
		return m.token, nil
	}
	if key == nil {
		return "", errors.New("there is no key to sign with")
	}
	token, err := s.mint(key, kid, c, audience, sec)
	if err != nil {
		return "", err
	}
	k.name, k.subject, k.client = strings.Clone(k.name), strings.Clone(k.subject), strings.Clone(k.client)
	k.audience, k.kid = strings.Clone(k.audience), strings.Clone(k.kid)
	s.minted.Put(k, minted{token, sec, c.Claims})
	return token, nil
}

func (s *Signer) mint(key crypto.Signer, kid string, c *merlon.Caller, audience string, sec int64) (string, error) {
	if err := check(c, s.issuer, audience); err != nil {
		return "", err
	}
	head := map[string]any{"alg": "ES256", "typ": Type}
	if kid != "" {
		head["kid"] = kid
	}
	body := map[string]any{
		"iss": s.issuer, "aud": audience, "kind": c.Kind.String(),
		"iat": sec, "exp": sec + int64(Lifetime/time.Second),
	}
	for name, v := range map[string]string{"sub": c.Subject, "name": c.Name, "client": c.Client} {
		if v != "" {
			body[name] = v
		}
	}
	if c.Claims != nil {
		body["claims"] = c.Claims
	}
	var parts [2][]byte
	for i, m := range [...]map[string]any{head, body} {
		var err error
		if parts[i], err = appendJSON(nil, m, maxDepth); err != nil {
			return "", err
		}
	}
	b, err := jws.Sign(key, parts[0], parts[1])
	if err != nil {
		return "", err
	}
	if len(b) > MaxToken {
		return "", fmt.Errorf("the assertion would be %d bytes, at most %d are sent", len(b), MaxToken)
	}
	return b, nil
}
