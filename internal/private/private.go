// Package private keeps files that are one user's alone.
package private

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Read reads a file of at most so many bytes that is this user's, and that others
// cannot reach.
func Read(path string, most int64) ([]byte, error) {
	info, err := os.Lstat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular() || info.Size() > most:
		return nil, errors.New("it is not what was left there")
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("others can reach it (mode %04o) and may know what is in it", info.Mode().Perm())
	case !Owned(info):
		return nil, errors.New("it belongs to another user")
	}
	return os.ReadFile(path)
}

// Replace replaces a file whole and waits for the disk: a process that is killed
// here leaves the old one. What was left half written is removed, and never
// written to: it could be a link, or open for somebody else.
func Replace(path string, data []byte) error {
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(fresh, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(fresh, path)
}
