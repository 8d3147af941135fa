package supervise

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data (seccomp(2)). Of the first argument the low half
// is read, as the kernel does: a family is an int.
const (
	dataNumber   = 0
	dataABI      = 4
	dataArgument = 16
	x32          = 0x40000000 // bit of the numbers of the x32 ABI
)

// abi is the system call ABI of this program, or 0 if it is none of those that
// the filter has been written for: little-endian, without socketcall(2).
func abi() uint32 {
	switch runtime.GOARCH {
	case "amd64":
		return unix.AUDIT_ARCH_X86_64
	case "arm64":
		return unix.AUDIT_ARCH_AARCH64
	case "riscv64":
		return unix.AUDIT_ARCH_RISCV64
	}
	return 0
}

// restrict keeps the calling thread and the programs that it starts from sockets
// of families that a network namespace does not bound, such as those to the
// hypervisor (vsock(7)), and from what makes sockets without a system call
// (io_uring) or by other numbers (32-bit programs).
func restrict() error {
	native := abi()
	if native == 0 {
		return fmt.Errorf("programs cannot be kept from sockets past the network on %s: %w", runtime.GOARCH, errors.ErrUnsupported)
	}
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	// when jumps over yes instructions if what was loaded is k, else over no.
	when := func(test uint16, k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | test | unix.BPF_K, K: k, Jt: yes, Jf: no}
	}
	answer := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	filter := []unix.SockFilter{
		load(dataABI),
		when(unix.BPF_JEQ, native, 0, 12),
		load(dataNumber),
		when(unix.BPF_JGE, x32, 10, 0),
		when(unix.BPF_JEQ, unix.SYS_IO_URING_SETUP, 9, 0),
		when(unix.BPF_JEQ, unix.SYS_SOCKET, 1, 0),
		when(unix.BPF_JEQ, unix.SYS_SOCKETPAIR, 0, 5),
		load(dataArgument),
		when(unix.BPF_JEQ, unix.AF_UNIX, 3, 0),
		when(unix.BPF_JEQ, unix.AF_INET, 2, 0),
		when(unix.BPF_JEQ, unix.AF_INET6, 1, 0),
		when(unix.BPF_JEQ, unix.AF_NETLINK, 0, 1),
		answer(unix.SECCOMP_RET_ALLOW),
		answer(unix.SECCOMP_RET_ERRNO | uint32(unix.EAFNOSUPPORT)),
		answer(unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)),
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_PRCTL, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return fmt.Errorf("programs cannot be kept from sockets past the network: %w", errno)
	}
	return nil
}
