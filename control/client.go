package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"

	"merlon/intent"
)

// Client calls the API of a control plane in another process of this user. Its
// methods answer as those of Control do, with the same types of errors.
type Client struct {
	path string
	http *http.Client
}

// ErrNotRunning says that no control plane listens at a state directory.
var ErrNotRunning = errors.New("no control plane is running")

// NewClient returns a client of the control plane whose state is in dir. It
// does not connect yet.
func NewClient(dir string) *Client {
	c := &Client{path: SocketPath(dir)}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", c.path)
		},
		DisableKeepAlives: true,
	}}
	return c
}

// Status is the present state.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	return call[Status](ctx, c, http.MethodGet, "/v1/status", nil)
}

// History is the newest commits first.
func (c *Client) History(ctx context.Context) ([]Commit, error) {
	commits, err := call[[]Commit](ctx, c, http.MethodGet, "/v1/history", nil)
	if err != nil {
		return nil, err
	}
	return *commits, nil
}

// Plan says what Apply would do.
func (c *Client) Plan(ctx context.Context, l *intent.Loaded) (*Plan, error) {
	return call[Plan](ctx, c, http.MethodPost, "/v1/plan", change{Bundle: l.Bundle})
}

// Apply puts an intent in force. Who of opt does not travel: the control plane
// asks the kernel.
func (c *Client) Apply(ctx context.Context, l *intent.Loaded, opt ApplyOptions) (*Result, error) {
	return call[Result](ctx, c, http.MethodPost, "/v1/apply", change{Bundle: l.Bundle, Message: opt.Message, Widen: opt.Widen})
}

// Rollback puts an intent of the history in force again.
func (c *Client) Rollback(ctx context.Context, hash string, opt ApplyOptions) (*Result, error) {
	return call[Result](ctx, c, http.MethodPost, "/v1/rollback", change{Hash: hash, Message: opt.Message, Widen: opt.Widen})
}

// Why explains a past call by its request id.
func (c *Client) Why(ctx context.Context, id string) (*Why, error) {
	return call[Why](ctx, c, http.MethodPost, "/v1/why", question{ID: id})
}

// maxAnswer bounds what a client reads of an answer, in bytes.
const maxAnswer = 256 << 20

func call[T any](ctx context.Context, c *Client, method, path string, in any) (*T, error) {
	res, err := c.send(ctx, method, path, in)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	out := new(T)
	if err := json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(out); err != nil {
		return nil, fmt.Errorf("the control plane's answer cannot be read: %w", err)
	}
	return out, nil
}

// send returns a good answer, or the error that another one says.
func (c *Client) send(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+apiHost+path, &body)
	if err != nil {
		return nil, err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%s: %w", c.path, ErrNotRunning)
	case err != nil:
		return nil, fmt.Errorf("call the control plane: %w", err)
	}
	if res.StatusCode == http.StatusOK {
		return res, nil
	}
	defer res.Body.Close()
	var f failure
	if err := json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(&f); err != nil {
		return nil, fmt.Errorf("the control plane answered %s", res.Status)
	}
	switch {
	case len(f.Diagnostics) > 0:
		return nil, f.Diagnostics
	case len(f.Widens) > 0:
		return nil, &WidensError{Changes: f.Widens}
	}
	return nil, errors.New(f.Error)
}
