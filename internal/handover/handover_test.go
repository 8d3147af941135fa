//go:build unix

package handover

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain is also the next process: what it does is in the environment.
func TestMain(m *testing.M) {
	if what := os.Getenv("HANDOVER_TEST"); what != "" {
		if err := heir(what); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// heir answers each connection with what it inherited, until told to end.
func heir(what string) error {
	s, err := Inherit(os.Getenv(Variable), os.Getppid())
	if err != nil {
		return err
	}
	l, err := s.Listen("in", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if _, err := s.Listen("new", "127.0.0.1:0"); err != nil {
		return err
	}
	state, left := string(s.State()), s.Discard()
	switch what {
	case "dies":
		return errors.New("it dies")
	case "hangs":
		time.Sleep(time.Minute)
	}
	if err := s.Ready(); err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		line, _ := bufio.NewReader(c).ReadString('\n')
		fmt.Fprintf(c, "heir has %q, left %q, heard %q\n", state, left, line)
		c.Close()
		if line == "end\n" {
			return nil
		}
	}
}

func command(t *testing.T, what string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "HANDOVER_TEST="+what, "LISTEN_PID=1", "LISTEN_FDS=1", "LISTEN_FDNAMES=in", Variable+"=old")
	cmd.Stderr = os.Stderr
	return cmd
}

func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func say(t *testing.T, address, line string) (*bufio.Reader, net.Conn) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write([]byte(line)); err != nil {
		t.Fatal(err)
	}
	return bufio.NewReader(c), c
}

// TestPass hands a socket over with connections that nobody has accepted yet.
func TestPass(t *testing.T) {
	t.Parallel()
	s := new(Sockets)
	l, err := s.Listen("in", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	for name, address := range map[string]string{"gone": "127.0.0.1:0", "moved": "127.0.0.2:0"} {
		other, err := s.Listen(name, address)
		if err != nil {
			t.Fatal(err)
		}
		if name == "gone" {
			other.Close() // is not handed on
		}
	}
	waiting, _ := say(t, l.Addr().String(), "early\n")
	cmd := command(t, "serves")
	if err := s.Pass(patient(t), cmd, []byte("the state")); err != nil {
		t.Fatal(err)
	}
	// The socket is shared, and still one that a wait can end for.
	l.(*net.TCPListener).SetDeadline(time.Now().Add(-time.Second))
	if c, err := l.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("accept in the old process: %v %v", c, err)
	}
	l.Close()
	want := `heir has "the state", left ["moved"], heard %q` + "\n"
	if got, err := waiting.ReadString('\n'); got != fmt.Sprintf(want, "early\n") {
		t.Errorf("the connection that waited: %q %v", got, err)
	}
	late, _ := say(t, l.Addr().String(), "end\n")
	if got, err := late.ReadString('\n'); got != fmt.Sprintf(want, "end\n") {
		t.Errorf("a new connection: %q %v", got, err)
	}
}

// TestPassFails: whatever becomes of the new process, the old one goes on.
func TestPassFails(t *testing.T) {
	t.Parallel()
	for what, want := range map[string]string{
		"dies":  "ended before it was ready: exit status 1",
		"hangs": "did not become ready: context deadline exceeded",
		"":      "no such file",
	} {
		t.Run("it "+what, func(t *testing.T) {
			t.Parallel()
			s := new(Sockets)
			l, err := s.Listen("in", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			cmd, ctx := command(t, what), patient(t)
			if what == "" {
				cmd = exec.Command(filepath.Join(t.TempDir(), "absent"))
			}
			if what == "hangs" {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 300*time.Millisecond)
				defer cancel()
			}
			if err := s.Pass(ctx, cmd, make([]byte, 1<<20)); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
			if blocks(t, l) {
				t.Error("the socket blocks now: Close would wait for an Accept that nobody ends")
			}
			answer, _ := say(t, l.Addr().String(), "hello\n")
			c, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(c, "the old one")
			if got, _ := answer.ReadString('\n'); got != "the old one\n" {
				t.Errorf("%q", got)
			}
			c.Close()
		})
	}
}

func blocks(t *testing.T, l net.Listener) bool {
	t.Helper()
	raw, err := l.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var flags int
	if err := raw.Control(func(fd uintptr) { flags, _ = unix.FcntlInt(fd, unix.F_GETFL, 0) }); err != nil {
		t.Fatal(err)
	}
	return flags&unix.O_NONBLOCK == 0
}

// TestInheritRefused: what is not for this process is not touched.
func TestInheritRefused(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		"":             "cannot be read",
		`{"parent":1}`: "is of process 1",
	} {
		if _, err := Inherit(value, 2); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", value, err, want)
		}
	}
	tests := []struct{ pid, count, names, want string }{
		{"7", "x", "", `LISTEN_FDS is "x"`},
		{"7", "-1", "", `LISTEN_FDS is "-1"`},
		{"7", "99999", "", `LISTEN_FDS is "99999"`},
		{"7", "2", "in", "LISTEN_FDNAMES names 1"},
		{"7", "0", "", ""},
		{"8", "1", "in", ""}, // another process
		{"", "", "", ""},
	}
	for _, tt := range tests {
		s, err := FromSystemd(tt.pid, tt.count, tt.names, 7)
		if tt.want == "" && (err != nil || len(s.Discard()) > 0) || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}

// TestListener: only a listening TCP socket is taken.
func TestListener(t *testing.T) {
	t.Parallel()
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := listener(file); err == nil {
		t.Error("a file is taken for a socket")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f, err := c.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := listener(f); err == nil || !strings.Contains(err.Error(), "does not listen") {
		t.Errorf("a connection is taken for a listener: %v", err)
	}
	u, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	f, err = u.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := listener(f); err == nil || !strings.Contains(err.Error(), "not one of TCP") {
		t.Errorf("a Unix socket is taken: %v", err)
	}
}

func TestNotify(t *testing.T) {
	t.Parallel()
	if err := Notify("", "READY=1"); err != nil {
		t.Error(err)
	}
	name := filepath.Join(t.TempDir(), "n")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := Notify(name, "READY=1"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 64)
	if n, err := c.Read(b); string(b[:n]) != "READY=1" {
		t.Errorf("%q %v", b[:n], err)
	}
	if err := Notify(name+"absent", "READY=1"); err == nil {
		t.Error("a notification to nobody succeeds")
	}
}
