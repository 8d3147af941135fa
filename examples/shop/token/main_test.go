package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// The key set that the intent names is the one that belongs to the key.
func TestKeySetMatches(t *testing.T) {
	var out bytes.Buffer
	if err := run([]string{"-jwks"}, &out, time.Unix(0, 0)); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("../keys/staff.jwks.json")
	if err != nil {
		t.Fatal(err)
	}
	if out.String() != string(want) {
		t.Errorf("keys/staff.jwks.json is not the example's key set; want:\n%s", out.String())
	}
}

func TestToken(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	var out bytes.Buffer
	if err := run([]string{"staff", "support"}, &out, now); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile("../keys/staff.jwks.json")
	if err != nil {
		t.Fatal(err)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(raw, &set); err != nil {
		t.Fatal(err)
	}
	signed, err := jose.ParseSignedCompact(strings.TrimSpace(out.String()), []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	payload, err := signed.Verify(set)
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	if claims["role"] != "support" || claims["aud"] != "shop" || claims["exp"] != float64(now.Unix()+3600) {
		t.Errorf("claims are %v", claims)
	}
	if err := run([]string{"partners", "x"}, &out, now); err == nil {
		t.Error("a login that does not exist got a token")
	}
}
