package supervise

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestHold: while a program is held its number stays its own, even when it has
// ended; and it leads a session, which nobody else can join.
func TestHold(t *testing.T) {
	t.Parallel()
	s := New()
	defer s.Close()
	lines, exits := make(chan string, 64), make(chan Exit, 1)
	spec := role("listen")
	spec.Output = func(_, line string) { lines <- line }
	spec.Exited = func(e Exit) { exits <- e }
	p, err := s.Start(spec)
	if err != nil {
		t.Fatal(err)
	}
	gone := follow(t, until(t, lines, "address"))
	err = p.Hold(func(pid int) error {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		_, rest, _ := strings.Cut(string(stat), ") ")
		if f := strings.Fields(rest); err != nil || len(f) < 4 || f[2] != fmt.Sprint(pid) || f[3] != fmt.Sprint(pid) {
			t.Errorf("program %d has the stat %q, %v: it should lead its group and session", pid, stat, err)
		}
		process, err := os.FindProcess(pid)
		if err != nil {
			return err
		}
		if err := process.Kill(); err != nil {
			return err
		}
		until(t, gone, "end")
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil {
			t.Errorf("a held program that has ended is not there any more: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	until(t, exits, "exit")
	until(t, p.Done(), "done")
	if err := p.Hold(func(int) error { return nil }); !errors.Is(err, ErrNotRunning) {
		t.Errorf("after the end: %v", err)
	}
}
