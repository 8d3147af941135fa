package authority

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// Vault is an Upstream: the PKI secrets engine of a HashiCorp Vault or an
// OpenBao, asked over its HTTP API (/v1/MOUNT/root/sign-intermediate). The
// policy of its token needs "update" on that path and nothing else.
type Vault struct {
	Address   string         // https://HOST:PORT
	Mount     string         // of the engine; "" is pki
	Namespace string         // "" for none
	TokenFile string         // read at each request, so that it may be renewed by others
	Roots     *x509.CertPool // of the server's certificate; nil is the system's
}

const maxVaultAnswer = 1 << 20 // bytes

// Check refuses what cannot work, and an address to which a token would go in
// the clear.
func (v *Vault) Check() error {
	u, err := url.Parse(v.Address)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("%q is not the address of a Vault, such as https://vault.example:8200", v.Address)
	}
	if v.TokenFile == "" {
		return errors.New("a Vault needs a token, in a file")
	}
	return nil
}

// Sign has the engine sign a certificate request.
func (v *Vault) Sign(ctx context.Context, csr []byte, lifetime time.Duration) (chain, anchors [][]byte, err error) {
	if err := v.Check(); err != nil {
		return nil, nil, err
	}
	body, err := json.Marshal(map[string]any{
		"csr":            string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})),
		"use_csr_values": true, "format": "pem", "max_path_length": 0, "ttl": fmt.Sprintf("%ds", int64(lifetime.Seconds())),
	})
	if err != nil {
		return nil, nil, err
	}
	mount := strings.Trim(v.Mount, "/")
	if mount == "" {
		mount = "pki"
	}
	b, err := v.post(ctx, strings.TrimRight(v.Address, "/")+"/v1/"+mount+"/root/sign-intermediate", body)
	if err != nil {
		return nil, nil, fmt.Errorf("vault: %w", err)
	}
	var answer struct {
		Data struct {
			Certificate string   `json:"certificate"`
			IssuingCA   string   `json:"issuing_ca"`
			Chain       []string `json:"ca_chain"`
		} `json:"data"`
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return nil, nil, errors.New("vault: the answer is no JSON as documented")
	}
	return sortChain([]byte(strings.Join(append([]string{answer.Data.Certificate, answer.Data.IssuingCA}, answer.Data.Chain...), "\n")))
}

// post sends one request. Neither errors nor redirects carry the token on.
func (v *Vault) post(ctx context.Context, address string, body []byte) ([]byte, error) {
	token, err := os.ReadFile(v.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("its token: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Vault-Token", strings.TrimSpace(string(token)))
	req.Header.Set("X-Vault-Request", "true")
	if v.Namespace != "" {
		req.Header.Set("X-Vault-Namespace", v.Namespace)
	}
	client := &http.Client{
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: v.Roots, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxVaultAnswer+1))
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK || len(b) > maxVaultAnswer {
		var said struct {
			Errors []string `json:"errors"`
		}
		json.Unmarshal(b, &said) // what is not JSON says nothing
		return nil, fmt.Errorf("it answered %s %.200q", res.Status, said.Errors)
	}
	return b, nil
}

// sortChain takes certificates apart, PEM: the first, what lies above it, and
// the roots, which signed themselves. If there is none, the last is where trust
// begins. Certificates that come twice count once.
func sortChain(text []byte) (chain, anchors [][]byte, err error) {
	seen := map[string]bool{}
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, nil, fmt.Errorf("there is a %q among the certificates", block.Type)
		}
		if seen[string(block.Bytes)] {
			continue
		}
		seen[string(block.Bytes)] = true
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, nil, err
		}
		if len(seen) > maxUpstream {
			return nil, nil, fmt.Errorf("there are more than %d certificates", maxUpstream)
		}
		if len(chain) > 0 && bytes.Equal(cert.RawIssuer, cert.RawSubject) && cert.CheckSignatureFrom(cert) == nil {
			anchors = append(anchors, cert.Raw)
		} else {
			chain = append(chain, cert.Raw)
		}
	}
	if n := len(chain); len(anchors) == 0 && n > 1 {
		chain, anchors = chain[:n-1], chain[n-1:]
	}
	return chain, anchors, nil
}
