package main

import (
	"fmt"
	"strings"
)

// side is how one side of a proxy speaks.
type side struct {
	TLS    bool // TLS 1.3
	Mutual bool // and each end proves itself
	HTTP2  bool
}

// link is the two sides of one proxy.
type link struct{ Front, Back side }

// kind is what is measured.
type kind uint8

const (
	requests   kind = iota
	handshakes      // full ones, each with one request
	idle            // memory under idle connections
)

// scenario is one way to use a proxy.
type scenario struct {
	group string // the heading in the tables
	load  string // which of its group
	links []link // the proxies that a request passes
	kind  kind

	rate  int  // requests per second; 0 is as many as go through
	size  int  // of an answer, in bytes
	grpc  bool // unary calls
	short bool // part of the short run
	// pq lets clients offer the key exchange that Go prefers, X25519MLKEM768.
	pq bool
}

func (s *scenario) name() string { return s.group + ", " + s.load }

// front is how the client speaks.
func (s *scenario) front() side { return s.links[0].Front }

const small, large = 1 << 10, 100 << 10

// steps are the numbers of idle connections. Of the 20,000 descriptors that many
// systems allow a process, the gate keeps two for each connection, and some.
var steps = []int{1_000, 9_900}

// Groups of scenarios.
const (
	groupPlain = "HTTP/1.1"
	groupTLS   = "HTTP/1.1 over TLS 1.3"
	groupPair  = "a pair with mutual TLS between"
	groupHTTP2 = "HTTP/2 over TLS 1.3"
	groupGRPC  = "gRPC over TLS 1.3"
	groupShake = "TLS 1.3 handshakes"
	groupIdle  = "idle connections"
)

// scenarios are all of them. At 10,000 requests a second answers of 100 KiB
// would be a gigabyte a second: a test of the machine and not of the proxy.
func scenarios() []scenario {
	var (
		plain  = side{}
		secure = side{TLS: true}
		mutual = side{TLS: true, Mutual: true}
		http2  = side{TLS: true, HTTP2: true}
		clear2 = side{HTTP2: true}
	)
	var all []scenario
	for _, g := range []scenario{
		{group: groupPlain, links: []link{{plain, plain}}, short: true},
		{group: groupTLS, links: []link{{secure, plain}}},
		{group: groupPair, links: []link{{plain, mutual}, {mutual, plain}}},
		{group: groupHTTP2, links: []link{{http2, plain}}},
		{group: groupGRPC, links: []link{{http2, clear2}}, grpc: true},
	} {
		for _, size := range []int{small, large} {
			for _, rate := range []int{0, 1_000, 10_000} {
				if size == large && rate == 10_000 {
					continue
				}
				s := g
				s.rate, s.size = rate, size
				s.short = g.short && size == small && rate != 1_000
				s.load = fmt.Sprintf("%d KiB, %s", size>>10, rateName(rate))
				all = append(all, s)
			}
		}
	}
	return append(all,
		scenario{group: groupShake, load: "the server proves itself", kind: handshakes, links: []link{{secure, plain}}, size: small},
		scenario{group: groupShake, load: "mutual", kind: handshakes, links: []link{{mutual, plain}}, size: small},
		scenario{group: groupShake, load: "mutual, X25519MLKEM768 where known", kind: handshakes, links: []link{{mutual, plain}}, size: small, pq: true},
		scenario{group: groupIdle, load: "plain", kind: idle, links: []link{{plain, plain}}, size: small},
		scenario{group: groupIdle, load: "TLS 1.3", kind: idle, links: []link{{secure, plain}}, size: small},
	)
}

func rateName(rate int) string {
	if rate == 0 {
		return "saturated"
	}
	digits := fmt.Sprint(rate)
	return strings.TrimPrefix(digits[:len(digits)-3]+","+digits[len(digits)-3:], ",") + "/s"
}
