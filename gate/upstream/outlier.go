package upstream

import (
	"math"
	"math/rand/v2"
	"slices"

	"merlon"
)

// trial says what a call means to an ejected endpoint.
type trial uint8

const (
	none    trial = iota // the endpoint is in use
	probe                // the one call that decides whether it comes back
	despair              // every endpoint is bad: success brings it back, failure tells nothing
)

// tried is the endpoints that a Get has tried already.
type tried struct {
	n  int
	ep [maxTries + 1]*endpoint
}

func (t *tried) add(ep *endpoint) {
	if ep != nil && t.n < len(t.ep) {
		t.ep[t.n] = ep
		t.n++
	}
}

func (t *tried) has(ep *endpoint) bool {
	for i := range t.n {
		if t.ep[i] == ep {
			return true
		}
	}
	return false
}

func (s *set) find(e merlon.Endpoint) *endpoint {
	for _, ep := range s.all {
		if ep.Endpoint == e {
			return ep
		}
	}
	return nil
}

// count brings the set's summary of ejections up to date. Cluster.mu is held.
func (s *set) count() {
	n, due := int32(0), int64(math.MaxInt64)
	for _, ep := range s.all {
		if until := ep.until.Load(); until != 0 {
			n, due = n+1, min(due, until)
		}
	}
	s.due.Store(due)
	s.ejected.Store(n)
}

// pick chooses the less busy of two random endpoints (Mitzenmacher, The Power
// of Two Choices): as even as asking all, and no herd runs to the idlest. It
// returns nil if only tried ones are left.
func (c *Cluster) pick(s *set, t *tried) (*endpoint, trial) {
	switch n := len(s.all); {
	case n == 0:
		return nil, none
	case t.n > 0 || s.ejected.Load() > 0:
		return c.pickCarefully(s, t)
	case n == 1:
		return s.all[0], none
	default:
		i, j := two(n)
		return lessBusy(s.all[i], s.all[j]), none
	}
}

// pickCarefully chooses when some endpoints are out or tried.
func (c *Cluster) pickCarefully(s *set, t *tried) (*endpoint, trial) {
	now := c.now()
	if s.due.Load() <= now {
		if ep := c.lease(s, t, now); ep != nil {
			return ep, probe
		}
	}
	for n := 0; n < 4 && t.n == 0; n++ { // most often chance finds two without a look at all of them
		i, j := two(len(s.all))
		a, b := s.all[i], s.all[j]
		if a.until.Load() == 0 && b.until.Load() == 0 && (!c.failing(a) || !c.failing(b)) {
			return lessBusy(a, b), none
		}
	}
	panicking := !slices.ContainsFunc(s.all, func(ep *endpoint) bool { return ep.until.Load() == 0 && !c.failing(ep) })
	if panicking && t.n > 0 {
		return nil, none // one try is enough: more would feed the outage
	}
	ep := s.pickAmong(func(ep *endpoint) bool { return (panicking || ep.until.Load() == 0) && !t.has(ep) })
	if ep != nil && ep.until.Load() != 0 {
		return ep, despair
	}
	return ep, none
}

// lease makes the call the probe of an endpoint whose ejection is over, if
// there is one. It has the lease's time to report before another call may try.
func (c *Cluster) lease(s *set, t *tried, now int64) *endpoint {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.set.Load() != s {
		return nil
	}
	for _, ep := range s.all {
		if until := ep.until.Load(); until != 0 && until <= now && !t.has(ep) {
			ep.until.Store(now + int64(c.cfg.EjectBase))
			s.count()
			return ep
		}
	}
	return nil
}

// failing reports whether ep would be ejected if it could.
func (c *Cluster) failing(ep *endpoint) bool { return ep.fails.Load() >= int64(c.cfg.EjectAfter) }

// pickAmong is the less busy of two random endpoints that are usable, or nil
// if none is.
func (s *set) pickAmong(usable func(*endpoint) bool) *endpoint {
	n := 0
	for _, ep := range s.all {
		if usable(ep) {
			n++
		}
	}
	i, j := two(n)
	var a, b *endpoint
	for _, ep := range s.all {
		if !usable(ep) {
			continue
		}
		if i == 0 || a == nil { // nil: fewer may come than were counted
			a = ep
		}
		if j == 0 || b == nil {
			b = ep
		}
		i, j = i-1, j-1
	}
	if a == nil {
		return nil
	}
	return lessBusy(a, b)
}

// two draws two different numbers below n, or 0 twice.
func two(n int) (i, j int) {
	if n < 2 {
		return 0, 0
	}
	i, j = rand.IntN(n), rand.IntN(n-1)
	if j >= i {
		j++
	}
	return i, j
}

func lessBusy(a, b *endpoint) *endpoint {
	if b.active.Load() < a.active.Load() {
		return b
	}
	return a
}

// failed counts a failure and ejects the endpoint if it was one too many.
func (ep *endpoint) failed(t trial) {
	n := ep.fails.Add(1)
	if t == probe || t == none && n >= int64(ep.c.cfg.EjectAfter) {
		ep.c.eject(ep, t)
	}
}

// succeeded ends a row of failures, and an ejection if this was its trial.
func (ep *endpoint) succeeded(t trial) {
	if ep.fails.Load() != 0 { // read first: a write on every call would move the cache line
		ep.fails.Store(0)
	}
	if t != none {
		ep.c.restore(ep)
	}
}

// unprobe lets another call be the probe, if this one found nothing out.
func (ep *endpoint) unprobe(t trial) {
	if t != probe {
		return
	}
	ep.c.mu.Lock()
	defer ep.c.mu.Unlock()
	if ep.until.Load() != 0 {
		ep.until.Store(ep.c.now())
		ep.c.set.Load().count()
	}
}

// eject takes ep out of use, for longer each time, unless half are out already.
func (c *Cluster) eject(ep *endpoint, t trial) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, now := c.set.Load(), c.now()
	if s.find(ep.Endpoint) != ep {
		return // retired
	}
	out := ep.until.Load() != 0
	if out && t != probe { // a call that began before the ejection
		return
	}
	if !out {
		if (int(s.ejected.Load())+1)*2 > len(s.all) {
			return
		}
		if now-ep.restored > int64(c.cfg.EjectMax) {
			ep.ejections = 0
		}
	}
	d := int64(c.cfg.EjectMax)
	if shifted := int64(c.cfg.EjectBase) << min(ep.ejections, 20); shifted < d {
		d = shifted
	}
	ep.ejections++
	c.counts.ejections.Add(1)
	ep.until.Store(now + d)
	s.count()
	ep.drop(func(*Conn) bool { return true })
}

// restore takes ep back into use.
func (c *Cluster) restore(ep *endpoint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.set.Load()
	if ep.until.Load() != 0 && s.find(ep.Endpoint) == ep {
		ep.comeBack(c.now())
		s.count()
	}
}

// restoreSoonest takes the endpoint back that would be probed first. Other
// endpoints have gone, and too few would be left.
func (s *set) restoreSoonest() {
	var soonest *endpoint
	for _, ep := range s.all {
		if until := ep.until.Load(); until != 0 && (soonest == nil || until < soonest.until.Load()) {
			soonest = ep
		}
	}
	soonest.comeBack(soonest.c.now())
	s.count()
}

// comeBack ends an ejection. Cluster.mu is held.
func (ep *endpoint) comeBack(now int64) {
	ep.until.Store(0)
	ep.fails.Store(0)
	ep.restored = now
}
