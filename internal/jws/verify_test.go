package jws

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"math/big"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// A signature with a salt of another length is one of another protocol.
func TestSaltOfPSS(t *testing.T) {
	t.Parallel()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	input := b64([]byte(`{"alg":"PS256"}`)) + "." + b64([]byte(`{}`))
	hash := sha256.Sum256([]byte(input))
	for _, salt := range []int{0, 20, 31, 32, 33, 64} {
		sig, err := rsa.SignPSS(rand.Reader, key, crypto.SHA256, hash[:], &rsa.PSSOptions{SaltLength: salt, Hash: crypto.SHA256})
		if salt == 0 { // which is PSSSaltLengthAuto when signing: as long as it can be
			sig, err = rsa.SignPSS(rand.Reader, key, crypto.SHA256, hash[:], nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := Verify(input+"."+b64(sig), jose.PS256, key.Public()); (err == nil) != (salt == 32) {
			t.Errorf("salt of %d bytes: %v", salt, err)
		}
	}
}

func TestFits(t *testing.T) {
	t.Parallel()
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	curve := func(c elliptic.Curve) crypto.PublicKey {
		key, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key.Public()
	}
	keys := map[string]crypto.PublicKey{"rsa": r.Public(), "ed": ed.Public(), "256": curve(elliptic.P256()), "384": curve(elliptic.P384()),
		"521": curve(elliptic.P521()), "224": curve(elliptic.P224()), "secret": []byte("secret"), "nothing": nil}
	for alg, want := range map[jose.SignatureAlgorithm]string{"RS256": "rsa", "RS384": "rsa", "RS512": "rsa", "PS256": "rsa", "PS384": "rsa", "PS512": "rsa",
		"ES256": "256", "ES384": "384", "ES512": "521", "EdDSA": "ed", "HS256": "", "none": "", "": "", "RS1": "", "P": ""} {
		for name, key := range keys {
			if Fits(alg, key) != (name == want) {
				t.Errorf("%s, %s", alg, name)
			}
		}
	}
	for name, key := range keys {
		if err := CheckKey(key); (err == nil) != (name != "224" && name != "secret" && name != "nothing") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWeakRSA(t *testing.T) {
	t.Parallel()
	good, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	// As the broken library made them: a power of 65537 modulo the product of
	// small primes, and that times anything on top.
	product := big.NewInt(1)
	for _, p := range []int64{2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109,
		113, 127, 131, 137, 139, 149, 151, 157, 163, 167} {
		product.Mul(product, big.NewInt(p))
	}
	n := new(big.Int).Exp(big.NewInt(65537), big.NewInt(123456789), product)
	n.Add(n, new(big.Int).Mul(product, new(big.Int).Lsh(big.NewInt(12345), 1820)))
	for name, tt := range map[string]struct {
		key rsa.PublicKey
		ok  bool
	}{
		"good":         {good.PublicKey, true},
		"exponent 1":   {rsa.PublicKey{N: good.N, E: 1}, false},
		"even":         {rsa.PublicKey{N: good.N, E: 4}, false},
		"too small":    {rsa.PublicKey{N: new(big.Int).Rsh(good.N, 1), E: 65537}, false},
		"too large":    {rsa.PublicKey{N: new(big.Int).Lsh(good.N, 6145), E: 65537}, false},
		"can be found": {rsa.PublicKey{N: n, E: 65537}, false},
	} {
		if err := CheckKey(&tt.key); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	if bits := n.BitLen(); bits < minRSA || bits > maxRSA || !roca(n) || roca(new(big.Int).Add(n, big.NewInt(2))) {
		t.Errorf("the key that can be found has %d bits, or is not found", bits)
	}
}
