package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"merlon/gate"
)

// The admin address tells whoever keeps the gate running how it is. It changes
// nothing, and shows nothing of any single call.

// maxAdmin bounds the connections to the admin address: no prober needs more,
// and more would take from those of calls.
const maxAdmin = 16

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

// serveAdmin serves the admin address. An idle connection, a slow one, or one
// of many costs what the bounds say.
func (s *server) serveAdmin(l net.Listener) {
	if address, err := netip.ParseAddrPort(l.Addr().String()); err != nil || !address.Addr().Unmap().IsLoopback() {
		s.log.Warn("THE ADMIN ADDRESS CAN BE REACHED FROM OTHER HOSTS, and asks nobody who they are", "address", l.Addr().String())
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	s.admin = &http.Server{
		Handler:           http.HandlerFunc(s.answerAdmin),
		ReadHeaderTimeout: 2 * time.Second,
		ReadTimeout:       2 * time.Second,
		WriteTimeout:      10 * time.Second,
		MaxHeaderBytes:    4 << 10,
		Protocols:         protocols,

		DisableGeneralOptionsHandler: true,
		ErrorLog:                     log.New(io.Discard, "", 0), // what probers send is no concern of ours
	}
	s.admin.SetKeepAlivesEnabled(false)
	s.log.Info("serving", "at", "admin", "address", l.Addr().String())
	go s.admin.Serve(&bounded{l, make(chan struct{}, maxAdmin)})
}

func (s *server) answerAdmin(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	// A page in a browser on this host can send requests here, and read the
	// answers if its own name leads here (DNS rebinding): names are refused,
	// and what says that it comes from a page.
	if !literal(r.Host) || r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") != "" {
		http.Error(w, "this address is called by its number, and not by pages", http.StatusForbidden)
		return
	}
	var answer func(http.ResponseWriter)
	switch r.RequestURI { // and not URL.Path, which has been made nice
	case "/livez":
		answer = s.livez
	case "/readyz":
		answer = s.readyz
	case "/metrics":
		answer = s.metrics
	default:
		http.Error(w, "there is /livez, /readyz and /metrics", http.StatusNotFound)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "this address is only asked", http.StatusMethodNotAllowed)
		return
	}
	answer(w)
}

// literal reports whether a Host is an IP address or localhost, with any port.
func literal(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil || host == "localhost"
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

// bounded is a listener that turns away whom it has no room for.
type bounded struct {
	net.Listener
	room chan struct{}
}

func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case b.room <- struct{}{}:
			return &guest{Conn: c, leave: b.room}, nil
		default:
			c.Close()
		}
	}
}

// guest gives its room back once.
type guest struct {
	net.Conn
	leave <-chan struct{}
	gone  atomic.Bool
}

func (g *guest) Close() error {
	if !g.gone.Swap(true) {
		<-g.leave
	}
	return g.Conn.Close()
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
