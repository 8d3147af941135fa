package sockowner

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// unixPair is both ends of a connection over a Unix socket of this process.
func unixPair(t *testing.T) (client, server *net.UnixConn) {
	t.Helper()
	dir, err := os.MkdirTemp("", "so")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return c.(*net.UnixConn), s.(*net.UnixConn)
}

func TestUnixPeer(t *testing.T) {
	t.Parallel()
	client, server := unixPair(t)
	p, err := UnixPeer(server)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.PID() != os.Getpid() || !p.Alive() {
		t.Errorf("pid %d, want %d", p.PID(), os.Getpid())
	}
	c, err := p.Credentials()
	groups, gerr := os.Getgroups()
	if err != nil || gerr != nil || int(c.UID) != os.Geteuid() || int(c.RealUID) != os.Getuid() || int(c.GID) != os.Getegid() || len(c.Groups) != len(groups) {
		t.Errorf("%+v, %v %v", c, err, gerr)
	}
	if path, err := p.Cgroup(); err != nil || !strings.HasPrefix(path, "/") {
		t.Errorf("%q, %v", path, err)
	}
	f, err := p.OpenExecutable()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	self, err := os.Stat("/proc/self/exe")
	if got, serr := f.Stat(); err != nil || serr != nil || !os.SameFile(got, self) {
		t.Error("another executable", err, serr)
	}
	client.Close()
	if p, err := UnixPeer(server); err == nil { // the kernel remembers
		p.Close()
	} else {
		t.Error("after the other end was closed:", err)
	}
}

// Who connected and has ended since is nobody, whoever has its number now.
func TestUnixPeerEnded(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "so")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := program(t, nil, "unix", l.Addr().String())
	s, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p, err := UnixPeer(s)
	if err != nil || p.PID() != cmd.Process.Pid {
		t.Fatal(p, err)
	}
	defer p.Close()
	if err := errors.Join(cmd.Process.Kill()); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if p.Alive() {
		t.Error("it is alive")
	}
	if again, err := UnixPeer(s); err == nil {
		t.Errorf("process %d is taken for one that has ended", again.PID())
	}
	if _, err := p.Credentials(); !errors.Is(err, ErrGone) {
		t.Error(err)
	}
}

func TestTCPPeer(t *testing.T) {
	t.Parallel()
	l := listen(t, "127.0.0.1:0")
	cmd := program(t, nil, "connect", l.Addr().String())
	c := accept(t, l)
	p, err := TCPPeer(c)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.PID() != cmd.Process.Pid {
		t.Errorf("process %d, want %d", p.PID(), cmd.Process.Pid)
	}
}

// A process belongs to the tree that started it, and to no other.
func TestStartedBy(t *testing.T) {
	t.Parallel()
	l := listen(t, "127.0.0.1:0")
	cmd := program(t, nil, "start", "connect", l.Addr().String())
	p, err := TCPPeer(accept(t, l))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.PID() == cmd.Process.Pid {
		t.Fatal("the program did not start another")
	}
	root, stranger := pin(t, cmd.Process.Pid), program(t, nil, "wait")
	for _, tt := range []struct {
		name string
		root *Process
		ok   bool
	}{
		{"its parent", root, true}, {"itself", p, true}, {"this test", pin(t, os.Getpid()), true}, {"a stranger", pin(t, stranger.Process.Pid), false},
	} {
		if ok, err := p.StartedBy(tt.root); ok != tt.ok || err != nil {
			t.Errorf("%s: %v, %v", tt.name, ok, err)
		}
	}
	if ok, err := root.StartedBy(p); ok || err != nil {
		t.Errorf("the other way round: %v, %v", ok, err)
	}
}

// Nothing in a process's files leads out of its root, or keeps anyone waiting.
func TestOpenInRoot(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := errors.Join(os.WriteFile(dir+"/file", []byte("x"), 0o600), os.Symlink("/proc/self/root/"+dir+"/file", dir+"/magic"),
		os.Symlink("file", dir+"/link"), syscall.Mkfifo(dir+"/pipe", 0o600)); err != nil {
		t.Fatal(err)
	}
	p := pin(t, os.Getpid())
	for name, ok := range map[string]bool{"file": true, "link": true, "magic": false, "pipe": false, "none": false, ".": false} {
		f, err := p.OpenInRoot(dir + "/" + name)
		if (err == nil) != ok {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			f.Close()
		}
	}
}

func TestParseProc(t *testing.T) {
	t.Parallel()
	const good = "Name:\tweb\nUid:\t1000\t1001\t1001\t1001\nGid:\t5\t6\t6\t6\nGroups:\t6 7 \n"
	if c, ok := parseStatus([]byte(good)); !ok || c.RealUID != 1000 || c.UID != 1001 || c.GID != 6 || !slices.Equal(c.Groups, []uint32{6, 7}) {
		t.Errorf("%+v %v", c, ok)
	}
	for _, bad := range []string{"", "Uid:\t1\t1\t1\t1\n", "Gid:\t1\t1\t1\t1\n", "Uid:\t1\nGid:\t1\t1\t1\t1\n", strings.Replace(good, "1001", "-1", 1),
		strings.Replace(good, "6 7", "x", 1), "Uid:\t4294967296\t1\t1\t1\nGid:\t1\t1\t1\t1\n"} {
		if _, ok := parseStatus([]byte(bad)); ok {
			t.Errorf("%q", bad)
		}
	}
	for text, want := range map[string]string{
		"0::/system.slice/web.service\n":               "/system.slice/web.service",
		"4:memory:/x\n1:name=systemd:/a.slice\n0::/\n": "/a.slice",
		"4:memory:/x\n0::/b\n":                         "/b",
		"0::/with:colon\n":                             "/with:colon",
		"4:memory:/x\n":                                "",
		"":                                             "",
		"0::\n":                                        "",
		"0::x\n":                                       "",
		"garbage":                                      "",
	} {
		if got, _ := parseCgroup([]byte(text)); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func FuzzParseProc(f *testing.F) {
	f.Add([]byte("Uid:\t1000\t1001\t1001\t1001\nGid:\t5\t6\t6\t6\nGroups:\t6 7 \n"))
	f.Add([]byte("1:name=systemd:/a.slice\n0::/\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		parseStatus(b)
		if path, ok := parseCgroup(b); ok && !strings.HasPrefix(path, "/") {
			t.Errorf("%q", path)
		}
	})
}
