package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// newShop copies examples/shop into this module, where the Go tool can build
// it, and gives it ports of its own.
func newShop(t *testing.T) *site {
	t.Helper()
	parent, err := filepath.Abs("../../bin/test")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(parent, "_shop-") // the Go tool does not list it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p, q := ports4(t), ports4(t)
	other := strings.NewReplacer("127.0.0.1:8443", p[0], "127.0.0.1:7001", p[1], "127.0.0.1:7002", p[2], "127.0.0.1:7003", p[3],
		"127.0.0.1:7004", q[0], "127.0.0.1:7005", q[1])
	s := &site{t: t, dir: dir, gateway: p[0], a: p[1], b: p[2], c: p[3]}
	from := "../../examples/shop"
	err = filepath.WalkDir(from, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			if err == nil && d.Name() == ".merlon" {
				return fs.SkipDir
			}
			return err
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		if strings.HasSuffix(name, ".yaml") {
			text = []byte(other.Replace(string(text)))
		}
		s.write(rel, string(text))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestShop runs the example as its README says, with everything it prints.
func TestShop(t *testing.T) {
	t.Parallel()
	for _, needed := range []string{"bash", "curl"} {
		if _, err := exec.LookPath(needed); err != nil {
			t.Skipf("SKIP: %s is not here, and the example's script needs it", needed)
		}
	}
	newShop(t).tour()
}

// tour tries all that the example and merlon up say.
func (s *site) tour(args ...string) {
	t := s.t
	t.Helper()
	u := s.up(args...)

	cmd := exec.Command("bash", "../../examples/shop/try.sh", s.dir)
	cmd.Env = append(os.Environ(), "MERLON="+merlonBin(t))
	out, err := cmd.CombinedOutput()
	if n := strings.Count(string(out), "\nok "); err != nil || n < 30 || strings.Contains(string(out), "FAIL") {
		t.Errorf("try.sh: %v, %d lines are ok\n%s", err, n, out)
	}

	if len(u.Tries) < 12 {
		t.Errorf("merlon up prints %d commands to try", len(u.Tries))
	}
	lastID := ""
	for _, try := range u.Tries {
		if try.Stays {
			s.tryStays(try)
			continue
		}
		command := strings.ReplaceAll(try.Command, "REQUEST-ID", lastID)
		out, err := exec.Command("sh", "-c", command).Output()
		if wrong := try.wrong(string(out), err); wrong != "" {
			t.Errorf("%s\n%s\n%s\n%s", try.About, command, wrong, out)
		}
		if m := regexp.MustCompile(`(?mi)^merlon-request-id: (\w+)`).FindStringSubmatch(string(out)); m != nil {
			lastID = m[1]
		}
	}
	if code := u.end(syscall.SIGINT); code != 0 {
		t.Errorf("exit %d", code)
	}
}

// wrong says how an answer differs from what the try promised, or "".
func (t *try) wrong(out string, err error) string {
	status := 0
	if m := regexp.MustCompile(`(?m)^HTTP/[12.]+ (\d+)`).FindStringSubmatch(out); m != nil {
		status, _ = strconv.Atoi(m[1])
	}
	code := 0
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		code = e.ExitCode()
	}
	switch {
	case code != t.Exit:
		return fmt.Sprintf("exit %d, want %d", code, t.Exit)
	case strings.Contains(t.Command, "uniq -c"):
		if !strings.Contains(out, strconv.Itoa(t.Status)) || !strings.Contains(out, "200") {
			return fmt.Sprintf("not both 200 and %d", t.Status)
		}
	case !strings.Contains(t.Command, "curl -i"):
		if out == "" {
			return "it says nothing"
		}
	case status == 0:
		return "no answer"
	case t.Status == 0 && strings.Contains(strings.ToLower(out), "merlon-reason"):
		return "it was refused"
	case t.Status != 0 && (status != t.Status || !strings.Contains(strings.ToLower(out), "\nmerlon-reason: "+string(t.Reason)+"\r\n")):
		return fmt.Sprintf("not %d %s", t.Status, t.Reason)
	case t.Status != 0 && !strings.Contains(t.About, fmt.Sprint(t.Status)):
		return "the text does not say what to expect"
	}
	return ""
}

// tryStays runs a command that goes on until Ctrl-C.
func (s *site) tryStays(t try) {
	s.t.Helper()
	cmd := exec.Command("sh", "-c", "exec "+t.Command)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	defer time.AfterFunc(20*time.Second, func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }).Stop()
	line := make([]byte, 1)
	if _, err := out.Read(line); err != nil {
		s.t.Errorf("%s says nothing: %v", t.Command, err)
	}
	syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
	if err := cmd.Wait(); err != nil {
		s.t.Errorf("%s, interrupted: %v", t.Command, err)
	}
}
