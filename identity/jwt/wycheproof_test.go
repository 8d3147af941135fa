package jwt

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"merlon"
	"merlon/internal/jws"
	"merlon/internal/wycheproof"
)

var wycheproofFiles = []string{"json_web_signature_test.json", "json_web_key_test.json", "json_web_crypto_test.json", "json_web_encryption_test.json"}

// skips are the valid vectors that are refused, by comment of their group and
// what the error says.
var skips = []struct{ group, says, reason string }{
	{"", BadAlgorithm, "HMAC: never enabled (RFC 8725 2.1)"},
	{"base64", "header: not base64url", "the same, and a character that is none of base64url"},
	{"", "not three parts", "JWE: never read"},
	{"rfc7520", "it is not for signatures", `the vector's key says "ES521", which is no algorithm; RFC 7520 4.3 has none there`},
	{"rfc7520WithKeyOps", "it is not for signatures", `the same`},
	{"rfc7520", "wrong_key_type", `the vector's key says "PS256" and its token "PS384" (RFC 7517 4.4)`},
	{"rfc7520WithKeyOps", "wrong_key_type", `the same`},
}

// TestWycheproof holds what a token is verified by, but for its claims, to
// Wycheproof's JOSE vectors: nothing invalid is accepted, and everything valid
// is, but for what skips lists.
func TestWycheproof(t *testing.T) {
	t.Parallel()
	accepted, used := 0, make([]int, len(skips))
	for _, file := range wycheproofFiles {
		for _, g := range wycheproof.Read(t, os.Getenv(wycheproof.Variable), file) {
			for _, vector := range g.Tests {
				err := wycheproofVerify(&g, vector.Token())
				where := fmt.Sprintf("%s %d (%s, %s)", file, vector.ID, g.Comment, vector.Comment)
				switch {
				case err == nil && vector.Result == "valid":
					accepted++
				case err == nil:
					t.Errorf("%s: %s, and accepted", where, vector.Result)
				case vector.Result == "valid":
					if !wycheproofSkip(used, g.Comment, err) {
						t.Errorf("%s: valid, and refused: %v", where, err)
					}
				}
			}
		}
	}
	if accepted < 30 {
		t.Errorf("only %d valid vectors were accepted", accepted)
	}
	for i, n := range used {
		if n == 0 {
			t.Errorf("no vector needs the skip %+v", skips[i])
		}
	}
	t.Logf("%d valid vectors accepted; of each skip: %v", accepted, used)
}

func wycheproofSkip(used []int, group string, err error) bool {
	for i, s := range skips {
		if (s.group == "" || s.group == group) && strings.Contains(err.Error(), s.says) {
			used[i]++
			return true
		}
	}
	return false
}

// wycheproofVerify does what check does, but for the payload, which is none of
// a token in any vector.
func wycheproofVerify(g *wycheproof.Group, token string) error {
	framed := token
	if parts := strings.Split(token, "."); len(parts) == 3 {
		framed = parts[0] + ".e30." + parts[2]
	}
	parts, err := jws.Split(framed, maxDepth)
	if err != nil {
		return err
	}
	alg, kid, bad := header(parts.Header)
	if bad != nil {
		return bad
	}
	document, err := json.Marshal(map[string]any{"keys": g.Keys()})
	if err != nil {
		return err
	}
	set, _, err := parseKeys(document)
	if err != nil {
		return err
	}
	if bad := verifyWith(set, token, alg, kid); bad != nil {
		return bad
	}
	return nil
}

// TestWycheproofKeys signs a token with each private key of the vectors, and
// takes the whole way: so it is known that what refuses the vectors is not
// something else. No vector takes it.
func TestWycheproofKeys(t *testing.T) {
	t.Parallel()
	good := map[string]bool{}
	for _, file := range wycheproofFiles {
		for _, g := range wycheproof.Read(t, os.Getenv(wycheproof.Variable), file) {
			document, err := json.Marshal(map[string]any{"keys": g.Keys()})
			if err != nil {
				t.Fatal(err)
			}
			v, err := New([]merlon.LoginRule{{Name: "staff", Issuer: issuer, Audience: audience, Keys: string(document), Algorithms: algorithmNames()}}, Options{})
			if err != nil {
				continue // the keys are refused, as TestWycheproof wants it or not
			}
			for _, vector := range g.Tests {
				if _, err := v.Verify(vector.Token(), epoch); err == nil {
					t.Errorf("%s %d is no token, and accepted", file, vector.ID)
				}
			}
			var private jose.JSONWebKey
			if err := private.UnmarshalJSON(g.Private); err != nil {
				continue // a set
			}
			token := mint(t, jose.SignatureAlgorithm(private.Algorithm), private.Key, private.KeyID, goodClaims(), nil)
			if _, err := v.Verify(token, epoch); err != nil {
				t.Errorf("%s, %s: %v", file, g.Comment, err)
			}
			good[private.Algorithm] = true
			for _, vector := range g.Tests {
				if sig := vector.Token()[strings.LastIndexByte(vector.Token(), '.')+1:]; vector.Result != "valid" {
					if _, err := v.Verify(token[:strings.LastIndexByte(token, '.')+1]+sig, epoch); err == nil {
						t.Errorf("%s %d: its signature is one of another token", file, vector.ID)
					}
				}
			}
		}
	}
	for _, alg := range []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256"} {
		if !good[alg] {
			t.Errorf("no group has a key for %s", alg)
		}
	}
}
