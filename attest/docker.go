package attest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
)

// dockerEngine is the Docker Engine of this host, asked over its Unix socket.
type dockerEngine struct{ socket string }

// maxAnswer bounds what is read of an answer of an engine.
const maxAnswer = 4 << 20

// dockerContainer is what is read of /containers/ID/json, and of the image of
// that container.
type dockerContainer struct {
	ID     string `json:"Id"`
	Image  string // sha256: of the image's configuration
	Config struct {
		Labels map[string]string
	}
	pulled func() ([]string, error) // NAME@sha256:... of /images/ID/json
}

// of is the container that a process is in.
func (d *dockerEngine) of(ctx context.Context, s *subject) (*dockerContainer, error) {
	path, err := s.cgroup()
	if err != nil {
		return nil, err
	}
	id := containerOf(path)
	if id == "" {
		return nil, errNoContainer
	}
	c := new(dockerContainer)
	if err := d.get(ctx, "/containers/"+id+"/json", c); err != nil {
		return nil, err
	}
	if c.ID != id {
		return nil, fmt.Errorf("the engine told of container %.12q instead of %.12s", c.ID, id)
	}
	// A process may be moved while the engine is asked.
	if again, err := s.Cgroup(); err != nil || again != path {
		return nil, errMoved
	}
	c.pulled = sync.OnceValues(func() ([]string, error) {
		if hex, ok := strings.CutPrefix(c.Image, "sha256:"); !ok || containerID(hex) == "" {
			return nil, nil
		}
		var image struct{ RepoDigests []string }
		err := d.get(ctx, "/images/"+c.Image+"/json", &image)
		return image.RepoDigests, err
	})
	return c, nil
}

var (
	errNoContainer = errors.New("the process is in no container")
	errMoved       = errors.New("the process changed its control group meanwhile")
)

// inDocker asks about the container that a process is in.
func inDocker(ask func(*dockerContainer) (bool, func() string, error)) selector {
	return func(s *subject) (bool, func() string, error) {
		c, err := s.docker()
		switch {
		case errors.Is(err, errNoContainer):
			return false, err.Error, nil
		case err != nil:
			return false, nil, err
		}
		return ask(c)
	}
}

// dockerLabel holds for a process in a container with this label.
func dockerLabel(name, want string) selector {
	return inDocker(func(c *dockerContainer) (bool, func() string, error) {
		return hasLabel(c.ID, c.Config.Labels, name, want)
	})
}

// hasLabel reports whether a container has a label.
func hasLabel(id string, labels map[string]string, name, want string) (bool, func() string, error) {
	got, ok := labels[name]
	return ok && got == want, func() string {
		if !ok {
			return fmt.Sprintf("its container %.12s has no such label", id)
		}
		return fmt.Sprintf("its container %.12s has the label %q", id, name+"="+got)
	}, nil
}

// dockerImage holds for a process in a container of this image: by the digest of
// its configuration, which docker images --no-trunc shows, or by the digest
// under which it was pulled, with the name or without.
func dockerImage(want string) selector {
	name, digest := splitImage(want)
	return inDocker(func(c *dockerContainer) (bool, func() string, error) {
		saw := func() string { return fmt.Sprintf("its container %.12s is of image %s", c.ID, c.Image) }
		if name == "" && c.Image == digest {
			return true, saw, nil
		}
		pulled, err := c.pulled()
		for _, p := range pulled {
			at, d := splitImage(p)
			if d == digest && (name == "" || name == at) {
				return true, saw, nil
			}
		}
		return false, saw, err
	})
}

// splitImage takes [NAME[:TAG]@]DIGEST apart. The name is the shortest of those
// that mean the same.
func splitImage(text string) (name, digest string) {
	name, digest, ok := strings.Cut(text, "@")
	if !ok {
		return "", text
	}
	return repository(name), digest
}

// repository is the name of an image without tag and digest, and without what
// engines add to names that say no registry.
func repository(name string) string {
	name, _, _ = strings.Cut(name, "@")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	if rest, ok := strings.CutPrefix(name, "docker.io/"); ok {
		name = strings.TrimPrefix(rest, "library/")
	}
	return name
}

// get asks the engine (Docker Engine API 1.41 and later, which all have these
// paths).
func (d *dockerEngine) get(ctx context.Context, path string, into any) error {
	client := &http.Client{
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", d.socket)
			},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/v1.41"+path, nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("the container engine could not be asked: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the container engine answered %s", res.Status)
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(into); err != nil {
		return fmt.Errorf("the container engine's answer cannot be read: %w", err)
	}
	return nil
}
