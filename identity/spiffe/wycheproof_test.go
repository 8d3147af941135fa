package spiffe

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"merlon/internal/jws"
	"merlon/internal/wycheproof"
)

// skips are the valid vectors that are refused, by what the error says.
var skips = []struct{ says, reason string }{
	{"holds no key for SVIDs", "HMAC and encryption: a bundle has public keys alone (SPIFFE Trust Domain and Bundle 4.2)"},
	{"not base64url", "a character in it that is none of base64url; HMAC"},
	{"not three parts", "JWE: never read"},
	{`it is not a key for "ES521"`, `the vector's key says "ES521", which is no algorithm`},
	{`the token's key is for "PS256" alone`, `the vector's key says "PS256" and its token "PS384" (RFC 7517 4.4)`},
}

// TestWycheproof holds what a JWT-SVID is verified by, but for its claims, to
// Wycheproof's JOSE vectors, with their keys in a bundle: nothing invalid is
// accepted, and everything valid is, but for what skips lists.
func TestWycheproof(t *testing.T) {
	t.Parallel()
	accepted, used := 0, make([]int, len(skips))
	for _, file := range []string{"json_web_signature_test.json", "json_web_key_test.json", "json_web_crypto_test.json", "json_web_encryption_test.json"} {
		for _, g := range wycheproof.Read(t, os.Getenv(wycheproof.Variable), file) {
			for _, vector := range g.Tests {
				err := wycheproofVerify(t, &g, vector.Token())
				where := fmt.Sprintf("%s %d (%s, %s)", file, vector.ID, g.Comment, vector.Comment)
				switch {
				case err == nil && vector.Result == "valid":
					accepted++
				case err == nil:
					t.Errorf("%s: %s, and accepted", where, vector.Result)
				case vector.Result == "valid":
					found := false
					for i, s := range skips {
						if found = strings.Contains(err.Error(), s.says); found {
							used[i]++
							break
						}
					}
					if !found {
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
}

// wycheproofVerify does what VerifyJWT does, but for the payload, which is none
// of a token in any vector; and VerifyJWT has to refuse it for that.
func wycheproofVerify(t *testing.T, g *wycheproof.Group, token string) error {
	framed := token
	if parts := strings.Split(token, "."); len(parts) == 3 {
		framed = parts[0] + ".e30." + parts[2]
	}
	parts, err := jws.Split(framed, 8)
	if err != nil {
		return err
	}
	var doc document
	for _, raw := range g.Keys() {
		var key map[string]any
		if err := json.Unmarshal(raw, &key); err != nil {
			t.Fatal(err)
		}
		if key["use"] == nil || key["use"] == "sig" { // another use is none of a bundle's
			key["use"] = useJWT
		}
		raw, err := json.Marshal(key)
		if err != nil {
			t.Fatal(err)
		}
		doc.Keys = append(doc.Keys, raw)
	}
	text, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	b, err := ParseBundle("shop.example", text)
	if err != nil {
		return err
	}
	if _, err := VerifyJWT(token, "db", "shop.example", b.Key, time.Unix(1e9, 0)); err == nil {
		t.Errorf("%s is no JWT-SVID, and accepted", token)
	}
	public, alg, err := jwtKey(parts.Header, b.Key)
	if err != nil {
		return err
	}
	return jws.Verify(token, alg, public)
}
