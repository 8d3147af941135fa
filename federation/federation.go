// Package federation exchanges trust bundles with other trust domains (SPIFFE
// Federation): it looks after those of the partners that the intent names, and
// serves our own.
//
// A bundle is bound to the trust domain in whose sentence it was fetched, is
// kept apart from all others, and verifies nothing else. What was fetched last
// is kept on disk and stays in use when nothing better comes: the keys in it end
// by themselves. Every failure is said, with the age of what is used.
package federation

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"merlon"
	"merlon/identity/spiffe"
)

// Bounds of how often a partner is asked, whatever it hints.
const (
	leastPause = time.Minute
	mostPause  = time.Hour
	usualPause = 5 * time.Minute // SPIFFE Federation 4.1
	firstRetry = time.Second
	fetchTime  = 10 * time.Second
)

// Options of Partners.
type Options struct {
	Dir   string           // where bundles are kept; made if it is absent
	Roots *x509.CertPool   // of the certificates of https_web; nil is the system's
	Now   func() time.Time // nil is time.Now
	Log   *slog.Logger     // hears of every change and failure; nil is nowhere

	least time.Duration // between two fetches, for tests
}

// Partners are the other trust domains, and what is known of them. It is safe
// for concurrent use.
type Partners struct {
	opt    Options
	ctx    context.Context
	cancel context.CancelFunc
	group  sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	all     map[string]*partner // by trust domain
	changed chan struct{}       // closed when a bundle is another
}

// Status is how it stands with the bundle of one partner.
type Status struct {
	TrustDomain string    `json:"trustDomain"`
	URL         string    `json:"url"`
	Profile     string    `json:"profile"`
	Roots       int       `json:"roots"` // 0 and Keys 0: no bundle yet, nobody from there gets in
	Keys        int       `json:"keys"`
	Sequence    uint64    `json:"sequence,omitzero"`
	Fetched     time.Time `json:"fetched,omitzero"` // when the endpoint last gave it; zero: it was given by the intent
	Asked       time.Time `json:"asked,omitzero"`
	Err         string    `json:"error,omitzero"` // why the last fetch failed; what was there before stays in use
}

// partner is one of them, under one sentence of the intent.
type partner struct {
	merlon.Partner
	file   string
	cancel context.CancelFunc
	bundle *spiffe.Bundle // nil before the first
	status Status
}

// Open makes Partners without any.
func Open(opt Options) (*Partners, error) {
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	opt.least = cmp.Or(opt.least, leastPause)
	if err := os.MkdirAll(opt.Dir, 0o700); err != nil {
		return nil, err
	}
	p := &Partners{opt: opt, all: map[string]*partner{}, changed: make(chan struct{})}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p, nil
}

// Close ends all fetching.
func (p *Partners) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.group.Wait()
}

// Set takes up the partners of the intent that is in force. One that is gone is
// trusted no more from then on; one whose sentence is another begins anew, so
// that what came from elsewhere proves nothing under it.
func (p *Partners) Set(list []merlon.Partner) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	keep := map[string]bool{}
	for _, m := range list {
		keep[m.TrustDomain] = true
		if have := p.all[m.TrustDomain]; have != nil {
			if have.file == p.fileOf(m) && have.AllowLocal == m.AllowLocal {
				continue
			}
			have.cancel()
		}
		p.all[m.TrustDomain] = p.begin(m)
	}
	for name, have := range p.all {
		if !keep[name] {
			have.cancel()
			delete(p.all, name)
		}
	}
	p.tell()
}

// tell wakes all who wait for Stale. It needs p.mu.
func (p *Partners) tell() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// fileOf is where the bundle that came by this sentence is kept.
func (p *Partners) fileOf(m merlon.Partner) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q", m.Bundle, m.EndpointID, m.First))
	return filepath.Join(p.opt.Dir, m.TrustDomain+"."+hex.EncodeToString(sum[:8])+".json")
}

// begin begins to follow a partner. It needs p.mu.
func (p *Partners) begin(m merlon.Partner) *partner {
	t := &partner{Partner: m, file: p.fileOf(m)}
	t.status = Status{TrustDomain: m.TrustDomain, URL: m.Bundle, Profile: m.Profile()}
	text, err := os.ReadFile(t.file)
	if err == nil {
		t.bundle, err = spiffe.ParseBundle(m.TrustDomain, text)
		if info, serr := os.Stat(t.file); err == nil && serr == nil {
			t.status.Fetched = info.ModTime()
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.opt.Log.Warn("the bundle of a partner that was kept cannot be used", "trustDomain", m.TrustDomain, "err", err)
	}
	if t.bundle == nil && m.First != "" {
		if t.bundle, err = spiffe.ParseBundle(m.TrustDomain, []byte(m.First)); err != nil {
			p.opt.Log.Error("the first bundle of a partner cannot be used", "trustDomain", m.TrustDomain, "err", err)
		}
	}
	t.counts()
	ctx, cancel := context.WithCancel(p.ctx)
	t.cancel = cancel
	p.group.Go(func() { p.follow(ctx, t) })
	return t
}

// counts says in the status what the bundle holds.
func (t *partner) counts() {
	if t.bundle != nil {
		t.status.Roots, t.status.Keys, t.status.Sequence = len(t.bundle.DER), t.bundle.Keys(), t.bundle.Sequence
	}
}

// follow fetches the partner's bundle at once and then as often as it hints,
// within bounds; after a failure soon, with growing pauses.
func (p *Partners) follow(ctx context.Context, t *partner) {
	for retry := firstRetry; ; {
		pause := p.once(ctx, t)
		if pause == 0 {
			pause = min(retry, mostPause)
			retry = min(2*retry, usualPause)
		} else {
			retry = firstRetry
		}
		timer := time.NewTimer(pause*3/4 + rand.N(pause/4+1)) // those who started together part ways
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// once fetches once, and says when to come again; 0 after a failure.
func (p *Partners) once(ctx context.Context, t *partner) time.Duration {
	b, text, err := p.fetch(ctx, t)
	if !p.land(ctx, t, b, err) {
		return 0
	}
	// Not under the lock, which handshakes need.
	if err := p.keep(t, text); err != nil {
		p.opt.Log.Error("the bundle of a partner cannot be kept over a restart", "trustDomain", t.TrustDomain, "err", err)
	}
	return max(p.opt.least, min(cmp.Or(b.Hint, usualPause), mostPause))
}

// land takes the outcome of a fetch, and reports whether the bundle is used.
func (p *Partners) land(ctx context.Context, t *partner, b *spiffe.Bundle, err error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ctx.Err() != nil {
		return false // it is a partner no more
	}
	t.status.Asked = p.opt.Now()
	if err == nil && t.bundle != nil && b.Sequence != 0 && b.Sequence < t.bundle.Sequence {
		err = fmt.Errorf("the endpoint gives bundle %d, which is older than %d", b.Sequence, t.bundle.Sequence)
	}
	if err != nil {
		if t.status.Err == "" {
			p.opt.Log.Error("the bundle of a partner cannot be fetched; the last one stays in use", "trustDomain", t.TrustDomain,
				"url", t.Bundle, "err", err, "roots", t.status.Roots, "fetched", t.status.Fetched)
		}
		t.status.Err = err.Error()
		return false
	}
	if t.status.Err != "" {
		p.opt.Log.Info("the bundle of a partner can be fetched again", "trustDomain", t.TrustDomain)
	}
	t.status.Err, t.status.Fetched = "", t.status.Asked
	another := t.bundle == nil || !same(t.bundle, b)
	t.bundle = b
	t.counts()
	if another {
		p.opt.Log.Info("a partner has another bundle", "trustDomain", t.TrustDomain, "sequence", b.Sequence, "roots", len(b.DER), "keys", b.Keys())
		p.tell()
	}
	return true
}

func same(a, b *spiffe.Bundle) bool {
	return slices.EqualFunc(a.DER, b.DER, slices.Equal[[]byte]) && string(a.JWKS) == string(b.JWKS)
}

// keep writes the bundle down, whole or not at all, and forgets what came by
// other sentences.
func (p *Partners) keep(t *partner, text []byte) error {
	if err := replace(t.file, text); err != nil {
		return err
	}
	old, err := filepath.Glob(filepath.Join(p.opt.Dir, t.TrustDomain+".*.json"))
	for _, name := range old {
		// Another trust domain may begin with this one's name and a dot.
		rest := strings.TrimPrefix(filepath.Base(name), t.TrustDomain+".")
		if name != t.file && strings.Count(rest, ".") == 1 {
			os.Remove(name)
		}
	}
	return err
}

func replace(name string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), "new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

// Bundle is the bundle of a trust domain, or nil.
func (p *Partners) Bundle(trustDomain string) *spiffe.Bundle {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t := p.all[trustDomain]; t != nil {
		return t.bundle
	}
	return nil
}

// RootsOf are the roots of a trust domain, or nil.
func (p *Partners) RootsOf(trustDomain string) *x509.CertPool {
	if b := p.Bundle(trustDomain); b != nil && len(b.DER) > 0 {
		return b.Roots
	}
	return nil
}

// Bundles are those of all partners that have one, in the order of their
// names; the channel is closed when there are others.
func (p *Partners) Bundles() ([]*spiffe.Bundle, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []*spiffe.Bundle
	for _, t := range p.all {
		if t.bundle != nil {
			all = append(all, t.bundle)
		}
	}
	slices.SortFunc(all, func(a, b *spiffe.Bundle) int { return strings.Compare(a.TrustDomain, b.TrustDomain) })
	return all, p.changed
}

// Status says how it stands with each partner, in the order of their names.
func (p *Partners) Status() []Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]Status, 0, len(p.all))
	for _, t := range p.all {
		all = append(all, t.status)
	}
	slices.SortFunc(all, func(a, b Status) int { return strings.Compare(a.TrustDomain, b.TrustDomain) })
	return all
}
