package gate

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"merlon"
	"merlon/gate/upstream"
	"merlon/identity/jwt"
	"merlon/identity/spiffe"
	"merlon/policy"
)

// force is what a gate enforces: its orders, made ready. It is immutable but
// for the connection pools it points to, which pass from one force to the next.
type force struct {
	orders   *merlon.Orders
	policy   *policy.Policy
	tokens   *jwt.Verifier // nil when nobody logs in
	clusters map[string]*upstream.Cluster
	names    map[string]string       // outbound: the host an app says -> the service it means
	proxies  []netip.Prefix          // whose X-Forwarded-For is believed
	edgeTLS  *tls.Config             // edge: nil for plain HTTP
	slashes  bool                    // some service keeps encoded slashes in its segments
	locals   map[uint16]string       // outbound: local port -> the service that it leads to
	targets  targets                 // outbound: where services are dialed, for captured connections
	fresh    map[uint16]net.Listener // of locals, until they are taken up
	proxied  []netip.Prefix          // edge: whose connections begin with a PROXY protocol header
	series   *series                 // where its calls are counted
	since    time.Time
	traces   *merlon.Traces // nil for none
}

// Swap puts orders in force. Either all of them take effect, or none and the
// error says why: a gate that does not understand its orders refuses them and
// keeps what it has.
func (g *Gate) Swap(o *merlon.Orders) error {
	err := g.swap(o)
	if err != nil {
		g.metrics.refused.Add(1)
	} else {
		g.metrics.swaps.Add(1)
	}
	return err
}

func (g *Gate) swap(o *merlon.Orders) error {
	g.swapping.Lock()
	defer g.swapping.Unlock()
	if o.Version != merlon.OrdersVersion {
		return fmt.Errorf("orders have version %d; this gate reads version %d", o.Version, merlon.OrdersVersion)
	}
	if o.Place != g.cfg.Place {
		return fmt.Errorf("orders are for %v; this is %v", o.Place, g.cfg.Place)
	}
	if o.Intent.TrustDomain != g.cfg.TrustDomain {
		return fmt.Errorf("orders are for trust domain %q; this gate is of %q", o.Intent.TrustDomain, g.cfg.TrustDomain)
	}
	if own := o.Intent.Service(o.Place.Service); own != nil && own.Workload != nil && g.cfg.Own == nil {
		return fmt.Errorf("%v: this gate cannot tell the workload of %s from other processes", own.Workload.Pos, own.Name)
	}
	if f := o.Intent.Federation; len(f) > 0 && g.cfg.RootsOf == nil {
		return fmt.Errorf("%v: this gate is given no bundle of trust domain %s", f[0].Pos, f[0].TrustDomain)
	}
	old := g.force.Load()
	f, err := g.prepare(o, old)
	if err != nil {
		return err
	}
	if f.traces != nil {
		g.spans.To(f.traces.Collector)
	}
	g.force.Store(f)
	g.settlePorts(f)
	// Calls that are still streaming are asked again, also those that wait for
	// the next piece, and so are tunnels.
	g.open.interrupt(streaming)
	go g.askTunnels()
	if old != nil {
		old.close(f)
	}
	return nil
}

// Hash names the orders in force; it is "" before the first.
func (g *Gate) Hash() string {
	if f := g.force.Load(); f != nil {
		return f.orders.Hash
	}
	return ""
}

func (g *Gate) prepare(o *merlon.Orders, old *force) (*force, error) {
	p, ds := policy.Compile(&o.Intent)
	if ds.Failed() {
		return nil, ds
	}
	f := &force{orders: o, policy: p, clusters: map[string]*upstream.Cluster{}, names: map[string]string{}, series: g.metrics.series(&o.Intent), since: time.Now()}
	if t := o.Intent.Telemetry; t != nil {
		f.traces = t.Traces
	}
	for i := range o.Intent.Services {
		s := &o.Intent.Services[i]
		f.slashes = f.slashes || s.Slashes
		if !slices.Contains(Protocols(), s.Protocol) {
			return nil, fmt.Errorf("service %s speaks %v; this gate does not", s.Name, s.Protocol)
		}
		if s.External {
			for _, host := range s.Hosts {
				f.names[host] = s.Name
			}
			if s.Foreign != "" {
				f.names[s.Name] = s.Name
			}
			continue
		}
		f.names[s.Name] = s.Name
	}
	f.targets = targetsOf(o)
	if err := f.prepareLocal(); err != nil {
		return nil, err
	}
	if err := f.prepareEdge(g, old); err != nil {
		return nil, err
	}
	var err error
	if f.fresh, err = g.bindPorts(f.locals); err != nil {
		return nil, err
	}
	for name, endpoints := range o.Endpoints {
		f.clusters[name] = g.cluster(&o.Intent, name, endpoints, old)
	}
	return f, nil
}

// prepareEdge makes ready what only the gateway needs.
func (f *force) prepareEdge(g *Gate, old *force) error {
	gw := f.orders.Intent.Gateway
	if gw == nil || f.orders.Place != merlon.Edge {
		return nil
	}
	var err error
	if f.proxies, err = prefixes(gw.TrustedProxies); err != nil {
		return fmt.Errorf("%v: trusted proxy: %w", gw.Pos, err)
	}
	if f.proxied, err = prefixes(gw.ProxyProtocol); err != nil {
		return fmt.Errorf("%v: sender of the PROXY protocol: %w", gw.Pos, err)
	}
	var cert *tls.Certificate
	switch gw.Certificate.Kind {
	case merlon.CertificateSelfSigned:
		if g.cfg.EdgeCertificate == nil {
			return fmt.Errorf("%v: this gate cannot make a certificate; name files", gw.Pos)
		}
		cert, err = g.cfg.EdgeCertificate(gw.Hosts)
	case merlon.CertificateFiles:
		var pair tls.Certificate
		pair, err = tls.LoadX509KeyPair(gw.Certificate.Cert, gw.Certificate.Key)
		cert = &pair
	case merlon.CertificateNone:
	default:
		return fmt.Errorf("%v: certificate of an unknown kind", gw.Pos)
	}
	if err != nil {
		return fmt.Errorf("%v: certificate of the gateway: %w", gw.Pos, err)
	}
	if cert != nil {
		f.edgeTLS = &tls.Config{
			Certificates: []tls.Certificate{*cert},
			MinVersion:   tls.VersionTLS13,
			NextProtos:   protocols(),

			DynamicRecordSizingDisabled: true,
		}
		if gw.MinTLS == "1.2" {
			f.edgeTLS.MinVersion = tls.VersionTLS12
		}
	}
	if len(gw.Logins) == 0 {
		return nil
	}
	// The verifier keeps its keys and its cache when nothing about logins
	// changed: a swap must not cause a storm of fetches.
	if old != nil && old.tokens != nil && reflect.DeepEqual(old.orders.Intent.Gateway.Logins, gw.Logins) {
		f.tokens = old.tokens
		return nil
	}
	f.tokens, err = jwt.New(gw.Logins, jwt.Options{Now: time.Now, Report: g.reportKeys})
	if err == nil {
		go f.tokens.Run(context.Background()) // until Close
	}
	return err
}

func (g *Gate) cluster(in *merlon.Intent, name string, endpoints []merlon.Endpoint, old *force) *upstream.Cluster {
	retry := retryPercent(in, name)
	if old != nil && sameProtocol(old.orders.Intent.Service(name), in.Service(name)) {
		if c := old.clusters[name]; c != nil {
			c.Update(endpoints)
			c.SetRetry(retry)
			return c
		}
	}
	cfg := upstream.Config{
		Name:           name,
		Endpoints:      endpoints,
		TLS:            g.tlsFor(in.Service(name)),
		ConnectTimeout: g.cfg.Bounds.Connect,
		RetryPercent:   retry,
		Now:            g.clock.Now,
	}
	if name == g.cfg.Place.Service {
		cfg.Dial = g.cfg.DialOwn
	}
	if speaksHTTP2(in, name) {
		cfg.Mux = g.newUpMux
		cfg.TLS = func(e merlon.Endpoint) (*tls.Config, any, error) {
			config, state, err := g.upstreamTLS(e)
			if config != nil {
				config.NextProtos = []string{"h2"}
			}
			return config, state, err
		}
	}
	return upstream.New(cfg)
}

// speaksHTTP2 reports whether HTTP/2 is spoken to a service, all the way.
func speaksHTTP2(in *merlon.Intent, service string) bool {
	s := in.Service(service)
	return s != nil && (s.Protocol == merlon.HTTP2 || s.Protocol == merlon.GRPC)
}

func retryPercent(in *merlon.Intent, service string) int {
	if s := in.Service(service); s != nil {
		return s.Retry
	}
	return 0
}

// upstreamTLS is how an endpoint proves itself: another gate by its SPIFFE ID,
// an external service by its public name, the gate's own service not at all.
func (g *Gate) upstreamTLS(e merlon.Endpoint) (*tls.Config, any, error) {
	switch {
	case e.ID != "":
		// The SVID is fixed here, so that the connection knows which key it
		// has proved: see exchange.assert.
		s := g.currentSigning()
		if s.svid == nil {
			return nil, nil, errNoSVID
		}
		roots := g.cfg.Source.Roots
		if of, _, err := spiffe.ForeignName(e.ID); err != nil {
			return nil, nil, err
		} else if of != g.cfg.TrustDomain {
			// By the bundle of its trust domain alone: ours says nothing about it.
			roots = func() *x509.CertPool { return g.partnerRoots(of) }
			if roots() == nil {
				return nil, nil, fmt.Errorf("%w %s", errNoBundle, of)
			}
		}
		return spiffe.ClientConfig(pinned{s.svid, roots}, e.ID), &session{signing: s}, nil
	case e.TLSName != "":
		return &tls.Config{ServerName: e.TLSName, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}, nil, nil
	}
	return nil, nil, nil
}

// Why a gate could prove nothing, or would not know what was proved to it.
var (
	errNoSVID   = errors.New("the certificate of this gate's own identity has ended and was not renewed")
	errNoBundle = errors.New("there is no bundle to verify who is of trust domain")
)

// inboundTLS is how a gate proves itself to others.
func (g *Gate) inboundTLS() *tls.Config {
	c := spiffe.FederatedConfig(g.cfg.Source, g.cfg.TrustDomain, g.guestRoots)
	c.NextProtos = protocols()
	if f := g.force.Load(); f != nil && f.speaksTCP() {
		c.NextProtos = []string{tunnelProtocol}
	}
	c.DynamicRecordSizingDisabled = true
	return c
}

// guestRoots are the roots of another trust domain, if the orders name a workload
// of it as a caller; or nil.
func (g *Gate) guestRoots(trustDomain string) *x509.CertPool {
	f := g.force.Load()
	if f == nil {
		return nil
	}
	own := f.orders.Intent.Service(f.orders.Place.Service)
	if own == nil || !slices.ContainsFunc(own.Rules, func(r merlon.Rule) bool { return merlon.ForeignDomain(r.Caller) == trustDomain }) {
		return nil
	}
	return g.partnerRoots(trustDomain)
}

// partnerRoots are the roots of another trust domain that the orders name, or nil.
func (g *Gate) partnerRoots(trustDomain string) *x509.CertPool {
	f := g.force.Load()
	if f == nil || g.cfg.RootsOf == nil || f.orders.Intent.Partner(trustDomain) == nil {
		return nil
	}
	return g.cfg.RootsOf(trustDomain)
}

// protocols are the versions of HTTP that a gate speaks over TLS (RFC 7301).
// Whoever offers none gets HTTP/1.1.
func protocols() []string { return []string{"h2", "http/1.1"} }

// close ends what f holds and next does not take over.
func (f *force) close(next *force) {
	for name, c := range f.clusters {
		if next == nil || next.clusters[name] != c {
			c.Close()
		}
	}
	if f.tokens != nil && (next == nil || next.tokens != f.tokens) {
		f.tokens.Close()
	}
}

// Protocols are what this gate can serve and enforce.
func Protocols() []merlon.Protocol {
	return []merlon.Protocol{merlon.HTTP, merlon.HTTP2, merlon.GRPC, merlon.TCP}
}

// pinned is a source whose SVID does not change.
type pinned struct {
	svid  *tls.Certificate
	roots func() *x509.CertPool
}

func (p pinned) SVID() *tls.Certificate { return p.svid }
func (p pinned) Roots() *x509.CertPool  { return p.roots() }

// session is a connection to another gate: what was proved on it.
type session struct {
	*signing
	renew time.Time // when it should make way for one with newer certificates
}

// holds reports whether a call at now may still use the connection. The other
// gate refuses one whose certificate has ended, and this one would be as wrong
// to go on speaking to a certificate that has.
func (s *session) holds(up *upstream.Conn, now time.Time) bool {
	if secure, ok := up.Conn.(*tls.Conn); ok && s.renew.IsZero() {
		until := ends(secure.ConnectionState().PeerCertificates)
		if leaf := s.svid.Leaf; leaf != nil && leaf.NotAfter.Before(until) {
			until = leaf.NotAfter
		}
		s.renew = renewal(now, until)
	}
	return !up.Reused || now.Before(s.renew)
}

// signing is the key of an SVID, ready for use.
type signing struct {
	svid *tls.Certificate
	key  crypto.Signer
	kid  string
}

// currentSigning is that of the current SVID. The key's name takes a hash, so
// it is kept as long as the SVID.
func (g *Gate) currentSigning() *signing {
	svid := g.cfg.Source.SVID()
	known := g.signing.Load()
	if known == nil || known.svid != svid {
		key, kid := spiffe.Key(svid)
		known = &signing{svid, key, kid}
		g.signing.Store(known)
	}
	return known
}

func (g *Gate) signingKey() (crypto.Signer, string) {
	s := g.currentSigning()
	return s.key, s.kid
}

// reportKeys logs how the key sets of logins fare.
func (g *Gate) reportKeys(s jwt.Status) {
	if s.Err != nil {
		g.cfg.Log.Warn("key set of a login could not be fetched", "url", s.URL, "error", s.Err, "fetched", s.Fetched)
	}
}

// Services lists what the orders in force let this place reach.
func (g *Gate) Services() []string {
	f := g.force.Load()
	if f == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(f.clusters))
}

// clientAddress is the address of the peer, without port and zone.
func clientAddress(c net.Conn) netip.Addr {
	addr, _ := netip.ParseAddrPort(c.RemoteAddr().String())
	return addr.Addr().Unmap().WithZone("")
}

// forwardedClient is the client that a trusted proxy names: the last address
// of X-Forwarded-For that is not itself a trusted proxy. Anything before it was
// written by whoever wanted to (RFC 7239 8.1).
func (f *force) forwardedClient(peer netip.Addr, header string) netip.Addr {
	for header != "" && f.trusts(peer) {
		i := strings.LastIndexByte(header, ',')
		addr, err := netip.ParseAddr(strings.Trim(header[i+1:], " \t"))
		if err != nil {
			break
		}
		peer = addr.Unmap().WithZone("")
		header = header[:max(i, 0)]
	}
	return peer
}

func (f *force) trusts(client netip.Addr) bool { return among(f.proxies, client) }

func prefixes(cidrs []string) (list []netip.Prefix, err error) {
	for _, cidr := range cidrs {
		prefix, err := netip.ParsePrefix(cidr)
		if err != nil {
			return nil, err
		}
		list = append(list, prefix)
	}
	return list, nil
}

func among(list []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(addr) })
}
