//go:build amd64 || arm64 || riscv64 || loong64

package upstream

import (
	"syscall"
	"unsafe"
)

// peek does not tell the scheduler of its system call: it returns at once, and
// each one told wakes the runtime's monitor, which then looks around for a
// millisecond.
func peek(fd uintptr) (readable bool) {
	var b [1]byte
	for {
		_, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&b)), 1,
			syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
		if errno != syscall.EINTR {
			return errno != syscall.EAGAIN
		}
	}
}
