package spiffe_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"merlon/identity/spiffe"
)

const ecKey = `"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"`

func root(t testing.TB, a *ca) string {
	t.Helper()
	raw, err := jose.JSONWebKey{Key: a.cert.PublicKey, Certificates: []*x509.Certificate{a.cert}, Use: "x509-svid"}.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestParseBundle(t *testing.T) {
	t.Parallel()
	a := newCA(t)
	good := root(t, a)
	leaf := a.leaf(t, nil, web).Leaf
	notCA := fmt.Sprintf(`{%s,"use":"x509-svid","x5c":[%q]}`, ecKey, base64.StdEncoding.EncodeToString(leaf.Raw))
	two := strings.Replace(good, `"x5c":[`, `"x5c":["`+base64.StdEncoding.EncodeToString(a.cert.Raw)+`",`, 1)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	short, err := jose.JSONWebKey{Key: &weak.PublicKey, KeyID: "1", Use: "jwt-svid"}.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	private, err := jose.JSONWebKey{Key: newKey(t), KeyID: "1", Use: "jwt-svid"}.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	jwt := `{` + ecKey + `,"use":"jwt-svid","kid":"1"}`
	for name, tt := range map[string]struct {
		text, want  string // what the error says; "" when it is good
		roots, keys int
	}{
		"both":                   {`{"keys":[` + good + `,` + jwt + `],"spiffe_sequence":7,"spiffe_refresh_hint":60}`, "", 1, 1},
		"roots alone":            {`{"keys":[` + good + `]}`, "", 1, 0},
		"keys alone":             {`{"keys":[` + jwt + `]}`, "", 0, 1},
		"unknown use":            {`{"keys":[` + jwt + `,{` + ecKey + `,"use":"sig","kid":"2"}]}`, "", 0, 1},
		"use in capitals":        {`{"keys":[{` + ecKey + `,"use":"JWT-SVID","kid":"2"}]}`, "no key", 0, 0},
		"without use":            {`{"keys":[{` + ecKey + `,"kid":"2"}]}`, "no key", 0, 0},
		"unknown type":           {`{"keys":[` + jwt + `,{"kty":"OKP","crv":"Ed25519","x":"AA","use":"jwt-svid","kid":"2"}]}`, "", 0, 1},
		"symmetric":              {`{"keys":[{"kty":"oct","k":"AAAA","use":"jwt-svid","kid":"2"}]}`, "no key", 0, 0},
		"unknown parameter":      {`{"keys":[` + jwt + `],"other":{}}`, "", 0, 1},
		"private":                {`{"keys":[` + string(private) + `]}`, "public", 0, 0},
		"weak":                   {`{"keys":[` + string(short) + `]}`, "2048", 0, 0},
		"without kid":            {`{"keys":[{` + ecKey + `,"use":"jwt-svid"}]}`, "kid", 0, 0},
		"kid too long":           {`{"keys":[{` + ecKey + `,"use":"jwt-svid","kid":"` + strings.Repeat("k", 257) + `"}]}`, "256", 0, 0},
		"kid that JSON escapes":  {`{"keys":[{` + ecKey + `,"use":"jwt-svid","kid":"<"}]}`, "kid", 0, 0},
		"one kid twice":          {`{"keys":[` + jwt + `,` + jwt + `]}`, "two keys", 0, 0},
		"root without x5c":       {`{"keys":[{` + ecKey + `,"use":"x509-svid"}]}`, "x5c", 0, 0},
		"root with two":          {`{"keys":[` + two + `]}`, "x5c", 0, 0},
		"a leaf":                 {`{"keys":[` + notCA + `]}`, "", 0, 0},
		"off the curve":          {`{"keys":[{"kty":"EC","crv":"P-256","x":"AAAA","y":"AAAA","use":"jwt-svid","kid":"1"}]}`, "cannot be read", 0, 0},
		"no keys":                {`{}`, "no keys", 0, 0},
		"empty":                  {`{"keys":[]}`, "no key", 0, 0},
		"negative sequence":      {`{"keys":[` + jwt + `],"spiffe_sequence":-1}`, "JSON", 0, 0},
		"negative hint":          {`{"keys":[` + jwt + `],"spiffe_refresh_hint":-1}`, "negative", 0, 0},
		"keys twice":             {`{"keys":[],"keys":[` + jwt + `]}`, "JSON", 0, 0},
		"something behind":       {`{"keys":[` + jwt + `]}{}`, "JSON", 0, 0},
		"too many":               {`{"keys":[` + strings.Repeat(`{},`, 256) + `{}]}`, "more than 256", 0, 0},
		"a list":                 {`[]`, "JSON", 0, 0},
		"larger than the bounds": {strings.Repeat(" ", spiffe.MaxBundle+1), "bytes", 0, 0},
	} {
		b, err := spiffe.ParseBundle("partner.example", []byte(tt.text))
		switch {
		case name == "a leaf":
			if err == nil {
				t.Error("a leaf is taken for a root")
			}
		case tt.want != "":
			if err == nil || b != nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v, want %q", name, err, tt.want)
			}
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case len(b.DER) != tt.roots || b.Keys() != tt.keys:
			t.Errorf("%s: %d roots, %d keys", name, len(b.DER), b.Keys())
		}
	}
	b, err := spiffe.ParseBundle("partner.example", []byte(`{"keys":[`+good+`,`+jwt+`],"spiffe_sequence":7,"spiffe_refresh_hint":60}`))
	if err != nil || b.Sequence != 7 || b.Hint != time.Minute || b.TrustDomain != "partner.example" {
		t.Fatalf("%+v %v", b, err)
	}
	if _, ok := b.Key("1").Key.(*ecdsa.PublicKey); !ok || b.Key("2") != nil || b.Key("") != nil {
		t.Error("other keys than those of the document")
	}
	text, err := spiffe.EncodeBundle(b.DER, b.JWKS, b.Sequence, b.Hint)
	if err != nil {
		t.Fatal(err)
	}
	again, err := spiffe.ParseBundle("partner.example", text)
	if err != nil || !again.Roots.Equal(b.Roots) || string(again.JWKS) != string(b.JWKS) || again.Sequence != 7 || again.Hint != time.Minute {
		t.Errorf("%+v %v", again, err)
	}
	for _, td := range []string{"", "Partner.example", "partner.example/x", "spiffe://partner.example"} {
		if _, err := spiffe.ParseBundle(td, text); err == nil {
			t.Errorf("%q is taken for a trust domain", td)
		}
	}
}

func FuzzParseBundle(f *testing.F) {
	f.Add([]byte(`{"keys":[{` + ecKey + `,"use":"jwt-svid","kid":"1"}],"spiffe_sequence":7,"spiffe_refresh_hint":60}`))
	f.Add([]byte(`{"keys":[{` + ecKey + `,"use":"x509-svid","x5c":["AA=="]}]}`))
	f.Add([]byte(`{"keys":[]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := spiffe.ParseBundle("partner.example", text)
		if err != nil {
			return
		}
		out, err := spiffe.EncodeBundle(b.DER, b.JWKS, b.Sequence, b.Hint)
		if err != nil {
			t.Fatal(err)
		}
		again, err := spiffe.ParseBundle("partner.example", out)
		if err != nil || !again.Roots.Equal(b.Roots) || again.Keys() != b.Keys() {
			t.Errorf("%v\n%s\n%s", err, text, out)
		}
	})
}

// TestClass12ForeignRoots: a trust domain's roots vouch for its own workloads,
// for nobody of ours and of nobody else's.
func TestClass12ForeignRoots(t *testing.T) {
	t.Parallel()
	ours, partner, other := newCA(t), newCA(t), newCA(t)
	server := newSource(ours.leaf(t, nil, orders), ours.pool())
	config := spiffe.FederatedConfig(server, td, func(of string) *x509.CertPool {
		switch of {
		case "partner.example":
			return partner.pool()
		case "other.example":
			return other.pool()
		case td:
			t.Error("foreign roots are asked for our own trust domain")
			return partner.pool()
		}
		return nil
	})
	for name, tt := range map[string]struct {
		by *ca
		id string
		in bool
	}{
		"ours":                       {ours, web, true},
		"partner's":                  {partner, "spiffe://partner.example/billing", true},
		"partner's, longer":          {partner, "spiffe://partner.example/ns/a/sa/b", true},
		"other's":                    {other, "spiffe://other.example/billing", true},
		"ours by the partner":        {partner, web, false},
		"our gateway by the partner": {partner, "spiffe://" + td + "/gateway", false},
		"partner's by us":            {ours, "spiffe://partner.example/billing", false},
		"partner's by another":       {other, "spiffe://partner.example/billing", false},
		"no partner":                 {partner, "spiffe://evil.example/billing", false},
		"below the partner":          {partner, "spiffe://a.partner.example/billing", false},
		"the partner itself":         {partner, "spiffe://partner.example", true}, // names no workload: see ForeignName
	} {
		client := newSource(tt.by.leaf(t, nil, tt.id), ours.pool())
		atServer, _, err, _ := handshake(t, config, spiffe.ClientConfig(client, orders))
		if (err == nil) != tt.in {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil {
			continue
		}
		if id, err := spiffe.PeerID(atServer); err != nil || id != tt.id {
			t.Errorf("%s: %q %v", name, id, err)
		}
	}
	if _, _, err := spiffe.ForeignName("spiffe://partner.example"); err == nil {
		t.Error("a trust domain is taken for a workload")
	}
	if of, name, err := spiffe.ForeignName("spiffe://partner.example/a/b"); err != nil || of != "partner.example" || name != "partner.example/a/b" {
		t.Error(of, name, err)
	}
}
