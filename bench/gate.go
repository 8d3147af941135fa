package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing/fstest"

	"merlon"
	"merlon/intent"
	"merlon/policy"
)

// service is what is called. It is reached under its name from beside, and
// under host from outside.
const service = "api"

// The intent that the gate enforces: who may call what, at the edge a limit
// too. The caller of the pair is another service.
const benchIntent = `
trustDomain: bench.example
gateway:
  listen: LISTEN
  hosts: [api.example.com]
  certificate: CERTIFICATE
  limit: {rate: 1000000/s, burst: 1000000, per: client}
services:
  web: {}
  api:
    OPERATIONS
    callers: {anyone: [CALLS], web: [CALLS]}
`

const benchContract = `syntax = "proto3";
package bench;
service Items {
  rpc Get(Item) returns (Item);
  rpc GetLarge(Item) returns (Item);
}
message Item { bytes body = 1; }
`

func startGate(h *hop) (*process, error) { return h.gate(h.lab.program("merlon-gate")) }

func startPortable(h *hop) (*process, error) {
	return h.gate(h.lab.program("merlon-gate"), "-portable")
}

// otherBuild is the gate as it was, for instance.
func otherBuild(file string) *peer {
	return &peer{name: ours + ", " + filepath.Base(file), svid: true, start: func(h *hop) (*process, error) { return h.gate(file) }}
}

// gate starts a gate: at the edge, or beside the service that calls (what it
// sends goes out over mutual TLS) or the one that is called.
func (h *hop) gate(program string, more ...string) (*process, error) {
	certificate := "none"
	if h.Front.TLS {
		certificate = "{cert: " + h.Cert + ", key: " + h.Key + "}"
	}
	operations, calls := "operations: {list: GET /api/items, get: 'GET /api/items/{id}', create: POST /api/items}", "list, get"
	if h.Back.HTTP2 {
		operations, calls = "contract: items.proto", "Get, GetLarge"
	}
	text := strings.NewReplacer("LISTEN", h.Listen, "CERTIFICATE", certificate, "OPERATIONS", operations, "CALLS", calls).Replace(benchIntent)
	loaded, ds := intent.Load(fstest.MapFS{"merlon.yaml": {Data: []byte(text)}, "items.proto": {Data: []byte(benchContract)}})
	if ds.Failed() {
		return nil, ds
	}
	place, endpoint, args := merlon.Edge, merlon.Endpoint{Address: h.Upstream}, more
	switch {
	case h.Back.Mutual:
		place, endpoint.ID = merlon.Place{Service: "web"}, "spiffe://"+trustDomain+"/"+service
		args = append(args, "-out", h.Listen)
	case h.Front.Mutual:
		place = merlon.Place{Service: service}
		args = append(args, "-in", h.Listen)
	}
	orders := &merlon.Orders{
		Version:   merlon.OrdersVersion,
		Place:     place,
		Of:        loaded.Hash,
		Intent:    policy.Scope(loaded.Intent, place),
		Endpoints: map[string][]merlon.Endpoint{service: {endpoint}},
	}
	encoded, err := orders.Encode()
	if err != nil {
		return nil, err
	}
	_, err = h.lab.svid(place.Workload(), filepath.Join(h.Dir, "svid"))
	file := filepath.Join(h.Dir, "orders.json")
	if err := errors.Join(err, os.WriteFile(file, encoded, 0o600)); err != nil {
		return nil, err
	}
	args = append(args, "-orders", file, "-svid", filepath.Join(h.Dir, "svid"), "-records", filepath.Join(h.Dir, "records"))
	return start(h.Listen, append([]string{program}, args...), 0)
}
