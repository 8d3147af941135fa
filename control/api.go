package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"merlon"
	"merlon/intent"
	"merlon/verify"
)

const (
	socketName = "control.sock"
	// apiHost is the only Host that the API answers. A browser that was
	// tricked into calling it would send another (DNS rebinding).
	apiHost = "merlon.control"
	// maxRequest bounds a request body: a bundle in base64, and some words.
	maxRequest = maxBundle/3*4 + 1<<16
	// longestChange bounds an answer: a change may build and start programs.
	longestChange = 15 * time.Minute
)

// SocketPath is where the API of the state directory dir listens.
func SocketPath(dir string) string { return filepath.Join(dir, socketName) }

// API is the control plane's local interface, served on a Unix socket that
// only this user can open.
type API struct {
	path   string
	server *http.Server
	done   chan struct{}
}

// Serve serves the API on the socket in the state directory until Close.
func (c *Control) Serve() (*API, error) {
	path := SocketPath(filepath.Dir(c.store.path))
	l, err := listenUnix(path)
	if err != nil {
		return nil, err
	}
	a := &API{path: path, done: make(chan struct{})}
	closing := make(chan struct{})
	a.server = &http.Server{
		Handler: c.Handler(),

		DisableGeneralOptionsHandler: true, // "OPTIONS *" is no path of ours
		ReadHeaderTimeout:            5 * time.Second,
		ReadTimeout:                  time.Minute,
		WriteTimeout:                 longestChange,
		MaxHeaderBytes:               8 << 10,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(withPeer(ctx, conn), closingKey{}, closing)
		},
	}
	a.server.RegisterOnShutdown(sync.OnceFunc(func() { close(closing) }))
	go func() {
		defer close(a.done)
		a.server.Serve(l) // always ends with http.ErrServerClosed
	}()
	return a, nil
}

// Path is the socket.
func (a *API) Path() string { return a.path }

// Close stops the API; calls that have begun are finished until ctx is done.
func (a *API) Close(ctx context.Context) error {
	err := a.server.Shutdown(ctx)
	if err != nil {
		a.server.Close()
	}
	<-a.done
	return err
}

// listenUnix listens on a socket for this user alone. What a killed process
// left there is removed; a socket that answers, or a file that is no socket,
// is not touched.
func listenUnix(path string) (net.Listener, error) {
	if most := len(syscall.RawSockaddrUnix{}.Path) - 1; len(path) > most {
		return nil, &StateError{Path: path, Problem: fmt.Sprintf("the path of the control socket has %d bytes; the system allows %d", len(path), most),
			Hint: "choose a state directory with a shorter path"}
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("control socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return nil, &StateError{Path: path, Problem: "a file that is no socket is in the place of the control socket", Hint: "move it aside"}
	default:
		if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
			conn.Close()
			return nil, &StateError{Path: path, Problem: "another merlon listens on the control socket", Hint: "stop it, or choose another state directory"}
		} else if !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("control socket: %w", err)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("control socket: %w", err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	// The directory keeps others out until here, see privateDir.
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return l, nil
}

// change is the body of a request to plan or apply.
type change struct {
	Bundle  []byte `json:"bundle,omitempty"`
	Hash    string `json:"hash,omitzero"` // of an intent in the history, instead of a bundle
	Message string `json:"message,omitzero"`
	Widen   bool   `json:"widen,omitzero"`
}

// question is the body of a request to why.
type question struct {
	ID string `json:"id"`
}

// failure is the body of every answer that is not 200.
type failure struct {
	Error       string             `json:"error"`
	Diagnostics merlon.Diagnostics `json:"diagnostics,omitempty"`
	Widens      []verify.Change    `json:"widens,omitempty"`
}

// statusError is an error with its HTTP status.
type statusError struct {
	status int
	error
}

// Handler is the API as a handler. It answers exact paths only, and no browser:
// a page that a user visits must not be able to change the intent.
func (c *Control) Handler() http.Handler {
	type route struct {
		method string
		handle func(*http.Request) (any, error)
	}
	routes := map[string]route{
		"/v1/status":   {http.MethodGet, func(*http.Request) (any, error) { return c.Status(), nil }},
		"/v1/history":  {http.MethodGet, func(r *http.Request) (any, error) { return c.History(r.Context(), 0) }},
		"/v1/plan":     {http.MethodPost, c.servePlan},
		"/v1/apply":    {http.MethodPost, c.serveApply},
		"/v1/rollback": {http.MethodPost, c.serveRollback},
		"/v1/why":      {http.MethodPost, c.serveWhy},
		"/v1/exec":     {http.MethodPost, c.serveExec},
		"/v1/explain":  {http.MethodPost, c.serveExplain},
		"/v1/nodes":    {http.MethodGet, c.serveNodes},
		"/v1/token":    {http.MethodPost, c.serveToken},
		"/v1/identity": {http.MethodGet, c.serveAuthority},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// RequestURI is what was sent: no cleaning, decoding or query between
		// this comparison and the choice of what is done.
		chosen, ok := routes[r.RequestURI]
		var answer any
		err := fromBrowser(r)
		switch {
		case err != nil:
		case !ok:
			err = &statusError{http.StatusNotFound, fmt.Errorf("there is no %q here", r.RequestURI)}
		case r.Method != chosen.method:
			w.Header().Set("Allow", chosen.method)
			err = &statusError{http.StatusMethodNotAllowed, fmt.Errorf("%s takes %s", r.RequestURI, chosen.method)}
		default:
			answer, err = chosen.handle(r)
		}
		if f, ok := answer.(stream); ok && err == nil {
			f(w)
			return
		}
		status := http.StatusOK
		if err != nil {
			status, answer = describe(err)
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(answer) // a client that is gone needs no answer
	})
}

// fromBrowser refuses what a browser would send, and every other user.
func fromBrowser(r *http.Request) error {
	if peer, ok := r.Context().Value(peerKey{}).(peer); ok && peer.uid != 0 && peer.uid != os.Getuid() {
		return &statusError{http.StatusForbidden, errors.New("this control plane belongs to another user")}
	}
	if r.Host != apiHost {
		return &statusError{http.StatusForbidden, fmt.Errorf("host %q is not %q", r.Host, apiHost)}
	}
	for name := range r.Header {
		if name == "Origin" || name == "Referer" || name == "Cookie" || strings.HasPrefix(name, "Sec-") {
			return &statusError{http.StatusForbidden, fmt.Errorf("requests with %s are refused: they come from a browser", name)}
		}
	}
	return nil
}

// describe is the answer to an error.
func describe(err error) (int, failure) {
	f := failure{Error: err.Error()}
	var ds merlon.Diagnostics
	var widens *WidensError
	var coded *statusError
	switch {
	case errors.As(err, &ds):
		f.Diagnostics = ds
		return http.StatusUnprocessableEntity, f
	case errors.As(err, &widens):
		f.Widens = widens.Changes
		return http.StatusConflict, f
	case errors.As(err, &coded):
		return coded.status, f
	case errors.Is(err, errNoIntent), errors.Is(err, ErrNoRecord):
		return http.StatusNotFound, f
	case errors.Is(err, ErrClosed):
		return http.StatusServiceUnavailable, f
	}
	return http.StatusInternalServerError, f
}

// read reads a body of one JSON value with known fields only.
func read(r *http.Request, into any) error {
	bad := func(err error) error { return &statusError{http.StatusBadRequest, err} }
	// A form that a page submits cannot have this type.
	if got := r.Header.Get("Content-Type"); got != "application/json" {
		return &statusError{http.StatusUnsupportedMediaType, fmt.Errorf("content type %q is not application/json", got)}
	}
	dec := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxRequest))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return bad(fmt.Errorf("the request cannot be read: %w", err))
	}
	if _, err := dec.Token(); err != io.EOF {
		return bad(errors.New("the request has more than one value"))
	}
	return nil
}

func (c *Control) servePlan(r *http.Request) (any, error) {
	var in change
	if err := read(r, &in); err != nil {
		return nil, err
	}
	l, err := bundled(in.Bundle)
	if err != nil {
		return nil, err
	}
	return c.Plan(r.Context(), l)
}

func (c *Control) serveApply(r *http.Request) (any, error) {
	var in change
	if err := read(r, &in); err != nil {
		return nil, err
	}
	l, err := bundled(in.Bundle)
	if err != nil {
		return nil, err
	}
	return c.Apply(r.Context(), l, in.options(r))
}

func (c *Control) serveRollback(r *http.Request) (any, error) {
	var in change
	if err := read(r, &in); err != nil {
		return nil, err
	}
	return c.Rollback(r.Context(), in.Hash, in.options(r))
}

func (c *Control) serveWhy(r *http.Request) (any, error) {
	var in question
	if err := read(r, &in); err != nil {
		return nil, err
	}
	return c.Why(r.Context(), in.ID)
}

// options are the client's, but for who: that the kernel says.
func (in *change) options(r *http.Request) ApplyOptions {
	opt := ApplyOptions{Who: "unknown", Message: in.Message, Widen: in.Widen}
	if p, ok := r.Context().Value(peerKey{}).(peer); ok {
		opt.Who = p.name()
	}
	return opt
}

// bundled is the intent of a request.
func bundled(bundle []byte) (*intent.Loaded, error) {
	l, ds, err := LoadBundle(bundle)
	switch {
	case err != nil:
		return nil, &statusError{http.StatusBadRequest, err}
	case ds.Failed():
		return nil, ds
	}
	return l, nil
}
