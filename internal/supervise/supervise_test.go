package supervise

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The test binary plays the programs: ROLE says which.
func TestMain(m *testing.M) {
	switch os.Getenv("ROLE") {
	case "":
		os.Exit(m.Run())
	case "print":
		fmt.Println("one")
		fmt.Fprintln(os.Stderr, "two")
		fmt.Println(strings.Repeat("x", maxLine+3))
		fmt.Print("no end")
		os.Exit(3)
	case "listen": // until asked to stop
		asked := make(chan os.Signal, 1)
		signal.Notify(asked, syscall.SIGTERM)
		listen()
		<-asked
		fmt.Println("bye")
	case "deaf": // does not stop when asked to
		signal.Ignore(syscall.SIGTERM)
		listen()
		select {}
	case "family": // has a child, which listens, and ends when asked to
		child := exec.Command(os.Args[0])
		child.Env = []string{"ROLE=deaf"}
		child.Stdout = os.Stdout
		if err := child.Start(); err != nil {
			panic(err)
		}
		asked := make(chan os.Signal, 1)
		signal.Notify(asked, syscall.SIGTERM)
		<-asked
	case "sockets":
		playSockets()
	case "supervisor": // runs a program until it is killed itself
		s := New()
		if _, err := s.Start(Spec{Name: "p", Argv: []string{os.Args[0]}, Env: []string{"ROLE=deaf"}, Output: func(_, line string) { fmt.Println(line) }}); err != nil {
			panic(err)
		}
		select {}
	}
}

// listen prints an address where connections live as long as the process.
func listen() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(l.Addr())
	go func() {
		for {
			if _, err := l.Accept(); err != nil { // kept open until the end
				return
			}
		}
	}()
}

func role(name string) Spec {
	return Spec{Name: name, Argv: []string{os.Args[0]}, Env: []string{"ROLE=" + name}}
}

// until fails the test when c gives nothing for long.
func until[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(20 * time.Second):
		t.Fatalf("%s: nothing happened", what)
		panic("unreachable")
	}
}

// follow returns a connection to addr and a channel that closes when the
// process behind it is gone.
func follow(t *testing.T, addr string) <-chan struct{} {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	gone := make(chan struct{})
	go func() {
		io.Copy(io.Discard, c)
		close(gone)
	}()
	return gone
}

func TestOutputAndExit(t *testing.T) {
	t.Parallel()
	s := New()
	defer s.Close()
	var got []string
	exits := make(chan Exit, 1)
	spec := role("print")
	spec.Output = func(name, line string) { got = append(got, name+"|"+line) }
	spec.Exited = func(e Exit) { exits <- e }
	p, err := s.Start(spec)
	if err != nil {
		t.Fatal(err)
	}
	e := until(t, exits, "exit")
	until(t, p.Done(), "done")
	if e.Name != "print" || e.Code != 3 || e.Err == nil || e.Again != 0 {
		t.Errorf("exit is %+v", e)
	}
	want := []string{"print|one", "print|two", "print|" + strings.Repeat("x", maxLine), "print|xxx", "print|no end"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("output is %.200q", got)
	}
	if p.PID() != 0 || p.Last().Code != 3 {
		t.Errorf("after its end: pid %d, last %+v", p.PID(), p.Last())
	}
}

func TestNothingIsInherited(t *testing.T) {
	t.Parallel()
	s := New()
	defer s.Close()
	lines := make(chan string, 64)
	p, err := s.Start(Spec{Name: "env", Argv: []string{"env"}, Output: func(_, l string) { lines <- l }})
	if err != nil {
		t.Skipf("SKIPPED, no env program: %v", err)
	}
	until(t, p.Done(), "env")
	close(lines)
	for l := range lines {
		t.Errorf("the program has %q in its environment", l)
	}
}

func TestStop(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		role string
		code int
	}{{"listen", 0}, {"deaf", -1}, {"family", -1}} {
		t.Run(tc.role, func(t *testing.T) {
			t.Parallel()
			s := New()
			defer s.Close()
			lines := make(chan string, 8)
			spec := role(tc.role)
			spec.Grace = 200 * time.Millisecond
			if tc.role == "listen" {
				spec.Grace = 20 * time.Second
			}
			spec.Output = func(_, l string) { lines <- l }
			p, err := s.Start(spec)
			if err != nil {
				t.Fatal(err)
			}
			addr := until(t, lines, "address")
			if err := p.WaitTCP(t.Context(), addr); err != nil {
				t.Fatal(err)
			}
			gone := follow(t, addr)
			p.Stop()
			until(t, gone, "end of the process that listens")
			if got := p.Last().Code; got != tc.code && tc.role != "family" {
				t.Errorf("exit code %d, want %d", got, tc.code)
			}
			if tc.role == "listen" {
				if l := until(t, lines, "last words"); l != "bye" {
					t.Errorf("last line %q", l)
				}
			}
		})
	}
}

// Whatever happens to the supervisor's process, its programs end with it.
func TestProgramsDieWithTheSupervisor(t *testing.T) {
	t.Parallel()
	if err := deathSignal(); err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = []string{"ROLE=supervisor"}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	gone := follow(t, strings.TrimSpace(addr))
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	until(t, gone, "end of the program")
}

func TestRestart(t *testing.T) {
	t.Parallel()
	s := New()
	defer s.Close()
	exits := make(chan Exit, 16)
	spec := role("print")
	spec.Restart = &Restart{Min: time.Millisecond, Max: 4 * time.Millisecond, Steady: time.Hour}
	spec.Exited = func(e Exit) {
		select {
		case exits <- e:
		default:
		}
	}
	p, err := s.Start(spec)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []time.Duration{1, 2, 4, 4} {
		if e := until(t, exits, "exit"); e.Again != want*time.Millisecond {
			t.Errorf("started again after %v, want %v", e.Again, want*time.Millisecond)
		}
	}
	p.Stop()
	if e := p.Last(); e.Name != "print" {
		t.Errorf("last exit is %+v", e)
	}
}

// A program that has run for long is started again at once, however often it
// failed before.
func TestRestartAfterSteadyRun(t *testing.T) {
	t.Parallel()
	s := New()
	defer s.Close()
	exits, lines := make(chan Exit, 1), make(chan string, 1)
	spec := role("listen")
	spec.Restart = &Restart{Min: time.Millisecond, Max: time.Hour, Steady: time.Nanosecond}
	spec.Exited = func(e Exit) { exits <- e }
	spec.Output = func(_, l string) { lines <- l }
	p, err := s.Start(spec)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		until(t, lines, "address")
		syscall.Kill(p.PID(), syscall.SIGKILL)
		if e := until(t, exits, "exit"); e.Again != time.Millisecond || e.Code != -1 {
			t.Errorf("exit is %+v", e)
		}
	}
	go func() { // Stop's own end is reported too
		for range exits {
		}
	}()
	p.Stop()
	close(exits)
}

func TestWaitTCP(t *testing.T) {
	t.Parallel()
	s := New()
	defer s.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	if err := CheckFree(addr); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a port in use: %v", err)
	}
	free.Close()
	if err := CheckFree(addr); err != nil {
		t.Errorf("a free port: %v", err)
	}
	p, err := s.Start(role("print"))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.WaitTCP(t.Context(), addr); err == nil || !strings.Contains(err.Error(), "print ended before it listened on "+addr+": exit status 3") {
		t.Errorf("a program that ends: %v", err)
	}
	deaf := role("deaf")
	deaf.Grace = time.Millisecond
	p, err = s.Start(deaf)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if err := p.WaitTCP(ctx, addr); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a program that never listens: %v", err)
	}
}

func TestCannotStart(t *testing.T) {
	t.Parallel()
	s := New()
	for _, spec := range []Spec{
		{Name: "x"},
		{Name: "x", Argv: []string{"/nonexistent/program"}},
		{Name: "x", Argv: []string{os.Args[0]}, Dir: "/nonexistent/dir"},
	} {
		if _, err := s.Start(spec); err == nil || !strings.Contains(err.Error(), "x") {
			t.Errorf("%v: %v", spec, err)
		}
	}
	s.Close()
	s.Close()
	if _, err := s.Start(role("print")); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// Close ends what is running and waiting to run, from any goroutine.
func TestCloseUnderLoad(t *testing.T) {
	t.Parallel()
	s := New()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			spec := role("print")
			spec.Restart = &Restart{Min: time.Hour, Max: time.Hour}
			if _, err := s.Start(spec); err != nil && !errors.Is(err, ErrClosed) {
				t.Error(err)
			}
		})
	}
	s.Close()
	wg.Wait()
	if len(s.procs) != 0 {
		t.Errorf("%d programs are left", len(s.procs))
	}
}
