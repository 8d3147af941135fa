package upstream

import (
	"slices"
	"time"
)

// sweeper closes pooled connections that are too old, idle for too long, or
// dead, so that calls seldom meet them.
func (c *Cluster) sweeper() {
	every := min(time.Second, c.cfg.IdleTimeout/4+1)
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-c.cfg.after(every):
			c.sweep()
		}
	}
}

func (c *Cluster) sweep() {
	now := c.now()
	for _, ep := range c.set.Load().all {
		ep.drop(func(conn *Conn) bool {
			return now-conn.since >= int64(c.cfg.IdleTimeout) || now-conn.born >= int64(c.cfg.MaxAge)
		})
		ep.dropBroken(now)
	}
}

// peeksAtOnce is how many connections are looked at under one hold of the
// lock: a few microseconds.
const peeksAtOnce = 8

// dropBroken closes pooled connections on which something can be read: the
// end, an error, or bytes that nobody asked for and that the next call would
// take for its answer. It looks at the longest idle first, each for as long as
// it stays in the pool.
func (ep *endpoint) dropBroken(now int64) {
	for i, more := 0, true; more; {
		var out []*Conn
		ep.mu.Lock()
		for range peeksAtOnce {
			if more = i < len(ep.idle); !more {
				break
			}
			if conn := ep.idle[i]; conn.since < now && conn.peeker.readable() {
				ep.idle = slices.Delete(ep.idle, i, i+1)
				ep.vacate()
				out = append(out, conn)
			} else {
				i++
			}
		}
		ep.mu.Unlock()
		for _, conn := range out {
			conn.closeNow()
		}
	}
}
