package jwt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"merlon"
)

const issuer, audience = "https://id.shop.example", "shop"

// epoch is when the tests take place.
var epoch = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

// keys are made once: RSA keys take long.
var keys = sync.OnceValue(func() map[string]crypto.Signer {
	must := func(k crypto.Signer, err error) crypto.Signer {
		if err != nil {
			panic(err)
		}
		return k
	}
	ec := func(c elliptic.Curve) crypto.Signer { k, err := ecdsa.GenerateKey(c, rand.Reader); return must(k, err) }
	rs := func(bits int) crypto.Signer { k, err := rsa.GenerateKey(rand.Reader, bits); return must(k, err) }
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	return map[string]crypto.Signer{
		"rsa": rs(2048), "rsa2": rs(2048), "weak": rs(1024),
		"p256": ec(elliptic.P256()), "p256b": ec(elliptic.P256()), "p384": ec(elliptic.P384()), "p521": ec(elliptic.P521()),
		"ed": must(ed, err),
	}
})

// jwks is a JWK set of these keys, each under its name.
func jwks(names ...string) string {
	var set jose.JSONWebKeySet
	for _, name := range names {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: keys()[name].Public(), KeyID: name, Use: "sig"})
	}
	b, err := json.Marshal(set)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func goodClaims() map[string]any {
	return map[string]any{
		"iss": issuer, "aud": audience, "sub": "ann", "role": "support",
		"iat": epoch.Unix(), "exp": epoch.Add(time.Hour).Unix(),
	}
}

func with(changes map[string]any) map[string]any {
	c := goodClaims()
	maps.Copy(c, changes)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// mint signs with go-jose, as an issuer would.
func mint(t testing.TB, alg jose.SignatureAlgorithm, key any, kid string, claims any, header map[jose.HeaderKey]any) string {
	t.Helper()
	if kid != "" {
		key = jose.JSONWebKey{Key: key, KeyID: kid}
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, &jose.SignerOptions{ExtraHeaders: header})
	if err != nil {
		t.Fatal(err)
	}
	payload, ok := claims.([]byte)
	if !ok {
		payload = mustJSON(claims)
	}
	obj, err := s.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	token, err := obj.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// forge joins any header and claims with an ES256 signature that is right.
func forge(t testing.TB, header, claims string) string {
	t.Helper()
	enc := base64.RawURLEncoding.EncodeToString
	text := enc([]byte(header)) + "." + enc([]byte(claims))
	hash := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, keys()["p256"].(*ecdsa.PrivateKey), hash[:])
	if err != nil {
		t.Fatal(err)
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return text + "." + enc(sig)
}

func rule(keys string, algorithms ...string) merlon.LoginRule {
	return merlon.LoginRule{Name: "staff", Issuer: issuer, Audience: audience, Keys: keys, Algorithms: algorithms}
}

func verifier(t testing.TB, opt Options, logins ...merlon.LoginRule) *Verifier {
	t.Helper()
	v, err := New(logins, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v
}

func reason(err error) string {
	var e *Error
	if !errors.As(err, &e) {
		return ""
	}
	return e.Reason
}

func TestAlgorithms(t *testing.T) {
	t.Parallel()
	for key, algs := range map[string][]jose.SignatureAlgorithm{
		"rsa":  {jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512},
		"p256": {jose.ES256}, "p384": {jose.ES384}, "p521": {jose.ES512}, "ed": {jose.EdDSA},
	} {
		for _, alg := range algs {
			v := verifier(t, Options{}, rule(jwks("rsa", "p256", "p384", "p521", "ed"), string(alg)))
			caller, err := v.Verify(mint(t, alg, keys()[key], key, goodClaims(), nil), epoch)
			if err != nil {
				t.Errorf("%s: %v", alg, err)
				continue
			}
			if caller.Kind != merlon.Login || caller.Name != "staff" || caller.Subject != "ann" || caller.Claims["role"] != "support" {
				t.Errorf("%s: %+v", alg, caller)
			}
		}
	}
}

func TestClaims(t *testing.T) {
	t.Parallel()
	v := verifier(t, Options{}, rule(jwks("p256"), "ES256"))
	sec := epoch.Unix()
	tests := []struct {
		name   string
		change map[string]any
		want   string
	}{
		{"good", nil, ""},
		{"several audiences", map[string]any{"aud": []string{"other", audience}}, ""},
		{"no iat", map[string]any{"iat": nil}, ""},
		{"fraction", map[string]any{"exp": float64(sec) + 60.5}, ""},
		{"expired within leeway", map[string]any{"exp": sec - 29}, ""},
		{"expired", map[string]any{"exp": sec - 30}, Expired},
		{"long expired", map[string]any{"exp": 0}, Expired},
		{"nbf within leeway", map[string]any{"nbf": sec + 30}, ""},
		{"nbf ahead", map[string]any{"nbf": sec + 31}, NotYetValid},
		{"iat ahead", map[string]any{"iat": sec + 31}, NotYetValid},
		{"no exp", map[string]any{"exp": nil}, BadClaims},
		{"exp a string", map[string]any{"exp": "4102444800"}, BadClaims},
		{"exp in milliseconds", map[string]any{"exp": sec * 1000}, BadClaims},
		{"exp overflows", map[string]any{"exp": int64(math.MaxInt64)}, BadClaims},
		{"exp overflows a float", map[string]any{"exp": 1e300}, BadClaims},
		{"exp negative", map[string]any{"exp": -1}, BadClaims},
		{"exp true", map[string]any{"exp": true}, BadClaims},
		{"nbf null", map[string]any{"nbf": json.RawMessage("null")}, BadClaims},
		{"iat a string", map[string]any{"iat": "now"}, BadClaims},
		{"no sub", map[string]any{"sub": nil}, BadClaims},
		{"empty sub", map[string]any{"sub": ""}, BadClaims},
		{"sub a number", map[string]any{"sub": 7}, BadClaims},
		{"sub with a line break", map[string]any{"sub": "ann\nbob"}, BadClaims},
		{"sub with C1", map[string]any{"sub": "ann\u0085bob"}, BadClaims},
		{"sub with half a surrogate", map[string]any{"sub": json.RawMessage(`"\ud800"`)}, BadClaims},
		{"sub too long", map[string]any{"sub": strings.Repeat("a", 256)}, BadClaims},
		{"bound", map[string]any{"cnf": map[string]any{"jkt": "x"}}, Bound},
		{"bound to null", map[string]any{"cnf": json.RawMessage("null")}, Bound},
		{"other issuer", map[string]any{"iss": "https://evil.example"}, UnknownIssuer},
		{"issuer with slash", map[string]any{"iss": issuer + "/"}, UnknownIssuer},
		{"issuer in capitals", map[string]any{"iss": strings.ToUpper(issuer)}, UnknownIssuer},
		{"class 12: issuer with another dot", map[string]any{"iss": "https://idxshop.example"}, UnknownIssuer},
		{"issuer a list", map[string]any{"iss": []string{issuer}}, UnknownIssuer},
		{"no issuer", map[string]any{"iss": nil}, UnknownIssuer},
		{"other audience", map[string]any{"aud": "shopx"}, UnknownAudience},
		{"no audience", map[string]any{"aud": nil}, UnknownAudience},
		{"empty audiences", map[string]any{"aud": []string{}}, UnknownAudience},
		{"audiences of two types", map[string]any{"aud": []any{audience, 1}}, UnknownAudience},
		{"audience an object", map[string]any{"aud": map[string]any{audience: true}}, UnknownAudience},
		{"number too large", map[string]any{"n": json.RawMessage("9223372036854775808")}, Malformed},
		{"float too large", map[string]any{"n": json.RawMessage("1e999")}, Malformed},
		{"deep", map[string]any{"n": json.RawMessage(strings.Repeat("[", 16) + strings.Repeat("]", 16))}, ""},
		{"too deep", map[string]any{"n": json.RawMessage(strings.Repeat("[", 18) + strings.Repeat("]", 18))}, Malformed},
	}
	for _, tt := range tests {
		token := mint(t, jose.ES256, keys()["p256"], "p256", with(tt.change), nil)
		for range 2 { // the second answer comes from a cache
			_, err := v.Verify(token, epoch)
			if got := reason(err); got != tt.want || (err == nil) != (tt.want == "") {
				t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
			}
		}
	}
}

func TestNumbersStayExact(t *testing.T) {
	t.Parallel()
	v := verifier(t, Options{}, rule(jwks("p256"), "ES256"))
	token := mint(t, jose.ES256, keys()["p256"], "p256", with(map[string]any{
		"account": json.RawMessage("9007199254740993"), "ratio": json.RawMessage("1.0"), "list": []any{1, "a", nil, true},
	}), nil)
	c, err := v.Verify(token, epoch)
	if err != nil {
		t.Fatal(err)
	}
	if c.Claims["account"] != int64(9007199254740993) || c.Claims["ratio"] != 1.0 || c.Claims["list"].([]any)[0] != int64(1) {
		t.Errorf("%#v", c.Claims)
	}
}

func TestMalformed(t *testing.T) {
	t.Parallel()
	v := verifier(t, Options{}, rule(jwks("p256"), "ES256"))
	good := mint(t, jose.ES256, keys()["p256"], "p256", goodClaims(), nil)
	head, rest, _ := strings.Cut(good, ".")
	body, sig, _ := strings.Cut(rest, ".")
	const h = `{"alg":"ES256","kid":"p256"}`
	claims := string(mustJSON(goodClaims()))
	tests := []struct{ name, token, want string }{
		{"empty", "", Malformed},
		{"dots", "..", Malformed},
		{"two parts", head + "." + body, Malformed},
		{"four parts", good + ".", Malformed},
		{"no signature", head + "." + body + ".", Malformed},
		{"padding", good + "=", Malformed},
		{"line break", head + "\n." + body + "." + sig, Malformed},
		{"line break at the end", good + "\n", Malformed},
		{"space", " " + good, Malformed},
		{"plain base64", strings.NewReplacer("-", "+", "_", "/").Replace(good) + "+", Malformed},
		{"second spelling", respell(good), Malformed},
		{"JSON serialization", `{"payload":"` + body + `","protected":"` + head + `","signature":"` + sig + `"}`, Malformed},
		{"too large", good + strings.Repeat("A", MaxToken), TooLarge},
		{"duplicate claim", forge(t, h, strings.Replace(claims, "{", `{"sub":"root",`, 1)), Malformed},
		{"duplicate by escape", forge(t, h, strings.Replace(claims, "{", `{"su\u0062":"root",`, 1)), Malformed},
		{"duplicate deep inside", forge(t, h, strings.Replace(claims, "{", `{"x":[{"a":1,"a":2}],`, 1)), Malformed},
		{"duplicate alg", forge(t, `{"alg":"ES256","alg":"none","kid":"p256"}`, claims), Malformed},
		{"two values", forge(t, h, claims+"{}"), Malformed},
		{"not UTF-8", forge(t, h, strings.Replace(claims, "ann", "an\xff", 1)), Malformed},
		{"BOM", forge(t, h, "\ufeff"+claims), Malformed},
		{"claims null", forge(t, h, "null"), Malformed},
		{"claims a list", forge(t, h, "[]"), Malformed},
		{"claims a string", forge(t, h, `"x"`), Malformed},
		{"nested token", forge(t, h, good), Malformed},
		{"header null", forge(t, "null", claims), Malformed},
		{"upper-case claims", forge(t, h, strings.Replace(claims, `"sub"`, `"Sub"`, 1)), BadClaims},
		{"no alg", forge(t, `{"kid":"p256"}`, claims), BadAlgorithm},
		{"alg a list", forge(t, `{"alg":["ES256"],"kid":"p256"}`, claims), BadAlgorithm},
		{"Alg", forge(t, `{"Alg":"ES256","kid":"p256"}`, claims), BadAlgorithm},
		{"kid a number", forge(t, `{"alg":"ES256","kid":1}`, claims), BadHeader},
		{"kid empty", forge(t, `{"alg":"ES256","kid":""}`, claims), BadHeader},
		{"typ JWT", forge(t, `{"alg":"ES256","kid":"p256","typ":"jwt"}`, claims), ""},
		{"typ at+jwt", forge(t, `{"alg":"ES256","kid":"p256","typ":"application/AT+JWT"}`, claims), ""},
		{"typ of a DPoP proof", forge(t, `{"alg":"ES256","kid":"p256","typ":"dpop+jwt"}`, claims), BadType},
		{"typ of a logout token", forge(t, `{"alg":"ES256","kid":"p256","typ":"logout+jwt"}`, claims), BadType},
		{"typ of our assertions", forge(t, `{"alg":"ES256","kid":"p256","typ":"merlon-caller+jwt"}`, claims), BadType},
		{"typ a number", forge(t, `{"alg":"ES256","kid":"p256","typ":1}`, claims), BadType},
		{"white space", forge(t, " "+h+" ", "\n"+claims+"\t"), ""},
	}
	for _, tt := range tests {
		_, err := v.Verify(tt.token, epoch)
		if got := reason(err); got != tt.want || (err == nil) != (tt.want == "") {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

// respell changes the bits that the last character of the signature does not
// use: the same bytes in another spelling.
func respell(token string) string {
	const abc = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(abc, token[len(token)-1])
	return token[:len(token)-1] + string(abc[last^1])
}

// An attacker chooses the header of a token: algorithm, key and all. Nothing
// there may choose how it is verified.
func TestClass16AlgorithmAndKeyConfusion(t *testing.T) {
	t.Parallel()
	all := []string{"RS256", "PS256", "ES256", "ES384", "EdDSA"}
	v := verifier(t, Options{}, rule(jwks("rsa", "p256", "ed"), all...))
	narrow := verifier(t, Options{}, rule(jwks("rsa", "p256"), "ES256"))
	claims := string(mustJSON(goodClaims()))
	enc := base64.RawURLEncoding.EncodeToString
	unsigned := func(header string) string { return enc([]byte(header)) + "." + enc([]byte(claims)) }
	hmacBy := func(header string, secret []byte) string {
		text := unsigned(header)
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(text))
		return text + "." + enc(mac.Sum(nil))
	}
	pkix, err := x509.MarshalPKIXPublicKey(keys()["rsa"].Public())
	if err != nil {
		t.Fatal(err)
	}
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pkix})
	own := keys()["p256b"].(*ecdsa.PrivateKey) // the attacker's
	ownJWK := jose.JSONWebKey{Key: own.Public(), KeyID: "p256"}
	tests := []struct {
		name, token, want string
		v                 *Verifier
	}{
		{"none", unsigned(`{"alg":"none"}`) + ".", Malformed, v},
		{"none with a signature", unsigned(`{"alg":"none"}`) + ".AAAA", BadAlgorithm, v},
		{"None", unsigned(`{"alg":"None","kid":"rsa"}`) + ".AAAA", BadAlgorithm, v},
		{"HMAC with the public key, PEM", hmacBy(`{"alg":"HS256","kid":"rsa"}`, publicPEM), BadAlgorithm, v},
		{"HMAC with the public key, DER", hmacBy(`{"alg":"HS256","kid":"rsa"}`, pkix), BadAlgorithm, v},
		{"HMAC, no key named", hmacBy(`{"alg":"HS256"}`, publicPEM), BadAlgorithm, v},
		{"encrypted", enc([]byte(`{"alg":"dir","enc":"A128GCM"}`)) + "..AAAA.AAAA.AAAA", Malformed, v},
		{"enc", forge(t, `{"alg":"ES256","kid":"p256","enc":"A128GCM"}`, claims), BadHeader, v},
		{"zip", forge(t, `{"alg":"ES256","kid":"p256","zip":"DEF"}`, claims), BadHeader, v},
		{"algorithm of another key type", forge(t, `{"alg":"RS256","kid":"p256"}`, claims), WrongKey, v},
		{"algorithm of another curve", forge(t, `{"alg":"ES384","kid":"p256"}`, claims), WrongKey, v},
		{"key of another type", forge(t, `{"alg":"ES256","kid":"rsa"}`, claims), WrongKey, v},
		{"EdDSA by an EC key", forge(t, `{"alg":"EdDSA","kid":"p256"}`, claims), WrongKey, v},
		{"right signature, other key named", forge(t, `{"alg":"EdDSA","kid":"ed"}`, claims), BadSignature, v},
		{"algorithm the login does not allow", mint(t, jose.RS256, keys()["rsa"], "rsa", goodClaims(), nil), BadAlgorithm, narrow},
		{"key embedded", mint(t, jose.ES256, own, "p256", goodClaims(), map[jose.HeaderKey]any{"jwk": ownJWK}), BadHeader, v},
		{"certificate embedded", mint(t, jose.ES256, own, "p256", goodClaims(), map[jose.HeaderKey]any{"x5c": []string{"AA=="}}), BadHeader, v},
		{"key by address", mint(t, jose.ES256, own, "p256", goodClaims(), map[jose.HeaderKey]any{"jku": "https://evil.example/jwks"}), BadSignature, v},
		{"certificate by address", mint(t, jose.ES256, own, "p256", goodClaims(), map[jose.HeaderKey]any{"x5u": "https://evil.example/c"}), BadSignature, v},
		{"a stranger's key", mint(t, jose.ES256, own, "p256", goodClaims(), nil), BadSignature, v},
		{"a stranger's key, unnamed", mint(t, jose.ES256, own, "", goodClaims(), nil), BadSignature, v},
		{"kid of a path", mint(t, jose.ES256, own, "../../dev/null", goodClaims(), nil), UnknownKey, v},
		{"critical extension", forge(t, `{"alg":"ES256","kid":"p256","crit":["exp"],"exp":1}`, claims), BadHeader, v},
		{"critical, empty", forge(t, `{"alg":"ES256","kid":"p256","crit":[]}`, claims), BadHeader, v},
		{"payload not encoded", forge(t, `{"alg":"ES256","kid":"p256","b64":false}`, claims), BadHeader, v},
		{"signature of nothing", unsigned(`{"alg":"ES256","kid":"p256"}`) + "." + enc(make([]byte, 64)), BadSignature, v},
		{"short signature", unsigned(`{"alg":"ES256","kid":"p256"}`) + "." + enc(make([]byte, 8)), BadSignature, v},
		{"address to read only, right key", mint(t, jose.ES256, keys()["p256"], "p256", goodClaims(), map[jose.HeaderKey]any{"jku": "https://x", "x5t": "AA"}), "", v},
		{"right key, unnamed", mint(t, jose.ES256, keys()["p256"], "", goodClaims(), nil), "", v},
	}
	for _, tt := range tests {
		for range 2 {
			_, err := tt.v.Verify(tt.token, epoch)
			if got := reason(err); got != tt.want || (err == nil) != (tt.want == "") {
				t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
			}
		}
	}
}

func TestAmbiguousKey(t *testing.T) {
	t.Parallel()
	v := verifier(t, Options{}, rule(jwks("p256", "p256b", "rsa"), "ES256", "RS256"))
	if _, err := v.Verify(mint(t, jose.ES256, keys()["p256"], "", goodClaims(), nil), epoch); reason(err) != AmbiguousKey {
		t.Error(err)
	}
	if _, err := v.Verify(mint(t, jose.RS256, keys()["rsa"], "", goodClaims(), nil), epoch); err != nil {
		t.Error(err)
	}
}

func TestLogins(t *testing.T) {
	t.Parallel()
	staff, partner, other := rule(jwks("p256"), "ES256"), rule(jwks("rsa"), "RS256"), rule(jwks("p256"), "ES256")
	partner.Name, partner.Audience = "partner", "partners"
	other.Name, other.Issuer = "other", "https://other.example"
	v := verifier(t, Options{}, staff, partner, other)
	es := func(c map[string]any) string { return mint(t, jose.ES256, keys()["p256"], "p256", with(c), nil) }
	rs := func(c map[string]any) string { return mint(t, jose.RS256, keys()["rsa"], "rsa", with(c), nil) }
	tests := []struct{ name, token, want, reason string }{
		{"staff", es(nil), "staff", ""},
		{"partner", rs(map[string]any{"aud": "partners"}), "partner", ""},
		{"other", es(map[string]any{"iss": "https://other.example"}), "other", ""},
		{"keys of one login for the other", es(map[string]any{"aud": "partners"}), "", BadAlgorithm},
		{"and back", rs(nil), "", BadAlgorithm},
		{"for both", es(map[string]any{"aud": []string{audience, "partners"}}), "", Ambiguous},
		{"audience of the other issuer", es(map[string]any{"iss": "https://other.example", "aud": "partners"}), "", UnknownAudience},
	}
	for _, tt := range tests {
		c, err := v.Verify(tt.token, epoch)
		if c.Name != tt.want || reason(err) != tt.reason || (c.Kind == merlon.Login) != (tt.want != "") {
			t.Errorf("%s: %+v, %v", tt.name, c, err)
		}
	}
}

func TestNew(t *testing.T) {
	t.Parallel()
	remote := func(url string, local bool) merlon.LoginRule {
		r := rule("", "ES256")
		r.KeySet, r.AllowLocal = url, local
		return r
	}
	secret := `{"keys":[{"kty":"oct","k":"AAAA","kid":"a"}]}`
	private := string(mustJSON(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: keys()["p256"], KeyID: "a"}}}))
	encryption := strings.Replace(jwks("p256"), `"sig"`, `"enc"`, 1)
	ops := strings.Replace(jwks("p256"), `"use":"sig"`, `"key_ops":["sign"]`, 1)
	noName := rule(jwks("p256"), "ES256")
	noName.Name = ""
	both := rule(jwks("p256"), "ES256")
	both.KeySet = "https://id.example/jwks"
	same := rule(jwks("p256"), "ES256")
	same.Name = "same"
	many := `{"keys":[` + strings.TrimSuffix(strings.Repeat(`{},`, 101), ",") + `]}`
	tests := []struct {
		name, want string
		logins     []merlon.LoginRule
	}{
		{"no logins", "", nil},
		{"none", `"none" is not one of`, []merlon.LoginRule{rule(jwks("p256"), "none")}},
		{"HMAC", `"HS256" is not one of`, []merlon.LoginRule{rule(jwks("p256"), "HS256")}},
		{"no algorithm", "no algorithm", []merlon.LoginRule{rule(jwks("p256"))}},
		{"no keys", "needs either", []merlon.LoginRule{rule("", "ES256")}},
		{"keys twice", "needs either", []merlon.LoginRule{both}},
		{"no name", "needs a name", []merlon.LoginRule{noName}},
		{"twice the same", `issuer and audience of login "staff"`, []merlon.LoginRule{rule(jwks("p256"), "ES256"), same}},
		{"keys not JSON", "not a JWK set", []merlon.LoginRule{rule("x", "ES256")}},
		{"keys without keys", `no "keys"`, []merlon.LoginRule{rule("{}", "ES256")}},
		{"keys twice in JSON", "duplicate", []merlon.LoginRule{rule(`{"keys":[],"keys":[]}`, "ES256")}},
		{"keys empty", "empty", []merlon.LoginRule{rule(`{"keys":[]}`, "ES256")}},
		{"shared secret", "no public key", []merlon.LoginRule{rule(secret, "ES256")}},
		{"private key", "can forge", []merlon.LoginRule{rule(private, "ES256")}},
		{"one bad among good", "1024 bits", []merlon.LoginRule{rule(jwks("p256", "weak"), "ES256")}},
		{"weak RSA", "1024 bits", []merlon.LoginRule{rule(jwks("weak"), "RS256")}},
		{"for encryption", "not for signatures", []merlon.LoginRule{rule(encryption, "ES256")}},
		{"not to verify", "key_ops", []merlon.LoginRule{rule(ops, "ES256")}},
		{"one for encryption among good", "", []merlon.LoginRule{rule(strings.Replace(jwks("p256", "rsa"), `"sig"`, `"enc"`, 1), "ES256")}},
		{"too many keys", "at most 100", []merlon.LoginRule{rule(many, "ES256")}},
		{"too large", "larger than", []merlon.LoginRule{rule(`{"keys":[],"x":"`+strings.Repeat("a", maxKeySet)+`"}`, "ES256")}},
		{"point off the curve", "key", []merlon.LoginRule{rule(`{"keys":[{"kty":"EC","crv":"P-256","x":"AQ","y":"AQ"}]}`, "ES256")}},
		{"http", "must be https", []merlon.LoginRule{remote("http://id.example/jwks", false)}},
		{"file", "must be an https URL", []merlon.LoginRule{remote("file:///etc/passwd", true)}},
		{"user", "without user", []merlon.LoginRule{remote("https://u:p@id.example/jwks", false)}},
		{"no host", "without user", []merlon.LoginRule{remote("https:///jwks", false)}},
		{"https", "", []merlon.LoginRule{remote("https://id.example/jwks", false)}},
		{"http to loopback", "", []merlon.LoginRule{remote("http://localhost/jwks", true)}},
	}
	for _, tt := range tests {
		v, err := New(tt.logins, Options{Now: time.Now})
		if err == nil {
			v.Close()
		}
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	if _, err := New([]merlon.LoginRule{remote("https://id.example/jwks", false)}, Options{}); err == nil {
		t.Error("a remote key set without a clock")
	}
}

func TestHitAllocatesNothing(t *testing.T) {
	v := verifier(t, Options{}, rule(jwks("p256"), "ES256"))
	token := mint(t, jose.ES256, keys()["p256"], "p256", goodClaims(), nil)
	bad := token[:len(token)-8] + "AAAAAAAA"
	if _, err := v.Verify(token, epoch); err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := v.Verify(token, epoch); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for a known token", n)
	}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := v.Verify(bad, epoch); err == nil {
			t.Error("a bad token passed")
		}
	}); n != 0 {
		t.Errorf("%v allocations for a known bad token", n)
	}
}

// A cached proof ends with its token, to the second, and keeps no view.
func TestCacheEnds(t *testing.T) {
	t.Parallel()
	v := verifier(t, Options{}, rule(jwks("p256"), "ES256"))
	token := mint(t, jose.ES256, keys()["p256"], "p256", with(map[string]any{"nbf": epoch.Unix()}), nil)
	buf := []byte(token)
	if _, err := v.Verify(string(buf), epoch); err != nil {
		t.Fatal(err)
	}
	end := epoch.Add(time.Hour + Leeway)
	if _, err := v.Verify(token, end.Add(-time.Second)); err != nil {
		t.Error(err)
	}
	if _, err := v.Verify(token, end); reason(err) != Expired {
		t.Error(err)
	}
	if _, err := v.Verify(token, epoch.Add(-time.Minute)); reason(err) != NotYetValid {
		t.Error("a clock set back:", err)
	}
	if _, err := v.Verify(token, epoch); err != nil {
		t.Error("what was too early is remembered as bad:", err)
	}
}

// Floods of good or bad tokens fill a bounded cache, and bad ones push no good
// one out.
func TestCacheIsBounded(t *testing.T) {
	t.Parallel()
	v := verifier(t, Options{CacheSize: 64}, rule(jwks("p256"), "ES256"))
	token := mint(t, jose.ES256, keys()["p256"], "p256", goodClaims(), nil)
	if _, err := v.Verify(token, epoch); err != nil {
		t.Fatal(err)
	}
	for i := range 5000 {
		v.Verify(fmt.Sprintf("%s%d", token, i), epoch)
	}
	if n := v.bad.Len(); n == 0 || n > badEntries {
		t.Errorf("%d refusals are kept", n)
	}
	if _, ok := v.good.Get(token); !ok {
		t.Error("bad tokens pushed a good one out")
	}
	for i := range 300 {
		if _, err := v.Verify(mint(t, jose.ES256, keys()["p256"], "p256", with(map[string]any{"i": i}), nil), epoch); err != nil {
			t.Fatal(err)
		}
	}
	if n := v.good.Len(); n > 64 {
		t.Errorf("%d proofs are kept", n)
	}
}

// No error may carry bytes of the token: errors are recorded and logged.
func TestErrorsKeepSecrets(t *testing.T) {
	t.Parallel()
	v := verifier(t, Options{}, rule(jwks("p256"), "ES256"))
	const secret = "hunter2hunter2"
	for _, token := range []string{
		secret, secret + "." + secret + "." + secret,
		forge(t, `{"alg":"`+secret+`"}`, "{}"), forge(t, `{"alg":"ES256","kid":"`+secret+`"}`, string(mustJSON(goodClaims()))),
		forge(t, `{"alg":"ES256","typ":"`+secret+`"}`, `{"iss":"`+secret+`"}`),
		forge(t, `{"alg":"ES256"}`, `{"`+secret+`":1,"`+secret+`":2}`),
		forge(t, `{"alg":"ES256"}`, secret),
		mint(t, jose.ES256, keys()["p256"], "p256", with(map[string]any{"exp": secret}), nil),
	} {
		if _, err := v.Verify(token, epoch); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%v", err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	v := verifier(f, Options{}, rule(jwks("p256"), "ES256"))
	good := mint(f, jose.ES256, keys()["p256"], "p256", goodClaims(), nil)
	f.Add(good)
	f.Add(good + "=")
	f.Add("..")
	f.Add(`{"payload":"","signatures":[]}`)
	f.Add(forge(f, `{"alg":"ES256","kid":"p256","crit":["x"]}`, "{}"))
	f.Add(forge(f, `{"alg":"none"}`, `{"exp":1e3,"aud":["a",{}]}`))
	f.Fuzz(func(t *testing.T, token string) {
		c, err := v.Verify(token, epoch)
		if err == nil {
			// The fuzzer has no key: only what was signed passes, byte for byte.
			if token != good || c.Subject != "ann" || c.Kind != merlon.Login {
				t.Errorf("%q passed as %+v", token, c)
			}
			return
		}
		if reason(err) == "" || c.Kind != merlon.Nobody {
			t.Errorf("%q: %v, %+v", token, err, c)
		}
	})
}

func FuzzKeys(f *testing.F) {
	f.Add([]byte(jwks("p256", "rsa", "ed")))
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AA"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		set, _, err := parseKeys(b)
		if err != nil {
			return
		}
		for i := range set.keys {
			for _, alg := range []jose.SignatureAlgorithm{"none", "HS256", ""} {
				if set.keys[i].fits(alg) {
					t.Errorf("a key fits %q", alg)
				}
			}
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	for _, bb := range []struct {
		alg jose.SignatureAlgorithm
		key string
	}{{jose.ES256, "p256"}, {jose.RS256, "rsa"}, {jose.EdDSA, "ed"}} {
		v := verifier(b, Options{}, rule(jwks(bb.key), string(bb.alg)))
		token := mint(b, bb.alg, keys()[bb.key], bb.key, goodClaims(), nil)
		b.Run(string(bb.alg)+"/first", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.check(token, epoch.Unix()); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(string(bb.alg)+"/again", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Verify(token, epoch); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
