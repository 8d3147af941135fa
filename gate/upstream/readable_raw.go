//go:build linux && !386 && !s390x

package upstream

import (
	"syscall"
	"unsafe"
)

// peek looks for one byte. The call never blocks, so the scheduler need not
// know of it.
func peek(fd uintptr) syscall.Errno {
	var b [1]byte
	_, _, err := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&b[0])), 1,
		syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
	return err
}
