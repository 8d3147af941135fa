package sockowner

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Bounds of one search.
const (
	maxProcesses   = 4096    // of a tree
	maxDepth       = 64      // of a tree; each level holds a descriptor
	maxListed      = 1 << 17 // of the host
	maxDescriptors = 1 << 18 // looked at in all
)

// Process is one process, pinned: everything is read through one descriptor of
// its directory in /proc, which dies with it and never shows another process
// that got its number.
type Process struct {
	pid int
	dir int
}

// OpenProcess pins the process that has this number now.
func OpenProcess(pid int) (*Process, error) {
	dir, err := unix.Open("/proc/"+strconv.Itoa(pid), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, processError("open", err)
	}
	return &Process{pid, dir}, nil
}

// Close lets go of the process. It must not be used any more.
func (p *Process) Close() error { return unix.Close(p.dir) }

// PID is the process's number.
func (p *Process) PID() int { return p.pid }

// Executable is the file that the process runs, or "" if that may not be seen.
func (p *Process) Executable() string {
	var buf [1024]byte
	n, err := unix.Readlinkat(p.dir, "exe", buf[:])
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

func processError(what string, err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return ErrGone
	}
	return os.NewSyscallError(what, err)
}

// open opens a file or directory of the process.
func (p *Process) open(name string) (*os.File, error) {
	fd, err := unix.Openat(p.dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, processError("open", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (p *Process) stat() (stat, error) {
	fd, err := unix.Openat(p.dir, "stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return stat{}, processError("open", err)
	}
	defer unix.Close(fd)
	var buf [1024]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil {
		return stat{}, processError("read", err)
	}
	s, ok := parseStat(buf[:n])
	if !ok {
		return stat{}, fmt.Errorf("/proc/%d/stat cannot be read", p.pid)
	}
	return s, nil
}

// Holder is the process that holds s: p itself, or one that p started, or one
// that such a one started, and so on. A process that has made a session of its
// own and whose parents have ended does not belong to anybody any more.
func (p *Process) Holder(s Socket) (pid int, err error) {
	if s.Inode == 0 {
		return 0, ErrAbandoned
	}
	l := look{link: s.link(), seen: map[int]bool{}}
	if pid := l.down(p, 0); pid != 0 {
		return pid, nil
	}
	// As long as p is there, a session with its number is one that p made.
	if pid := l.session(p.pid); pid != 0 && p.alive() {
		return pid, nil
	}
	if !p.alive() {
		return 0, ErrGone
	}
	if l.err != nil {
		return 0, fmt.Errorf("%w, as far as it may be seen: %w", ErrNotHeld, l.err)
	}
	return 0, ErrNotHeld
}

// Find looks for a process that holds s among all that the user of s runs. It
// is for evidence, not for proof: it may be another by the time it is read.
func Find(s Socket) (*Process, error) {
	if s.Inode == 0 {
		return nil, ErrAbandoned
	}
	l := look{link: s.link()}
	var found *Process
	l.all(func(p *Process) bool {
		var st unix.Stat_t
		if unix.Fstat(p.dir, &st) != nil || st.Uid != s.UID || !l.holds(p) {
			return true
		}
		found, _ = OpenProcess(p.pid)
		return false
	})
	switch {
	case found != nil:
		return found, nil
	case l.err != nil:
		return nil, l.err
	}
	return nil, ErrGone
}

// link is what a descriptor of the socket links to (proc_pid_fd(5)).
func (s Socket) link() string { return "socket:[" + strconv.FormatUint(s.Inode, 10) + "]" }

// look is one search for who holds a socket.
type look struct {
	link        string
	seen        map[int]bool // of the tree, and looked at
	descriptors int
	err         error // the first that kept something from being seen
}

// fail keeps the first error, but for processes that have ended.
func (l *look) fail(err error) {
	if l.err == nil && !errors.Is(err, ErrGone) {
		l.err = err
	}
}

var errBound = errors.New("there is more than is looked at")

// holds reports whether p has a descriptor of the socket.
func (l *look) holds(p *Process) bool {
	dir, err := p.open("fd")
	if err != nil {
		l.fail(fmt.Errorf("process %d: %w", p.pid, err))
		return false
	}
	defer dir.Close()
	fd := int(dir.Fd())
	var buf [64]byte
	for {
		names, err := dir.Readdirnames(512)
		for _, name := range names {
			if l.descriptors++; l.descriptors > maxDescriptors {
				l.fail(errBound)
				return false
			}
			n, err := unix.Readlinkat(fd, name, buf[:])
			if err == nil && string(buf[:n]) == l.link {
				return true
			}
		}
		if err != nil {
			if err != io.EOF {
				l.fail(fmt.Errorf("process %d: %w", p.pid, err))
			}
			return false
		}
	}
}

// down looks at p and at all below it, and returns who holds the socket, or 0.
func (l *look) down(p *Process, depth int) int {
	if len(l.seen) >= maxProcesses || depth > maxDepth {
		l.fail(errBound)
		return 0
	}
	l.seen[p.pid] = true
	if l.holds(p) {
		return p.pid
	}
	for _, pid := range l.children(p) {
		if l.seen[pid] {
			continue
		}
		child, err := OpenProcess(pid)
		if err != nil {
			l.fail(err)
			continue
		}
		found := 0
		// Once pinned it is asked for its parent: the child that was listed may
		// have ended, and its number be another's. The parent is pinned too,
		// and while it has children it has its number.
		if st, err := child.stat(); err == nil && st.parent == p.pid && p.alive() {
			found = l.down(child, depth+1)
		}
		child.Close()
		if found != 0 {
			return found
		}
	}
	return 0
}

func (p *Process) alive() bool {
	_, err := p.stat()
	return err == nil
}

// children lists the children of each of p's threads. Where the kernel does
// not list them there are none: fewer are recognised, never more.
func (l *look) children(p *Process) []int {
	tasks, err := p.open("task")
	if err != nil {
		l.fail(err)
		return nil
	}
	defer tasks.Close()
	var all []int
	for {
		names, err := tasks.Readdirnames(256)
		for _, name := range names {
			f, err := p.open("task/" + name + "/children")
			if err != nil {
				continue
			}
			text, err := io.ReadAll(io.LimitReader(f, 8*maxProcesses))
			f.Close()
			if err != nil {
				continue
			}
			for word := range strings.FieldsSeq(string(text)) {
				if pid, err := strconv.Atoi(word); err == nil && len(all) < maxProcesses {
					all = append(all, pid)
				}
			}
		}
		if err != nil {
			return all
		}
	}
}

// session looks at the processes of the session that id leads: nobody gets into
// a session but by being started in it (setsid(2)). It finds those whose
// parents have ended. A process group would be no proof: a stranger of the same
// session may join one (setpgid(2)).
func (l *look) session(id int) int {
	found := 0
	l.all(func(p *Process) bool {
		if l.seen[p.pid] {
			return true
		}
		if st, err := p.stat(); err != nil || st.session != id {
			return true
		}
		if len(l.seen) >= maxProcesses {
			l.fail(errBound)
			return false
		}
		l.seen[p.pid] = true
		if l.holds(p) {
			found = p.pid
		}
		return found == 0
	})
	return found
}

// all gives every process of the host to each until that returns false.
func (l *look) all(each func(*Process) bool) {
	dir, err := os.Open("/proc")
	if err != nil {
		l.fail(err)
		return
	}
	defer dir.Close()
	for listed := 0; listed < maxListed; {
		names, err := dir.Readdirnames(256)
		for _, name := range names {
			pid, err := strconv.Atoi(name)
			if err != nil {
				continue
			}
			listed++
			p, err := OpenProcess(pid)
			if err != nil {
				continue
			}
			more := each(p)
			p.Close()
			if !more {
				return
			}
		}
		if err != nil {
			return
		}
	}
	l.fail(errBound)
}
