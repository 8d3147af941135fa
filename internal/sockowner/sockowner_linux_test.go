package sockowner

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary is also the programs that connect: SOCKOWNER_TEST says as
// what, and the words after it are its arguments.
func TestMain(m *testing.M) {
	if role := os.Getenv("SOCKOWNER_TEST"); role != "" {
		act(strings.Fields(role))
		return
	}
	os.Exit(m.Run())
}

// act plays a program: it says "ready" when it has done its part, and then
// waits for the end of its standard input.
func act(role []string) {
	fail := func(err error) {
		os.Stdout.WriteString("error: " + err.Error() + "\n")
		os.Exit(1)
	}
	wait := func() {
		os.Stdout.WriteString("ready\n")
		io.Copy(io.Discard, os.Stdin)
	}
	switch role[0] {
	case "connect":
		for os.Getenv("SOCKOWNER_PARENT") == strconv.Itoa(os.Getppid()) {
			time.Sleep(time.Millisecond) // until the parent has ended
		}
		c, err := net.Dial("tcp", role[1])
		if err != nil {
			fail(err)
		}
		wait()
		c.Close()
	case "unix":
		c, err := net.Dial("unix", role[1])
		if err != nil {
			fail(err)
		}
		wait()
		c.Close()
	case "wait":
		wait()
	case "start", "setsid", "orphan", "daemon": // a child connects; of an orphan the parent ends
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), "SOCKOWNER_TEST="+strings.Join(role[1:], " "))
		if role[0] == "orphan" || role[0] == "daemon" {
			cmd.Env = append(cmd.Env, "SOCKOWNER_PARENT="+strconv.Itoa(os.Getpid()))
		}
		cmd.Stdin, cmd.Stdout = os.Stdin, os.Stdout
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: role[0] == "daemon" || role[0] == "setsid"}
		if err := cmd.Start(); err != nil {
			fail(err)
		}
		if role[0] == "start" || role[0] == "setsid" {
			cmd.Wait()
		}
	}
}

// program starts the test binary in a role, in a session of its own as
// supervise does, and waits until it is ready.
func program(t testing.TB, attr *syscall.SysProcAttr, role ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{"SOCKOWNER_TEST=" + strings.Join(role, " "), "GORACE=atexit_sleep_ms=0"}
	if attr == nil {
		attr = &syscall.SysProcAttr{}
	}
	attr.Setsid = true
	cmd.SysProcAttr = attr
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
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "ready\n" {
		t.Fatalf("the program said %q, %v", line, err)
	}
	return cmd
}

func listen(t testing.TB, address string) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Skipf("cannot listen on %s: %v", address, err)
	}
	t.Cleanup(func() { l.Close() })
	l.(*net.TCPListener).SetDeadline(time.Now().Add(20 * time.Second))
	return l.(*net.TCPListener)
}

func accept(t testing.TB, l net.Listener) net.Conn {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func pin(t testing.TB, pid int) *Process {
	t.Helper()
	p, err := OpenProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// TestFamilies finds the own process over every kind of address, by both ways
// of asking.
func TestFamilies(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ listen, dial string }{
		{"127.0.0.1:0", "127.0.0.1"},
		{"[::1]:0", "::1"},
		{"[::]:0", "127.0.0.1"}, // an IPv6 listener sees a mapped address
		{"[::]:0", "::1"},
	} {
		l := listen(t, tt.listen)
		_, port, _ := net.SplitHostPort(l.Addr().String())
		client, err := net.Dial("tcp", net.JoinHostPort(tt.dial, port))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		c := accept(t, l)
		s, err := Peer(c)
		if err != nil || s.UID != uint32(os.Getuid()) || s.Inode == 0 {
			t.Fatalf("%v: got %+v %v", tt, s, err)
		}
		if s.Inode != inode(t, client) {
			t.Errorf("%v: inode %d is not the client's %d", tt, s.Inode, inode(t, client))
		}
		want, _ := peerTuple(c)
		if e, err := list(want); err != nil || e.Socket != s {
			t.Errorf("%v: the list says %+v %v, want %+v", tt, e, err, s)
		}
		if pid, err := pin(t, os.Getpid()).Holder(s); err != nil || pid != os.Getpid() {
			t.Errorf("%v: held by %d %v", tt, pid, err)
		}
	}
}

// inode is a connection's own socket.
func inode(t testing.TB, c net.Conn) uint64 {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var st syscall.Stat_t
	raw.Control(func(fd uintptr) { err = syscall.Fstat(int(fd), &st) })
	if err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// TestTree has who belongs to a program and who does not.
func TestTree(t *testing.T) {
	t.Parallel()
	l := listen(t, "127.0.0.1:0")
	at := l.Addr().String()
	for _, tt := range []struct {
		name string
		role []string
		own  bool
	}{
		{"the program", []string{"connect", at}, true},
		{"its child", []string{"start", "connect", at}, true},
		{"a grandchild", []string{"start", "start", "connect", at}, true},
		{"a child in a session of its own", []string{"start", "setsid", "connect", at}, true},
		{"a grandchild whose parent has ended", []string{"start", "orphan", "connect", at}, true},
		{"a daemon that broke away", []string{"start", "daemon", "connect", at}, false},
	} {
		cmd := program(t, nil, tt.role...)
		s, err := Peer(accept(t, l))
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		pid, err := pin(t, cmd.Process.Pid).Holder(s)
		if tt.own && (err != nil || pid == 0) || !tt.own && !errors.Is(err, ErrNotHeld) {
			t.Errorf("%s: holder %d, %v", tt.name, pid, err)
		}
		other := program(t, nil, "connect", at)
		accept(t, l)
		if pid, err := pin(t, other.Process.Pid).Holder(s); !errors.Is(err, ErrNotHeld) {
			t.Errorf("%s: another program is said to hold it: %d %v", tt.name, pid, err)
		}
		p, err := Find(s)
		if err != nil {
			t.Errorf("%s: nobody is found: %v", tt.name, err)
			continue
		}
		if self, _ := os.Executable(); p.Executable() != self {
			t.Errorf("%s: executable %q, want %q", tt.name, p.Executable(), self)
		}
		p.Close()
	}
}

// TestOtherUser finds the user of a process that is not ours.
func TestOtherUser(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root can start a process as another user")
	}
	const nobody = 65534
	l := listen(t, "127.0.0.1:0")
	cmd := program(t, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}, "connect", l.Addr().String())
	s, err := Peer(accept(t, l))
	if err != nil || s.UID != nobody {
		t.Fatalf("got %+v %v, want uid %d", s, err, nobody)
	}
	if pid, err := pin(t, cmd.Process.Pid).Holder(s); err != nil || pid != cmd.Process.Pid {
		t.Errorf("held by %d %v", pid, err)
	}
}

// TestAbandoned has connections whose other end is over: whoever made them gets
// nothing by being gone when it is asked for.
func TestAbandoned(t *testing.T) {
	t.Parallel()
	l := listen(t, "127.0.0.1:0")
	for name, end := range map[string]func(*net.TCPConn){
		"closed": func(c *net.TCPConn) { c.Close() },
		"reset":  func(c *net.TCPConn) { c.SetLinger(0); c.Close() },
	} {
		client, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(client, "POST /orders HTTP/1.1\r\n")
		end(client.(*net.TCPConn))
		// A program that another test is just starting holds it until it runs.
		c, deadline := accept(t, l), time.Now().Add(10*time.Second)
		s, err := Peer(c)
		for ; err == nil && time.Now().Before(deadline); s, err = Peer(c) {
			time.Sleep(time.Millisecond)
		}
		if !errors.Is(err, ErrAbandoned) && !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: got %+v %v", name, s, err)
		}
	}
}

// TestReplaced has a connection that was reset, and another from the same port
// that took its place: the first is not taken for the second.
func TestReplaced(t *testing.T) {
	t.Parallel()
	l := listen(t, "127.0.0.1:0")
	// From an address of its own: nobody else is given its ports.
	dial := func(from *net.TCPAddr) (net.Conn, error) {
		return (&net.Dialer{LocalAddr: from}).Dial("tcp", l.Addr().String())
	}
	first, err := dial(&net.TCPAddr{IP: net.IPv4(127, 6, 5, 4)})
	if err != nil {
		t.Fatal(err)
	}
	from := first.LocalAddr().(*net.TCPAddr)
	old := accept(t, l)
	first.(*net.TCPConn).SetLinger(0)
	first.Close()
	again, err := dial(from)
	for deadline := time.Now().Add(10 * time.Second); err != nil; again, err = dial(from) {
		if time.Now().After(deadline) {
			t.Fatalf("the port is not free again: %v", err)
		}
		time.Sleep(time.Millisecond) // a program that another test is just starting holds the first
	}
	defer again.Close()
	if s, err := Peer(old); !errors.Is(err, ErrNotFound) {
		t.Errorf("the connection that was reset is said to be %+v, %v", s, err)
	}
	if _, err := Peer(accept(t, l)); err != nil {
		t.Errorf("the new one is not found: %v", err)
	}
}

// TestHalfClosed has a client that has no more to send and waits for an answer.
func TestHalfClosed(t *testing.T) {
	t.Parallel()
	l := listen(t, "127.0.0.1:0")
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	client.(*net.TCPConn).CloseWrite()
	if s, err := Peer(accept(t, l)); err != nil || s.Inode != inode(t, client) {
		t.Errorf("got %+v %v", s, err)
	}
}

// TestPinned shows that a pinned process that has ended is nobody.
func TestPinned(t *testing.T) {
	t.Parallel()
	l := listen(t, "127.0.0.1:0")
	cmd := program(t, nil, "connect", l.Addr().String())
	s, err := Peer(accept(t, l))
	if err != nil {
		t.Fatal(err)
	}
	p := pin(t, cmd.Process.Pid)
	cmd.Process.Kill()
	cmd.Wait()
	if pid, err := p.Holder(s); !errors.Is(err, ErrGone) {
		t.Errorf("held by %d, %v; want %v", pid, err, ErrGone)
	}
	if p.Executable() != "" {
		t.Errorf("it runs %q", p.Executable())
	}
	if _, err := Find(s); !errors.Is(err, ErrGone) {
		t.Errorf("found by %v", err)
	}
}

func TestNoTCP(t *testing.T) {
	t.Parallel()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, err := Peer(a); err == nil {
		t.Error("a pipe has a peer")
	}
}

// BenchmarkPeer is what each accepted connection costs at least.
func BenchmarkPeer(b *testing.B) {
	l := listen(b, "127.0.0.1:0")
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	c := accept(b, l)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Peer(c); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHolder is what looking for the holder costs beside that: with that
// many descriptors of the program before the one that is looked for.
func BenchmarkHolder(b *testing.B) {
	for _, n := range []int{10, 1000, 10_000} {
		b.Run(strconv.Itoa(n)+"fds", func(b *testing.B) {
			for range n {
				f, err := os.Open(os.DevNull)
				if err != nil {
					b.Skip(err)
				}
				defer f.Close()
			}
			l := listen(b, "127.0.0.1:0")
			client, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			defer client.Close()
			s, err := Peer(accept(b, l))
			if err != nil {
				b.Fatal(err)
			}
			p := pin(b, os.Getpid())
			for b.Loop() {
				if _, err := p.Holder(s); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkStranger is what a stranger's connection costs: all processes are
// looked at.
func BenchmarkStranger(b *testing.B) {
	l := listen(b, "127.0.0.1:0")
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	cmd := program(b, nil, "connect", l.Addr().String())
	s, err := Peer(accept(b, l))
	if err != nil {
		b.Fatal(err)
	}
	p := pin(b, cmd.Process.Pid)
	for b.Loop() {
		if _, err := p.Holder(s); err == nil {
			b.Fatal("a stranger is taken in")
		}
	}
}

// TestFileVersionOfTmpfs: what is written to a file of tmpfs through a mapping leaves
// its times as they were, so nothing about it may be remembered.
func TestFileVersionOfTmpfs(t *testing.T) {
	t.Parallel()
	f, err := os.CreateTemp("/dev/shm", "merlon-")
	if err != nil {
		return // no tmpfs that can be written to
	}
	defer os.Remove(f.Name())
	defer f.Close()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
		return
	}
	if _, lasts, err := FileVersion(f, time.Now().Add(time.Hour)); err != nil || lasts {
		t.Errorf("lasts: %v, %v", lasts, err)
	}
}
