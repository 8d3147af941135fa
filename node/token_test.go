package node

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"merlon"
)

func TestParseJoinToken(t *testing.T) {
	t.Parallel()
	pin := base64.RawURLEncoding.EncodeToString(make([]byte, sha256.Size))
	secret := newSecret()
	good := "merlon1:test.example:n1:" + secret + ":" + pin
	tok, err := ParseJoinToken(" " + good + "\n")
	if err != nil || tok.Node != "n1" || tok.TrustDomain != "test.example" || tok.secret != secret || tok.String() != good {
		t.Errorf("%+v %v", tok, err)
	}
	for _, s := range []string{
		"", good + ":", good[1:], "merlon2" + good[7:], strings.Replace(good, "n1", "", 1), strings.Replace(good, "test.example", "", 1),
		strings.Replace(good, secret, secret[1:], 1), good[:len(good)-1], good + "A", good[:len(good)-1] + "=", good[:len(good)-1] + "B",
		good + strings.Repeat(" ", maxToken), strings.Replace(good, ":", "\n", 1),
	} {
		if _, err := ParseJoinToken(s); err == nil {
			t.Errorf("%q is taken", s)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("%v quotes the secret", err)
		}
	}
}

func FuzzParseJoinToken(f *testing.F) {
	f.Add("merlon1:test.example:n1:" + newSecret() + ":" + strings.Repeat("A", 43))
	f.Add("merlon1::::")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseJoinToken(s)
		if err != nil {
			return
		}
		if tok.String() != strings.TrimSpace(s) { // one token, one text
			t.Errorf("%q is read as %q", s, tok)
		}
	})
}

// FuzzReadCSR: what is taken is for a P-256 key, names nothing, and is signed by
// that key.
func FuzzReadCSR(f *testing.F) {
	key := newKey(f)
	f.Add(csrOf(f, key, &x509.CertificateRequest{}))
	f.Add(csrOf(f, key, &x509.CertificateRequest{DNSNames: []string{"d"}}))
	f.Fuzz(func(t *testing.T, der []byte) {
		got, err := readCSR(der)
		if err != nil {
			return
		}
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil || csr.CheckSignature() != nil || len(csr.DNSNames)+len(csr.URIs)+len(csr.IPAddresses)+len(csr.EmailAddresses) > 0 || !got.Equal(csr.PublicKey) {
			t.Errorf("%x is taken: %v", der, err)
		}
	})
}

// FuzzMessage: whatever an end sends, the other reads it or says why not, and
// reads back what it writes.
func FuzzMessage(f *testing.F) {
	f.Add([]byte(`{"join":{"node":"n1","secret":"x"},"csr":"AA=="}`))
	f.Add([]byte(`{"services":[{"name":"c","pos":"merlon.yaml:1:2","workload":{"pos":"a:1","unixUser":"0"}}],"bundle":"e30=","federated":{"p":""}}`))
	f.Add([]byte(`{} {}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, into := range []any{new(hello), new(View), new(signRequest), new(tokenRequest), new(admitted), new(challenge), new(Kept)} {
			if err := (codec{}).Unmarshal(b, into); err != nil {
				continue
			}
			text, err := codec{}.Marshal(into)
			if err != nil {
				t.Errorf("%s cannot be written again: %v", b, err)
			} else if err := (codec{}).Unmarshal(text, into); err != nil {
				t.Errorf("%s cannot be read again: %v", text, err)
			}
		}
	})
}

// TestLedger: what is remembered of nodes survives, and a file that is not as it
// was left is not taken for an empty one.
func TestLedger(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "nodes.json")
	open := func() *ledger {
		t.Helper()
		l, err := openLedger(path)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	now := time.Unix(1_700_000_000, 5e8)
	nodes := []merlon.Node{{Name: "n1", JoinToken: true}}
	l := open()
	if err := l.set(nodes, now); err != nil {
		t.Fatal(err)
	}
	l = open()
	nodes[0].Pos = merlon.Pos{File: "moved.yaml"}
	if err := l.set(nodes, now.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if since, ok := l.since(&nodes[0]); !ok || since.Unix() != now.Unix()+1 {
		t.Errorf("moved in its file: %v %v", since, ok)
	}
	before := nodes[0]
	nodes = []merlon.Node{{Name: "n1", Kubernetes: "a/b"}}
	if err := l.set(nodes, now.Add(2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, ok := l.since(&before); ok {
		t.Error("a proof that does not count any more")
	}
	if since, _ := l.since(&nodes[0]); since.Unix() != now.Add(2*time.Hour).Unix()+1 {
		t.Errorf("proves itself otherwise: %v", since)
	}
	for i := range 3 { // in one second, and with the clock set back
		if err := errors.Join(l.set(nil, now), l.set(nodes, now)); err != nil {
			t.Fatal(err)
		}
		if since, _ := open().since(&nodes[0]); since.Unix() != now.Add(2*time.Hour).Unix()+2+int64(i) {
			t.Errorf("there again: %v", since)
		}
	}
	for _, text := range []string{"", "{", "[]", "{}", `{"nodes":{"n1":null}}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := openLedger(path); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
	text, err := json.Marshal(book{Nodes: map[string]*entry{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := openLedger(path); err == nil {
		t.Error("a file that others can read is taken")
	}
}
