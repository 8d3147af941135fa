package authority

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"merlon/identity/spiffe"
	"merlon/internal/jws"
)

// jwtTemplate is the certificate of a JWT key, which nobody but the authority
// sees.
func (a *Authority) jwtTemplate(now time.Time) *x509.Certificate {
	t := a.caTemplate("JWT key", now, a.opt.JWTKey, 0)
	return &x509.Certificate{
		Subject: t.Subject, URIs: []*url.URL{{Scheme: "spiffe", Host: a.trustDomain}}, NotBefore: t.NotBefore, NotAfter: t.NotAfter,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
	}
}

// IssueJWT signs a JWT-SVID for the workload with this SPIFFE ID. Whoever calls
// has proved that it is the workload that asks. There must be an audience: a
// token that is good everywhere is stolen once for all (JWT-SVID 3.2).
func (a *Authority) IssueJWT(id string, audience []string, now time.Time) (token string, notAfter time.Time, err error) {
	if _, err := a.workload(id); err != nil {
		return "", time.Time{}, err
	}
	if err := spiffe.CheckAudience(audience); err != nil {
		return "", time.Time{}, err
	}
	if a.closed.Load() {
		return "", time.Time{}, errClosed
	}
	p := a.fresh(now).lines[jwtKeys].signer(now, a.opt.JWTLifetime)
	if p == nil {
		return "", time.Time{}, errors.New("there is no key for JWT-SVIDs, and none could be made")
	}
	notAfter = now.Add(a.opt.JWTLifetime)
	if end := p.cert.NotAfter; notAfter.After(end) {
		notAfter = end
	}
	notAfter = notAfter.Truncate(time.Second)
	if notAfter.Sub(now) < leastLifetime/2 {
		return "", time.Time{}, fmt.Errorf("the key of JWT-SVIDs ends at %v and could not be renewed", p.cert.NotAfter)
	}
	header, err := json.Marshal(map[string]any{"alg": "ES256", "typ": "JWT", "kid": keyName(p.cert)})
	if err != nil {
		return "", time.Time{}, err
	}
	serial := hex.EncodeToString(random(16))
	claims := map[string]any{"sub": id, "aud": audience, "iat": now.Unix(), "exp": notAfter.Unix(), "jti": serial}
	if a.opt.Issuer != "" {
		claims["iss"] = a.opt.Issuer
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", time.Time{}, err
	}
	err = a.journal.add(entry{Kind: "jwt-svid", Serial: serial, Names: []string{id}, Audience: slices.Clone(audience),
		NotBefore: now.UTC(), NotAfter: notAfter.UTC(), Issuer: p.cert.SerialNumber.Text(16)})
	if err != nil {
		return "", time.Time{}, fmt.Errorf("nothing is signed that cannot be recorded: %w", err)
	}
	token, err = jws.Sign(p.key, header, payload)
	return token, notAfter, err
}
