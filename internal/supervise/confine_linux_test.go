package supervise

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

type attempt struct {
	do  func() error
	err error
}

// sockets are ways to make one, and what becomes of each.
func sockets() map[string]attempt {
	open := func(family int) func() error {
		return func() error { _, err := unix.Socket(family, unix.SOCK_DGRAM, 0); return err }
	}
	return map[string]attempt{
		"unix":    {open(unix.AF_UNIX), nil},
		"ip":      {open(unix.AF_INET), nil},
		"netlink": {open(unix.AF_NETLINK), nil},
		"pair":    {func() error { _, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0); return err }, nil},
		"vsock":   {open(unix.AF_VSOCK), unix.EAFNOSUPPORT},
		"packet":  {open(unix.AF_PACKET), unix.EAFNOSUPPORT},
		"crypto":  {open(unix.AF_ALG), unix.EAFNOSUPPORT},
		"tipc":    {func() error { _, err := unix.Socketpair(unix.AF_TIPC, unix.SOCK_STREAM, 0); return err }, unix.EAFNOSUPPORT},
		"io_uring": {func() error {
			if _, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 0, 0, 0); errno != 0 {
				return errno
			}
			return nil
		}, unix.EPERM},
		"x32": {func() error {
			if _, _, errno := unix.RawSyscall(x32+unix.SYS_GETPID, 0, 0, 0); errno != 0 {
				return errno
			}
			return nil
		}, unix.EPERM},
	}
}

// playSockets is the program that tries them.
func playSockets() {
	for what, a := range sockets() {
		fmt.Printf("%s: %v\n", what, a.do())
	}
}

// Programs of root have what the list says and can get no more; the thread that
// starts them keeps what it has, and the other threads are as they were.
func TestConfined(t *testing.T) {
	t.Parallel()
	before, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_ADMIN, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := NewConfined()
	defer s.Close()
	said := make(chan string, 256)
	p, err := s.Start(Spec{Name: "p", Argv: []string{"cat", "/proc/self/status"}, Output: func(_, line string) { said <- line }})
	if os.Geteuid() != 0 {
		if err == nil {
			t.Error("a program runs without bounds")
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	until(t, p.Done(), "end")
	close(said)
	var bits uint64
	for _, c := range common() {
		bits |= 1 << c
	}
	want := map[string]string{"NoNewPrivs": "1", "CapInh": "0000000000000000", "CapAmb": "0000000000000000"}
	for _, set := range []string{"CapPrm", "CapEff", "CapBnd"} {
		want[set] = fmt.Sprintf("%016x", bits)
	}
	for line := range said {
		name, value, _ := strings.Cut(line, ":")
		if w, ok := want[name]; ok {
			if strings.TrimSpace(value) != w {
				t.Errorf("%s, want %s", line, w)
			}
			delete(want, name)
		}
	}
	if len(want) > 0 {
		t.Errorf("not said: %v", want)
	}
	if bound, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_ADMIN, 0, 0, 0); err != nil || bound != before {
		t.Errorf("the test itself is confined: %d, before %d, %v", bound, before, err)
	}
	// What sockets it can make, by whatever means.
	said = make(chan string, 256)
	p, err = s.Start(Spec{Name: "p", Argv: []string{os.Args[0]}, Env: []string{"ROLE=sockets"}, Output: func(_, line string) { said <- line }})
	if err != nil {
		t.Fatal(err)
	}
	until(t, p.Done(), "end")
	close(said)
	if len(said) != len(sockets()) {
		t.Errorf("%d lines are said", len(said))
	}
	for line := range said {
		what, got, _ := strings.Cut(line, ": ")
		if want, ok := sockets()[what]; !ok || got != fmt.Sprint(want.err) {
			t.Errorf("%s: %s, want %v", what, got, want.err)
		}
	}
	// Whom a program runs as.
	said = make(chan string, 256)
	p, err = s.Start(Spec{Name: "p", Argv: []string{"id"}, User: &User{61001, 61002, []uint32{61003}}, Output: func(_, line string) { said <- line }})
	if err != nil {
		t.Fatal(err)
	}
	until(t, p.Done(), "end")
	if line := <-said; line != "uid=61001 gid=61002 groups=61002,61003" {
		t.Error(line)
	}
}
