// Package jwt tells who is calling from a bearer token: a signed JSON Web
// Token (RFC 7519, RFC 6750) of one of the intent's logins, under the best
// current practice (RFC 8725).
//
// A token names its issuer and audience; together they pick exactly one login,
// and only that login's keys and algorithms count from there on. Nothing else
// in a token has a say in how it is verified: a key it carries is refused, an
// address it names is never visited.
package jwt

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"

	"merlon"
	"merlon/internal/hotcache"
	"merlon/internal/jws"
)

const (
	// MaxToken is the longest token that is read, in bytes.
	MaxToken = 8 << 10
	// Leeway is how far the clock of an issuer may be off (RFC 7519 4.1.4).
	Leeway = 30 * time.Second

	maxSubject = 255              // bytes, as OpenID Connect Core 2 has it
	maxDepth   = 16               // of objects and arrays in claims
	badFor     = 10 * time.Second // how long a refusal is remembered
	badEntries = 1024
)

// Options of a Verifier. The zero value will do, but for Now when a login has
// a KeySet.
type Options struct {
	Now       func() time.Time // the clock that key sets age by
	CacheSize int              // tokens remembered; 0 is 4096
	Refresh   time.Duration    // between fetches of a key set; 0 is 5 minutes
	Floor     time.Duration    // at least, between fetches that unknown keys cause; 0 is 10 s
	MaxStale  time.Duration    // how long keys live on when fetches fail; 0 is 24 hours
	Timeout   time.Duration    // of one fetch; 0 is 5 s
	RootCAs   *x509.CertPool   // of key servers; nil is the system's
	Report    func(Status)     // told after every fetch, to be logged; may be nil
}

// Status is how one remote key set fares.
type Status struct {
	URL     string
	Keys    int       // usable now
	Skipped int       // in the last answer, but not usable: too weak, private, not for signatures
	Fetched time.Time // when it last came in whole
	Err     error     // of the last fetch; nil when it went well
}

// Error says why a token is refused. Reason is a stable code. Neither Reason
// nor Err holds bytes of the token.
type Error struct {
	Reason string
	Err    error // for the record, not for the caller; may be nil
}

// Error is the reason and, for the record, its cause.
func (e *Error) Error() string {
	if e.Err == nil {
		return "token refused: " + e.Reason
	}
	return "token refused: " + e.Reason + ": " + e.Err.Error()
}

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.Err }

// Reasons for which tokens are refused.
const (
	TooLarge        = "too_large"
	Malformed       = "malformed"        // not a strict compact JWS of JSON objects
	BadHeader       = "bad_header"       // crit, b64, or a key that the token brings itself
	BadType         = "bad_type"         // some other kind of JWT (RFC 8725 3.11)
	BadAlgorithm    = "bad_algorithm"    // not one that the login allows
	UnknownIssuer   = "unknown_issuer"   //
	UnknownAudience = "unknown_audience" //
	Ambiguous       = "ambiguous_login"  // its audiences belong to several logins
	BadClaims       = "bad_claims"       // a registered claim is absent or of the wrong type
	Bound           = "bound_token"      // bound to a key (cnf), so it is no bearer token
	Expired         = "expired"          //
	NotYetValid     = "not_yet_valid"    // nbf or iat lies ahead
	UnknownKey      = "unknown_key"      //
	AmbiguousKey    = "ambiguous_key"    // several keys fit
	WrongKey        = "wrong_key_type"   // the key is not one for the algorithm
	BadSignature    = "bad_signature"    //
	KeysUnavailable = "keys_unavailable" // the key set cannot be had, or is too old
)

// Verifier verifies the tokens of a set of logins. It is safe for concurrent
// use. Run keeps its key sets fresh.
type Verifier struct {
	issuers map[string][]*login
	remotes []*source
	good    *hotcache.Cache[string, proof]
	bad     *hotcache.Cache[[2]uint64, refusal]
	seeds   [2]maphash.Seed
	changes atomic.Uint64 // of any key set
	stop    context.CancelFunc
	flights sync.WaitGroup
}

// login is a LoginRule made ready.
type login struct {
	name, audience string
	algorithms     []jose.SignatureAlgorithm
	keys           *source
}

// proof is what a valid token proves, and for how long.
type proof struct {
	caller      merlon.Caller
	from, until int64 // unix seconds, with leeway
	keys        *source
	set         *keySet
}

// holds reports whether the proof still stands: the token's time, and the key
// that it was made with.
func (p *proof) holds(sec int64) bool {
	return p.from <= sec && sec < p.until && p.keys.current(sec) == p.set
}

// refusal is why a token was refused. It is found by a keyed hash of 128 bits
// and keeps no token: whoever floods with bad tokens fills little memory, and
// pushes no good one out.
type refusal struct {
	err         *Error
	from, until int64 // unix seconds
	changes     uint64
}

// New makes a Verifier. It visits no network: key sets come in when Run
// starts, or when the first token asks.
func New(logins []merlon.LoginRule, opt Options) (*Verifier, error) {
	opt.fill()
	ctx, stop := context.WithCancel(context.Background())
	v := &Verifier{
		issuers: map[string][]*login{},
		seeds:   [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()},
		stop:    stop,
	}
	v.good = hotcache.New[string, proof](opt.CacheSize, func(s string) uint64 { return maphash.String(v.seeds[0], s) })
	v.bad = hotcache.New[[2]uint64, refusal](badEntries, func(k [2]uint64) uint64 { return k[0] })
	remotes := map[remoteID]*source{}
	var errs []error
	for i := range logins {
		if err := v.add(ctx, &logins[i], opt, remotes); err != nil {
			errs = append(errs, fmt.Errorf("login %q: %w", logins[i].Name, err))
		}
	}
	if len(errs) > 0 {
		stop()
		return nil, errors.Join(errs...)
	}
	return v, nil
}

func (o *Options) fill() {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&o.Refresh, 5*time.Minute)
	def(&o.Floor, 10*time.Second)
	def(&o.MaxStale, 24*time.Hour)
	def(&o.Timeout, 5*time.Second)
	if o.CacheSize <= 0 {
		o.CacheSize = 4096
	}
}

// remoteID is what two logins must agree on to share a fetched key set.
type remoteID struct {
	url   string
	local bool
}

func (v *Verifier) add(ctx context.Context, rule *merlon.LoginRule, opt Options, remotes map[remoteID]*source) error {
	l := &login{name: rule.Name, audience: rule.Audience}
	if rule.Name == "" || rule.Issuer == "" || rule.Audience == "" {
		return errors.New("needs a name, an issuer and an audience")
	}
	for _, other := range v.issuers[rule.Issuer] {
		if other.audience == rule.Audience {
			return fmt.Errorf("has the issuer and audience of login %q", other.name)
		}
	}
	for _, name := range rule.Algorithms {
		alg := jose.SignatureAlgorithm(name)
		if !known(alg) {
			return fmt.Errorf("algorithm %q is not one of %s", name, strings.Join(algorithmNames(), ", "))
		}
		l.algorithms = append(l.algorithms, alg)
	}
	if len(l.algorithms) == 0 {
		return errors.New("allows no algorithm")
	}
	switch {
	case (rule.Keys == "") == (rule.KeySet == ""):
		return errors.New("needs either keys or the address of a key set")
	case rule.Keys != "":
		set, err := inlineKeys([]byte(rule.Keys))
		if err != nil {
			return err
		}
		l.keys = &source{}
		l.keys.set.Store(set)
		l.keys.goodUntil.Store(math.MaxInt64)
	default:
		id := remoteID{rule.KeySet, rule.AllowLocal}
		if remotes[id] == nil {
			if opt.Now == nil {
				return errors.New("a remote key set needs a clock")
			}
			s, err := newRemote(ctx, v, id, opt)
			if err != nil {
				return err
			}
			remotes[id] = s
			v.remotes = append(v.remotes, s)
		}
		l.keys = remotes[id]
	}
	v.issuers[rule.Issuer] = append(v.issuers[rule.Issuer], l)
	return nil
}

// Verify tells who shows this token, or refuses it with an *Error. A token
// that was verified before costs a lookup and allocates nothing. A token that
// names an unknown key may wait for one fetch of its key set.
//
// The token may be a view; what is kept is cloned. The claims are shared by
// all callers with this token: nobody may change them.
func (v *Verifier) Verify(token string, now time.Time) (merlon.Caller, error) {
	if len(token) > MaxToken {
		return merlon.Caller{}, &Error{Reason: TooLarge}
	}
	sec := now.Unix()
	if p, ok := v.good.Get(token); ok && p.holds(sec) {
		return p.caller, nil
	}
	changes := v.changes.Load() // before the check: a change during it voids what it finds
	hash := [2]uint64{maphash.String(v.seeds[0], token), maphash.String(v.seeds[1], token)}
	if r, ok := v.bad.Get(hash); ok && r.from <= sec && sec < r.until && r.changes == changes {
		return merlon.Caller{}, r.err
	}
	p, err := v.check(token, sec)
	if err != nil {
		if lasting(err.Reason) {
			v.bad.Put(hash, refusal{err, sec, sec + int64(badFor/time.Second), changes})
		}
		return merlon.Caller{}, err
	}
	v.good.Put(strings.Clone(token), p)
	return p.caller, nil
}

// lasting reports whether a token once refused for this reason stays so while
// the keys do not change.
func lasting(reason string) bool {
	switch reason {
	case NotYetValid, UnknownKey, AmbiguousKey, KeysUnavailable:
		return false
	}
	return true
}

// check does the whole verification, cheap things first: what is refused by
// its text alone costs no signature and causes no fetch.
func (v *Verifier) check(token string, sec int64) (proof, *Error) {
	// The parts are decoded to new memory: no claim is a view into token.
	parts, err := jws.Split(token, maxDepth)
	if err != nil {
		return proof{}, &Error{Malformed, err}
	}
	alg, kid, bad := header(parts.Header)
	if bad != nil {
		return proof{}, bad
	}
	l, bad := v.login(parts.Payload)
	if bad != nil {
		return proof{}, bad
	}
	if !slices.Contains(l.algorithms, alg) {
		return proof{}, &Error{Reason: BadAlgorithm}
	}
	p, bad := claims(parts.Payload, sec)
	if bad != nil {
		return proof{}, bad
	}
	set, bad := l.keys.verify(token, alg, kid, sec)
	if bad != nil {
		return proof{}, bad
	}
	p.caller.Name, p.keys, p.set = l.name, l.keys, set
	return p, nil
}

// header reads the JOSE header (RFC 7515 4.1). Of all its members only alg,
// kid and typ count.
func header(h map[string]any) (alg jose.SignatureAlgorithm, kid string, bad *Error) {
	for name := range h {
		switch name {
		case "crit", "b64": // extensions that must be understood; none is (RFC 7515 4.1.11, RFC 7797)
			return "", "", &Error{Reason: BadHeader}
		case "jwk", "x5c": // the token brings the key to verify it by (RFC 8725 3.10)
			return "", "", &Error{Reason: BadHeader}
		case "enc", "zip": // an encrypted token, or one that unpacks to something larger
			return "", "", &Error{Reason: BadHeader}
		}
	}
	// jku, x5u and x5t stay unread: some issuers send them, and an address in
	// a token that nobody has verified is never visited.
	if v, ok := h["kid"]; ok {
		if kid, ok = v.(string); !ok || !jws.Text(kid, 1024) {
			return "", "", &Error{Reason: BadHeader}
		}
	}
	name, _ := h["alg"].(string)
	if alg = jose.SignatureAlgorithm(name); !known(alg) {
		return "", "", &Error{Reason: BadAlgorithm}
	}
	if v, ok := h["typ"]; ok && !bearerType(v) {
		return "", "", &Error{Reason: BadType}
	}
	return alg, kid, nil
}

// bearerType reports whether a typ header is that of a bearer token: JWT
// (RFC 7519 5.1) or at+jwt (RFC 9068 2.1). It keeps out what an issuer signs
// for other ends: logout tokens, security events, DPoP proofs (RFC 8725 3.11).
func bearerType(typ any) bool {
	s, _ := typ.(string)
	s = strings.ToLower(s)
	s = strings.TrimPrefix(s, "application/") // RFC 7515 4.1.9
	return s == "jwt" || s == "at+jwt"
}

// login finds the one login that the token is for: exact issuer, then exact
// audience. The payload is not proved yet; the signature covers it, so what is
// chosen by it here is what is proved later.
func (v *Verifier) login(payload map[string]any) (*login, *Error) {
	iss, _ := payload["iss"].(string)
	logins := v.issuers[iss]
	if len(logins) == 0 {
		return nil, &Error{Reason: UnknownIssuer}
	}
	var found *login
	for _, l := range logins {
		if jws.Audience(payload["aud"], l.audience) {
			if found != nil {
				return nil, &Error{Reason: Ambiguous}
			}
			found = l
		}
	}
	if found == nil {
		return nil, &Error{Reason: UnknownAudience}
	}
	return found, nil
}

// claims reads the registered claims (RFC 7519 4.1).
func claims(payload map[string]any, sec int64) (proof, *Error) {
	const leeway = int64(Leeway / time.Second)
	if _, ok := payload["cnf"]; ok {
		// RFC 7800: only the holder of a key may show this token. Taken as a
		// bearer token it could be stolen and used (RFC 9449 7.2).
		return proof{}, &Error{Reason: Bound}
	}
	sub, _ := payload["sub"].(string)
	if !jws.Text(sub, maxSubject) {
		return proof{}, &Error{BadClaims, errors.New("sub")}
	}
	exp, ok := jws.Date(payload["exp"])
	if !ok {
		return proof{}, &Error{BadClaims, errors.New("exp")}
	}
	p := proof{until: exp + leeway}
	for _, name := range [...]string{"nbf", "iat"} {
		v, given := payload[name]
		if !given {
			continue
		}
		date, ok := jws.Date(v)
		if !ok {
			return proof{}, &Error{BadClaims, errors.New(name)}
		}
		p.from = max(p.from, date-leeway)
	}
	switch {
	case sec >= p.until:
		return proof{}, &Error{Reason: Expired}
	case sec < p.from:
		return proof{}, &Error{Reason: NotYetValid}
	}
	p.caller = merlon.Caller{Kind: merlon.Login, Subject: sub, Claims: payload}
	return p, nil
}

// Run fetches the remote key sets, at once and then again and again, until ctx
// ends or Close is called.
func (v *Verifier) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, s := range v.remotes {
		wg.Go(func() { s.refresh(ctx) })
	}
	wg.Wait()
}

// Status tells how the remote key sets fare.
func (v *Verifier) Status() []Status {
	all := make([]Status, 0, len(v.remotes))
	for _, s := range v.remotes {
		all = append(all, s.status())
	}
	return all
}

// Close ends fetches under way and waits for them. Verify goes on with the
// keys it has.
func (v *Verifier) Close() {
	v.stop()
	for _, s := range v.remotes {
		s.settle()
	}
	v.flights.Wait()
	for _, s := range v.remotes {
		s.client.Transport.(*http.Transport).CloseIdleConnections()
	}
}
