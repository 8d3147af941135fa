package gate

import (
	"fmt"
	"time"
)

// Problem is one reason why calls should not be sent to a gate now.
type Problem struct {
	Code string `json:"code"` // stable
	Text string `json:"text"`
}

// Codes of problems, documented in docs/operations.md.
const (
	ProblemNoOrders     = "no_orders"     // there are no orders in force
	ProblemNotListening = "not_listening" // no address is open
	ProblemSVID         = "svid"          // no certificate of the own identity is valid
	ProblemRecords      = "records"       // decisions cannot be recorded
	ProblemDraining     = "draining"      // the gate is about to end
)

// Problems are the reasons why calls should not be sent here; there are none
// when the gate is ready.
func (g *Gate) Problems(now time.Time) []Problem {
	var list []Problem
	add := func(code, format string, args ...any) {
		list = append(list, Problem{code, fmt.Sprintf(format, args...)})
	}
	if g.leaving.Load() {
		add(ProblemDraining, "the gate finishes what it has begun and takes nothing new")
	} else if !g.open.listens() {
		add(ProblemNotListening, "the gate does not accept connections")
	}
	if g.force.Load() == nil {
		add(ProblemNoOrders, "the gate has no orders, and denies every call")
	}
	switch svid := g.cfg.Source.SVID(); {
	case svid == nil || svid.Leaf == nil:
		add(ProblemSVID, "there is no certificate of the gate's identity")
	case now.Before(svid.Leaf.NotBefore):
		add(ProblemSVID, "the certificate of the gate's identity is not valid before %s", svid.Leaf.NotBefore.Format(time.RFC3339))
	case now.After(svid.Leaf.NotAfter):
		add(ProblemSVID, "the certificate of the gate's identity ended at %s", svid.Leaf.NotAfter.Format(time.RFC3339))
	}
	// The room is asked for, not only the last error: a disk that does not
	// follow is no error of its own.
	if err := g.cfg.Records.Reserve(); err != nil {
		add(ProblemRecords, "decisions cannot be recorded, so every call is refused: %v", err)
	} else {
		g.cfg.Records.Cancel()
	}
	return list
}

// maxStill is how long a loop of a gate may stand still, on a machine that is
// out of breath.
const maxStill = 10 * time.Second

// Stuck says which loop of the gate does not move any more, or nil.
func (g *Gate) Stuck(now time.Time) error {
	if d := now.Sub(g.clock.Now()); d > maxStill {
		return fmt.Errorf("the gate's clock stands still since %v", d.Round(time.Second))
	}
	if d := time.Duration(g.clock.Nanos() - g.swept.Load()); d > maxStill {
		return fmt.Errorf("the gate's deadlines are not kept since %v", d.Round(time.Second))
	}
	return nil
}

// Connections is how many connections and streams of HTTP/2 are open.
func (g *Gate) Connections() int { return g.open.count() }
