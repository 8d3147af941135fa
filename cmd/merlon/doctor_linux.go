package main

import (
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// hostNotes says what this kernel lacks.
func hostNotes() []finding {
	var found []finding
	note := func(what, do string) { found = append(found, finding{What: what, Do: do, Note: true}) }
	if fd, err := unix.PidfdOpen(os.Getpid(), 0); err != nil {
		note("the kernel has no pidfd_open(2): no workload can be told from one that got its number", "use Linux 5.3 or later")
	} else {
		unix.Close(fd)
	}
	if pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0); err == nil {
		fd, err := unix.GetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_PEERPIDFD)
		if err == nil {
			unix.Close(fd)
		} else if errors.Is(err, unix.ENOPROTOOPT) {
			note("the kernel has no SO_PEERPIDFD: processes of one user that follow each other under one number are not told apart by the Workload API", "use Linux 6.5 or later")
		}
		unix.Close(pair[0])
		unix.Close(pair[1])
	}
	for file, off := range map[string]string{"/proc/sys/user/max_user_namespaces": "0", "/proc/sys/kernel/unprivileged_userns_clone": "0"} {
		if b, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(b)) == off && os.Getuid() != 0 {
			note("user namespaces are turned off here ("+file+"): network namespaces need root", "")
		}
	}
	return found
}
