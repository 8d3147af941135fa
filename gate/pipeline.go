package gate

import (
	"crypto"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"merlon"
	"merlon/gate/canon"
	"merlon/gate/filter/limit"
	"merlon/gate/grpc"
	"merlon/gate/http1"
	"merlon/gate/upstream"
)

// Names of the headers that gates set. All others that begin with "Merlon-",
// and these when a client sends them, are removed on entry.
const (
	headerCaller  = "Merlon-Caller"     // who is calling: a JWT signed by the gate that proved it
	headerRequest = "Merlon-Request-Id" // names the call in the record
	headerReason  = "Merlon-Reason"     // why a gate refused
)

// Reasons of protocol and transport, beside those of the protocol core
// (gate/http1, gate/canon) and of policy (package merlon).
const (
	ReasonNoOrders       merlon.Reason = "no_orders"            // the gate has no orders yet
	ReasonRecordFull     merlon.Reason = "record_full"          // the call could not be recorded
	ReasonBodyTooLarge   merlon.Reason = "body_too_large"       // more bytes than the service's maxBody
	ReasonClientBusy     merlon.Reason = "client_busy"          // it has as many calls in progress as one may
	ReasonBodies         merlon.Reason = "bodies_waiting"       // more bodies are on their way than there are connections for
	ReasonBodyInvalid    merlon.Reason = "body_invalid"         // its chunks are not well-formed
	ReasonClientGone     merlon.Reason = "client_gone"          // the client stopped before the end of its body
	ReasonUpgrade        merlon.Reason = "upgrade_not_spoken"   // another protocol, or a WebSocket that the operation does not offer
	ReasonNotGRPC        merlon.Reason = "not_grpc"             // the service speaks gRPC, and the call is none
	ReasonGRPCTimeout    merlon.Reason = "grpc_timeout_invalid" // the deadline of a gRPC call cannot be read
	ReasonDeadline       merlon.Reason = "deadline_exceeded"    // the deadline of a gRPC call has passed
	ReasonUpstreamBroken merlon.Reason = "upstream_broken"      // the upstream broke off
	ReasonUpstreamBad    merlon.Reason = "upstream_invalid"     // the upstream's answer is not strict HTTP
	ReasonTimeout        merlon.Reason = "upstream_timeout"     // the answer did not begin in time
	ReasonRevoked        merlon.Reason = "revoked"              // allowed when it began, not any more
	ReasonNotOwn         merlon.Reason = "not_own_workload"     // the caller on the local side is not the gate's own service
	ReasonMisdirected    merlon.Reason = "misdirected"          // a captured request names another service than the one it was sent to
	ReasonPeerExpired    merlon.Reason = "peer_expired"         // the caller's certificate ended during the connection
	ReasonDefect         merlon.Reason = "gate_defect"          // the gate met a defect of its own

	ReasonSVIDExpired      merlon.Reason = "svid_expired"      // the gate's own certificate has ended
	ReasonNoBundle         merlon.Reason = "no_bundle"         // nothing verifies the other trust domain
	ReasonUpstreamExpired  merlon.Reason = "upstream_expired"  // the certificate of the other side has ended
	ReasonUpstreamUnproven merlon.Reason = "upstream_unproven" // the other side did not prove who it has to be

	ReasonWebSocketInvalid merlon.Reason = "websocket_invalid" // the handshake is not one
	ReasonWebSocketVersion merlon.Reason = "websocket_version" // of a version that is not spoken
	ReasonTunnel           merlon.Reason = "tunnel_wrong"      // CONNECT to what does not speak TCP, or HTTP to what does
	ReasonTunnelBroken     merlon.Reason = "tunnel_broken"     // one side of a tunnel broke off
	ReasonTunnelQuiet      merlon.Reason = "tunnel_quiet"      // not a byte for longer than the bound
)

// exchange is one call on its way through a gate. It lives in its connection
// and is reset for every call.
type exchange struct {
	g    *Gate
	f    *force
	at   Position
	peer *peer
	req  *http1.Request
	from netip.Addr // the client outside, as far as the edge can tell
	// behind is from if the call counts for it: it came through a trusted proxy.
	behind netip.Addr

	call      merlon.Call
	service   *merlon.Service
	operation *merlon.Operation // nil for none, and for one without a name
	verdict   merlon.Verdict
	limit     limit.State   // of the limit that applied last
	limited   *merlon.Limit // and which one that was; nil for none
	detail    string        // the cause, for the record only
	upstream  string        // address the call was sent to, for the record only
	bytesIn   int64         // of the request body, as far as it was read
	trace     trace
	start     time.Time
	id        string
	port      string // of the Host, with its colon; "" without one
	status    int    // of an answer in the gate's own name, when the reason alone does not say

	kind     grpc.Kind // of the call's messages, once it is known to be one of gRPC
	web      bool      // its answer is translated to gRPC-Web
	code     grpc.Code // its status, once coded
	coded    bool
	deadline int64 // that came with it, on the gate's coarse clock; 0 for none
	events   bool  // its answer is made of events, and lasts as long as both sides like

	params   [16]merlon.Param
	idBuf    [idLength]byte
	traceBuf [32]byte
	pathBuf  []byte
	hostBuf  [256]byte
}

const maxTarget = 8 << 10

// peer is who is at the other end of a connection, proved once per connection;
// for Outbound once per connection and version of the orders.
type peer struct {
	caller merlon.Caller // for Outbound the gate's own service; for Inbound the workload by its certificate
	addr   netip.Addr
	client string           // addr as text
	key    crypto.PublicKey // Inbound: public key of the peer's certificate
	until  time.Time        // Inbound: when its certificate ends
	// Inbound: it is of another trust domain, and its names of calls and traces
	// are not believed.
	foreign bool
	// Outbound: the orders under which caller was proved, and who is there if it
	// is not the own service; caller is nobody then.
	under    *force
	proof    uint64
	stranger string
	// Outbound, captured: where the client was going, and the services there.
	toward netip.AddrPort
	meant  []string
	renew  time.Time // Inbound: when the connection should make way for one with a newer certificate
	// The number of caller in the series of some orders; see metrics.go.
	counted *series
	party   int
}

// steps is the life of a call, in order. A step passes or denies; only the
// policy allows, and nothing is forwarded without that.
var steps = [...]struct {
	name string
	run  func(*exchange) merlon.Verdict
}{
	{"canon", (*exchange).canon},
	{"limit client", (*exchange).limitClient},
	{"protocol", (*exchange).protocol},
	{"identify", (*exchange).identify},
	{"route", (*exchange).route},
	{"decide", (*exchange).decide},
	{"upgrade", (*exchange).upgrade},
	{"limit caller", (*exchange).limitCaller},
	{"rpc", (*exchange).rpc},
}

var pass = merlon.Verdict{Effect: merlon.Pass}

func deny(r merlon.Reason) merlon.Verdict { return merlon.Verdict{Reason: r} }

// ask runs the steps. Nothing but an explicit Allow from decide, not denied by
// a later step, lets the call through.
func (x *exchange) ask() {
	x.verdict = merlon.Verdict{}
	for i := range steps {
		switch v := steps[i].run(x); v.Effect {
		case merlon.Pass:
		case merlon.Allow:
			x.verdict = v
		default:
			x.verdict = v
			return
		}
	}
}

// canon builds the Call: host and path are normalised here and nowhere else.
func (x *exchange) canon() merlon.Verdict {
	x.call.Method = x.req.Method
	host, err := canon.Host(x.req.Host, x.hostBuf[:0])
	if err != nil {
		return x.malformed(err)
	}
	if n := len(x.req.Path); n > cap(x.pathBuf) && strings.IndexByte(x.req.Path, '%') >= 0 {
		x.pathBuf = make([]byte, 0, max(2*n, 512))
	}
	x.call.Host, x.port = host, portOf(x.req.Host)
	if x.connects() {
		return pass // it has no path
	}
	path, err := canon.Path(x.req.Path, x.f.slashes, x.pathBuf[:0])
	if err != nil {
		return x.malformed(err)
	}
	x.call.Path, x.call.Query = path, x.req.Query
	return pass
}

// portOf is the port of a valid Host, with its colon. An IPv6 literal has
// colons too, inside brackets.
func portOf(host string) string {
	i := strings.LastIndexByte(host, ':')
	if i < 0 || i < strings.LastIndexByte(host, ']') {
		return ""
	}
	return host[i:]
}

func (x *exchange) malformed(err error) merlon.Verdict {
	x.detail = fmt.Sprintf("%v: host %.260q, path %.500q", err, x.req.Host, x.req.Path)
	if e, ok := err.(*canon.Error); ok {
		return deny(merlon.Reason(e.Reason))
	}
	return deny("malformed")
}

// limitClient comes before any costly proof: it bounds what a stranger can
// make the gate compute.
func (x *exchange) limitClient() merlon.Verdict {
	gw := x.f.orders.Intent.Gateway
	if x.at != AtEdge || gw == nil {
		return pass
	}
	if len(x.f.proxies) > 0 {
		x.from = x.f.forwardedClient(x.peer.addr, lastField(x.req, "X-Forwarded-For"))
		if x.from != x.peer.addr {
			x.call.Caller.Client = x.from.String()
			if !x.enter() {
				return deny(ReasonClientBusy)
			}
		}
	}
	if gw.Limit == nil || gw.Limit.Per != merlon.PerClient {
		return pass
	}
	return x.spend(gw.Limit, x.g.limiter.ClientKey(merlon.GatewayName, x.from))
}

// protocol refuses what is to be neither HTTP/1.1 nor a WebSocket. An offer of
// h2c may be ignored (RFC 9110 7.8); other upgrades are the point of the request.
func (x *exchange) protocol() merlon.Verdict {
	if x.req.Upgrade != "" && x.wantsTunnel() && !x.upgrades() {
		return deny(ReasonUpgrade)
	}
	return pass
}

// identify proves who is calling.
func (x *exchange) identify() merlon.Verdict {
	switch x.at {
	case AtEdge:
		return x.identifyClient()
	case Inbound:
		if x.peer.caller.Name == merlon.GatewayName {
			return x.identifyBehindGateway()
		}
		x.call.Caller = x.peer.caller
		return pass
	case Outbound:
		if x.call.Caller = x.peer.caller; x.call.Caller.Kind != merlon.Workload {
			x.detail = x.peer.stranger
			return deny(ReasonNotOwn)
		}
		return pass
	}
	return deny(merlon.ReasonUnidentified)
}

// identifyClient reads the bearer token, if logins are known here. A token
// that is given must be valid: there is no way down from a login to anyone.
func (x *exchange) identifyClient() merlon.Verdict {
	client := x.call.Caller.Client
	x.call.Caller = merlon.Caller{Kind: merlon.Anyone, Client: client}
	if x.f.tokens == nil || x.req.Authorization == "" {
		return pass
	}
	token, bearer := bearerToken(x.req.Authorization)
	if !bearer {
		return pass
	}
	caller, err := x.f.tokens.Verify(token, x.start)
	if err != nil {
		x.detail = err.Error()
		return deny(merlon.ReasonInvalidToken)
	}
	caller.Client = client
	x.call.Caller = caller
	return pass
}

// bearerToken is the token of a value of Authorization (RFC 6750 2.1). What is
// after the scheme is the token whatever separates the two: an application
// might split at a tab, and find a token that nobody has checked.
func bearerToken(value string) (token string, bearer bool) {
	const scheme = "bearer"
	if len(value) < len(scheme) || !strings.EqualFold(value[:len(scheme)], scheme) {
		return "", false
	}
	rest := value[len(scheme):]
	if rest != "" && http1.ValidName(rest[:1]) {
		return "", false // another scheme, whose name begins so
	}
	return strings.TrimPrefix(rest, " "), true
}

// identifyBehindGateway believes the gateway, whose certificate is the peer's,
// about who is behind it, if it says so under the key of that certificate.
func (x *exchange) identifyBehindGateway() merlon.Verdict {
	token := lastField(x.req, headerCaller)
	issuer := x.peer.caller.Subject
	caller, err := x.g.callers.Verify(token, x.peer.key, issuer, x.f.orders.Place.Service, x.start)
	if err != nil {
		x.detail = "assertion of the gateway: " + err.Error()
		return deny(merlon.ReasonUnidentified)
	}
	if caller.Kind != merlon.Anyone && caller.Kind != merlon.Login {
		x.detail = "the gateway may not speak for a workload"
		return deny(merlon.ReasonUnidentified)
	}
	x.call.Caller = caller
	return pass
}

// route finds the one operation that the call means.
func (x *exchange) route() merlon.Verdict {
	p, r := x.f.policy, x.f.orders.Place.Service
	if x.at == AtEdge {
		route := p.RouteEdge(x.call.Host, x.call.Method, x.call.Path, x.params[:0])
		return x.routed(route.Service, route.Operation, route.Params, route.Reason)
	}
	if x.at == Outbound {
		name, known := x.named()
		switch {
		case known:
		case len(x.peer.meant) > 0:
			return deny(ReasonMisdirected)
		default:
			return deny(merlon.ReasonNoService)
		}
		r = name
	}
	route := p.RouteService(r, x.call.Method, x.call.Path, x.params[:0])
	return x.routed(route.Service, route.Operation, route.Params, route.Reason)
}

func (x *exchange) routed(s *merlon.Service, o *merlon.Operation, params []merlon.Param, reason merlon.Reason) merlon.Verdict {
	x.service = s
	if s != nil {
		x.call.Service = s.Name
		if bytes := s.Protocol == merlon.TCP; bytes != x.connects() {
			return deny(ReasonTunnel)
		} else if bytes {
			x.call.Method, x.call.Host = "", "" // of the tunnel, not of the call
		}
	}
	if reason != "" || o == nil {
		return deny(reason)
	}
	if x.f.slashes && !s.Slashes && strings.Contains(x.call.Path, "%2F") {
		return deny("path_encoded_slash")
	}
	x.operation, x.call.Operation, x.call.Params = o, o.Name, params
	return pass
}

func (x *exchange) decide() merlon.Verdict {
	x.call.Time = x.start.UnixNano()
	return x.f.policy.Decide(&x.call)
}

// limitCaller applies the limits of the deciding rule, where the call enters:
// at the edge for those outside, at the callee's gate for services.
func (x *exchange) limitCaller() merlon.Verdict {
	if x.at == Outbound || x.at == Inbound && x.call.Caller.Kind != merlon.Workload {
		return pass
	}
	if gw := x.f.orders.Intent.Gateway; x.at == AtEdge && gw != nil && gw.Limit != nil && gw.Limit.Per == merlon.PerCaller {
		if v := x.spend(gw.Limit, x.callerKey(merlon.GatewayName, gw.Limit)); v.Effect == merlon.Deny {
			return v
		}
	}
	if x.verdict.Limit == nil {
		return pass
	}
	return x.spend(x.verdict.Limit, x.callerKey(x.verdict.Rule, x.verdict.Limit))
}

// callerKey is what l counts by. Strangers are counted by their address, since
// they have no other name.
func (x *exchange) callerKey(scope string, l *merlon.Limit) uint64 {
	c := &x.call.Caller
	if x.at == AtEdge && (c.Kind == merlon.Anyone || l.Per == merlon.PerClient) {
		return x.g.limiter.ClientKey(scope, x.from)
	}
	return x.g.limiter.Key(scope, c.Name, c.Subject)
}

func (x *exchange) spend(l *merlon.Limit, key uint64) merlon.Verdict {
	x.limit, x.limited = x.g.limiter.Allow(key, l, x.g.clock.Nanos()), l
	if x.limit.OK {
		return pass
	}
	return merlon.Verdict{Reason: merlon.ReasonRateLimited, Pos: l.Pos, Rule: x.verdict.Rule}
}

// lastField is the value of the last header with this name; names are compared
// as HTTP does (RFC 9110 5.1).
func lastField(r *http1.Request, name string) string {
	for i := len(r.Fields) - 1; i >= 0; i-- {
		if f := &r.Fields[i]; len(f.Name) == len(name) && strings.EqualFold(f.Name, name) {
			return f.Value
		}
	}
	return ""
}

// answerStatus is the HTTP status of a denial.
func (x *exchange) answerStatus() int {
	if x.status != 0 {
		return x.status
	}
	return Status(x.verdict.Reason, x.call.Caller.Kind == merlon.Anyone && x.f != nil && x.f.tokens != nil)
}

// StatusGRPC is the name of the status of gRPC that says what an HTTP status says
// of a denial.
func StatusGRPC(status int) string { return grpc.FromHTTP(status).String() }

// Status is the HTTP status of a denial. stranger says that the caller showed
// no token to a gateway that knows logins.
func Status(r merlon.Reason, stranger bool) int {
	switch r {
	case merlon.ReasonInvalidToken:
		return 401
	case merlon.ReasonNoRule:
		// A stranger who might be let in with a login is told so.
		if stranger {
			return 401
		}
		return 403
	case merlon.ReasonNoOperation, merlon.ReasonNoService:
		return 404
	case merlon.ReasonRateLimited, ReasonClientBusy:
		return 429
	case merlon.ReasonCondition, merlon.ReasonGuardrail, merlon.ReasonUnidentified, ReasonRevoked, ReasonNotOwn:
		return 403
	case ReasonBodyTooLarge:
		return 413
	case ReasonUpgrade:
		return 501
	case ReasonWebSocketVersion:
		return 426
	case ReasonTunnel:
		return 405
	case ReasonMisdirected:
		return 421 // RFC 9110 15.5.20
	case upstream.ReasonNoEndpoint, upstream.ReasonConnect, upstream.ReasonClosed, ReasonUpstreamBroken, ReasonUpstreamBad, ReasonUpstreamExpired, ReasonUpstreamUnproven:
		return 502
	case ReasonNotGRPC:
		return 415
	case ReasonTimeout, ReasonDeadline:
		return 504
	case ReasonNoOrders, ReasonRecordFull, ReasonBodies, upstream.ReasonOverloaded, upstream.ReasonUnready, ReasonSVIDExpired, ReasonNoBundle:
		return 503
	case ReasonPeerExpired:
		return 403
	case ReasonDefect:
		return 500
	}
	return 400
}
