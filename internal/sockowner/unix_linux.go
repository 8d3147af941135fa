package sockowner

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// UnixPeer pins the process that connected to a Unix socket.
//
// SO_PEERCRED tells its number at that time, which may be another process's by
// now. The kernel's own reference to it (SO_PEERPIDFD, Linux 6.5) cannot be:
// while the process that it names has not been waited for, nobody gets its
// number. On older kernels the number is pinned as soon as it is known
// (pidfd_open(2)), and whoever has it must run as the user who connected: a
// process of that same user that got the number in between is not told apart
// there.
func UnixPeer(c *net.UnixConn) (*Process, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	pidfd := -1
	cerr := raw.Control(func(fd uintptr) {
		if cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil {
			return
		}
		if pidfd, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD); errors.Is(err, unix.ENOPROTOOPT) {
			pidfd, err = unix.PidfdOpen(int(cred.Pid), 0)
		}
	})
	if err = errors.Join(cerr, err); err != nil {
		return nil, processError("peer of the socket", err)
	}
	defer unix.Close(pidfd)
	if cred.Pid <= 0 {
		return nil, errors.New("the process that connected is in another PID namespace") // pid_namespaces(7)
	}
	p, err := OpenProcess(int(cred.Pid))
	if err != nil {
		return nil, err
	}
	// The pin is of the right process if that one is still there afterwards.
	if err := unix.PidfdSendSignal(pidfd, 0, nil, 0); err != nil && !errors.Is(err, unix.EPERM) {
		p.Close()
		return nil, ErrGone
	}
	who, err := p.Credentials()
	if err == nil && (who.UID != cred.Uid || who.RealUID != cred.Uid) {
		err = fmt.Errorf("process %d connected as uid %d and runs as uid %d (real uid %d)", p.pid, cred.Uid, who.UID, who.RealUID)
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// TCPPeer pins a process that holds the other end of an accepted connection of
// this host.
func TCPPeer(c net.Conn) (*Process, error) {
	s, err := Peer(c)
	if err != nil {
		return nil, err
	}
	p, err := Find(s)
	if err != nil {
		return nil, err
	}
	// Now that it is pinned, it must hold the socket still, and the socket be
	// that of the connection.
	l := look{link: s.link()}
	if !l.holds(p) {
		err = ErrNotHeld
	} else if again, aerr := Peer(c); aerr != nil || again != s {
		err = ErrNotFound
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// Credentials reads whom the process runs as now, in the own user namespace.
func (p *Process) Credentials() (Credentials, error) {
	text, err := p.read("status", 1<<16)
	if err != nil {
		return Credentials{}, err
	}
	c, ok := parseStatus(text)
	if !ok {
		return Credentials{}, fmt.Errorf("/proc/%d/status cannot be read", p.pid)
	}
	return c, nil
}

// Cgroup is the path of the control group that the process is in, as systemd
// and container engines arrange it.
func (p *Process) Cgroup() (string, error) {
	text, err := p.read("cgroup", 1<<14)
	if err != nil {
		return "", err
	}
	path, ok := parseCgroup(text)
	if !ok {
		return "", fmt.Errorf("/proc/%d/cgroup names no control group", p.pid)
	}
	return path, nil
}

// OpenExecutable opens the file that the process runs, whatever its name means
// elsewhere.
func (p *Process) OpenExecutable() (*os.File, error) { return p.open("exe") }

// OpenInRoot opens a regular file by its name as the process sees it. No link
// leads out of the process's own root.
func (p *Process) OpenInRoot(name string) (*os.File, error) {
	root, err := unix.Openat(p.dir, "root", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, processError("open", err)
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, strings.TrimPrefix(name, "/"), &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY, // a FIFO keeps nobody waiting
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, os.NewSyscallError("open "+name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%s is no regular file", name)
	}
	return f, nil
}

// StartedBy reports whether p is root, or one that root started, or one that
// such a one started, and so on; see Holder.
func (p *Process) StartedBy(root *Process) (bool, error) {
	if !root.alive() {
		return false, ErrGone
	}
	at, err := OpenProcess(p.pid)
	if err != nil {
		return false, err
	}
	defer func() { at.Close() }()
	// p may have ended, and its number be another's: at counts if p is there.
	for depth := 0; depth <= maxDepth; depth++ {
		st, err := at.stat()
		if err != nil || !p.alive() {
			return false, ErrGone
		}
		// As long as root is there, its number and its session are its own.
		if at.pid == root.pid || st.session == root.pid {
			return root.alive(), nil
		}
		if st.parent <= 1 {
			return false, nil
		}
		parent, err := OpenProcess(st.parent)
		if err != nil {
			return false, err
		}
		// Pinned, it is the parent if the child still says so.
		if again, err := at.stat(); err != nil || again.parent != parent.pid {
			parent.Close()
			return false, ErrGone
		}
		at.Close()
		at = parent
	}
	return false, errBound
}

// Alive reports whether the process is still there.
func (p *Process) Alive() bool { return p.alive() }

// read reads a small file of the process.
func (p *Process) read(name string, most int64) ([]byte, error) {
	f, err := p.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	switch {
	case err != nil:
		return nil, processError("read", err)
	case int64(len(b)) > most:
		return nil, fmt.Errorf("/proc/%d/%s has more than %d bytes", p.pid, name, most)
	}
	return b, nil
}
