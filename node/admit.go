package node

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"merlon"
)

// attest lets a stranger prove which node it is, and gives it an SVID of the
// node. Why it is refused is for the log.
func (s *Server) attest(stream grpc.ServerStream) error {
	var h hello
	if err := stream.RecvMsg(&h); err != nil {
		return err
	}
	from := ""
	if p, ok := peer.FromContext(stream.Context()); ok {
		from = p.Addr.String()
	}
	if _, err := readCSR(h.CSR); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	in, _ := s.intent()
	if in == nil {
		return errEarly
	}
	claimed, n, err := s.prove(stream, in, &h)
	if err != nil {
		s.door.refused("a node could not prove itself", "node", claimed, "from", from, "err", err)
		return status.Error(codes.PermissionDenied, "what was shown proves no node of the intent; the authority's log says why")
	}
	chain, err := s.issueNode(n, h.CSR)
	if err != nil {
		return err
	}
	bundle, err := s.bundle()
	if err != nil {
		return s.unavailable(n.Name, err)
	}
	s.cfg.Log.Info("a node has proved itself", "node", n.Name, "by", n.Proof(), "from", from)
	return stream.SendMsg(&admitted{Node: n.Name, Chain: chain.Chain, Bundle: bundle})
}

// prove is the node that is proved. An error comes with the name that was
// claimed, if there is one.
func (s *Server) prove(stream grpc.ServerStream, in *merlon.Intent, h *hello) (claimed string, n *merlon.Node, err error) {
	ways := 0
	for _, there := range []bool{h.Join != nil, len(h.X509) > 0, h.Kubernetes != ""} {
		if there {
			ways++
		}
	}
	if ways != 1 {
		return "", nil, errors.New("it shows several proofs, or none")
	}
	switch {
	case h.Join != nil:
		n, err = s.proveJoin(in, h.Join)
		return clip(h.Join.Node), n, err
	case h.Kubernetes != "":
		return s.proveKubernetes(in, h.Kubernetes)
	}
	return s.proveX509(stream, in, h)
}

// clip keeps a name that a stranger chose short enough for a log.
func clip(s string) string { return s[:min(len(s), 63)] }

func (s *Server) proveJoin(in *merlon.Intent, p *ticketProof) (*merlon.Node, error) {
	n := in.Node(p.Node)
	switch {
	case n == nil:
		return nil, errors.New("the intent has no such node")
	case !n.JoinToken:
		return nil, fmt.Errorf("the node proves itself by its %s, not by a join token", n.Proof())
	}
	return n, s.ledger.redeem(n.Name, p.Secret, s.cfg.Now())
}

func (s *Server) proveKubernetes(in *merlon.Intent, token string) (string, *merlon.Node, error) {
	if s.cfg.Cluster == nil {
		return "", nil, errors.New("the keys of no Kubernetes cluster are known here")
	}
	account, _, err := s.cfg.Cluster.Account(token, s.cfg.Now())
	if err != nil {
		return "", nil, err
	}
	i := slices.IndexFunc(in.Nodes, func(n merlon.Node) bool { return n.Kubernetes == account })
	if i < 0 {
		return "", nil, fmt.Errorf("service account %s is no node of the intent", account)
	}
	return in.Nodes[i].Name, &in.Nodes[i], nil
}

// maxChain is how many certificates a node may show, maxNames how many names the
// first may have.
const maxChain, maxNames = 4, 16

// proveX509 verifies a node's certificate, and challenges its key.
func (s *Server) proveX509(stream grpc.ServerStream, in *merlon.Intent, h *hello) (string, *merlon.Node, error) {
	if len(h.X509) > maxChain {
		return "", nil, fmt.Errorf("it shows %d certificates, at most %d are read", len(h.X509), maxChain)
	}
	var certs []*x509.Certificate
	for _, der := range h.X509 {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return "", nil, errors.New("its certificate cannot be read")
		}
		// All of them: what a stranger shows is verified with keys of its choice.
		if _, _, err := signatureOf(c.PublicKey); err != nil {
			return "", nil, err
		}
		certs = append(certs, c)
	}
	n, err := s.certified(in, certs)
	if err != nil {
		return "", nil, err
	}
	nonce := make([]byte, 32)
	rand.Read(nonce) // never fails: it ends the program instead
	if err := stream.SendMsg(&challenge{nonce}); err != nil {
		return n.Name, nil, err
	}
	var r response
	if err := stream.RecvMsg(&r); err != nil {
		return n.Name, nil, err
	}
	algorithm, _, err := signatureOf(certs[0].PublicKey)
	if err == nil {
		err = certs[0].CheckSignature(algorithm, challenged(nonce, h.CSR), r.Signature)
	}
	if err != nil {
		return n.Name, nil, fmt.Errorf("it does not have the key of its certificate: %w", err)
	}
	return n.Name, n, nil
}

// certified is the one node whose certificate this is.
func (s *Server) certified(in *merlon.Intent, certs []*x509.Certificate) (*merlon.Node, error) {
	leaf := certs[0]
	if leaf.IsCA {
		return nil, errors.New("its certificate is a CA's")
	}
	if len(leaf.DNSNames) > maxNames { // each may be a node's, and is verified then
		return nil, fmt.Errorf("its certificate has %d names, at most %d are read", len(leaf.DNSNames), maxNames)
	}
	between := x509.NewCertPool()
	for _, c := range certs[1:] {
		between.AddCert(c)
	}
	var found *merlon.Node
	err := fmt.Errorf("its names %q are no node's", leaf.DNSNames)
	for i := range in.Nodes {
		n := &in.Nodes[i]
		if n.X509 == nil || !slices.Contains(leaf.DNSNames, n.X509.DNS) { // byte for byte: no wildcard
			continue
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM([]byte(n.X509.CA)) // none verifies nothing
		if _, verr := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: s.cfg.Now(),
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); verr != nil {
			err = fmt.Errorf("node %s: %w", n.Name, verr)
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("its certificate is that of the nodes %s and %s", found.Name, n.Name)
		}
		found = n
	}
	if found == nil {
		return nil, err
	}
	return found, nil
}

// challenged is what the key of a node's certificate signs: a text that means
// nothing anywhere else, about this attempt and this key of the node's SVID.
func challenged(nonce, csr []byte) []byte {
	key := sha256.Sum256(csr)
	return slices.Concat([]byte("merlon node attestation 1\x00"), nonce, key[:])
}
