// Package private keeps files that are one user's alone.
package private

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
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

// Replace stores a file in the place of another, whole or not at all, and waits for
// the disk: neither a kill nor a power cut takes it back, or leaves half of it.
func Replace(path string, data []byte) error { return write(path, data, os.Rename) }

// Create is Replace for a file that must not be there yet. A link never
// overwrites: of two processes that begin at once, one wins.
func Create(path string, data []byte) error { return write(path, data, os.Link) }

// write writes under a name that nobody could have prepared: it could be a link, or
// open for somebody else.
func write(path string, data []byte, move func(from, to string) error) error {
	dir, name := filepath.Split(path)
	f, err := os.CreateTemp(filepath.Clean(dir), "."+name+".*") // for its owner alone
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already after a rename
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := move(f.Name(), path); err != nil {
		return err
	}
	return Sync(dir)
}

// Sync makes the names in a directory survive a power cut.
func Sync(dir string) error {
	d, err := os.Open(filepath.Clean(dir))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
