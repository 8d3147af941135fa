package federation

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"merlon/identity/spiffe"
	"merlon/internal/reach"
)

// fetch asks the partner's bundle endpoint (SPIFFE Federation 5.2). It follows
// no redirect, which would choose another endpoint than the intent's; it uses no
// proxy, which could connect where it may not.
func (p *Partners) fetch(ctx context.Context, t *partner) (*spiffe.Bundle, []byte, error) {
	config, err := p.proof(t)
	if err != nil {
		return nil, nil, err
	}
	allowed := reach.Public
	if t.AllowLocal {
		allowed = reach.Local
	}
	dialer := &net.Dialer{Timeout: fetchTime, Control: reach.Control(allowed)}
	client := &http.Client{
		Timeout: fetchTime,
		Transport: &http.Transport{
			DialContext:            dialer.DialContext,
			TLSClientConfig:        config,
			DisableKeepAlives:      true,
			DisableCompression:     true, // the size limit is one of bytes sent
			MaxResponseHeaderBytes: 16 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("it redirects, which is not followed") },
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, t.Bundle, nil)
	if err != nil {
		return nil, nil, err
	}
	if r.URL.Scheme != "https" || r.URL.User != nil {
		return nil, nil, fmt.Errorf("%q is no https URL without user", r.URL.Redacted())
	}
	r.Header.Set("Accept", "application/json")
	answer, err := client.Do(r)
	if err != nil {
		return nil, nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("the endpoint answered %d", answer.StatusCode)
	}
	text, err := io.ReadAll(io.LimitReader(answer.Body, spiffe.MaxBundle+1))
	if err != nil {
		return nil, nil, err
	}
	b, err := spiffe.ParseBundle(t.TrustDomain, text)
	return b, text, err
}

// proof is how the endpoint proves itself: by a certificate of the web, or by
// the SVID that the intent names, under the bundle of its trust domain that we
// have already.
func (p *Partners) proof(t *partner) (*tls.Config, error) {
	if t.EndpointID == "" {
		return &tls.Config{RootCAs: p.opt.Roots, MinVersion: tls.VersionTLS12}, nil
	}
	id, err := spiffeid.FromString(t.EndpointID)
	if err != nil {
		return nil, err
	}
	roots := p.RootsOf(id.TrustDomain().Name())
	if roots == nil {
		return nil, fmt.Errorf("there is no bundle yet to verify %s by", t.EndpointID)
	}
	config := spiffe.ClientConfig(anonymous{roots}, t.EndpointID)
	// An endpoint must not ask who fetches (SPIFFE Federation 5.2.2.3).
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return new(tls.Certificate), nil }
	return config, nil
}

// anonymous is a source of roots alone.
type anonymous struct{ roots *x509.CertPool }

func (anonymous) SVID() *tls.Certificate  { return nil }
func (a anonymous) Roots() *x509.CertPool { return a.roots }
