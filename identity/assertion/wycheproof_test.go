package assertion

import (
	"crypto/ecdsa"
	"os"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"merlon/internal/wycheproof"
)

// TestWycheproof shows Wycheproof's JOSE vectors to who believes assertions. None
// is one: the type is absent. And none of their signatures does as that of an
// assertion that is good but for its signature, by the same key. What checks
// signatures is held to all the vectors in package jwt.
func TestWycheproof(t *testing.T) {
	t.Parallel()
	signers := 0
	for _, file := range []string{"json_web_signature_test.json", "json_web_key_test.json", "json_web_crypto_test.json"} {
		for _, g := range wycheproof.Read(t, os.Getenv(wycheproof.Variable), file) {
			var private jose.JSONWebKey
			if err := private.UnmarshalJSON(g.Private); err != nil {
				continue // a set of keys: their vectors are about which of them counts
			}
			public := any(nil)
			if g.Public != nil {
				public = private.Public().Key
			}
			var good string
			if key, ok := private.Key.(*ecdsa.PrivateKey); ok && private.Algorithm == "ES256" {
				s, err := signer(key).Token(login(), orders, epoch)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := Verify(s, public, gateway, orders, epoch); err != nil {
					t.Fatal(err)
				}
				good = s[:strings.LastIndexByte(s, '.')+1]
				signers++
			}
			for _, vector := range g.Tests {
				token := vector.Token()
				if _, err := Verify(token, public, gateway, orders, epoch); err == nil {
					t.Errorf("%s %d: accepted", file, vector.ID)
				}
				if i := strings.LastIndexByte(token, '.'); good != "" {
					if _, err := Verify(good+token[i+1:], public, gateway, orders, epoch); err == nil {
						t.Errorf("%s %d: its signature does for an assertion", file, vector.ID)
					}
				}
			}
		}
	}
	if signers == 0 {
		t.Error("no group has a key that signs assertions")
	}
}
