package jws

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"math/big"
	"os"
	"testing"

	"merlon/internal/wycheproof"
)

// answers is a signer that gives what it was told to: a key service may be
// broken, or in an attacker's hand.
type answers struct {
	public *ecdsa.PublicKey
	sig    []byte
}

func (a answers) Public() crypto.PublicKey                                  { return a.public }
func (a answers) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return a.sig, nil }

// TestWycheproofSigner holds our reading of what a crypto.Signer gives, which
// is ASN.1, to Wycheproof's ECDSA vectors: what is valid becomes a valid
// signature of JWS, and what is not is an error, or no valid signature.
func TestWycheproofSigner(t *testing.T) {
	t.Parallel()
	valid := 0
	for _, g := range wycheproof.Read(t, os.Getenv(wycheproof.Variable), "ecdsa_secp256r1_sha256_test.json") {
		point := unhex(t, g.PublicKey.Uncompressed)
		public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
		if err != nil {
			t.Fatal(err)
		}
		for _, vector := range g.Tests {
			msg := unhex(t, vector.Msg)
			sig, err := es256(answers{public, unhex(t, vector.Sig)}, msg)
			hash := sha256.Sum256(msg)
			good := err == nil && len(sig) == 64 &&
				ecdsa.Verify(public, hash[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:]))
			if good != (vector.Result == "valid") {
				t.Errorf("%d (%s): %s, and %v", vector.ID, vector.Comment, vector.Result, err)
			}
			if good {
				valid++
			}
		}
	}
	if valid < 100 {
		t.Errorf("only %d valid vectors", valid)
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(b)
}
