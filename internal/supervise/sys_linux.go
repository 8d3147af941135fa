package supervise

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// attributes make a session, and with it a process group: into a session
// nobody gets but by being started in it, so being in it proves descent. A
// group alone could be joined by others of the same session (setpgid(2)).
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
}

// awaitExit returns when the process has ended, and leaves it to be reaped:
// until then its number, which is its group's, belongs to nobody else. It
// reports whether it could wait so.
func awaitExit(pid int) bool {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return err == nil
		}
	}
}
