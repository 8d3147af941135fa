package spiffe_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"merlon/identity/spiffe"
	"merlon/internal/jws"
)

var noon = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

func head(change map[string]any) map[string]any {
	h := map[string]any{"alg": "ES256", "typ": "JWT", "kid": "k1"}
	maps.Copy(h, change)
	maps.DeleteFunc(h, func(_ string, v any) bool { return v == nil })
	return h
}

func body(change map[string]any) map[string]any {
	b := map[string]any{"sub": web, "aud": []string{"db", "other"}, "iat": noon.Unix(), "exp": noon.Add(5 * time.Minute).Unix()}
	maps.Copy(b, change)
	maps.DeleteFunc(b, func(_ string, v any) bool { return v == nil })
	return b
}

func jwtOf(t testing.TB, key crypto.Signer, header, payload map[string]any) string {
	t.Helper()
	h, err := json.Marshal(header)
	if err != nil {
		t.Fatal(err)
	}
	p, err := json.Marshal(payload)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jws.Sign(key, h, p)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func p256(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func keys(all map[string]crypto.PublicKey) func(string) *jose.JSONWebKey {
	return func(kid string) *jose.JSONWebKey {
		if all[kid] == nil {
			return nil
		}
		return &jose.JSONWebKey{Key: all[kid], KeyID: kid}
	}
}

func TestJWT(t *testing.T) {
	t.Parallel()
	key, other := p256(t), p256(t)
	find := keys(map[string]crypto.PublicKey{"k1": key.Public(), "k2": other.Public()})
	tests := []struct {
		name     string
		token    string
		audience string
		ok       bool
	}{
		{"good", jwtOf(t, key, head(nil), body(nil)), "db", true},
		{"the other audience", jwtOf(t, key, head(nil), body(nil)), "other", true},
		{"one audience as text", jwtOf(t, key, head(nil), body(map[string]any{"aud": "db"})), "db", true},
		{"type JOSE", jwtOf(t, key, head(map[string]any{"typ": "JOSE"}), body(nil)), "db", true},
		{"no type", jwtOf(t, key, head(map[string]any{"typ": nil}), body(nil)), "db", true},
		{"ended within the skew", jwtOf(t, key, head(nil), body(map[string]any{"exp": noon.Add(-59 * time.Second).Unix()})), "db", true},
		{"a path of two segments", jwtOf(t, key, head(nil), body(map[string]any{"sub": web + "/a"})), "db", true},

		{"another audience", jwtOf(t, key, head(nil), body(nil)), "d", false},
		{"no audience asked for", jwtOf(t, key, head(nil), body(map[string]any{"aud": ""})), "", false},
		{"no audience", jwtOf(t, key, head(nil), body(map[string]any{"aud": nil})), "db", false},
		{"audience of a wrong type", jwtOf(t, key, head(nil), body(map[string]any{"aud": []any{"db", 1}})), "db", false},
		{"ended", jwtOf(t, key, head(nil), body(map[string]any{"exp": noon.Add(-time.Minute).Unix()})), "db", false},
		{"no end", jwtOf(t, key, head(nil), body(map[string]any{"exp": nil})), "db", false},
		{"end as text", jwtOf(t, key, head(nil), body(map[string]any{"exp": "9999999999"})), "db", false},
		{"issued in the future", jwtOf(t, key, head(nil), body(map[string]any{"iat": noon.Add(2 * time.Minute).Unix()})), "db", false},
		{"not valid yet", jwtOf(t, key, head(nil), body(map[string]any{"nbf": noon.Add(2 * time.Minute).Unix()})), "db", false},
		{"subject of another trust domain", jwtOf(t, key, head(nil), body(map[string]any{"sub": "spiffe://evil.example/web"})), "db", false},
		{"subject is the trust domain", jwtOf(t, key, head(nil), body(map[string]any{"sub": "spiffe://shop.example"})), "db", false},
		{"subject no SPIFFE ID", jwtOf(t, key, head(nil), body(map[string]any{"sub": "web"})), "db", false},
		{"subject with a query", jwtOf(t, key, head(nil), body(map[string]any{"sub": web + "?x"})), "db", false},
		{"no subject", jwtOf(t, key, head(nil), body(map[string]any{"sub": nil})), "db", false},
		{"another's key under this name", jwtOf(t, other, head(nil), body(nil)), "db", false},
		{"unknown key", jwtOf(t, key, head(map[string]any{"kid": "k9"}), body(nil)), "db", false},
		{"no key name", jwtOf(t, key, head(map[string]any{"kid": nil}), body(nil)), "db", false},
		{"brings its key", jwtOf(t, key, head(map[string]any{"jwk": map[string]any{"kty": "EC"}}), body(nil)), "db", false},
		{"brings an address", jwtOf(t, key, head(map[string]any{"jku": "https://evil.example"}), body(nil)), "db", false},
		{"critical extension", jwtOf(t, key, head(map[string]any{"crit": []string{"b64"}}), body(nil)), "db", false},
		{"another type", jwtOf(t, key, head(map[string]any{"typ": "merlon-caller+jwt"}), body(nil)), "db", false},
		{"class 16: none", jwtOf(t, key, head(map[string]any{"alg": "none"}), body(nil)), "db", false},
		{"class 16: HMAC", jwtOf(t, key, head(map[string]any{"alg": "HS256"}), body(nil)), "db", false},
		{"class 16: another algorithm than the key's", jwtOf(t, key, head(map[string]any{"alg": "ES384"}), body(nil)), "db", false},
		{"class 16: RSA", jwtOf(t, key, head(map[string]any{"alg": "RS256"}), body(nil)), "db", false},
		{"cut off", strings.TrimSuffix(jwtOf(t, key, head(nil), body(nil)), "A"), "db2", false},
		{"huge", strings.Repeat("a", 9<<10), "db", false},
		{"empty", "", "db", false},
	}
	for _, tt := range tests {
		got, err := spiffe.VerifyJWT(tt.token, tt.audience, td, find, noon)
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
		if tt.ok && !strings.HasPrefix(got.ID, web) {
			t.Errorf("%s: %q", tt.name, got.ID)
		}
		if err != nil && len(tt.token) > 40 && strings.Contains(err.Error(), tt.token[len(tt.token)-20:]) {
			t.Errorf("%s: the error quotes the token", tt.name)
		}
	}
	token := jwtOf(t, key, head(nil), body(nil))
	for i := range len(token) {
		b := []byte(token)
		b[i] ^= 1
		if _, err := spiffe.VerifyJWT(string(b), "db", td, find, noon); err == nil {
			t.Errorf("with byte %d changed it is still good", i)
		}
	}
}

// The other algorithms that JWT-SVID 2 allows are read too: a foreign
// authority signs by what it likes.
func TestJWTAlgorithms(t *testing.T) {
	t.Parallel()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for alg, key := range map[jose.SignatureAlgorithm]crypto.Signer{
		jose.RS256: rsaKey, jose.RS384: rsaKey, jose.RS512: rsaKey, jose.PS256: rsaKey, jose.PS384: rsaKey, jose.PS512: rsaKey,
		jose.ES256: p256(t), jose.ES384: p384, jose.ES512: p521, jose.EdDSA: ed,
	} {
		s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: key, KeyID: "k1"}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		payload, err := json.Marshal(body(nil))
		if err != nil {
			t.Fatal(err)
		}
		signed, err := s.Sign(payload)
		if err != nil {
			t.Fatal(err)
		}
		token, err := signed.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		_, err = spiffe.VerifyJWT(token, "db", td, keys(map[string]crypto.PublicKey{"k1": key.Public()}), noon)
		if (err == nil) != (alg != jose.EdDSA) {
			t.Errorf("%s: %v", alg, err)
		}
	}
}

// FuzzJWT holds what is accepted to what go-spiffe accepts: nothing passes here
// that the reference refuses.
func FuzzJWT(f *testing.F) {
	key := p256(f)
	now := time.Now()
	good := body(map[string]any{"iat": now.Unix(), "exp": now.Add(time.Hour).Unix()})
	f.Add(jwtOf(f, key, head(nil), good))
	f.Add(jwtOf(f, key, head(map[string]any{"typ": "JOSE"}), good))
	f.Add("a.b.c")
	domain := spiffeid.RequireTrustDomainFromString(td)
	bundle := jwtbundle.New(domain)
	if err := bundle.AddJWTAuthority("k1", key.Public()); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, token string) {
		got, err := spiffe.VerifyJWT(token, "db", td, keys(map[string]crypto.PublicKey{"k1": key.Public()}), now)
		if err != nil {
			return
		}
		theirs, err := jwtsvid.ParseAndValidate(token, bundle, []string{"db"})
		if err != nil || theirs.ID.String() != got.ID {
			t.Errorf("%q is %q here; for go-spiffe: %v", token, got.ID, err)
		}
	})
}

func TestCheckAudience(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		audience []string
		ok       bool
	}{
		{nil, false}, {[]string{}, false}, {[]string{""}, false}, {[]string{"a"}, true}, {[]string{"a", "b"}, true}, {[]string{"a", "a"}, false},
		{[]string{"a\nb"}, false}, {[]string{strings.Repeat("a", 1025)}, false}, {make([]string, 17), false},
	} {
		if err := spiffe.CheckAudience(tt.audience); (err == nil) != tt.ok {
			t.Errorf("%q: %v", tt.audience, err)
		}
	}
}
