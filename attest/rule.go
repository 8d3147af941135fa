package attest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/user"
	"slices"
	"strconv"

	"merlon"
	"merlon/internal/sockowner"
)

// ruleChecks are the selectors of one rule, cheap ones first.
func ruleChecks(w *merlon.WorkloadRule, opt Options) ([]check, error) {
	if !sockowner.Supported() {
		return nil, sockowner.ErrUnsupported
	}
	var checks []check
	var errs []error
	add := func(holds func(context.Context, *sockowner.Process) (string, bool, error), err error) {
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
	docker := &engine{socket: opt.Docker}
	if opt.Docker == "" && (w.DockerImage != "" || len(w.DockerLabels) > 0) {
		return nil, errors.New("no container engine is known here")
	}
	if opt.Cluster == nil && w.Kubernetes != "" {
		return nil, errors.New("the keys of no Kubernetes cluster are known here")
	}
	if w.DockerImage != "" {
		add(docker.image(w.DockerImage), nil)
	}
	for _, name := range slices.Sorted(maps.Keys(w.DockerLabels)) {
		add(docker.label(name, w.DockerLabels[name]), nil)
	}
	if w.Kubernetes != "" {
		add(opt.Cluster.account(w.Kubernetes, opt.Now), nil)
	}
	return checks, errors.Join(errs...)
}

// unixUser holds for a process whose real and effective user is the named one:
// a program that changes its user is neither's.
func unixUser(name string) (func(context.Context, *sockowner.Process) (string, bool, error), error) {
	uid, err := sockowner.UserID(name)
	return func(_ context.Context, p *sockowner.Process) (string, bool, error) {
		c, err := p.Credentials()
		saw := "it runs as " + userName(c.UID)
		if c.RealUID != c.UID {
			saw += ", started by " + userName(c.RealUID)
		}
		return saw, c.UID == uid && c.RealUID == uid, err
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
func unixGroup(name string) (func(context.Context, *sockowner.Process) (string, bool, error), error) {
	id := name
	g, err := user.LookupGroup(name)
	if err == nil {
		id = g.Gid
	}
	gid, perr := strconv.ParseUint(id, 10, 32)
	if perr == nil {
		err = nil
	}
	return func(_ context.Context, p *sockowner.Process) (string, bool, error) {
		c, err := p.Credentials()
		return fmt.Sprintf("its groups are %d and %v", c.GID, c.Groups), c.GID == uint32(gid) || slices.Contains(c.Groups, uint32(gid)), err
	}, err
}

// executable holds for a process that runs the very file which has this path
// here. Names are not compared: in a mount namespace of its own a process can
// give any name to any file.
func executable(path string) func(context.Context, *sockowner.Process) (string, bool, error) {
	return func(_ context.Context, p *sockowner.Process) (string, bool, error) {
		f, err := p.OpenExecutable()
		if err != nil {
			return "", false, err
		}
		defer f.Close()
		runs, err := f.Stat()
		if err != nil {
			return "", false, err
		}
		want, err := os.Stat(path)
		if err != nil {
			return "", false, err
		}
		return fmt.Sprintf("it runs another file, named %q", p.Executable()), os.SameFile(runs, want), nil
	}
}

// maxExecutable bounds what is hashed of one file.
const maxExecutable = 1 << 30

// digest holds for a process whose executable has this hash.
func digest(want string) func(context.Context, *sockowner.Process) (string, bool, error) {
	return func(ctx context.Context, p *sockowner.Process) (string, bool, error) {
		f, err := p.OpenExecutable()
		if err != nil {
			return "", false, err
		}
		defer f.Close()
		hash := sha256.New()
		// While a file runs the kernel lets nobody write to it (ETXTBSY).
		n, err := io.Copy(hash, io.LimitReader(patient{ctx, f}, maxExecutable+1))
		if err == nil && n > maxExecutable {
			err = fmt.Errorf("its executable has more than %d bytes", maxExecutable)
		}
		got := hex.EncodeToString(hash.Sum(nil))
		return "its executable has " + got, err == nil && got == want, err
	}
}

// patient is a reader that ends with its context.
type patient struct {
	ctx context.Context
	r   io.Reader
}

func (p patient) Read(b []byte) (int, error) {
	if err := p.ctx.Err(); err != nil {
		return 0, err
	}
	return p.r.Read(b)
}
