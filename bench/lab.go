package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"merlon/authority"
)

// host is the name under which the service is called.
const host = "api.example.com"

const trustDomain = "bench.example"

// lab is what all measurements share: programs, certificates and the app.
type lab struct {
	dir       string
	authority *authority.Authority
	apps      []*process
	app, grpc string // addresses of the app
	peerTLS   identity
	started   int
}

// identity is a certificate in files, as the peers want it, and in memory.
type identity struct {
	Cert, Key, Both, CA string
	pair                tls.Certificate
	roots               *x509.CertPool
}

func newLab(ctx context.Context, dir string) (*lab, error) {
	l := &lab{dir: dir}
	for name, pkg := range map[string]string{"merlon-gate": "./cmd/merlon-gate", "bench": "./bench"} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, name), pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as it is released
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build %s: %w\n%s", pkg, err, out)
		}
	}
	var err error
	if l.authority, err = authority.Open(filepath.Join(dir, "authority"), trustDomain, authority.Options{}); err != nil {
		return nil, err
	}
	if l.peerTLS, err = newIdentity(dir); err != nil {
		return nil, err
	}
	for role, addr := range map[string]*string{"app": &l.app, "grpc": &l.grpc} {
		if *addr, err = freeAddr(); err != nil {
			return nil, err
		}
		p, err := itself(role)(&hop{Listen: *addr, lab: l})
		if err != nil {
			l.close()
			return nil, err
		}
		l.apps = append(l.apps, p)
	}
	return l, nil
}

func (l *lab) program(name string) string { return filepath.Join(l.dir, name) }

func (l *lab) close() {
	for _, p := range l.apps {
		p.stop()
	}
	l.authority.Close()
}

// hop is one proxy to be started.
type hop struct {
	link
	Listen, Upstream string
	Dir              string // its own
	Threads          int
	Connections      int // at most, from both sides
	identity
	lab *lab
}

// Host is the name that certificates prove.
func (h *hop) Host() string { return host }

// Host and port of the addresses, for who wants them apart.
func (h *hop) ListenHost() string   { return part(h.Listen, 0) }
func (h *hop) ListenPort() string   { return part(h.Listen, 1) }
func (h *hop) UpstreamHost() string { return part(h.Upstream, 0) }
func (h *hop) UpstreamPort() string { return part(h.Upstream, 1) }

func part(addr string, i int) string {
	host, port, _ := net.SplitHostPort(addr)
	return [...]string{host, port}[i]
}

// start starts a proxy, or two in a row, and tells where it listens. A proxy at
// the edge has all processors; one of a pair beside services has one.
func (l *lab) start(p *peer, s *scenario) (addr string, all group, err error) {
	upstream := l.app
	if s.grpc {
		upstream = l.grpc
	}
	threads := 2
	if len(s.links) > 1 {
		threads = 1
	}
	connections := 2048
	if s.kind == idle {
		connections += steps[len(steps)-1]
	}
	for i := len(s.links) - 1; i >= 0; i-- {
		if addr, err = freeAddr(); err != nil {
			break
		}
		l.started++
		h := &hop{link: s.links[i], Listen: addr, Upstream: upstream, Dir: filepath.Join(l.dir, fmt.Sprint("proxy", l.started)),
			Threads: threads, Connections: connections, identity: l.peerTLS, lab: l}
		if err = os.MkdirAll(h.Dir, 0o700); err != nil {
			break
		}
		var proxy *process
		if proxy, err = p.start(h); err != nil {
			break
		}
		all = append(all, proxy)
		upstream = addr
	}
	if err != nil {
		all.stop()
	}
	return addr, all, err
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// newIdentity makes a certificate authority and a certificate that serves both
// ends of the peers.
func newIdentity(dir string) (identity, error) {
	id := identity{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"), Both: filepath.Join(dir, "both.pem"), CA: filepath.Join(dir, "ca.pem")}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		KeyUsage: x509.KeyUsageDigitalSignature, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return id, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return id, err
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return id, err
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	if err != nil {
		return id, err
	}
	caPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})
	certs := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM, err := encodeKey(key)
	if err != nil {
		return id, err
	}
	id.roots = x509.NewCertPool()
	id.roots.AppendCertsFromPEM(caPEM)
	if id.pair, err = tls.X509KeyPair(certs, keyPEM); err != nil {
		return id, err
	}
	return id, errors.Join(
		os.WriteFile(id.Cert, certs, 0o600),
		os.WriteFile(id.Key, keyPEM, 0o600),
		os.WriteFile(id.Both, append(certs, keyPEM...), 0o600),
		os.WriteFile(id.CA, caPEM, 0o600),
	)
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
}

// svid makes a SPIFFE identity of Merlon's own authority and writes it to dir.
func (l *lab) svid(name, dir string) (pair tls.Certificate, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair, err
	}
	chain, _, err := l.authority.Issue("spiffe://"+trustDomain+"/"+name, key.Public(), time.Now())
	if err != nil {
		return pair, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return pair, err
	}
	var certs []byte
	for _, c := range chain {
		certs = append(certs, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})...)
	}
	if pair, err = tls.X509KeyPair(certs, keyPEM); err != nil {
		return pair, err
	}
	return pair, errors.Join(
		os.MkdirAll(dir, 0o700),
		os.WriteFile(filepath.Join(dir, "svid.pem"), certs, 0o600),
		os.WriteFile(filepath.Join(dir, "key.pem"), keyPEM, 0o600),
		os.WriteFile(filepath.Join(dir, "bundle.pem"), l.authority.Bundle(), 0o600),
	)
}
