package gate

import "sync"

// runners are goroutines that serve streams of HTTP/2 and then wait for the
// next one. A new goroutine for each would begin with a small stack, and grow
// it on the way down to the upstream: that copying costs more than all the rest
// of starting one, a seventh of a call.
type runners struct {
	mu     sync.Mutex
	idle   []*runner // the one that ran last is at the end: its stack is in the cache
	fewest int       // of idle, since the last trim
	closed bool
}

// runner is one of them.
type runner struct{ next chan *lane } // of size 1: who sends never blocks; nil ends it

// maxRunners bounds how many wait, so that a burst of streams does not hold
// their stacks.
const maxRunners = 256

// run serves l in a goroutine of its own.
func (p *runners) run(l *lane) {
	p.mu.Lock()
	n := len(p.idle) - 1
	if n < 0 {
		p.fewest = 0
		p.mu.Unlock()
		go p.serve(&runner{next: make(chan *lane, 1)}, l)
		return
	}
	r := p.idle[n]
	p.idle[n] = nil
	p.idle = p.idle[:n]
	p.fewest = min(p.fewest, n)
	p.mu.Unlock()
	r.next <- l
}

func (p *runners) serve(r *runner, l *lane) {
	for l != nil {
		l.run()
		if !p.rest(r) {
			return
		}
		l = <-r.next
	}
}

// rest puts r among those that wait, if it may.
func (p *runners) rest(r *runner) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.idle) >= maxRunners {
		return false
	}
	p.idle = append(p.idle, r)
	return true
}

// trim ends those that were not needed since the last time.
func (p *runners) trim() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.end(p.fewest)
	p.fewest = len(p.idle)
}

// close ends all, now or when their streams have ended.
func (p *runners) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed, p.fewest = true, 0
	p.end(len(p.idle))
}

// end ends the n that waited longest; p.mu is held.
func (p *runners) end(n int) {
	for _, r := range p.idle[:n] {
		r.next <- nil
	}
	kept := copy(p.idle, p.idle[n:])
	clear(p.idle[kept:])
	p.idle = p.idle[:kept]
}
