// Package supervise starts programs, hands on what they print, starts them
// again when they fail, and takes them down.
//
// No program outlives its Supervisor: each runs in a session of its own, which
// is one process group, Close ends all groups, and on Linux the kernel kills the programs when the
// Supervisor's process dies, even by SIGKILL. What a program starts itself is
// in its group and ends with it; only after a SIGKILL of the Supervisor's
// process may a program's own children be left.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// ErrClosed is the error of a Start after Close.
var ErrClosed = errors.New("the supervisor is closed")

// Spec says how to run one program.
type Spec struct {
	Name string   // for output and messages
	Argv []string // the program and its arguments, never given to a shell
	Dir  string
	Env  []string // the whole environment; nothing is inherited
	// Output receives each line of standard output and error, without its
	// end. Lines longer than 8 KiB come in pieces. A slow Output slows the
	// program down instead of filling memory. It may be nil.
	Output func(name, line string)
	// Exited is told of each end of the program, before it is started again.
	// It may be nil.
	Exited func(Exit)
	// Start calls start, which starts the program, on the same thread: the
	// program inherits what it changes of that. It may be nil.
	Start func(start func() error) error
	// Dial connects to the program; nil for the system's.
	Dial    func(ctx context.Context, address string) (net.Conn, error)
	User    *User         // nil: as who runs the Supervisor
	Grace   time.Duration // from SIGTERM to SIGKILL; 0 is 5 seconds
	Restart *Restart      // nil: the program runs once
}

// User is whom a program runs as.
type User struct {
	UID, GID uint32
	Groups   []uint32
}

// Restart says how soon a program that ended is started again: after Min, then
// after twice the last delay up to Max, and after Min again once it has run
// for Steady.
type Restart struct{ Min, Max, Steady time.Duration }

// Exit is one end of a program.
type Exit struct {
	Name  string
	Code  int           // exit status; -1 when a signal ended it or it did not start
	Err   error         // nil for status 0
	Again time.Duration // when it is started again; 0 for never
}

// Supervisor runs programs. Make it with New.
type Supervisor struct {
	starts   chan start
	quit     chan struct{}
	confined bool

	mu     sync.Mutex
	procs  map[*Process]struct{}
	closed bool
}

type start struct {
	spec *Spec
	cmd  *exec.Cmd
	err  chan error
}

// New returns a Supervisor without programs.
func New() *Supervisor { return supervisor(false) }

// NewConfined returns a Supervisor whose programs, as root too, have only the
// capabilities that programs commonly need, gain none by any file that they run,
// and make no sockets but those of Unix, IP and netlink: they cannot enter other
// namespaces, change the network, load code into the kernel, or trace a process
// that has more. Where the system has no such bounds no program starts.
func NewConfined() *Supervisor { return supervisor(true) }

func supervisor(confined bool) *Supervisor {
	s := &Supervisor{starts: make(chan start), quit: make(chan struct{}), confined: confined, procs: map[*Process]struct{}{}}
	go s.parent()
	return s
}

// parent starts every program from one thread, which lives as long as the
// Supervisor. The kernel sends the death signal when the *thread* that forked
// ends (prctl(2), PR_SET_PDEATHSIG), and the Go runtime ends threads as it
// likes unless a goroutine is locked to them.
//
// What programs inherit is changed on that thread too, once and for good; it is
// never unlocked, so that it ends with the goroutine.
func (s *Supervisor) parent() {
	runtime.LockOSThread()
	var err error
	if s.confined {
		err = confine()
	}
	for {
		select {
		case st := <-s.starts:
			switch {
			case err != nil:
				st.err <- err
			case st.spec.Start != nil:
				st.err <- st.spec.Start(st.cmd.Start)
			default:
				st.err <- st.cmd.Start()
			}
		case <-s.quit:
			return
		}
	}
}

func (s *Supervisor) fork(spec *Spec, cmd *exec.Cmd) error {
	st := start{spec, cmd, make(chan error, 1)}
	select {
	case s.starts <- st:
		return <-st.err
	case <-s.quit:
		return ErrClosed
	}
}

// Process is one program, over all its starts.
type Process struct {
	s    *Supervisor
	spec Spec
	stop chan struct{} // closed by Stop
	once sync.Once
	done chan struct{} // closed when the program will not run again

	mu   sync.Mutex
	pid  int  // 0 between two runs
	run  *run // the latest; nil before the first
	last Exit // the latest end
}

// ErrNotRunning is the error of Hold between two runs of a program.
var ErrNotRunning = errors.New("the program does not run")

// Hold calls f with the program's process id, and lets nobody else have that
// id before f returns: a program that ends meanwhile is reaped after f.
func (p *Process) Hold(f func(pid int) error) error {
	p.mu.Lock()
	r := p.run
	p.mu.Unlock()
	if r == nil {
		return ErrNotRunning
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.reaped {
		return ErrNotRunning
	}
	return f(r.pid)
}

// Start starts a program. An error means that it could not be started at all;
// how it ends is told to Exited.
func (s *Supervisor) Start(spec Spec) (*Process, error) {
	if len(spec.Argv) == 0 || spec.Argv[0] == "" {
		return nil, fmt.Errorf("%s: no command", spec.Name)
	}
	if spec.Grace == 0 {
		spec.Grace = 5 * time.Second
	}
	p := &Process{s: s, spec: spec, stop: make(chan struct{}), done: make(chan struct{})}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, ErrClosed
	}
	s.procs[p] = struct{}{} // before the fork, so that Close waits for it
	s.mu.Unlock()

	r, err := p.launch()
	if err != nil {
		s.forget(p)
		close(p.done)
		return nil, fmt.Errorf("start %s: %w", spec.Name, err)
	}
	go p.keep(r)
	return p, nil
}

func (s *Supervisor) forget(p *Process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.procs, p)
}

// Close stops all programs, at once and each within its grace, and waits for
// their ends.
func (s *Supervisor) Close() {
	s.mu.Lock()
	already := s.closed
	s.closed = true
	procs := make([]*Process, 0, len(s.procs))
	for p := range s.procs {
		procs = append(procs, p)
	}
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, p := range procs {
		wg.Go(p.Stop)
	}
	wg.Wait()
	if !already {
		close(s.quit) // only now: the thread's end would kill what still runs
	}
}

// Stop asks the program to end, kills its group after the grace, and returns
// when it has ended and its output is handed on.
func (p *Process) Stop() {
	p.once.Do(func() { close(p.stop) })
	<-p.done
}

// Done is closed when the program has ended and is not started again.
func (p *Process) Done() <-chan struct{} { return p.done }

// PID is the process id, or 0 when the program does not run just now.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid
}

// Last is the latest end of the program; its Name is "" when it never ended.
func (p *Process) Last() Exit {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last
}

// keep sees the program through its runs.
func (p *Process) keep(r *run) {
	defer close(p.done)
	defer p.s.forget(p)
	var delay time.Duration
	var failed error // to launch again
	for {
		exit, steady := Exit{Name: p.spec.Name, Code: -1, Err: failed}, false
		if failed == nil {
			exit, steady = p.watch(r)
		}
		if restart := p.spec.Restart; restart != nil && !isClosed(p.stop) {
			if steady {
				delay = 0
			}
			delay = max(min(delay*2, restart.Max), restart.Min, 1) // 0 says never
			exit.Again = delay
		}
		p.report(exit)
		if exit.Again == 0 || !p.pause(exit.Again) {
			return
		}
		r, failed = p.launch()
	}
}

// pause waits for d and reports whether the program is still wanted.
func (p *Process) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-p.stop:
		return false
	}
}

// watch waits for the end of a run, bringing it about when asked to, and
// reports whether the run was a steady one.
func (p *Process) watch(r *run) (_ Exit, steady bool) {
	var settled <-chan time.Time
	if p.spec.Restart != nil {
		t := time.NewTimer(p.spec.Restart.Steady)
		defer t.Stop()
		settled = t.C
	}
	stop := p.stop
	var kill <-chan time.Time
	for {
		select {
		case <-r.ended:
			return r.exit, steady
		case <-settled:
			steady = true
		case <-stop:
			stop = nil
			r.signal(terminate)
			t := time.NewTimer(p.spec.Grace)
			defer t.Stop()
			kill = t.C
		case <-kill:
			r.signal(killNow)
		}
	}
}

func (p *Process) report(e Exit) {
	p.mu.Lock()
	p.pid, p.last = 0, e
	p.mu.Unlock()
	if p.spec.Exited != nil {
		p.spec.Exited(e)
	}
}

// launch starts one run.
func (p *Process) launch() (*run, error) {
	cmd := exec.Command(p.spec.Argv[0], p.spec.Argv[1:]...)
	cmd.Dir, cmd.Env = p.spec.Dir, append([]string{}, p.spec.Env...) // never nil: nil would inherit
	cmd.SysProcAttr = attributes()
	if u := p.spec.User; u != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: u.UID, Gid: u.GID, Groups: u.Groups}
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = write, write
	r := &run{ended: make(chan struct{})}
	p.mu.Lock() // who asks for a program that has begun to run finds it
	if err = p.s.fork(&p.spec, cmd); err == nil {
		r.pid = cmd.Process.Pid
		p.pid, p.run = r.pid, r
	}
	p.mu.Unlock()
	write.Close()
	if err != nil {
		read.Close()
		return nil, err
	}
	go r.wait(cmd, read, p.spec)
	return r, nil
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
