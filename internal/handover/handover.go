//go:build unix

// Package handover passes the listening sockets of a process to the process
// that takes its place. Both share the sockets for a while, so a connection
// that waits to be accepted is lost by neither end.
//
// The sockets travel as inherited descriptors, as those that systemd gives do.
// Everything is named: the next process claims what it wants by name and
// address, and may be another version of the program.
package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Variable is the environment variable by which a process learns what it
// inherits: see Inherit.
const Variable = "MERLON_HANDOVER"

// firstDescriptor is the first that a process may inherit beyond standard
// input, output and error, for us as for systemd (sd_listen_fds(3)).
const firstDescriptor = 3

// Bounds on what is inherited.
const (
	maxSockets = 1024
	maxState   = 64 << 20 // bytes
)

// Sockets are the listening sockets of a process. Their methods are safe for
// concurrent use. The zero Sockets has inherited nothing.
type Sockets struct {
	mu    sync.Mutex
	given []socket // inherited, and not yet claimed
	open  []socket
	state []byte
	ready *os.File // to tell the process before that this one serves; nil without one
}

type socket struct {
	name    string
	address string // as it was asked for; "" fits any
	*net.TCPListener
}

// manifest is the value of Variable. The descriptors are those of the sockets,
// in order, then a pipe with the state, then one to say ready by.
type manifest struct {
	Parent  int     `json:"parent"`
	Sockets []entry `json:"sockets"`
}

type entry struct {
	Name    string `json:"name"`
	Address string `json:"address"`
}

// Inherit takes what the process parent has handed over; manifest is the value
// of Variable. If that is meant for another process, nothing is touched.
func Inherit(value string, parent int) (*Sockets, error) {
	var m manifest
	if err := json.Unmarshal([]byte(value), &m); err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w", Variable, err)
	}
	if m.Parent != parent {
		return nil, fmt.Errorf("%s is of process %d; this one was started by %d", Variable, m.Parent, parent)
	}
	s := new(Sockets)
	if err := s.adopt(m.Sockets); err != nil {
		return nil, err
	}
	next := uintptr(firstDescriptor + len(m.Sockets))
	state := os.NewFile(next, "state")
	defer state.Close()
	var err error
	if s.state, err = io.ReadAll(io.LimitReader(state, maxState+1)); err != nil || len(s.state) > maxState {
		s.Discard()
		return nil, fmt.Errorf("the state that was handed over cannot be read: %w", errors.Join(err, errTooLarge(len(s.state))))
	}
	s.ready = os.NewFile(next+1, "ready")
	syscall.CloseOnExec(int(next + 1))
	return s, nil
}

func errTooLarge(n int) error {
	if n <= maxState {
		return nil
	}
	return fmt.Errorf("it is larger than %d bytes", maxState)
}

// FromSystemd takes the sockets that systemd gives to the process self, from
// the values of LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES (sd_listen_fds(3)).
// Each fits any address that is asked for by its name.
func FromSystemd(pid, count, names string, self int) (*Sockets, error) {
	if pid != strconv.Itoa(self) {
		return new(Sockets), nil // meant for another process
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 || n > maxSockets {
		return nil, fmt.Errorf("LISTEN_FDS is %q", count)
	}
	list := strings.Split(names, ":")
	if n > 0 && len(list) != n {
		return nil, fmt.Errorf("LISTEN_FDS is %d, LISTEN_FDNAMES names %d: give each socket its FileDescriptorName", n, len(list))
	}
	entries := make([]entry, n)
	for i := range entries {
		entries[i].Name = list[i]
	}
	s := new(Sockets)
	return s, s.adopt(entries)
}

// adopt takes inherited descriptors. Each must be a listening TCP socket.
func (s *Sockets) adopt(entries []entry) error {
	if len(entries) > maxSockets {
		return fmt.Errorf("%d sockets are more than %d", len(entries), maxSockets)
	}
	for i, e := range entries {
		f := os.NewFile(uintptr(firstDescriptor+i), e.Name)
		l, err := listener(f)
		f.Close() // a copy without close-on-exec
		if err != nil {
			s.Discard()
			return fmt.Errorf("the inherited socket %q: %w", e.Name, err)
		}
		s.given = append(s.given, socket{e.Name, e.Address, l})
	}
	return nil
}

func listener(f *os.File) (*net.TCPListener, error) {
	accepts, err := syscall.GetsockoptInt(int(f.Fd()), syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN)
	if err != nil {
		return nil, os.NewSyscallError("getsockopt", err)
	}
	if accepts == 0 {
		return nil, errors.New("it does not listen")
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("it is a %T, not one of TCP", l)
	}
	return tcp, nil
}

// Listen returns the socket that was inherited for name and address, or a new
// one. It is handed on by Pass for as long as it is not closed.
func (s *Sockets) Listen(name, address string) (net.Listener, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.given, func(g socket) bool {
		return g.name == name && (g.address == "" || g.address == address)
	})
	if i >= 0 {
		l := s.given[i].TCPListener
		s.given = slices.Delete(s.given, i, i+1)
		s.open = append(s.open, socket{name, address, l})
		return l, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	s.open = append(s.open, socket{name, address, l.(*net.TCPListener)})
	return l, nil
}

// Discard closes what was inherited and is not claimed, and returns its names:
// nobody would ever accept there.
func (s *Sockets) Discard() (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.given {
		names = append(names, g.name)
		g.Close()
	}
	s.given = nil
	return names
}

// Heir reports whether another process waits for this one to be Ready.
func (s *Sockets) Heir() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready != nil
}

// State is what the process before gave to Pass.
func (s *Sockets) State() []byte { return s.state }

// Ready tells the process before that this one takes its place. An error means
// that it must not: the other one has given up waiting, and serves on.
func (s *Sockets) Ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ready == nil {
		return nil
	}
	_, err := s.ready.WriteString(readyLine)
	err = errors.Join(err, s.ready.Close())
	s.ready, s.state = nil, nil
	return err
}

const readyLine = "ready\n"

// Pass starts cmd as the process that takes this one's place, with all sockets
// that are open, and waits until it is Ready. If that fails, or ctx ends first,
// the new process is killed, and nothing has changed for this one.
func (s *Sockets) Pass(ctx context.Context, cmd *exec.Cmd, state []byte) error {
	files, entries := s.files()
	defer closeAll(files)
	stateR, stateW, err := os.Pipe()
	if err != nil {
		return err
	}
	readyR, readyW, err := os.Pipe()
	if err != nil {
		closeAll([]*os.File{stateR, stateW})
		return err
	}
	defer readyR.Close()
	value, err := json.Marshal(manifest{os.Getpid(), entries})
	if err == nil {
		cmd.ExtraFiles = append(files, stateR, readyW)
		cmd.Env = append(without(cmd.Env), Variable+"="+string(value))
		err = cmd.Start()
	}
	closeAll([]*os.File{stateR, readyW})
	if err != nil {
		stateW.Close()
		return err
	}
	go func() {
		stateW.Write(state) // fails when the process ends, which shows elsewhere
		stateW.Close()
	}()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // also later, so that no zombie is left
	if err = awaitReady(ctx, readyR); err == nil {
		return nil
	}
	cmd.Process.Kill()
	if end := <-ended; errors.Is(err, io.EOF) {
		return fmt.Errorf("the new process ended before it was ready: %w", cmpErr(end))
	}
	return fmt.Errorf("the new process did not become ready: %w", err)
}

// cmpErr is how a process ended that should not have.
func cmpErr(end error) error {
	if end == nil {
		return errors.New("exit status 0")
	}
	return end
}

// awaitReady reads the line that Ready writes.
func awaitReady(ctx context.Context, r *os.File) error {
	stop := context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line := make([]byte, len(readyLine))
	switch _, err := io.ReadFull(r, line); {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return io.EOF
	case string(line) != readyLine:
		return fmt.Errorf("it said %q", line)
	}
	return nil
}

// files are copies of all open sockets, which stay as they are.
func (s *Sockets) files() (files []*os.File, entries []entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = slices.DeleteFunc(s.open, func(o socket) bool {
		f, err := o.duplicate()
		if err != nil {
			return true // it was closed
		}
		files = append(files, f)
		entries = append(entries, entry{o.name, o.address})
		return false
	})
	return files, entries
}

// duplicate is another descriptor of the socket. That of File would not do: to
// be inherited it is set to block, and with it the socket itself, here and in
// the next process. An Accept that blocks ends with the next client, if there
// ever is one, and Close waits for it.
func (o *socket) duplicate() (*os.File, error) {
	raw, err := o.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var failed error
	if err := raw.Control(func(s uintptr) { fd, failed = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if failed != nil {
		return nil, failed
	}
	return os.NewFile(uintptr(fd), o.name), nil
}

// without is an environment without what was meant for this process alone.
func without(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(e string) bool {
		name, _, _ := strings.Cut(e, "=")
		return name == Variable || name == "LISTEN_PID" || name == "LISTEN_FDS" || name == "LISTEN_FDNAMES"
	})
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// Notify tells a service manager a state such as "READY=1"; address is the
// value of NOTIFY_SOCKET (sd_notify(3)). Without one it does nothing.
func Notify(address, state string) error {
	if address == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: address, Net: "unixgram"}) // "@" is the abstract namespace
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte(state))
	return err
}
