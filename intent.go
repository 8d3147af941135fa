package merlon

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Intent is what people want, the only source of truth: what the services are
// and who may call whom. What it does not allow is denied. An Intent is data,
// resolved (every name in it is defined) and safe to share once built.
type Intent struct {
	TrustDomain string      `json:"trustDomain"`
	Mode        Mode        `json:"mode"`
	Gateway     *Gateway    `json:"gateway,omitzero"` // nil: nothing is reachable from outside
	Services    []Service   `json:"services"`         // in the order of Name
	Nodes       []Node      `json:"nodes,omitzero"`   // in the order of Name
	Guardrails  []Guardrail `json:"guardrails,omitzero"`
	Federation  []Partner   `json:"federation,omitzero"` // in the order of TrustDomain
	Telemetry   *Telemetry  `json:"telemetry,omitzero"`  // nil: gates tell nobody unasked
	Tests       []Test      `json:"tests,omitzero"`
}

// Service finds a service by name, or returns nil.
func (in *Intent) Service(name string) *Service {
	i, ok := slices.BinarySearchFunc(in.Services, name, func(s Service, n string) int {
		switch {
		case s.Name < n:
			return -1
		case s.Name > n:
			return 1
		}
		return 0
	})
	if !ok {
		return nil
	}
	return &in.Services[i]
}

// Node finds a node by name, or returns nil.
func (in *Intent) Node(name string) *Node {
	for i := range in.Nodes {
		if in.Nodes[i].Name == name {
			return &in.Nodes[i]
		}
	}
	return nil
}

// Here is the intent with only those services whose workloads run on the host of
// the control plane.
func (in *Intent) Here() *Intent {
	here := *in
	here.Services = nil
	for _, s := range in.Services {
		if len(s.Nodes) == 0 {
			here.Services = append(here.Services, s)
		}
	}
	return &here
}

// Partner finds a partner by its trust domain, or returns nil.
func (in *Intent) Partner(trustDomain string) *Partner {
	for i := range in.Federation {
		if in.Federation[i].TrustDomain == trustDomain {
			return &in.Federation[i]
		}
	}
	return nil
}

// SPIFFEID is the identity of a workload of this intent, such as
// spiffe://shop.example/orders (SPIFFE-ID 2).
func (in *Intent) SPIFFEID(workload string) string {
	return "spiffe://" + in.TrustDomain + "/" + workload
}

// Mode says whether a denial is enforced or only recorded. The zero value
// enforces.
type Mode uint8

const (
	Enforce Mode = iota
	Shadow       // decide, record "would deny", let pass
)

var modes = [...]string{"enforce", "shadow"}

// String is the mode's word in the intent.
func (m Mode) String() string { return enumName(modes[:], int(m)) }

// MarshalText writes the mode's word.
func (m Mode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads the mode's word.
func (m *Mode) UnmarshalText(text []byte) error {
	return enumParse(modes[:], text, "mode", (*uint8)(m))
}

// Gateway is the edge: where calls from outside come in.
type Gateway struct {
	Pos            Pos         `json:"pos"`
	Listen         string      `json:"listen"` // host:port
	Hosts          []string    `json:"hosts"`  // canonical host names that are answered
	Certificate    Certificate `json:"certificate"`
	MinTLS         string      `json:"minTLS"`                  // "1.3" or "1.2"
	TrustedProxies []string    `json:"trustedProxies,omitzero"` // CIDRs whose X-Forwarded-For is believed
	ProxyProtocol  []string    `json:"proxyProtocol,omitzero"`  // CIDRs whose connections begin with a PROXY protocol header
	Logins         []LoginRule `json:"logins,omitzero"`         // in the order of Name
	Limit          *Limit      `json:"limit,omitzero"`
}

// Certificate says how the gateway proves its hosts to clients.
type Certificate struct {
	Kind CertificateKind `json:"kind"`
	Cert string          `json:"cert,omitzero"` // PEM files, for CertificateFiles
	Key  string          `json:"key,omitzero"`
}

// CertificateKind is where a certificate comes from.
type CertificateKind uint8

const (
	CertificateSelfSigned CertificateKind = iota // made at the first start; for a first look
	CertificateFiles                             // PEM files on the gateway's host
	CertificateNone                              // plain HTTP: TLS ends in front of the gateway
)

var certificateKinds = [...]string{"self-signed", "files", "none"}

// String is the kind's word in the intent.
func (k CertificateKind) String() string { return enumName(certificateKinds[:], int(k)) }

// MarshalText writes the kind's word.
func (k CertificateKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads the kind's word.
func (k *CertificateKind) UnmarshalText(text []byte) error {
	return enumParse(certificateKinds[:], text, "certificate", (*uint8)(k))
}

// LoginRule is a group of people or programs outside that prove themselves by
// a JWT bearer token (RFC 6750, RFC 7519) of one issuer and audience.
type LoginRule struct {
	Name       string   `json:"name"`
	Pos        Pos      `json:"pos"`
	Issuer     string   `json:"issuer"`
	Audience   string   `json:"audience"`
	KeySet     string   `json:"keySet,omitzero"`     // https URL of the JWKS (RFC 7517), or
	Keys       string   `json:"keys,omitzero"`       // the JWKS itself, read from a file
	Algorithms []string `json:"algorithms"`          // such as RS256; never none, never HMAC
	AllowLocal bool     `json:"allowLocal,omitzero"` // KeySet may be at a private address
}

// Service is something that calls or is called, known by one SPIFFE ID.
type Service struct {
	Name       string        `json:"name"`
	Pos        Pos           `json:"pos"`
	External   bool          `json:"external,omitzero"`  // not ours, cannot call; reached over public TLS, or see Foreign
	Foreign    string        `json:"foreign,omitzero"`   // external: the workload of another trust domain that it proves to be, as ForeignDomain knows it
	Addresses  []string      `json:"addresses,omitzero"` // host:port or dns:host:port
	Hosts      []string      `json:"hosts,omitzero"`     // of the gateway, or of the external service
	Zone       string        `json:"zone,omitzero"`
	Mode       Mode          `json:"mode,omitzero"`
	Workload   *WorkloadRule `json:"workload,omitzero"`
	Nodes      []string      `json:"nodes,omitzero"` // where its workloads run; none: on the host of the control plane
	Protocol   Protocol      `json:"protocol"`
	Operations []Operation   `json:"operations,omitzero"` // in the order of Name
	Rules      []Rule        `json:"rules,omitzero"`      // in the order they were written
	Timeout    time.Duration `json:"timeout"`             // for a whole answer to begin
	Retry      int           `json:"retry"`               // budget, percent of calls that may be retried; 0 for none
	MaxBody    int64         `json:"maxBody"`             // bytes of a request body
	Slashes    bool          `json:"slashes,omitzero"`    // %2F stays inside one segment instead of being refused
	Run        *Run          `json:"run,omitzero"`
	// LocalPorts are where the service's own gate offers it services that speak
	// TCP: a port of the loopback address for the name of each.
	LocalPorts map[string]uint16 `json:"localPorts,omitzero"`
}

// Operation finds an operation by name, or returns nil.
func (s *Service) Operation(name string) *Operation {
	for i := range s.Operations {
		if s.Operations[i].Name == name {
			return &s.Operations[i]
		}
	}
	return nil
}

// Protocol is what a service speaks. It comes from the contract or the intent
// and is never guessed on the wire.
type Protocol uint8

const (
	HTTP  Protocol = iota // HTTP; the service reads HTTP/1.1
	GRPC                  // gRPC, over HTTP/2
	TCP                   // bytes; rules are about identity only
	HTTP2                 // HTTP; the service reads HTTP/2
)

var protocols = [...]string{"http", "grpc", "tcp", "http2"}

// String is the protocol's word in the intent.
func (p Protocol) String() string { return enumName(protocols[:], int(p)) }

// MarshalText writes the protocol's word.
func (p Protocol) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads the protocol's word.
func (p *Protocol) UnmarshalText(text []byte) error {
	return enumParse(protocols[:], text, "protocol", (*uint8)(p))
}

// WorkloadRule says how a running process is recognised as the service. All
// that it names must hold; what is empty is not asked.
type WorkloadRule struct {
	Pos          Pos               `json:"pos"`
	UnixUser     string            `json:"unixUser,omitzero"`     // name or number
	UnixGroup    string            `json:"unixGroup,omitzero"`    // name or number, of the process's groups
	Executable   string            `json:"executable,omitzero"`   // the file that the process runs, by its absolute path on this host
	SHA256       string            `json:"sha256,omitzero"`       // of that file, hexadecimal
	SystemdUnit  string            `json:"systemdUnit,omitzero"`  // such as web.service
	DockerImage  string            `json:"dockerImage,omitzero"`  // digest, such as sha256:..., or NAME@sha256:...
	DockerLabels map[string]string `json:"dockerLabels,omitzero"` // of the container

	ContainerdNamespace string            `json:"containerdNamespace,omitzero"` // "" if nothing is asked of containerd
	ContainerdImage     string            `json:"containerdImage,omitzero"`
	ContainerdLabels    map[string]string `json:"containerdLabels,omitzero"`

	Kubernetes string `json:"kubernetes,omitzero"` // NAMESPACE/SERVICEACCOUNT
}

// Selectors lists what the rule asks, such as `unix user "web"`, in the order
// of its fields. They are for people.
func (w *WorkloadRule) Selectors() []string {
	if w == nil {
		return nil
	}
	var all []string
	add := func(what, value string) {
		if value != "" {
			all = append(all, what+" "+strconv.Quote(value))
		}
	}
	add("unix user", w.UnixUser)
	add("unix group", w.UnixGroup)
	add("executable", w.Executable)
	add("sha256", w.SHA256)
	add("systemd unit", w.SystemdUnit)
	add("docker image", w.DockerImage)
	for _, name := range slices.Sorted(maps.Keys(w.DockerLabels)) {
		add("docker label", name+"="+w.DockerLabels[name])
	}
	add("containerd namespace", w.ContainerdNamespace)
	add("containerd image", w.ContainerdImage)
	for _, name := range slices.Sorted(maps.Keys(w.ContainerdLabels)) {
		add("containerd label", name+"="+w.ContainerdLabels[name])
	}
	add("kubernetes service account", w.Kubernetes)
	return all
}

// Node is another host than the control plane's, or several that prove
// themselves alike. Its agent gives the services that the intent puts there their
// identities. Exactly one of the ways to prove it is set.
type Node struct {
	Name       string    `json:"name"`
	Pos        Pos       `json:"pos"`
	JoinToken  bool      `json:"joinToken,omitzero"`  // single use, from merlon node token
	X509       *NodeX509 `json:"x509,omitzero"`       // the key of a certificate
	Kubernetes string    `json:"kubernetes,omitzero"` // the agent's pod runs as NAMESPACE/SERVICEACCOUNT
}

// NodeX509 is the certificate by which a node proves itself.
type NodeX509 struct {
	CA  string `json:"ca"`  // PEM, read from a file
	DNS string `json:"dns"` // a name that it must have, exactly
}

// Proof says how the node proves itself, for people.
func (n *Node) Proof() string {
	switch {
	case n.JoinToken:
		return "join token"
	case n.X509 != nil:
		return "certificate for " + n.X509.DNS
	case n.Kubernetes != "":
		return "kubernetes service account " + n.Kubernetes
	}
	return ""
}

// Run says how to build and start a service on this machine, for merlon up.
// Commands are argument lists, never given to a shell; {bin} is the place of
// the built program.
type Run struct {
	Pos     Pos               `json:"pos"`
	Dir     string            `json:"dir,omitzero"`
	Build   []string          `json:"build,omitzero"`
	Command []string          `json:"command"`
	Env     map[string]string `json:"env,omitzero"`
}

// Operation is one thing a contract offers.
type Operation struct {
	Name   string      `json:"name"` // unique in its service: operationId, or the rpc's name
	Method string      `json:"method"`
	Path   string      `json:"path"` // template, such as /orders/{id}; {rest...} ends one that takes many segments
	Params []ParamSpec `json:"params,omitzero"`
	Pos    Pos         `json:"pos"` // in the contract
	// Streams says that messages may come and go for as long as both sides like:
	// a streaming rpc.
	Streams bool `json:"streams,omitzero"`
	// WebSocket says that a GET may become a WebSocket (RFC 6455, RFC 8441).
	WebSocket bool `json:"webSocket,omitzero"`
}

// ParamSpec is a parameter that an operation's contract declares.
type ParamSpec struct {
	Name     string    `json:"name"`
	In       ParamIn   `json:"in"`
	Type     ParamType `json:"type"`
	Required bool      `json:"required,omitzero"`
}

// ParamIn is where a parameter stands in a request.
type ParamIn uint8

const (
	InPath ParamIn = iota
	InQuery
)

// ParamType is the type of a parameter, as conditions see it.
type ParamType uint8

const (
	String ParamType = iota
	Integer
	Number
	Boolean
)

// Rule is one sentence of an intent: this caller, these operations, under
// these conditions. It belongs to the service it protects.
type Rule struct {
	Caller     string   `json:"caller"` // a service, a login, AnyCaller, or a workload of a partner
	Pos        Pos      `json:"pos"`    // of the caller's name
	Operations []string `json:"operations"`
	All        bool     `json:"all,omitzero"` // written as "all"; Operations lists them nevertheless
	When       string   `json:"when,omitzero"`
	WhenPos    Pos      `json:"whenPos,omitzero"`
	Mode       Mode     `json:"mode,omitzero"`
	Limit      *Limit   `json:"limit,omitzero"`
}

// AnyCaller is the caller of a rule that lets in everyone who comes through
// the gateway, with or without a login.
const AnyCaller = "anyone"

// Limit bounds how often something may happen. It is a token bucket: Burst at
// once, refilled at Count per Window.
type Limit struct {
	Pos    Pos           `json:"pos"`
	Count  int           `json:"count"`
	Window time.Duration `json:"window"`
	Burst  int           `json:"burst"`
	Per    LimitKey      `json:"per"`
}

// LimitKey is what a limit counts by.
type LimitKey uint8

const (
	PerClient LimitKey = iota // the client's address
	PerCaller                 // the proved caller: service, or login and subject
)

// Partner is another trust domain, whose workloads may call and be called. A
// workload is named by trust domain and path, such as partner.example/billing for
// spiffe://partner.example/billing.
type Partner struct {
	TrustDomain string `json:"trustDomain"`
	Pos         Pos    `json:"pos"`
	Bundle      string `json:"bundle,omitzero"`     // https URL of its bundle endpoint (SPIFFE Federation 5)
	EndpointID  string `json:"endpointID,omitzero"` // SPIFFE ID that the endpoint proves; "" for a certificate of the web
	First       string `json:"first,omitzero"`      // the bundle to begin with, read from a file
	AllowLocal  bool   `json:"allowLocal,omitzero"` // Bundle may be at a private address
}

// Profile is how the bundle endpoint proves itself (SPIFFE Federation 5.2).
func (p *Partner) Profile() string {
	if p.EndpointID == "" {
		return "https_web"
	}
	return "https_spiffe"
}

// ForeignDomain is the trust domain in the name of a workload of a partner, or ""
// if it is any other name: those have no slash.
func ForeignDomain(caller string) string {
	if i := strings.IndexByte(caller, '/'); i > 0 {
		return caller[:i]
	}
	return ""
}

// Guardrail is a denial that owners of a service cannot lift. It goes before
// every rule.
type Guardrail struct {
	Name    string `json:"name"`
	Pos     Pos    `json:"pos"`
	Deny    Edges  `json:"deny"`
	Because string `json:"because,omitzero"`
}

// Edges is a set of possible calls, written "CALLER -> CALLEE.OPERATION". A
// caller is "*", "anyone", a login, a service or "zone:ZONE"; a callee is "*",
// a service or "zone:ZONE"; the operation may be left out.
type Edges struct {
	Caller    string `json:"caller"`
	Callee    string `json:"callee"`
	Operation string `json:"operation,omitzero"`
}

// Telemetry is what gates tell unasked about the calls that pass them.
type Telemetry struct {
	Traces *Traces `json:"traces,omitzero"` // nil: no spans
}

// Traces says where gates send spans of calls (OpenTelemetry), and of which.
type Traces struct {
	Pos       Pos    `json:"pos"`
	Collector string `json:"collector"`      // base URL of OTLP over HTTP, without the slash at its end
	Sample    int    `json:"sample"`         // calls of a million whose trace is sampled where it begins
	Trust     bool   `json:"trust,omitzero"` // the gateway continues traces of clients
}

// Test is an expectation that check, plan and apply must find true.
type Test struct {
	Pos    Pos            `json:"pos"`
	Call   Edges          `json:"call"` // exact names, or Method and Path instead of an operation
	Method string         `json:"method,omitzero"`
	Path   string         `json:"path,omitzero"` // with its query
	Claims map[string]any `json:"claims,omitzero"`
	Expect Effect         `json:"expect"` // Allow or Deny
}
