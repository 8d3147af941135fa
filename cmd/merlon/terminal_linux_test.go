package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// openTerminal opens a pseudo-terminal: what is written to tty is read from
// screen.
func openTerminal(t *testing.T) (screen, tty *os.File) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no pseudo-terminal here: ", err)
	}
	t.Cleanup(func() { screen.Close() })
	if err := unix.IoctlSetPointerInt(int(screen.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(screen.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	return screen, tty
}

// onTerminal runs merlon on a terminal and returns what that shows, with the
// escape character written as ^[.
func onTerminal(t *testing.T, dir string, env []string, args ...string) string {
	t.Helper()
	screen, tty := openTerminal(t)
	c := exec.Command("merlon", args...)
	c.Dir, c.Stdout, c.Stderr = dir, tty, tty
	c.Env = append(append(os.Environ(), "TZ=UTC", "TERM=xterm", "NO_COLOR="), env...)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	tty.Close()
	shown, _ := io.ReadAll(screen) // ends with EIO when the program has gone
	c.Wait()
	return strings.NewReplacer("\r\n", "\n", "\x1b", "^[").Replace(string(shown))
}

// TestTerminal: colours, and the forms that only people get.
func TestTerminal(t *testing.T) {
	t.Parallel()
	dir := workspace(t)
	var all strings.Builder
	for _, args := range [][]string{
		{"check", "broken"},
		{"check", "examples/shop"},
		{"graph", "examples/shop"},
		{"can", "web -> orders.createOrder", "examples/shop"},
		{"can", "web -> payments.getCharge", "examples/shop"},
		{"can", "web -> catalog GET /products?limit=500", "examples/shop"},
		{"plan", "examples/shop", "next"},
		{"status", "examples/shop"},
		{"status", "stopped"},
		{"record", "tail", "-n", "3", "examples/shop"},
	} {
		fmt.Fprintf(&all, "$ merlon %s\n%s\n", strings.Join(args, " "), onTerminal(t, dir, nil, args...))
	}
	golden(t, filepath.Join("testdata", "terminal.golden"), all.String())

	if plain := onTerminal(t, dir, []string{"NO_COLOR=1"}, "can", "web -> payments.getCharge", "examples/shop"); strings.Contains(plain, "^[") {
		t.Errorf("colours in spite of NO_COLOR:\n%s", plain)
	}
}

// TestTerminalHalf: a stream that is no terminal gets no colours because the
// other one is.
func TestTerminalHalf(t *testing.T) {
	t.Parallel()
	screen, tty := openTerminal(t)
	go io.Copy(io.Discard, screen)
	c := exec.Command("merlon", "check", "broken")
	var stderr strings.Builder
	c.Dir, c.Stdout, c.Stderr = workspace(t), tty, &stderr
	c.Env = append(os.Environ(), "TERM=xterm", "NO_COLOR=")
	c.Run()
	if got := stderr.String(); strings.Contains(got, "\x1b") || !strings.Contains(got, "wbe") {
		t.Errorf("%q", got)
	}
}
