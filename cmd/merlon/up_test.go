package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestUp(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	u := s.up()
	s.want("/hello", 200, "a")
	s.want("/call", 200, "b")
	s.want("/nothing", 404, "no_operation")
	if out := s.must("status"); !strings.Contains(out, short(u.Intent)) {
		t.Errorf("status does not name the intent %s:\n%s", u.Intent, out)
	}
	s.fails(1, []string{"up"}, "another merlon uses this state directory", "stop it")
	s.want("/call", 200, "b") // the second one harmed nothing
	if code := u.end(syscall.SIGTERM); code != 0 {
		t.Errorf("exit %d\n%s", code, u.stderr.String())
	}
	s.gone()
	s.must("record", "verify")

	again := s.up()
	if again.Intent != u.Intent {
		t.Errorf("intent %s became %s", u.Intent, again.Intent)
	}
	s.want("/call", 200, "b") // at once: up answers when all gates do
	for i := range again.Places {
		if again.Places[i] != u.Places[i] {
			t.Errorf("%v became %v", u.Places[i], again.Places[i])
		}
	}
}

// TestUpStops ends the system while a call is in progress: the call is
// answered, and the exit code is 0.
func TestUpStops(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			u := s.up()
			answered := make(chan string, 1)
			go func() {
				a, err := fetch(s.url("/slow"), "")
				answered <- fmt.Sprint(a.status, a.body, err)
			}()
			eventually(t, "the call has begun", func() bool { return strings.Contains(s.log(), "slow begins") })
			if code := u.end(sig); code != 0 {
				t.Errorf("exit %d\n%s", code, u.stderr.String())
			}
			if a := <-answered; a != "200done<nil>" {
				t.Errorf("the call in progress: %s", a)
			}
			s.gone()
		})
	}
}

// TestNoOrphans kills merlon: what it ran ends with it.
func TestNoOrphans(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	u := s.up()
	s.want("/call", 200, "b")
	u.end(syscall.SIGKILL)
	s.gone()
	s.must("record", "verify")
	s.up()
	s.want("/call", 200, "b")
}

// TestUpElsewhere protects services that merlon does not run.
func TestUpElsewhere(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "elsewhere") }))
	defer app.Close()
	s.write("b.merlon.yaml", "services:\n  b:\n    address: "+app.Listener.Addr().String()+
		"\n    operations: {hello: GET /hello}\n    callers: {anyone: [hello], a: [hello]}\n")
	s.remove("a.merlon.yaml")
	s.write("a.merlon.yaml", "services:\n  a:\n    address: 127.0.0.1:1\n")
	u := s.up()
	s.want("/hello", 200, "elsewhere")
	for _, p := range u.Places {
		if p.Place != "gate of a" {
			continue
		}
		a, err := fetch("http://b/hello", p.Out)
		if err != nil || a.body != "elsewhere" {
			t.Errorf("%+v %v", a, err)
		}
	}
}

// TestUpRefuses is all that can be wrong before the system serves: each is
// said with its place, and nothing is left running.
func TestUpRefuses(t *testing.T) {
	t.Parallel()
	occupy := func(t *testing.T, address string) {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	}
	tests := []struct {
		name string
		make func(*testing.T, *site)
		want []string
	}{
		{"gateway's port in use", func(t *testing.T, s *site) { occupy(t, s.gateway) },
			[]string{"merlon.yaml:2:", "gateway", "GATEWAY", "in use"}},
		{"service's port in use", func(t *testing.T, s *site) { occupy(t, s.b) },
			[]string{"b.merlon.yaml:", "service b wants B", "in use"}},
		{"build fails", func(t *testing.T, s *site) {
			s.write("src/go.mod", "module broken\n")
			s.write("src/main.go", "package main\n\nfunc main() { undefinedWord() }\n")
			s.serviceAs("b", s.b, "a: [hello]", `dir: src
      build: [go, build, -o, "{bin}", .]
      command: ["{bin}"]`)
		}, []string{"b.merlon.yaml:", "building b", "undefined: undefinedWord"}},
		{"no such program", func(t *testing.T, s *site) {
			s.serviceAs("b", s.b, "a: [hello]", "command: [/no/such/program]")
		}, []string{"b.merlon.yaml:", "start b", "/no/such/program"}},
		{"dies at start", func(t *testing.T, s *site) { s.service("b", s.b, "a: [hello]", "DIE: no money") },
			[]string{"b.merlon.yaml:", "service b ended 3 times", "status 3", "cannot go on: no money"}},
		{"socket path too long", func(t *testing.T, s *site) {
			long := filepath.Join(s.dir, strings.Repeat("long", 30))
			if err := os.Mkdir(long, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(long, filepath.Join(s.dir, "link")); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"merlon.yaml", "a.merlon.yaml", "b.merlon.yaml"} {
				if err := os.Rename(filepath.Join(s.dir, name), filepath.Join(long, name)); err != nil {
					t.Fatal(err)
				}
			}
			s.dir = long
		}, []string{"socket has", "choose a shorter"}},
		{"two services at one port", func(t *testing.T, s *site) { s.service("b", s.a, "a: [hello]") },
			[]string{"b.merlon.yaml:", "service b wants", "where service a is to run by a.merlon.yaml:"}},
		{"nothing committed", func(t *testing.T, s *site) { s.remove("merlon.yaml") },
			[]string{"no intent was ever in force", "without --committed"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			tt.make(t, s)
			for i, w := range tt.want {
				tt.want[i] = strings.NewReplacer("GATEWAY", s.gateway, "wants B", "wants "+s.b).Replace(w)
			}
			args := []string{"up", "--json"}
			if tt.name == "nothing committed" {
				args = append(args, "--committed")
			}
			s.fails(1, args, tt.want...)
			for _, address := range []string{s.gateway, s.a, s.b} {
				if strings.Contains(tt.name, "in use") && !free(address) {
					continue // the test itself
				}
				if !free(address) {
					t.Errorf("something runs at %s", address)
				}
			}
		})
	}
}

// TestUpCorruptState damages a good state in every part: up says which file
// and what to do, and changes nothing.
func TestUpCorruptState(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, file string
		data       string // "" keeps it
		mode       os.FileMode
		want       []string
	}{
		{"database of garbage", "control.db", "garbage, and not a little of it", 0o600, []string{"control.db", "restore"}},
		{"database empty", "control.db", " ", 0o600, []string{"control.db", "restore"}},
		{"database of others", "control.db", "", 0o644, []string{"control.db", "chmod 600"}},
		{"key of others", "authority/intermediate.pem", "", 0o644, []string{"authority/intermediate.pem", "chmod 600"}},
		{"key torn", "authority/root.pem", "-----BEGIN CERT", 0o600, []string{"authority", "root.pem", "restore"}},
		{"ports of garbage", "ports.json", "{", 0o600, []string{"ports.json", "remove it"}},
		{"ports of the world", "ports.json", `{"a/out": "0.0.0.0:80"}`, 0o600, []string{"ports.json", "0.0.0.0:80", "remove it"}},
		{"records rewritten", "records/00000000000000000001.jsonl", `{"seq":1}` + "\n", 0o600, []string{"records", "restore"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			u := s.up()
			s.want("/call", 200, "b")
			u.end(syscall.SIGTERM)
			file := filepath.Join(s.dir, ".merlon", filepath.FromSlash(tt.file))
			if tt.name == "records rewritten" {
				list, err := filepath.Glob(filepath.Join(s.dir, ".merlon/records/*.jsonl"))
				if err != nil || len(list) == 0 {
					t.Fatalf("no segments: %v", err)
				}
				file = list[0]
			}
			if _, err := os.Stat(file); err != nil {
				t.Fatal(err)
			}
			if tt.data != "" {
				if err := os.WriteFile(file, []byte(strings.TrimSpace(tt.data)), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Chmod(file, tt.mode); err != nil {
				t.Fatal(err)
			}
			before, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s.fails(1, []string{"up"}, tt.want...)
			after, err := os.ReadFile(file)
			if err != nil || string(after) != string(before) {
				t.Errorf("the file was changed (%v)", err)
			}
			s.gone()
		})
	}
}

// TestUpTornRecords is what a power cut leaves: up goes on, and keeps the torn
// part aside.
func TestUpTornRecords(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	u := s.up()
	s.want("/call", 200, "b")
	u.end(syscall.SIGTERM)
	list, err := filepath.Glob(filepath.Join(s.dir, ".merlon/records/*.jsonl"))
	if err != nil || len(list) == 0 {
		t.Fatalf("no segments: %v", err)
	}
	f, err := os.OpenFile(list[len(list)-1], os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString(`{"seq":99,"time`)
	f.Close()
	s.up()
	s.want("/call", 200, "b")
	s.must("record", "verify")
}

// TestUpChanged starts a system whose files changed while it was down.
func TestUpChanged(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	u := s.up()
	u.end(syscall.SIGTERM)
	good := u.Intent

	s.service("b", s.b, "a: [hello], anyone: [slow]")
	s.service("a", s.a, "anyone: [hello, call]", "PEER: b")
	s.fails(2, []string{"up"}, "widens", "--widen", "anyone may call b.slow")
	s.gone()
	s.write("merlon.yaml", "trustDomain: [\n")
	s.fails(1, []string{"up"}, "merlon.yaml:", "merlon up --committed")
	s.gone()
	c := s.up("--committed")
	if c.Intent != good {
		t.Errorf("intent %s runs, want %s", c.Intent, good)
	}
	s.want("/call", 200, "b")
	c.end(syscall.SIGTERM)

	s.head(s.gateway)
	if w := s.up("--widen"); w.Intent == good {
		t.Error("the old intent runs")
	}
	s.want("/slow", 200, "done")
}

// TestUpInterrupted ends merlon while it still builds.
func TestUpInterrupted(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serviceAs("b", s.b, "a: [hello]", "build: [sleep, '60']\n      command: [sleep, '60']")
	cmd := exec.Command(merlonBin(t), "up", s.dir)
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	var text []byte
	for line := make([]byte, 256); !strings.Contains(string(text), "building b"); {
		n, err := said.Read(line)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		text = append(text, line[:n]...)
	}
	cmd.Process.Signal(syscall.SIGINT)
	kill := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
	rest, _ := io.ReadAll(said)
	cmd.Wait()
	if !kill.Stop() || cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(rest), "interrupted") {
		t.Errorf("%v\n%s", cmd.ProcessState, rest)
	}
	s.gone()
}

// TestUpMovesAway changes what keeps the committed intent from coming up again.
func TestUpMovesAway(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	u := s.up()
	u.end(syscall.SIGTERM)
	l, err := net.Listen("tcp", s.gateway)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s.fails(1, []string{"up"}, "in use", "gateway")
	s.head(s.c)
	s.up()
	s.want("/call", 200, "b")
}
