package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	"merlon/identity/spiffe"
	"merlon/internal/bucket"
)

// door is the server's TLS, and bounds who is inside. A stranger, who shows no
// certificate, has a few seconds to prove which node it is and can do nothing
// else. Who shows one must show a node's SVID: a workload is nobody here.
//
// It is what gRPC calls transport credentials.
type door struct {
	credentials.TransportCredentials
	server *Server

	mu        sync.Mutex
	strangers int
	byAddress map[string]int // strangers
	nodes     int
	byNode    map[string]int
	said      *bucket.Bucket // refusals that are logged
}

func newDoor(s *Server) *door {
	c := spiffe.AdmissionConfig(s.source, s.cfg.TrustDomain)
	c.Time = s.cfg.Now
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.shown() }
	verify := c.VerifyConnection
	c.VerifyConnection = func(state tls.ConnectionState) error {
		if err := verify(state); err != nil || len(state.PeerCertificates) == 0 {
			return err
		}
		id, err := spiffe.ID(state.PeerCertificates[0])
		if err == nil && nodeOf(id, s.cfg.TrustDomain) == "" {
			err = fmt.Errorf("%q is no node", id)
		}
		return err
	}
	return &door{TransportCredentials: credentials.NewTLS(c), server: s, byAddress: map[string]int{}, byNode: map[string]int{},
		said: bucket.New(refusalBurst, refusalRate, s.cfg.Now())}
}

// shown is the endpoint's SVID with the root that it leads to: who has a token
// knows nothing of the root but its hash.
func (s *Server) shown() (*tls.Certificate, error) {
	svid := s.source.SVID()
	if svid == nil {
		return nil, errors.New("the node endpoint has no valid SVID")
	}
	root, err := s.rootOf(svid)
	if err != nil {
		return nil, err
	}
	with := *svid
	with.Certificate = append(slices.Clip(svid.Certificate), root.Raw)
	return &with, nil
}

// root is the root that the endpoint's SVID leads to.
func (s *Server) root() (*x509.Certificate, error) {
	svid := s.source.SVID()
	if svid == nil {
		return nil, errors.New("the node endpoint has no valid SVID")
	}
	return s.rootOf(svid)
}

func (s *Server) rootOf(svid *tls.Certificate) (*x509.Certificate, error) {
	between := x509.NewCertPool()
	for _, der := range svid.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		between.AddCert(c)
	}
	chains, err := svid.Leaf.Verify(x509.VerifyOptions{Roots: s.source.Roots(), Intermediates: between, CurrentTime: s.cfg.Now(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	if err != nil {
		return nil, err
	}
	return chains[0][len(chains[0])-1], nil
}

// guest is who is at the other end of a connection: a node, or a stranger.
type guest struct {
	credentials.AuthInfo
	node    string // "" is a stranger
	address string
	cert    *x509.Certificate // of the node's SVID
}

// ServerHandshake is credentials.TransportCredentials.
func (d *door) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	address := host(raw.RemoteAddr())
	if !d.enter(address) {
		raw.Close()
		return nil, nil, errors.New("there are too many connections that have proved nothing")
	}
	c, info, err := d.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		d.leave(address)
		d.refused("a connection to the node endpoint is refused", "from", address, "err", err)
		return nil, nil, err
	}
	g := &guest{AuthInfo: info, address: raw.RemoteAddr().String()}
	if state, ok := info.(credentials.TLSInfo); ok && len(state.State.PeerCertificates) > 0 {
		g.cert = state.State.PeerCertificates[0]
		id, _ := spiffe.ID(g.cert) // VerifyConnection has read it
		g.node = nodeOf(id, d.server.cfg.TrustDomain)
	}
	if g.node == "" {
		release := sync.OnceFunc(func() { d.leave(address) })
		return newConn(c, strangerTime, release), g, nil
	}
	d.leave(address)
	if !d.enterNode(g.node) {
		c.Close()
		d.refused("a connection of a node is refused: it has too many", "node", g.node, "from", address)
		return nil, nil, errors.New("the node has too many connections")
	}
	release := sync.OnceFunc(func() { d.leaveNode(g.node) })
	return newConn(c, g.cert.NotAfter.Sub(d.server.cfg.Now()), release), g, nil
}

// Clone is the same: what is counted is counted together.
func (d *door) Clone() credentials.TransportCredentials { return d }

// ClientHandshake is for clients, which this is not.
func (d *door) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.ErrUnsupported
}

func host(a net.Addr) string {
	if h, _, err := net.SplitHostPort(a.String()); err == nil {
		return h
	}
	return a.String()
}

func (d *door) enter(address string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.strangers >= maxStrangers || d.byAddress[address] >= maxStrangersA {
		return false
	}
	d.strangers++
	d.byAddress[address]++
	return true
}

func (d *door) leave(address string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.strangers--
	if d.byAddress[address]--; d.byAddress[address] == 0 {
		delete(d.byAddress, address)
	}
}

func (d *door) enterNode(node string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.nodes >= maxConns || d.byNode[node] >= maxConnsNode {
		return false
	}
	d.nodes++
	d.byNode[node]++
	return true
}

func (d *door) leaveNode(node string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.nodes--
	if d.byNode[node]--; d.byNode[node] == 0 {
		delete(d.byNode, node)
	}
}

// refused logs who was refused, as long as that does not fill the log.
func (d *door) refused(text string, attrs ...any) {
	d.mu.Lock()
	ok := d.said.Take(d.server.cfg.Now())
	d.mu.Unlock()
	if ok {
		d.server.cfg.Log.Warn(text, attrs...)
	}
}

// conn is a connection that ends when its proof does.
type conn struct {
	net.Conn
	timer   *time.Timer
	release func()
}

func newConn(c net.Conn, life time.Duration, release func()) *conn {
	// It is released here too: gRPC forgets a connection that was closed before it
	// came to use it.
	return &conn{c, time.AfterFunc(life, func() { c.Close(); release() }), release}
}

// Close closes the connection.
func (c *conn) Close() error {
	c.timer.Stop()
	err := c.Conn.Close()
	c.release()
	return err
}
