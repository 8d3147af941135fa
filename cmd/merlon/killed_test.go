package main

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// load calls a site from several clients until stop is called.
type load struct {
	stop    func()
	mu      sync.Mutex
	good    int
	strange []string // answers that neither the app nor a gate may give
}

// startLoad calls path. Any answer but want and those of excuses is strange;
// no answer at all is not.
func (s *site) startLoad(path, want string, excuses ...int) *load {
	l := &load{}
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			tr := &http.Transport{}
			defer tr.CloseIdleConnections()
			for {
				select {
				case <-done:
					return
				default:
				}
				a, err := fetchBy(tr, s.url(path), "")
				if err != nil {
					time.Sleep(time.Millisecond) // nobody listens: do not spin
					continue
				}
				l.mu.Lock()
				excused := false
				for _, status := range excuses {
					excused = excused || a.status == status
				}
				if a.status == 200 && strings.HasPrefix(a.body, want) {
					l.good++
				} else if !excused {
					l.strange = append(l.strange, fmt.Sprint(a))
				}
				l.mu.Unlock()
			}
		})
	}
	l.stop = sync.OnceFunc(func() { close(done); wg.Wait() })
	s.t.Cleanup(l.stop)
	return l
}

func (l *load) served() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.good
}

func (l *load) check(t *testing.T) {
	t.Helper()
	l.stop()
	if len(l.strange) > 0 {
		t.Errorf("%d strange answers, such as %s", len(l.strange), l.strange[0])
	}
	t.Logf("%d calls were answered", l.good)
}

// TestKilledAtAnyMoment kills merlon without warning while clients call and the
// intent changes, and starts it again: the records are whole, the intent in
// force is the last one that an apply said was, or the one being applied, and
// calls work.
func TestKilledAtAnyMoment(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	random := rand.New(rand.NewPCG(1, 2))
	// The limit changes with every version, and who may call with every other.
	version := func(n int) {
		callers := "a: [hello]"
		if n%2 == 1 {
			callers = "a: [hello, slow]"
		}
		s.service("b", s.b, callers)
		text := fmt.Sprintf("trustDomain: test.example\ngateway:\n  listen: %s\n  hosts: [localhost]\n  certificate: none\n  limit: {rate: %d/s, burst: 100000, per: client}\n", s.gateway, 100000+n)
		s.write("merlon.yaml", text)
	}
	version(0)
	u := s.up()
	hashes := map[string]int{u.Intent: 0}
	last, n := 0, 0
	// While merlon is down nobody answers; while it comes up or goes, gates
	// may miss their peers: 502 and 503 are honest. 404 and 403 would be a gate
	// without its orders.
	l := s.startLoad("/call", "b", 502, 503, 504)
	for range 5 {
		served := l.served()
		eventually(t, "calls are served", func() bool { return l.served() > served+20 })

		stop, stopped := make(chan struct{}), make(chan struct{})
		tried := n
		go func() { // applies one version after the other until merlon is gone
			defer close(stopped)
			for {
				select {
				case <-stop:
					return
				default:
				}
				tried++
				version(tried)
				out, _, code := s.merlon("apply", "--widen", "--json")
				if code != 0 {
					return
				}
				n = tried
				if hash := hashIn(out); hash != "" {
					hashes[hash], last = n, n
				}
			}
		}()
		time.Sleep(time.Duration(20+random.IntN(700)) * time.Millisecond)
		u.end(syscall.SIGKILL)
		close(stop)
		<-stopped
		n = tried

		s.must("record", "verify")
		u = s.up("--committed")
		at, known := hashes[u.Intent]
		if !known {
			at, hashes[u.Intent] = tried, tried // the one in flight was recorded
		}
		if at != last && at != tried {
			t.Errorf("version %d is in force; the last that was applied is %d, and %d was under way", at, last, tried)
		}
		last = at
		if got := s.inForce(); got != u.Intent {
			t.Errorf("status says %s, merlon up %s", got, u.Intent)
		}
		s.want("/call", 200, "b")
	}
	l.check(t)
	if code := u.end(syscall.SIGTERM); code != 0 {
		t.Errorf("exit %d", code)
	}
	s.must("record", "verify")
	t.Logf("%d versions were tried", n)
}

// hashIn is the intent's hash in the answer of apply --json.
func hashIn(out string) string {
	_, rest, _ := strings.Cut(out, `"hash": "`)
	hash, _, _ := strings.Cut(rest, `"`)
	return hash
}

// TestServiceKilled kills a service under load: it is started again, and
// nothing but errors of the upstream is seen meanwhile.
func TestServiceKilled(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.up()
	l := s.startLoad("/hello", "a", 502, 503)
	for range 3 {
		served := l.served()
		eventually(t, "calls are served", func() bool { return l.served() > served+20 })
		a, err := fetch(s.url("/hello"), "")
		if err != nil || a.pid == "" {
			continue
		}
		pid, err := strconv.Atoi(a.pid)
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the service is back", func() bool {
			b, err := fetch(s.url("/hello"), "")
			return err == nil && b.status == 200 && b.pid != a.pid
		})
	}
	l.check(t)
}
