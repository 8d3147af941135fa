package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"merlon/control"
	"merlon/internal/netns"
)

// Users that nobody is.
const (
	aUser    = 61011
	nobodyIs = 61012
)

// needNetns skips a test where no network namespaces can be made.
func needNetns(t *testing.T) {
	t.Helper()
	n, err := netns.New("a network namespace")
	if err != nil {
		t.Skipf("SKIP: %v", err)
	}
	n.Close()
}

// isolated writes a service that the system runs; user may be "".
func (s *site) isolated(name, address, callers, user, command string, env ...string) {
	s.serviceAs(name, address, callers, "command: "+command, env...)
	if user != "" {
		text, err := os.ReadFile(filepath.Join(s.dir, name+".merlon.yaml"))
		if err != nil {
			s.t.Fatal(err)
		}
		s.write(name+".merlon.yaml", string(text)+"    workload: {unix: {user: "+user+"}}\n")
	}
}

// newIsolated is a site whose service a runs as a user of its own, and b as root.
func newIsolated(t *testing.T) *site {
	t.Helper()
	needNetns(t)
	s := newSite(t)
	public := publicOf(filepath.Join(s.dir, ".merlon"))
	t.Cleanup(func() { os.RemoveAll(public) }) // what is killed leaves it
	app := "[" + s.publicApp() + "]"
	s.isolated("a", s.a, "anyone: all", strconv.Itoa(aUser), app, "PEER: b")
	s.isolated("b", s.b, "a: [hello]", "", app)
	return s
}

// as runs a command as another user.
func as(uid uint32, argv ...string) string {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	return fmt.Sprint(string(out), err)
}

func TestNetnsShop(t *testing.T) {
	t.Parallel()
	needNetns(t)
	newShop(t).tour("--isolate")
}

// targets are sockets of the host, and what else an isolated service could want.
func targets(t *testing.T, s *site) (all []string) {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { udp.Close() })
	go func() { // answers whom it hears
		b := make([]byte, 1024)
		for {
			_, from, err := udp.ReadFrom(b)
			if err != nil {
				return
			}
			udp.WriteTo(b[:1], from)
		}
	}()
	abstract := fmt.Sprintf("@merlon-test-%d-%s", os.Getpid(), port)
	unix, err := net.Listen("unix", abstract)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close() })
	for _, address := range []string{"127.0.0.1:" + port, "[::1]:" + port, s.gateway, "192.0.2.1:80", "[2001:db8::1]:80"} {
		all = append(all, "tcp/"+address)
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.IsGlobalUnicast() {
			all = append(all, "tcp/"+net.JoinHostPort(ip.IP.String(), port))
		}
	}
	me := strconv.Itoa(os.Getpid())
	return append(all, "udp/"+udp.LocalAddr().String(), "udp/192.0.2.1:53", "unix/"+abstract, "dns/merlon.example",
		"read/proc/"+me+"/environ", "enter/proc/"+me+"/ns/net")
}

// TestNetnsWalls: an isolated service reaches nothing but its gate, and nobody
// reaches it, or passes for it.
func TestNetnsWalls(t *testing.T) {
	t.Parallel()
	s := newIsolated(t)
	app, merlon := filepath.Join(s.dir, "app"), s.publicMerlon()
	tried := map[string][]string{"a": append(targets(t, s), "tcp/"+s.b), "b": append(targets(t, s), "tcp/"+s.a)}
	first := func(service, more string) string {
		return fmt.Sprintf("[sh, -c, %q]", app+" probe '"+strings.Join(tried[service], "' '")+"'; "+more+" exec "+app)
	}
	s.isolated("a", s.a, "anyone: all", strconv.Itoa(aUser), first("a", merlon+" id fetch;"), "PEER: b")
	s.isolated("b", s.b, "a: [hello]", "", first("b", ""))
	u := s.up("--isolate")

	log := s.log()
	for service, all := range tried {
		for _, what := range all {
			_, line, found := strings.Cut(log, "probe "+what+": ")
			line, _, _ = strings.Cut(line, "\n")
			if !found || strings.Contains(line, "<nil>") || strings.Contains(line, "timeout") {
				t.Errorf("%s tries %s: %t %s", service, what, found, line)
			}
		}
	}
	if n := strings.Count(log, "probe "); n != len(tried["a"])+len(tried["b"]) {
		t.Errorf("%d lines of probes", n)
	}
	if !strings.Contains(log, "spiffe://test.example/a") {
		t.Errorf("a got no identity:\n%s", log)
	}

	// Through the gates, all is as the intent says.
	s.want("/call", 200, "b")
	pid := s.want("/hello", 200, "a").pid
	if out := s.must("id", "explain", pid); !strings.Contains(out, "is a, spiffe://test.example/a") {
		t.Error(out)
	}
	run := func(argv ...string) *exec.Cmd {
		return exec.Command(merlon, append([]string{"exec", "a", s.dir, "--"}, argv...)...)
	}
	startCaller(t, run(app, "get")).want(welcome)
	if out, err := run(app, "probe", "tcp/"+s.gateway).CombinedOutput(); err != nil || !strings.Contains(string(out), "refused") {
		t.Errorf("a command of a: %v\n%s", err, out)
	}

	// Strangers, root and others, and one of the very user.
	for _, uid := range []uint32{0, nobodyIs, aUser} {
		for _, address := range []string{s.a, s.b, u.out("a"), u.out("b")} {
			if out := as(uid, app, "probe", "tcp/"+address); !strings.Contains(out, "connection refused") {
				t.Errorf("uid %d reaches %s: %s", uid, address, out)
			}
		}
		if out := as(uid, merlon, "id", "fetch", "--socket", u.WorkloadAPI); !strings.Contains(out, "this process has no identity") {
			t.Errorf("uid %d asks for an identity: %s", uid, out)
		}
		if out := as(uid, app, "probe", "enter/proc/"+pid+"/ns/net"); uid != 0 && !strings.Contains(out, "denied") && !strings.Contains(out, "not permitted") {
			t.Errorf("uid %d enters: %s", uid, out)
		}
	}
	for _, g := range s.gates() {
		if want := g.Place != "gateway"; g.Isolated != want || strings.HasSuffix(g.Local, asRoot) != (g.Place == "gate of b") {
			t.Errorf("%+v", g)
		}
	}
	if out := s.must("status"); strings.Count(out, "  prevented") != 2 || strings.Contains(out, "not prevented") || !strings.Contains(out, "The network of b is closed, but root") {
		t.Error(out)
	}
}

// publicMerlon is merlon where another user may run it.
func (s *site) publicMerlon() string {
	s.t.Helper()
	data, err := os.ReadFile(merlonBin(s.t))
	if err != nil {
		s.t.Fatal(err)
	}
	bin := filepath.Join(s.dir, "merlon")
	if err := os.WriteFile(bin, data, 0o755); err != nil {
		s.t.Fatal(err)
	}
	return bin
}

func (s *site) gates() []control.GateStatus {
	s.t.Helper()
	var st control.Status
	if err := json.Unmarshal([]byte(s.must("status", "--json")), &st); err != nil {
		s.t.Fatal(err)
	}
	return st.Gates
}

// netnsOf is the network namespace of a process.
func netnsOf(t *testing.T, pid string) string {
	t.Helper()
	ns, err := os.Readlink("/proc/" + pid + "/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// held reports whether a process is in a network namespace, or holds it open.
func held(ns string) bool {
	for _, pattern := range []string{"/proc/[0-9]*/ns/net", "/proc/[0-9]*/fd/*"} {
		all, _ := filepath.Glob(pattern)
		for _, name := range all {
			if to, err := os.Readlink(name); err == nil && to == ns {
				return true
			}
		}
	}
	return false
}

// TestNetnsChanges: what an intent adds, changes and removes, and what dies, is in
// its namespace or leaves none behind.
func TestNetnsChanges(t *testing.T) {
	t.Parallel()
	s := newIsolated(t)
	app := "[" + filepath.Join(s.dir, "app") + "]"
	s.isolated("b", s.b, "anyone: [hello], a: [hello]", "", app)
	s.isolated("a", s.a, "anyone: [call]", strconv.Itoa(aUser), app, "PEER: b")
	s.up("--isolate")
	s.want("/call", 200, "b")
	pid := s.want("/hello", 200, "b").pid
	here, b := netnsOf(t, "self"), netnsOf(t, pid)
	if b == here {
		t.Fatal("b is not isolated")
	}

	killed, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	syscall.Kill(killed, syscall.SIGKILL)
	eventually(t, "b is started again", func() bool {
		r, err := fetch(s.url("/hello"), "")
		return err == nil && r.status == 200 && r.pid != pid
	})
	if got := netnsOf(t, s.want("/hello", 200, "b").pid); got != b {
		t.Errorf("started again in %s, was in %s", got, b)
	}

	// Another program, in the same place.
	s.isolated("b", s.b, "anyone: [hello], a: [hello]", "", app, "AGAIN: yes")
	s.must("apply")
	if got := netnsOf(t, s.want("/hello", 200, "b").pid); got != b {
		t.Errorf("changed in %s, was in %s", got, b)
	}

	// Another service, which one may call over its gate.
	s.isolated("c", s.c, "a: [hello]", "", app)
	s.isolated("a", s.a, "anyone: [call]", strconv.Itoa(aUser), app, "PEER: c")
	s.must("apply", "--widen")
	s.want("/call", 200, "c")
	if free(s.c) != true {
		t.Error("c listens on the host")
	}

	// b moves out of merlon's hands and back: its gate goes with it.
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "elsewhere") }))
	defer elsewhere.Close()
	s.write("b.merlon.yaml", "services:\n  b:\n    address: "+elsewhere.Listener.Addr().String()+
		"\n    operations: {hello: GET /hello}\n    callers: {anyone: [hello], a: [hello]}\n")
	s.must("apply", "--widen")
	s.want("/hello", 200, "elsewhere")
	if out := s.must("status"); !strings.Contains(out, "not prevented for b:") {
		t.Error(out)
	}
	eventually(t, "b's namespace is gone", func() bool { return !held(b) })
	s.isolated("b", s.b, "anyone: [hello], a: [hello]", "", app)
	s.must("apply", "--widen")
	again := netnsOf(t, s.want("/hello", 200, "b").pid)
	if again == here {
		t.Error("b is not isolated again")
	}
	s.want("/call", 200, "c")

	s.remove("b.merlon.yaml")
	s.must("apply")
	eventually(t, "the namespace of the removed service is gone", func() bool { return !held(again) })
	s.want("/call", 200, "c")
}

// TestNetnsKilled: nothing outlives merlon, however it ends.
func TestNetnsKilled(t *testing.T) {
	t.Parallel()
	s := newIsolated(t)
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		u := s.up("--isolate")
		s.want("/call", 200, "b")
		ns := netnsOf(t, s.want("/hello", 200, "a").pid)
		public := publicOf(filepath.Join(s.dir, ".merlon"))
		if u.WorkloadAPI != "unix://"+public+"/"+workloadsName {
			t.Fatalf("the Workload API is at %s", u.WorkloadAPI)
		}
		u.end(sig)
		eventually(t, "the namespace is gone", func() bool { return !held(ns) })
		if _, err := os.Stat(public); sig == syscall.SIGTERM && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", public, err)
		}
	}
}

// TestNetnsRefused is what cannot be isolated, said before anything runs.
func TestNetnsRefused(t *testing.T) {
	t.Parallel()
	s := newIsolated(t)
	s.fails(4, []string{"up", "--isolate", "--workload-api", "tcp://127.0.0.1:0"}, "isolated services reach no port", "--workload-api unix://")
	if out := as(nobodyIs, s.publicMerlon(), "up", "--isolate", s.dir); !strings.Contains(out, "run it as root") {
		t.Errorf("another user: %s", out)
	}
	if err := os.Chmod(s.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s.fails(1, []string{"up", "--isolate"}, "a.merlon.yaml:5:", "permission denied", "is started as that user (61011)")
	app := "[" + s.publicApp() + "]"
	s.isolated("b", "192.0.2.7:7000", "a: [hello]", "", app)
	s.fails(1, []string{"up", "--isolate"}, "b.merlon.yaml:5:", "b is isolated, and 192.0.2.7:7000", "127.0.0.1:PORT")
}

// TestNetnsTCP: local ports are in the caller's namespace, and lead to a service
// that listens in its own.
func TestNetnsTCP(t *testing.T) {
	t.Parallel()
	s := newIsolated(t)
	app := filepath.Join(s.dir, "app")
	_, port, _ := net.SplitHostPort(s.c)
	s.write("b.merlon.yaml", fmt.Sprintf("services:\n  b:\n    address: %s\n    protocol: tcp\n    run: {command: [%s], env: {NAME: b, LISTEN: \"%s\"}}\n    callers: {a: all}\n", s.b, app, s.b))
	s.write("a.merlon.yaml", fmt.Sprintf("services:\n  a:\n    address: %s\n    localPorts: {b: %s}\n    run: {command: [%s], env: {NAME: a, LISTEN: \"%s\"}}\n", s.a, port, app, s.a))
	s.up("--isolate")
	c := startCaller(t, exec.Command(merlonBin(t), "exec", "a", s.dir, "--", app, "get"))
	if got := c.get("http://" + s.c + "/hello"); got != "200 b" {
		t.Errorf("through the local port: %s", got)
	}
	if !free(s.c) {
		t.Error("the local port is open to the host")
	}
}

// Unit tests of what the above stands on.

func TestMakePublic(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "x")
	for range 2 { // it may be there
		if err := makePublic(dir); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := makePublic(dir); err == nil || !strings.Contains(err.Error(), "this user alone") {
		t.Errorf("writable by all: %v", err)
	}
	link := dir + "-link"
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	if err := makePublic(link); err == nil {
		t.Error("a link that somebody laid")
	}
	if os.Geteuid() == 0 {
		foreign := filepath.Join(t.TempDir(), "y")
		if err := errors.Join(os.Mkdir(foreign, 0o755), os.Chown(foreign, nobodyIs, nobodyIs)); err != nil {
			t.Fatal(err)
		}
		if err := makePublic(foreign); err == nil {
			t.Error("of another user")
		}
	}
}

func TestOnLoopback(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]bool{
		"127.0.0.1:80": true, "127.9.9.9:80": true, "[::1]:80": true, "localhost:80": true, "0.0.0.0:80": true, "[::]:80": true,
		"10.0.0.1:80": false, "db.example:80": false, "[fe80::1]:80": false, "127.0.0.1": false, "": false, ":80": false,
	} {
		if got := onLoopback(address); got != want {
			t.Errorf("%q: %t", address, got)
		}
	}
}

func TestDirectly(t *testing.T) {
	t.Parallel()
	edge := control.GateStatus{Place: "gateway"}
	gate := func(name string, isolated bool, local string) control.GateStatus {
		return control.GateStatus{Place: "gate of " + name, Isolated: isolated, Local: local}
	}
	for _, tt := range []struct {
		gates     []control.GateStatus
		has, lack string
	}{
		{[]control.GateStatus{edge, gate("a", false, ""), gate("b", false, "")}, "not prevented for any service:", "namespace"},
		{[]control.GateStatus{edge, gate("a", false, ""), gate("b", true, "")}, "not prevented for a:", "namespace"},
		{[]control.GateStatus{edge, gate("a", true, ""), gate("b", true, "tree"+asRoot)}, "no other way in or out", "not prevented"},
		{[]control.GateStatus{edge, gate("a", true, ""), gate("b", true, "tree"+asRoot)}, "network of b is closed, but root", "of a"},
		{[]control.GateStatus{gate("a", false, ""), gate("b", true, "tree"+asRoot)}, "network of b is closed, but root", "no other way"},
	} {
		if got := directly(tt.gates); !strings.Contains(got, tt.has) || strings.Contains(got, tt.lack) {
			t.Errorf("%+v: %s", tt.gates, got)
		}
	}
}
