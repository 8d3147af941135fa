package node

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"merlon/authority"
	"merlon/identity/jwt"
	"merlon/identity/spiffe"
)

// errJoin is the error of a node that cannot join without another token.
var errJoin = errors.New("the node cannot join")

// prove is the node's SVID, which the agent has, has kept, or gets by proving
// which node it is.
func (a *Agent) prove(ctx context.Context) (*authority.Source, error) {
	a.mu.Lock()
	own := a.own
	if own != nil && own.SVID() == nil {
		a.drop()
		own = nil
	}
	a.mu.Unlock()
	if own != nil {
		return own, nil
	}
	first := a.store.pair(nodeFile, a.cfg.Now(), func(id string) bool { return nodeOf(id, a.trustDomain) != "" })
	a.mu.Lock()
	a.shown = first
	a.mu.Unlock()
	begun := first != nil
	issue := func(ctx context.Context, key crypto.Signer) ([][]byte, time.Time, error) {
		chain, notAfter, err := a.issueOwn(ctx, key, !begun)
		begun = true
		return chain, notAfter, err
	}
	ctx, stop := context.WithCancel(ctx)
	own, err := authority.NewSource(ctx, authority.SourceConfig{
		ID: "spiffe://" + a.trustDomain + "/" + strings.TrimSuffix(nodePrefix, "/"), Issue: issue, First: first,
		Roots: a.roots, Lifetime: a.lifetime, Now: a.cfg.Now, Log: a.cfg.Log,
	})
	if err != nil {
		stop()
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.own, a.stop = own, stop
	return own, nil
}

// roots are what the server is verified by: those that it sent last, and, until
// then, those that the agent was given.
func (a *Agent) roots() *x509.CertPool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.trust.DER) == 0 && a.given != nil {
		return a.given
	}
	return a.trust.Roots
}

// issueOwn gets an SVID of the node: for the one that it shows if it joined by a
// token, else by proving itself anew. It is called by one goroutine at a time.
func (a *Agent) issueOwn(ctx context.Context, key crypto.Signer, first bool) (chain [][]byte, notAfter time.Time, err error) {
	id := a.shownID()
	if id != "" && a.cfg.CertFile == "" && a.cfg.KubernetesFile == "" {
		chain, notAfter, err = a.issue(ctx, renewPath, "", key, nodeFile, id)
	} else {
		chain, notAfter, err = a.join(ctx, key, first)
	}
	if err != nil {
		return nil, time.Time{}, err
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, time.Time{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.shown = &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}
	return chain, notAfter, nil
}

// proof is what the agent shows.
type proof struct {
	hello
	key   crypto.Signer // of the certificate in hello
	token *JoinToken    // that is in hello
}

// readProof reads the files that prove which node this is.
func (a *Agent) readProof() (*proof, error) {
	switch {
	case a.cfg.CertFile != "":
		c, err := tls.LoadX509KeyPair(a.cfg.CertFile, a.cfg.KeyFile)
		if err != nil {
			return nil, err
		}
		key, ok := c.PrivateKey.(crypto.Signer)
		if !ok {
			return nil, errors.New("the certificate's key cannot sign")
		}
		return &proof{hello: hello{X509: c.Certificate}, key: key}, nil
	case a.cfg.KubernetesFile != "":
		text, err := readBounded(a.cfg.KubernetesFile, jwt.MaxToken)
		if err != nil {
			return nil, err
		}
		return &proof{hello: hello{Kubernetes: strings.TrimSpace(string(text))}}, nil
	case a.cfg.Token != nil:
		t, err := a.token()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errJoin, err)
		}
		if t.TrustDomain != a.trustDomain {
			return nil, fmt.Errorf("%w: the token is of trust domain %q, not of %q", errJoin, t.TrustDomain, a.trustDomain)
		}
		return &proof{hello: hello{Join: &ticketProof{t.Node, t.secret}}, token: t}, nil
	}
	return nil, fmt.Errorf("%w: its SVID has ended, or was never there; merlon node token makes a token for it", errJoin)
}

func (a *Agent) token() (*JoinToken, error) {
	text, err := a.cfg.Token()
	if err != nil {
		return nil, err
	}
	return ParseJoinToken(string(text))
}

func readBounded(name string, most int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("%s has more than %d bytes", name, most)
	}
	return b, err
}

// join proves which node this is and takes what a node gets; first says that
// nothing is pushed yet.
func (a *Agent) join(ctx context.Context, key crypto.Signer, first bool) (chain [][]byte, notAfter time.Time, err error) {
	p, err := a.readProof()
	if err != nil {
		return nil, time.Time{}, err
	}
	if p.CSR, err = newCSR(key); err != nil {
		return nil, time.Time{}, err
	}
	var in admitted
	if err := a.attest(ctx, p, &in); err != nil {
		if p.token != nil && status.Code(err) == codes.PermissionDenied {
			return nil, time.Time{}, fmt.Errorf("%w: %w", errJoin, err)
		}
		return nil, time.Time{}, err
	}
	leaf, err := checkChain(in.Chain, key, nodeID(a.trustDomain, in.Node))
	if err != nil {
		return nil, time.Time{}, err
	}
	if first { // a later one could be older than what was pushed meanwhile
		a.mu.Lock()
		k := a.kept
		a.mu.Unlock()
		k.TrustDomain, k.Node, k.View.Bundle = a.trustDomain, in.Node, in.Bundle
		if err := a.take(&k); err != nil {
			return nil, time.Time{}, err
		}
		a.keep(&k)
	}
	if err := a.store.keepPair(nodeFile, in.Chain, key); err != nil {
		a.cfg.Log.Error("the node's SVID cannot be kept: after a restart it has to join anew", "err", err)
	}
	a.cfg.Log.Info("the node has joined", "node", in.Node)
	return in.Chain, leaf.NotAfter, nil
}

// attest talks to the server as a stranger.
func (a *Agent) attest(ctx context.Context, p *proof, in *admitted) error {
	ctx, cancel := context.WithTimeout(ctx, strangerTime)
	defer cancel()
	stranger := spiffe.ClientConfig(anchors{a.roots()}, EndpointID(a.trustDomain))
	stranger.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return new(tls.Certificate), nil }
	c, err := a.dial(stranger, p.token)
	if err != nil {
		return err
	}
	defer c.Close()
	stream, err := c.NewStream(ctx, &attestDesc, attestPath)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(&p.hello); err != nil && err != io.EOF { // the answer says why
		return err
	}
	if p.key != nil {
		var q challenge
		if err := stream.RecvMsg(&q); err != nil {
			return err
		}
		signature, err := sign(p.key, challenged(q.Nonce, p.CSR))
		if err != nil {
			return err
		}
		if err := stream.SendMsg(&response{signature}); err != nil && err != io.EOF {
			return err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	return stream.RecvMsg(in)
}

// anchors is a spiffe.Source without an SVID.
type anchors struct{ roots *x509.CertPool }

func (anchors) SVID() *tls.Certificate  { return nil }
func (s anchors) Roots() *x509.CertPool { return s.roots }
