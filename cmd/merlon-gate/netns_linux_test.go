package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"

	"merlon"
	"merlon/authority"
	"merlon/intent"
	"merlon/internal/capture"
	"merlon/internal/netns"
	"merlon/policy"
)

const gateUID, appUID = 61001, 61002

// host is a network namespace that stands for a host.
type host struct {
	*netns.Namespace
	t    *testing.T
	name string
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v %s", name, args, err, out)
	}
}

// newNetns makes one, where this machine can.
func newNetns(t *testing.T, name string) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces and nftables need root")
	}
	for _, program := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	name = fmt.Sprintf("merlon-test-%d-%s", os.Getpid(), name)
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		t.Skipf("this machine makes no network namespaces: %s", out)
	}
	t.Cleanup(func() { exec.Command("ip", "netns", "del", name).Run() })
	n, err := netns.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	command(t, "ip", "-n", name, "link", "set", "lo", "up")
	return &host{n, t, name}
}

// listen listens in the namespace.
func (n *host) listen(address string) net.Listener {
	n.t.Helper()
	var l net.Listener
	if err := n.Do(func() (err error) { l, err = net.Listen("tcp", address); return err }); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { l.Close() })
	return l
}

// dial connects as a program of the namespace; mark is what it puts on its
// packets.
func (n *host) dial(address string, mark int) (c net.Conn, err error) {
	err = n.Do(func() error {
		d := net.Dialer{Timeout: 5 * time.Second, FallbackDelay: -1}
		d.Control = func(_, _ string, raw syscall.RawConn) (err error) {
			if mark != 0 {
				raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark) })
			}
			return err
		}
		c, err = d.Dial("tcp", address)
		return err
	})
	if err == nil {
		c.SetDeadline(time.Now().Add(20 * time.Second))
	}
	return c, err
}

// ask sends a request, and returns all that comes back.
func (n *host) ask(address, host string, mark int) string {
	c, err := n.dial(address, mark)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	fmt.Fprintf(c, "GET /hello HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host)
	text, err := io.ReadAll(c)
	if err != nil {
		return string(text) + err.Error()
	}
	return string(text)
}

// start runs a gate in the namespace, as a user of its own.
func (n *host) start(a *authority.Authority, l *intent.Loaded, service string, endpoints map[string][]merlon.Endpoint, args ...string) (said func() string) {
	n.t.Helper()
	t, dir := n.t, n.t.TempDir()
	place := merlon.Place{Service: service}
	o := merlon.Orders{Version: merlon.OrdersVersion, Place: place, Of: l.Hash, Intent: policy.Scope(l.Intent, place), Endpoints: endpoints}
	orders, err := o.Encode()
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	chain, _, err := a.Issue("spiffe://"+l.Intent.TrustDomain+"/"+service, key.Public(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	var svid []byte
	for _, c := range chain {
		svid = append(svid, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})...)
	}
	for name, data := range map[string][]byte{"orders.json": orders, "svid.pem": svid, "bundle.pem": a.Bundle(),
		"key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	program := filepath.Join(dir, "merlon-gate") // where that user finds it
	data, err := os.ReadFile(build(t))
	if err := errors.Join(err, os.WriteFile(program, data, 0o755)); err != nil {
		t.Fatal(err)
	}
	filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Chown(path, gateUID, gateUID))
	})
	for _, d := range []string{filepath.Dir(dir), dir} {
		os.Chmod(d, 0o755)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(program, append([]string{"-orders", dir + "/orders.json", "-svid", dir, "-records", dir + "/records"}, args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: gateUID, Gid: gateUID}}
	if err := n.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	said = func() string { text, _ := os.ReadFile(filepath.Join(dir, "log")); return string(text) }
	for deadline := time.Now().Add(30 * time.Second); !strings.Contains(said(), "serving"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the gate of %s does not serve:\n%s", service, said())
		}
	}
	return said
}

// pair is two hosts with a cable between them.
func pair(t *testing.T) (a, b *host) {
	a, b = newNetns(t, "a"), newNetns(t, "b")
	command(t, "ip", "-n", a.name, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", b.name)
	for i, n := range []*host{a, b} {
		command(t, "ip", "-n", n.name, "addr", "add", fmt.Sprintf("10.77.0.%d/24", i+1), "dev", "cable")
		command(t, "ip", "-n", n.name, "addr", "add", fmt.Sprintf("fd77::%d/64", i+1), "dev", "cable", "nodad")
		command(t, "ip", "-n", n.name, "link", "set", "cable", "up")
	}
	command(t, "ip", "-n", a.name, "route", "add", "default", "via", "10.77.0.2")
	command(t, "ip", "-n", a.name, "route", "add", "default", "via", "fd77::2")
	return a, b
}

const netnsIntent = `
trustDomain: shop.example
services:
  web: {}
  orders: {address: ["10.77.0.2:8080", "[fd77::2]:8080"], operations: {hello: GET /hello}, callers: {web: all}}
  vault: {address: "10.77.0.2:8081", operations: {hello: GET /hello}}
`

// TestNetnsCapture: two hosts, a gate on each. A program that dials the service
// gets there through both gates, and nowhere else, whatever it tries.
func TestNetnsCapture(t *testing.T) {
	a, b := pair(t)
	l, ds := intent.Load(fstest.MapFS{"merlon.yaml": {Data: []byte(netnsIntent)}})
	if ds.Failed() {
		t.Fatal(ds)
	}
	auth, err := authority.Open(filepath.Join(t.TempDir(), "authority"), l.Intent.TrustDomain, authority.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer auth.Close()
	for _, address := range []string{"10.77.0.2:8080", "[fd77::2]:8080", "10.77.0.2:8081", "[fd77::2]:9999"} {
		go http.Serve(b.listen(address), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "reached, by gate %v", r.Header.Get("Merlon-Caller") != "")
		}))
	}
	id := l.Intent.SPIFFEID("orders")
	b.start(auth, l, "orders", map[string][]merlon.Endpoint{"orders": {{Address: "10.77.0.2:8080"}}}, "-in", "10.77.0.2:8443")
	said := a.start(auth, l, "web", map[string][]merlon.Endpoint{"orders": {{Address: "10.77.0.2:8443", ID: id}}}, "-capture", "15001")

	const reached, through = "reached", "reached, by gate true"
	if got := a.ask("10.77.0.2:8080", "orders", 0); !strings.HasSuffix(got, "reached, by gate false") {
		t.Fatalf("before anything is captured: %q", got)
	}
	open, err := a.dial("10.77.0.2:8080", 0) // before, to be used after
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	rules := capture.Rules{Port: 15001, Gate: gateUID}
	for range 2 { // it may be repeated
		p, err := capture.Add(t.Context(), a.Namespace, rules)
		if err != nil || p != (capture.Proof{IPv4: capture.Taken, IPv6: capture.Taken}) {
			t.Fatalf("%+v %v\n%s", p, err, said())
		}
	}
	if p, err := capture.Add(t.Context(), b.Namespace, capture.Rules{Port: 15001, Gate: gateUID, Service: []uint16{8080, 8081}}); err != nil {
		t.Fatal(p, err)
	}
	for _, tt := range []struct {
		name, address, host string
		mark                int
		want                string
	}{
		{"IPv4", "10.77.0.2:8080", "orders", 0, through},
		{"IPv6", "[fd77::2]:8080", "orders", 0, through},
		{"by address", "10.77.0.2:8080", "10.77.0.2:8080", 0, through},
		{"a mark", "10.77.0.2:8080", "orders", 15001, through},
		{"a mark, to where nothing leads", "[fd77::2]:9999", "orders", 1, ""},
		{"another service's name", "10.77.0.2:8080", "vault", 0, "misdirected"},
		{"a service without a rule", "10.77.0.2:8081", "vault", 0, ""},
		{"IPv6, to where nothing leads", "[fd77::2]:9999", "orders", 0, ""},
		{"the gate of the service", "10.77.0.2:8443", "orders", 0, ""},
		{"the gate's own port", "127.0.0.1:15001", "orders", 0, ""},
		{"the gate's own port, over IPv6", "[::1]:15001", "orders", 0, ""},
		{"the gate's port at another address", "10.77.0.1:15001", "orders", 0, "refused"},
	} {
		got := a.ask(tt.address, tt.host, tt.mark)
		if tt.want == "" && strings.Contains(got, reached) || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
	fmt.Fprintf(open, "GET /hello HTTP/1.1\r\nHost: orders\r\n\r\n")
	if line, err := bufio.NewReader(open).ReadString('\n'); err == nil {
		t.Errorf("a connection from before goes on: %q", line)
	}
	guarded(t, a, b, rules)
}

// guarded holds that nobody but its gate reaches the service: no program of its
// host, and no other, even when nothing is captured any more.
func guarded(t *testing.T, a, b *host, rules capture.Rules) {
	t.Helper()
	const reached = "reached"
	if got := b.ask("10.77.0.2:8080", "orders", 0); strings.Contains(got, reached) {
		t.Errorf("from its own host: %q", got)
	}
	if _, err := capture.Remove(t.Context(), a.Namespace); err != nil {
		t.Fatal(err)
	}
	if got := a.ask("10.77.0.2:8080", "orders", 0); strings.Contains(got, reached) {
		t.Errorf("from another host: %q", got)
	}
	if _, err := capture.Verify(t.Context(), a.Namespace, rules); err == nil {
		t.Error("what was removed is verified")
	}
	if was, err := capture.Remove(t.Context(), a.Namespace); was || err != nil {
		t.Error(was, err)
	}
}

// TestNetnsLoop: rules that name another user than the gate's bring its own
// connections back to it, which it refuses at once.
func TestNetnsLoop(t *testing.T) {
	a, _ := pair(t)
	l, ds := intent.Load(fstest.MapFS{"merlon.yaml": {Data: []byte(netnsIntent)}})
	if ds.Failed() {
		t.Fatal(ds)
	}
	auth, err := authority.Open(filepath.Join(t.TempDir(), "authority"), l.Intent.TrustDomain, authority.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer auth.Close()
	a.start(auth, l, "web", map[string][]merlon.Endpoint{"orders": {{Address: "10.77.0.2:8080", ID: l.Intent.SPIFFEID("orders")}}}, "-capture", "15001")
	if _, err := capture.Add(t.Context(), a.Namespace, capture.Rules{Port: 15001, Gate: appUID}); err != nil {
		t.Fatal(err)
	}
	if got := a.ask("10.77.0.2:8080", "orders", 0); !strings.Contains(got, "502") {
		t.Errorf("%q", got)
	}
}

// TestNetnsTampered: rules that somebody has changed are not verified.
func TestNetnsTampered(t *testing.T) {
	n := newNetns(t, "t")
	rules := capture.Rules{Port: 15001, Gate: gateUID, Service: []uint16{80, 8080}, Loopback: []uint16{7000}}
	for _, change := range [][]string{
		{"insert", "rule", "inet", "merlon", "capture", "accept"},
		{"add", "rule", "inet", "merlon", "service", "accept"},
		{"flush", "chain", "inet", "merlon", "held"},
		{"delete", "table", "inet", "merlon"},
	} {
		if _, err := capture.Add(t.Context(), n.Namespace, rules); err != nil {
			t.Fatal(err)
		}
		command(t, "ip", append([]string{"netns", "exec", n.name, "nft"}, change...)...)
		if _, err := capture.Verify(t.Context(), n.Namespace, rules); err == nil {
			t.Errorf("%v: verified", change)
		}
	}
}
