package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

func manual(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// all are the first groups of what a pattern finds, sorted, each once.
func all(pattern, text string) []string {
	var list []string
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		list = append(list, m[1])
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// TestManualIsWhole: docs/operations.md names every flag and every reason, and
// none that is not there.
func TestManualIsWhole(t *testing.T) {
	t.Parallel()
	text := manual(t)
	help, _ := exec.Command(build(t), "-h").CombinedOutput()
	flags := all(`(?m)^  (-[a-z]+)`, string(help))
	table, _, _ := strings.Cut(text[strings.Index(text, "## Flags"):], "## Signals")
	var documented []string
	for line := range strings.Lines(table) {
		if cells := strings.Split(line, "|"); len(cells) > 2 {
			documented = append(documented, all("`(-[a-z]+)`", cells[1])...)
		}
	}
	slices.Sort(documented)
	if len(flags) < 10 || !slices.Equal(flags, documented) {
		t.Errorf("the program has %q, its table %q", flags, documented)
	}
	source, err := os.ReadFile("../../gate/health.go")
	if err != nil {
		t.Fatal(err)
	}
	if codes, rows := all(`Problem\w+ +=\s"(\w+)"`, string(source)), all("(?m)^\\| `([a-z_]+)` \\|", text); len(codes) == 0 || !slices.Equal(codes, rows) {
		t.Errorf("reasons are %q, documented are %q", codes, rows)
	}
	for _, line := range regexp.MustCompile(`(?m)^ExecStart=.*$`).FindAllString(text, -1) {
		for _, flag := range all(` (-[a-z]+) `, strings.ReplaceAll(line, " ", "  ")+" ") {
			if !slices.Contains(flags, flag) {
				t.Errorf("the unit has %s, which is no flag", flag)
			}
		}
	}
}

// TestManualRuns runs what docs/operations.md has people type, in order.
func TestManualRuns(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("SKIP: no curl here")
	}
	s := newStand(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "done") }))
	s.start("-admin", "127.0.0.1:0")
	admin := s.address("admin")
	var said []string
	for _, m := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(manual(t), -1) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, "/bin/sh", "-e", "-c", strings.ReplaceAll(m[1], "127.0.0.1:9901", admin))
		cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(build(t))+":"+os.Getenv("PATH"), fmt.Sprint("PID=", s.cmd.Process.Pid))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", m[1], err, out)
		}
		said = append(said, string(out))
	}
	if len(said) != 2 || !regexp.MustCompile(`(?s)^\{"ready":true,.*\}\nlive\nready\nmerlon_build_info\{`).MatchString(said[0]) {
		t.Errorf("%q", said)
	}
	// The second was an upgrade.
	next := regexp.MustCompile(`the new process serves.* pid=(\d+)`)
	s.until("the gate is replaced", func() bool { return next.MatchString(s.said()) })
	var pid int
	fmt.Sscan(next.FindStringSubmatch(s.said())[1], &pid)
	t.Cleanup(func() { end(t, pid) })
	s.awaitEnd()
}
