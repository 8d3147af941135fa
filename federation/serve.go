package federation

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"
	"golang.org/x/net/netutil"

	"merlon/authority"
	"merlon/identity/spiffe"
)

const (
	// BundlePath is where the bundle endpoint has the bundle.
	BundlePath = "/bundle"

	discoveryPath = "/.well-known/openid-configuration"
	keysPath      = "/keys"

	// hint is how often partners should look: a new root or key is in the bundle
	// for a day before it signs.
	hint = 5 * time.Minute

	maxGuests = 256 // connections at once
)

// Endpoint serves the bundle of our own trust domain (SPIFFE Federation 5), and
// for whoever takes JWT-SVIDs as tokens of OpenID Connect, the documents that
// they look for (OpenID Connect Discovery 1.0). Nobody is asked who they are:
// all of it is public.
type Endpoint struct {
	trust  func() *authority.Trust
	dir    string
	issuer string // "" serves no discovery
	prefix string // path of issuer
	server *http.Server

	mu       sync.Mutex
	of       *authority.Trust // that the texts below say
	bundle   []byte
	keys     []byte
	discover []byte
}

// NewEndpoint makes an endpoint. dir keeps the sequence number of the bundle
// over restarts. issuer is the https URL under which the endpoint is found, as
// it stands in JWT-SVIDs, or "".
func NewEndpoint(trust func() *authority.Trust, dir, issuer string) (*Endpoint, error) {
	e := &Endpoint{trust: trust, dir: dir, issuer: issuer}
	if issuer != "" {
		if err := CheckIssuer(issuer); err != nil {
			return nil, err
		}
		u, _ := url.Parse(issuer)
		e.prefix = u.Path
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	e.server = &http.Server{
		Handler: e, Protocols: protocols,
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: 20 * time.Second, IdleTimeout: 20 * time.Second,
		MaxHeaderBytes: 8 << 10, DisableGeneralOptionsHandler: true,
	}
	return e, nil
}

// CheckIssuer holds an issuer to OpenID Connect Discovery 1.0, 3: an https URL
// without query and fragment.
func CheckIssuer(issuer string) error {
	u, err := url.Parse(issuer)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || strings.ContainsAny(issuer, "?#") ||
		strings.HasSuffix(issuer, "/") || u.RawPath != "" {
		return fmt.Errorf("%q is no issuer: write an https URL such as https://id.shop.example, without query, fragment and a slash at its end", issuer)
	}
	return nil
}

// Serve answers on l, over the TLS of config, until Close.
func (e *Endpoint) Serve(l net.Listener, config *tls.Config) error {
	err := e.server.Serve(tls.NewListener(netutil.LimitListener(l, maxGuests), config))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Close ends all connections.
func (e *Endpoint) Close() { e.server.Close() }

// ServeHTTP answers one of the exact paths.
func (e *Endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	bundle, keys, discover, err := e.texts()
	var text []byte
	switch path := r.URL.Path; {
	case path == BundlePath:
		text = bundle
	case e.issuer != "" && path == e.prefix+discoveryPath:
		text = discover
	case e.issuer != "" && path == e.prefix+keysPath:
		text = keys
	default:
		http.NotFound(w, r)
		return
	}
	switch {
	case err != nil:
		http.Error(w, "the bundle cannot be written", http.StatusInternalServerError)
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "this address is only asked", http.StatusMethodNotAllowed)
	default:
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "max-age=60")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Write(text)
	}
}

// texts are the documents as they are now.
func (e *Endpoint) texts() (bundle, keys, discover []byte, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.trust()
	if e.of == t {
		return e.bundle, e.keys, e.discover, nil
	}
	sequence, err := e.sequence(t)
	if err == nil {
		e.bundle, err = spiffe.EncodeBundle(t.DER, t.JWKS, sequence, hint)
	}
	if err == nil && e.issuer != "" {
		err = e.discovery(t)
	}
	if err != nil {
		return nil, nil, nil, err
	}
	e.of = t
	return e.bundle, e.keys, e.discover, nil
}

// sequence is the number of a bundle: another and a larger one for each that
// differs, also over restarts (SPIFFE Trust Domain and Bundle 4.1.1).
func (e *Endpoint) sequence(t *authority.Trust) (uint64, error) {
	var last struct {
		Sequence uint64 `json:"sequence"`
		Digest   string `json:"digest"`
	}
	h := sha256.New()
	for _, der := range t.DER {
		h.Write(der)
	}
	h.Write(t.JWKS)
	digest := hex.EncodeToString(h.Sum(nil))
	name := filepath.Join(e.dir, "own-sequence")
	text, err := os.ReadFile(name)
	if err == nil {
		err = json.Unmarshal(text, &last)
	}
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return 0, fmt.Errorf("%s: %w", name, err)
	case last.Digest == digest:
		return last.Sequence, nil
	}
	last.Sequence++
	last.Digest = digest
	if text, err = json.Marshal(last); err != nil {
		return 0, err
	}
	return last.Sequence, replace(name, text)
}

// discovery writes what OpenID Connect asks for.
func (e *Endpoint) discovery(t *authority.Trust) error {
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(t.JWKS, &set); err != nil {
		return err
	}
	for i := range set.Keys {
		set.Keys[i].Use = "sig" // jwt-svid is no use that RFC 7517 knows
		if k, ok := set.Keys[i].Key.(*ecdsa.PublicKey); ok && k.Params().BitSize == 256 {
			set.Keys[i].Algorithm = string(jose.ES256)
		}
	}
	var err error
	if e.keys, err = json.Marshal(set); err != nil {
		return err
	}
	e.discover, err = json.Marshal(map[string]any{
		"issuer":                                e.issuer,
		"jwks_uri":                              e.issuer + keysPath,
		"response_types_supported":              []string{"id_token"},
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": []string{"ES256"},
	})
	return err
}

// files is a certificate in files, read again when they change.
type files struct {
	cert, key string

	mu     sync.Mutex
	at     [2]time.Time
	loaded *tls.Certificate
}

// FileConfig is the TLS of an endpoint of the profile https_web: the
// certificate is read anew when its files change. A pair that does not fit is
// refused at first, and later leaves the one before in use.
func FileConfig(cert, key string) (*tls.Config, error) {
	f := &files{cert: cert, key: key}
	if _, err := f.get(); err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return f.get() }}, nil
}

func (f *files) get() (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var at [2]time.Time
	for i, name := range []string{f.cert, f.key} {
		if info, err := os.Stat(name); err == nil {
			at[i] = info.ModTime()
		}
	}
	if f.loaded != nil && at == f.at {
		return f.loaded, nil
	}
	c, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil && f.loaded != nil {
		return f.loaded, nil
	}
	if err == nil {
		f.loaded, f.at = &c, at
	}
	return f.loaded, err
}

// SourceConfig is the TLS of an endpoint of the profile https_spiffe: an SVID
// proves it, and who asks need not prove anything (SPIFFE Federation 5.2.2.3).
func SourceConfig(src spiffe.Source) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			if svid := src.SVID(); svid != nil {
				return svid, nil
			}
			return nil, errors.New("there is no valid SVID")
		}}
}
