// Package cgroup reads how much memory the control groups of this process leave
// it, in version 2 of their interface and in version 1.
//
// Processors are not its business: the Go runtime itself reads cpu.max, since
// Go 1.25, and follows its changes.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
)

// Limit is the smallest bound on memory of a group that this process is in.
type Limit struct {
	Bytes int64  // 0 for none
	File  string // that says so
}

// maxDepth bounds how many groups are in each other.
const maxDepth = 64

// unlimited and more is how version 1 says that there is no bound.
const unlimited = 1 << 60

// Memory reads the bound from root, the root of the file system. A process
// that is in no group with a bound, or on a system without groups, has none.
func Memory(root fs.FS) (Limit, error) {
	groups, err := fs.ReadFile(root, "proc/self/cgroup")
	if errors.Is(err, fs.ErrNotExist) {
		return Limit{}, nil
	}
	if err != nil {
		return Limit{}, err
	}
	mounts, err := fs.ReadFile(root, "proc/self/mountinfo")
	if err != nil {
		return Limit{}, err
	}
	var least Limit
	for line := range strings.Lines(string(groups)) {
		// hierarchy-ID:controllers:path (cgroups(7))
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		kind, option, file := "cgroup2", "", "memory.max"
		if parts[1] != "" {
			if kind, option, file = "cgroup", "memory", "memory.limit_in_bytes"; !has(parts[1], option) {
				continue
			}
		}
		base, below, ok := find(string(mounts), kind, option, parts[2])
		if !ok {
			continue
		}
		if err := least.lower(root, base, below, file); err != nil {
			return Limit{}, err
		}
	}
	return least, nil
}

// find is where the hierarchy is mounted, and the path below that which is the
// group's. What is above the mount's root cannot be seen from here.
func find(mounts, kind, option, group string) (base, below string, ok bool) {
	for line := range strings.Lines(mounts) {
		// ID parent major:minor root mount-point options... - type source options (proc_pid_mountinfo(5))
		left, right, found := strings.Cut(strings.TrimSpace(line), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !found || len(l) < 5 || len(r) < 3 || r[0] != kind || option != "" && !has(r[2], option) {
			continue
		}
		below, inside := strings.CutPrefix(group, strings.TrimSuffix(l[3], "/"))
		if !inside {
			below = "" // of another namespace: the mount's root is all that is ours
		}
		return strings.TrimPrefix(l[4], "/"), below, true
	}
	return "", "", false
}

func has(list, word string) bool {
	for w := range strings.SplitSeq(list, ",") {
		if w == word {
			return true
		}
	}
	return false
}

// lower looks at the group and at all that it is in.
func (l *Limit) lower(root fs.FS, base, below, file string) error {
	below = path.Clean("/" + below)
	for range maxDepth {
		name := path.Join(base, below, file)
		switch text, err := fs.ReadFile(root, name); {
		case errors.Is(err, fs.ErrNotExist): // the root group has no file
		case err != nil:
			return err
		default:
			n, err := parse(strings.TrimSpace(string(text)))
			if err != nil {
				return fmt.Errorf("/%s: %w", name, err)
			}
			if n > 0 && (l.Bytes == 0 || n < l.Bytes) {
				*l = Limit{n, "/" + name}
			}
		}
		if below == "/" {
			return nil
		}
		below = path.Dir(below)
	}
	return nil
}

// parse reads a number of bytes; "max", and what stands for it, is 0.
func parse(text string) (int64, error) {
	if text == "max" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no number of bytes", text)
	}
	if n >= unlimited {
		return 0, nil
	}
	return int64(n), nil
}
