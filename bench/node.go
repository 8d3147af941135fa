package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"merlon"
	"merlon/attest"
	"merlon/authority"
	"merlon/internal/sockowner"
	"merlon/workloadapi"
)

// node is a host with a Workload API: the authority, the attestor and the
// server, as merlon up has them.
type node struct {
	Listen   string // of TCP: it accepts when all is ready
	Dir      string
	Services int           // each is a user of its own
	FirstUID int           // of the first service
	SHA256   string        // of what they all run; "" is not asked
	Lifetime time.Duration // of an X.509-SVID
}

func (n *node) socket() string  { return filepath.Join(n.Dir, "api.sock") }
func (n *node) journal() string { return filepath.Join(n.Dir, "authority", "issued.jsonl") }

// id is the SPIFFE ID of a service.
func (n *node) id(service int) string {
	return "spiffe://" + trustDomain + "/w" + strconv.Itoa(service)
}

// runNode serves until it is interrupted.
func runNode(spec string) error {
	n := new(node)
	if err := json.Unmarshal([]byte(spec), n); err != nil {
		return fmt.Errorf("-hop: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT)
	defer stop()
	a, err := authority.Open(filepath.Join(n.Dir, "authority"), trustDomain, authority.Options{Lifetime: n.Lifetime})
	if err != nil {
		return err
	}
	defer a.Close()
	go a.Run(ctx)
	in := &merlon.Intent{TrustDomain: trustDomain}
	for i := range n.Services {
		in.Services = append(in.Services, merlon.Service{Name: "w" + strconv.Itoa(i), Workload: &merlon.WorkloadRule{
			UnixUser: strconv.Itoa(n.FirstUID + i), SHA256: n.SHA256}})
	}
	who, err := attest.New(in, attest.Options{})
	if err != nil {
		return err
	}
	never := make(chan struct{})
	s, err := workloadapi.New(workloadapi.Config{Authority: a, TrustDomain: trustDomain,
		Identify: func(ctx context.Context, p *sockowner.Process) (string, error) { return who.Identify(ctx, p) },
		Changed:  func() <-chan struct{} { return never }})
	if err != nil {
		return err
	}
	defer s.Close()
	l, err := workloadapi.Listen(n.socket())
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	ready, err := net.Listen("tcp", n.Listen)
	if err != nil {
		return err
	}
	defer ready.Close()
	select {
	case err = <-ended:
	case <-ctx.Done():
	}
	return err
}
