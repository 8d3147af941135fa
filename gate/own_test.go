package gate_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"merlon"
	"merlon/internal/sockowner"
	"merlon/record"
)

const ownIntent = `
trustDomain: own.example
services:
  web: {operations: {home: GET /}}
  orders: {operations: {list: GET /orders}, callers: {web: all}}
`

// TestDialOwn: the own service alone is dialed where it is, which may be in
// another network namespace.
func TestDialOwn(t *testing.T) {
	t.Parallel()
	for _, protocol := range []string{"http", "http2"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			dialed := make(chan string, 16)
			e := setup{apps: map[string]http.Handler{"orders": http.HandlerFunc(hello)},
				dialOwn: func(ctx context.Context, service, address string) (net.Conn, error) {
					dialed <- service + " at " + address
					return new(net.Dialer).DialContext(ctx, "tcp", address)
				}}.start(t, strings.Replace(ownIntent, "orders: {", "orders: {protocol: "+protocol+", ", 1))
			for range 2 {
				if a := do(t, e.as("web"), "GET", "http://orders/orders"); a.status != 200 || a.body != "hello" {
					t.Fatalf("%+v", a)
				}
			}
			if got, want := <-dialed, "orders at "+e.apps["orders"]; got != want || len(dialed) != 0 {
				t.Errorf("dialed %s, and %d more; want %s", got, len(dialed), want)
			}
		})
	}
}

func hello(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }

// TestActAsWorkload is no test: run by another, it is a program that calls what
// it reads from its standard input, and says what came of it.
func TestActAsWorkload(t *testing.T) {
	out := os.Getenv("GATE_TEST_OUT")
	if out == "" {
		return // run with all others, there is nothing to do
	}
	c, err := net.Dial("tcp", out)
	if err != nil {
		t.Fatal(err)
	}
	w := newWire(t, c)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		a := w.ask("GET " + lines.Text() + " HTTP/1.1\r\nHost: orders\r\n\r\n")
		fmt.Printf("answer: %d %s %s\n", a.status, a.reason, strings.TrimSpace(a.body))
	}
	os.Exit(0)
}

// workload is a process of its own.
type workload struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Scanner
}

// startWorkload starts a program that calls through the gate at out, through a
// child if it is wanted so.
func startWorkload(t *testing.T, out string, child bool) *workload {
	t.Helper()
	argv := []string{os.Args[0], "-test.run=^TestActAsWorkload$", "-test.count=1"}
	if child {
		if _, err := exec.LookPath("sh"); err != nil {
			t.Skip("there is no sh to start a child with")
		}
		// Without 3 the shell would give what is in the background no input.
		argv = append([]string{"sh", "-c", `exec 3<&0; "$@" <&3 & wait`, "sh"}, argv...)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "GATE_TEST_OUT="+out)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	read, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Process.Kill(); cmd.Wait() })
	return &workload{t, cmd, in, bufio.NewScanner(read)}
}

// call makes one call and returns what the program saw.
func (w *workload) call(path string) string {
	w.t.Helper()
	fmt.Fprintln(w.in, path)
	for w.out.Scan() {
		if a, ok := strings.CutPrefix(w.out.Text(), "answer: "); ok {
			return a
		}
	}
	w.t.Fatalf("the program ended: %v", w.out.Err())
	return ""
}

// TestOwnWorkload: one process of a host cannot borrow another's identity.
func TestOwnWorkload(t *testing.T) {
	t.Parallel()
	if !sockowner.Supported() {
		t.Skip(sockowner.ErrUnsupported)
	}
	var root atomic.Pointer[sockowner.Process]
	var asked atomic.Int64
	s := setup{apps: map[string]http.Handler{"orders": http.HandlerFunc(hello)}, own: func(c net.Conn) error {
		asked.Add(1)
		s, err := sockowner.Peer(c)
		if err != nil {
			return err
		}
		p := root.Load()
		if p == nil {
			return errors.New("no program runs")
		}
		_, err = p.Holder(s)
		return err
	}}
	e := s.start(t, ownIntent)
	pin := func(w *workload) {
		p, err := sockowner.OpenProcess(w.cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		root.Store(p)
	}

	web := startWorkload(t, e.out["web"], false)
	pin(web)
	for range 3 {
		if a := web.call("/orders"); a != "200  hello" {
			t.Fatalf("the service's own program got %q", a)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("it was asked %d times for one connection", n)
	}
	e.swap(ownIntent + "# new orders\n")
	if a := web.call("/orders"); a != "200  hello" || asked.Load() != 2 {
		t.Errorf("after new orders: %q, asked %d times", a, asked.Load())
	}

	c, err := net.Dial("tcp", e.out["web"])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	w := newWire(t, c) // the test's own process is a stranger
	if a := w.ask("GET /orders HTTP/1.1\r\nHost: orders\r\n\r\n"); a.status != 403 || a.reason != "not_own_workload" {
		t.Errorf("a stranger got %d %s", a.status, a.reason)
	}
	if !w.ended() {
		t.Error("the connection of a stranger stays open")
	}

	other := startWorkload(t, e.out["web"], true)
	if a := other.call("/orders"); !strings.HasPrefix(a, "403 not_own_workload") {
		t.Errorf("another program got %q", a)
	}
	third := startWorkload(t, e.out["web"], true)
	pin(third)
	if a := third.call("/orders"); a != "200  hello" {
		t.Errorf("a child of the service's program got %q", a)
	}
	e.swap(ownIntent)
	if a := web.call("/orders"); !strings.HasPrefix(a, "403 not_own_workload") {
		t.Errorf("a program that is not the service's any more got %q on its open connection", a)
	}

	e.stop()
	wantStrangers(t, e.evidence(merlon.Place{Service: "web"}), 3)
}

// wantStrangers holds records to so many refusals of strangers.
func wantStrangers(t *testing.T, all []record.Record, want int) {
	t.Helper()
	refused := 0
	for _, r := range all {
		if r.Verdict.Reason != "not_own_workload" {
			continue
		}
		refused++
		if r.Status != 403 || r.CallerKind != "nobody" || r.Caller != "" || !strings.Contains(r.Detail, "no process of the tree") {
			t.Errorf("recorded as %+v", r)
		}
	}
	if refused != want {
		t.Errorf("%d refusals are recorded, want %d", refused, want)
	}
}

// TestWorkloadNeedsOwn: orders that say who the workload is are not taken by a
// gate that cannot tell.
func TestWorkloadNeedsOwn(t *testing.T) {
	t.Parallel()
	text := strings.Replace(ownIntent, "web: {", "web: {workload: {unix: {user: web}}, ", 1)
	place := merlon.Place{Service: "web"}
	e := start(t, ownIntent, nil)
	l := load(t, text, nil)
	err := e.gates[place].Swap(e.orders(l, place))
	if err == nil || !strings.Contains(err.Error(), "merlon.yaml:4:") {
		t.Errorf("got %v, want a refusal with the place of the sentence", err)
	}
	if err := e.gates[merlon.Place{Service: "orders"}].Swap(e.orders(l, merlon.Place{Service: "orders"})); err != nil {
		t.Errorf("the gate of another service: %v", err)
	}
	e = setup{own: func(net.Conn) error { return nil }}.start(t, text)
	if e.gates[place].Hash() == "" {
		t.Error("a gate that can tell has no orders")
	}
}
