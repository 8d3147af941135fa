// Package wycheproof reads the test vectors of Project Wycheproof, attacks on
// implementations of cryptography that somebody once fell for. fetch.sh gets
// them.
package wycheproof

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// Variable is the environment variable that says where the vectors are.
const Variable = "MERLON_WYCHEPROOF"

// Group is vectors that share a key.
type Group struct {
	Comment   string
	Public    json.RawMessage // of JOSE: a JWK or a JWK set; absent where the key is a secret
	Private   json.RawMessage
	PublicKey struct{ Uncompressed string } // of ECDSA, hexadecimal
	Tests     []Test
}

// Test is one vector.
type Test struct {
	ID       int `json:"tcId"`
	Comment  string
	JWS, JWE text
	Msg, Sig string // hexadecimal
	Result   string // valid, invalid, or acceptable
}

// Token is the JWS or JWE.
func (t *Test) Token() string { return string(t.JWS + t.JWE) }

// text is a string, or the source of the object that stands in its place where
// a vector has the JSON serialization (RFC 7515 7.2).
type text string

func (t *text) UnmarshalJSON(b []byte) error {
	if json.Unmarshal(b, (*string)(t)) != nil {
		*t = text(b)
	}
	return nil
}

// Read reads the groups of a file in dir. If dir is "" the test is skipped.
func Read(t testing.TB, dir, file string) []Group {
	t.Helper()
	if dir == "" {
		t.Skipf("SKIPPED: %s is not set; see internal/wycheproof/fetch.sh", Variable)
	}
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		NumberOfTests int
		TestGroups    []Group
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, g := range doc.TestGroups {
		n += len(g.Tests)
	}
	if n != doc.NumberOfTests || n == 0 {
		t.Fatalf("%s says %d vectors and has %d", file, doc.NumberOfTests, n)
	}
	return doc.TestGroups
}

// Keys is the group's public JWK set, or its secrets where there is no public
// part.
func (g *Group) Keys() []json.RawMessage {
	raw := g.Public
	if raw == nil {
		raw = g.Private
	}
	var set struct{ Keys []json.RawMessage }
	if json.Unmarshal(raw, &set) == nil && set.Keys != nil {
		return set.Keys
	}
	return []json.RawMessage{raw}
}
