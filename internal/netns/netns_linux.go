package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Namespace is a network namespace, held open so that its name cannot come to
// mean another one meanwhile.
type Namespace struct {
	name   string
	file   *os.File
	home   *os.File      // where threads come from and go back to
	inside chan struct{} // holds one for each thread that is there
}

// own is the namespace of the calling thread.
const own = "/proc/thread-self/ns/net"

// Open opens the namespace of a process, of a file, or of a name that ip netns
// knows; "" is the current one.
func Open(name string) (*Namespace, error) {
	path := name
	switch _, err := strconv.ParseUint(name, 10, 31); {
	case name == "":
		name, path = "this network namespace", own
	case err == nil:
		path = "/proc/" + name + "/ns/net"
		name = "the network namespace of process " + name
	case !strings.ContainsRune(name, '/'):
		path = filepath.Join("/run/netns", name)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be opened: %w", name, err)
	}
	if kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		f.Close()
		return nil, fmt.Errorf("%s is no network namespace", path)
	}
	home, err := os.Open(own)
	if err != nil {
		f.Close()
		return nil, err
	}
	return hold(name, f, home), nil
}

// New makes a namespace in which nothing but the loopback interface is there.
// The name is for people.
func New(name string) (*Namespace, error) {
	home, err := os.Open(own)
	if err != nil {
		return nil, err
	}
	here := hold("", home, home)
	var f *os.File
	err = here.on(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		if err := raise("lo"); err != nil {
			return err
		}
		f, err = os.Open(own)
		return err
	})
	if err != nil {
		home.Close()
		return nil, fmt.Errorf("%s cannot be made: %w", name, err)
	}
	return hold(name, f, home), nil
}

func hold(name string, file, home *os.File) *Namespace {
	return &Namespace{name, file, home, make(chan struct{}, maxInside)}
}

// raise switches a network interface of the thread's namespace on.
func raise(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, r); err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	r.SetUint16(r.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	return nil
}

// Close lets go of the namespace.
func (n *Namespace) Close() error {
	if n == nil {
		return nil
	}
	return errors.Join(n.file.Close(), n.home.Close())
}

// String names the namespace for people.
func (n *Namespace) String() string {
	if n == nil {
		return "the network of this host"
	}
	return n.name
}

// Path is a file that leads other processes of the same user to the namespace,
// for as long as this process holds it; "" for nil.
func (n *Namespace) Path() string {
	if n == nil {
		return ""
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd())
}

// Host reports whether it is the namespace of the first process of the host, or
// of what this process sees of it.
func (n *Namespace) Host() bool {
	if n == nil {
		return true
	}
	here, err := n.file.Stat()
	if err != nil {
		return true
	}
	// The first process's cannot always be seen; then the one that this process
	// is in is taken for it.
	for _, name := range []string{"/proc/1/ns/net", own} {
		if first, err := os.Stat(name); err == nil {
			return os.SameFile(first, here)
		}
	}
	return true
}

func (n *Namespace) do(ctx context.Context, f func() error) error {
	if n == nil {
		return f()
	}
	select {
	case n.inside <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-n.inside }()
	return n.on(func() error {
		if err := n.enter(n.file); err != nil {
			return err
		}
		return f()
	})
}

// on runs f, which may take the thread elsewhere, on a thread that is no other
// goroutine's before it is back.
func (n *Namespace) on(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := f()
		if n.enter(n.home) == nil {
			runtime.UnlockOSThread()
		} // else the thread ends with the goroutine: nobody may come upon it
		done <- err
	}()
	return <-done
}

// Start runs f, which starts a program, on the calling thread, to which the
// goroutine is locked: the program is then a child of this thread. A thread that
// could not come back would stay where less can be reached.
func (n *Namespace) Start(f func() error) error {
	if n == nil {
		return f()
	}
	if err := n.enter(n.file); err != nil {
		return err
	}
	defer n.enter(n.home)
	return f()
}

// enter takes the calling thread there. The descriptor is kept from being closed,
// and its number from meaning another namespace, meanwhile.
func (n *Namespace) enter(f *os.File) error {
	raw, err := f.SyscallConn()
	if err == nil {
		if cerr := raw.Control(func(fd uintptr) { err = unix.Setns(int(fd), unix.CLONE_NEWNET) }); cerr != nil {
			err = cerr
		}
	}
	if err != nil {
		return fmt.Errorf("%s cannot be entered: %w", n, err)
	}
	return nil
}
