package upstream

import (
	"net/netip"
	"sync"
)

// share bounds how many connections are held by calls whose body is still on its
// way: how long that takes is for who sends it to choose.
type share struct {
	mu  sync.Mutex
	all int
	of  map[netip.Addr]int
}

// Of the connections that the endpoints may have, bodies on their way hold three
// quarters at most, and those of one client an eighth.
const (
	forBodies = 0.75
	forClient = 0.125
)

// Hold counts a call whose body is on its way, until LetGo. It reports whether
// there is room for it. The zero client is counted with all others only. A
// connection of HTTP/2 carries enough calls for that not to matter.
func (c *Cluster) Hold(client netip.Addr) bool {
	if c.cfg.Mux != nil {
		return true
	}
	most := float64(max(len(c.set.Load().all), 1) * c.cfg.MaxConns)
	s := &c.bodies
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all >= max(int(most*forBodies), 1) {
		return false
	}
	if client.IsValid() {
		if s.of[client] >= max(int(most*forClient), 1) {
			return false
		}
		if s.of == nil {
			s.of = map[netip.Addr]int{}
		}
		s.of[client]++
	}
	s.all++
	return true
}

// LetGo ends what Hold began.
func (c *Cluster) LetGo(client netip.Addr) {
	if c.cfg.Mux != nil {
		return
	}
	s := &c.bodies
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all--
	if client.IsValid() {
		if s.of[client]--; s.of[client] <= 0 {
			delete(s.of, client)
		}
	}
}
