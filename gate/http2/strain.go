package http2

import (
	"cmp"
	"slices"
)

// strain is what a peer has cost beyond moving data. It rests with time; a peer
// that reaches the limit is either broken or hostile. One budget serves all
// kinds of floods, so that several together get no more than one.
type strain struct {
	points int
	at     int64
	begun  bool
	over   bool
	floods []flood // what the points were charged for, since there were none
}

// flood is one thing that a peer does too much of.
type flood struct {
	reason string
	points int
}

const (
	strainLimit = 4000
	strainRest  = 400 // points that a second gives back

	// tiny is a number of bytes that is not worth a frame.
	tiny = 64

	costReset    = 8 // so 500 at once and 50 a second
	costSettings = 20
	costPing     = 4
	costEmpty    = 4 // empty DATA, empty CONTINUATION, DATA that the peer's window made tiny
	costIgnored  = 1 // PRIORITY, frames of unknown kinds, for streams that have ended
)

func (s *strain) charge(cost int, reason string) {
	s.points += cost
	s.over = s.over || s.points > strainLimit
	for i := range s.floods {
		if f := &s.floods[i]; f.reason == reason {
			f.points += cost
			return
		}
	}
	s.floods = append(s.floods, flood{reason, cost})
}

// worst names the flood that cost the most. The one that overdrew may be a trifle
// that comes with it: when a client resets a stream that was refused already,
// that is a frame for nothing as well.
func (s *strain) worst() string {
	return slices.MaxFunc(s.floods, func(a, b flood) int { return cmp.Compare(a.points, b.points) }).reason
}

// earn gives back what the peer may cost for something that was sent to it:
// many answer data with a PING, to measure the path.
func (s *strain) earn(points int) { s.points = max(0, s.points-points) }

// rest takes the time into account; a clock that goes back is waited for.
func (s *strain) rest(now int64) {
	const step = 1e9 / strainRest
	if !s.begun {
		s.begun, s.at = true, now
	}
	if points := (now - s.at) / step; points > 0 {
		s.points = int(max(0, int64(s.points)-points))
		s.at += points * step
	}
	if s.points == 0 && !s.over { // what overdrew is still to be named
		s.floods = s.floods[:0]
	}
}
