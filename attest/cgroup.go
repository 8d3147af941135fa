package attest

import (
	"fmt"
	"strings"
)

// systemdUnit holds for a process of this unit of the system's manager.
func systemdUnit(want string) selector {
	return func(s *subject) (bool, func() string, error) {
		path, err := s.cgroup()
		if err != nil {
			return false, nil, err
		}
		unit := unitOf(path)
		return unit == want, func() string {
			if unit == "" {
				return fmt.Sprintf("it is in the control group %q, which belongs to no unit", path)
			}
			return "it belongs to " + unit
		}, nil
	}
}

// unitOf is the unit whose control group path is, or lies below: the first part
// that is no slice (systemd.slice(5)). The parts up to it are made by the
// system's manager. Those below it may be made by the unit itself, or in the
// case of user@1000.service by that user, who can give them any name; so
// nothing is ever read from them.
func unitOf(path string) string {
	rest, ok := strings.CutPrefix(path, "/")
	if !ok {
		return ""
	}
	for part := range strings.SplitSeq(rest, "/") {
		switch {
		case part == "" || part == "." || part == "..":
			return "" // outside of what this host's manager made, as seen from here
		case strings.HasSuffix(part, ".slice"):
		case strings.HasSuffix(part, ".service"), strings.HasSuffix(part, ".scope"), strings.HasSuffix(part, ".socket"):
			return part
		default:
			return ""
		}
	}
	return ""
}

// containerOf is the container that a control group belongs to, as the engines
// that run as root name it: /docker/ID, or a scope of the system's manager such
// as /system.slice/docker-ID.scope. For a pod of Kubernetes it is the
// container's too: /kubepods.slice/.../cri-containerd-ID.scope, or
// /kubepods/.../ID. See unitOf for why only the first part that is no slice
// counts.
func containerOf(path string) string {
	if unit := unitOf(path); unit != "" {
		name, ok := strings.CutSuffix(unit, ".scope")
		i := strings.LastIndexByte(name, '-')
		if !ok || i < 0 {
			return ""
		}
		switch name[:i] {
		case "docker", "cri-containerd", "crio", "nerdctl":
			return containerID(name[i+1:])
		}
		return ""
	}
	parts := strings.Split(strings.TrimPrefix(path, "/"), "/")
	switch {
	case len(parts) >= 2 && parts[0] == "docker":
		return containerID(parts[1])
	case len(parts) >= 3 && parts[0] == "kubepods":
		for i, part := range parts[:min(len(parts), 4)] {
			if strings.HasPrefix(part, "pod") && i+1 < len(parts) {
				return containerID(parts[i+1])
			}
		}
	}
	return ""
}

// containerIn is the container of one of containerd's namespaces that a control
// group belongs to: as containerOf has it, or /NAMESPACE/ID, as containerd itself
// names it, where IDs are what their makers like.
func containerIn(path, namespace string) string {
	if id := containerOf(path); id != "" {
		return id
	}
	rest, ok := strings.CutPrefix(path, "/"+namespace+"/")
	id, _, _ := strings.Cut(rest, "/")
	if !ok || id == "." || id == ".." || len(id) > maxContainerID {
		return ""
	}
	return id
}

// maxContainerID is the longest that containerd gives a container.
const maxContainerID = 76

// containerID is s if it is 64 hexadecimal digits, as every engine has it.
func containerID(s string) string {
	if len(s) != 64 || strings.Trim(s, "0123456789abcdef") != "" {
		return ""
	}
	return s
}

// podOf is the UID of the pod that a control group belongs to, with dashes. The
// kubelet makes /kubepods.slice/kubepods-burstable.slice/
// kubepods-burstable-podUID.slice with underscores in UID, or
// /kubepods/burstable/podUID.
func podOf(path string) string {
	parts := strings.Split(strings.TrimPrefix(path, "/"), "/")
	if len(parts) < 2 {
		return ""
	}
	switch parts[0] {
	case "kubepods.slice":
		for _, part := range parts[1:min(len(parts), 3)] {
			name, ok := strings.CutSuffix(part, ".slice")
			if i := strings.Index(name, "-pod"); ok && i >= 0 && strings.HasPrefix(name, "kubepods") {
				return podUID(strings.ReplaceAll(name[i+len("-pod"):], "_", "-"))
			}
		}
	case "kubepods":
		for _, part := range parts[1:min(len(parts), 3)] {
			if uid, ok := strings.CutPrefix(part, "pod"); ok {
				return podUID(uid)
			}
		}
	}
	return ""
}

// podUID is s if it is a UUID (RFC 9562 4).
func podUID(s string) string {
	if len(s) != 36 {
		return ""
	}
	for i, c := range s {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		if dash != (c == '-') || !dash && !strings.ContainsRune("0123456789abcdef", c) {
			return ""
		}
	}
	return s
}
