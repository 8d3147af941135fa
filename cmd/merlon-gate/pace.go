package main

import (
	"runtime"
	"syscall"
	"time"
)

// pace says how many processors a gate at the edge uses: one while its work fits
// well into one, and else all there are. At ordinary load waking a second
// processor for a call costs a sixth of the call (docs/decisions/0032).
type pace struct {
	wide bool // all processors are in use
	full int  // looks in a row at which one processor was nearly full

	last, begun usage // at the look before, and when all came into use or were last weighed
}

// usage is processor time used by some instant, both since some beginning.
type usage struct{ at, used time.Duration }

// load is how many processors were used since before.
func (u usage) load(before usage) float64 {
	if u.at <= before.at {
		return 0
	}
	return float64(u.used-before.used) / float64(u.at-before.at)
}

const (
	paceLook = 25 * time.Millisecond // between looks
	paceFull = 0.6                   // load of one processor, at two looks in a row, that brings all into use
	paceEase = 0.4                   // load over paceCalm that leaves it to one again
	paceCalm = time.Second
)

// look takes a sample, and reports whether all processors are to be used.
func (p *pace) look(now usage) (wide bool) {
	switch {
	case !p.wide:
		if p.full++; now.load(p.last) < paceFull {
			p.full = 0
		}
		if p.full == 2 {
			*p = pace{wide: true, begun: now}
		}
	case now.at-p.begun.at >= paceCalm:
		p.wide = now.load(p.begun) >= paceEase
		p.begun = now
	}
	p.last = now
	return p.wide
}

// keepPace follows the load until the process ends.
func keepPace() {
	begun := time.Now()
	var p pace
	runtime.GOMAXPROCS(1)
	for range time.Tick(paceLook) {
		var r syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
			runtime.SetDefaultGOMAXPROCS()
			return
		}
		before := p.wide
		switch wide := p.look(usage{time.Since(begun), time.Duration(r.Utime.Nano() + r.Stime.Nano())}); {
		case wide && !before:
			runtime.SetDefaultGOMAXPROCS() // what cpu.max gives now, and follows it
		case !wide && before:
			runtime.GOMAXPROCS(1)
		}
	}
}
