package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"merlon"
	"merlon/attest"
	"merlon/authority"
	"merlon/identity/spiffe"
	"merlon/internal/bucket"
)

// Bounds of what nodes and strangers may ask for.
const (
	maxConns      = 4096 // of nodes
	maxConnsNode  = 64   // of one node, which may be many hosts
	maxStrangers  = 256  // connections that have proved nothing yet
	maxStrangersA = 16   // of one address
	strangerTime  = 10 * time.Second
	maxStreams    = 64 // at a time on one connection
	maxMessage    = 64 << 10
	maxHeader     = 8 << 10
	signBurst     = 2000 // SVIDs at once for one node, then signRate
	signRate      = 50   // a second
	refusalBurst  = 20   // lines of log about strangers, then refusalRate
	refusalRate   = 1    // a second
	aliveTime     = 30 * time.Second
	maxTokenTTL   = 24 * time.Hour
)

// Config of a Server.
type Config struct {
	Authority   *authority.Authority
	TrustDomain string
	Dir         string          // where the server remembers join tokens
	Cluster     *attest.Cluster // verifies tokens for EndpointID; nil where there is no Kubernetes
	// Federated are the bundles of other trust domains, in a fixed order, and a
	// channel that is closed when there are others. It may be nil.
	Federated func() ([]*spiffe.Bundle, <-chan struct{})
	Now       func() time.Time // nil is time.Now
	Log       *slog.Logger     // nil is nowhere
}

// Server admits nodes and serves them. Use NewServer.
type Server struct {
	cfg    Config
	ledger *ledger
	source *authority.Source
	door   *door
	grpc   *grpc.Server
	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.Mutex
	in      *merlon.Intent // in force; nil before the first
	changed chan struct{}  // closed when in is another
	agents  map[*agent]struct{}
	buckets map[string]*bucket.Bucket // by node of the intent
}

// agent is one that watches.
type agent struct {
	*guest
	since   time.Time
	problem string // that it has reported
}

// NewServer makes a Server.
func NewServer(cfg Config) (*Server, error) {
	if cfg.Federated == nil {
		cfg.Federated = func() ([]*spiffe.Bundle, <-chan struct{}) { return nil, nil }
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	l, err := openLedger(filepath.Join(cfg.Dir, "nodes.json"))
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, ledger: l, changed: make(chan struct{}), agents: map[*agent]struct{}{}, buckets: map[string]*bucket.Bucket{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if s.source, err = cfg.Authority.Source(s.ctx, EndpointID(cfg.TrustDomain), cfg.Log); err != nil {
		s.cancel()
		return nil, err
	}
	s.door = newDoor(s)
	s.grpc = grpc.NewServer(
		grpc.Creds(s.door), grpc.ForceServerCodec(codec{}),
		grpc.MaxConcurrentStreams(maxStreams), grpc.MaxRecvMsgSize(maxMessage), grpc.MaxHeaderListSize(maxHeader),
		grpc.ConnectionTimeout(strangerTime),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: aliveTime, Timeout: aliveTime}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: aliveTime / 2, PermitWithoutStream: true}),
	)
	s.grpc.RegisterService(s.description(), s)
	return s, nil
}

func (s *Server) description() *grpc.ServiceDesc {
	attest, watch := attestDesc, watchDesc
	attest.Handler = func(_ any, stream grpc.ServerStream) error { return s.attest(stream) }
	watch.Handler = func(_ any, stream grpc.ServerStream) error { return s.watch(stream) }
	return &grpc.ServiceDesc{ServiceName: serviceName, HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{attest, watch},
		Methods: []grpc.MethodDesc{method("Renew", s.renew), method("Sign", s.sign), method("Token", s.token), method("Report", s.report)}}
}

func method[In, Out any](name string, handle func(context.Context, *In) (*Out, error)) grpc.MethodDesc {
	return grpc.MethodDesc{MethodName: name, Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		in := new(In)
		if err := decode(in); err != nil {
			return nil, err
		}
		return handle(ctx, in)
	}}
}

// Check refuses an intent with a node that could never prove itself here.
func (s *Server) Check(in *merlon.Intent) error {
	for i := range in.Nodes {
		if n := &in.Nodes[i]; n.Kubernetes != "" && s.cfg.Cluster == nil {
			return fmt.Errorf("%v: node %s cannot prove itself: the keys of no Kubernetes cluster are known here", n.Pos, n.Name)
		}
	}
	return nil
}

// Set takes up the intent in force. Nodes and services that it does not have any
// more lose what they have at once.
func (s *Server) Set(in *merlon.Intent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ledger.set(in.Nodes, s.cfg.Now()); err != nil {
		s.cfg.Log.Error("what is known of nodes could not be written down: after a restart, nodes that came into the intent now may have to join again", "err", err)
	}
	s.in = in
	for name := range s.buckets {
		if in.Node(name) == nil {
			delete(s.buckets, name)
		}
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

// intent is the intent in force, nil before the first, and a channel that is
// closed when it is another.
func (s *Server) intent() (*merlon.Intent, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.in, s.changed
}

// Serve answers on l until Close.
func (s *Server) Serve(l net.Listener) error {
	err := s.grpc.Serve(l)
	if errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

// Close ends all that goes on.
func (s *Server) Close() {
	s.cancel()
	s.grpc.Stop()
}

// JoinToken makes a join token for a node, which is good once and for so long. A
// token that was made before is good for nothing then.
func (s *Server) JoinToken(name string, ttl time.Duration) (*JoinToken, error) {
	in, _ := s.intent()
	if in == nil {
		return nil, errors.New("no intent is in force yet")
	}
	n := in.Node(name)
	switch {
	case n == nil:
		return nil, fmt.Errorf("no node of the intent in force is called %q", name)
	case !n.JoinToken:
		return nil, fmt.Errorf("%v: node %s proves itself by its %s, not by a join token", n.Pos, name, n.Proof())
	case ttl <= 0 || ttl > maxTokenTTL:
		return nil, fmt.Errorf("a join token is good for at most %v, and not for %v", maxTokenTTL, ttl)
	}
	root, err := s.root()
	if err != nil {
		return nil, err
	}
	t := &JoinToken{TrustDomain: s.cfg.TrustDomain, Node: name, pin: pinOf(root)}
	if t.secret, err = s.ledger.issue(name, s.cfg.Now().Add(ttl)); err != nil {
		return nil, err
	}
	return t, nil
}

// caller is the node that calls, which the intent has and whose SVID is its.
func (s *Server) caller(ctx context.Context) (*guest, *merlon.Intent, error) {
	in, _ := s.intent()
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, nil, errUnproved
	}
	g, ok := p.AuthInfo.(*guest)
	if !ok || g.node == "" {
		return nil, nil, errUnproved
	}
	if in == nil {
		return nil, nil, errEarly
	}
	return g, in, s.admits(g, in)
}

var (
	errUnproved = status.Error(codes.Unauthenticated, "this is for nodes, which prove themselves by their SVIDs")
	errRemoved  = status.Error(codes.PermissionDenied, "the intent has no such node, or it has to prove itself anew")
	errBusy     = status.Error(codes.ResourceExhausted, "more SVIDs are asked for than a node may need")
	errEarly    = status.Error(codes.Unavailable, "no intent is in force yet")
	errStops    = status.Error(codes.Unavailable, "the server stops")
)

// admits says whether a node's SVID is good now: the handshake may be long ago.
func (s *Server) admits(g *guest, in *merlon.Intent) error {
	since, ok := s.ledger.since(in.Node(g.node))
	switch {
	case !s.cfg.Now().Before(g.cert.NotAfter):
		return errUnproved
	case !ok || g.cert.NotBefore.Add(authority.Skew).Before(since):
		return errRemoved
	}
	return nil
}

// servicesOn are the services that the intent puts on a node.
func servicesOn(in *merlon.Intent, node string) []Service {
	all := []Service{}
	for i := range in.Services {
		if s := &in.Services[i]; !s.External && s.Workload != nil && slices.Contains(s.Nodes, node) {
			all = append(all, Service{s.Name, s.Pos, s.Workload})
		}
	}
	return all
}

// watch tells a node what it needs, and of every change.
func (s *Server) watch(stream grpc.ServerStream) error {
	ctx := stream.Context()
	g, _, err := s.caller(ctx)
	if err != nil {
		return err
	}
	if err := stream.RecvMsg(new(nothing)); err != nil {
		return err
	}
	a := &agent{guest: g, since: s.cfg.Now()}
	s.mu.Lock()
	s.agents[a] = struct{}{}
	s.mu.Unlock()
	s.cfg.Log.Info("a node is connected", "node", g.node, "from", g.address)
	defer func() {
		s.mu.Lock()
		delete(s.agents, a)
		s.mu.Unlock()
		s.cfg.Log.Info("a node is not connected any more", "node", g.node, "from", g.address)
	}()
	var last []byte
	for {
		// The channels are taken before what they are about is read.
		in, changed := s.intent()
		stale := s.cfg.Authority.Trust().Stale()
		partners, others := s.cfg.Federated()
		if err := s.admits(g, in); err != nil {
			s.cfg.Log.Warn("a node is refused", "node", g.node, "from", g.address, "err", err)
			return err
		}
		view, err := s.view(in, g.node, partners)
		if err != nil {
			return s.unavailable(g.node, err)
		}
		text, err := codec{}.Marshal(view)
		if err != nil {
			return s.unavailable(g.node, err)
		}
		if !bytes.Equal(text, last) {
			if err := stream.SendMsg(view); err != nil {
				return err
			}
			last = text
		}
		select {
		case <-changed:
		case <-stale:
		case <-others:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ctx.Done():
			return errStops
		}
	}
}

func (s *Server) view(in *merlon.Intent, node string, partners []*spiffe.Bundle) (*View, error) {
	v := &View{Services: servicesOn(in, node), Lifetime: s.cfg.Authority.Lifetime()}
	var err error
	if v.Bundle, err = s.bundle(); err != nil {
		return nil, err
	}
	for _, b := range partners {
		text, err := spiffe.EncodeBundle(b.DER, b.JWKS, b.Sequence, b.Hint)
		if err != nil {
			return nil, err
		}
		if v.Federated == nil {
			v.Federated = map[string][]byte{}
		}
		v.Federated[b.TrustDomain] = text
	}
	return v, nil
}

func (s *Server) bundle() ([]byte, error) {
	t := s.cfg.Authority.Trust()
	return spiffe.EncodeBundle(t.DER, t.JWKS, 0, 0)
}

// renew gives a node a new SVID for the one that it shows. It is for those that
// joined by a token; the others can prove themselves anew, and must.
func (s *Server) renew(ctx context.Context, r *signRequest) (*signed, error) {
	g, in, err := s.caller(ctx)
	if err != nil {
		return nil, err
	}
	n := in.Node(g.node)
	if !n.JoinToken {
		return nil, status.Error(codes.FailedPrecondition, "the node has to prove itself anew")
	}
	return s.issueNode(n, r.CSR)
}

// sign gives a node an X.509-SVID of a service that is on it.
func (s *Server) sign(ctx context.Context, r *signRequest) (*signed, error) {
	g, id, err := s.serviceOf(ctx, r.Service)
	if err != nil {
		return nil, err
	}
	return s.issue(g.node, id, r.CSR, s.cfg.Now())
}

// token gives a node a JWT-SVID of a service that is on it.
func (s *Server) token(ctx context.Context, r *tokenRequest) (*tokenAnswer, error) {
	g, id, err := s.serviceOf(ctx, r.Service)
	if err != nil {
		return nil, err
	}
	if err := spiffe.CheckAudience(r.Audience); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if !s.take(g.node) {
		return nil, errBusy
	}
	token, until, err := s.cfg.Authority.IssueJWT(id, r.Audience, s.cfg.Now())
	if err != nil {
		return nil, s.unavailable(g.node, err)
	}
	return &tokenAnswer{token, until}, nil
}

// maxProblem bounds what is kept of a report, in bytes.
const maxProblem = 4 << 10

// report takes what a node cannot do, for people to see where the intent is.
func (s *Server) report(ctx context.Context, r *report) (*nothing, error) {
	g, _, err := s.caller(ctx)
	if err != nil {
		return nil, err
	}
	text := strings.ToValidUTF8(r.Problem[:min(len(r.Problem), maxProblem)], "")
	s.mu.Lock()
	for a := range s.agents {
		if a.guest == g {
			a.problem = text
		}
	}
	s.mu.Unlock()
	if text != "" {
		s.door.refused("a node cannot do all that the intent asks", "node", g.node, "from", g.address, "problem", text)
	}
	return &nothing{}, nil
}

// serviceOf is the SPIFFE ID of a service, if the intent puts it on the node that
// calls.
func (s *Server) serviceOf(ctx context.Context, name string) (*guest, string, error) {
	g, in, err := s.caller(ctx)
	if err != nil {
		return nil, "", err
	}
	if !slices.ContainsFunc(servicesOn(in, g.node), func(svc Service) bool { return svc.Name == name }) {
		s.door.refused("a node asks for an identity that is not on it", "node", g.node, "service", name, "from", g.address)
		return nil, "", status.Error(codes.NotFound, "the intent puts no such service on this node")
	}
	return g, in.SPIFFEID(name), nil
}

// issueNode signs a node's own X.509-SVID, which counts from now on; see entry.
func (s *Server) issueNode(n *merlon.Node, csr []byte) (*signed, error) {
	since, ok := s.ledger.since(n) // the intent may be another by now
	if !ok {
		return nil, errRemoved
	}
	now := s.cfg.Now()
	if since.Sub(now) > authority.Skew {
		return nil, s.unavailable(n.Name, fmt.Errorf("it came into the intent at %v, by a clock that was ahead", since))
	}
	if now.Before(since) {
		now = since
	}
	return s.issue(n.Name, nodeID(s.cfg.TrustDomain, n.Name), csr, now)
}

// issue signs an X.509-SVID.
func (s *Server) issue(node, id string, csr []byte, now time.Time) (*signed, error) {
	key, err := readCSR(csr)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if !s.take(node) {
		return nil, errBusy
	}
	chain, _, err := s.cfg.Authority.Issue(id, key, now)
	if err != nil {
		return nil, s.unavailable(node, err)
	}
	return &signed{chain}, nil
}

// take bounds how many SVIDs are signed for a node.
func (s *Server) take(node string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.buckets[node]
	if b == nil {
		b = bucket.New(signBurst, signRate, s.cfg.Now())
		s.buckets[node] = b
	}
	return b.Take(s.cfg.Now())
}

// unavailable is the answer when the authority cannot: the cause is for the log.
func (s *Server) unavailable(node string, err error) error {
	s.cfg.Log.Error("a node could not be served", "node", node, "err", err)
	return status.Error(codes.Unavailable, "the authority cannot answer; its log says why")
}

// Status is one node of the intent in force.
type Status struct {
	Node     string        `json:"node"`
	Pos      merlon.Pos    `json:"pos"`
	Proof    string        `json:"proof"`
	Services []string      `json:"services"`
	Agents   []AgentStatus `json:"agents,omitempty"` // connected
}

// AgentStatus is one agent that is connected.
type AgentStatus struct {
	Address string    `json:"address"`
	Since   time.Time `json:"since"`
	Until   time.Time `json:"until"` // the end of the SVID that it shows
	// Problem is what it cannot do of what the intent asks, such as recognising a
	// user who is not on that host.
	Problem string `json:"problem,omitzero"`
}

// Status is how the nodes of the intent in force are, in the order of their
// names.
func (s *Server) Status() []Status {
	in, _ := s.intent()
	all := []Status{}
	if in == nil {
		return all
	}
	for i := range in.Nodes {
		n := &in.Nodes[i]
		row := Status{Node: n.Name, Pos: n.Pos, Proof: n.Proof(), Services: []string{}}
		for _, svc := range servicesOn(in, n.Name) {
			row.Services = append(row.Services, svc.Name)
		}
		s.mu.Lock()
		for a := range s.agents {
			if a.node == n.Name {
				row.Agents = append(row.Agents, AgentStatus{a.address, a.since, a.cert.NotAfter, a.problem})
			}
		}
		s.mu.Unlock()
		slices.SortFunc(row.Agents, func(a, b AgentStatus) int {
			if c := a.Since.Compare(b.Since); c != 0 {
				return c
			}
			return strings.Compare(a.Address, b.Address)
		})
		all = append(all, row)
	}
	return all
}
