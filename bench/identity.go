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
	identityLife  = 40 * time.Second // of an SVID; it is renewed after a third of that
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
	held     int // how many there are
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

func measureCrew(ctx context.Context, dir string, crew int) ([]row, error) {
	n := &node{Dir: filepath.Join(dir, fmt.Sprint("node", crew)), Services: crews[crew].services, FirstUID: identityUID, Lifetime: identityLife}
	var err error
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
	defer p.stop()
	m := &crewRun{name: crews[crew].name, node: n, server: group{p}, program: program}
	err = m.grown(ctx)
	if err == nil {
		err = m.atOnce(ctx)
	}
	return m.rows, errors.Join(err, m.failed)
}

// crewRun is one measurement.
type crewRun struct {
	name, program string
	node          *node
	server        group
	rows          []row
	failed        error
}

func (m *crewRun) add(what, format string, args ...any) {
	m.rows = append(m.rows, row{what, fmt.Sprintf(format, args...)})
	fmt.Fprintf(os.Stderr, "%s: %s: %s\n", m.name, what, m.rows[len(m.rows)-1].figure)
}

// memory is what the server holds when it has settled, in MiB.
func (m *crewRun) memory() string {
	time.Sleep(settle)
	used, err := m.server.memory()
	m.failed = errors.Join(m.failed, err)
	return fmt.Sprintf("%.1f", mib(used))
}

// grown measures workloads that come one after the other.
func (m *crewRun) grown(ctx context.Context) error {
	c := &crowdOf{node: m.node, program: m.program}
	defer c.end()
	held := []string{m.memory()}
	var all []arrival
	for _, most := range []int{1, 100, workloads} {
		some, err := c.grow(ctx, most, perSecond)
		if err != nil {
			return err
		}
		all = append(all, some...)
		held = append(held, m.memory())
	}
	m.add(fmt.Sprintf("SVID after the start of a process, %d a second: p50, p99, most (ms)", perSecond), "%s", spread(all, since))
	m.add("after it connected", "%s", spread(all, sinceConnected))
	m.add("MiB of the server with 0, 1, 100, 1,000 workloads", "%s", strings.Join(held, ", "))
	return nil
}

// atOnce measures workloads that all start now, and stay.
func (m *crewRun) atOnce(ctx context.Context) error {
	c := &crowdOf{node: m.node, program: m.program}
	defer c.end()
	all, err := c.grow(ctx, workloads, 0)
	if err != nil {
		return err
	}
	m.add("SVID after the start, all at once", "%s", spread(all, since))
	m.add("after it connected, all at once", "%s", spread(all, sinceConnected))
	var held []string
	var late []time.Duration
	before, cerr := m.server.cpu()
	signed, jerr := m.node.signed()
	if err := errors.Join(cerr, jerr); err != nil {
		return err
	}
	for range rotations {
		some, err := c.wait(ctx, 0)
		if err != nil {
			return err
		}
		for _, a := range some {
			late = append(late, a.at.Sub(a.issued))
		}
		held = append(held, m.memory())
	}
	after, cerr := m.server.cpu()
	again, jerr := m.node.signed()
	m.add(fmt.Sprintf("MiB after each of %d rotations", rotations), "%s", strings.Join(held, ", "))
	m.add("SVIDs signed, pushed in these; pushed for a processor second", "%d, %d; %.0f", again-signed, len(late), float64(len(late))/(after-before).Seconds())
	m.add("a new SVID is with its workload after, at most (ms)", "%d", slices.Max(late).Milliseconds())
	return errors.Join(cerr, jerr)
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
	began, first := time.Now(), c.held
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
	c.held = most
	return c.wait(ctx, first)
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

// wait waits until each workload from this one on has another SVID than before,
// and gives the first that each got.
func (c *crowdOf) wait(ctx context.Context, from int) ([]arrival, error) {
	var all []arrival
	timeout := time.After(identityLimit)
	for seen := map[int]bool{}; len(all) < c.held-from; {
		select {
		case a := <-c.arrivals:
			if a.failed != nil {
				return nil, a.failed
			}
			if a.workload >= from && !seen[a.workload] {
				seen[a.workload] = true
				all = append(all, a)
			}
		case <-timeout:
			return nil, fmt.Errorf("%d of %d workloads got an SVID within %v", len(all), c.held-from, identityLimit)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return all, nil
}

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
