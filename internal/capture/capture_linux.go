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
	"strings"
	"syscall"
	"time"
)

// ErrPrivilege is for who may not change what the network of a namespace does.
var ErrPrivilege = errors.New("root is needed, with CAP_NET_ADMIN and CAP_SYS_ADMIN")

// within runs f on a thread that is in the namespace.
func within(n Namespace, f func() error) error {
	inside := false
	err := n.Do(func() error { inside = true; return f() })
	if !inside && (errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES)) {
		return fmt.Errorf("%w: %w", ErrPrivilege, err)
	}
	return err
}

// Add puts rules in force in place of those that are there, reads them back and
// tries them.
func Add(ctx context.Context, n Namespace, r Rules) (Proof, error) {
	if err := r.check(); err != nil {
		return Proof{}, err
	}
	text, err := r.transaction()
	if err != nil {
		return Proof{}, err
	}
	if _, err := nft(ctx, n, text, "-j", "-f", "-"); err != nil {
		return Proof{}, err
	}
	return Verify(ctx, n, r)
}

// Remove removes the rules, and reports whether there were any.
func Remove(ctx context.Context, n Namespace) (bool, error) {
	_, err := list(ctx, n)
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
	_, err = nft(ctx, n, text, "-j", "-f", "-")
	return err == nil, err
}

// Addresses that are nobody's (RFC 5737, RFC 3849). The port is that of discard.
var nowhere = [2]string{"192.0.2.1:9", "[2001:db8::1]:9"}

// Verify compares the rules that are in force with r, and tries them with
// connections that lead nowhere.
func Verify(ctx context.Context, n Namespace, r Rules) (Proof, error) {
	var p Proof
	if err := r.check(); err != nil {
		return p, err
	}
	before, err := list(ctx, n)
	if err == nil {
		err = r.differs(before)
	}
	if err != nil {
		return p, fmt.Errorf("%s: %w", n, err)
	}
	for i, outcome := range []*Outcome{&p.IPv4, &p.IPv6} {
		if *outcome, err = try(ctx, n, nowhere[i]); err != nil {
			return p, err
		}
		after, err := list(ctx, n)
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
func try(ctx context.Context, n Namespace, address string) (o Outcome, err error) {
	if os.Geteuid() != 0 {
		return 0, ErrPrivilege // the gate's own user would not be captured
	}
	err = within(n, func() error {
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
func list(ctx context.Context, n Namespace) (listed, error) {
	text, err := nft(ctx, n, nil, "-j", "-n", "list", "table", "inet", Table)
	if err != nil {
		return listed{}, err
	}
	return read(text)
}

// nft runs the program in the namespace.
func nft(ctx context.Context, n Namespace, in []byte, args ...string) ([]byte, error) {
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
	err = within(n, func() error {
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
