package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"merlon/internal/sockowner"
)

func needSockowner(t *testing.T) {
	t.Helper()
	if !sockowner.Supported() {
		t.Skip("SKIP: ", sockowner.ErrUnsupported)
	}
}

// out is where the calls of a service go into its gate.
func (u *upped) out(service string) string {
	u.s.t.Helper()
	for _, p := range u.Places {
		if p.Place == "gate of "+service {
			return p.Out
		}
	}
	u.s.t.Fatalf("no gate of %s in %+v", service, u.Places)
	return ""
}

// caller is a running program that calls what it is told to.
type caller struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startCaller(t *testing.T, cmd *exec.Cmd) *caller {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	return &caller{t, cmd, in, bufio.NewScanner(out)}
}

func (c *caller) get(url string) string {
	c.t.Helper()
	fmt.Fprintln(c.in, url)
	if !c.out.Scan() {
		c.t.Fatalf("the caller has ended: %v", c.out.Err())
	}
	return c.out.Text()
}

func (c *caller) want(says string) {
	c.t.Helper()
	if got := c.get("http://b/hello"); !strings.HasPrefix(got, says) {
		c.t.Errorf("got %q, want %q", got, says)
	}
}

const (
	stranger = `403 {"reason":"not_own_workload"`
	welcome  = "200 b"
)

// TestOnlyOwnProgram: the gate of a service that merlon runs takes calls of its
// program, through every restart, and of no other process.
func TestOnlyOwnProgram(t *testing.T) {
	t.Parallel()
	needSockowner(t)
	s := newSite(t)
	u := s.up()
	first := s.want("/call", 200, "b")
	a, err := fetch("http://b/hello", u.out("a"))
	if err != nil || a.status != 403 || a.reason != "not_own_workload" {
		t.Errorf("a stranger got %+v %v", a, err)
	}
	s.eventuallyRecorded(regexp.MustCompile(`"reason":"not_own_workload".*"detail":"the caller is uid ` +
		strconv.Itoa(os.Getuid()) + `[^"]*, pid ` + strconv.Itoa(os.Getpid()) + ` \([^"]*merlon.test\); admitted is the program's process tree"`))
	if first.status != 200 {
		return
	}
	pid := s.want("/hello", 200, "a").pid
	id, _ := strconv.Atoi(pid)
	if id == 0 {
		t.Fatalf("the app's pid is %q", pid)
	}
	syscall.Kill(id, syscall.SIGKILL)
	eventually(t, "a is started again and calls b", func() bool {
		again, err := fetch(s.url("/hello"), "")
		return err == nil && again.status == 200 && again.pid != pid
	})
	s.want("/call", 200, "b")
	status := s.must("status")
	if n := strings.Count(status, "the program's process tree"); n != 2 {
		t.Errorf("status names %d closed gates:\n%s", n, status)
	}
}

// eventuallyRecorded waits for a record.
func (s *site) eventuallyRecorded(want *regexp.Regexp) {
	s.t.Helper()
	all := ""
	defer func() {
		if s.t.Failed() {
			s.t.Log(all)
		}
	}()
	eventually(s.t, "a record of "+want.String(), func() bool {
		all = s.must("record", "tail", "--json")
		return want.MatchString(all)
	})
}

// TestExec runs commands as a service.
func TestExec(t *testing.T) {
	t.Parallel()
	needSockowner(t)
	s := newSite(t)
	merlon, app := merlonBin(t), appBin(t)
	run := func(args ...string) *exec.Cmd {
		return exec.Command(merlon, append([]string{"exec", "a", s.dir, "--"}, args...)...)
	}

	if out, err := run("true").CombinedOutput(); err == nil || !strings.Contains(string(out), "no control plane is running") {
		t.Errorf("without a system: %v\n%s", err, out)
	}
	u := s.up()
	c := startCaller(t, run(app, "get"))
	c.want(welcome)
	child := startCaller(t, run("sh", "-c", `exec 3<&0; "$0" get <&3 & wait`, app))
	child.want(welcome)
	s.eventuallyRecorded(regexp.MustCompile(`"at":"exec".*"caller":"a".*"reason":"exec".*"detail":"merlon exec: uid ` +
		strconv.Itoa(os.Getuid()) + `, pid ` + strconv.Itoa(c.cmd.Process.Pid) + ` \([^"]*/merlon\)`))
	if tail := s.must("record", "tail"); !strings.Contains(tail, "and what it starts, may call as a") {
		t.Errorf("record tail does not say who was admitted:\n%s", tail)
	}
	if a, err := fetch("http://b/hello", u.out("a")); err != nil || a.reason != "not_own_workload" {
		t.Errorf("meanwhile a stranger got %+v %v", a, err)
	}
	// The permission ends with merlon exec, also on open connections.
	c.cmd.Process.Kill()
	c.cmd.Process.Wait()
	eventually(t, "what it left behind is a stranger", func() bool { return strings.HasPrefix(c.get("http://b/hello"), stranger) })
	child.want(welcome)

	for _, tt := range []struct {
		argv []string
		code int
	}{
		{[]string{"true"}, 0},
		{[]string{"sh", "-c", "exit 7"}, 7},
		{[]string{"sh", "-c", "kill -9 $$"}, 137},
		{[]string{"no such program"}, 1},
	} {
		cmd := run(tt.argv...)
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != tt.code {
			t.Errorf("%q: exit %d, want %d\n%s", tt.argv, code, tt.code, out)
		}
	}
	for _, tt := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"exec", "nobody", s.dir, "--", "true"}, 1, `no service "nobody" runs here`},
		{[]string{"exec", "gateway", s.dir, "--", "true"}, 1, `no service "gateway" runs here`},
		{[]string{"exec", "a", s.dir}, 4, "then -- and a command"},
		{[]string{"exec", "a", s.dir, "--"}, 4, "then -- and a command"},
		{[]string{"exec", "--", "true"}, 4, "then -- and a command"},
	} {
		cmd := exec.Command(merlon, tt.args...)
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != tt.code || !strings.Contains(string(out), tt.says) {
			t.Errorf("%q: exit %d, want %d and %q\n%s", tt.args, code, tt.code, tt.says, out)
		}
	}
	// A lease does not keep the system from stopping.
	if code := u.end(syscall.SIGINT); code != 0 {
		t.Errorf("exit %d", code)
	}
}

// TestWorkloadUser: the gate of a service with a user takes calls of that user
// only, and an intent whose user is not there is refused.
func TestWorkloadUser(t *testing.T) {
	t.Parallel()
	needSockowner(t)
	s := newSite(t)
	s.head(s.gateway)
	s.write("a.merlon.yaml", "services:\n  a:\n    address: 127.0.0.1:1\n    workload: {unix: {user: no-such-user}}\n")
	s.fails(1, []string{"up"}, "a.merlon.yaml:4:5", "no-such-user", "hint:")
	s.write("a.merlon.yaml", "services:\n  a:\n    address: 127.0.0.1:1\n    workload: {unix: {user: 65534}}\n")
	u := s.up()
	if a, err := fetch("http://b/hello", u.out("a")); err != nil || a.reason != "not_own_workload" {
		t.Errorf("another user got %+v %v", a, err)
	}
	if status := s.must("status"); !strings.Contains(status, "user 65534 (uid 65534)") {
		t.Errorf("status does not say who is admitted:\n%s", status)
	}
	if os.Getuid() == 0 {
		cmd := exec.Command(s.publicApp(), "get")
		cmd.Env = []string{"HTTP_PROXY=http://" + u.out("a")}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		c := startCaller(t, cmd)
		c.want(welcome)
		// A narrower intent reaches its open connection.
		s.write("a.merlon.yaml", "services:\n  a:\n    address: 127.0.0.1:1\n    workload: {unix: {user: 65533}}\n")
		s.must("apply", "--widen")
		c.want(stranger)
	}
	// Nothing said: open, and said so.
	s.write("a.merlon.yaml", "services:\n  a:\n    address: 127.0.0.1:1\n")
	s.must("apply", "--widen")
	if a, err := fetch("http://b/hello", u.out("a")); err != nil || a.status != 200 {
		t.Errorf("at an open gate: %+v %v", a, err)
	}
	if status := s.must("status"); !strings.Contains(status, "every process on this host") {
		t.Errorf("status does not say that the gate is open:\n%s", status)
	}
}

// TestWorkloadBoth: a program that merlon runs must run as the user as well.
func TestWorkloadBoth(t *testing.T) {
	t.Parallel()
	needSockowner(t)
	s := newSite(t)
	uid := strconv.Itoa(os.Getuid())
	both := func(user string) {
		s.service("a", s.a, "anyone: all", "PEER: b")
		text, err := os.ReadFile(filepath.Join(s.dir, "a.merlon.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		s.write("a.merlon.yaml", string(text)+"    workload: {unix: {user: "+user+"}}\n")
	}
	both(uid)
	u := s.up()
	s.want("/call", 200, "b")
	if a, err := fetch("http://b/hello", u.out("a")); err != nil || a.reason != "not_own_workload" {
		t.Errorf("another process of the user got %+v %v", a, err)
	}
	both("65533")
	s.must("apply", "--widen")
	if a, err := fetch(s.url("/call"), ""); err != nil || a.status != 403 || !strings.Contains(a.body, "not_own_workload") {
		t.Errorf("the program as another user got %+v %v", a, err)
	}
}

// TestExecOfAnotherUser: the control socket is no way in for others.
func TestExecOfAnotherUser(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("SKIP: only root can try as another user")
	}
	s := newSite(t)
	s.up()
	cmd := exec.Command(s.publicApp(), "dial", filepath.Join(s.dir, ".merlon", "control.sock"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "permission denied") {
		t.Errorf("%v\n%s", err, out)
	}
}

// publicApp is the app where another user may run it.
func (s *site) publicApp() string {
	s.t.Helper()
	data, err := os.ReadFile(appBin(s.t))
	if err != nil {
		s.t.Fatal(err)
	}
	app := filepath.Join(s.dir, "app")
	if err := errors.Join(os.WriteFile(app, data, 0o755), os.Chmod(s.dir, 0o755)); err != nil {
		s.t.Fatal(err)
	}
	return app
}
