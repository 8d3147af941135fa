package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"merlon"
	"merlon/intent"
	"merlon/internal/sockowner"
	"merlon/policy"
	"merlon/record"
)

var drillTime = flag.Duration("drill", 40*time.Second, "how long TestDrill rotates before it kills the authority; 10m for the bar")

// drillLife is the lifetime of root, intermediate and SVID.
const drillLife = 20 * time.Second

// drill is the gates of a, which calls, of b, which speaks HTTP/1.1, and of c, which
// speaks gRPC, each a process that has its SVID from the Workload API of an
// authority, which is a process too.
type drill struct {
	*traffic
	a, b, c   *stand
	dir       string
	socket    string
	authority *exec.Cmd
	ended     chan error // of the authority
	took      time.Duration
}

// TestDrill: with lifetimes of 20 s at all three levels no call fails and
// nothing that streams is cut off, for as long as -drill says; nor when the
// authority is killed and comes back after half a lifetime. When it is gone for a
// whole one, calls are denied, which logs said would come, and all recovers when
// it is back. Gates are not touched.
func TestDrill(t *testing.T) {
	t.Parallel()
	if !sockowner.Supported() {
		t.Skip("this system does not tell who is at the other end of a socket")
	}
	d := newDrill(t)
	d.load()
	d.wait(*drillTime)
	steady := d.figures()
	if n := strings.Count(d.a.said(), "an SVID came"); n < int(*drillTime/drillLife) {
		t.Errorf("%d SVIDs came: there was no rotation to test", n)
	}

	away := d.away(drillLife/2 - d.took)
	for i := 0; away > drillLife/2+drillLife/10 && i < 3; i++ { // this machine is out of breath, and half a lifetime is over
		t.Logf("the authority was away for %v: once more", away)
		away = d.away(drillLife/2 - d.took)
	}
	d.wait(drillLife)
	if d.none(); t.Failed() {
		d.tell()
		t.FailNow()
	}
	for _, g := range d.gates() {
		if said := g.said(); strings.Contains(said, "a tenth of its life") || strings.Contains(said, "has expired") {
			t.Errorf("a gate ran short of its SVID:\n%s", said)
		}
	}
	close(d.quit)
	d.clients.Wait()

	d.whole()
	close(d.finish)
	d.streams.Wait()
	d.rest()
	if d.none(); t.Failed() {
		d.tell()
	}
	t.Logf("drill %v: %s; with the authority away for %v, then: %s; denied when it was away for longer than a lifetime: %s",
		*drillTime, steady, away.Round(100*time.Millisecond), d.figures(), d.evidence())
}

func (d *drill) gates() []*stand { return []*stand{d.a, d.b, d.c} }

func newDrill(t *testing.T) *drill {
	d := &drill{traffic: newTraffic(t)}
	d.host, d.grpc = "b", "c"
	b := httptest.NewServer(http.HandlerFunc(d.app))
	t.Cleanup(b.Close)
	var err error
	if d.dir, err = os.MkdirTemp("", "drill"); err != nil { // t.TempDir is too long for a socket
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(d.dir) })
	d.socket = "unix://" + filepath.Join(d.dir, "api.sock")
	for g, app := range map[**stand]string{&d.a: "127.0.0.1:1", &d.b: b.Listener.Addr().String(), &d.c: talker(t)} {
		*g = &stand{t: t, dir: t.TempDir(), app: app, ended: make(chan error, 1)}
	}
	d.begin()
	for _, g := range []*stand{d.b, d.c, d.a} { // a needs to know where the others are
		d.orders(g)
		d.start(g)
	}
	d.listen = d.a.address("out")
	return d
}

func (d *drill) name(g *stand) string { return map[*stand]string{d.a: "a", d.b: "b", d.c: "c"}[g] }

// program is a copy of the gate of its own: the file is what it is known by.
func (d *drill) program(g *stand) string { return filepath.Join(g.dir, "merlon-gate") }

// text is an intent; workload is what services are known by.
func (d *drill) text(workload func(*stand) string) string {
	return fmt.Sprintf(`trustDomain: %s
services:
  a:
    address: '%s'
    %s
  b:
    address: '%s'
    %s
    operations: {hello: GET /hello, echo: POST /echo, stream: GET /stream, room: GET /room}
    webSockets: [room]
    callers: {a: all}
  c:
    address: '%s'
    %s
    contract: c.proto
    callers: {a: all}
`, trustDomain, d.a.app, workload(d.a), d.b.app, workload(d.b), d.c.app, workload(d.c))
}

// begin starts the authority and waits until it is up.
func (d *drill) begin() {
	d.t.Helper()
	began := time.Now()
	if d.authority == nil {
		bin, err := filepath.Abs("../../bin/test/merlon-drill")
		if err != nil {
			d.t.Fatal(err)
		}
		if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", bin, "merlon/cmd/merlon").CombinedOutput(); err != nil {
			d.t.Fatalf("%v\n%s", err, out)
		}
		gate, err := os.ReadFile(build(d.t))
		if err != nil {
			d.t.Fatal(err)
		}
		me, err := user.Current()
		if err != nil {
			d.t.Fatal(err)
		}
		text := d.text(func(g *stand) string {
			return fmt.Sprintf("workload: {unix: {user: '%s', path: '%s'}}", me.Username, d.program(g))
		})
		err = errors.Join(os.WriteFile(filepath.Join(d.dir, "merlon.yaml"), []byte(text), 0o600), os.WriteFile(filepath.Join(d.dir, "c.proto"), []byte(soakContract), 0o600))
		for _, g := range d.gates() {
			err = errors.Join(err, os.WriteFile(d.program(g), gate, 0o700))
		}
		if err != nil {
			d.t.Fatal(err)
		}
		d.authority = exec.Command(bin)
		began = time.Now()
	}
	life := drillLife.String()
	cmd := exec.Command(d.authority.Path, "up", "--json", "--widen", "--log", filepath.Join(d.dir, "log"), "--workload-api", d.socket,
		"--root-ttl", life, "--intermediate-ttl", life, "--svid-ttl", life, d.dir)
	var wrong strings.Builder
	cmd.Stderr = &wrong
	out, err := cmd.StdoutPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.authority, d.ended = cmd, make(chan error, 1)
	ended := d.ended
	d.t.Cleanup(func() { cmd.Process.Kill(); <-ended })
	var up map[string]any
	err = json.NewDecoder(out).Decode(&up)
	go func() { io.Copy(io.Discard, out); ended <- cmd.Wait(); close(ended) }()
	if err != nil || up["ok"] != true {
		cmd.Process.Kill()
		<-ended
		d.t.Fatalf("the authority does not come up: %v %v\n%s", err, up, wrong.String())
	}
	d.took = time.Since(began)
}

// orders writes the orders of a gate. They leave out what services are known by: the
// application that calls is this process.
func (d *drill) orders(g *stand) {
	d.t.Helper()
	l, ds := intent.Load(fstest.MapFS{"merlon.yaml": {Data: []byte(d.text(func(*stand) string { return "" }))}, "c.proto": {Data: []byte(soakContract)}})
	if ds.Failed() {
		d.t.Fatal(ds)
	}
	place := merlon.Place{Service: d.name(g)}
	o := merlon.Orders{Version: merlon.OrdersVersion, Place: place, Of: l.Hash, Intent: policy.Scope(l.Intent, place),
		Endpoints: map[string][]merlon.Endpoint{d.name(g): {{Address: g.app}}}}
	if g == d.a {
		for _, to := range []*stand{d.b, d.c} {
			o.Endpoints[d.name(to)] = []merlon.Endpoint{{Address: to.address("in"), ID: l.Intent.SPIFFEID(d.name(to))}}
		}
	}
	data, err := o.Encode()
	if err != nil {
		d.t.Fatal(err)
	}
	g.write("orders.json", data)
}

func (d *drill) start(g *stand) {
	d.t.Helper()
	args := g.arguments("-svid", d.socket, "-admin", "127.0.0.1:0")
	g.run(exec.Command(d.program(g), args...))
	g.address("in")
}

// kill ends the authority at once.
func (d *drill) kill() time.Time {
	d.t.Helper()
	if err := d.authority.Process.Signal(syscall.SIGKILL); err != nil {
		d.t.Fatal(err)
	}
	at := time.Now()
	<-d.ended
	return at
}

// away kills the authority, and starts it anew when so much time is over. It says
// how long it was away.
func (d *drill) away(pause time.Duration) time.Duration {
	d.t.Helper()
	at := d.kill()
	d.wait(pause)
	d.begin()
	return time.Since(at)
}

// wait lets time go by, unless a call fails.
func (d *drill) wait(pause time.Duration) {
	for end := time.Now().Add(pause); time.Now().Before(end) && len(d.failures) == 0; {
		time.Sleep(50 * time.Millisecond)
	}
}

// whole kills the authority for more than a lifetime.
func (d *drill) whole() {
	d.t.Helper()
	c := d.browser(1)
	c.Timeout = 20 * time.Second
	d.t.Cleanup(c.CloseIdleConnections)
	before := map[*stand]int{}
	for _, g := range d.gates() {
		before[g] = len(g.said())
	}
	at := d.kill()
	denied := time.Duration(0) // when the first call was
	ask := func() (reason string) {
		d.t.Helper()
		res, err := c.Get(d.url(d.host, "/hello"))
		if err != nil {
			d.t.Fatalf("the gate does not answer: %v", err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		switch reason = res.Header.Get("Merlon-Reason"); {
		case res.StatusCode == 200:
			return ""
		case !slices.Contains([]string{"svid_expired", "upstream_expired", "upstream_connect", "upstream_broken", "peer_expired"}, reason):
			d.t.Errorf("%v after the kill: %d %s", time.Since(at), res.StatusCode, reason)
		}
		return reason
	}
	for last := ""; time.Since(at) < drillLife+drillLife/4; time.Sleep(50 * time.Millisecond) {
		reason := ask()
		if reason != "" && denied == 0 {
			denied = time.Since(at)
		}
		if reason == "" && denied != 0 || last == "svid_expired" && reason != last {
			d.t.Errorf("%v after the kill: a call meets %q after %q", time.Since(at), reason, last)
		}
		last = reason
		if time.Since(at) > drillLife && reason != "svid_expired" {
			d.t.Errorf("%v after the kill: a call meets %q", time.Since(at), reason)
			break
		}
	}
	if denied < drillLife/2 {
		d.t.Errorf("a call was denied %v after the kill", denied)
	}
	for _, g := range d.gates() {
		rest := g.said()[before[g]:]
		for _, want := range []string{"the SVID at hand ends at", "a quarter of its life is left", "a tenth of its life is left", "the SVID has expired"} {
			_, after, found := strings.Cut(rest, want)
			if !found {
				d.t.Errorf("the gate of %s does not say, next, %q:\n%s", d.name(g), want, g.said()[before[g]:])
				break
			}
			rest = after
		}
		var r readiness
		if status := fetch(d.t, g.address("admin"), "/readyz", &r); status == 200 {
			d.t.Errorf("the gate of %s is ready", d.name(g))
		}
	}
	d.begin()
	for _, g := range d.gates() {
		g.until("the gate recovers by itself", func() bool { return strings.Contains(g.said()[before[g]:], "the SVID is renewed") })
	}
	d.a.until("calls go through again", func() bool { return ask() == "" })
	for range 50 {
		if reason := ask(); reason != "" {
			d.t.Errorf("a call meets %q after the authority is back", reason)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// evidence counts what the record of a says of denied calls.
func (d *drill) evidence() string {
	count := map[string]int{}
	chains, err := record.Chains(filepath.Join(d.a.dir, "records"))
	if err != nil {
		d.t.Fatal(err)
	}
	for _, dir := range chains {
		for r, err := range record.Read(dir, record.Filter{}) {
			if err != nil {
				d.t.Fatal(err)
			}
			if r.Verdict.Reason != "" && r.Status >= 400 {
				count[string(r.Verdict.Reason)]++
				if r.Verdict.Reason == "svid_expired" && !strings.Contains(r.Detail, "has ended and was not renewed") {
					d.t.Errorf("the record does not say why: %q", r.Detail)
				}
			}
		}
	}
	if count["svid_expired"] == 0 {
		d.t.Errorf("the record holds no call that was denied for an expired SVID: %v", count)
	}
	return fmt.Sprint(count)
}

func (d *drill) figures() string {
	svids := 0
	for _, g := range d.gates() {
		svids += strings.Count(g.said(), "an SVID came")
	}
	n := func(v *atomic.Int64) int64 { return v.Load() }
	return fmt.Sprintf("%d calls over HTTP/1.1, %d over HTTP/2, %d streams with %d lines, %d of gRPC with %d messages, %d WebSockets with %d, %d failed; %d SVIDs came to 3 gates",
		n(&d.calls[1]), n(&d.calls[2]), 2*soakStreams, n(&d.lines), soakStreams, n(&d.messages), soakStreams, n(&d.texts), len(d.failures), svids)
}

// tell shows what all of them said.
func (d *drill) tell() {
	text, _ := os.ReadFile(filepath.Join(d.dir, "log"))
	d.t.Logf("authority:\n%s", text)
	for _, g := range d.gates() {
		d.t.Logf("gate of %s:\n%s", d.name(g), g.said())
	}
}
