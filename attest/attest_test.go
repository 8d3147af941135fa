package attest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"merlon"
	"merlon/internal/sockowner"
)

// TestMain makes the test binary a workload when it is asked to.
func TestMain(m *testing.M) {
	if os.Getenv("ATTEST_TEST") != "" {
		fmt.Println("ready")
		os.Stdin.Read(make([]byte, 1)) // until the test ends
		return
	}
	os.Exit(m.Run())
}

// workload starts a process that waits, by the file at path, or by a shell
// script that ends in it.
func workload(t testing.TB, attr *syscall.SysProcAttr, argv ...string) *sockowner.Process {
	t.Helper()
	if !sockowner.Supported() {
		t.Skip("processes cannot be told apart on this system")
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "ATTEST_TEST=1")
	cmd.SysProcAttr = attr
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	b := make([]byte, 5)
	if _, err := out.Read(b); err != nil || string(b) != "ready" {
		t.Fatalf("the workload said %q, %v", b, err)
	}
	p, err := sockowner.OpenProcess(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// program is a copy of the test binary that every user may run.
func program(t testing.TB) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "attest")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "web")
	// Copied by another process: were the file open for writing here, a child of
	// some other test could still hold it when it is to be run (ETXTBSY).
	out, err := exec.Command("cp", self, path).CombinedOutput()
	if err := errors.Join(err, os.Chmod(dir, 0o755), os.Chmod(path, 0o755)); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	return path
}

func root(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can be another user, or in another namespace or control group")
	}
}

func svc(name string, w merlon.WorkloadRule) merlon.Service {
	w.Pos = merlon.Pos{File: "merlon.yaml", Line: len(name)}
	return merlon.Service{Name: name, Workload: &w}
}

func attestor(t testing.TB, opt Options, services ...merlon.Service) *Attestor {
	t.Helper()
	a, err := New(&merlon.Intent{TrustDomain: "shop.example", Services: services}, opt)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// holds reports whether one rule holds for a process, and holds Identify, Check
// and Explain to the same answer.
func holds(t testing.TB, opt Options, w merlon.WorkloadRule, p *sockowner.Process) (bool, string) {
	t.Helper()
	a, ctx := attestor(t, opt, svc("web", w), merlon.Service{Name: "zero"}), t.Context()
	got, err := a.Identify(ctx, p)
	found := a.Explain(ctx, p)
	cerr := a.Check(ctx, "web", p)
	if (err == nil) != found[0].Matches || (err == nil) != (cerr == nil) || (err == nil) != (got == "web") {
		t.Errorf("%q, %v; %v; %+v", got, err, cerr, found)
	}
	if len(found[0].Checks) != len(w.Selectors()) || found[1].Matches || a.Check(ctx, "zero", p) == nil {
		t.Errorf("%+v", found)
	}
	if err != nil && !errors.Is(err, ErrNone) {
		t.Errorf("%v", err)
	}
	why := ""
	for _, c := range found[0].Checks {
		why += c.String() + "\n"
	}
	return err == nil, why
}

func TestUnix(t *testing.T) {
	t.Parallel()
	path := program(t)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	hash := hex.EncodeToString(sum[:])
	p := workload(t, nil, path)
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	same := filepath.Join(filepath.Dir(path), "link")
	other := filepath.Join(filepath.Dir(path), "copy")
	if err := errors.Join(os.Symlink(path, same), os.WriteFile(other, data, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		rule merlon.WorkloadRule
		ok   bool
		why  string
	}{
		{"user by name", merlon.WorkloadRule{UnixUser: u.Username}, true, ""},
		{"user by number", merlon.WorkloadRule{UnixUser: u.Uid}, true, ""},
		{"another user", merlon.WorkloadRule{UnixUser: "4242"}, false, `unix user "4242" does not hold: it runs as ` + u.Username},
		{"group", merlon.WorkloadRule{UnixUser: u.Uid, UnixGroup: u.Gid}, true, ""},
		{"another group", merlon.WorkloadRule{UnixUser: u.Uid, UnixGroup: "4242"}, false, `unix group "4242" does not hold: its groups are`},
		{"executable", merlon.WorkloadRule{UnixUser: u.Uid, Executable: path}, true, ""},
		{"executable by a link to it", merlon.WorkloadRule{UnixUser: u.Uid, Executable: same}, true, ""},
		{"a copy of the executable", merlon.WorkloadRule{UnixUser: u.Uid, Executable: other}, false, "it runs another file"},
		{"no such executable", merlon.WorkloadRule{UnixUser: u.Uid, Executable: path + "x"}, false, "could not be checked"},
		{"hash", merlon.WorkloadRule{UnixUser: u.Uid, SHA256: hash}, true, ""},
		{"another hash", merlon.WorkloadRule{UnixUser: u.Uid, SHA256: strings.Repeat("0", 64)}, false, "its executable has " + hash},
		{"all", merlon.WorkloadRule{UnixUser: u.Uid, UnixGroup: u.Gid, Executable: path, SHA256: hash}, true, ""},
		{"all but one", merlon.WorkloadRule{UnixUser: "4242", UnixGroup: u.Gid, Executable: path, SHA256: hash}, false, "unix user"},
		{"no container", merlon.WorkloadRule{DockerImage: "sha256:x"}, false, "in no container"},
		{"no pod", merlon.WorkloadRule{Kubernetes: "shop/web"}, false, "in no pod"},
		{"no unit", merlon.WorkloadRule{SystemdUnit: "web.service"}, false, `systemd unit "web.service" does not hold`},
	} {
		if ok, why := holds(t, Options{Docker: "/nowhere", Cluster: &Cluster{}}, tt.rule, p); ok != tt.ok || !strings.Contains(why, tt.why) {
			t.Errorf("%s: %v\n%s", tt.name, ok, why)
		}
	}
}

// A stranger on the same host is nobody, also one that runs the same file.
func TestAnotherUser(t *testing.T) {
	t.Parallel()
	root(t)
	path := program(t)
	p := workload(t, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534, Groups: []uint32{4243}}}, path)
	if ok, why := holds(t, Options{}, merlon.WorkloadRule{UnixUser: "0", Executable: path}, p); ok || !strings.Contains(why, "uid 65534") {
		t.Errorf("%s", why)
	}
	if ok, why := holds(t, Options{}, merlon.WorkloadRule{UnixUser: "65534", UnixGroup: "4243"}, p); !ok {
		t.Errorf("%s", why)
	}
}

// In a mount namespace of its own, a program can have the name of any file: it
// is the file that counts.
func TestExecutableByAnotherName(t *testing.T) {
	t.Parallel()
	root(t)
	path, evil := program(t), program(t)
	p := workload(t, &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}, "/bin/sh", "-c", `mount --bind "$1" "$2" && exec "$2"`, "sh", evil, path)
	if p.Executable() != path {
		t.Logf("the kernel names it %q here", p.Executable())
	}
	if ok, why := holds(t, Options{}, merlon.WorkloadRule{UnixUser: "0", Executable: path}, p); ok {
		t.Errorf("%s", why)
	}
}

func TestTwoServices(t *testing.T) {
	t.Parallel()
	p := workload(t, nil, program(t))
	uid := fmt.Sprint(os.Getuid())
	a := attestor(t, Options{}, svc("orders", merlon.WorkloadRule{UnixUser: uid}), svc("web", merlon.WorkloadRule{UnixUser: uid}))
	if _, err := a.Identify(t.Context(), p); !errors.Is(err, ErrMany) || !strings.Contains(err.Error(), "orders (merlon.yaml:6), web (merlon.yaml:3)") {
		t.Error(err)
	}
}

// A service that merlon runs is known by its process tree, and by the rule too
// if there is one.
func TestStarted(t *testing.T) {
	t.Parallel()
	p := workload(t, nil, program(t))
	uid := fmt.Sprint(os.Getuid())
	opt := Options{Started: func(service string, _ *sockowner.Process) (bool, error) {
		if service == "broken" {
			return false, errors.New("cannot tell")
		}
		return service == "web", nil
	}}
	run := func(name, user string) merlon.Service {
		s := merlon.Service{Name: name, Run: &merlon.Run{}}
		if user != "" {
			s.Workload = &merlon.WorkloadRule{UnixUser: user}
		}
		return s
	}
	for _, tt := range []struct {
		services []merlon.Service
		want     string
	}{
		{[]merlon.Service{run("orders", ""), run("web", "")}, "web"},
		{[]merlon.Service{run("web", uid)}, "web"},
		{[]merlon.Service{run("web", "4242")}, ""},
		{[]merlon.Service{run("orders", uid)}, ""},
		{[]merlon.Service{run("broken", "")}, ""},
	} {
		if got, err := attestor(t, opt, tt.services...).Identify(t.Context(), p); got != tt.want {
			t.Errorf("%q, %v, want %q", got, err, tt.want)
		}
	}
}

// A process that has ended is nobody, whoever has its number now.
func TestEnded(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(program(t))
	cmd.Env = append(os.Environ(), "ATTEST_TEST=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := sockowner.OpenProcess(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	in.Close()
	cmd.Wait()
	if ok, why := holds(t, Options{}, merlon.WorkloadRule{UnixUser: fmt.Sprint(os.Getuid())}, p); ok {
		t.Error(why)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for _, w := range []merlon.WorkloadRule{
		{UnixUser: "no-such-user"}, {UnixUser: "0", UnixGroup: "no-such-group"}, {DockerImage: "sha256:x"}, {DockerLabels: map[string]string{"a": "b"}}, {Kubernetes: "a/b"},
	} {
		_, err := New(&merlon.Intent{Services: []merlon.Service{svc("web", w)}}, Options{})
		if err == nil || !strings.Contains(err.Error(), "merlon.yaml:3: the workload of web cannot be recognised") {
			t.Errorf("%+v: %v", w, err)
		}
	}
}

// moved is a workload in a control group, which is made for it.
func moved(t testing.TB, attr *syscall.SysProcAttr, cgroup string, argv ...string) *sockowner.Process {
	t.Helper()
	root(t)
	base := "/sys/fs/cgroup"
	if _, err := os.Stat(base + "/systemd/cgroup.procs"); err == nil {
		base += "/systemd"
	}
	if err := os.MkdirAll(base+cgroup, 0o755); err != nil {
		t.Skipf("control groups cannot be made here: units, containers and pods are not tried: %v", err)
	}
	t.Cleanup(func() { // when the process has ended
		for at, end := cgroup, time.Now().Add(20*time.Second); at != "/" && time.Now().Before(end); {
			switch err := syscall.Rmdir(base + at); {
			case err == nil:
				at = filepath.Dir(at)
			case at != cgroup:
				return // another test's too
			default:
				time.Sleep(10 * time.Millisecond) // the kernel still counts the process
			}
		}
	})
	p := workload(t, attr, argv...)
	if err := os.WriteFile(base+cgroup+"/cgroup.procs", []byte(fmt.Sprint(p.PID())), 0o644); err != nil {
		t.Skipf("a process cannot be moved to a control group here: units, containers and pods are not tried: %v", err)
	}
	return p
}

func random(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return hex.EncodeToString(b)
}

func TestSystemdUnit(t *testing.T) {
	t.Parallel()
	unit := "merlon-test-" + random(4) + ".service"
	path := program(t)
	p := moved(t, nil, "/merlontest.slice/"+unit+"/below", path)
	if ok, why := holds(t, Options{}, merlon.WorkloadRule{SystemdUnit: unit}, p); !ok {
		t.Error(why)
	}
	if ok, why := holds(t, Options{}, merlon.WorkloadRule{SystemdUnit: "web.service"}, p); ok || !strings.Contains(why, "it belongs to "+unit) {
		t.Error(why)
	}
	// A user may make a group of that name below the one it was given.
	p = moved(t, nil, "/merlontest.slice/user@1000-"+random(4)+".service/"+unit, path)
	if ok, why := holds(t, Options{}, merlon.WorkloadRule{SystemdUnit: unit}, p); ok {
		t.Error(why)
	}
}

// docker speaks what a Docker Engine 28 says, as far as it is read.
func docker(t testing.TB, id string) string {
	t.Helper()
	image := "sha256:" + strings.Repeat("ab", 32)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1.41/containers/{id}/json", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("id") != id {
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprintf(w, `{"message":"No such container: %s"}`, r.PathValue("id"))
			return
		}
		fmt.Fprintf(w, `{"Id":%q,"Created":"2026-05-04T12:00:00.0Z","State":{"Status":"running","Pid":1},"Image":%q,"Name":"/web-1",
			"Config":{"Hostname":"web","Image":"registry.example/web:1","Labels":{"app":"web","empty":""}}}`, id, image)
	})
	mux.HandleFunc("GET /v1.41/images/{id}/json", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"Id":%q,"RepoTags":["registry.example/web:1"],"RepoDigests":["registry.example/web@sha256:%s"]}`, image, strings.Repeat("cd", 32))
	})
	dir, err := os.MkdirTemp("", "dk")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "docker.sock"))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: mux}
	go s.Serve(l)
	t.Cleanup(func() { s.Close(); os.RemoveAll(dir) })
	return l.Addr().String()
}

func TestDocker(t *testing.T) {
	t.Parallel()
	id := random(32)
	opt := Options{Docker: docker(t, id)}
	p := moved(t, nil, "/docker/"+id, program(t))
	label := func(name, value string) merlon.WorkloadRule {
		return merlon.WorkloadRule{DockerLabels: map[string]string{name: value}}
	}
	for _, tt := range []struct {
		name string
		opt  Options
		rule merlon.WorkloadRule
		ok   bool
		why  string
	}{
		{"label", opt, label("app", "web"), true, ""},
		{"empty label", opt, label("empty", ""), true, ""},
		{"another value", opt, label("app", "orders"), false, `has the label "app=web"`},
		{"no label", opt, label("none", ""), false, "has no such label"},
		{"image", opt, merlon.WorkloadRule{DockerImage: "sha256:" + strings.Repeat("ab", 32)}, true, ""},
		{"image as it was pulled", opt, merlon.WorkloadRule{DockerImage: "sha256:" + strings.Repeat("cd", 32)}, true, ""},
		{"image by its name", opt, merlon.WorkloadRule{DockerImage: "registry.example/web@sha256:" + strings.Repeat("cd", 32)}, true, ""},
		{"image of another name", opt, merlon.WorkloadRule{DockerImage: "registry.example/other@sha256:" + strings.Repeat("cd", 32)}, false, "is of image"},
		{"another image", opt, merlon.WorkloadRule{DockerImage: "sha256:" + strings.Repeat("ef", 32)}, false, "is of image sha256:ab"},
		{"engine away", Options{Docker: "/nowhere"}, label("app", "web"), false, "could not be asked"},
		{"another engine", Options{Docker: docker(t, random(32))}, label("app", "web"), false, "404"},
	} {
		if ok, why := holds(t, tt.opt, tt.rule, p); ok != tt.ok || !strings.Contains(why, tt.why) {
			t.Errorf("%s: %v\n%s", tt.name, ok, why)
		}
	}
}

func TestImageNames(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ text, want string }{
		{"nginx", "nginx"}, {"docker.io/library/nginx:1.27", "nginx"}, {"docker.io/shop/web", "shop/web"}, {"registry.example:5000/web", "registry.example:5000/web"},
		{"registry.example:5000/web:1", "registry.example:5000/web"}, {"registry.example/web:1@sha256:ab", "registry.example/web"}, {"library/nginx", "library/nginx"},
	} {
		if got := repository(tt.text); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.text, got, tt.want)
		}
	}
}

// The hash of a file is remembered as long as nobody changes it, and for no
// longer; and a file that was changed a moment ago is not remembered at all.
func TestHashes(t *testing.T) {
	t.Parallel()
	path := program(t)
	p := workload(t, nil, path)
	now := time.Now()
	h := hashes{now: func() time.Time { return now }}
	first, err := h.executable(t.Context(), p)
	if err != nil || len(h.of) != 0 {
		t.Fatalf("%v, and %d files are remembered that were just made", err, len(h.of))
	}
	now = now.Add(time.Hour)
	again, err := h.executable(t.Context(), p)
	if err != nil || again != first {
		t.Fatal(again, err)
	}
	if len(h.of) == 0 { // an older kernel, or another file system
		t.Log("this kernel or file system does not say what a file's content is known by: it is read each time")
		return
	}
	for id := range h.of { // that it is remembered shows
		h.of[id].sum = "remembered"
	}
	if got, _ := h.executable(t.Context(), p); got != "remembered" {
		t.Errorf("the file is read again: %s", got)
	}
	// Another process of the same file, changed in between.
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		f.Close()
		t.Error("a file that runs can be written to")
	}
	other := workload(t, nil, func() string {
		copied := path + "2" // replaced by rename, as programs are updated
		if out, err := exec.Command("sh", "-c", "cp "+path+" "+copied+" && echo >>"+copied+" && mv "+copied+" "+path).CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		return path
	}())
	if got, err := h.executable(t.Context(), other); err != nil || got == "remembered" || got == first {
		t.Errorf("%s, %v", got, err)
	}
	// What a process ran when the reading began has to be what it runs at the end.
	exe, err := p.OpenExecutable()
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	id, _, err := sockowner.FileVersion(exe, now)
	if err := errors.Join(err, h.unchanged(p, id)); err != nil {
		t.Error(err)
	}
	if err := h.unchanged(other, id); err == nil {
		t.Error("another file is taken for the one that was read")
	}
	// An end of the one who reads is no one else's.
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	h.of = nil
	if _, err := h.executable(ended, p); err == nil || len(h.of) != 0 {
		t.Error(err, len(h.of))
	}
	if got, err := h.executable(t.Context(), p); err != nil || got != first {
		t.Error(got, err)
	}
}

// An intent of many services asks the kernel no more than one of a single
// service.
func TestFactsAreAskedOnce(t *testing.T) {
	p := workload(t, nil, program(t))
	var services []merlon.Service
	for i := range 100 {
		services = append(services, svc(fmt.Sprint("s", i), merlon.WorkloadRule{UnixUser: fmt.Sprint(40000 + i), SHA256: strings.Repeat("0", 64)}))
	}
	cost := func(services []merlon.Service) float64 {
		a := attestor(t, Options{}, services...)
		return testing.AllocsPerRun(20, func() { a.Identify(t.Context(), p) })
	}
	// Reading /proc/PID/status costs allocations too: a hundred readings would
	// be hundreds.
	if one, all := cost(services[:1]), cost(services); all > one+150 {
		t.Errorf("%v allocations for one service, %v for %d", one, all, len(services))
	}
}

// An engine that does not answer keeps nobody waiting for long.
func TestEngineHangs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	var c dockerContainer
	if err := (&dockerEngine{socket: filepath.Join(dir, "s")}).get(ctx, "/containers/x/json", &c); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}
