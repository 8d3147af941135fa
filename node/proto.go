package node

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"

	"merlon"
)

// The protocol is gRPC with messages in JSON: both ends are ours, and what a
// node is told of a service is what the intent says of it.

const (
	serviceName = "merlon.node.v1.Node"
	attestPath  = "/" + serviceName + "/Attest"
	watchPath   = "/" + serviceName + "/Watch"
	renewPath   = "/" + serviceName + "/Renew"
	signPath    = "/" + serviceName + "/Sign"
	tokenPath   = "/" + serviceName + "/Token"
	reportPath  = "/" + serviceName + "/Report"
)

// hello is how a node begins to prove itself, by exactly one of the ways.
type hello struct {
	Join       *ticketProof `json:"join,omitempty"`
	X509       [][]byte     `json:"x509,omitempty"` // the chain, DER; a challenge follows
	Kubernetes string       `json:"kubernetes,omitempty"`
	CSR        []byte       `json:"csr"` // for the key of the node's SVID
}

// ticketProof is what the server needs of a join token.
type ticketProof struct {
	Node   string `json:"node"`
	Secret string `json:"secret"`
}

// challenge is to be signed by the key of the certificate in hello.
type challenge struct {
	Nonce []byte `json:"nonce"`
}

type response struct {
	Signature []byte `json:"signature"`
}

// admitted is what a node has when it has proved itself.
type admitted struct {
	Node   string   `json:"node"`
	Chain  [][]byte `json:"chain"`  // the node's SVID and what lies between it and a root, DER
	Bundle []byte   `json:"bundle"` // of the trust domain (SPIFFE Trust Domain and Bundle 4)
}

// View is all that a node is told: how the services are recognised that the
// intent puts on it, and what SVIDs are verified by.
type View struct {
	Services  []Service         `json:"services"`
	Bundle    []byte            `json:"bundle"`
	Federated map[string][]byte `json:"federated,omitempty"` // bundles of other trust domains
	Lifetime  time.Duration     `json:"lifetime"`            // of an SVID that nothing cuts short
}

// Service is one service on a node.
type Service struct {
	Name     string               `json:"name"`
	Pos      merlon.Pos           `json:"pos"`
	Workload *merlon.WorkloadRule `json:"workload"`
}

// signRequest asks for an X.509-SVID: of the node itself by Renew, of a service
// by Sign.
type signRequest struct {
	Service string `json:"service,omitzero"`
	CSR     []byte `json:"csr"`
}

type signed struct {
	Chain [][]byte `json:"chain"`
}

// tokenRequest asks for a JWT-SVID.
type tokenRequest struct {
	Service  string   `json:"service"`
	Audience []string `json:"audience"`
}

type tokenAnswer struct {
	Token string    `json:"token"`
	Until time.Time `json:"until"`
}

// report says what the node cannot do of what it was told, or "".
type report struct {
	Problem string `json:"problem"`
}

type nothing struct{}

// codec is JSON with known fields only: an end that does not understand a
// message says so.
type codec struct{}

func (codec) Name() string                  { return "json" }
func (codec) Marshal(v any) ([]byte, error) { return json.Marshal(v) }
func (codec) Unmarshal(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("there is more than one value")
	}
	return nil
}

var attestDesc = grpc.StreamDesc{StreamName: "Attest", ClientStreams: true, ServerStreams: true}
var watchDesc = grpc.StreamDesc{StreamName: "Watch", ServerStreams: true}

// newCSR is a request for a certificate of a key. It names nothing: who the
// certificate is for is decided elsewhere.
func newCSR(key any) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
}

// readCSR is the key of a request, whose private key its sender has. A request
// that names anything is refused: nobody shall think that it is heeded.
func readCSR(der []byte) (*ecdsa.PublicKey, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, errors.New("the certificate request cannot be read")
	}
	key, ok := csr.PublicKey.(*ecdsa.PublicKey)
	switch {
	case !ok || key.Curve != elliptic.P256():
		return nil, errors.New("an SVID is for a P-256 key")
	case len(csr.Subject.Names) > 0 || len(csr.Extensions) > 0:
		return nil, errors.New("the certificate request asks for names or extensions; it is for a key alone")
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, errors.New("the certificate request is not signed by its own key")
	}
	return key, nil
}

// Paths of SPIFFE IDs that no service has: its name has no slash.
const (
	nodePrefix   = "merlon/node/"
	endpointPath = "merlon/node-endpoint"
)

// EndpointID is the SPIFFE ID by which the node endpoint of a trust domain proves
// itself, and the audience of Kubernetes tokens for it.
func EndpointID(trustDomain string) string { return "spiffe://" + trustDomain + "/" + endpointPath }

// nodeID is the SPIFFE ID of a node.
func nodeID(trustDomain, node string) string {
	return "spiffe://" + trustDomain + "/" + nodePrefix + node
}

// nodeOf is the node that a SPIFFE ID of the trust domain names, or "".
func nodeOf(id, trustDomain string) string {
	name, ok := strings.CutPrefix(id, nodeID(trustDomain, ""))
	if !ok || strings.Contains(name, "/") {
		return ""
	}
	return name
}
