package capture

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Namespace is a network namespace, held open so that its name cannot come to
// mean another one meanwhile.
type Namespace struct {
	name string
	file *os.File
}

// OpenNamespace opens the namespace of a process, of a file, or of a name that
// ip netns knows; "" is the current one.
func OpenNamespace(name string) (*Namespace, error) {
	path := name
	switch _, err := strconv.ParseUint(name, 10, 31); {
	case name == "":
		name, path = "this network namespace", "/proc/thread-self/ns/net"
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
	n := &Namespace{name, f}
	if kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		f.Close()
		return nil, fmt.Errorf("%s is no network namespace", path)
	}
	return n, nil
}

// Close lets go of the namespace.
func (n *Namespace) Close() error { return n.file.Close() }

// String names the namespace for people.
func (n *Namespace) String() string { return n.name }

// Host reports whether it is the namespace of the first process of the host, or
// of what this process sees of it.
func (n *Namespace) Host() bool {
	here, err := n.file.Stat()
	if err != nil {
		return true
	}
	// The first process's cannot always be seen; then the one that this process
	// is in is taken for it.
	for _, name := range []string{"/proc/1/ns/net", "/proc/thread-self/ns/net"} {
		if first, err := os.Stat(name); err == nil {
			return os.SameFile(first, here)
		}
	}
	return true
}

// Do runs f on a thread that is in the namespace; sockets that f makes, and
// programs that it starts, are too. Goroutines that f starts are not.
func (n *Namespace) Do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- privileged(fmt.Errorf("%s cannot be entered: %w", n, err))
			return
		}
		done <- f()
	}()
	return <-done
}

// ErrPrivilege is for who may not change what the network of a namespace does.
var ErrPrivilege = errors.New("root is needed, with CAP_NET_ADMIN and CAP_SYS_ADMIN")

func privileged(err error) error {
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
		return fmt.Errorf("%w: %w", ErrPrivilege, err)
	}
	return err
}

// Add puts rules in force in place of those that are there, reads them back and
// tries them.
func Add(ctx context.Context, n *Namespace, r Rules) (Proof, error) {
	if err := r.check(); err != nil {
		return Proof{}, err
	}
	text, err := r.transaction()
	if err != nil {
		return Proof{}, err
	}
	if _, err := n.nft(ctx, text, "-j", "-f", "-"); err != nil {
		return Proof{}, err
	}
	return Verify(ctx, n, r)
}

// Remove removes the rules, and reports whether there were any.
func Remove(ctx context.Context, n *Namespace) (bool, error) {
	_, err := n.list(ctx)
	if errors.Is(err, errNoTable) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	text, err := json.Marshal(object{"nftables": removal()})
	if err != nil {
		return false, err
	}
	_, err = n.nft(ctx, text, "-j", "-f", "-")
	return err == nil, err
}

// Addresses that are nobody's (RFC 5737, RFC 3849). The port is that of discard.
var nowhere = [2]string{"192.0.2.1:9", "[2001:db8::1]:9"}

// Verify compares the rules that are in force with r, and tries them with
// connections that lead nowhere.
func Verify(ctx context.Context, n *Namespace, r Rules) (Proof, error) {
	var p Proof
	if err := r.check(); err != nil {
		return p, err
	}
	before, err := n.list(ctx)
	if err == nil {
		err = r.differs(before)
	}
	if err != nil {
		return p, fmt.Errorf("%s: %w", n, err)
	}
	for i, outcome := range []*Outcome{&p.IPv4, &p.IPv6} {
		if *outcome, err = n.try(ctx, nowhere[i]); err != nil {
			return p, err
		}
		after, err := n.list(ctx)
		if err != nil {
			return p, err
		}
		if *outcome != NoRoute && after.captured == before.captured {
			return p, fmt.Errorf("%s: a connection to %s was not captured: does another table of nftables come first?", n, nowhere[i])
		}
		before = after
	}
	return p, nil
}

// try opens a connection as a program of the namespace would.
func (n *Namespace) try(ctx context.Context, address string) (o Outcome, err error) {
	if os.Geteuid() != 0 {
		return 0, ErrPrivilege // the gate's own user would not be captured
	}
	err = n.Do(func() error {
		d := net.Dialer{Timeout: 3 * time.Second, FallbackDelay: -1}
		c, err := d.DialContext(ctx, "tcp", address)
		switch {
		case err == nil:
			o = Taken
			c.Close()
		case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EADDRNOTAVAIL),
			errors.Is(err, syscall.EAFNOSUPPORT), errors.Is(err, syscall.ENETDOWN):
			o = NoRoute
		case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
			o = NoGate
		default:
			return fmt.Errorf("%s: a connection to %s was not captured: %w", n, address, err)
		}
		return nil
	})
	return o, err
}

// list lists the table.
func (n *Namespace) list(ctx context.Context) (listed, error) {
	text, err := n.nft(ctx, nil, "-j", "-n", "list", "table", "inet", Table)
	if err != nil {
		return listed{}, err
	}
	return read(text)
}

// nft runs the program in the namespace.
func (n *Namespace) nft(ctx context.Context, in []byte, args ...string) ([]byte, error) {
	program, err := exec.LookPath("nft")
	if err != nil {
		program = "/usr/sbin/nft" // which the paths of users often leave out
		if _, serr := os.Stat(program); serr != nil {
			return nil, errors.New("the program nft is not here: install nftables")
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var out, says bytes.Buffer
	err = n.Do(func() error {
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &says
		return cmd.Run()
	})
	if err == nil {
		return out.Bytes(), nil
	}
	text := strings.TrimSpace(says.String())
	switch {
	case errors.Is(err, ErrPrivilege):
		return nil, err
	case strings.Contains(text, "Operation not permitted"):
		return nil, fmt.Errorf("%w: nft: %s", ErrPrivilege, text)
	case len(in) == 0 && strings.Contains(text, "No such file or directory"):
		return nil, errNoTable
	}
	return nil, fmt.Errorf("%s: nft: %w: %s", n, err, text)
}
