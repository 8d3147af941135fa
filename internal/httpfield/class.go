// Package httpfield says what the fields of an HTTP message mean to whoever
// forwards it, the same for every version of HTTP: which are about one
// connection, which frame the message, which claim who forwarded it or who
// calls. It is written once, because two versions that read a name differently
// are two doors to one house.
package httpfield

// Class says what the name of a field means to a gate. A gate forwards the
// fields of a request whose class is zero and sets all others anew; of a
// response it holds back HopByHop and Framing.
type Class uint8

// Classes; a field may have several.
const (
	// HopByHop fields are about one connection (RFC 9110 7.6.1): the ones the
	// standards name, and the ones that Connection names in this message.
	HopByHop Class = 1 << iota
	// Framing fields say where the message goes and ends. The gate writes its
	// own, so that no disagreement about the client's can travel on.
	Framing
	// Forwarding fields claim who forwarded the request, and from where and
	// for which URL. Applications believe them because "the proxy sets them".
	Forwarding
	// Identity fields claim who is calling.
	Identity
	// Tracing fields say which trace the request belongs to (W3C Trace Context).
	Tracing
)

// Kind tells a parser which fields it must understand itself.
type Kind uint8

// Kinds of fields.
const (
	Other Kind = iota
	Connection
	ContentLength
	TransferEncoding
	Host
	Expect
	Upgrade
	TE
	TraceParent
	Authorization
	ContentType
	Protected // end-to-end, and Connection must not remove it

	Kinds // how many there are
)

// entry is one name the gate knows, folded: lower case, and '-' for every
// character of a token that is no letter and no digit.
type entry struct {
	name  string
	class Class
	kind  Kind
}

// exact lists the names that are known as a whole.
var exact = []entry{
	{"connection", HopByHop, Connection},
	{"keep-alive", HopByHop, Other},
	{"te", HopByHop, TE},
	{"trailer", HopByHop, Other},
	{"upgrade", HopByHop, Upgrade},
	{"http2-settings", HopByHop, Other},
	{"proxy", HopByHop, Other}, // becomes HTTP_PROXY in CGI, "httpoxy"
	{"transfer-encoding", HopByHop | Framing, TransferEncoding},
	{"content-length", Framing, ContentLength},
	{"host", Framing, Host},
	{"expect", Framing, Expect},

	{"authorization", 0, Authorization},
	{"content-type", 0, ContentType},
	{"cookie", 0, Protected},
	{"origin", 0, Protected},

	{"traceparent", Tracing, TraceParent},
	{"tracestate", Tracing, Other},

	{"via", Forwarding, Other},
	{"client-ip", Forwarding, Other},
	{"true-client-ip", Forwarding, Other},
	{"front-end-https", Forwarding, Other},
	{"script-name", Forwarding, Other},
	{"x-script-name", Forwarding, Other},
	{"x-client-ip", Forwarding, Other},
	{"x-cluster-client-ip", Forwarding, Other},
	{"x-originating-ip", Forwarding, Other},
	{"x-source-ip", Forwarding, Other},
	{"x-proxyuser-ip", Forwarding, Other},
	{"x-scheme", Forwarding, Other},
	{"x-url-scheme", Forwarding, Other},
	{"x-host", Forwarding, Other},
	{"x-http-method", Forwarding, Other},
	{"x-http-method-override", Forwarding, Other},
	{"x-method-override", Forwarding, Other},
	{"x-middleware-subrequest", Forwarding, Other}, // skips the checks of Next.js

	{"x-subject", Identity, Other},
	{"x-email", Identity, Other},
	{"x-groups", Identity, Other},
	{"x-role", Identity, Other},
	{"x-roles", Identity, Other},
	{"x-client-dn", Identity, Other},
	{"x-client-verify", Identity, Other},
	{"x-custom-ip-authorization", Identity, Other},
	{"x-anonymous-consumer", Identity, Other},
}

// prefixes lists the beginnings that decide.
var prefixes = []entry{
	{"proxy-", HopByHop, Other},

	{"forwarded", Forwarding, Other},
	{"x-forward", Forwarding, Other}, // X-Forward-For is believed too
	{"x-forwarded-user", Forwarding | Identity, Other},
	{"x-forwarded-email", Forwarding | Identity, Other},
	{"x-forwarded-groups", Forwarding | Identity, Other},
	{"x-forwarded-preferred-username", Forwarding | Identity, Other},
	{"x-forwarded-access-token", Forwarding | Identity, Other},
	{"x-forwarded-client-cert", Forwarding | Identity, Other},
	{"x-forwarded-tls-client-cert", Forwarding | Identity, Other},
	{"x-real-", Forwarding, Other},
	{"x-original-", Forwarding, Other},
	{"x-rewrite-", Forwarding, Other},
	{"x-envoy-", Forwarding, Other},
	{"x-accel-", Forwarding, Other},
	{"x-arr-", Forwarding, Other},
	{"x-azure-clientip", Forwarding, Other},
	{"x-azure-socketip", Forwarding, Other},
	{"cf-connecting-", Forwarding, Other},
	{"fastly-client", Forwarding, Other},
	{"wl-proxy-", Forwarding | Identity, Other},

	{"merlon", Identity, Other},
	{"x-merlon", Identity, Other},
	{"remote-", Identity, Other},
	{"x-remote-", Identity, Other},
	{"x-auth-", Identity, Other},
	{"x-authenticated-", Identity, Other},
	{"x-authentik-", Identity, Other},
	{"x-webauth-", Identity, Other},
	{"x-user", Identity, Other},
	{"x-consumer-", Identity, Other},
	{"x-credential-", Identity, Other},
	{"x-jwt-", Identity, Other},
	{"x-pomerium-", Identity, Other},
	{"x-vouch-", Identity, Other},
	{"x-goog-authenticated-", Identity, Other},
	{"x-goog-iap-", Identity, Other},
	{"x-ms-client-principal", Identity, Other},
	{"x-ms-token-", Identity, Other},
	{"x-amzn-oidc-", Identity, Other},
	{"cf-access-", Identity, Other},
	{"ssl-", Identity, Other},
	{"x-ssl-", Identity, Other},
	{"tls-client-", Identity, Other},
	{"x-tls-client-", Identity, Other},
	{"x-mtls-", Identity, Other},
	{"client-cert", Identity, Other}, // RFC 9440
	{"x-client-cert", Identity, Other},
	{"spiffe", Identity, Other},
	{"x-spiffe", Identity, Other},
	{"l5d-", Identity, Other},
}

// names is the index over exact and prefixes; it is never written after it is
// built. A name is looked up under its first letter, or under its third when
// it begins with "x-", where most of them live.
var names = index()

type bucket struct{ exact, prefixes []entry }

func index() (t [64]bucket) {
	for _, e := range exact {
		b := &t[slot(e.name)]
		b.exact = append(b.exact, e)
	}
	for _, e := range prefixes {
		b := &t[slot(e.name)]
		b.prefixes = append(b.prefixes, e)
	}
	return t
}

// slot is the bucket of a name that is not empty.
func slot(name string) int {
	c := fold[name[0]]
	if c == 'x' && len(name) > 2 {
		return 32 + int(fold[name[2]]&31)
	}
	return int(c & 31)
}

// Classify decides once what a name means. A name has the class of every
// entry it matches.
func Classify(name string) (class Class, k Kind) {
	b := &names[slot(name)]
	for i := range b.exact {
		if e := &b.exact[i]; len(e.name) == len(name) && hasPrefixFold(name, e.name) {
			class, k = e.class, e.kind
			break
		}
	}
	for i := range b.prefixes {
		if e := &b.prefixes[i]; len(e.name) <= len(name) && hasPrefixFold(name, e.name) {
			class |= e.class
		}
	}
	return class, k
}

// hasPrefixFold reports whether name, folded, begins with prefix, which is
// folded already and not longer.
func hasPrefixFold(name, prefix string) bool {
	for i := 0; i < len(prefix); i++ {
		if fold[name[i]] != prefix[i] {
			return false
		}
	}
	return true
}

// EqualName compares two names as an application might that folds them.
func EqualName(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := 0; i < len(a); i++ {
		if fold[a[i]] != fold[b[i]] {
			return false
		}
	}
	return true
}
