package record

import (
	"os"
	"syscall"
)

// datasync makes a file's content durable, and its size, without its times.
func datasync(f *os.File) error {
	for {
		if err := syscall.Fdatasync(int(f.Fd())); err != syscall.EINTR {
			return err
		}
	}
}
