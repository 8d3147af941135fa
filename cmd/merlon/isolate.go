package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"merlon"
	"merlon/internal/netns"
	"merlon/internal/sockowner"
	"merlon/internal/supervise"
)

// errNotIsolated says what merlon up --isolate needs.
func errNotIsolated(err error) error {
	return hinted(fmt.Errorf("services cannot be isolated here: %w", err), "run it as root on Linux, with CAP_SYS_ADMIN and CAP_NET_ADMIN, or without --isolate")
}

// checkIsolate says what keeps services from being isolated, before anything is
// begun.
func checkIsolate(workloads string) error {
	if strings.HasPrefix(workloads, "tcp:") {
		return usage("isolated services reach no port of this host, and so not the Workload API at %s\nhint: serve it on a Unix socket: --workload-api unix:///PATH", workloads)
	}
	n, err := netns.New("a network namespace")
	if err != nil {
		return errNotIsolated(err)
	}
	return n.Close()
}

// beginIsolation lets every program that is started from now on have a network
// namespace of its own and few capabilities. They are built, and the Workload API
// is served unless it has an address, where the users that they run as can reach
// it, which the state directory is not.
func (s *system) beginIsolation(workloads string) (string, error) {
	s.public = publicOf(s.state)
	bin := filepath.Join(s.public, "bin")
	for _, dir := range []string{publicDir, s.public, bin} {
		if err := makePublic(dir); err != nil {
			return "", errNotIsolated(err)
		}
	}
	s.programs.Close()
	s.bin, s.programs = bin, supervise.NewConfined()
	return cmp.Or(workloads, "unix://"+filepath.Join(s.public, workloadsName)), nil
}

// endIsolation removes what lies outside of the state directory.
func (s *system) endIsolation() {
	if s.public == "" {
		return
	}
	if err := os.RemoveAll(s.public); err != nil {
		s.log.Warn("programs that were built are left behind", "err", err)
	}
}

// publicDir is where systems keep what is for every user.
const publicDir = "/run/merlon"

// publicOf is the directory of the system with this state.
func publicOf(state string) string {
	sum := sha256.Sum256([]byte(state))
	return filepath.Join(publicDir, hex.EncodeToString(sum[:8]))
}

// makePublic makes a directory that everyone may enter and nobody else has made:
// who could write there would choose what runs.
func makePublic(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if err == nil {
		return os.Chmod(dir, 0o755) // whatever the mask is
	}
	info, serr := os.Lstat(dir)
	if serr != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || int(stat.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s is there, and not a directory that this user alone may write to", dir)
	}
	return nil
}

// isolates reports whether a service, which may be nil, is to have a network
// namespace of its own. One that merlon does not start is where it is.
func (s *system) isolates(svc *merlon.Service) bool {
	return s.public != "" && svc != nil && svc.Run != nil
}

// checkIsolated finds services that could not listen where they are to.
func (s *system) checkIsolated(in *merlon.Intent) error {
	var errs []error
	for i := range in.Services {
		svc := &in.Services[i]
		if !s.isolates(svc) {
			continue
		}
		for _, address := range addresses(svc) {
			if !onLoopback(address) {
				errs = append(errs, fmt.Errorf("%v: service %s is isolated, and %s is no address of a network namespace in which only the loopback interface is\nhint: let it listen on 127.0.0.1:PORT; others reach it through its gate",
					svc.Run.Pos, svc.Name, address))
			}
		}
	}
	return errors.Join(errs...)
}

func onLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && (addr.IsLoopback() || addr.IsUnspecified())
}

// userOf is whom the program of an isolated service runs as: the user that its
// workload: names, or nil for the one who runs merlon.
func userOf(svc *merlon.Service) (*supervise.User, error) {
	if svc.Workload == nil || svc.Workload.UnixUser == "" {
		return nil, nil
	}
	uid, err := sockowner.UserID(svc.Workload.UnixUser)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", svc.Workload.Pos, err)
	}
	// A number without a user has a group of that number, and no others.
	u := &supervise.User{UID: uid, GID: uid}
	who, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
	if err != nil {
		return u, nil
	}
	groups, err := who.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("%v: groups of user %s: %w", svc.Workload.Pos, who.Username, err)
	}
	for i, text := range append([]string{who.Gid}, groups...) {
		gid, err := strconv.ParseUint(text, 10, 32)
		switch {
		case err != nil:
			return nil, fmt.Errorf("%v: group %q of user %s is no number", svc.Workload.Pos, text, who.Username)
		case i == 0:
			u.GID = uint32(gid)
		default:
			u.Groups = append(u.Groups, uint32(gid))
		}
	}
	return u, nil
}

// home puts a user into an environment that was another's.
func home(env map[string]string, uid uint32) {
	for _, name := range []string{"HOME", "USER", "LOGNAME", "XDG_RUNTIME_DIR"} {
		delete(env, name)
	}
	if u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10)); err == nil {
		env["HOME"], env["USER"], env["LOGNAME"] = u.HomeDir, u.Username, u.Username
	}
}
