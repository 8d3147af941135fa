package spiffe

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/encoding/protowire"
)

// Bounds of what a Workload API may send.
const (
	maxResponse = 4 << 20 // bytes of one message
	maxSVIDs    = 64
	firstRetry  = 100 * time.Millisecond
	mostRetry   = 5 * time.Second // or a part of the SVID's life, that it is not over in between
	retryPart   = 64
)

// Fetched is the SVID of one workload as a Workload API gives it (SPIFFE
// Workload API 5.2.1), with the roots of its trust domain and of others. It is a
// Source that follows the stream: what is pushed counts from the next handshake
// on, and no connection is dropped. When the stream ends it is opened again, and
// what came last stays until it expires.
//
// The client is our own: gRPC is a POST over HTTP/2 (net/http speaks it already)
// with five bytes before a message.
type Fetched struct {
	id      string
	client  *http.Client
	url     string
	now     func() time.Time
	report  func(error)
	current atomic.Pointer[fetched]
	done    chan struct{}
}

// fetched is one answer. It never changes.
type fetched struct {
	svid    *tls.Certificate
	roots   *x509.CertPool
	foreign map[string]*x509.CertPool // by trust domain
	life    time.Duration             // from when it came
}

// Fetch gets the SVID with this SPIFFE ID from the Workload API at address
// (unix:///PATH or tcp://IP:PORT, SPIFFE Workload Endpoint 4), and follows it until
// ctx ends. It waits for the first, however long that takes; report hears why
// there is none yet, of each failure later, and nil of every SVID that comes.
func Fetch(ctx context.Context, address, id string, now func() time.Time, report func(error)) (*Fetched, error) {
	dial, err := workloadAddress(address)
	if err != nil {
		return nil, err
	}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	f := &Fetched{id: id, now: now, report: report, done: make(chan struct{}),
		url: "http://workload.api/SpiffeWorkloadAPI/FetchX509SVID",
		client: &http.Client{
			Transport: &http.Transport{
				DialContext: dial, Protocols: protocols, MaxResponseHeaderBytes: 16 << 10, DisableCompression: true,
				HTTP2: &http.HTTP2Config{MaxReadFrameSize: 16 << 10, SendPingTimeout: time.Minute},
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	first := make(chan struct{})
	go f.follow(ctx, first)
	select {
	case <-first:
		return f, nil
	case <-ctx.Done():
		<-f.done
		return nil, ctx.Err()
	}
}

// workloadAddress reads the address of a Workload API.
func workloadAddress(address string) (func(context.Context, string, string) (net.Conn, error), error) {
	bad := fmt.Errorf("%q is no address of a Workload API: write unix:///PATH or tcp://IP:PORT", address)
	u, err := url.Parse(address)
	if err != nil || u.RawQuery != "" || u.Fragment != "" || u.User != nil || u.Opaque != "" {
		return nil, bad
	}
	network, target := u.Scheme, u.Path
	switch u.Scheme {
	case "unix":
		if u.Host != "" || !path.IsAbs(u.Path) {
			return nil, bad
		}
	case "tcp":
		if _, err := netip.ParseAddrPort(u.Host); err != nil || u.Path != "" {
			return nil, bad
		}
		target = u.Host
	default:
		return nil, bad
	}
	var d net.Dialer
	return func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, network, target) }, nil
}

// SVID is the SVID to show, or nil when it has expired.
func (f *Fetched) SVID() *tls.Certificate {
	c := f.current.Load()
	if !f.now().Before(c.svid.Leaf.NotAfter) {
		return nil
	}
	return c.svid
}

// Roots are the roots of the workload's own trust domain.
func (f *Fetched) Roots() *x509.CertPool { return f.current.Load().roots }

// RootsOf are the roots of another trust domain, or nil.
func (f *Fetched) RootsOf(trustDomain string) *x509.CertPool {
	return f.current.Load().foreign[trustDomain]
}

// Done is closed when nothing is followed any more, after the end of ctx.
func (f *Fetched) Done() <-chan struct{} { return f.done }

// follow opens the stream again and again, with growing pauses.
func (f *Fetched) follow(ctx context.Context, first chan struct{}) {
	defer close(f.done)
	defer f.client.CloseIdleConnections()
	for pause := firstRetry; ; {
		err := f.stream(ctx, func() {
			pause = firstRetry
			if first != nil {
				close(first)
				first = nil
			}
			f.report(nil)
		})
		if ctx.Err() != nil {
			return
		}
		most := mostRetry
		if c := f.current.Load(); c != nil {
			most = min(most, max(c.life/retryPart, firstRetry))
			err = fmt.Errorf("%w; the SVID at hand ends at %v", err, c.svid.Leaf.NotAfter.UTC().Format(time.RFC3339))
		}
		f.report(err)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		pause = min(2*pause, most)
	}
}

// stream reads one stream to its end.
func (f *Fetched) stream(ctx context.Context, came func()) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, f.url, bytes.NewReader(make([]byte, 5))) // an empty message
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/grpc")
	r.Header.Set("Te", "trailers")
	r.Header.Set("Workload.spiffe.io", "true") // SPIFFE Workload Endpoint 5
	res, err := f.client.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if kind := res.Header.Get("Content-Type"); res.StatusCode != http.StatusOK || !strings.HasPrefix(kind, "application/grpc") {
		return fmt.Errorf("it answers %d and not as gRPC does", res.StatusCode)
	}
	if res.Header.Get("Grpc-Status") != "" {
		return grpcError(res.Header)
	}
	for {
		message, err := readMessage(res.Body)
		if err == io.EOF {
			return grpcError(res.Trailer)
		}
		if err != nil {
			return err
		}
		next, err := parseSVIDs(message, f.id, f.now())
		if err != nil {
			return err
		}
		f.current.Store(next)
		came()
	}
}

// readMessage reads one message of gRPC (Length-Prefixed-Message).
func readMessage(r io.Reader) ([]byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if head[0] != 0 || n > maxResponse {
		return nil, fmt.Errorf("its message is compressed or larger than %d bytes", maxResponse)
	}
	message := make([]byte, n)
	if _, err := io.ReadFull(r, message); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	return message, nil
}

// grpcError is the end of a stream, which is one whatever the status says.
func grpcError(h http.Header) error {
	text, err := url.PathUnescape(h.Get("Grpc-Message"))
	if err != nil || len(text) > 200 {
		text = ""
	}
	switch status := h.Get("Grpc-Status"); status {
	case "0", "":
		return errors.New("it ended the stream")
	case "7":
		return fmt.Errorf("it has no identity for this process: %q", text)
	default:
		return fmt.Errorf("it ended the stream with status %.3q: %q", status, text)
	}
}

// parseSVIDs reads an X509SVIDResponse and takes of it the SVID with this ID.
func parseSVIDs(message []byte, id string, now time.Time) (*fetched, error) {
	var offered []string
	var own map[protowire.Number][]byte
	out := &fetched{foreign: map[string]*x509.CertPool{}}
	n := 0
	err := fields(message, func(number protowire.Number, v []byte) error {
		switch number {
		case 1: // svids
			if n++; n > maxSVIDs {
				return fmt.Errorf("more than %d SVIDs", maxSVIDs)
			}
			svid, err := last(v)
			if err != nil {
				return err
			}
			offered = append(offered, string(svid[1]))
			if string(svid[1]) == id && own == nil {
				own = svid
			}
		case 3: // federated_bundles
			entry, err := last(v)
			if err != nil {
				return err
			}
			td, err := spiffeid.TrustDomainFromString(string(entry[1]))
			if err != nil {
				return err
			}
			if _, own := inTrustDomain(id, td.Name()); own {
				return nil // what verifies our own comes with the SVID alone
			}
			out.foreign[td.Name()], err = rootPool(entry[2])
			return err
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("its answer cannot be read: %w", err)
	case own == nil && n == 0:
		return nil, errors.New("its answer holds no SVID")
	case own == nil:
		return nil, fmt.Errorf("it gives %.200q, and not %s", offered, id)
	}
	if out.roots, err = rootPool(own[4]); err != nil {
		return nil, fmt.Errorf("the bundle of the SVID: %w", err)
	}
	if out.svid, err = pairOf(own[2], own[3]); err != nil {
		return nil, err
	}
	if proved, err := ID(out.svid.Leaf); err != nil || proved != id {
		return nil, fmt.Errorf("the certificate is not that of %s", id)
	}
	if err := checkLeaf(out.svid.Leaf); err != nil {
		return nil, err
	}
	if out.life = out.svid.Leaf.NotAfter.Sub(now); out.life <= 0 {
		return nil, errors.New("the SVID has expired")
	}
	return out, nil
}

// rootPool reads certificates one after the other, DER.
func rootPool(der []byte) (*x509.CertPool, error) {
	certs, err := x509.ParseCertificates(der)
	if err != nil || len(certs) == 0 {
		return nil, errors.New("a bundle cannot be read, or is empty")
	}
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool, nil
}

// pairOf reads a chain, DER, and its key, PKCS #8. No error quotes the key.
func pairOf(chain, key []byte) (*tls.Certificate, error) {
	certs, err := x509.ParseCertificates(chain)
	if err != nil || len(certs) == 0 || len(certs) > maxChain {
		return nil, errors.New("the SVID cannot be read")
	}
	private, err := x509.ParsePKCS8PrivateKey(key)
	if err != nil {
		return nil, errors.New("the key of the SVID cannot be read")
	}
	signer, ok := private.(crypto.Signer)
	if !ok {
		return nil, errors.New("the key of the SVID signs nothing")
	}
	public, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(certs[0].PublicKey) {
		return nil, errors.New("the key is not that of the SVID")
	}
	out := &tls.Certificate{PrivateKey: signer, Leaf: certs[0]}
	for _, c := range certs {
		out.Certificate = append(out.Certificate, c.Raw)
	}
	return out, nil
}

// fields calls take for each field of a message that has a length.
func fields(b []byte, take func(protowire.Number, []byte) error) error {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
				return protowire.ParseError(n)
			}
			b = b[n:]
			continue
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		if err := take(number, v); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// last is the fields of a message, the last of each number.
func last(b []byte) (map[protowire.Number][]byte, error) {
	all := map[protowire.Number][]byte{}
	err := fields(b, func(number protowire.Number, v []byte) error {
		if slices.Contains([]protowire.Number{1, 2, 3, 4}, number) {
			all[number] = v
		}
		return nil
	})
	return all, err
}
