package jwt

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"

	"merlon/internal/jws"
	"merlon/internal/reach"
)

const (
	maxWaiters   = 256 // calls that wait for one fetch; the next is refused at once
	maxRedirects = 3
)

// source is where a login's keys come from: the intent (set never changes, and
// nothing below is used), or a server.
type source struct {
	set       atomic.Pointer[keySet] // nil: none yet
	goodUntil atomic.Int64           // unix seconds; after it the set no longer counts

	ctx     context.Context // ends with the Verifier
	owner   *Verifier
	url     string
	client  *http.Client // nil: the keys are in the intent
	opt     Options
	waiting atomic.Int32

	mu      sync.Mutex
	flight  chan struct{} // closed when the fetch under way is over; nil: none is
	started time.Time     // of the last fetch
	last    Status
}

func newRemote(ctx context.Context, v *Verifier, id remoteID, opt Options) (*source, error) {
	u, err := url.Parse(id.url)
	if err != nil {
		return nil, fmt.Errorf("key set %q is no URL", id.url)
	}
	client, err := newClient(u, id.local, opt, nil)
	if err != nil {
		return nil, err
	}
	return &source{ctx: ctx, owner: v, url: id.url, client: client, opt: opt, last: Status{URL: id.url}}, nil
}

// newClient makes the client for one key set. It talks TLS, to public
// addresses only; allowLocal opens private ones, and plain HTTP on loopback.
// It uses no proxy: a proxy would connect on its behalf where it may not.
func newClient(u *url.URL, allowLocal bool, opt Options, resolver *net.Resolver) (*http.Client, error) {
	allowed := reach.Public
	switch {
	case u.Host == "" || u.User != nil || u.Fragment != "":
		return nil, fmt.Errorf("key set %q must be an https URL without user and fragment", u.Redacted())
	case u.Scheme == "https" && allowLocal:
		allowed = reach.Local
	case u.Scheme == "https":
	case u.Scheme == "http" && allowLocal:
		allowed = reach.Loopback
	default:
		return nil, fmt.Errorf("key set %q must be https", u.Redacted())
	}
	dialer := &net.Dialer{Timeout: opt.Timeout, Control: reach.Control(allowed), Resolver: resolver}
	return &http.Client{
		Timeout: opt.Timeout,
		Transport: &http.Transport{
			DialContext:            dialer.DialContext,
			TLSClientConfig:        &tls.Config{RootCAs: opt.RootCAs, MinVersion: tls.VersionTLS12},
			DisableKeepAlives:      true, // a fetch is rare
			DisableCompression:     true, // the size limit is one of bytes sent
			MaxResponseHeaderBytes: 16 << 10,
		},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			// Each hop is dialled under the same control.
			if r.URL.Scheme != "https" {
				return errors.New("redirected to a URL that is not https")
			}
			if len(via) > maxRedirects {
				return fmt.Errorf("redirected more than %d times", maxRedirects)
			}
			return nil
		},
	}, nil
}

// current is the set that counts at this second, or nil.
func (s *source) current(sec int64) *keySet {
	if sec >= s.goodUntil.Load() {
		return nil
	}
	return s.set.Load()
}

// verify checks the token's signature and returns the set that did it. A key
// that is not there may have come since: then the set is fetched, once for
// all who wait, and not more often than Floor allows.
func (s *source) verify(token string, alg jose.SignatureAlgorithm, kid string, sec int64) (*keySet, *Error) {
	set := s.current(sec)
	bad := verifyWith(set, token, alg, kid)
	if bad == nil {
		return set, nil
	}
	// Without a kid, a bad signature may be one by a key that is new.
	missing := bad.Reason == UnknownKey || bad.Reason == KeysUnavailable || bad.Reason == BadSignature && kid == ""
	if s.client == nil || !missing {
		return nil, bad
	}
	if !s.wait() {
		return nil, bad
	}
	set = s.current(sec)
	return set, verifyWith(set, token, alg, kid)
}

func verifyWith(set *keySet, token string, alg jose.SignatureAlgorithm, kid string) *Error {
	if set == nil {
		return &Error{Reason: KeysUnavailable}
	}
	k, reason := set.find(alg, kid)
	if k == nil {
		return &Error{Reason: reason}
	}
	if jws.Verify(token, alg, k.public) != nil {
		return &Error{Reason: BadSignature}
	}
	return nil
}

// wait joins the fetch under way or starts one, and reports whether a fetch
// ended. It does neither when one started less than Floor ago, so a storm of
// invented keys reaches the key server as a drop every ten seconds.
func (s *source) wait() bool {
	if s.waiting.Add(1) > maxWaiters {
		s.waiting.Add(-1)
		return false
	}
	defer s.waiting.Add(-1)
	flight := s.start(s.opt.Floor)
	if flight == nil {
		return false
	}
	<-flight // at most Timeout
	return true
}

// start returns the fetch under way, or a new one if the last began at least
// floor ago, or nil.
func (s *source) start(floor time.Duration) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flight != nil {
		return s.flight
	}
	now := s.opt.Now()
	if s.ctx.Err() != nil || !s.started.IsZero() && now.Sub(s.started) < floor {
		return nil
	}
	s.started = now
	flight := make(chan struct{})
	s.flight = flight
	s.owner.flights.Go(func() {
		set, err := s.fetch()
		status := s.land(set, err)
		close(flight)
		if s.opt.Report != nil {
			s.opt.Report(status)
		}
	})
	return flight
}

// land takes the outcome of a fetch. A failed one changes nothing but the
// status: the keys live on until MaxStale after they came.
func (s *source) land(set *keySet, err error) Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flight = nil
	s.last.Err = err
	if err == nil {
		now := s.opt.Now()
		s.last.Fetched, s.last.Keys, s.last.Skipped = now, len(set.keys), set.skipped
		// Equal keys keep their set, and with it all that was proved by it.
		if old := s.set.Load(); old == nil || old.id != set.id {
			s.set.Store(set)
			s.owner.changes.Add(1)
		}
		s.goodUntil.Store(now.Add(s.opt.MaxStale).Unix())
	}
	return s.last
}

func (s *source) fetch() (*keySet, error) {
	ctx, cancel := context.WithTimeout(s.ctx, s.opt.Timeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", "application/jwk-set+json, application/json")
	answer, err := s.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the key server answered %d", answer.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxKeySet+1))
	if err != nil {
		return nil, err
	}
	set, _, err := parseKeys(body)
	return set, err
}

// refresh fetches the set at once and every Refresh after, sooner after a
// failure. All waits are spread, so that gates started together part ways.
func (s *source) refresh(ctx context.Context) {
	retry := time.Second
	for {
		flight := s.start(0)
		if flight == nil {
			return // closed
		}
		select {
		case <-flight:
		case <-ctx.Done():
			return
		}
		pause := s.opt.Refresh
		if s.status().Err != nil {
			pause = min(retry, s.opt.Refresh)
			retry *= 2
		} else {
			retry = time.Second
		}
		timer := time.NewTimer(pause*3/4 + rand.N(pause/4+1))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		case <-s.ctx.Done():
			timer.Stop()
			return
		}
	}
}

func (s *source) status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// settle returns when whoever was about to start a fetch has started it or has
// seen that the verifier is closed.
func (s *source) settle() {
	s.mu.Lock()
	defer s.mu.Unlock()
}
