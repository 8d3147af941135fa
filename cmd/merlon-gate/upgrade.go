package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	// upgradeTime is how long a new process may take to become ready.
	upgradeTime = 30 * time.Second
	// patience is how long idle clients have to learn, by the answer to their
	// next request, that their connection ends.
	patience = 10 * time.Second
)

// heir is a process that is to take this one's place.
type heir struct {
	cmd   *exec.Cmd
	ready chan error // one: nil when it has taken it
}

// program is the file this process was started from, by the name it was
// started by: behind it there may be another version by now.
func program() (string, error) {
	name := os.Args[0]
	if !strings.ContainsRune(name, filepath.Separator) {
		found, err := exec.LookPath(name)
		if err != nil {
			return "", fmt.Errorf("where this program is: %w", err)
		}
		name = found
	}
	return filepath.Abs(name)
}

// upgrade starts the program anew, with the same arguments, these sockets and
// the orders in force. Until it is ready nothing changes here.
func (s *server) upgrade(ctx context.Context) *heir {
	if os.Getpid() == 1 {
		// The end of process 1 is the end of its container, and of the heir.
		s.log.Error("upgrade refused: process 1 cannot be replaced; start another container instead")
		return nil
	}
	orders := *s.orders // the gate reads the others
	state, err := orders.Encode()
	if err != nil {
		s.log.Error("upgrade refused", "error", err)
		return nil
	}
	h := &heir{cmd: exec.Command(s.program, os.Args[1:]...), ready: make(chan error, 1)}
	h.cmd.Env, h.cmd.Stdout, h.cmd.Stderr = os.Environ(), os.Stdout, os.Stderr
	s.log.Info("upgrade: starting the program anew", "program", s.program)
	go func() {
		ctx, cancel := context.WithTimeout(ctx, upgradeTime)
		defer cancel()
		h.ready <- s.sockets.Pass(ctx, h.cmd, state)
	}()
	return h
}

// outlive ends this process, whose place next has taken, when its calls have
// ended.
func (s *server) outlive(next *heir, stop <-chan os.Signal) error {
	s.notify(fmt.Sprintf("MAINPID=%d", next.cmd.Process.Pid))
	s.log.Info("upgrade: the new process serves; calls in progress are finished here", "pid", next.cmd.Process.Pid)
	if s.admin != nil {
		s.admin.Close()
	}
	return s.drain(patience, s.opt.outlive, stop)
}
