//go:build unix

package private

import (
	"io/fs"
	"os"
	"syscall"
)

// Owned reports whether the file is this user's: a directory that another user
// made ready could be changed by them later.
func Owned(info fs.FileInfo) bool {
	s, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(s.Uid) == os.Geteuid()
}
