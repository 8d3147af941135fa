package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
)

// tables is what was measured, and what of it is shown.
type tables struct {
	*plan
	results
	size, idle int64 // of the gate: its program, and resident
	failures   []string
	bad        error // of the gate or the proxy that it is compared with
}

func (t *tables) fail(s *scenario, p *peer, err error) {
	t.failures = append(t.failures, fmt.Sprintf("%s, %s: %v", p.name, s.name(), err))
	if p.name == ours || p.name == base {
		t.bad = errors.Join(t.bad, fmt.Errorf("%s, %s: %w", p.name, s.name(), err))
	}
}

func (t *tables) failed() error { return t.bad }

// of gives a figure of every round of a scenario and proxy.
func (t *tables) of(s *scenario, proxy string, figure func(*measurement) float64) (out []float64) {
	for _, m := range t.results[cell{s.name(), proxy}] {
		out = append(out, figure(m))
	}
	return out
}

// ratio is the median of the ratios to another within a round; 0 is unknown.
func (t *tables) ratio(s *scenario, proxy, to string) float64 {
	var ratios []float64
	for round, m := range t.results[cell{s.name(), proxy}] {
		if b := t.results[cell{s.name(), to}][round]; b != nil && m.requests > 0 && b.requests > 0 {
			ratios = append(ratios, m.each()/b.each())
		}
	}
	return median(ratios)
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// bar is what the gate is to keep (issue 3).
type bar struct {
	what  string
	group string
	loads func(*scenario) bool // nil for all of the group
	to    string               // compared with which proxy; "" for none
	limit float64
	least bool // limit is the least, not the most
	// figure is what is compared with limit; 0 is unknown.
	figure func(*tables, *scenario, *bar) float64
}

func (b *bar) applies(s *scenario) bool {
	return s.group == b.group && (b.loads == nil || b.loads(s))
}

func (b *bar) kept(x float64) bool { return x == b.limit || x < b.limit != b.least }

func cost(t *tables, s *scenario, b *bar) float64 { return t.ratio(s, ours, b.to) }

func yield(t *tables, s *scenario, b *bar) float64 {
	if r := t.ratio(s, ours, b.to); r > 0 {
		return 1 / r
	}
	return 0
}

// resident is megabytes at a step: 0 is before the first connection.
func resident(step int) func(*tables, *scenario, *bar) float64 {
	return func(t *tables, s *scenario, _ *bar) float64 {
		return median(t.of(s, ours, func(m *measurement) float64 { return float64(m.memory[step]) / 1e6 }))
	}
}

func is(load string) func(*scenario) bool { return func(s *scenario) bool { return s.load == load } }

var bars = []bar{
	{what: "HTTP/1.1, x nginx", group: groupPlain, to: base, limit: 1, figure: cost},
	{what: "HTTP/1.1, x Envoy", group: groupPlain, to: "Envoy", limit: 0.33, figure: cost, loads: is("1 KiB, saturated")},
	{what: "HTTP/1.1, x Caddy", group: groupPlain, to: "Caddy", limit: 0.33, figure: cost, loads: is("1 KiB, saturated")},
	{what: "TLS 1.3 in front, x nginx", group: groupTLS, to: base, limit: 0.85, figure: cost},
	{what: "the pair with mutual TLS, x nginx", group: groupPair, to: base, limit: 0.75, figure: cost},
	{what: "HTTP/2 in front, x nginx", group: groupHTTP2, to: base, limit: 1, figure: cost},
	{what: "gRPC, x nginx", group: groupGRPC, to: base, limit: 1, figure: cost},
	{what: "full handshakes a processor second, x nginx", group: groupShake, to: base, limit: 1.5, least: true, figure: yield, loads: is("mutual")},
	{what: "MB resident with nothing to do", group: groupIdle, limit: 15, figure: resident(0)},
	{what: "MB resident with 1,000 idle connections", group: groupIdle, limit: 35, figure: resident(1), loads: is("TLS 1.3")},
}

// markdown is all tables.
func (t *tables) markdown() string {
	var b strings.Builder
	rounds, each := t.extent()
	fmt.Fprintf(&b, "%d rounds of %v, %d processors, %s/%s, %s. merlon-gate has %.1f MB and holds %.1f MiB when it begins to serve.\n",
		rounds, each, runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version(), float64(t.size)/1e6, mib(t.idle))
	if t.write {
		b.WriteString("Every single measurement is in [benchmarks.tsv](benchmarks.tsv).\n")
	}
	b.WriteByte('\n')
	for _, why := range t.absent {
		fmt.Fprintf(&b, "Not measured: %s.\n\n", why)
	}
	for _, what := range t.failures {
		fmt.Fprintf(&b, "Failed: %s.\n\n", strings.ReplaceAll(what, "\n", " "))
	}
	t.writeBars(&b)
	var groups []string
	for i := range t.scenarios {
		if g := t.scenarios[i].group; !slices.Contains(groups, g) {
			groups = append(groups, g)
		}
	}
	for _, g := range groups {
		fmt.Fprintf(&b, "## %s\n\n", strings.ToUpper(g[:1])+g[1:])
		if g == groupIdle {
			t.writeIdle(&b)
			continue
		}
		t.writeRatios(&b, g)
		t.writeCosts(&b, g)
	}
	return b.String()
}

func (t *tables) writeBars(b *strings.Builder) {
	b.WriteString("## The bars\n\n| what | bar | measured | |\n|---|---|---|---|\n")
	for i := range bars {
		bar := &bars[i]
		sign := "<="
		if bar.least {
			sign = ">="
		}
		for j := range t.scenarios {
			s := &t.scenarios[j]
			if !bar.applies(s) {
				continue
			}
			figure, verdict := "-", "not measured"
			if x := bar.figure(t, s, bar); x > 0 {
				figure, verdict = fmt.Sprintf("%.2f", x), "**missed**"
				if bar.kept(x) {
					verdict = "kept"
				}
			}
			fmt.Fprintf(b, "| %s: %s | %s %v | %s | %s |\n", bar.what, s.load, sign, bar.limit, figure, verdict)
		}
	}
	b.WriteByte('\n')
}

// writeRatios is the short table of a group: a line for each proxy.
func (t *tables) writeRatios(b *strings.Builder, group string) {
	head, rule := "| x nginx |", "|---|"
	for i := range t.scenarios {
		if s := &t.scenarios[i]; s.group == group {
			head, rule = head+" "+s.load+" |", rule+"---|"
		}
	}
	b.WriteString(head + "\n" + rule + "\n")
	for _, p := range t.peers {
		line, any := "| "+p.name+" |", false
		for i := range t.scenarios {
			s := &t.scenarios[i]
			if s.group != group {
				continue
			}
			if r := t.ratio(s, p.name, base); r > 0 {
				line, any = line+fmt.Sprintf(" %.2f |", r), true
			} else {
				line += " - |"
			}
		}
		if any {
			b.WriteString(line + "\n")
		}
	}
	b.WriteByte('\n')
}

// writeCosts is the long table of a group.
func (t *tables) writeCosts(b *strings.Builder, group string) {
	what := "us/request"
	if group == groupShake {
		what = "us/handshake"
	}
	fmt.Fprintf(b, "| load | proxy | %s [min-max] | per s | p50 ms | p99 ms | MiB |\n|---|---|---|---|---|---|---|\n", what)
	for i := range t.scenarios {
		s := &t.scenarios[i]
		if s.group != group {
			continue
		}
		for _, p := range t.peers {
			us := t.of(s, p.name, (*measurement).each)
			if len(us) == 0 {
				continue
			}
			mid := func(figure func(*measurement) float64) float64 { return median(t.of(s, p.name, figure)) }
			fmt.Fprintf(b, "| %s | %s | %.1f [%.1f-%.1f] | %.0f | %.2f | %.2f | %.0f |\n", s.load, p.name, median(us), slices.Min(us), slices.Max(us),
				mid((*measurement).perSecond),
				mid(func(m *measurement) float64 { return ms(m.p50) }),
				mid(func(m *measurement) float64 { return ms(m.p99) }),
				mid(func(m *measurement) float64 { return mib(m.memory[0]) }))
		}
	}
	b.WriteByte('\n')
}

// writeIdle is the table of memory.
func (t *tables) writeIdle(b *strings.Builder) {
	b.WriteString("| MiB resident | | idle |")
	for _, n := range steps {
		fmt.Fprintf(b, " %d connections |", n)
	}
	b.WriteString(" KiB each |\n|---|---|---|" + strings.Repeat("---|", len(steps)+1) + "\n")
	for i := range t.scenarios {
		s := &t.scenarios[i]
		if s.kind != idle {
			continue
		}
		for _, p := range t.peers {
			m := t.results[cell{s.name(), p.name}][0]
			if m == nil {
				continue
			}
			fmt.Fprintf(b, "| %s | %s |", s.load, p.name)
			for _, n := range m.memory {
				fmt.Fprintf(b, " %.1f |", mib(n))
			}
			last := len(m.memory) - 1
			fmt.Fprintf(b, " %.1f |\n", float64(m.memory[last]-m.memory[0])/1024/float64(steps[last-1]))
		}
	}
	b.WriteByte('\n')
}

// What is between these lines of the document is written by this program; the
// rest by people.
const begin, end = "<!-- begin of what bench -write writes -->\n\n", "<!-- end of what bench -write writes -->\n"

// rewrite replaces the generated part of a document.
func rewrite(name, text string) error {
	old, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	before, rest, ok := bytes.Cut(old, []byte(begin))
	_, after, ok2 := bytes.Cut(rest, []byte(end))
	if !ok || !ok2 {
		return fmt.Errorf("%s: the lines between which tables go are missing", name)
	}
	return os.WriteFile(name, slices.Concat(before, []byte(begin+text+end), after), 0o644)
}
