// Package peertest runs real programs as peers of a test: as child processes,
// on loopback addresses of their own.
package peertest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// Find is the path of a program. The test is skipped if it is not installed;
// why says what is lost then, and from is where programs come from.
func Find(t testing.TB, program, from, why string) (path string) {
	t.Helper()
	// Debian keeps servers out of users' PATH.
	for _, name := range []string{program, "/usr/sbin/" + program} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skipf("SKIPPED: %s is not installed (%s), so %s", program, from, why)
	return ""
}

// Address is free to listen on. Between its choice and its use somebody else
// could take a port of 127.0.0.1, or still mean a server that was there before;
// where the system has more loopback addresses than one, nobody knows this one.
func Address(t testing.TB) string {
	t.Helper()
	own := fmt.Sprintf("127.%d.%d.%d:0", 1+rand.IntN(250), rand.IntN(256), 1+rand.IntN(250))
	l, err := net.Listen("tcp", own)
	if err != nil {
		l, err = net.Listen("tcp", "127.0.0.1:0")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Start runs a program until the end of the test, and waits until it listens at
// address. heard is given each line of its output, one at a time; it may be nil.
func Start(t testing.TB, address string, heard func(line string), program string, args ...string) {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.WaitDelay = 10 * time.Second
	said := &lines{heard: heard}
	cmd.Stdout, cmd.Stderr = said, said // the same: exec then writes from one goroutine
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("%s said:\n%s", program, said.tail())
		}
	})
	for deadline := time.Now().Add(20 * time.Second); ; {
		c, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			c.Close()
			return
		}
		select {
		case <-ended:
			err = errors.New("it has ended")
		case <-time.After(10 * time.Millisecond):
			if time.Now().Before(deadline) {
				continue
			}
		}
		t.Fatalf("%s does not listen at %s: %v\n%s", program, address, err, said.tail())
	}
}

// lines cuts what is written to it into lines, and keeps the last of them.
type lines struct {
	heard func(string)
	mu    sync.Mutex
	part  string
	last  []string
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.part += string(b)
	for {
		line, rest, whole := strings.Cut(l.part, "\n")
		if !whole {
			return len(b), nil
		}
		l.part = rest
		l.last = append(l.last[max(0, len(l.last)-40):], line)
		if l.heard != nil {
			l.heard(line)
		}
	}
}

func (l *lines) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(append(l.last, l.part), "\n")
}
