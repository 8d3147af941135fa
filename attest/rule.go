package attest

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/user"
	"slices"
	"strconv"

	"merlon"
	"merlon/internal/sockowner"
)

// ruleChecks are the selectors of one rule, cheap ones first.
func (a *Attestor) ruleChecks(w *merlon.WorkloadRule) ([]check, error) {
	if !sockowner.Supported() {
		return nil, sockowner.ErrUnsupported
	}
	var checks []check
	var errs []error
	add := func(holds selector, err error) {
		if err != nil {
			errs = append(errs, err)
			return
		}
		checks = append(checks, check{w.Selectors()[len(checks)+len(errs)], holds})
	}
	if w.UnixUser != "" {
		add(unixUser(w.UnixUser))
	}
	if w.UnixGroup != "" {
		add(unixGroup(w.UnixGroup))
	}
	if w.Executable != "" {
		add(executable(w.Executable), nil)
	}
	if w.SHA256 != "" {
		add(digest(w.SHA256), nil)
	}
	if w.SystemdUnit != "" {
		add(systemdUnit(w.SystemdUnit), nil)
	}
	if a.docker == nil && (w.DockerImage != "" || len(w.DockerLabels) > 0) {
		return nil, errors.New("no container engine is known here")
	}
	if a.containerd == nil && w.ContainerdNamespace != "" {
		return nil, errors.New("no containerd is known here")
	}
	if a.cluster == nil && w.Kubernetes != "" {
		return nil, errors.New("the keys of no Kubernetes cluster are known here")
	}
	if w.DockerImage != "" {
		add(dockerImage(w.DockerImage), nil)
	}
	for _, name := range slices.Sorted(maps.Keys(w.DockerLabels)) {
		add(dockerLabel(name, w.DockerLabels[name]), nil)
	}
	if w.ContainerdNamespace != "" {
		add(containerdNamespace(w.ContainerdNamespace), nil)
	}
	if w.ContainerdImage != "" {
		add(containerdImage(w.ContainerdNamespace, w.ContainerdImage), nil)
	}
	for _, name := range slices.Sorted(maps.Keys(w.ContainerdLabels)) {
		add(containerdLabel(w.ContainerdNamespace, name, w.ContainerdLabels[name]), nil)
	}
	if w.Kubernetes != "" {
		add(serviceAccount(w.Kubernetes), nil)
	}
	return checks, errors.Join(errs...)
}

// unixUser holds for a process whose real and effective user is the named one:
// a program that changes its user is neither's.
func unixUser(name string) (selector, error) {
	uid, err := sockowner.UserID(name)
	return func(s *subject) (bool, func() string, error) {
		c, err := s.credentials()
		saw := func() string {
			text := "it runs as " + userName(c.UID)
			if c.RealUID != c.UID {
				text += ", started by " + userName(c.RealUID)
			}
			return text
		}
		return c.UID == uid && c.RealUID == uid, saw, err
	}, err
}

func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return fmt.Sprintf("%s (uid %s)", u.Username, id)
	}
	return "uid " + id
}

// unixGroup holds for a process that has the group, first or supplementary.
func unixGroup(name string) (selector, error) {
	id := name
	g, err := user.LookupGroup(name)
	if err == nil {
		id = g.Gid
	}
	gid, perr := strconv.ParseUint(id, 10, 32)
	if perr == nil {
		err = nil
	}
	return func(s *subject) (bool, func() string, error) {
		c, err := s.credentials()
		return c.GID == uint32(gid) || slices.Contains(c.Groups, uint32(gid)),
			func() string { return fmt.Sprintf("its groups are %d and %v", c.GID, c.Groups) }, err
	}, err
}

// executable holds for a process that runs the very file which has this path
// here. Names are not compared: in a mount namespace of its own a process can
// give any name to any file.
func executable(path string) selector {
	return func(s *subject) (bool, func() string, error) {
		runs, err := s.file()
		if err != nil {
			return false, nil, err
		}
		want, err := os.Stat(path)
		if err != nil {
			return false, nil, err
		}
		return os.SameFile(runs, want), func() string { return fmt.Sprintf("it runs another file, named %q", s.Executable()) }, nil
	}
}

// digest holds for a process whose executable has this hash.
func digest(want string) selector {
	return func(s *subject) (bool, func() string, error) {
		got, err := s.digest()
		return got == want, said("its executable has " + got), err
	}
}
