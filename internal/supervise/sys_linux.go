package supervise

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// attributes make a session, and with it a process group: into a session
// nobody gets but by being started in it, so being in it proves descent. A
// group alone could be joined by others of the same session (setpgid(2)).
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
}

// common are the capabilities (capabilities(7)) that programs have who listen on
// a low port, own files of others, and become another user.
func common() []uintptr {
	return []uintptr{unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL,
		unix.CAP_SETGID, unix.CAP_SETUID, unix.CAP_NET_BIND_SERVICE}
}

// confine bounds what the programs that the calling thread starts can ever be
// capable of, and the sockets they can make. The thread itself keeps what it has: bounds count when a program is
// executed.
func confine() error {
	// What merlon was started with, a socket or a pipe of the host's, would be a way
	// out. Go's own files are closed already.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("open files cannot be kept from programs (that needs Linux 5.11): %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("programs cannot be kept from new privileges: %w", err)
	}
	// What is inheritable would pass by the bounds. The ambient ones go with it.
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&head, &sets[0]); err != nil {
		return fmt.Errorf("capabilities cannot be read: %w", err)
	}
	sets[0].Inheritable, sets[1].Inheritable = 0, 0
	if err := unix.Capset(&head, &sets[0]); err != nil {
		return fmt.Errorf("capabilities cannot be kept from programs: %w", err)
	}
	keep := common()
	for c := uintptr(0); ; c++ {
		// All that the kernel knows, also those that are newer than this program.
		bound, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) && c > unix.CAP_SETFCAP {
			return restrict()
		}
		if err == nil && bound == 1 && !slices.Contains(keep, c) {
			err = unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		}
		if err != nil {
			return fmt.Errorf("capability %d cannot be kept from programs: %w", c, err)
		}
	}
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
