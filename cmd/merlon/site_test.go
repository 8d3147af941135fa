package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The tests here run the real program: what they kill, they kill for good.

// built is a program of this module, built once and kept between test runs,
// where the Go tool sees whether it is still the newest.
func built(t *testing.T, pkg string) string {
	t.Helper()
	bin, err := builder(pkg)()
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

var builds sync.Map // of package path to func() (string, error)

func builder(pkg string) func() (string, error) {
	f, _ := builds.LoadOrStore(pkg, sync.OnceValues(func() (string, error) {
		bin, err := filepath.Abs(filepath.Join("../../bin/test", filepath.Base(pkg)))
		if err != nil {
			return "", err
		}
		if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", bin, pkg).CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w\n%s", pkg, err, out)
		}
		return bin, nil
	}))
	return f.(func() (string, error))
}

func merlonBin(t *testing.T) string { t.Helper(); return built(t, "merlon/cmd/merlon") }
func appBin(t *testing.T) string    { t.Helper(); return built(t, "merlon/cmd/merlon/testdata/app") }

// site is a directory with an intent, and ports for it.
type site struct {
	t       *testing.T
	dir     string
	gateway string // address
	a, b, c string
	enter   []string // a command that runs merlon up on another host, when not nil
}

// newSite makes a site of two services: everyone may call a, and a may call b.
func newSite(t *testing.T) *site {
	t.Helper()
	p := ports4(t)
	// Not t.TempDir: its path can be too long for a socket.
	dir, err := os.MkdirTemp("", "merlon-site-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &site{t: t, dir: dir, gateway: p[0], a: p[1], b: p[2], c: p[3]}
	s.head(s.gateway)
	s.service("a", s.a, "anyone: all", "PEER: b")
	s.service("b", s.b, "a: [hello]")
	return s
}

var taken sync.Map // ports handed out in this process

// ports4 are four addresses that nothing listens on. They are below the range
// from which systems take ports by themselves, so that they stay free.
func ports4(t *testing.T) (all [4]string) {
	t.Helper()
	for i := 0; i < len(all); {
		address := fmt.Sprintf("127.0.0.1:%d", 12000+rand.IntN(20000))
		if !free(address) {
			continue
		}
		if _, again := taken.LoadOrStore(address, true); !again {
			all[i] = address
			i++
		}
	}
	return all
}

func (s *site) write(name, text string) {
	s.t.Helper()
	file := filepath.Join(s.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) remove(name string) {
	s.t.Helper()
	if err := os.Remove(filepath.Join(s.dir, name)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) head(gateway string) {
	s.write("merlon.yaml", fmt.Sprintf("trustDomain: test.example\ngateway:\n  listen: %s\n  hosts: [localhost]\n  certificate: none\n", gateway))
	s.gateway = gateway
}

// service writes a service that the system runs.
func (s *site) service(name, address, callers string, env ...string) {
	s.serviceAs(name, address, callers, fmt.Sprintf("command: [%s]", appBin(s.t)), env...)
}

func (s *site) serviceAs(name, address, callers, run string, env ...string) {
	env = append([]string{"NAME: " + name, "LISTEN: \"" + address + "\""}, env...)
	s.write(name+".merlon.yaml", fmt.Sprintf(`services:
  %s:
    address: %s
    operations: {hello: GET /hello, slow: GET /slow, call: GET /call}
    run:
      %s
      env: {%s}
    callers: {%s}
`, name, address, run, strings.Join(env, ", "), callers))
}

// merlon runs one command to its end.
func (s *site) merlon(args ...string) (stdout, stderr string, code int) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, merlonBin(s.t), append(args, s.dir)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if ctx.Err() != nil {
		s.t.Fatalf("merlon %v does not end\n%s%s", args, out.String(), errs.String())
	}
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		s.t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// must runs a command that ends well.
func (s *site) must(args ...string) string {
	s.t.Helper()
	out, errs, code := s.merlon(args...)
	if code != 0 {
		s.t.Fatalf("merlon %v: exit %d\n%s%s", args, code, out, errs)
	}
	return out
}

// fails runs a command that must end with a code and say all of what is wanted.
func (s *site) fails(code int, args []string, want ...string) string {
	s.t.Helper()
	out, errs, got := s.merlon(args...)
	all := out + errs
	if got != code {
		s.t.Errorf("merlon %v: exit %d, want %d\n%s", args, got, code, all)
	}
	for _, w := range want {
		if !strings.Contains(all, w) {
			s.t.Errorf("merlon %v does not say %q:\n%s", args, w, all)
		}
	}
	return all
}

// upped is a running merlon up.
type upped struct {
	s   *site
	cmd *exec.Cmd
	// What it said when it was up.
	Intent string `json:"intent"`
	Places []struct{ Place, In, Out string }
	Tries  []try
	// WorkloadAPI is its address.
	WorkloadAPI string
	Bundle      string // the URL of its trust bundle
	Nodes       string // where agents of nodes connect
	stderr      bytes.Buffer
	ended       chan error
}

// up starts the system and returns when it serves.
func (s *site) up(args ...string) *upped {
	s.t.Helper()
	u, err := s.tryUp(args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return u
}

func (s *site) tryUp(args ...string) (*upped, error) {
	u := &upped{s: s, ended: make(chan error, 1)}
	argv := append(slices.Clone(s.enter), append([]string{merlonBin(s.t), "up", "--json", s.dir}, args...)...)
	u.cmd = exec.Command(argv[0], argv[1:]...)
	u.cmd.Stderr = &u.stderr
	stdout, err := u.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := u.cmd.Start(); err != nil {
		return nil, err
	}
	first := make(chan error, 1)
	go func() {
		text := json.NewDecoder(stdout)
		first <- text.Decode(u)
		io.Copy(io.Discard, stdout)
		u.ended <- u.cmd.Wait()
	}()
	s.t.Cleanup(func() { u.cmd.Process.Kill(); <-u.ended })
	select {
	case err = <-first:
	case <-time.After(2 * time.Minute):
		err = errors.New("it takes too long")
	}
	if err != nil || u.Intent == "" {
		return nil, fmt.Errorf("merlon up: %w\n%s", err, u.stderr.String())
	}
	return u, nil
}

// end sends a signal and returns the exit code.
func (u *upped) end(sig syscall.Signal) int {
	u.s.t.Helper()
	if err := u.cmd.Process.Signal(sig); err != nil {
		u.s.t.Fatal(err)
	}
	select {
	case err := <-u.ended:
		u.ended <- err // for the cleanup
	case <-time.After(30 * time.Second):
		u.s.t.Fatalf("merlon up does not end after %v\n%s", sig, u.stderr.String())
	}
	return u.cmd.ProcessState.ExitCode()
}

// reply is what a call was answered.
type reply struct {
	status       int
	reason, body string
	pid          string
	id           string
}

// fetch makes one call on a connection of its own; proxy may be "".
func fetch(url, proxy string) (reply, error) {
	tr := &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext}
	return fetchBy(tr, url, proxy)
}

func fetchBy(tr *http.Transport, url, proxy string) (reply, error) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return reply{}, err
	}
	if proxy != "" { // by hand: Transport.Proxy would not proxy localhost
		req.Host, req.URL.Host = req.URL.Host, proxy
	}
	c := &http.Client{Transport: tr, Timeout: 20 * time.Second}
	res, err := c.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	h := res.Header
	return reply{res.StatusCode, h.Get("Merlon-Reason"), string(body), h.Get("App-Pid"), h.Get("Merlon-Request-Id")}, err
}

func (s *site) url(path string) string {
	_, port, err := net.SplitHostPort(s.gateway)
	if err != nil {
		s.t.Fatal(err)
	}
	return "http://localhost:" + port + path
}

// want calls the gateway and holds the answer to a status and a body or reason.
func (s *site) want(path string, status int, says string) reply {
	s.t.Helper()
	a, err := fetch(s.url(path), "")
	if err != nil {
		s.t.Errorf("%s: %v", path, err)
	} else if a.status != status || says != a.body && says != a.reason {
		s.t.Errorf("%s: %d %s %s, want %d %s", path, a.status, a.reason, a.body, status, says)
	}
	return a
}

// free reports whether nothing listens at an address.
func free(address string) bool {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return false
	}
	l.Close()
	return true
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// gone waits until nothing of the site runs.
func (s *site) gone() {
	s.t.Helper()
	for _, address := range []string{s.gateway, s.a, s.b, s.c} {
		eventually(s.t, address+" is free", func() bool { return free(address) })
	}
}

// log is what gates and services logged.
func (s *site) log() string {
	text, err := os.ReadFile(filepath.Join(s.dir, ".merlon/merlon.log"))
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}
