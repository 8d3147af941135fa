package supervise

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

const (
	terminate = syscall.SIGTERM
	killNow   = syscall.SIGKILL

	maxLine = 8 << 10
	// drain is how long the output of an ended program is still waited for: a
	// process that left the group may hold the pipe open for ever.
	drain = time.Second
)

// run is one life of a program.
type run struct {
	pid   int
	ended chan struct{} // closed after exit is set
	exit  Exit

	mu     sync.Mutex
	reaped bool
}

// signal reaches every process of the group. Once the leader is reaped its
// number may belong to someone else, so nothing is sent any more.
func (r *run) signal(sig syscall.Signal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.reaped {
		// ESRCH says that the group has ended by itself.
		_ = syscall.Kill(-r.pid, sig)
	}
}

// wait reaps the program and hands on its output.
func (r *run) wait(cmd *exec.Cmd, output *os.File, spec Spec) {
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		lines(output, func(line string) {
			if spec.Output != nil {
				spec.Output(spec.Name, line)
			}
		})
	}()
	r.exit = r.reap(cmd)
	r.exit.Name = spec.Name
	t := time.AfterFunc(drain, func() { output.Close() })
	<-copied
	t.Stop()
	output.Close()
	close(r.ended)
}

// reap takes the program's status, and what the program leaves behind in its
// group down with it.
func (r *run) reap(cmd *exec.Cmd) Exit {
	var err error
	if awaitExit(r.pid) {
		r.signal(killNow)
		r.mu.Lock()
		err = cmd.Wait() // does not wait: it has ended
		r.reaped = true
		r.mu.Unlock()
	} else {
		err = cmd.Wait()
		r.mu.Lock()
		_ = syscall.Kill(-r.pid, killNow)
		r.reaped = true
		r.mu.Unlock()
	}
	return Exit{Code: cmd.ProcessState.ExitCode(), Err: err}
}

// lines gives every line of r to each, long ones in pieces.
func lines(r io.Reader, each func(string)) {
	in := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := in.ReadSlice('\n')
		line = bytes.TrimSuffix(line, []byte("\n"))
		if len(line) > 0 || err == nil {
			each(string(bytes.TrimSuffix(line, []byte("\r"))))
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}
