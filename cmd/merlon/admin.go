package main

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"

	"merlon"
	"merlon/gate"
	"merlon/internal/adminhttp"
)

// serveAdmin serves the metrics of all gates, to this host only: whoever reaches
// the address may ask.
func (s *system) serveAdmin(address string) (stop func(), err error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("--admin: %w", err)
	}
	if !adminhttp.Loopback(l.Addr()) {
		l.Close()
		return nil, usage("--admin %s can be reached from other hosts, and asks nobody who they are\nhint: expect a loopback address such as 127.0.0.1:9901", address)
	}
	server := adminhttp.Serve(l, adminhttp.Answers{"/metrics": s.metrics})
	s.log.Info("serving", "at", "admin", "address", l.Addr().String())
	return func() { server.Close() }, nil
}

func (s *system) metrics(w http.ResponseWriter) {
	running := s.running()
	var gates []*gate.Gate
	for _, place := range slices.SortedFunc(maps.Keys(running), func(a, b merlon.Place) int { return cmp.Compare(a.Service, b.Service) }) {
		gates = append(gates, running[place].gate)
	}
	var text bytes.Buffer // whole or not at all
	if err := gate.WriteMetrics(&text, gates...); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", gate.MetricsType)
	w.Write(text.Bytes())
}
