package authority

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"time"
)

// kind is a kind of key that the authority keeps, and its line of successors.
type kind int

const (
	roots kind = iota
	intermediates
	jwtKeys
	kinds
)

// String is the kind's word in file names, the journal and status.
func (k kind) String() string { return [kinds]string{"root", "intermediate", "jwt"}[k] }

// pair is a certificate and its key. The key may be anything that signs. A JWT
// key has a certificate that it signed itself: it says how long the key lives.
type pair struct {
	cert   *x509.Certificate
	key    crypto.Signer // nil: an upstream root, which signs elsewhere
	chain  [][]byte      // of an intermediate: what lies between it and its root, DER
	number int           // the youngest of a line has the greatest
	file   string
	// usable is when the pair may begin to sign: what verifies by it has to be
	// with everyone before.
	usable time.Time
}

// made is when the pair began, by the clock of this host.
func (p *pair) made() time.Time { return p.cert.NotBefore.Add(Skew) }

// at is the instant at which this part of the pair's life is over.
func (p *pair) at(fraction float64) time.Time {
	return p.made().Add(time.Duration(float64(p.cert.NotAfter.Sub(p.made())) * fraction))
}

func (p *pair) valid(now time.Time) bool {
	return !now.Before(p.cert.NotBefore) && now.Before(p.cert.NotAfter)
}

// lasts reports whether the pair is valid for need from now on.
func (p *pair) lasts(now time.Time, need time.Duration) bool {
	return p.valid(now) && p.cert.NotAfter.Sub(now) >= need
}

// published reports whether the pair belongs to the bundle. It stays for as
// long as a verifier whose clock is behind could need it.
func (p *pair) published(now time.Time) bool { return now.Before(p.cert.NotAfter.Add(Skew)) }

// signed reports whether what is above child ends at p, by the names of keys:
// the signatures were checked when child came.
func (p *pair) signed(child *pair) bool {
	top := child.cert
	if n := len(child.chain); n > 0 {
		var err error
		if top, err = x509.ParseCertificate(child.chain[n-1]); err != nil {
			return false
		}
	}
	return bytes.Equal(top.AuthorityKeyId, p.cert.SubjectKeyId)
}

// line is the pairs of one kind, the oldest first, those that have ended
// included: a clock that was wrong for a while loses nothing. A line is never
// changed, but replaced by a longer one.
type line []pair

// youngest is the last that is valid, or nil.
func (l line) youngest(now time.Time) *pair {
	for i := len(l) - 1; i >= 0; i-- {
		if l[i].valid(now) {
			return &l[i]
		}
	}
	return nil
}

// signer is the pair that signs now what is to live for need: the youngest that
// is usable; if none is, the oldest; and in the last resort the youngest of
// all, however short its life is. What those sign may be refused for a while, by
// who has not heard of them, and without them everything is.
func (l line) signer(now time.Time, need time.Duration) *pair {
	for i := len(l) - 1; i >= 0; i-- {
		if p := &l[i]; p.lasts(now, need) && !now.Before(p.usable) {
			return p
		}
	}
	for i := range l {
		if p := &l[i]; p.lasts(now, need) {
			return p
		}
	}
	return l.youngest(now)
}

func (l line) next() int {
	if len(l) == 0 {
		return 0
	}
	return l[len(l)-1].number + 1
}

// state is everything that the authority holds at one moment. It never
// changes; rotation replaces it.
type state struct {
	lines [kinds]line
	trust *Trust
	next  time.Time // when something is due
}

// upstream reports whether the roots are another's.
func (s *state) upstream() bool {
	l := s.lines[roots]
	return len(l) > 0 && l[len(l)-1].key == nil
}

// ripe is when the pair needs a successor: at half of its life, or as long
// before as it takes for an SVID to get three quarters of its lifetime at least,
// whoever signs it. A root's successor cannot sign at once. What lives hardly longer
// than that has one after an eighth of its life, lest it has one all the time.
func (o *Options) ripe(k kind, p *pair) time.Time {
	need := o.Lifetime * 3 / 4
	switch k {
	case roots:
		need += o.Notice
	case jwtKeys:
		need = 0
	}
	sooner := p.cert.NotAfter.Add(-need)
	if least := p.at(0.125); sooner.Before(least) {
		sooner = least
	}
	if half := p.at(0.5); half.Before(sooner) {
		return half
	}
	return sooner
}

// due reports whether a line needs a successor.
func (s *state) due(o *Options, k kind, now time.Time) bool {
	p := s.lines[k].youngest(now)
	if p == nil {
		return true
	}
	ripe := !now.Before(o.ripe(k, p))
	if k != intermediates {
		return ripe
	}
	root := s.lines[roots].signer(now, leastLifetime)
	switch {
	case root == nil || root.key == nil: // the upstream authority decides
		return ripe
	case !root.signed(p): // its root is on the way out
		return true
	}
	// What ends with its root cannot be prolonged: the next root is at hand.
	return ripe && p.cert.NotAfter.Before(root.cert.NotAfter)
}

// moments are the instants after now at which due, or the bundle, may change.
func (s *state) moments(o *Options, now time.Time) time.Time {
	next := now.Add(day)
	for k, l := range s.lines {
		for i := range l {
			p := &l[i]
			for _, t := range [...]time.Time{p.usable, o.ripe(kind(k), p), p.at(0.5), p.at(0.75), p.at(0.9), p.cert.NotAfter, p.cert.NotAfter.Add(Skew)} {
				if t.After(now) && t.Before(next) {
					next = t
				}
			}
		}
	}
	return next
}
