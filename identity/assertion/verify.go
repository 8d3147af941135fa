package assertion

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"errors"
	"fmt"
	"hash/maphash"
	"net/netip"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"merlon"
	"merlon/internal/hotcache"
	"merlon/internal/jws"
)

// Verify tells which caller an assertion speaks of, or refuses it. It must be
// signed with key, which the peer proved in the TLS handshake, name issuer,
// which the peer proved to be, and be for audience, which is who asks.
//
// Everything is exact: an unknown header or claim, a duplicate, another
// algorithm, another type is refused. There is one writer of assertions.
func Verify(token string, key crypto.PublicKey, issuer, audience string, now time.Time) (merlon.Caller, error) {
	v, err := verify(token, key, issuer, audience)
	if err != nil {
		return merlon.Caller{}, err
	}
	return v.at(now)
}

// Cache is Verify for the hot path: an assertion that was verified before with
// the same key, issuer and audience costs a lookup and allocates nothing. It
// is bounded and safe for concurrent use.
type Cache struct {
	known *hotcache.Cache[string, verified]
}

// NewCache makes a Cache of at most about max assertions; 0 is 4096.
func NewCache(max int) *Cache {
	if max <= 0 {
		max = entries
	}
	seed := maphash.MakeSeed()
	return &Cache{hotcache.New[string, verified](max, func(token string) uint64 { return maphash.String(seed, token) })}
}

// Verify is as the function Verify. The token may be a view; what is kept is
// cloned. The claims are shared: nobody may change them.
func (c *Cache) Verify(token string, key crypto.PublicKey, issuer, audience string, now time.Time) (merlon.Caller, error) {
	if v, ok := c.known.Get(token); ok && v.by(key, issuer, audience) {
		return v.at(now)
	}
	v, err := verify(token, key, issuer, audience)
	if err != nil {
		// Not remembered: only an authenticated peer could send it.
		return merlon.Caller{}, err
	}
	caller, err := v.at(now)
	if err == nil {
		v.issuer, v.audience = strings.Clone(issuer), strings.Clone(audience)
		c.known.Put(strings.Clone(token), v)
	}
	return caller, err
}

// verified is an assertion whose signature is good.
type verified struct {
	caller           merlon.Caller
	key              *ecdsa.PublicKey
	issuer, audience string
	from, until      int64 // unix seconds, with Skew
}

// by reports whether this key, issuer and audience are what the assertion was
// verified with. On one connection the key is the same pointer.
func (v *verified) by(key crypto.PublicKey, issuer, audience string) bool {
	k, ok := key.(*ecdsa.PublicKey)
	return ok && v.issuer == issuer && v.audience == audience && (k == v.key || k != nil && v.key.Equal(k))
}

func (v *verified) at(now time.Time) (merlon.Caller, error) {
	switch sec := now.Unix(); {
	case sec >= v.until:
		return merlon.Caller{}, errors.New("the assertion has expired")
	case sec < v.from:
		return merlon.Caller{}, errors.New("the assertion comes from the future: compare the clocks")
	}
	return v.caller, nil
}

func verify(token string, key crypto.PublicKey, issuer, audience string) (verified, error) {
	if len(token) > MaxToken {
		return verified{}, fmt.Errorf("the assertion is longer than %d bytes", MaxToken)
	}
	public, ok := key.(*ecdsa.PublicKey)
	if !ok || public == nil || public.Curve != elliptic.P256() {
		return verified{}, errors.New("assertions are signed with a P-256 key")
	}
	parts, err := jws.Split(token, maxDepth)
	if err != nil {
		return verified{}, fmt.Errorf("the assertion is malformed: %w", err)
	}
	for name, v := range parts.Header {
		s, _ := v.(string)
		if name == "alg" && s == "ES256" || name == "typ" && s == Type || name == "kid" && s != "" {
			continue
		}
		return verified{}, fmt.Errorf("the assertion's header has a %q that is not expected", name)
	}
	if parts.Header["alg"] == nil || parts.Header["typ"] == nil {
		return verified{}, errors.New("the assertion's header lacks alg or typ")
	}
	if jws.Verify(token, jose.ES256, public) != nil {
		return verified{}, errors.New("the assertion is not signed by its bearer")
	}
	v, err := read(parts.Payload, issuer, audience)
	if err != nil {
		return verified{}, err
	}
	v.key, v.issuer, v.audience = public, issuer, audience
	return v, nil
}

// read takes the claims for the values they must be.
func read(payload map[string]any, issuer, audience string) (verified, error) {
	var v verified
	var iss, aud, kind string
	text := map[string]*string{
		"iss": &iss, "aud": &aud, "kind": &kind,
		"sub": &v.caller.Subject, "name": &v.caller.Name, "client": &v.caller.Client,
	}
	var iat, exp int64
	for name, value := range payload {
		ok := false
		switch name {
		case "iat":
			iat, ok = jws.Date(value)
		case "exp":
			exp, ok = jws.Date(value)
		case "claims":
			v.caller.Claims, ok = value.(map[string]any)
		default:
			var s string
			if s, ok = value.(string); ok && s != "" && text[name] != nil {
				*text[name] = s
			} else {
				ok = false
			}
		}
		if !ok {
			return verified{}, fmt.Errorf("the assertion has a claim %q that is not expected", name)
		}
	}
	// An empty issuer or audience is a forgotten one, and matches nothing.
	if iss == "" || iss != issuer || aud == "" || aud != audience {
		return verified{}, fmt.Errorf("the assertion is of %q for %q, want %q for %q", iss, aud, issuer, audience)
	}
	if iat == 0 || exp <= iat || exp-iat > int64(Lifetime/time.Second) {
		return verified{}, errors.New("the assertion's lifetime is not one of an assertion")
	}
	if err := v.caller.Kind.UnmarshalText([]byte(kind)); err != nil {
		return verified{}, err
	}
	if err := check(&v.caller, iss, aud); err != nil {
		return verified{}, err
	}
	const skew = int64(Skew / time.Second)
	v.from, v.until = iat-skew, exp+skew
	return v, nil
}

// check holds a caller to what its kind can be: what is not so is neither
// signed nor believed.
func check(c *merlon.Caller, issuer, audience string) error {
	named := c.Name != "" && c.Subject != ""
	ok := false
	switch c.Kind {
	case merlon.Anyone:
		ok = c.Name == "" && c.Subject == "" && c.Claims == nil
	case merlon.Login:
		ok = named
	case merlon.Workload:
		ok = named && c.Claims == nil
	}
	if !ok {
		return fmt.Errorf("no assertion can be made of this %v", c.Kind)
	}
	for _, s := range [...]string{c.Name, c.Subject, c.Client} {
		if s != "" && !jws.Text(s, maxName) {
			return errors.New("the caller has a name that cannot be sent")
		}
	}
	if !jws.Text(issuer, maxName) || !jws.Text(audience, maxName) {
		return errors.New("an assertion needs an issuer and an audience")
	}
	if c.Client != "" {
		if _, err := netip.ParseAddr(c.Client); err != nil {
			return errors.New("the client's address is none")
		}
	}
	return nil
}
