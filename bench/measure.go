package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// measurement is one run of one proxy.
type measurement struct {
	result
	cpu  time.Duration // of the proxy
	user time.Duration // of that, outside the kernel
	rss  int64         // bytes
}

func (m *measurement) perRequest() float64 {
	return float64(m.cpu.Microseconds()) / float64(m.requests)
}

func (m *measurement) String() string {
	return fmt.Sprintf("%5.1f us/request (%.1f user)  %6.0f req/s  p50 %v  p99 %v", m.perRequest(),
		float64(m.user.Microseconds())/float64(m.requests),
		float64(m.requests)/m.elapsed.Seconds(), m.p50.Round(10*time.Microsecond), m.p99.Round(10*time.Microsecond))
}

// measure starts a proxy afresh, warms it up and loads it.
func (l *lab) measure(p peer, s scenario, o options) (*measurement, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	proxy, err := p.start(l, addr, l.backendAddr)
	if proxy == nil || err != nil {
		return nil, err
	}
	defer proxy.stop()
	if _, err := load(addr, o.conns, s.rate, time.Second); err != nil {
		return nil, err
	}
	user, cpu := proxy.cpu()
	r, err := load(addr, o.conns, s.rate, o.duration)
	if err != nil {
		return nil, err
	}
	userAfter, cpuAfter := proxy.cpu()
	return &measurement{result: r, cpu: cpuAfter - cpu, user: userAfter - user, rss: proxy.rss()}, nil
}

// tick is the unit of processor time in /proc (USER_HZ, always 100 on Linux).
const tick = 10 * time.Millisecond

// cpu is the processor time the proxy has used so far, and which part of it was
// not the kernel's.
func (p *process) cpu() (user, total time.Duration) {
	for _, pid := range p.pids() {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		// After the name, which may hold anything, in parentheses (proc(5)).
		fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+2:]))
		utime, _ := strconv.ParseInt(fields[11], 10, 64)
		stime, _ := strconv.ParseInt(fields[12], 10, 64)
		user += time.Duration(utime) * tick
		total += time.Duration(utime+stime) * tick
	}
	return user, total
}

// rss is the resident memory of the proxy in bytes.
func (p *process) rss() (total int64) {
	for _, pid := range p.pids() {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if err != nil {
			continue
		}
		if fields := strings.Fields(string(data)); len(fields) > 1 {
			n, _ := strconv.ParseInt(fields[1], 10, 64)
			total += n * int64(os.Getpagesize())
		}
	}
	return total
}

// tables gathers measurements by scenario and proxy.
type tables struct {
	scenarios []string
	proxies   []string
	all       map[[2]string][]measurement
}

func (t *tables) add(scenario, proxy string, m measurement) {
	if t.all == nil {
		t.all = map[[2]string][]measurement{}
	}
	if !slices.Contains(t.scenarios, scenario) {
		t.scenarios = append(t.scenarios, scenario)
	}
	if !slices.Contains(t.proxies, proxy) {
		t.proxies = append(t.proxies, proxy)
	}
	k := [2]string{scenario, proxy}
	t.all[k] = append(t.all[k], m)
}

const base = "nginx"

// markdown prints a table for each scenario.
func (t *tables) markdown() string {
	var b strings.Builder
	for _, s := range t.scenarios {
		fmt.Fprintf(&b, "## HTTP/1.1, %s\n\n| proxy | us/request [min-max] | x nginx | requests/s | p50 ms | p99 ms | resident MiB |\n|---|---|---|---|---|---|---|\n", s)
		for _, p := range t.proxies {
			ms := t.all[[2]string{s, p}]
			if len(ms) == 0 {
				continue
			}
			var us, ratio, rps, p50, p99, rss []float64
			for i, m := range ms {
				us = append(us, m.perRequest())
				rps = append(rps, float64(m.requests)/m.elapsed.Seconds())
				p50 = append(p50, m.p50.Seconds()*1000)
				p99 = append(p99, m.p99.Seconds()*1000)
				rss = append(rss, float64(m.rss)/(1<<20))
				if n := t.all[[2]string{s, base}]; i < len(n) {
					ratio = append(ratio, m.perRequest()/n[i].perRequest())
				}
			}
			x := "-"
			if len(ratio) > 0 {
				x = fmt.Sprintf("%.2f", median(ratio))
			}
			fmt.Fprintf(&b, "| %s | %.1f [%.1f-%.1f] | %s | %.0f | %.2f | %.2f | %.0f |\n", p, median(us), slices.Min(us), slices.Max(us),
				x, median(rps), median(p50), median(p99), median(rss))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func median(v []float64) float64 {
	v = slices.Clone(v)
	slices.Sort(v)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}
