package record

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// maxChains bounds how many processes write records side by side in one place.
const maxChains = 16

// chainDir is the directory of a chain among those of dir; the first is in dir
// itself.
func chainDir(dir string, n int) string {
	if n == 1 {
		return dir
	}
	return filepath.Join(dir, fmt.Sprintf("chain-%d", n))
}

// OpenFree continues the first chain of dir that no other process writes, or
// begins a new one. A process that takes the place of another writes while that
// one still finishes its calls: each has a chain of its own then, and the chain
// of the one that ends is continued by whoever comes next.
func OpenFree(dir string, opt Options) (*Writer, error) {
	var taken error
	for n := 1; n <= maxChains; n++ {
		w, err := Open(chainDir(dir, n), opt)
		if !errors.Is(err, ErrLocked) {
			return w, err
		}
		taken = err
	}
	return nil, fmt.Errorf("record: all %d chains of %s have a writer: %w", maxChains, dir, taken)
}

// Chains lists the directories of all chains in dir, the first of which is dir.
func Chains(dir string) ([]string, error) {
	list := []string{dir}
	for n := 2; n <= maxChains; n++ {
		switch _, err := os.Stat(chainDir(dir, n)); {
		case err == nil:
			list = append(list, chainDir(dir, n))
		case !errors.Is(err, os.ErrNotExist):
			return nil, fmt.Errorf("record: %w", err)
		}
	}
	return list, nil
}

// Dir is the directory of the writer's chain.
func (w *Writer) Dir() string { return w.dir }
