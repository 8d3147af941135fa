package authority

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"sync/atomic"
	"time"

	"merlon/identity/spiffe"
)

// Source is the SVID of one workload, renewed with a new key each time. It is a spiffe.Source. Connections are made with whatever it
// gives at that moment, and none is dropped by a renewal.
type Source struct {
	cfg     SourceConfig
	current atomic.Pointer[svid]
	done    chan struct{}
}

// SourceConfig says whose SVID a Source is, and who signs it.
type SourceConfig struct {
	ID string
	// Issue signs an SVID for a new key: here, or by asking an authority
	// elsewhere.
	Issue func(ctx context.Context, key crypto.Signer) (chain [][]byte, notAfter time.Time, err error)
	Roots func() *x509.CertPool // of the trust domain
	// Lifetime is that of an SVID which nothing cuts short; 0 where that is not
	// known.
	Lifetime func() time.Duration
	First    *tls.Certificate // to begin with, with its Leaf; nil to have one issued
	Now      func() time.Time
	Log      *slog.Logger // nil is nowhere
}

// svid is one SVID. It never changes.
type svid struct {
	cert             tls.Certificate
	key              crypto.Signer
	kid              string
	issued, notAfter time.Time
	stale            chan struct{} // closed when there is a younger one
}

// Source issues the first SVID of the workload with this SPIFFE ID and renews
// it until ctx ends. It fails if there is no first one. The log hears of every
// failed renewal, louder as time runs out.
func (a *Authority) Source(ctx context.Context, id string, log *slog.Logger) (*Source, error) {
	return NewSource(ctx, SourceConfig{ID: id, Roots: a.Roots, Lifetime: a.Lifetime, Now: a.opt.Now, Log: log,
		Issue: func(_ context.Context, key crypto.Signer) ([][]byte, time.Time, error) {
			return a.Issue(id, key.Public(), a.opt.Now())
		}})
}

// NewSource is Authority.Source for whoever signs.
func NewSource(ctx context.Context, cfg SourceConfig) (*Source, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Source{cfg: cfg, done: make(chan struct{})}
	var err error
	if f := cfg.First; f != nil {
		err = s.take(f, f.Leaf.NotBefore.Add(Skew), f.Leaf.NotAfter)
	} else {
		err = s.renew(ctx)
	}
	if err != nil {
		return nil, err
	}
	go s.run(ctx)
	return s, nil
}

// SVID is the SVID to show, or nil when it has expired: better no connection
// than one that every peer must refuse.
func (s *Source) SVID() *tls.Certificate {
	c := s.current.Load()
	if !s.cfg.Now().Before(c.notAfter) {
		return nil
	}
	return &c.cert
}

// Key is the key of the SVID and its name, as assertion.NewSigner wants them.
// It is nil when the SVID has expired. The name is that of spiffe.Key.
func (s *Source) Key() (crypto.Signer, string) {
	c := s.current.Load()
	if !s.cfg.Now().Before(c.notAfter) {
		return nil, ""
	}
	return c.key, c.kid
}

// Renewed is closed when SVID gives another than now.
func (s *Source) Renewed() <-chan struct{} { return s.current.Load().stale }

// Roots are the roots of the trust domain.
func (s *Source) Roots() *x509.CertPool { return s.cfg.Roots() }

// ID is the SPIFFE ID that the source proves.
func (s *Source) ID() string { return s.cfg.ID }

// Done is closed when nothing is renewed any more, after the end of ctx.
func (s *Source) Done() <-chan struct{} { return s.done }

func (s *Source) renew(ctx context.Context) error {
	key, err := newKeyPair()
	if err != nil {
		return err
	}
	now := s.cfg.Now()
	chain, notAfter, err := s.cfg.Issue(ctx, key)
	if err != nil {
		return err
	}
	if !now.Before(notAfter) { // it would be renewed at once, again and again
		return fmt.Errorf("the new SVID ended at %v by the clock of this host, at %v: one of the two is wrong", notAfter.UTC(), now.UTC())
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return err
	}
	return s.take(&tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}, now, notAfter)
}

// take takes up an SVID.
func (s *Source) take(cert *tls.Certificate, issued, notAfter time.Time) error {
	next := &svid{cert: *cert, issued: issued, notAfter: notAfter, stale: make(chan struct{})}
	if next.key, next.kid = spiffe.Key(&next.cert); next.key == nil {
		return errors.New("the new SVID has no key")
	}
	if old := s.current.Swap(next); old != nil {
		close(old.stale)
	}
	return nil
}

// lifetime is the usual one; where that is not known, that of the SVID at hand.
func (s *Source) lifetime(life time.Duration) time.Duration {
	if usual := s.cfg.Lifetime(); usual > 0 {
		return usual
	}
	return life
}

// due is when an SVID is renewed: while two thirds of the usual lifetime are
// left, so that half a lifetime without the authority is outlasted at any
// moment, with time to spare. One that its intermediate cut short is renewed
// soon, but not at once: the next may be no longer.
func (c *svid) due(usual time.Duration) time.Time {
	at, least := c.notAfter.Add(-usual*2/3), c.issued.Add(min(c.notAfter.Sub(c.issued)/2, usual/12))
	if at.Before(least) {
		return least
	}
	return at
}

// run renews each SVID when it is due. After a failure it tries again and
// again, with growing pauses that leave many attempts before the end.
func (s *Source) run(ctx context.Context) {
	defer close(s.done)
	for failed := 0; ; {
		c := s.current.Load()
		life := c.notAfter.Sub(c.issued)
		at := c.due(s.lifetime(life))
		if failed > 0 {
			pause := min(life/128<<min(failed-1, 4), time.Minute) // at most an eighth of its life
			at = s.cfg.Now().Add(pause/2 + mathrand.N(pause/2+1))
		}
		if !sleepUntil(ctx, s.cfg.Now, at) {
			return
		}
		if err := s.renew(ctx); err != nil {
			failed++
			s.alarm(c, failed, err)
			continue
		}
		if failed > 0 {
			s.cfg.Log.Info("the SVID is renewed after failures", "id", s.cfg.ID, "failures", failed)
		}
		failed = 0
	}
}

// sleepUntil waits in short steps: timers stand still while a machine sleeps,
// and a clock that is set forward does not wake them.
func sleepUntil(ctx context.Context, now func() time.Time, at time.Time) bool {
	for {
		left := at.Sub(now())
		if left <= 0 {
			return ctx.Err() == nil
		}
		timer := time.NewTimer(min(left, 10*time.Second))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return false
		}
	}
}

// alarm logs a failed renewal: a warning at first, an error from three
// quarters of the SVID's life, and the plain consequence from its end.
func (s *Source) alarm(c *svid, failed int, err error) {
	now := s.cfg.Now()
	left := c.notAfter.Sub(now)
	attrs := []any{"id", s.cfg.ID, "err", err, "failures", failed, "ends", c.notAfter, "left", max(left, 0)}
	switch life := c.notAfter.Sub(c.issued); {
	case left <= 0:
		s.cfg.Log.Error("the SVID has expired: every call to and from this workload fails until it is renewed", attrs...)
	case left <= life/10:
		s.cfg.Log.Error("the SVID is about to expire and cannot be renewed", attrs...)
	case left <= life/4:
		s.cfg.Log.Error("the SVID could not be renewed and three quarters of its life are over", attrs...)
	default:
		s.cfg.Log.Warn("the SVID could not be renewed", attrs...)
	}
}
