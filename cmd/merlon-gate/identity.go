package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"merlon"
	"merlon/identity/spiffe"
)

// source is the gate's own SVID and the roots of its and of other trust domains,
// as they are now.
type source interface {
	spiffe.Source
	RootsOf(trustDomain string) *x509.CertPool
}

// identity finds the gate's own SVID, in files or at a Workload API.
func (s *server) identity(orders *merlon.Orders) (source, error) {
	id := orders.Intent.SPIFFEID(orders.Place.Workload())
	if !strings.Contains(s.opt.svid, "://") {
		f, err := spiffe.ReadFiles(s.opt.svid, id, time.Now)
		if err != nil {
			return nil, fmt.Errorf("-svid: %w", err)
		}
		s.files = f
		return f, nil
	}
	if s.fetched != nil {
		return s.fetched, nil // the orders before these were refused
	}
	// A signal ends the wait for the first SVID, and nothing after it: calls in
	// progress need the SVID to the end of this process.
	ctx, cancel := context.WithCancel(context.Background())
	signalled, unhook := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	release := context.AfterFunc(signalled, cancel)
	defer unhook()
	s.log.Info("waiting for the first SVID", "from", s.opt.svid, "id", id)
	f, err := spiffe.Fetch(ctx, s.opt.svid, id, time.Now, s.heard)
	release()
	if err != nil {
		cancel()
		return nil, fmt.Errorf("-svid %s: there is no SVID: %w", s.opt.svid, err)
	}
	s.fetched = f
	return f, nil
}

// heard is what the Workload API's client reports.
func (s *server) heard(err error) {
	if err != nil {
		s.log.Warn("the Workload API gives no SVID", "from", s.opt.svid, "error", err)
		return
	}
	s.log.Info("an SVID came", "from", s.opt.svid)
}

// lookAtSVID takes up files that have changed, and says how near the end of the
// SVID is.
func (s *server) lookAtSVID(now time.Time) {
	if s.files != nil {
		switch changed, err := s.files.Look(); {
		case err != nil:
			s.log.Error("the files of the SVID are not taken up; what was in them before serves until it expires", "directory", s.opt.svid, "error", err)
		case changed:
			s.log.Info("an SVID came", "from", s.opt.svid)
			s.missBundles()
		}
	}
	s.age.look(s.source.SVID(), now, s.log)
}

// missBundles says which trust domains the orders name whose workloads cannot
// prove themselves here.
func (s *server) missBundles() {
	for _, p := range s.orders.Intent.Federation {
		if s.source.RootsOf(p.TrustDomain) == nil {
			s.log.Warn("there is no bundle of a trust domain that the orders name: its workloads are denied", "trust domain", p.TrustDomain, "from", s.opt.svid)
		}
	}
}
