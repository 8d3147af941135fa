package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"merlon"
	"merlon/authority"
	"merlon/identity/spiffe"
	"merlon/intent"
	"merlon/policy"
)

var update = flag.Bool("update", false, "write deps.txt anew")

// TestLinkedPackages holds what the gate links to a list, so that a heavy or
// dangerous package comes in by a decision and not by an import far away.
func TestLinkedPackages(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); line != "" {
			list = append(list, line+"\n")
		}
	}
	slices.Sort(list)
	got := strings.Join(list, "")
	if *update {
		if err := os.WriteFile("deps.txt", []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("deps.txt")
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the gate links other packages than deps.txt says (go test ./cmd/merlon-gate -update):\n%s", difference(string(want), got))
	}
	info, err := os.Stat(build(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("merlon-gate has %.1f MB, with %d packages outside of the standard library", float64(info.Size())/1e6, len(list))
}

func difference(want, got string) string {
	var b strings.Builder
	for line := range strings.Lines(got) {
		if !strings.Contains("\n"+want, "\n"+line) {
			b.WriteString("+ " + line)
		}
	}
	for line := range strings.Lines(want) {
		if !strings.Contains("\n"+got, "\n"+line) {
			b.WriteString("- " + line)
		}
	}
	return b.String()
}

var buildOnce = sync.OnceValues(func() (string, error) {
	bin, err := filepath.Abs("../../bin/test/merlon-gate")
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-o", bin, ".") // as it is shipped
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return bin, nil
})

func build(t *testing.T) string {
	t.Helper()
	bin, err := buildOnce()
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

const trustDomain = "gate.example"

// stand is a gate of service b in its own process, before an app, and the
// identity of a, which calls it.
type stand struct {
	t      *testing.T
	dir    string
	auth   *authority.Authority
	app    string
	cmd    *exec.Cmd
	url    string
	out    string // address
	client *http.Client
	ended  chan error
}

// said is the log of the gate, and of those that took its place: a file, for a
// pipe would be open until the last of them ends.
func (s *stand) said() string {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, "log"))
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}

func newStand(t *testing.T, h http.Handler) *stand {
	t.Helper()
	app := httptest.NewServer(h)
	t.Cleanup(app.Close)
	s := &stand{t: t, dir: t.TempDir(), app: app.Listener.Addr().String(), ended: make(chan error, 1)}
	a, err := authority.Open(filepath.Join(s.dir, "authority"), trustDomain, authority.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	s.auth = a
	s.svid("b")
	s.orders("callers: {a: [hello, slow]}", nil)
	source, err := a.Source(t.Context(), "spiffe://"+trustDomain+"/a", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		TLSClientConfig: spiffe.ClientConfig(source, "spiffe://"+trustDomain+"/b"), MaxIdleConnsPerHost: 8,
	}}
	t.Cleanup(s.client.CloseIdleConnections)
	return s
}

// svid writes the gate's certificate, key and bundle.
func (s *stand) svid(name string) {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	chain, _, err := s.auth.Issue("spiffe://"+trustDomain+"/"+name, key.Public(), time.Now())
	if err != nil {
		s.t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		s.t.Fatal(err)
	}
	var certs []byte
	for _, c := range chain {
		certs = append(certs, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})...)
	}
	s.write("svid.pem", certs)
	s.write("key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	s.write("bundle.pem", s.auth.Bundle())
}

// write replaces a file by a rename, as a careful writer does.
func (s *stand) write(name string, data []byte) {
	s.t.Helper()
	file := filepath.Join(s.dir, name)
	if err := errors.Join(os.WriteFile(file+".new", data, 0o600), os.Rename(file+".new", file)); err != nil {
		s.t.Fatal(err)
	}
}

// orders writes the orders of an intent; change may spoil them.
func (s *stand) orders(callers string, change func([]byte) []byte) string {
	s.t.Helper()
	text := fmt.Sprintf("trustDomain: %s\nservices:\n  a: {address: '127.0.0.1:1'}\n  b:\n    address: %s\n    operations: {hello: GET /hello, slow: GET /slow}\n    %s\n",
		trustDomain, s.app, callers)
	l, ds := intent.Load(fstest.MapFS{"merlon.yaml": {Data: []byte(text)}})
	if ds.Failed() {
		s.t.Fatal(ds)
	}
	place := merlon.Place{Service: "b"}
	o := merlon.Orders{Version: merlon.OrdersVersion, Place: place, Of: l.Hash, Intent: policy.Scope(l.Intent, place),
		Endpoints: map[string][]merlon.Endpoint{"b": {{Address: s.app}}}}
	data, err := o.Encode()
	if err != nil {
		s.t.Fatal(err)
	}
	if change != nil {
		data = change(data)
	}
	s.write("orders.json", data)
	return o.Hash
}

// start runs the gate and waits until it serves.
func (s *stand) start(more ...string) {
	s.t.Helper()
	s.run(exec.Command(build(s.t), s.arguments(more...)...))
	s.url, s.out = "https://"+s.address("in"), s.address("out")
}

func (s *stand) arguments(more ...string) []string {
	return append([]string{"-orders", filepath.Join(s.dir, "orders.json"), "-svid", s.dir, "-records", filepath.Join(s.dir, "records"),
		"-in", "127.0.0.1:0", "-out", "127.0.0.1:0"}, more...)
}

// run runs the gate, until the test or the gate ends it.
func (s *stand) run(cmd *exec.Cmd) {
	s.t.Helper()
	log, err := os.Create(filepath.Join(s.dir, "log"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	s.cmd, cmd.Stdout, cmd.Stderr = cmd, log, log
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { s.cmd.Process.Kill(); <-s.ended })
	go func() { s.ended <- s.cmd.Wait() }()
}

// address is where the gate serves.
func (s *stand) address(at string) string {
	s.t.Helper()
	found := regexp.MustCompile("at=" + at + ` address=(\S+)`)
	s.until("it serves", func() bool { return found.MatchString(s.said()) })
	return found.FindStringSubmatch(s.said())[1]
}

func (s *stand) until(what string, ok func() bool) {
	s.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			s.t.Fatalf("not within 20 s: %s\n%s", what, s.said())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (s *stand) get(path string) (status int, says string, err error) {
	req, err := http.NewRequest(http.MethodGet, s.url+path, nil)
	if err != nil {
		return 0, "", err
	}
	req.Host = "b"
	res, err := s.client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if reason := res.Header.Get("Merlon-Reason"); reason != "" {
		return res.StatusCode, reason, err
	}
	return res.StatusCode, string(body), err
}

func (s *stand) want(path string, status int, says string) {
	s.t.Helper()
	if got, said, err := s.get(path); err != nil || got != status || said != says {
		s.t.Errorf("%s: %d %s %v, want %d %s\n%s", path, got, said, err, status, says, s.said())
	}
}

// TestOrders swaps the orders of a running gate by replacing their file.
func TestOrders(t *testing.T) {
	t.Parallel()
	s := newStand(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) }))
	s.start()
	s.want("/hello", 200, "/hello")
	s.want("/slow", 200, "/slow")

	inForce := func(hash string) {
		t.Helper()
		s.until("orders are in force", func() bool { return strings.Contains(s.said(), "hash="+hash) })
	}
	inForce(s.orders("callers: {a: [hello]}", nil))
	s.want("/hello", 200, "/hello")
	s.want("/slow", 403, "no_rule")

	bad := []struct {
		name   string
		change func([]byte) []byte
		want   string
	}{
		{"torn", func(b []byte) []byte { return b[:len(b)/2] }, "cannot be read"},
		{"empty", func([]byte) []byte { return nil }, "cannot be read"},
		{"widened by hand", func(b []byte) []byte {
			return bytes.Replace(b, []byte(`"operations":["hello"]`), []byte(`"operations":["hello","slow"]`), 1)
		}, "their hash is"},
		{"of yesterday", func(b []byte) []byte { return bytes.Replace(b, []byte(`"version":2`), []byte(`"version":1`), 1) }, "reads version 2"},
		{"with a field unknown", func(b []byte) []byte { return append([]byte(`{"more":1,`), b[1:]...) }, "unknown field"},
		{"for another place", func(b []byte) []byte {
			o, err := merlon.DecodeOrders(b)
			if err != nil {
				t.Fatal(err)
			}
			o.Place = merlon.Place{Service: "a"}
			other, err := o.Encode()
			if err != nil {
				t.Fatal(err)
			}
			return other
		}, "orders are for gate of a"},
	}
	for _, b := range bad {
		before := len(s.said())
		s.orders("callers: {a: [hello]} # "+b.name, b.change)
		s.until(b.name+" is refused", func() bool { return strings.Contains(s.said()[before:], "orders refused") })
		if said := s.said()[before:]; !strings.Contains(said, b.want) {
			t.Errorf("%s: %q is not in\n%s", b.name, b.want, said)
		}
		s.want("/hello", 200, "/hello")
		s.want("/slow", 403, "no_rule")
	}
	inForce(s.orders("callers: {a: [slow]}", nil))
	s.want("/hello", 403, "no_rule")
	s.want("/slow", 200, "/slow")
}

// TestStartRefused starts a gate with what it must not start with.
func TestStartRefused(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		spoil func(*stand)
		want  string
	}{
		{"bad orders", func(s *stand) { s.write("orders.json", []byte("{}")) }, "orders.json: orders have version 0"},
		{"no orders", func(s *stand) { os.Remove(filepath.Join(s.dir, "orders.json")) }, "orders.json"},
		{"key of the world", func(s *stand) { os.Chmod(filepath.Join(s.dir, "key.pem"), 0o644) }, "others can read the key"},
		{"no roots", func(s *stand) { s.write("bundle.pem", nil) }, "bundle.pem: no certificate"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newStand(t, http.NotFoundHandler())
			tt.spoil(s)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			out, err := exec.CommandContext(ctx, build(t), "-orders", filepath.Join(s.dir, "orders.json"), "-svid", s.dir,
				"-records", filepath.Join(s.dir, "records"), "-in", "127.0.0.1:0").CombinedOutput()
			if e, ok := errors.AsType[*exec.ExitError](err); !ok || e.ExitCode() != 1 || !strings.Contains(string(out), tt.want) {
				t.Errorf("%v, want %q in\n%s", err, tt.want, out)
			}
		})
	}
}

// TestTerminated ends a gate under load: every call that it took is answered.
func TestTerminated(t *testing.T) {
	t.Parallel()
	s := newStand(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(5 * time.Millisecond) // so that calls are in progress at any time
		fmt.Fprint(w, "done")
	}))
	s.start()
	var wg sync.WaitGroup
	var mu sync.Mutex
	good, failed := 0, []string{}
	for range 8 {
		wg.Go(func() {
			for {
				status, says, err := s.get("/slow")
				if errors.Is(err, syscall.ECONNREFUSED) {
					return // nobody is there any more, and nothing was asked of anybody
				}
				mu.Lock()
				if err != nil || status != 200 || says != "done" {
					failed = append(failed, fmt.Sprint(status, says, err))
				} else {
					good++
				}
				stop := len(failed) > 0
				mu.Unlock()
				if stop {
					return
				}
			}
		})
	}
	s.until("calls are answered", func() bool { mu.Lock(); defer mu.Unlock(); return good > 200 || len(failed) > 0 })
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	select {
	case err := <-s.ended:
		s.ended <- err
		if err != nil {
			t.Errorf("the gate ended with %v\n%s", err, s.said())
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("the gate does not end\n%s", s.said())
	}
	if len(failed) > 0 {
		t.Errorf("%d calls failed, such as %s; %d were answered", len(failed), failed[0], good)
	}
	t.Logf("%d calls were answered", good)
}

// TestGatewayCannotMove refuses orders that name another address than the one
// that the gateway listens on.
func TestGatewayCannotMove(t *testing.T) {
	t.Parallel()
	at := func(listen string) *merlon.Orders {
		return &merlon.Orders{Intent: merlon.Intent{Gateway: &merlon.Gateway{Listen: listen}}}
	}
	for orders, want := range map[*merlon.Orders]string{at(":444"): "start this gate again", {}: "stop this gate"} {
		if err := follow(nil, new(own), at(":443"), orders); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestSmall holds the program, and a gate at rest, to what they may weigh.
func TestSmall(t *testing.T) {
	t.Parallel()
	info, err := os.Stat(build(t))
	if err != nil {
		t.Fatal(err)
	}
	s := newStand(t, http.NotFoundHandler())
	s.start("-admin", "127.0.0.1:0")
	s.until("it serves", func() bool { return strings.Contains(s.said(), "at=admin") })
	now, _ := memory(t, s.cmd.Process.Pid)
	t.Logf("merlon-gate has %.1f MB, and at rest %.1f MB resident", float64(info.Size())/1e6, float64(now)/1e3)
	if info.Size() > 20_000_000 || now > 15<<10 {
		t.Error("at most 20 MB, and 15 MiB resident, are well")
	}
}
