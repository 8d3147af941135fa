package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"time"

	"merlon/gate"
	"merlon/internal/adminhttp"
)

// The admin address tells whoever keeps the gate running how it is. It changes
// nothing, and shows nothing of any single call.

// liveness is the answer of /livez: the process answers, and its loops move.
type liveness struct {
	Live        bool   `json:"live"`
	Why         string `json:"why,omitempty"`
	PID         int    `json:"pid"`
	Goroutines  int    `json:"goroutines"`
	Connections int    `json:"connections"` // and streams of HTTP/2
}

// readiness is the answer of /readyz: whether calls should be sent here.
type readiness struct {
	Ready   bool           `json:"ready"`
	Orders  string         `json:"orders"` // the hash of those in force
	Reasons []gate.Problem `json:"reasons"`
}

// serveAdmin serves the admin address.
func (s *server) serveAdmin(l net.Listener) {
	if !adminhttp.Loopback(l.Addr()) {
		s.log.Warn("THE ADMIN ADDRESS CAN BE REACHED FROM OTHER HOSTS, and asks nobody who they are", "address", l.Addr().String())
	}
	s.log.Info("serving", "at", "admin", "address", l.Addr().String())
	s.admin = adminhttp.Serve(l, adminhttp.Answers{"/livez": s.livez, "/readyz": s.readyz, "/metrics": s.metrics})
}

func (s *server) livez(w http.ResponseWriter) {
	a := liveness{Live: true, PID: os.Getpid(), Goroutines: runtime.NumGoroutine(), Connections: s.gate.Connections()}
	if err := s.gate.Stuck(time.Now()); err != nil {
		a.Live, a.Why = false, err.Error()
	}
	say(w, a.Live, a)
}

func (s *server) readyz(w http.ResponseWriter) {
	reasons := s.gate.Problems(time.Now())
	if reasons == nil {
		reasons = []gate.Problem{}
	}
	say(w, len(reasons) == 0, readiness{len(reasons) == 0, s.gate.Hash(), reasons})
}

func (s *server) metrics(w http.ResponseWriter) {
	var text bytes.Buffer // whole or not at all
	if err := s.gate.WriteMetrics(&text); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", gate.MetricsType)
	w.Write(text.Bytes())
}

func say(w http.ResponseWriter, good bool, answer any) {
	w.Header().Set("Content-Type", "application/json")
	if !good {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	json.NewEncoder(w).Encode(answer)
}

// probe asks the gate at an admin address how it is, for those who can run a
// program beside the gate but cannot reach its loopback address.
func probe(address, what string) error {
	if what != "live" && what != "ready" {
		return fmt.Errorf("-probe %q: expect live or ready", what)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/"+what+"z", nil)
	if err != nil {
		return err
	}
	res, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	var a struct {
		Why     string         `json:"why"`
		Reasons []gate.Problem `json:"reasons"`
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 64<<10)).Decode(&a); err != nil {
		return fmt.Errorf("%s is no gate's admin address: %s", address, res.Status)
	}
	if res.StatusCode == http.StatusOK {
		return nil
	}
	errs := []error{fmt.Errorf("not %s", what)}
	if a.Why != "" {
		errs = append(errs, errors.New(a.Why))
	}
	for _, p := range a.Reasons {
		errs = append(errs, fmt.Errorf("%s: %s", p.Code, p.Text))
	}
	return errors.Join(errs...)
}
