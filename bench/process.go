package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process is a running program; what it starts counts as its own.
type process struct {
	cmd    *exec.Cmd
	ended  chan struct{}
	stderr bytes.Buffer // good once it has ended
}

// start runs a command and waits until it accepts connections. A program in Go
// gets that many processors; with 0 it decides itself.
func start(addr string, command []string, processors int) (*process, error) {
	name := command[0]
	p := &process{cmd: exec.Command(name, command[1:]...), ended: make(chan struct{})}
	if processors > 0 {
		p.cmd.Env = append(os.Environ(), "GOMAXPROCS="+strconv.Itoa(processors))
	}
	p.cmd.Stderr = &p.stderr
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { p.cmd.Wait(); close(p.ended) }()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return p, nil
		}
		select {
		case <-p.ended:
			return nil, fmt.Errorf("%s ended: %s", name, tail(p.stderr.String()))
		default:
		}
		if time.Now().After(deadline) {
			p.stop()
			return nil, fmt.Errorf("%s does not listen on %s: %s", name, addr, tail(p.stderr.String()))
		}
	}
}

func tail(s string) string {
	s = strings.TrimSpace(s)
	return s[max(0, len(s)-500):]
}

func (p *process) stop() {
	p.cmd.Process.Signal(os.Interrupt)
	select {
	case <-p.ended:
	case <-time.After(5 * time.Second):
		p.cmd.Process.Kill()
		<-p.ended
	}
}

// pids are the process and all below it.
func (p *process) pids() []int {
	all := []int{p.cmd.Process.Pid}
	for i := 0; i < len(all); i++ {
		data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", all[i]))
		for _, word := range strings.Fields(string(data)) {
			if n, err := strconv.Atoi(word); err == nil {
				all = append(all, n)
			}
		}
	}
	return all
}

// group is the processes that are one proxy, or a pair.
type group []*process

func (g group) stop() {
	for _, p := range g {
		p.stop()
	}
}

// cpu is the processor time used so far, in user mode and the kernel, by all
// threads, also those that have ended.
func (g group) cpu() (total time.Duration, err error) {
	for _, p := range g {
		for _, pid := range p.pids() {
			var t unix.Timespec
			// The clock of another process: MAKE_PROCESS_CPUCLOCK of
			// linux/posix-timers.h with CPUCLOCK_SCHED.
			if err := unix.ClockGettime(int32(^pid<<3|2), &t); err != nil {
				return 0, fmt.Errorf("processor time of %d: %w", pid, err)
			}
			total += time.Duration(t.Nano())
		}
	}
	return total, nil
}

// memory is what is resident, in bytes; a page that n processes share counts as
// an nth of a page in each.
func (g group) memory() (total int64, err error) {
	for _, p := range g {
		for _, pid := range p.pids() {
			data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
			if err != nil {
				return 0, err
			}
			_, rest, ok := strings.Cut(string(data), "\nPss:")
			if !ok {
				return 0, errors.New("smaps_rollup without Pss")
			}
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				return 0, err
			}
			total += kib << 10
		}
	}
	return total, nil
}
