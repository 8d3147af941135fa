package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// inForce is the intent that status says is in force, and every gate with it.
func (s *site) inForce() string {
	s.t.Helper()
	out := s.must("status", "--json")
	var st struct{ Intent struct{ Hash string } }
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		s.t.Fatal(err)
	}
	return st.Intent.Hash
}

func (s *site) apply(args ...string) string {
	s.t.Helper()
	s.must(append([]string{"apply"}, args...)...)
	return s.inForce()
}

// TestApply changes a running system in every way that is not only a rule.
func TestApply(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	u := s.up()
	pid := s.want("/hello", 200, "a").pid

	t.Log("a service comes")
	s.service("c", s.c, "a: [hello], anyone: [slow]")
	s.service("a", s.a, "anyone: [hello, call]", "PEER: c") // and a changes in its place
	s.fails(2, []string{"apply"}, "--widen", "anyone may call c.slow")
	s.want("/call", 200, "b")
	if got := s.inForce(); got != u.Intent {
		t.Errorf("intent %s is in force, want %s", got, u.Intent)
	}
	s.apply("--widen")
	s.want("/call", 200, "c")
	s.want("/slow", 200, "done")
	if now := s.want("/hello", 200, "a").pid; now == pid {
		t.Error("a was not started again, though its run: changed")
	}

	t.Log("lines move: nothing is started again")
	pid = s.want("/hello", 200, "a").pid
	text, err := os.ReadFile(filepath.Join(s.dir, "a.merlon.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	s.write("a.merlon.yaml", "# a comment\n\n"+string(text))
	s.apply()
	if now := s.want("/hello", 200, "a").pid; now != pid {
		t.Error("a was started again for a comment")
	}

	t.Log("a service goes")
	s.remove("b.merlon.yaml")
	s.apply()
	s.want("/call", 200, "c")
	eventually(t, "b has ended", func() bool { return free(s.b) })
	for _, p := range u.Places {
		if p.Place == "gate of b" {
			eventually(t, "b's gate has ended", func() bool { return free(p.In) && free(p.Out) })
		}
	}

	t.Log("a service moves to another port")
	s.service("c", s.b, "a: [hello]")
	s.apply()
	s.want("/call", 200, "c")
	eventually(t, "c left its old port", func() bool { return free(s.c) })

	t.Log("a service takes the name and port of another")
	s.remove("c.merlon.yaml")
	s.service("d", s.b, "a: [hello]")
	s.service("a", s.a, "anyone: [hello, call]", "PEER: d")
	s.apply("--widen")
	s.want("/call", 200, "d")

	t.Log("two services change places, in two steps at once")
	s.service("a", s.c, "anyone: [hello, call]", "PEER: d")
	s.service("d", s.a, "a: [hello]")
	s.apply()
	s.want("/call", 200, "d")
	eventually(t, "d left its old port", func() bool { return free(s.b) })

	t.Log("the gateway moves")
	old := s.gateway
	s.head(s.b)
	s.apply()
	s.want("/call", 200, "d")
	eventually(t, "the old gateway has ended", func() bool { return free(old) })

	t.Log("nothing changed")
	s.apply()
	s.must("record", "verify")
}

// TestApplyRefused holds a running system to its intent when the next one
// cannot be put in force.
func TestApplyRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	u := s.up()
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	pid := s.want("/hello", 200, "a").pid
	good := map[string]string{}
	for _, name := range []string{"merlon.yaml", "a.merlon.yaml", "b.merlon.yaml"} {
		text, err := os.ReadFile(filepath.Join(s.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		good[name] = string(text)
	}
	tests := []struct {
		name string
		make func()
		want []string
	}{
		{"trust domain", func() {
			s.write("merlon.yaml", strings.Replace(good["merlon.yaml"], "test.example", "other.example", 1))
		}, []string{"trust domain cannot change", "another state directory"}},
		{"files are broken", func() { s.write("merlon.yaml", "gateway: [") }, []string{"merlon.yaml:"}},
		{"new service dies, another and the gateway's move would work", func() {
			s.service("c", s.c, "a: [hello]", "DIE: no luck")
			s.write("merlon.yaml", strings.Replace(good["merlon.yaml"], s.gateway, "127.0.0.2:"+port(s.gateway), 1))
		}, []string{"c.merlon.yaml:", "no luck"}},
		{"new service's port in use", func() { s.service("c", busy.Addr().String(), "a: [hello]") },
			[]string{"service c wants " + busy.Addr().String(), "in use"}},
		{"new service on another's port", func() { s.service("c", s.b, "a: [hello]") }, []string{"service c", s.b, "b"}},
		{"gateway's port in use", func() {
			s.write("merlon.yaml", strings.Replace(good["merlon.yaml"], s.gateway, busy.Addr().String(), 1))
		}, []string{"merlon.yaml:2:", busy.Addr().String(), "in use"}},
		{"build fails", func() {
			s.write("src/go.mod", "module broken\n")
			s.write("src/main.go", "package main\n\nfunc main() { undefinedWord() }\n")
			s.serviceAs("b", s.b, "a: [hello]", `dir: src
      build: [go, build, -o, "{bin}", .]
      command: ["{bin}"]`)
		}, []string{"building b", "undefined: undefinedWord"}},
		{"moved service dies", func() { s.service("b", s.c, "a: [hello]", "DIE: no room") }, []string{"b.merlon.yaml:", "no room"}},
	}
	for _, tt := range tests {
		tt.make()
		t.Log(tt.name)
		s.fails(1, []string{"apply", "--widen"}, tt.want...)
		if got := s.inForce(); got != u.Intent {
			t.Errorf("%s: intent %s is in force, want %s", tt.name, got, u.Intent)
		}
		s.want("/call", 200, "b")
		if now := s.want("/hello", 200, "a").pid; now != pid {
			t.Errorf("%s: a was started again", tt.name)
		}
		if !free(s.c) {
			t.Errorf("%s: what was started was not taken down", tt.name)
		}
		os.Remove(filepath.Join(s.dir, "c.merlon.yaml"))
		for name, text := range good {
			s.write(name, text)
		}
	}
	s.apply()
}

func port(address string) string {
	_, p, err := net.SplitHostPort(address)
	if err != nil {
		panic(err)
	}
	return p
}

// TestApplyFallsBack changes a service in its place to one that does not
// start: it is known only when the intent is in force, so the old one goes on.
func TestApplyFallsBack(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.up()
	s.service("b", s.b, "a: [hello]", "DIE: too new")
	s.fails(1, []string{"apply"}, "b.merlon.yaml:", "too new", "runs as before", "E0403")
	s.want("/call", 200, "b")
	s.service("b", s.b, "a: [hello]")
	s.apply()
	s.want("/call", 200, "b")
}

// TestApplyUnderLoad lets a service and the gateway's address come and go
// while clients call another service: no call of theirs fails.
func TestApplyUnderLoad(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.up()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed []string
	calls := 0
	for range 4 {
		wg.Go(func() {
			tr := &http.Transport{}
			defer tr.CloseIdleConnections()
			for {
				select {
				case <-stop:
					return
				default:
				}
				a, err := fetchBy(tr, s.url("/call"), "")
				mu.Lock()
				calls++
				if err != nil || a.status != 200 || a.body != "b" {
					failed = append(failed, fmt.Sprint(a, err))
				}
				mu.Unlock()
			}
		})
	}
	for range 3 {
		s.service("c", s.c, "a: [hello], b: [hello]")
		s.apply("--widen")
		s.remove("c.merlon.yaml")
		s.apply()
		eventually(t, "c has ended", func() bool { return free(s.c) })
	}
	close(stop)
	wg.Wait()
	if len(failed) > 0 {
		t.Errorf("%d of %d calls failed, such as %v", len(failed), calls, failed[:min(len(failed), 5)])
	}
	t.Logf("%d calls", calls)
}
