//go:build unix && (!linux || 386 || s390x)

package upstream

import "syscall"

// peek looks for one byte.
func peek(fd uintptr) syscall.Errno {
	var b [1]byte
	_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	if err == nil {
		return 0
	}
	errno, _ := err.(syscall.Errno)
	return errno
}
