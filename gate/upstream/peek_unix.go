//go:build unix && !(linux && (amd64 || arm64 || riscv64 || loong64))

package upstream

import "syscall"

func peek(fd uintptr) (readable bool) {
	var b [1]byte
	for {
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		if err != syscall.EINTR {
			return err != syscall.EAGAIN
		}
	}
}
