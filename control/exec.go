package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Lease is a permission for a process to call as a service. It lasts as long
// as the connection that asked for it.
type Lease struct {
	Way
	release func()
}

// Way is how a process calls as a service.
type Way struct {
	Address   string `json:"address,omitzero"`   // of the proxy for its calls
	Namespace string `json:"namespace,omitzero"` // file of the network namespace in which that is; "" for the host's
}

// Release gives the permission back.
func (l *Lease) Release() { l.release() }

// lease is the body of a request to exec, and of its answer.
type lease struct {
	Service string `json:"service,omitzero"`
	Way
}

// stream is an answer that goes on.
type stream func(http.ResponseWriter)

// closingKey is of a channel that is closed when the API begins to close: a
// lease would keep it waiting.
type closingKey struct{}

// serveExec lets the process at the other end of the socket, and what it
// starts, call as a service until the connection ends. Who that process is the
// kernel says; nobody can ask for another.
func (c *Control) serveExec(r *http.Request) (any, error) {
	var in lease
	if err := read(r, &in); err != nil {
		return nil, err
	}
	p, known := r.Context().Value(peerKey{}).(peer)
	switch {
	case c.opt.Exec == nil:
		return nil, &statusError{http.StatusNotFound, errors.New("no programs can be run as a service here")}
	case !known || p.pid <= 0:
		return nil, &statusError{http.StatusForbidden, errors.New("the system does not tell which process asks")}
	}
	way, release, err := c.opt.Exec(r.Context(), in.Service, p.pid, p.uid)
	if err != nil {
		return nil, err
	}
	return stream(func(w http.ResponseWriter) {
		defer release()
		conn := http.NewResponseController(w)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Connection", "close")
		if errors.Join(conn.SetReadDeadline(time.Time{}), conn.SetWriteDeadline(time.Time{}),
			json.NewEncoder(w).Encode(lease{Way: way}), conn.Flush()) != nil {
			return // the client is gone
		}
		closing, _ := r.Context().Value(closingKey{}).(chan struct{})
		select {
		case <-r.Context().Done():
		case <-closing:
		}
	}), nil
}

// Exec asks to let this process and what it starts call as a service.
func (c *Client) Exec(ctx context.Context, service string) (*Lease, error) {
	// The answer goes on until the lease is released, whatever becomes of ctx.
	held, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	res, err := c.send(held, http.MethodPost, "/v1/exec", lease{Service: service})
	if err != nil {
		cancel()
		return nil, err
	}
	var out lease
	err = json.NewDecoder(io.LimitReader(res.Body, 1<<16)).Decode(&out)
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err != nil {
		cancel()
		res.Body.Close()
		return nil, fmt.Errorf("the control plane's answer cannot be read: %w", err)
	}
	return &Lease{Way: out.Way, release: func() { cancel(); res.Body.Close() }}, nil
}
