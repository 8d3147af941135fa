package authority

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"

	"merlon/internal/private"
)

const (
	edgeFile     = "edge.pem"
	edgeLifetime = 90 * day // renewed when a third is left
)

// EdgeCertificate is a certificate for the gateway's hosts that it signs
// itself, for a first look: a client that is given its PEM, as in
// curl --cacert, trusts these hosts and nothing else. It is kept, and made
// anew when the hosts change or a third of its 90 days is left. Ask at each
// start, and daily.
func (a *Authority) EdgeCertificate(hosts []string) (cert *tls.Certificate, pemBytes []byte, err error) {
	now := a.opt.Now()
	if len(hosts) == 0 {
		return nil, nil, errors.New("a certificate needs a host")
	}
	t := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "Merlon gateway", Organization: []string{"Merlon"}},
		NotBefore:             now.Add(-Skew),
		NotAfter:              now.Add(edgeLifetime),
		BasicConstraintsValid: true, // no CA: whoever trusts it trusts no other certificate by it
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, host := range slices.Sorted(slices.Values(hosts)) {
		if ip := net.ParseIP(strings.Trim(host, "[]")); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, host)
		}
	}
	a.edge.Lock()
	defer a.edge.Unlock()
	if a.closed.Load() {
		return nil, nil, errClosed
	}
	p, err := readPair(a.dir, edgeFile)
	switch {
	case err == nil && sameHosts(p.cert, t) && now.After(p.cert.NotBefore) && now.Before(p.cert.NotAfter.Add(-edgeLifetime/3)):
	case err == nil, errors.Is(err, errAbsent):
		if p, err = a.newEdge(t); err != nil {
			return nil, nil, err
		}
	default:
		return nil, nil, fmt.Errorf("%s in %s cannot be used: %w; move it away to get a new one", edgeFile, a.dir, err)
	}
	pemBytes = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.cert.Raw})
	return &tls.Certificate{Certificate: [][]byte{p.cert.Raw}, PrivateKey: p.key, Leaf: p.cert}, pemBytes, nil
}

func sameHosts(a, b *x509.Certificate) bool {
	return slices.Equal(a.DNSNames, b.DNSNames) && slices.EqualFunc(a.IPAddresses, b.IPAddresses, net.IP.Equal)
}

func (a *Authority) newEdge(t *x509.Certificate) (pair, error) {
	key, err := newKeyPair()
	if err != nil {
		return pair{}, err
	}
	der, err := a.sign("edge", t, pair{cert: t, key: key}, key.Public())
	if err != nil {
		return pair{}, err
	}
	data, err := encodePair([][]byte{der}, key)
	if err != nil {
		return pair{}, err
	}
	if err := private.Replace(filepath.Join(a.dir, edgeFile), data); err != nil {
		return pair{}, err
	}
	p, err := readPair(a.dir, edgeFile) // what counts is what the disk gives back
	if err == nil && !bytes.Equal(p.cert.Raw, der) {
		err = errors.New("another process writes to the state directory")
	}
	return p, err
}
