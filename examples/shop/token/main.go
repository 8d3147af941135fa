// Command token prints a token of the example's login, as an identity provider
// would issue it:
//
//	curl -H "Authorization: Bearer $(go run ./examples/shop/token staff support)" ...
//
// Its signing key is made from a published sentence, so that nobody can take
// it for a secret. It is for this example only: whoever trusts this key trusts
// everyone.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	issuer   = "https://id.shop.example"
	audience = "shop"
	keyID    = "example-only"
	sentence = "merlon examples/shop: this signing key is public, for the example only"
)

func main() {
	if err := run(os.Args[1:], os.Stdout, time.Now()); err != nil {
		fmt.Fprintln(os.Stderr, "token:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer, now time.Time) error {
	flags := flag.NewFlagSet("token", flag.ContinueOnError)
	subject := flags.String("subject", "sam@shop.example", "whose token it is")
	aud := flags.String("audience", audience, "whom it is for")
	expired := flags.Bool("expired", false, "make one that has expired")
	jwks := flags.Bool("jwks", false, "print the public key set instead")
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: token [flags] staff ROLE")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	key, err := signingKey()
	if err != nil {
		return err
	}
	if *jwks {
		return printKeys(out, key)
	}
	if flags.NArg() != 2 || flags.Arg(0) != "staff" {
		flags.Usage()
		return fmt.Errorf("expect the login %q and a role, such as support", "staff")
	}
	expiry := now.Add(time.Hour)
	if *expired {
		expiry = now.Add(-time.Hour)
	}
	token, err := mint(key, map[string]any{
		"iss": issuer, "aud": *aud, "sub": *subject, "role": flags.Arg(1),
		"iat": expiry.Add(-time.Hour).Unix(), "exp": expiry.Unix(),
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, token)
	return err
}

func signingKey() (*ecdsa.PrivateKey, error) {
	sum := sha256.Sum256([]byte(sentence))
	return ecdsa.ParseRawPrivateKey(elliptic.P256(), sum[:])
}

func mint(key *ecdsa.PrivateKey, claims map[string]any) (string, error) {
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	opts := (&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", keyID)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, opts)
	if err != nil {
		return "", err
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		return "", err
	}
	return signed.CompactSerialize()
}

// printKeys writes what examples/shop/keys/staff.jwks.json holds.
func printKeys(out io.Writer, key *ecdsa.PrivateKey) error {
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: keyID, Algorithm: "ES256", Use: "sig"}}}
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(set)
}
