package authority

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// Run keeps the authority's own keys young until ctx ends. Without it they are
// looked after only when something is issued.
func (a *Authority) Run(ctx context.Context) {
	for {
		now := a.opt.Now()
		a.keep(now)
		if !sleepUntil(ctx, a.opt.Now, a.state.Load().next) {
			return
		}
	}
}

// fresh is the state to sign by. What is due is done first, unless another
// caller is at it and there is something to sign by meanwhile.
func (a *Authority) fresh(now time.Time) *state {
	s := a.state.Load()
	between := s.lines[intermediates].youngest(now)
	serves := between != nil && between.lasts(now, leastLifetime)
	if now.Before(s.next) && serves {
		return s
	}
	if !serves {
		a.keeping.Lock()
	} else if !a.keeping.TryLock() {
		return s
	}
	defer a.keeping.Unlock()
	a.advance(now)
	return a.state.Load()
}

// keep makes the successors that are due, publishes them, and raises alarms.
func (a *Authority) keep(now time.Time) {
	a.keeping.Lock()
	defer a.keeping.Unlock()
	a.advance(now)
}

// advance is keep; a.keeping is held.
//
// Every step is whole in itself: a successor is in the journal, then on disk,
// then in memory and the bundle. A process that is killed in between finds on
// its next start what the disk has, and a root or JWT key counts as published
// from then on, see load.
func (a *Authority) advance(now time.Time) {
	s := *a.state.Load()
	for k := range kinds {
		if now.Before(a.again[k]) || !s.due(&a.opt, k, now) {
			continue
		}
		err := a.succeed(&s, k, now)
		if err == nil {
			a.again[k], a.failed[k] = time.Time{}, nil
			continue
		}
		if errors.Is(err, errNotice) {
			continue // nothing failed, and ask said when to go on
		}
		// Whoever asks in between does not wait for the next failure.
		a.again[k] = now.Add(min(time.Minute, a.life(k)/128))
		a.failed[k] = fmt.Errorf("%v: %w", k, err)
		attrs := []any{"err", err, "directory", a.dir}
		if p := s.lines[k].youngest(now); p != nil {
			attrs = append(attrs, "ends", p.cert.NotAfter, "left", p.cert.NotAfter.Sub(now))
		}
		a.opt.Log.Error(fmt.Sprintf("the %v could not be renewed", a.called(k)), attrs...)
	}
	a.publish(&s, now)
	why := ""
	if err := errors.Join(a.failed[:]...); err != nil {
		why = err.Error()
	}
	a.failure.Store(&why)
	a.alarm(&s, now)
}

// publish makes s the state of now.
func (a *Authority) publish(s *state, now time.Time) {
	old := s.trust
	if t, err := s.bundle(now); err != nil {
		a.opt.Log.Error("the trust bundle could not be written", "err", err)
	} else if old == nil || !t.equal(old) {
		s.trust = t
	}
	s.next = s.moments(&a.opt, now)
	for _, t := range a.again {
		if t.After(now) && t.Before(s.next) {
			s.next = t
		}
	}
	a.state.Store(s)
	if old != nil && old != s.trust {
		close(old.stale)
	}
}

// succeed adds a successor to a line.
func (a *Authority) succeed(s *state, k kind, now time.Time) error {
	l := s.lines[k]
	if k == roots && len(l) > 0 && l.youngest(now) == nil && !s.upstream() {
		a.opt.Log.Error("the root certificate has ended and was not renewed: there is a new one, and every workload needs the new bundle",
			"ended", l[len(l)-1].cert.NotAfter, "directory", a.dir)
	}
	var p pair
	var err error
	switch {
	case k == roots && (a.opt.Upstream != nil || s.upstream()):
		return nil // it comes with an intermediate
	case k == roots:
		p, err = a.newPair(k, l.next(), a.caTemplate("root", now, a.opt.Root, 1), pair{})
	case k == jwtKeys:
		p, err = a.newPair(k, l.next(), a.jwtTemplate(now), pair{})
	case a.opt.Upstream != nil:
		return a.ask(s, now)
	case k == intermediates && s.upstream():
		return a.installed(s, now)
	default:
		root := s.lines[roots].signer(now, leastLifetime)
		if root == nil {
			return errors.New("there is no root to sign it")
		}
		p, err = a.newPair(k, l.next(), a.betweenTemplate(root, now), *root)
	}
	if err != nil {
		return err
	}
	if k != intermediates && l.youngest(now) != nil {
		p.usable = now.Add(a.opt.Notice)
	}
	s.lines[k] = append(slices.Clip(l), p)
	return a.prune(s, k, now)
}

// newPair makes a key and its certificate, signed by parent or by itself, and
// stores both in one file: no crash leaves one without the other.
func (a *Authority) newPair(k kind, number int, t *x509.Certificate, parent pair) (pair, error) {
	key, err := newKeyPair()
	if err != nil {
		return pair{}, err
	}
	if parent.cert == nil {
		parent = pair{cert: t, key: key}
	}
	der, err := a.sign(k.String(), t, parent, key.Public())
	if err != nil {
		return pair{}, err
	}
	return a.store(k, number, [][]byte{der}, key)
}

// newKeyPair is where the keys of the authority come from. Everything else
// knows them as signers only.
func newKeyPair() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// keepFiles is how many pairs of a line stay on disk, ended or not.
const keepFiles = 8

// prune drops the oldest pair if it has ended long ago.
func (a *Authority) prune(s *state, k kind, now time.Time) error {
	l := s.lines[k]
	for len(l) > keepFiles && !l[0].published(now) {
		if err := remove(a.dir, l[0].file); err != nil {
			return err
		}
		l = l[1:]
	}
	s.lines[k] = l
	return nil
}

func (a *Authority) life(k kind) time.Duration {
	return [kinds]time.Duration{a.opt.Root, a.opt.Intermediate, a.opt.JWTKey}[k]
}

func (a *Authority) called(k kind) string {
	return [kinds]string{"root certificate", "intermediate certificate", "key of JWT-SVIDs"}[k]
}

// Alarm is how near its end something is that has no successor.
type Alarm uint8

const (
	NoAlarm  Alarm = iota
	HalfOver       // half of its life is left at most: renewal has failed since
	Quarter        // a quarter is left at most
	Tenth          // a tenth is left at most
	Ended
)

// String is the alarm's word in status.
func (a Alarm) String() string {
	if int(a) < len(alarms) {
		return alarms[a].word
	}
	return "invalid"
}

// alarms are the words for status and log.
var alarms = [...]struct {
	left       float64
	level      slog.Level
	word, says string
}{
	NoAlarm:  {word: "none"},
	HalfOver: {0.5, slog.LevelWarn, "half over", "half of its life is over and it has no successor"},
	Quarter:  {0.25, slog.LevelError, "a quarter left", "three quarters of its life are over and it has no successor"},
	Tenth:    {0.1, slog.LevelError, "a tenth left", "it is about to end and has no successor"},
	Ended:    {0, slog.LevelError, "ended", "it has ended: what it signed is refused everywhere"},
}

// alarmOf is how near its end p is.
func alarmOf(p *pair, now time.Time) Alarm {
	level := NoAlarm
	for i, a := range alarms {
		if Alarm(i) != NoAlarm && !now.Before(p.at(1-a.left)) {
			level = Alarm(i)
		}
	}
	return level
}

// last is the pair of a line whose end counts, and how near it is.
func (s *state) last(k kind, now time.Time) (*pair, Alarm) {
	l := s.lines[k]
	p := l.youngest(now)
	if p == nil && len(l) > 0 {
		p = &l[len(l)-1]
	}
	if p == nil {
		return nil, Ended
	}
	if k == intermediates {
		for i := range s.lines[roots] {
			// It ends with its root: the root's end is the one that counts.
			if r := &s.lines[roots][i]; r.key != nil && r.signed(p) && !p.cert.NotAfter.Before(r.cert.NotAfter) && r.valid(now) {
				return p, NoAlarm
			}
		}
	}
	return p, alarmOf(p, now)
}

// alarm logs each alarm once.
func (a *Authority) alarm(s *state, now time.Time) {
	for k := range kinds {
		p, level := s.last(k, now)
		if p == nil || level == NoAlarm {
			continue
		}
		if had := a.alarmed[k]; had.number == p.number && had.level >= level {
			continue
		}
		a.alarmed[k] = alarmed{p.number, level}
		a.opt.Log.Log(context.Background(), alarms[level].level, "the "+a.called(k)+" is not renewed: "+alarms[level].says,
			"ends", p.cert.NotAfter, "left", max(0, p.cert.NotAfter.Sub(now)), "directory", a.dir)
	}
}

type alarmed struct {
	number int
	level  Alarm
}

// Life is one certificate or key of the authority, for people.
type Life struct {
	Kind   string    `json:"kind"` // root, intermediate or jwt
	Serial string    `json:"serial"`
	From   time.Time `json:"from"`
	Until  time.Time `json:"until"`
	State  string    `json:"state"` // prepared, signing or retired
}

// Status is how the authority's own keys fare.
type Status struct {
	Lives  []Life            `json:"lives"`
	Alarms map[string]string `json:"alarms,omitempty"` // by kind
	Err    string            `json:"err,omitzero"`     // why something that is due is not done
}

// Status says how the authority's own keys fare. What has ended is left out.
func (a *Authority) Status(now time.Time) Status {
	out := a.state.Load().status(now)
	out.Err = *a.failure.Load()
	return out
}

func (s *state) status(now time.Time) Status {
	out := Status{Alarms: map[string]string{}}
	for k := range kinds {
		signer := s.lines[k].signer(now, leastLifetime)
		for i := range s.lines[k] {
			p := &s.lines[k][i]
			if !p.published(now) {
				continue
			}
			life := Life{Kind: k.String(), Serial: p.cert.SerialNumber.Text(16), From: p.made(), Until: p.cert.NotAfter, State: "retired"}
			switch {
			case p == signer:
				life.State = "signing"
			case signer != nil && p.number > signer.number:
				life.State = "prepared"
			}
			out.Lives = append(out.Lives, life)
		}
		if _, level := s.last(k, now); level != NoAlarm {
			out.Alarms[k.String()] = level.String()
		}
	}
	return out
}
