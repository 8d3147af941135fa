package gate

import (
	"maps"
	"sync"
	"sync/atomic"
	"unsafe"

	"merlon"
	"merlon/internal/exposition"
	"merlon/record"
)

// A call is counted where it is recorded, in the cell of its operation and its
// caller. The orders in force know the way to every cell they can need: from
// the operation that was routed and the caller that was proved, through two
// slices, to a few words that calls on other processors seldom touch. Nothing
// that a client sends becomes the name of a series: operations, services and
// callers are those of the orders, all others are "other".

// positions is how many there are.
const positions = int(Outbound) + 1

// maxCells bounds the cells of a gate, beside one for each position that takes
// what has no room: a hundred times what a usual system has.
const maxCells = 10_000

// maxOutcomes bounds the outcomes of a cell. Reasons are words of this program,
// so this is more than there are.
const maxOutcomes = 256

// durations are the upper ends of the buckets for durations, in nanoseconds.
var durations = [...]int64{
	500e3, 1e6, 2.5e6, 5e6, 10e6, 25e6, 50e6, 100e6, 250e6, 500e6, 1e9, 2.5e9, 5e9, 10e9,
}

// metrics are the numbers of a gate.
type metrics struct {
	mask  uintptr // stripes that are used, less one
	none  *series // before the first orders
	place exposition.Labels

	accepted, handshakes [positions]atomic.Uint64 // connections that came, and that failed to prove who they are
	swaps, refused       atomic.Uint64            // orders put in force, and not
	defects, turnedAway  atomic.Uint64            // connections that met a defect, and for which there was no room
	ended                cell                     // outcomes of tunnels
	mu                   sync.Mutex
	cells                map[cellName]*cell
}

// cellName is what a cell counts.
type cellName struct {
	at                         Position
	service, operation, caller string
}

// maxStripes bounds the copies of a cell; it is a power of two.
const maxStripes = 16

// cell counts the calls of one caller to one operation. It is kept in stripes,
// which are added up when somebody looks, so that processors do not take the
// cache line from each other.
type cell struct {
	name    cellName
	labels  exposition.Labels
	stripes [maxStripes]atomic.Pointer[stripe]

	mu       sync.Mutex
	outcomes atomic.Pointer[[]*outcome] // but allowed ones, which stripes count; replaced as a whole
}

// stripe is three cache lines.
type stripe struct {
	answered [6]atomic.Uint64 // allowed calls by class of the status; 0 for no answer
	buckets  [len(durations) + 1]atomic.Uint64
	nanos    atomic.Uint64
	in, out  atomic.Uint64 // bytes of bodies
}

// outcome is how calls ended that were not simply allowed.
type outcome struct {
	verdict string // allow, deny or shadow
	reason  merlon.Reason
	class   int
	n       atomic.Uint64
}

func (m *metrics) init(procs int, place string) {
	m.mask = 0
	for int(m.mask)+1 < min(procs, maxStripes) {
		m.mask = m.mask<<1 | 1
	}
	m.place = exposition.Label("place", place)
	m.cells = map[cellName]*cell{}
	m.none = m.series(&merlon.Intent{})
}

// series is the way from a call under some orders to its cell.
type series struct {
	m          *metrics
	services   map[*merlon.Service]int   // slots
	operations map[*merlon.Operation]int // slots
	slots      []slot
	parties    map[string]int // by the name of a service or a login
	callers    []string       // by party
	rows       []atomic.Pointer[row]
}

// slot is an operation, or a service without one, or neither.
type slot struct{ service, operation string }

// row is the cells of one operation at one position, by party.
type row []atomic.Pointer[cell]

// Parties that are there whatever the orders say.
const (
	partyNobody = iota
	partyAnyone
	partyOther
)

// series makes the way to the cells of an intent, without making a cell: there
// may be many that no call ever needs.
func (m *metrics) series(in *merlon.Intent) *series {
	s := &series{
		m:          m,
		services:   map[*merlon.Service]int{},
		operations: map[*merlon.Operation]int{},
		slots:      []slot{{}},
		parties:    map[string]int{merlon.AnyCaller: partyAnyone},
		callers:    []string{partyNobody: merlon.Nobody.String(), partyAnyone: merlon.AnyCaller, partyOther: "other"},
	}
	party := func(name string) {
		if _, ok := s.parties[name]; !ok {
			s.parties[name] = len(s.callers)
			s.callers = append(s.callers, name)
		}
	}
	for i := range in.Services {
		svc := &in.Services[i]
		s.services[svc] = len(s.slots)
		s.slots = append(s.slots, slot{svc.Name, ""})
		for j := range svc.Operations {
			op := &svc.Operations[j]
			s.operations[op] = len(s.slots)
			s.slots = append(s.slots, slot{svc.Name, op.Name})
		}
		party(svc.Name)
		for j := range svc.Rules {
			party(svc.Rules[j].Caller)
		}
	}
	if in.Gateway != nil {
		for i := range in.Gateway.Logins {
			party(in.Gateway.Logins[i].Name)
		}
	}
	s.rows = make([]atomic.Pointer[row], positions*len(s.slots))
	m.forget(s)
	return s
}

// forget drops what the new orders do not name when cells become many, so that
// years of orders do not fill the place of those in force. Otherwise a series
// stays, and a counter that comes back goes on.
func (m *metrics) forget(s *series) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.cells) < maxCells/2 {
		return
	}
	named := make(map[slot]bool, len(s.slots))
	for _, slot := range s.slots {
		named[slot] = true
	}
	maps.DeleteFunc(m.cells, func(n cellName, _ *cell) bool { return !named[slot{n.service, n.operation}] })
}

// cell is where the call is counted.
func (s *series) cell(x *exchange) *cell {
	slot, ok := s.operations[x.operation]
	if !ok && x.service != nil {
		slot = s.services[x.service]
	}
	party := s.party(x)
	if r := s.rows[int(x.at)*len(s.slots)+slot].Load(); r != nil {
		if c := (*r)[party].Load(); c != nil {
			return c
		}
	}
	return s.open(x.at, slot, party)
}

// party is the number of the caller. A peer is looked up once in a connection; a
// login's name comes from a token, and to look that up costs more.
func (s *series) party(x *exchange) int {
	switch c := &x.call.Caller; c.Kind {
	case merlon.Anyone:
		return partyAnyone
	case merlon.Login:
		return s.named(c.Name)
	case merlon.Workload:
		if p := x.peer; p.counted != s { // whose own name it is
			p.counted, p.party = s, s.named(c.Name)
		}
		return x.peer.party
	}
	return partyNobody
}

func (s *series) named(name string) int {
	if n, ok := s.parties[name]; ok {
		return n
	}
	return partyOther
}

// open finds or makes a cell that is needed for the first time under these
// orders.
func (s *series) open(at Position, number, party int) *cell {
	m := s.m
	m.mu.Lock()
	defer m.mu.Unlock()
	place := &s.rows[int(at)*len(s.slots)+number]
	r := place.Load()
	if r == nil {
		r = new(make(row, len(s.callers)))
		place.Store(r)
	}
	name := cellName{at, s.slots[number].service, s.slots[number].operation, s.callers[party]}
	c := m.cells[name]
	if c == nil && len(m.cells) >= maxCells {
		const other = "other"
		name = cellName{at, other, other, other}
		c = m.cells[name]
	}
	if c == nil {
		c = &cell{name: name, labels: m.place.With("at", at.String(), "service", name.service, "operation", name.operation, "caller", name.caller)}
		m.cells[name] = c
	}
	(*r)[party].Store(c)
	return c
}

// cell is where the call at hand is counted.
func (c *conn) cell() *cell {
	if c.x.f == nil {
		return c.g.metrics.none.cell(&c.x)
	}
	return c.x.f.series.cell(&c.x)
}

// count counts the call that r is the record of.
func (c *conn) count(r *record.Record) {
	to := c.cell()
	class := c.x.class(r.Status)
	verdict := "deny"
	if r.Verdict.Effect == merlon.Allow {
		verdict = "allow"
		p := to.stripe(c)
		if r.Verdict.Reason == merlon.ReasonAllowed {
			p.answered[class].Add(1)
		}
		p.observe(r)
	}
	if r.Verdict.Shadow {
		verdict = "shadow"
	}
	if r.Verdict.Effect != merlon.Allow || r.Verdict.Reason != merlon.ReasonAllowed {
		to.outcome(verdict, r.Verdict.Reason, class).n.Add(1)
	}
}

// stripe is the part of the cell that c counts in. Connections are spread by
// where they are in memory, which is as good as a random number and costs none.
func (to *cell) stripe(c *conn) *stripe {
	const fibonacci = 0x9e3779b97f4a7c15 // Knuth, TAOCP 6.4
	i := uintptr(uint64(uintptr(unsafe.Pointer(c)))*fibonacci>>60) & c.g.metrics.mask
	p := to.stripes[i].Load()
	if p == nil {
		to.stripes[i].CompareAndSwap(nil, new(stripe))
		p = to.stripes[i].Load()
	}
	return p
}

// observe counts how long an allowed call took and what it moved.
func (p *stripe) observe(r *record.Record) {
	bucket := 0
	for bucket < len(durations) && r.Duration > durations[bucket] {
		bucket++
	}
	p.buckets[bucket].Add(1)
	p.nanos.Add(uint64(max(r.Duration, 0)))
	p.moved(r)
}

// count counts what went through a tunnel and how it ended, of which r is the
// record; that it was opened has been counted.
func (t *tunnel) count(r *record.Record) {
	t.cell.stripe(t.c).moved(r)
	t.c.g.metrics.ended.outcome(r.Verdict.Effect.String(), r.Verdict.Reason, 0).n.Add(1)
}

func (p *stripe) moved(r *record.Record) {
	if r.BytesIn > 0 {
		p.in.Add(uint64(r.BytesIn))
	}
	if r.BytesOut > 0 {
		p.out.Add(uint64(r.BytesOut))
	}
}

// outcome finds or makes the counter of an outcome.
func (to *cell) outcome(verdict string, reason merlon.Reason, class int) *outcome {
	if o := to.known(verdict, reason, class); o != nil {
		return o
	}
	to.mu.Lock()
	defer to.mu.Unlock()
	var before []*outcome
	if all := to.outcomes.Load(); all != nil {
		before = *all
	}
	if len(before) >= maxOutcomes {
		reason, class = "other", 0
	}
	if o := to.known(verdict, reason, class); o != nil {
		return o
	}
	o := &outcome{verdict: verdict, reason: reason, class: class}
	after := append(before[:len(before):len(before)], o)
	to.outcomes.Store(&after)
	return o
}

func (to *cell) known(verdict string, reason merlon.Reason, class int) *outcome {
	all := to.outcomes.Load()
	if all == nil {
		return nil
	}
	for _, o := range *all {
		if o.class == class && o.reason == reason && o.verdict == verdict {
			return o
		}
	}
	return nil
}

// class is the first digit of the status of the call's answer, or of the status
// that says the same as its status of gRPC; 0 for none.
func (x *exchange) class(status int) int {
	switch {
	case x.coded:
		return x.code.Class()
	case status < 100 || status > 599:
		return 0
	}
	return status / 100
}
