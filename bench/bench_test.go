package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestScenarios holds names apart and the short run short: it is a step of
// every gatekeeping.
func TestScenarios(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, s := range scenarios() {
		if seen[s.name()] {
			t.Errorf("%s is there twice", s.name())
		}
		seen[s.name()] = true
	}
	p, err := newPlan(options{})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(p.scenarios) * len(p.peers); n > 8 || p.rounds != 1 {
		t.Errorf("the short run is %d measurements in %d rounds", n, p.rounds)
	}
	if _, err := newPlan(options{run: "nothing is called that"}); err == nil {
		t.Error("a run of nothing is no error")
	}
	for i := range bars {
		found := false
		for _, s := range scenarios() {
			found = found || bars[i].applies(&s)
		}
		if !found {
			t.Errorf("nothing measures the bar %q", bars[i].what)
		}
	}
}

// TestConfigurations renders every peer's configuration for every scenario.
func TestConfigurations(t *testing.T) {
	t.Parallel()
	files, err := peerFiles.ReadDir("peers")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		for _, s := range scenarios() {
			for _, link := range s.links {
				h := &hop{link: link, Listen: "127.0.0.1:1", Upstream: "127.0.0.1:2", Dir: t.TempDir(), Threads: 1, Connections: 10}
				file, err := h.config(f.Name())
				if err != nil {
					t.Fatal(err)
				}
				text, err := os.ReadFile(file)
				if err != nil || !strings.Contains(string(text), "127.0.0.1") || strings.Contains(string(text), "<no value>") {
					t.Errorf("%s for %s: %v\n%s", f.Name(), s.name(), err, text)
				}
			}
		}
	}
}

// TestRatio compares within rounds only, and leaves out what failed.
func TestRatio(t *testing.T) {
	t.Parallel()
	s := &scenarios()[0]
	tab := &tables{plan: &plan{}, results: results{}}
	us := func(n int) *measurement {
		return &measurement{result: result{requests: 10, elapsed: time.Second}, cpu: time.Duration(10*n) * time.Microsecond}
	}
	for round, pair := range [][2]int{{10, 20}, {90, 30}, {40, 50}} {
		tab.add(cell{s.name(), ours}, round, us(pair[0]))
		if round != 1 {
			tab.add(cell{s.name(), base}, round, us(pair[1]))
		}
	}
	if r := tab.ratio(s, ours, base); r < 0.649 || r > 0.651 {
		t.Errorf("ratio %v, want the middle of 0.5 and 0.8", r)
	}
	if r := tab.ratio(s, ours, "Envoy"); r != 0 {
		t.Errorf("ratio %v to what was not measured", r)
	}
	most, least := bar{limit: 1}, bar{limit: 1, least: true}
	for _, tt := range []struct {
		x           float64
		most, least bool
	}{{0.9, true, false}, {1, true, true}, {1.1, false, true}} {
		if most.kept(tt.x) != tt.most || least.kept(tt.x) != tt.least {
			t.Errorf("%v: kept %v as a most, %v as a least", tt.x, most.kept(tt.x), least.kept(tt.x))
		}
	}
}

// TestKeep measures one scenario again and keeps the others.
func TestKeep(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "benchmarks.md"), []byte(begin+end), 0o600); err != nil {
		t.Fatal(err)
	}
	one := func(s *scenario, us int) *tables {
		tab := &tables{plan: &plan{scenarios: []scenario{*s}, options: options{write: true}}, results: results{}}
		for _, proxy := range []string{ours, base} {
			tab.add(cell{s.name(), proxy}, 0, &measurement{result: result{requests: 10, elapsed: time.Second, p99: time.Millisecond},
				cpu: time.Duration(10*us) * time.Microsecond, memory: []int64{1 << 20, 2 << 20}})
		}
		return tab
	}
	first, second := &scenarios()[0], &scenarios()[1]
	for _, tab := range []*tables{one(first, 7), one(second, 8), one(first, 9)} {
		if err := tab.keep(dir); err != nil {
			t.Fatal(err)
		}
	}
	all, err := readResults(filepath.Join(dir, "benchmarks.tsv"))
	if err != nil || len(all) != 4 {
		t.Fatal(all, err)
	}
	want := one(first, 9).results[cell{first.name(), ours}][0]
	if got := all[cell{first.name(), ours}][0]; got.result != want.result || got.cpu != want.cpu || !slices.Equal(got.memory, want.memory) {
		t.Errorf("%+v, want %+v", got, want)
	}
	page, _ := os.ReadFile(filepath.Join(dir, "benchmarks.md"))
	for _, line := range []string{"| 1 KiB, saturated | merlon gate | 9.0 [9.0-9.0] |", "| 1 KiB, 1,000/s | nginx | 8.0 [8.0-8.0] |"} {
		if !strings.Contains(string(page), line) {
			t.Errorf("the page lacks %q", line)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "benchmarks.tsv"), []byte("a\tb\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := one(first, 1).keep(dir); err == nil {
		t.Error("a file that is no results was overwritten")
	}
}

// TestRewrite replaces what the program wrote and nothing of what people did.
func TestRewrite(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "page.md")
	for _, text := range []string{"before\n" + begin + "old\n" + end + "after\n", "no marks"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		err := rewrite(file, "new\n")
		got, _ := os.ReadFile(file)
		if strings.HasPrefix(text, "before") {
			if want := "before\n" + begin + "new\n" + end + "after\n"; err != nil || string(got) != want {
				t.Errorf("%v, %q", err, got)
			}
		} else if err == nil || string(got) != text {
			t.Errorf("%v, %q", err, got)
		}
	}
}
