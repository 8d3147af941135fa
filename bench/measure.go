package main

import (
	"crypto/tls"
	"fmt"
	"strings"
	"time"
)

// measurement is one run of one proxy.
type measurement struct {
	result
	cpu    time.Duration // of the proxy
	memory []int64       // bytes: at the end of the run; or idle and then with each of steps
}

// each is what one request or handshake costs, in microseconds.
func (m *measurement) each() float64 {
	return float64(m.cpu.Nanoseconds()) / 1000 / float64(m.requests)
}

func (m *measurement) String() string {
	var b strings.Builder
	if m.requests > 0 {
		fmt.Fprintf(&b, "%6.1f us  %6.0f/s  p50 %.2f ms  p99 %.2f ms ", m.each(), m.perSecond(), ms(m.p50), ms(m.p99))
	}
	for _, n := range m.memory {
		fmt.Fprintf(&b, " %.1f MiB", mib(n))
	}
	return b.String()
}

func (m *measurement) perSecond() float64 { return float64(m.requests) / m.elapsed.Seconds() }

func mib(bytes int64) float64    { return float64(bytes) / (1 << 20) }
func ms(d time.Duration) float64 { return d.Seconds() * 1000 }

// conns is how many client connections a load of HTTP/1.1 has.
const conns = 64

// measure starts a proxy afresh, warms it up and loads it.
func (l *lab) measure(p *peer, s *scenario, d time.Duration) (m *measurement, err error) {
	addr, proxy, err := l.start(p, s)
	if err != nil {
		return nil, err
	}
	defer proxy.stop()
	t, err := l.target(addr, p, s)
	if err != nil {
		return nil, err
	}
	if s.kind == idle {
		return crowded(t, proxy)
	}
	once := func(d time.Duration) (result, error) {
		switch {
		case s.kind == handshakes:
			return shake(t, 16, d)
		case s.front().HTTP2:
			return l.load2(addr, s, d)
		}
		return load(t, conns, s.rate, d)
	}
	if _, err := once(d / 3); err != nil {
		return nil, err
	}
	before, err := proxy.cpu()
	if err != nil {
		return nil, err
	}
	m = new(measurement)
	if m.result, err = once(d); err != nil {
		return nil, err
	}
	after, err := proxy.cpu()
	if err != nil {
		return nil, err
	}
	m.cpu = after - before
	used, err := proxy.memory()
	m.memory = []int64{used}
	return m, err
}

// target is how the clients of a scenario ask a proxy.
func (l *lab) target(addr string, p *peer, s *scenario) (*target, error) {
	path, name := smallPath, host
	if s.size == large {
		path = largePath
	}
	if len(s.links) > 1 || s.front().Mutual { // called from beside, not from outside
		name = service
	}
	t := &target{addr: addr, request: []byte("GET " + path + " HTTP/1.1\r\nHost: " + name + "\r\nUser-Agent: bench/1\r\nAccept: */*\r\n\r\n")}
	if !s.front().TLS {
		return t, nil
	}
	// Who it is that answers needs no proof here: it was just started. Never a
	// session again, and one key exchange for all.
	t.tls = &tls.Config{InsecureSkipVerify: true, ServerName: host, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"},
		CurvePreferences: []tls.CurveID{tls.X25519}}
	if s.pq {
		t.tls.CurvePreferences = nil
	}
	if s.front().Mutual {
		svid, err := l.svid("web", l.program("web"))
		if err != nil {
			return nil, err
		}
		t.tls.Certificates = []tls.Certificate{l.peerTLS.pair}
		if p.svid {
			t.tls.Certificates[0] = svid
		}
	}
	return t, nil
}

// settle is how long a proxy may tidy up before its memory is read.
const settle = 2 * time.Second

func crowded(t *target, proxy group) (*measurement, error) {
	m := new(measurement)
	var c crowd
	defer c.close()
	for _, n := range append([]int{0}, steps...) {
		if err := c.grow(t, n); err != nil {
			return nil, fmt.Errorf("%d connections: %w", n, err)
		}
		time.Sleep(settle)
		used, err := proxy.memory()
		if err != nil {
			return nil, err
		}
		m.memory = append(m.memory, used)
	}
	return m, nil
}
