// Package coarse is a clock that is cheap to read and right to within its
// period: one goroutine looks at the real clock, everyone else loads a word.
//
// It serves timeouts, sweepers and rate limits, which read the time on every
// request and do not care about milliseconds. A reading is behind the real
// clock by up to a period, never ahead of it: what it measures is wrong by at
// most one period either way.
package coarse

import (
	"sync"
	"sync/atomic"
	"time"
)

// Clock is a coarse clock. It is safe for concurrent use. Make one with Start
// or, for tests and replays, with New.
type Clock struct {
	base  time.Time
	since atomic.Int64 // nanoseconds since base, monotonic
	wall  atomic.Int64 // unix nanoseconds, follows corrections of the system's clock

	once sync.Once
	stop chan struct{}
	done chan struct{}
}

// New returns a clock that stands at t and moves by Set only. It needs no Stop.
func New(t time.Time) *Clock {
	c := &Clock{base: t}
	c.wall.Store(t.UnixNano())
	return c
}

// Start returns a clock that reads now once every period, until Stop. A period
// of 10 ms costs a hundred wake-ups a second: share one clock per process.
func Start(now func() time.Time, period time.Duration) *Clock {
	c := New(now())
	c.stop, c.done = make(chan struct{}), make(chan struct{})
	go c.run(now, max(period, time.Millisecond))
	return c
}

func (c *Clock) run(now func() time.Time, period time.Duration) {
	defer close(c.done)
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			c.Set(now())
		case <-c.stop:
			return
		}
	}
}

// Set moves the clock to t. The monotonic reading never goes back.
func (c *Clock) Set(t time.Time) {
	d := int64(t.Sub(c.base))
	for {
		old := c.since.Load()
		if d <= old || c.since.CompareAndSwap(old, d) {
			break
		}
	}
	c.wall.Store(t.UnixNano())
}

// Stop ends the clock's goroutine and waits for it. The clock then stands
// still. Stopping twice, or a clock made by New, does nothing.
func (c *Clock) Stop() {
	if c.stop == nil {
		return
	}
	c.once.Do(func() { close(c.stop) })
	<-c.done
}

// Nanos is the monotonic reading: nanoseconds since the clock was made, never
// decreasing. It is for durations and limits.
func (c *Clock) Nanos() int64 { return c.since.Load() }

// Unix is the wall clock in unix nanoseconds. It is for records and expiry,
// and may jump when the system's clock is corrected.
func (c *Clock) Unix() int64 { return c.wall.Load() }

// Now is the monotonic reading as a time, for whom takes a func() time.Time.
// Its wall part does not follow corrections of the system's clock; use Unix.
func (c *Clock) Now() time.Time { return c.base.Add(time.Duration(c.since.Load())) }
