package upstream

import (
	"sync/atomic"
	"time"
)

// budget bounds retries to a share of the calls, so that retries cannot turn
// a slow upstream into a dead one. It is a token bucket that calls fill, and
// beside it a small flow for services with few calls.
type budget struct {
	percent atomic.Int64 // tokens that a call deposits, in hundredths; 0: no retries at all
	saved   atomic.Int64
	flow    atomic.Int64 // TAT of the minimum, see package limit for GCRA
}

const (
	maxSaved      = 100 * 100        // hundredths: a quiet day does not save up a storm
	flowInterval  = time.Second / 3  // the minimum: three retries a second,
	flowTolerance = 3 * flowInterval // at most three at once
)

// deposit is called for every call, and every retry.
func (b *budget) deposit() {
	// A full bucket is only read, so that it does not bounce between caches.
	if percent := b.percent.Load(); percent != 0 && b.saved.Load() < maxSaved {
		b.saved.Add(percent)
	}
}

// take takes one retry. It costs what the retry will itself deposit, too, so
// that retries do not feed retries.
func (b *budget) take(now int64) bool {
	percent := b.percent.Load()
	if percent == 0 {
		return false
	}
	cost := 100 + percent
	for {
		saved := b.saved.Load()
		if saved < cost {
			break
		}
		if b.saved.CompareAndSwap(saved, saved-cost) {
			return true
		}
	}
	for {
		old := b.flow.Load()
		tat := max(old, now) + int64(flowInterval)
		if tat-now > int64(flowTolerance) {
			return false
		}
		if b.flow.CompareAndSwap(old, tat) {
			return true
		}
	}
}
