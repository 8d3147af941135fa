package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"merlon"
	"merlon/attest"
	"merlon/control"
	"merlon/internal/sockowner"
	"merlon/workloadapi"
)

// identities tells the Workload API which service a process is, by the intent
// in force.
type identities struct {
	opt attest.Options
	log *slog.Logger

	mu      sync.Mutex
	locals  map[string]*local // of the gates that run, by service
	in      *merlon.Intent    // in force; nil before the first
	current *attest.Attestor  // of in
	coming  *attest.Attestor  // of the intent that is being brought up
	changed chan struct{}     // closed when current is another
}

func newIdentities(opt attest.Options, log *slog.Logger) *identities {
	i := &identities{opt: opt, log: log, locals: map[string]*local{}, changed: make(chan struct{})}
	i.opt.Started = i.started
	return i
}

// started reports whether a process belongs to the program that runs for a
// service.
func (i *identities) started(service string, p *sockowner.Process) (bool, error) {
	i.mu.Lock()
	l := i.locals[service]
	i.mu.Unlock()
	if l == nil {
		return false, nil
	}
	return l.started(p)
}

// join takes up a gate's own notion of which processes are its service's; nil
// forgets it.
func (i *identities) join(service string, l *local) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if l == nil {
		delete(i.locals, service)
		return
	}
	i.locals[service] = l
}

// force takes up the intent that is in force now, and tells whoever has an
// identity by the one before. It waits for nothing but users' names.
func (i *identities) force(in *merlon.Intent) {
	a, err := attest.New(in, i.opt)
	if err != nil { // it was checked before; since then a user may be gone
		i.log.Error("some workloads of the intent cannot be recognised and have no identity", "err", err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.in, i.current, i.coming = in, a, nil
	close(i.changed)
	i.changed = make(chan struct{})
}

// expect takes up an intent that is being brought up: a program of it that
// merlon starts may need its identity before it can serve, and the intent is in
// force only when it serves. nil forgets it.
func (i *identities) expect(in *merlon.Intent) {
	var a *attest.Attestor
	if in != nil {
		runs := in.Here()
		runs.Services = slices.DeleteFunc(runs.Services, func(svc merlon.Service) bool { return svc.Run == nil })
		a, _ = attest.New(runs, i.opt) // it was checked; what cannot be is no identity
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.coming = a
}

// identify is workloadapi.Config.Identify.
func (i *identities) identify(ctx context.Context, p *sockowner.Process) (string, error) {
	i.mu.Lock()
	current, coming := i.current, i.coming
	i.mu.Unlock()
	err := errors.New("no intent is in force")
	var name string
	if current != nil {
		if name, err = current.Identify(ctx, p); err == nil || errors.Is(err, attest.ErrMany) {
			return name, err
		}
	}
	if coming != nil {
		if name, cerr := coming.Identify(ctx, p); cerr == nil {
			return name, nil
		}
	}
	return "", err
}

// stale is workloadapi.Config.Changed.
func (i *identities) stale() <-chan struct{} {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.changed
}

// explain is control.Options.Explain.
func (i *identities) explain(ctx context.Context, pid int) (*control.Explanation, error) {
	i.mu.Lock()
	in, current := i.in, i.current
	i.mu.Unlock()
	if in == nil {
		return nil, errors.New("no intent is in force")
	}
	return explain(ctx, in, current, i.identify, pid)
}

// explain says which service of an intent a process is, and why.
func explain(ctx context.Context, in *merlon.Intent, a *attest.Attestor, identify func(context.Context, *sockowner.Process) (string, error), pid int) (*control.Explanation, error) {
	p, err := sockowner.OpenProcess(pid)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	defer p.Close()
	e := &control.Explanation{PID: pid, Executable: p.Executable(), Services: a.Explain(ctx, p)}
	if e.Service, err = identify(ctx, p); err != nil {
		e.Why = err.Error()
	} else {
		e.ID = in.SPIFFEID(e.Service)
	}
	return e, nil
}

// workloadOptions say where the Workload API is served and how workloads are
// told apart.
type workloadOptions struct {
	address            string // unix:///PATH or tcp://LOOPBACK:PORT; "" is a socket in the state directory
	Docker, Containerd string // sockets
	// Of a Kubernetes cluster.
	Issuer, Audience, KeyFile string
}

// attestOptions are those for package attest.
func (o workloadOptions) attestOptions() (attest.Options, error) {
	opt := attest.Options{Docker: o.Docker, Containerd: o.Containerd}
	var err error
	opt.Cluster, err = o.cluster(o.Audience)
	return opt, err
}

// cluster verifies tokens for an audience; nil where no keys are given.
func (o workloadOptions) cluster(audience string) (*attest.Cluster, error) {
	if o.KeyFile == "" {
		return nil, nil
	}
	keys, err := os.ReadFile(o.KeyFile)
	if err != nil {
		return nil, err
	}
	return attest.NewCluster(o.Issuer, audience, keys)
}

// flags declares them; place is where the Workload API is by default.
func (o *workloadOptions) flags(c *cobra.Command, place string) {
	c.Flags().StringVar(&o.address, "workload-api", "", "`address` of the SPIFFE Workload API, unix:///PATH or tcp://127.0.0.1:PORT; default is a socket "+place)
	c.Flags().StringVar(&o.Docker, "docker", "/var/run/docker.sock", "`socket` of the Docker Engine, for services known by their container")
	c.Flags().StringVar(&o.Containerd, "containerd", "/run/containerd/containerd.sock", "`socket` of containerd, for services known by their container")
	c.Flags().StringVar(&o.KeyFile, "kubernetes-keys", "", "`file` with the keys of a Kubernetes cluster (kubectl get --raw /openid/v1/jwks), for services known by their service account")
	c.Flags().StringVar(&o.Issuer, "kubernetes-issuer", "https://kubernetes.default.svc.cluster.local", "`issuer` of the cluster's tokens")
	c.Flags().StringVar(&o.Audience, "kubernetes-audience", "https://kubernetes.default.svc.cluster.local", "`audience` of the tokens in pods")
}

const workloadsName = "spiffe.sock"

// serveWorkloads serves the Workload API.
func (s *system) serveWorkloads(address string) error {
	if !sockowner.Supported() {
		s.log.Warn("the Workload API is not served: this system does not tell who is at the other end of a socket")
		return nil
	}
	if address == "" {
		address = "unix://" + filepath.Join(s.state, workloadsName)
	}
	l, err := listenWorkloads(address)
	if err != nil {
		return err
	}
	s.workloads, err = workloadapi.New(workloadapi.Config{
		Authority: s.authority, TrustDomain: s.trustDomain, Identify: s.who.identify, Changed: s.who.stale,
		Federated: s.partners.Bundles, Log: s.log,
	})
	if err != nil {
		l.Close()
		return err
	}
	s.endpoint = address
	if tcp, ok := l.Addr().(*net.TCPAddr); ok {
		s.endpoint = "tcp://" + tcp.String() // its port may have been 0
	}
	go func() {
		if err := s.workloads.Serve(l); err != nil {
			s.log.Error("the Workload API ended", "err", err)
		}
	}()
	return nil
}

// listenWorkloads listens at an address as SPIFFE writes it (SPIFFE Workload
// Endpoint 4).
func listenWorkloads(address string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(address, "unix://"); ok && filepath.IsAbs(path) {
		return workloadapi.Listen(path)
	}
	if at, ok := strings.CutPrefix(address, "tcp://"); ok {
		l, err := net.Listen("tcp", at)
		if err == nil && !l.Addr().(*net.TCPAddr).IP.IsLoopback() {
			l.Close()
			err = fmt.Errorf("the Workload API is for this host: %s is not a loopback address", at)
		}
		return l, err
	}
	return nil, usage("%q is no address of a Workload API\nhint: write unix:///PATH or tcp://127.0.0.1:PORT", address)
}
