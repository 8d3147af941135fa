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

	"merlon/internal/sockowner"
)

// engine is the Docker Engine of this host, asked over its Unix socket.
type engine struct{ socket string }

// maxAnswer bounds what is read of an answer of the engine.
const maxAnswer = 4 << 20

// container is what is read of /containers/ID/json.
type container struct {
	ID     string `json:"Id"`
	Image  string // sha256: of the image's configuration
	Config struct {
		Labels map[string]string
	}
}

// image is what is read of /images/ID/json.
type image struct {
	RepoDigests []string // NAME@sha256:...
}

// of is the container that a process is in.
func (e *engine) of(ctx context.Context, p *sockowner.Process) (container, error) {
	path, err := p.Cgroup()
	if err != nil {
		return container{}, err
	}
	id := containerOf(path)
	if id == "" {
		return container{}, errNoContainer
	}
	var c container
	if err := e.get(ctx, "/containers/"+id+"/json", &c); err != nil {
		return container{}, err
	}
	if c.ID != id {
		return container{}, fmt.Errorf("the engine told of container %.12q instead of %.12s", c.ID, id)
	}
	// A process may be moved while the engine is asked.
	if again, err := p.Cgroup(); err != nil || again != path {
		return container{}, errors.New("the process changed its control group meanwhile")
	}
	return c, nil
}

var errNoContainer = errors.New("the process is in no container")

// label holds for a process in a container with this label.
func (e *engine) label(name, want string) func(context.Context, *sockowner.Process) (string, bool, error) {
	return func(ctx context.Context, p *sockowner.Process) (string, bool, error) {
		c, err := e.of(ctx, p)
		if errors.Is(err, errNoContainer) {
			return err.Error(), false, nil
		}
		got, ok := c.Config.Labels[name]
		saw := fmt.Sprintf("its container %.12s has no such label", c.ID)
		if ok {
			saw = fmt.Sprintf("its container %.12s has the label %q", c.ID, name+"="+got)
		}
		return saw, err == nil && ok && got == want, err
	}
}

// image holds for a process in a container of this image: by the digest of its
// configuration, which docker images --no-trunc shows, or by the digest under
// which it was pulled.
func (e *engine) image(want string) func(context.Context, *sockowner.Process) (string, bool, error) {
	return func(ctx context.Context, p *sockowner.Process) (string, bool, error) {
		c, err := e.of(ctx, p)
		if errors.Is(err, errNoContainer) {
			return err.Error(), false, nil
		}
		if err != nil || c.Image == want {
			return "", err == nil, err
		}
		saw := fmt.Sprintf("its container %.12s is of image %s", c.ID, c.Image)
		if digest, ok := strings.CutPrefix(c.Image, "sha256:"); !ok || containerID(digest) == "" {
			return saw, false, nil
		}
		var i image
		if err := e.get(ctx, "/images/"+c.Image+"/json", &i); err != nil {
			return saw, false, err
		}
		for _, d := range i.RepoDigests {
			if _, digest, ok := strings.Cut(d, "@"); ok && digest == want {
				return "", true, nil
			}
		}
		return saw, false, nil
	}
}

// get asks the engine (Docker Engine API 1.41 and later, which all have these
// paths).
func (e *engine) get(ctx context.Context, path string, into any) error {
	client := &http.Client{
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", e.socket)
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
