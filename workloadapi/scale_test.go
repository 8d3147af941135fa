package workloadapi

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"merlon"
	"merlon/authority"
)

// crowd is how many workloads there are at once: processes of their own, each
// another user and another service.
const crowd = 200

// held is what the server's process holds.
type held struct {
	goroutines, descriptors int
	heap                    uint64
}

func holding(t testing.TB) held {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.GC() // what finalizers let go
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return held{runtime.NumGoroutine(), len(fds), m.HeapAlloc}
}

// settles waits until what is held is what it should be.
func settles(t testing.TB, what string, ok func(held) bool) {
	t.Helper()
	var h held
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if h = holding(t); ok(h) {
			return
		}
	}
	t.Errorf("%s: %+v", what, h)
}

// said is a line of a workload.
type said struct {
	workload int
	line     string
}

// startCrowd starts them all, each as another user, and gives what they say. They
// leave when leave is called.
func startCrowd(t *testing.T, program, socket string, first uint32) (all chan said, leave func()) {
	t.Helper()
	stdin, keep, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	all = make(chan said, crowd)
	var running sync.WaitGroup
	for i := range crowd {
		cmd := exec.Command(program, socket)
		cmd.Stdin = stdin // ends when the test lets go of it
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: first + uint32(i), Gid: first}}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		running.Go(func() {
			for lines := bufio.NewScanner(out); lines.Scan(); {
				all <- said{i, lines.Text()}
			}
			cmd.Wait()
		})
	}
	stdin.Close()
	leave = sync.OnceFunc(func() {
		keep.Close()
		go func() { running.Wait(); close(all) }()
		for range all { // who was about to speak may
		}
	})
	t.Cleanup(leave)
	return all, leave
}

// Many workloads that start at once get each its own identity and no other's,
// through rotations that hold no more each time; and when they have left, nothing
// of them is left. It is not run beside others: what it counts is the process's.
func TestManyWorkloads(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can start processes of many users: that each gets its own identity is not shown")
	}
	const first = 50000 // uid
	var services []merlon.Service
	for i := range crowd {
		services = append(services, merlon.Service{Name: "w" + strconv.Itoa(i), Workload: &merlon.WorkloadRule{UnixUser: strconv.Itoa(first + i)}})
	}
	e := start(t, authority.Options{Lifetime: 8 * time.Second}, services...)
	dir := filepath.Dir(e.path)
	program := filepath.Join(dir, "workload")
	if out, err := exec.Command("go", "build", "-o", program, "merlon/bench/workload").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	before := holding(t)

	all, leave := startCrowd(t, program, e.path, first)
	// The program itself holds the certificate to the name, and the key to the
	// certificate.
	serials := map[string]string{}
	rotation := func() {
		deadline := time.After(time.Minute)
		for seen := map[int]bool{}; len(seen) < crowd; {
			select {
			case s := <-all:
				f := strings.Fields(s.line)
				want := fmt.Sprintf("spiffe://%s/w%d", td, s.workload)
				if len(f) != 5 || f[0] != want {
					t.Fatalf("workload %d: %s", s.workload, s.line)
				}
				if of := serials[f[1]]; of != "" {
					t.Errorf("%s and %s have one SVID", of, f[0])
				}
				serials[f[1]], seen[s.workload] = f[0], true
			case <-deadline:
				t.Fatalf("%d of %d workloads have an SVID", len(seen), crowd)
			}
		}
	}
	rotation()
	with := holding(t)
	for range 2 {
		rotation()
		settles(t, fmt.Sprintf("more is held after a rotation than %+v", with), func(h held) bool {
			return h.goroutines <= with.goroutines && h.descriptors <= with.descriptors && h.heap <= with.heap+1<<20
		})
	}
	leave()
	settles(t, fmt.Sprintf("something of %d workloads is left, besides %+v", crowd, before), func(h held) bool {
		return h.goroutines <= before.goroutines && h.descriptors <= before.descriptors && h.heap <= before.heap+1<<20
	})
	e.Server.mu.Lock()
	defer e.Server.mu.Unlock()
	e.callers.mu.Lock()
	defer e.callers.mu.Unlock()
	if len(e.svids) > 0 || e.callers.all > 0 || len(e.callers.byPID) > 0 {
		t.Errorf("%d SVIDs, %d connections of %d processes are still counted", len(e.svids), e.callers.all, len(e.callers.byPID))
	}
}
