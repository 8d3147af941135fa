package node

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"merlon/attest"
	"merlon/authority"
	"merlon/identity/spiffe"
	"merlon/internal/sockowner"
)

// AgentConfig says where an agent's server is and how it proves itself: by
// exactly one of a join token, a certificate with its key and a Kubernetes token.
// Files are read each time they are needed.
type AgentConfig struct {
	Server string // HOST:PORT
	Dir    string // where the agent keeps what it has
	// Token reads a join token, which is not needed while the node's SVID is
	// valid; nil without one.
	Token          func() ([]byte, error)
	CertFile       string
	KeyFile        string
	KubernetesFile string
	// TrustDomain and Roots are what the server is known by, for who has no join
	// token.
	TrustDomain string
	Roots       []byte // PEM

	Attest attest.Options
	Now    func() time.Time // nil is time.Now
	Log    *slog.Logger     // nil is nowhere
}

// Agent is a node's side. It is a workloadapi.Authority, and its other methods
// are what the Workload API asks.
type Agent struct {
	cfg         AgentConfig
	trustDomain string
	store       store
	given       *x509.CertPool // of cfg.Roots; nil without

	ready chan struct{} // closed when there is a connection

	mu        sync.Mutex
	conn      *grpc.ClientConn
	own       *authority.Source // the node's SVID
	stop      context.CancelFunc
	shown     *tls.Certificate // the newest of own
	kept      Kept
	trust     *authority.Trust
	attestor  *attest.Attestor
	problem   string // of attestor
	federated []*spiffe.Bundle
	changed   chan struct{} // closed when attestor is another
	others    chan struct{} // closed when federated are others
}

// Bounds of an agent's patience.
const (
	callTime   = 10 * time.Second
	firstPause = 250 * time.Millisecond
	mostPause  = 30 * time.Second
	maxView    = 16 << 20 // bytes of one message
)

// OpenAgent opens an agent with what it has kept. Run connects it.
func OpenAgent(cfg AgentConfig) (*Agent, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	st, err := openStore(cfg.Dir)
	if err != nil {
		return nil, err
	}
	a := &Agent{cfg: cfg, store: st, trustDomain: cfg.TrustDomain, ready: make(chan struct{}),
		trust:   authority.PublishedTrust(&spiffe.Bundle{Roots: x509.NewCertPool(), JWKS: []byte(`{"keys":[]}`)}),
		changed: make(chan struct{}), others: make(chan struct{})}
	if len(cfg.Roots) > 0 {
		a.given = x509.NewCertPool()
		if !a.given.AppendCertsFromPEM(cfg.Roots) {
			return nil, errors.New("the trust bundle holds no certificate")
		}
	}
	kept, err := ReadKept(cfg.Dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if cfg.Token != nil {
			t, err := a.token()
			if err != nil {
				return nil, err
			}
			a.trustDomain = t.TrustDomain
		}
	case err != nil:
		return nil, fmt.Errorf("the state in %s cannot be used: %w; move it away to join anew", cfg.Dir, err)
	case a.trustDomain != "" && a.trustDomain != kept.TrustDomain:
		return nil, fmt.Errorf("the state in %s is of trust domain %q: use another directory for %q", cfg.Dir, kept.TrustDomain, a.trustDomain)
	default:
		a.trustDomain = kept.TrustDomain
		if err := a.take(kept); err != nil {
			return nil, fmt.Errorf("the state in %s cannot be used: %w; move it away to join anew", cfg.Dir, err)
		}
	}
	if a.trustDomain == "" {
		return nil, errors.New("nothing says which trust domain this is; a join token does")
	}
	return a, nil
}

// TrustDomain is the agent's.
func (a *Agent) TrustDomain() string { return a.trustDomain }

// Trust is the bundle that the server sent last.
func (a *Agent) Trust() *authority.Trust {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.trust
}

// Identify is the service that a process is.
func (a *Agent) Identify(ctx context.Context, p *sockowner.Process) (string, error) {
	a.mu.Lock()
	attestor := a.attestor
	a.mu.Unlock()
	if attestor == nil {
		return "", errors.New("the agent has not joined yet")
	}
	return attestor.Identify(ctx, p)
}

// Changed is closed when Identify may answer otherwise than now.
func (a *Agent) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}

// Federated are the bundles of other trust domains, and a channel that is closed
// when there are others.
func (a *Agent) Federated() ([]*spiffe.Bundle, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.federated, a.others
}

// Source is the X.509-SVID of a service on this node, from what is kept if it is
// valid, renewed until ctx ends.
func (a *Agent) Source(ctx context.Context, id string, log *slog.Logger) (*authority.Source, error) {
	name, err := spiffe.Name(id, a.trustDomain)
	if err != nil {
		return nil, err
	}
	return authority.NewSource(ctx, authority.SourceConfig{
		ID: id, Now: a.cfg.Now, Log: log, Lifetime: a.lifetime, Roots: func() *x509.CertPool { return a.Trust().Roots },
		First: a.store.pair(svidFile(name), a.cfg.Now(), func(have string) bool { return have == id }),
		Issue: func(ctx context.Context, key crypto.Signer) ([][]byte, time.Time, error) {
			return a.issue(ctx, signPath, name, key, svidFile(name), id)
		},
	})
}

// IssueJWT has the server sign a JWT-SVID of a service on this node.
func (a *Agent) IssueJWT(id string, audience []string, _ time.Time) (string, time.Time, error) {
	name, err := spiffe.Name(id, a.trustDomain)
	if err != nil {
		return "", time.Time{}, err
	}
	var out tokenAnswer
	err = a.call(context.Background(), tokenPath, &tokenRequest{name, audience}, &out)
	return out.Token, out.Until, err
}

func (a *Agent) lifetime() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.kept.View.Lifetime
}

// issue has the server sign an X.509-SVID, and keeps it.
func (a *Agent) issue(ctx context.Context, path, service string, key crypto.Signer, file, id string) ([][]byte, time.Time, error) {
	csr, err := newCSR(key)
	if err != nil {
		return nil, time.Time{}, err
	}
	var out signed
	if err := a.call(ctx, path, &signRequest{service, csr}, &out); err != nil {
		return nil, time.Time{}, err
	}
	leaf, err := checkChain(out.Chain, key, id)
	if err != nil {
		return nil, time.Time{}, err
	}
	if err := a.store.keepPair(file, out.Chain, key); err != nil {
		a.cfg.Log.Error("an SVID cannot be kept: after a restart another is needed", "id", id, "err", err)
	}
	return out.Chain, leaf.NotAfter, nil
}

// checkChain checks that a certificate is for this key and this SPIFFE ID.
func checkChain(chain [][]byte, key crypto.Signer, id string) (*x509.Certificate, error) {
	if len(chain) == 0 {
		return nil, errors.New("the server gave no certificate")
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, errors.New("the server gave something that is no certificate")
	}
	public, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if got, err := spiffe.ID(leaf); err != nil || got != id || !ok || !public.Equal(key.Public()) {
		return nil, fmt.Errorf("the server gave the certificate of %q, not that of %q for the key that was sent", got, id)
	}
	return leaf, nil
}

// call asks the server, once there is a connection.
func (a *Agent) call(ctx context.Context, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	select {
	case <-a.ready:
	case <-ctx.Done():
		return errors.New("there is no connection to the authority")
	}
	a.mu.Lock()
	c := a.conn
	a.mu.Unlock()
	return c.Invoke(ctx, path, in, out, grpc.WaitForReady(true))
}

// Run keeps the agent connected until ctx ends. The error is one that waiting does
// not mend.
func (a *Agent) Run(ctx context.Context) error {
	defer a.leave()
	pause := firstPause
	for {
		served, err := a.follow(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			continue // with a new SVID
		case errors.Is(err, errJoin):
			return err
		}
		if served {
			pause = firstPause
		}
		wait := pause/2 + rand.N(pause/2)
		a.cfg.Log.Warn("the agent is not connected; workloads keep what they have", "server", a.cfg.Server, "err", err, "again", wait.Round(time.Millisecond))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
		pause = min(2*pause, mostPause)
	}
}

// follow holds one connection and takes what comes, until it ends or the node's
// SVID is another, which is no error.
func (a *Agent) follow(ctx context.Context) (served bool, err error) {
	own, err := a.prove(ctx)
	if err != nil {
		return false, err
	}
	renewed := own.Renewed()
	c, err := a.dial(spiffe.ClientConfig(own, EndpointID(a.trustDomain)), nil)
	if err != nil {
		return false, err
	}
	a.use(c)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-renewed:
			cancel()
		case <-ctx.Done():
		}
	}()
	stream, err := c.NewStream(ctx, &watchDesc, watchPath)
	if err == nil {
		if err = stream.SendMsg(&nothing{}); err == nil {
			err = stream.CloseSend()
		}
	}
	for err == nil {
		k := &Kept{TrustDomain: a.trustDomain}
		if err = stream.RecvMsg(&k.View); err != nil {
			break
		}
		k.Node = nodeOf(a.shownID(), a.trustDomain)
		if err = a.take(k); err != nil {
			break
		}
		if !served {
			a.cfg.Log.Info("the agent is connected", "server", a.cfg.Server, "node", k.Node)
		}
		served = true
		a.keep(k)
		if err := a.report(); err != nil {
			a.cfg.Log.Warn("the server could not be told what this node cannot do", "err", err)
		}
	}
	select {
	case <-renewed:
		return served, nil
	default:
	}
	if status.Code(err) == codes.PermissionDenied {
		a.forget()
		return served, fmt.Errorf("the node is not in the intent any more; its workloads have no identity: %w", err)
	}
	return served, err
}

// report tells the server what this node cannot do.
func (a *Agent) report() error {
	a.mu.Lock()
	r := report{Problem: a.problem}
	a.mu.Unlock()
	return a.call(context.Background(), reportPath, &r, &nothing{})
}

func (a *Agent) shownID() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.shown == nil {
		return ""
	}
	id, _ := spiffe.ID(a.shown.Leaf) // it was read when it came
	return id
}

// use takes up a connection. Calls on the one before have time to end.
func (a *Agent) use(c *grpc.ClientConn) {
	a.mu.Lock()
	old := a.conn
	a.conn = c
	a.mu.Unlock()
	if old == nil {
		close(a.ready)
		return
	}
	time.AfterFunc(callTime, func() { old.Close() })
}

func (a *Agent) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stop != nil {
		a.stop()
	}
	if a.conn != nil {
		a.conn.Close()
	}
}

// take takes up what the server says.
func (a *Agent) take(k *Kept) error {
	bundle, err := spiffe.ParseBundle(a.trustDomain, k.View.Bundle)
	if err != nil {
		return err
	}
	var federated []*spiffe.Bundle
	for _, of := range slices.Sorted(maps.Keys(k.View.Federated)) {
		if of == a.trustDomain {
			return errors.New("a partner has the name of the own trust domain")
		}
		b, err := spiffe.ParseBundle(of, k.View.Federated[of])
		if err != nil { // then nobody of it is trusted; what is ours does not hang on it
			a.cfg.Log.Error("the bundle of another trust domain cannot be used", "trustDomain", of, "err", err)
			continue
		}
		federated = append(federated, b)
	}
	attestor, err := attest.New(k.Intent(), a.cfg.Attest)
	problem := ""
	if err != nil {
		problem = err.Error()
		a.cfg.Log.Error("some services of this node cannot be recognised here and have no identity", "err", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.kept
	a.kept, a.attestor, a.problem = *k, attestor, problem
	if !bytes.Equal(old.View.Bundle, k.View.Bundle) {
		a.trust.Retire()
		a.trust = authority.PublishedTrust(bundle)
	}
	if !maps.EqualFunc(old.View.Federated, k.View.Federated, bytes.Equal) {
		a.federated = federated
		close(a.others)
		a.others = make(chan struct{})
	}
	close(a.changed)
	a.changed = make(chan struct{})
	return nil
}

// keep keeps what the server said, for when it is away.
func (a *Agent) keep(k *Kept) {
	err := a.store.keep(k)
	have := map[string]bool{}
	for _, s := range k.View.Services {
		have[s.Name] = true
	}
	if err := errors.Join(err, a.store.drop(func(service string) bool { return have[service] })); err != nil {
		a.cfg.Log.Error("what the server said cannot be kept", "dir", a.store.dir, "err", err)
	}
}

// forget gives up all identities: the server says that this is no node.
func (a *Agent) forget() {
	a.mu.Lock()
	k := a.kept
	k.View.Services = nil
	a.drop()
	a.mu.Unlock()
	if err := a.take(&k); err != nil {
		a.cfg.Log.Error("what was known cannot be used", "err", err)
	}
	a.keep(&k)
	if err := a.store.remove(nodeFile); err != nil {
		a.cfg.Log.Error("the node's SVID cannot be removed", "err", err)
	}
}

// drop gives up the node's own SVID. a.mu is held.
func (a *Agent) drop() {
	if a.stop != nil {
		a.stop()
	}
	a.own, a.shown, a.stop = nil, nil, nil
}

// dial connects to the server when it is needed. With a token, the server is
// verified by the root that the token pins; else by those that c knows.
func (a *Agent) dial(c *tls.Config, token *JoinToken) (*grpc.ClientConn, error) {
	c.Time = a.cfg.Now
	verify := c.VerifyConnection
	c.VerifyConnection = func(s tls.ConnectionState) error {
		n := len(s.PeerCertificates)
		if n < 2 {
			return errors.New("the server shows no root, as a node endpoint does")
		}
		root := s.PeerCertificates[n-1] // see Server.shown
		s.PeerCertificates = s.PeerCertificates[:n-1]
		if token == nil {
			return verify(s)
		}
		if pinOf(root) != token.pin {
			return errors.New("the server is not of the authority that made the token")
		}
		pool := x509.NewCertPool()
		pool.AddCert(root)
		pinned := spiffe.ClientConfig(anchors{pool}, EndpointID(a.trustDomain))
		pinned.Time = a.cfg.Now
		return pinned.VerifyConnection(s)
	}
	return grpc.NewClient("passthrough:///"+a.cfg.Server, grpc.WithTransportCredentials(credentials.NewTLS(c)),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(codec{}), grpc.MaxCallRecvMsgSize(maxView)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: aliveTime, Timeout: aliveTime, PermitWithoutStream: true}),
		grpc.WithDisableServiceConfig(), grpc.WithNoProxy())
}
