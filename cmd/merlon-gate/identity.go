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

// identity is the gate's own SVID, from files or from a Workload API, and what
// gives the roots of other trust domains, nil if nothing does.
func (s *server) identity(orders *merlon.Orders) (spiffe.Source, func(string) *x509.CertPool, error) {
	if !strings.Contains(s.opt.svid, "://") {
		f, err := readSVID(s.opt.svid)
		return f, nil, err
	}
	if s.fetched != nil {
		return s.fetched, s.fetched.RootsOf, nil // the orders before these were refused
	}
	// A signal ends the wait for the first SVID, and nothing after it: calls in
	// progress need the SVID to the end of this process.
	ctx, cancel := context.WithCancel(context.Background())
	signalled, unhook := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	release := context.AfterFunc(signalled, cancel)
	defer unhook()
	id := orders.Intent.SPIFFEID(orders.Place.Workload())
	s.log.Info("waiting for the first SVID", "from", s.opt.svid, "id", id)
	f, err := spiffe.Fetch(ctx, s.opt.svid, id, time.Now, s.heard)
	release()
	if err != nil {
		cancel()
		return nil, nil, fmt.Errorf("-svid %s: there is no SVID: %w", s.opt.svid, err)
	}
	s.fetched = f
	return f, f.RootsOf, nil
}

// heard is what the Workload API's client reports.
func (s *server) heard(err error) {
	if err != nil {
		s.log.Warn("the Workload API gives no SVID", "from", s.opt.svid, "error", err)
		return
	}
	s.log.Info("an SVID came", "from", s.opt.svid)
}
