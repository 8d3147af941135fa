package spiffe

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Netflix/bettertls/test-suites/certutil"
	"github.com/Netflix/bettertls/test-suites/nameconstraints"
	"github.com/Netflix/bettertls/test-suites/pathbuilding"
	test_case "github.com/Netflix/bettertls/test-suites/test-case"
)

// betterCase is a case of bettertls, with its own certificates.
type betterCase struct {
	name   string
	tc     test_case.TestCase
	root   *x509.Certificate
	certs  []*x509.Certificate // leaf first; nil when a certificate cannot be read, which crypto/tls refuses
	accept bool                // as bettertls has it; a certificate of which any name is forbidden is refused
}

// betterCases calls f with every case of a suite.
func betterCases(t *testing.T, suite test_case.TestCaseProvider, f func(*testing.T, betterCase)) {
	t.Helper()
	root, key, err := certutil.GenerateSelfSignedCert("bettertls_trust_root")
	if err != nil {
		t.Fatal(err)
	}
	n, err := suite.GetTestCaseCount()
	if err != nil || n == 0 {
		t.Fatal(n, err)
	}
	for i := range n {
		tc, err := suite.GetTestCase(i)
		if err != nil {
			t.Fatal(err)
		}
		shown, err := tc.GetCertificates(root, key)
		if err != nil {
			t.Fatal(err)
		}
		c := betterCase{name: fmt.Sprintf("%s %d", suite.Name(), i), tc: tc, root: root}
		switch tc.ExpectedResult() {
		case test_case.EXPECTED_RESULT_PASS, test_case.EXPECTED_RESULT_SOFT_PASS:
			c.accept = true
		}
		for _, der := range shown.Certificate {
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				c.certs = nil
				break
			}
			c.certs = append(c.certs, cert)
		}
		f(t, c)
	}
}

func (c *betterCase) roots() *x509.CertPool { return pool(c.root) }

func pool(cert *x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(cert)
	return p
}

// TestBetterTLSPathBuilding takes every path-building case, as it is, through
// what verifies peers; then with the leaf made an SVID, as ClientConfig and
// ServerConfig see it; then with its DNS constraints made constraints of URIs.
func TestBetterTLSPathBuilding(t *testing.T) {
	t.Parallel()
	keys, accepted, long := newBetterKeys(t), 0, 0
	betterCases(t, pathbuilding.NewTestCaseProvider(), func(t *testing.T, c betterCase) {
		_, err := build(c.certs, x509.ExtKeyUsageServerAuth, time.Time{}, c.roots())
		betterWeb(t, &c, err)
		if (err == nil) != c.accept {
			t.Errorf("%s: %v", c.name, err)
		}
		for _, uri := range []bool{false, true} {
			root, certs := keys.svid(t, &c, "spiffe://shop.example/web", uri)
			errs := betterPeer(root, certs, "spiffe://shop.example/web")
			for _, err := range errs {
				switch tooLong := len(certs) > maxChain; {
				// The one reason for which a case does not hold: nobody may have a
				// gate try the 36 certificates of a bridge before they proved anything.
				case tooLong && (err == nil || !strings.Contains(err.Error(), "at most 4 are read")):
					t.Errorf("%s: %d certificates, and %v", c.name, len(certs), err)
				case tooLong:
					long++
				case (err == nil) != c.accept:
					t.Errorf("%s, URIs %v: %v", c.name, uri, err)
				case err == nil:
					accepted++
				}
			}
			if _, err := build(certs, x509.ExtKeyUsageClientAuth, time.Time{}, pool(root)); (err == nil) != c.accept {
				t.Errorf("%s, URIs %v, however long: %v", c.name, uri, err)
			}
		}
	})
	if accepted == 0 || long == 0 {
		t.Errorf("%d accepted, %d too long", accepted, long)
	}
}

// TestBetterTLSNameConstraints takes every case of name constraints, as it is,
// through what verifies peers; then with a SPIFFE ID among the leaf's names, as
// ClientConfig and ServerConfig see it; and where the client asks for a DNS
// name, with that made a trust domain and the constraints such of URIs.
//
// bettertls asks for a name of the leaf. SVIDs are not asked for DNS names and
// addresses, so the first two are held to the constraints alone: of all names.
func TestBetterTLSNameConstraints(t *testing.T) {
	t.Parallel()
	keys, accepted, refused := newBetterKeys(t), 0, 0
	seen := map[nameconstraints.NameConstraintsTestCase]bool{}
	betterCases(t, nameconstraints.NewTestCaseProvider(), func(t *testing.T, c betterCase) {
		nc := c.tc.(nameconstraints.NameConstraintsTestCase)
		if c.certs == nil {
			if c.accept {
				t.Errorf("%s cannot be read", c.name)
			}
			return
		}
		allowed, uris := betterAllows(t, c.certs[0], c.certs[1])
		_, err := build(c.certs, x509.ExtKeyUsageServerAuth, time.Time{}, c.roots())
		betterWeb(t, &c, err)
		if (err == nil) != allowed {
			t.Errorf("%s: %v", c.name, err)
		}
		// From here on nothing reads what these say.
		nc.CommonNameType, nc.CommonNameValue = nameconstraints.CN_TYPE_DNS, nameconstraints.EXTVAL_NONE
		if seen[nc] {
			return
		}
		seen[nc] = true
		root, certs := keys.svid(t, &c, "spiffe://shop.example/web", false)
		for _, err := range betterPeer(root, certs, "spiffe://shop.example/web") {
			if (err == nil) != (allowed && uris == 0) { // an SVID has one URI name
				t.Errorf("%s, with a SPIFFE ID: %v", c.name, err)
			}
		}
		if nc.ClientHostnameType != nameconstraints.CLIENT_HOSTNAME_TYPE_DNS || nc.ExtraSan != nil {
			return
		}
		// The case as it would be if trust domains were what the client asks for.
		accept := nc.ExpectedResult() == test_case.EXPECTED_RESULT_PASS
		id := map[nameconstraints.TrinaryValue]string{
			nameconstraints.EXTVAL_VALID:   "spiffe://" + nameconstraints.VALID_DNS_NAME + "/web",
			nameconstraints.EXTVAL_INVALID: "spiffe://" + nameconstraints.INVALID_DNS_NAME + "/web",
		}[nc.DnsSan]
		root, certs = keys.svid(t, &c, id, true)
		for _, err := range betterPeer(root, certs, "spiffe://"+nameconstraints.VALID_DNS_NAME+"/web") {
			if (err == nil) != accept {
				t.Errorf("%s, with constraints of URIs: %v", c.name, err)
			}
		}
		if accept {
			accepted++
		} else {
			refused++
		}
	})
	if accepted < 50 || refused < 500 {
		t.Errorf("of the cases about URIs %d were accepted, %d refused", accepted, refused)
	}
}

// betterWeb holds a case to what crypto/tls does where we leave the verification
// to it, whenever a server of the web is asked for a key set, a bundle or as an
// external service: x509 finds the same ways as in build, and compares the name.
// TestHouseTLS sees to it that we leave it.
func betterWeb(t *testing.T, c *betterCase, built error) {
	t.Helper()
	err := errors.Join(built, c.certs[0].VerifyHostname(c.tc.GetHostname()))
	if (err == nil) != c.accept {
		t.Errorf("%s, of a server: %v", c.name, err)
	}
}

// TestURIConstraint shows what crypto/x509 leaves open and permitted closes.
func TestURIConstraint(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		constraint, trustDomain string
		ok                      bool
	}{
		{"shop.example", "shop.example", true},
		{"SHOP.example", "shop.example", true},
		{"shop.example", "eu.shop.example", false}, // x509 takes it
		{".shop.example", "eu.shop.example", true},
		{".shop.example", "a.eu.shop.example", true},
		{".shop.example", "shop.example", false},
		{".shop.example", "myshop.example", false},
		{"shop.example", "myshop.example", false},
		{"eu.shop.example", "shop.example", false},
		{"", "shop.example", true},
	} {
		keys, now := newBetterKeys(t), time.Now()
		ca := func(name string, parent *x509.Certificate, key, by int, uris ...string) *x509.Certificate {
			tmpl := &x509.Certificate{SerialNumber: certutil.RandomSerial(), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
				KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, PermittedURIDomains: uris, PermittedDNSDomainsCritical: true}
			if parent == nil {
				parent = tmpl
			}
			return keys.sign(t, tmpl, parent, key, by)
		}
		root := ca("root", nil, 0, 0)
		between := ca("between", root, 1, 0, tt.constraint)
		id := "spiffe://" + tt.trustDomain + "/web"
		leaf := keys.sign(t, &x509.Certificate{SerialNumber: certutil.RandomSerial(), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
			ExtKeyUsage: bothUsages(), BasicConstraintsValid: true, URIs: []*url.URL{{Scheme: "spiffe", Host: tt.trustDomain, Path: "/web"}}}, between, 2, 1)
		for _, err := range betterPeer(root, []*x509.Certificate{leaf, between}, id) {
			if (err == nil) != tt.ok {
				t.Errorf("%q signs for %q: %v", tt.constraint, tt.trustDomain, err)
			}
		}
	}
}

func bothUsages() []x509.ExtKeyUsage {
	return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
}

// betterPeer is what a client and a server say of a peer that shows certs.
func betterPeer(root *x509.Certificate, certs []*x509.Certificate, id string) []error {
	if certs == nil {
		return []error{fmt.Errorf("a certificate cannot be read")}
	}
	src := snapshot{roots: pool(root)}
	trustDomain, _, _ := strings.Cut(strings.TrimPrefix(id, "spiffe://"), "/")
	state := tls.ConnectionState{PeerCertificates: certs}
	return []error{ClientConfig(src, id).VerifyConnection(state), ServerConfig(src, trustDomain).VerifyConnection(state)}
}

// betterAllows is what the names of leaf are to the constraints of ca, read
// anew from the bytes of the leaf, and how many of them are URIs.
func betterAllows(t *testing.T, leaf, ca *x509.Certificate) (ok bool, uris int) {
	t.Helper()
	dns := func(name string, all []string) bool {
		return slices.ContainsFunc(all, func(c string) bool { return name == c || strings.HasSuffix(name, "."+c) })
	}
	ok = true
	for _, ext := range leaf.Extensions {
		if !ext.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}) {
			continue
		}
		var names []asn1.RawValue
		if _, err := asn1.Unmarshal(ext.Value, &names); err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			switch text := string(name.Bytes); name.Tag {
			case 1:
				ok = ok && strings.Contains(text, "@") // what is no address cannot be held to constraints
			case 2:
				ok = ok && text[0] != 0x7f && !dns(text, ca.ExcludedDNSDomains) && (len(ca.PermittedDNSDomains) == 0 || dns(text, ca.PermittedDNSDomains))
			case 6:
				u, err := url.Parse(text)
				ok = ok && err == nil && u.Host != ""
				uris++
			case 7:
				in := func(permitted bool) bool {
					all := ca.ExcludedIPRanges
					if permitted {
						all = ca.PermittedIPRanges
					}
					for _, r := range all {
						if r.Contains(name.Bytes) {
							return true
						}
					}
					return false
				}
				ok = ok && !in(false) && (len(ca.PermittedIPRanges) == 0 || in(true))
			}
		}
	}
	return ok, uris
}

// betterKeys signs the certificates of cases anew: bettertls gives away no key
// of a CA.
type betterKeys []*ecdsa.PrivateKey

func newBetterKeys(t *testing.T) betterKeys {
	t.Helper()
	var keys betterKeys
	for range 40 {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	return keys
}

// sign gives a certificate to key, signed by another.
func (k betterKeys) sign(t *testing.T, tmpl, parent *x509.Certificate, key, by int) *x509.Certificate {
	t.Helper()
	name := func(i int) []byte { h := sha256.Sum256([]byte{byte(i)}); return h[:20] }
	tmpl.SubjectKeyId = name(key)
	issuer := *parent
	issuer.SubjectKeyId, issuer.PublicKey = name(by), nil
	der, err := x509.CreateCertificate(rand.Reader, tmpl, &issuer, k[key].Public(), k[by])
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil
	}
	return cert
}

// svid is the certificates of a case with id among the names of the leaf, if it is not "".
// With uri, what the case says of DNS names is said of URIs. The certificates
// are nil when one cannot be read.
func (k betterKeys) svid(t *testing.T, c *betterCase, id string, uri bool) (root *x509.Certificate, certs []*x509.Certificate) {
	t.Helper()
	subjects := map[string]int{}
	key := func(name []byte) int {
		if _, ok := subjects[string(name)]; !ok {
			subjects[string(name)] = len(subjects)
		}
		return subjects[string(name)]
	}
	readable := true
	for i, old := range append([]*x509.Certificate{c.root}, c.certs...) {
		tmpl := *old
		if uri {
			tmpl.PermittedURIDomains, tmpl.PermittedDNSDomains = asURIs(old.PermittedDNSDomains), nil
			tmpl.ExcludedURIDomains, tmpl.ExcludedDNSDomains = asURIs(old.ExcludedDNSDomains), nil
		}
		if i == 1 {
			tmpl.ExtKeyUsage = bothUsages()
			switch {
			case !uri:
				tmpl.ExtraExtensions = []pkix.Extension{withName(t, old, id)}
			default:
				tmpl.DNSNames, tmpl.URIs = nil, nil
				if id != "" {
					parsed, err := url.Parse(id)
					if err != nil {
						t.Fatal(err)
					}
					tmpl.URIs = []*url.URL{parsed}
				}
			}
		}
		cert := k.sign(t, &tmpl, &x509.Certificate{RawSubject: old.RawIssuer}, key(old.RawSubject), key(old.RawIssuer))
		switch {
		case cert == nil:
			readable = false
		case i == 0:
			root = cert
		default:
			certs = append(certs, cert)
		}
	}
	if !readable {
		return root, nil
	}
	return root, certs
}

// asURIs says of URIs what constraints say of DNS names: those mean the name
// and all below it (RFC 5280 4.2.1.10).
func asURIs(names []string) []string {
	var all []string
	for _, name := range names {
		all = append(all, name, "."+name)
	}
	return all
}

// withName is the names of a certificate, byte for byte, and a URI more.
func withName(t *testing.T, cert *x509.Certificate, uri string) pkix.Extension {
	t.Helper()
	ext := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}}
	var names []asn1.RawValue
	for _, old := range cert.Extensions {
		if old.Id.Equal(ext.Id) {
			if _, err := asn1.Unmarshal(old.Value, &names); err != nil {
				t.Fatal(err)
			}
		}
	}
	names = append(names, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: bytes.Clone([]byte(uri))})
	var err error
	if ext.Value, err = asn1.Marshal(names); err != nil {
		t.Fatal(err)
	}
	return ext
}
