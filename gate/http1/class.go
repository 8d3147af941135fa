package http1

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
)

// kind tells the parser which fields it must understand itself.
type kind uint8

const (
	other kind = iota
	connection
	contentLength
	transferEncoding
	host
	expect
	upgrade
	authorization
	contentType
	protected // end-to-end, and Connection must not remove it
)

// entry is one name the gate knows, folded: lower case, and '-' for every
// character of a token that is no letter and no digit.
type entry struct {
	name  string
	class Class
	kind  kind
}

// exact lists the names that are known as a whole.
var exact = []entry{
	{"connection", HopByHop, connection},
	{"keep-alive", HopByHop, other},
	{"te", HopByHop, other},
	{"trailer", HopByHop, other},
	{"upgrade", HopByHop, upgrade},
	{"http2-settings", HopByHop, other},
	{"proxy", HopByHop, other}, // becomes HTTP_PROXY in CGI, "httpoxy"
	{"transfer-encoding", HopByHop | Framing, transferEncoding},
	{"content-length", Framing, contentLength},
	{"host", Framing, host},
	{"expect", Framing, expect},

	{"authorization", 0, authorization},
	{"content-type", 0, contentType},
	{"cookie", 0, protected},
	{"origin", 0, protected},

	{"via", Forwarding, other},
	{"client-ip", Forwarding, other},
	{"true-client-ip", Forwarding, other},
	{"front-end-https", Forwarding, other},
	{"script-name", Forwarding, other},
	{"x-script-name", Forwarding, other},
	{"x-client-ip", Forwarding, other},
	{"x-cluster-client-ip", Forwarding, other},
	{"x-originating-ip", Forwarding, other},
	{"x-source-ip", Forwarding, other},
	{"x-proxyuser-ip", Forwarding, other},
	{"x-scheme", Forwarding, other},
	{"x-url-scheme", Forwarding, other},
	{"x-host", Forwarding, other},
	{"x-http-method", Forwarding, other},
	{"x-http-method-override", Forwarding, other},
	{"x-method-override", Forwarding, other},
	{"x-middleware-subrequest", Forwarding, other}, // skips the checks of Next.js

	{"x-subject", Identity, other},
	{"x-email", Identity, other},
	{"x-groups", Identity, other},
	{"x-role", Identity, other},
	{"x-roles", Identity, other},
	{"x-client-dn", Identity, other},
	{"x-client-verify", Identity, other},
	{"x-custom-ip-authorization", Identity, other},
	{"x-anonymous-consumer", Identity, other},
}

// prefixes lists the beginnings that decide.
var prefixes = []entry{
	{"proxy-", HopByHop, other},

	{"forwarded", Forwarding, other},
	{"x-forward", Forwarding, other}, // X-Forward-For is believed too
	{"x-forwarded-user", Forwarding | Identity, other},
	{"x-forwarded-email", Forwarding | Identity, other},
	{"x-forwarded-groups", Forwarding | Identity, other},
	{"x-forwarded-preferred-username", Forwarding | Identity, other},
	{"x-forwarded-access-token", Forwarding | Identity, other},
	{"x-forwarded-client-cert", Forwarding | Identity, other},
	{"x-forwarded-tls-client-cert", Forwarding | Identity, other},
	{"x-real-", Forwarding, other},
	{"x-original-", Forwarding, other},
	{"x-rewrite-", Forwarding, other},
	{"x-envoy-", Forwarding, other},
	{"x-accel-", Forwarding, other},
	{"x-arr-", Forwarding, other},
	{"x-azure-clientip", Forwarding, other},
	{"x-azure-socketip", Forwarding, other},
	{"cf-connecting-", Forwarding, other},
	{"fastly-client", Forwarding, other},
	{"wl-proxy-", Forwarding | Identity, other},

	{"merlon", Identity, other},
	{"x-merlon", Identity, other},
	{"remote-", Identity, other},
	{"x-remote-", Identity, other},
	{"x-auth-", Identity, other},
	{"x-authenticated-", Identity, other},
	{"x-authentik-", Identity, other},
	{"x-webauth-", Identity, other},
	{"x-user", Identity, other},
	{"x-consumer-", Identity, other},
	{"x-credential-", Identity, other},
	{"x-jwt-", Identity, other},
	{"x-pomerium-", Identity, other},
	{"x-vouch-", Identity, other},
	{"x-goog-authenticated-", Identity, other},
	{"x-goog-iap-", Identity, other},
	{"x-ms-client-principal", Identity, other},
	{"x-ms-token-", Identity, other},
	{"x-amzn-oidc-", Identity, other},
	{"cf-access-", Identity, other},
	{"ssl-", Identity, other},
	{"x-ssl-", Identity, other},
	{"tls-client-", Identity, other},
	{"x-tls-client-", Identity, other},
	{"x-mtls-", Identity, other},
	{"client-cert", Identity, other}, // RFC 9440
	{"x-client-cert", Identity, other},
	{"spiffe", Identity, other},
	{"x-spiffe", Identity, other},
	{"l5d-", Identity, other},
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

// classify decides once what a name means. A name has the class of every
// entry it matches.
func classify(name string) (class Class, k kind) {
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

// equalName compares two names as an application might that folds them.
func equalName(a, b string) bool {
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

// What a byte may be part of.
const (
	token  = 1 << iota // of a token (RFC 9110 5.6.2)
	odd                // of a token, but neither letter, digit nor '-'
	target             // of a request target: printable, and never a delimiter of text around it
	text               // of a field value: SP and VCHAR
	name               // of a host's name
)

// chars and fold describe every byte; they are never written after they are
// built.
var (
	chars = charTable()
	fold  = foldTable()
)

func charTable() (t [256]uint8) {
	for c := byte(' '); c <= '~'; c++ {
		t[c] = text
		switch {
		case alnum(c) || c == '-':
			t[c] |= token | target
		case isIn(c, "!#$%&'*+.^_`|~"):
			t[c] |= token | odd | target
		case !isIn(c, " \"<>"):
			t[c] |= target
		}
	}
	for c := range t {
		if alnum(byte(c)) || isIn(byte(c), "-._") {
			t[c] |= name
		}
	}
	// A fragment never travels (RFC 9112 3.2), and who drops it sees another path.
	t['#'] &^= target
	return t
}

// foldTable maps letters to lower case and every other character of a token to
// '-': CGI, WSGI, FastCGI and PHP turn at least '-' and '_', some of them all
// punctuation, into one character.
func foldTable() (t [256]byte) {
	for c := 0; c < 256; c++ {
		switch {
		case alnum(byte(c)):
			t[c] = lower(byte(c))
		case chars[c]&token != 0:
			t[c] = '-'
		}
	}
	return t
}

func alnum(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= lower(c) && lower(c) <= 'z'
}

func isIn(c byte, set string) bool {
	for i := 0; i < len(set); i++ {
		if set[i] == c {
			return true
		}
	}
	return false
}
