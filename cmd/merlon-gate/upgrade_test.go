package main

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"merlon/record"
)

// upgrade has the gate replaced by another process, and returns its id.
func (s *stand) upgrade(pid int) int {
	s.t.Helper()
	before := len(s.said())
	if err := syscall.Kill(pid, syscall.SIGUSR2); err != nil {
		s.t.Fatal(err)
	}
	found := regexp.MustCompile(`the new process serves.* pid=(\d+)`)
	s.until("another process takes the place of the gate", func() bool { return found.MatchString(s.said()[before:]) })
	next, _ := strconv.Atoi(found.FindStringSubmatch(s.said()[before:])[1])
	s.t.Cleanup(func() { end(s.t, next) })
	return next
}

// end kills a process that is no child of this one, and waits until it is gone.
func end(t *testing.T, pid int) {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if !runs(pid) {
			return
		}
		syscall.Kill(pid, syscall.SIGKILL)
	}
	t.Errorf("process %d does not end", pid)
}

// runs reports whether there is a process, and more of it than its status.
func runs(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, os.ErrNotExist) {
		return false
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(state, "Z")
}

// evidence counts the records of all chains by the path of the call.
func (s *stand) evidence() map[string]int {
	s.t.Helper()
	count := map[string]int{}
	chains, err := record.Chains(filepath.Join(s.dir, "records"))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, dir := range chains {
		if _, err := record.Verify(dir); err != nil {
			s.t.Errorf("%s: %v", dir, err)
		}
		for r, err := range record.Read(dir, record.Filter{}) {
			if err != nil {
				s.t.Fatal(err)
			}
			count[r.Path]++
		}
	}
	return count
}

// awaitEnd waits for the end of the first process.
func (s *stand) awaitEnd() {
	s.t.Helper()
	select {
	case err := <-s.ended:
		s.ended <- err
		if err != nil {
			s.t.Errorf("the gate ended with %v\n%s", err, s.said())
		}
	case <-time.After(60 * time.Second):
		s.cmd.Process.Signal(syscall.SIGQUIT) // and what it waits for
		s.ended <- <-s.ended
		s.t.Fatalf("the gate does not end\n%s", s.said())
	}
}

// TestUpgrade replaces a gate under load, three times: no call fails or goes
// unrecorded, and what was streaming streams on, under the orders of the day.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	finish := make(chan struct{})
	s := newStand(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			io.WriteString(w, "begun\n")
			http.NewResponseController(w).Flush()
			select {
			case <-finish:
			case <-r.Context().Done():
				return
			}
		}
		fmt.Fprint(w, "done")
	}))
	s.start()
	stream := func() *bufio.Reader {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/slow", nil)
		req.Host = "b"
		c := *s.client
		c.Timeout = time.Minute
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { res.Body.Close() })
		r := bufio.NewReader(res.Body)
		if line, err := r.ReadString('\n'); line != "begun\n" {
			t.Fatalf("%q %v", line, err)
		}
		return r
	}
	first := stream()
	load := startLoad(t, s, 6)
	pid := s.cmd.Process.Pid
	for range 3 {
		load.more(100)
		pid = s.upgrade(pid)
	}
	load.more(100)
	last := stream()
	load.stop()
	// A deny reaches both, the one in the process that was replaced too.
	s.orders("callers: {a: [hello]}", nil)
	for name, r := range map[string]*bufio.Reader{"first": first, "last": last} {
		if rest, err := io.ReadAll(r); err == nil {
			t.Errorf("the %s stream goes on although it is denied: %q", name, rest)
		}
	}
	s.awaitEnd()
	close(finish)
	s.want("/hello", 200, "done")
	s.client.CloseIdleConnections()
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.until("all processes end", func() bool { return !runs(pid) })
	if got, want := s.evidence(), load.good+1; got["/hello"] != want || got["/slow"] != 2 {
		t.Errorf("%v in the records; %d calls of /hello were answered\n%s", got, want, s.said())
	}
}

// load is calls over connections that are kept, as fast as they are answered.
type load struct {
	t    *testing.T
	quit chan struct{}
	wg   sync.WaitGroup

	mu     sync.Mutex
	good   int
	failed []string
}

func startLoad(t *testing.T, s *stand, clients int) *load {
	l := &load{t: t, quit: make(chan struct{})}
	config := s.client.Transport.(*http.Transport).TLSClientConfig
	for range clients {
		l.wg.Go(func() { l.client(s, config) })
	}
	return l
}

// client calls over one connection at a time, and never sends a call twice.
func (l *load) client(s *stand, config *tls.Config) {
	var c net.Conn
	var r *bufio.Reader
	for {
		select {
		case <-l.quit:
			if c != nil {
				c.Close()
			}
			return
		default:
		}
		err := func() (err error) {
			if c == nil {
				if c, err = tls.Dial("tcp", strings.TrimPrefix(s.url, "https://"), config); err != nil {
					return err
				}
				r = bufio.NewReader(c)
			}
			c.SetDeadline(time.Now().Add(30 * time.Second))
			if _, err := io.WriteString(c, "GET /hello HTTP/1.1\r\nHost: b\r\n\r\n"); err != nil {
				return err
			}
			res, err := http.ReadResponse(r, nil)
			if err != nil {
				return err
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			if err != nil || res.StatusCode != 200 || string(body) != "done" {
				return fmt.Errorf("%d %q %w", res.StatusCode, body, err)
			}
			if res.Close {
				c.Close()
				c = nil
			}
			return nil
		}()
		l.mu.Lock()
		if err != nil {
			l.failed = append(l.failed, err.Error())
			l.mu.Unlock()
			return
		}
		l.good++
		l.mu.Unlock()
	}
}

// more waits until n more calls are answered, or one fails.
func (l *load) more(n int) {
	l.t.Helper()
	count := func() (int, bool) {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.good, len(l.failed) > 0
	}
	from, _ := count()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(time.Millisecond) {
		now, failed := count()
		if now >= from+n || failed {
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("%d calls in a minute", now-from)
		}
	}
}

func (l *load) stop() {
	l.t.Helper()
	close(l.quit)
	l.wg.Wait()
	if len(l.failed) > 0 {
		l.t.Errorf("%d of %d calls failed, such as %s", len(l.failed), l.good, l.failed[0])
	}
}

// TestUpgradeFails: whatever stands where the program was, the gate goes on,
// and can be upgraded when it is whole again.
func TestUpgradeFails(t *testing.T) {
	t.Parallel()
	s := newStand(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "done") }))
	program := filepath.Join(s.dir, "gate")
	whole, err := os.ReadFile(build(t))
	if err != nil {
		t.Fatal(err)
	}
	place := func(text string) {
		t.Helper()
		// Written by another process: were the file open for writing here, a child
		// of some other test could still hold it when it is to be run (ETXTBSY).
		cp := exec.Command("cp", "/dev/stdin", program+".new")
		cp.Stdin = strings.NewReader(text)
		if err := errors.Join(cp.Run(), os.Chmod(program+".new", 0o700), os.Rename(program+".new", program)); err != nil {
			t.Fatal(err)
		}
	}
	place(string(whole))
	s.run(exec.Command(program, s.arguments()...))
	s.url = "https://" + s.address("in")
	for text, why := range map[string]string{
		"#!/bin/sh\nexit 3\n": "exit status 3",
		"#!/bin/sh\nexit 0\n": "exit status 0",
		"no program":          "exec format error",
	} {
		place(text)
		before := len(s.said())
		s.cmd.Process.Signal(syscall.SIGUSR2)
		s.until("the upgrade fails", func() bool { return strings.Contains(s.said()[before:], "this process goes on") })
		if said := s.said()[before:]; !strings.Contains(said, why) {
			t.Errorf("%q is not in\n%s", why, said)
		}
		s.want("/hello", 200, "done")
	}
	// A key that others can read: the new process does not want to begin.
	place(string(whole))
	os.Chmod(filepath.Join(s.dir, "key.pem"), 0o644)
	s.cmd.Process.Signal(syscall.SIGUSR2)
	s.until("the upgrade fails", func() bool {
		return strings.Contains(s.said(), "others can read the key") && strings.HasSuffix(s.said(), "exit status 1\"\n")
	})
	s.want("/hello", 200, "done")
	os.Chmod(filepath.Join(s.dir, "key.pem"), 0o600)

	// Orders that are refused: it begins with those in force.
	s.orders("callers: {a: [slow]}", func(b []byte) []byte { return b[:len(b)/2] })
	s.until("orders are refused", func() bool { return strings.Contains(s.said(), "orders refused") })
	next := s.upgrade(s.cmd.Process.Pid)
	s.client.CloseIdleConnections()
	s.want("/hello", 200, "done")
	s.awaitEnd()
	hash := s.orders("callers: {a: [slow]}", nil)
	s.until("the new process takes up orders", func() bool { return strings.Contains(s.said(), "hash="+hash) })
	s.want("/hello", 403, "no_rule")
	if !runs(next) {
		t.Error("the new process has ended")
	}
}

// TestOutliveEnds: a process that was replaced ends what it still serves when it
// cannot obey the orders of the day, and when it is told to.
func TestOutliveEnds(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*stand){
		"orders refused": func(s *stand) { s.orders("callers: {a: [hello]}", func(b []byte) []byte { return b[:len(b)/2] }) },
		"signal":         func(s *stand) { s.cmd.Process.Signal(syscall.SIGTERM) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStand(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.WriteString(w, "begun")
				http.NewResponseController(w).Flush()
				<-r.Context().Done()
			}))
			s.start("-drain", "100ms")
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/slow", nil)
			req.Host = "b"
			res, err := s.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			s.upgrade(s.cmd.Process.Pid)
			end(s)
			if _, err := io.ReadAll(res.Body); err == nil {
				t.Error("the stream ends as if it were whole")
			}
			select {
			case err := <-s.ended:
				s.ended <- err
			case <-time.After(30 * time.Second):
				t.Error("the process goes on")
			}
			if !strings.Contains(s.said(), "are cut off soon") {
				t.Errorf("it does not say why\n%s", s.said())
			}
		})
	}
}

// TestUpgradeLocalPorts: ports that orders name are handed on too, and new ones
// are for the process that comes, not for the one that leaves.
func TestUpgradeLocalPorts(t *testing.T) {
	t.Parallel()
	s := newStand(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "begun")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	ledger := func(port string) string {
		return "callers: {a: [slow]}\n    localPorts: {ledger: " + port + "}\n  ledger: {address: '127.0.0.1:1', protocol: tcp, callers: {b: all}}"
	}
	var ports []string
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(l.Addr().String())
		ports = append(ports, port)
		l.Close()
	}
	s.orders(ledger(ports[0]), nil)
	s.start()
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/slow", nil)
	req.Host = "b"
	res, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	s.upgrade(s.cmd.Process.Pid)
	for i, port := range ports {
		hash := s.orders(ledger(port)+" # "+port, nil)
		s.until("both processes have the orders", func() bool { return strings.Count(s.said(), "hash="+hash) == 2 })
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Errorf("port %d: %v", i, err)
			continue
		}
		c.Close()
	}
	if strings.Contains(s.said(), "refused") {
		t.Errorf("something is refused\n%s", s.said())
	}
}

// TestSystemd: sockets come from systemd, and it hears what becomes of the gate.
func TestSystemd(t *testing.T) {
	t.Parallel()
	s := newStand(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "done") }))
	name := filepath.Join(s.dir, "notify")
	heard, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer heard.Close()
	hear := func(want string) {
		t.Helper()
		b := make([]byte, 100)
		heard.SetReadDeadline(time.Now().Add(20 * time.Second))
		if n, err := heard.Read(b); string(b[:n]) != want {
			t.Errorf("systemd hears %q %v, want %q\n%s", b[:n], err, want, s.said())
		}
	}
	var files []*os.File
	var addresses []string
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		addresses = append(addresses, l.Addr().String())
		files = append(files, f)
		l.Close()
	}
	// LISTEN_PID is the shell's, which becomes the gate.
	cmd := exec.Command("/bin/sh", append([]string{"-c", `LISTEN_PID=$$ exec "$0" "$@"`, build(t)}, s.arguments()...)...)
	cmd.Env = append(os.Environ(), "LISTEN_FDS=2", "LISTEN_FDNAMES=in:other", "NOTIFY_SOCKET="+name)
	cmd.ExtraFiles = files
	s.run(cmd)
	for _, f := range files {
		f.Close()
	}
	hear("READY=1")
	s.url = "https://" + s.address("in")
	if s.url != "https://"+addresses[0] || s.address("out") == addresses[1] {
		t.Errorf("the gate serves at %s, systemd gave %q", s.url, addresses)
	}
	if !strings.Contains(s.said(), "nobody asks for are closed\" names=[other]") {
		t.Errorf("the other socket is not told of\n%s", s.said())
	}
	s.want("/hello", 200, "done")
	next := s.upgrade(s.cmd.Process.Pid)
	hear(fmt.Sprintf("MAINPID=%d", next))
	s.client.CloseIdleConnections()
	s.want("/hello", 200, "done")
	s.client.CloseIdleConnections()
	s.awaitEnd()
	syscall.Kill(next, syscall.SIGTERM)
	hear("STOPPING=1")
}
