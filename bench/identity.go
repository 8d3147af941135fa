package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"merlon/identity/spiffe"
)

// What go run ./bench -run identity measures: how soon a process that starts has
// its X.509-SVID, what a thousand of them cost the Workload API in memory and
// processor time, and how soon all have the next one.
const (
	identityRun   = "identity"
	workloads     = 1000
	perSecond     = 100 // that start, when not all at once
	rotations     = 5
	identityLife  = 40 * time.Second // of an SVID; it is renewed at half of that
	identityUID   = 40000            // of the first service
	identityLimit = 3 * time.Minute  // for any one thing to happen
)

// crews are the workloads that are measured.
var crews = []struct {
	name     string
	services int
	sha256   bool
}{
	{"1,000 services, by user", workloads, false},
	{"1,000 services, by user and SHA-256", workloads, true},
	{"one service, by user", 1, false},
}

// arrival is one SVID that reached a workload.
type arrival struct {
	workload       int
	id, serial     string
	connected, at  time.Time
	issued         time.Time // whole seconds
	failed         error
	sinceStart     time.Duration // of the process
	sinceConnected time.Duration
}

// crowdOf is the workloads of one node.
type crowdOf struct {
	node     *node
	program  string
	keep     *os.File // its end is theirs
	stdin    *os.File
	arrivals chan arrival
	wg       sync.WaitGroup
	held     []string // serial number of each
}

func measureIdentity(ctx context.Context, out io.Writer) error {
	if os.Getuid() != 0 {
		return errors.New("identity is measured with a user for each service, which root alone can start: run it as root")
	}
	dir, err := os.MkdirTemp("", "merlon-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	for name, pkg := range map[string]string{"bench": "./bench", "workload": "./bench/workload"} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, name), pkg)
		if said, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", pkg, err, said)
		}
	}
	fmt.Fprintf(out, "%d workloads, %d processors, %s/%s, %s.\n\n", workloads, runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version())
	fmt.Fprintf(out, "| | %s | %s | %s |\n|---|---|---|---|\n", crews[0].name, crews[1].name, crews[2].name)
	columns := make([][]row, len(crews))
	for i := range crews {
		if columns[i], err = measureCrew(ctx, dir, i); err != nil {
			return fmt.Errorf("%s: %w", crews[i].name, err)
		}
	}
	for r := range columns[0] {
		fmt.Fprintf(out, "| %s |", columns[0][r].what)
		for _, rows := range columns {
			fmt.Fprintf(out, " %s |", rows[r].figure)
		}
		fmt.Fprintln(out)
	}
	return nil
}

// row is one line of a crew's results.
type row struct{ what, figure string }

func measureCrew(ctx context.Context, dir string, crew int) (rows []row, err error) {
	n := &node{Dir: filepath.Join(dir, fmt.Sprint("node", crew)), Services: crews[crew].services, FirstUID: identityUID, Lifetime: identityLife}
	if n.Listen, err = freeAddr(); err != nil {
		return nil, err
	}
	program := filepath.Join(dir, "workload")
	if crews[crew].sha256 {
		text, err := os.ReadFile(program)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(text)
		n.SHA256 = hex.EncodeToString(sum[:])
	}
	spec, err := json.Marshal(n)
	if err := errors.Join(err, os.Mkdir(n.Dir, 0o755)); err != nil {
		return nil, err
	}
	p, err := start(n.Listen, []string{filepath.Join(dir, "bench"), "-be", "node", "-hop", string(spec)}, 0)
	if err != nil {
		return nil, err
	}
	server := group{p}
	defer server.stop()
	add := func(what, format string, args ...any) {
		rows = append(rows, row{what, fmt.Sprintf(format, args...)})
		fmt.Fprintf(os.Stderr, "%s: %s: %s\n", crews[crew].name, what, rows[len(rows)-1].figure)
	}
	memory := func() string {
		time.Sleep(settle)
		used, merr := server.memory()
		err = errors.Join(err, merr)
		return fmt.Sprintf("%.1f", mib(used))
	}
	c := &crowdOf{node: n, program: program}
	defer func() { c.end() }()

	steps := []string{memory()}
	var all []arrival
	for _, most := range []int{1, 100, workloads} {
		some, err := c.grow(ctx, most, perSecond)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
		steps = append(steps, memory())
	}
	add(fmt.Sprintf("SVID after the start of a process, %d a second: p50, p99, most (ms)", perSecond), "%s", spread(all, since))
	add("after it connected", "%s", spread(all, sinceConnected))
	add("MiB of the server with 0, 1, 100, 1,000 workloads", "%s", strings.Join(steps, ", "))
	c.end()

	// All at once, and then they stay.
	c = &crowdOf{node: n, program: program}
	if all, err = c.grow(ctx, workloads, 0); err != nil {
		return nil, err
	}
	add("SVID after the start, all at once", "%s", spread(all, since))
	add("after it connected, all at once", "%s", spread(all, sinceConnected))
	steps = nil
	var used time.Duration
	var issued, pushed int
	var late []time.Duration
	for range rotations {
		before, cerr := server.cpu()
		signed, jerr := n.signed()
		if err := errors.Join(err, cerr, jerr); err != nil {
			return nil, err
		}
		some, err := c.rotated(ctx)
		if err != nil {
			return nil, err
		}
		after, cerr := server.cpu()
		again, jerr := n.signed()
		if err := errors.Join(cerr, jerr); err != nil {
			return nil, err
		}
		used, issued, pushed = used+after-before, issued+again-signed, pushed+len(some)
		for _, a := range some {
			late = append(late, a.at.Sub(a.issued))
		}
		steps = append(steps, memory())
	}
	add(fmt.Sprintf("MiB after each of %d rotations", rotations), "%s", strings.Join(steps, ", "))
	add("SVIDs signed and pushed in these, for a processor second", "%d signed, %d pushed: %.0f", issued, pushed, float64(pushed)/used.Seconds())
	add("a new SVID is with its workload after, at most (ms)", "%d", slices.Max(late).Milliseconds())
	return rows, err
}

func since(a *arrival) time.Duration          { return a.sinceStart }
func sinceConnected(a *arrival) time.Duration { return a.sinceConnected }

// spread is the median, the 99th percentile and the most, in milliseconds.
func spread(all []arrival, figure func(*arrival) time.Duration) string {
	var v []time.Duration
	for i := range all {
		v = append(v, figure(&all[i]))
	}
	slices.Sort(v)
	at := func(q float64) time.Duration { return v[int(q*float64(len(v)-1))] }
	return fmt.Sprintf("%.0f, %.0f, %.0f", ms(at(0.5)), ms(at(0.99)), ms(at(1)))
}

// signed is how many X.509-SVIDs are in the node's journal.
func (n *node) signed() (int, error) {
	text, err := os.ReadFile(n.journal())
	return bytes.Count(text, []byte(`{"kind":"svid"`)), err
}

// grow starts workloads until there are so many, at a rate or, with 0, at once,
// and waits until each has its SVID.
func (c *crowdOf) grow(ctx context.Context, most, rate int) ([]arrival, error) {
	if c.keep == nil {
		var err error
		if c.stdin, c.keep, err = os.Pipe(); err != nil {
			return nil, err
		}
		c.arrivals = make(chan arrival, workloads)
	}
	began, first := time.Now(), len(c.held)
	go func() {
		for i := first; i < most && ctx.Err() == nil; i++ {
			if rate > 0 {
				time.Sleep(time.Until(began.Add(time.Duration(i-first) * time.Second / time.Duration(rate))))
			}
			if err := c.start(i); err != nil {
				c.arrivals <- arrival{failed: err}
				return
			}
		}
	}()
	c.held = slices.Grow(c.held, most-first)[:most]
	return c.wait(ctx, most-first)
}

// start starts a workload and reads what it says until it ends.
func (c *crowdOf) start(i int) error {
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	uid := uint32(c.node.FirstUID + i%c.node.Services)
	cmd := exec.Command(c.program, c.node.socket())
	cmd.Stdin, cmd.Stdout = c.stdin, in
	cmd.Env = []string{"GOMAXPROCS=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	started := time.Now()
	err = cmd.Start()
	in.Close()
	if err != nil {
		out.Close()
		return err
	}
	c.wg.Go(func() {
		defer out.Close()
		for lines := bufio.NewScanner(out); lines.Scan(); {
			c.arrivals <- c.read(i, started, lines.Text())
		}
		cmd.Wait()
	})
	return nil
}

// read reads a line of a workload; see there.
func (c *crowdOf) read(i int, started time.Time, line string) arrival {
	a := arrival{workload: i}
	var connected, at, from int64
	if _, err := fmt.Sscanf(line, "%s %s %d %d %d", &a.id, &a.serial, &connected, &at, &from); err != nil {
		a.failed = fmt.Errorf("workload %d: %s", i, line)
		return a
	}
	a.connected, a.at, a.issued = time.UnixMicro(connected), time.UnixMicro(at), time.Unix(from, 0).Add(spiffe.Skew)
	a.sinceStart, a.sinceConnected = a.at.Sub(started), a.at.Sub(a.connected)
	if want := c.node.id(i % c.node.Services); a.id != want {
		a.failed = fmt.Errorf("workload %d got %s, not %s", i, a.id, want)
	}
	return a
}

// wait waits until so many workloads have another SVID than before.
func (c *crowdOf) wait(ctx context.Context, n int) ([]arrival, error) {
	var all []arrival
	timeout := time.After(identityLimit)
	for seen := map[int]bool{}; len(seen) < n; {
		select {
		case a := <-c.arrivals:
			if a.failed != nil {
				return nil, a.failed
			}
			seen[a.workload], c.held[a.workload] = true, a.serial
			all = append(all, a)
		case <-timeout:
			return nil, fmt.Errorf("%d of %d workloads got an SVID within %v", len(seen), n, identityLimit)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return all, nil
}

// rotated waits until every workload has another SVID.
func (c *crowdOf) rotated(ctx context.Context) ([]arrival, error) { return c.wait(ctx, len(c.held)) }

// end ends the workloads.
func (c *crowdOf) end() {
	if c.keep == nil {
		return
	}
	c.keep.Close()
	c.stdin.Close()
	done := make(chan struct{})
	go func() { c.wg.Wait(); close(done) }()
	for {
		select {
		case <-c.arrivals: // who was about to tell may
		case <-done:
			c.keep = nil
			return
		}
	}
}
