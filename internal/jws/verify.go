package jws

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	_ "crypto/sha256" // the hashes of the algorithms
	_ "crypto/sha512"
	"errors"
	"fmt"
	"math/big"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

const (
	minRSA = 2048 // bits (RFC 7518 3.3)
	maxRSA = 8192 // verifying with a larger one is an attack on processor time
)

// Verify checks the signature of a compact JWS by the one algorithm and key
// that whoever verifies has chosen: the token has no say in it.
func Verify(token string, alg jose.SignatureAlgorithm, public crypto.PublicKey) error {
	if !Fits(alg, public) {
		return errors.New("the key is not one for the algorithm")
	}
	parsed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{alg})
	if err != nil {
		return errors.New("not a compact JWS of the algorithm") // the cause may quote it
	}
	if _, err := parsed.Verify(public); err != nil {
		return errors.New("the signature is not good")
	}
	if public, ok := public.(*rsa.PublicKey); ok && alg[0] == 'P' {
		return salted(token, parsed.Signatures[0].Signature, alg, public)
	}
	return nil
}

// salted checks that the salt of an RSASSA-PSS signature is as long as the hash
// (RFC 7518 3.5). go-jose takes one of any length: a signature that the key
// makes for another protocol would do as ours.
func salted(token string, sig []byte, alg jose.SignatureAlgorithm, public *rsa.PublicKey) error {
	hash := map[jose.SignatureAlgorithm]crypto.Hash{jose.PS256: crypto.SHA256, jose.PS384: crypto.SHA384, jose.PS512: crypto.SHA512}[alg]
	h := hash.New()
	h.Write([]byte(token[:strings.LastIndexByte(token, '.')]))
	if rsa.VerifyPSS(public, hash, h.Sum(nil), sig, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) != nil {
		return errors.New("the signature's salt is not as long as its hash")
	}
	return nil
}

// Fits reports whether a key is one for the algorithm, by its type and curve
// (RFC 7518 3.1, RFC 8037 3.1). None is for "none", and none for HMAC: a public
// key would do as the secret (RFC 8725 2.1).
func Fits(alg jose.SignatureAlgorithm, public crypto.PublicKey) bool {
	switch public := public.(type) {
	case *rsa.PublicKey:
		switch alg {
		case jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512:
			return true
		}
	case *ecdsa.PublicKey:
		switch public.Curve { // RFC 7518 3.4: a curve for each algorithm
		case elliptic.P256():
			return alg == jose.ES256
		case elliptic.P384():
			return alg == jose.ES384
		case elliptic.P521():
			return alg == jose.ES512
		}
	case ed25519.PublicKey:
		return alg == jose.EdDSA
	}
	return false
}

// CheckKey refuses public keys that somebody else may have the private key of,
// or that are too costly to verify by, and those of no kind that signs tokens.
func CheckKey(public crypto.PublicKey) error {
	switch public := public.(type) {
	case *rsa.PublicKey:
		if bits := public.N.BitLen(); bits < minRSA || bits > maxRSA {
			return fmt.Errorf("an RSA key of %d bits, want %d to %d", bits, minRSA, maxRSA)
		}
		if public.E < 3 || public.E%2 == 0 {
			return errors.New("an RSA key with a bad exponent")
		}
		if roca(public.N) {
			return errors.New("an RSA key that can be factored (CVE-2017-15361)")
		}
	case *ecdsa.PublicKey:
		switch public.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
		default:
			return errors.New("a key of a curve that signs no tokens")
		}
	case ed25519.PublicKey:
	default:
		return errors.New("a key of a kind that signs no tokens")
	}
	return nil
}

// roca reports whether a modulus was made by the broken library of CVE-2017-15361
// ("The Return of Coppersmith's Attack", CCS 2017). Its primes are powers
// of 65537 modulo many small primes, and so is their product; of other moduli
// fewer than one in 2^27 is, for the primes here.
func roca(n *big.Int) bool {
	for _, p := range [...]int64{11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157} {
		rest := new(big.Int).Mod(n, big.NewInt(p)).Int64()
		power := int64(1)
		for power != rest {
			if power = power * 65537 % p; power == 1 { // all of them, and rest was not there
				return false
			}
		}
	}
	return true
}
