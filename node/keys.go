package node

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
)

// signatureOf is how a key of this kind signs a challenge.
func signatureOf(public crypto.PublicKey) (x509.SignatureAlgorithm, crypto.SignerOpts, error) {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		return x509.ECDSAWithSHA256, crypto.SHA256, nil
	case ed25519.PublicKey:
		return x509.PureEd25519, crypto.Hash(0), nil
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > 8192 {
			return 0, nil, errors.New("a key of RSA has 2048 to 8192 bits")
		}
		return x509.SHA256WithRSAPSS, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}, nil
	}
	return 0, nil, errors.New("the certificate's key is of a kind that cannot be challenged")
}

// sign signs a challenge.
func sign(key crypto.Signer, message []byte) ([]byte, error) {
	_, opts, err := signatureOf(key.Public())
	if err != nil {
		return nil, err
	}
	if hash := opts.HashFunc(); hash != 0 {
		h := hash.New()
		h.Write(message)
		message = h.Sum(nil)
	}
	return key.Sign(rand.Reader, message, opts)
}
