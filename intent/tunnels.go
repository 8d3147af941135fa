package intent

import (
	"net"
	"slices"
	"strconv"
	"strings"

	"merlon"
)

// resolveSockets finds the operations that may become WebSockets.
func (e *estate) resolveSockets(s *serviceDef) {
	if len(s.sockets) == 0 {
		return
	}
	if s.Protocol != merlon.HTTP {
		e.report.at(s.sockets[0], codeContradiction, "remove webSockets, or the protocol", "a WebSocket begins with HTTP/1.1, and service %s speaks %v", s.Name, s.Protocol)
		return
	}
	all := len(s.sockets) == 1 && s.sockets[0].text == "all"
	found := false
	for i := range s.Operations {
		o := &s.Operations[i]
		get := o.Method == "GET" || o.Method == "*"
		w := slices.IndexFunc(s.sockets, func(w word) bool { return w.text == o.Name })
		switch {
		case all && get, w >= 0 && get:
			o.WebSocket, found = true, true
		case w >= 0:
			e.report.add(s.sockets[w], codeContradiction, "a WebSocket begins with GET", []merlon.Pos{o.Pos}, "operation %q is %s %s", o.Name, o.Method, o.Path)
		}
	}
	switch {
	case !all:
		for _, w := range s.sockets {
			e.operation(s, w)
		}
	case !found && !s.unsure:
		e.report.at(s.sockets[0], codeNothing, "a WebSocket begins with GET", "service %s has no operation with GET", s.Name)
	}
}

// resolveTarget finds where an external service that speaks TCP is. It has one
// host and one port, so that who asks for one never gets another.
func (e *estate) resolveTarget(s *serviceDef) {
	if len(s.hosts) == 0 {
		return
	}
	if len(s.hosts) > 1 {
		e.report.at(s.hosts[1], codeContradiction, "write an external service for each",
			"an external service that speaks tcp has one host, and %s has %d", s.Name, len(s.hosts))
		return
	}
	host, port, err := net.SplitHostPort(s.hosts[0].text)
	if err != nil {
		host, port = s.hosts[0].text, "443"
	}
	s.hosts[0].text = net.JoinHostPort(host, port)
	s.Hosts = []string{s.hosts[0].text}
	if len(s.Addresses) > 0 {
		return
	}
	address := s.Hosts[0]
	if !isAddress(host) {
		address = "dns:" + address
	}
	s.Addresses = []string{address}
}

func isAddress(host string) bool { return net.ParseIP(strings.Trim(host, "[]")) != nil }

// resolvePorts finds what the local ports of s lead to.
func (e *estate) resolvePorts(s *serviceDef) {
	taken := map[string]word{}
	for _, p := range s.ports {
		if first, there := taken[p.port.text]; there {
			e.report.add(p.port, codeTwice, "give each a port of its own", []merlon.Pos{first.pos}, "local port %s is here twice", p.port.text)
			continue
		}
		taken[p.port.text] = p.port
		t := e.callee(p.service)
		switch {
		case t == nil:
			continue
		case t == s:
			e.report.at(p.service, codeNothing, "it needs no gate to reach itself", "the local port leads to %s itself", s.Name)
		case t.Protocol != merlon.TCP:
			if !t.unsure {
				e.report.add(p.service, codeContradiction, "call it over HTTP, through the gate's outbound port", []merlon.Pos{t.Pos},
					"a local port is for a service that speaks tcp, and %s speaks %v", t.Name, t.Protocol)
			}
		case !e.mayCall(s, t):
			e.report.add(p.service, codeCannotCall, "name "+s.Name+" among the callers of "+t.Name, []merlon.Pos{t.Pos},
				"no rule lets %s call %s", s.Name, t.Name)
		}
		n, _ := strconv.ParseUint(p.port.text, 10, 16) // the table has checked it
		if s.LocalPorts == nil {
			s.LocalPorts = map[string]uint16{}
		}
		s.LocalPorts[t.Name] = uint16(n)
	}
}

// mayCall reports whether a rule lets s call t, or shadow mode would.
func (e *estate) mayCall(s, t *serviceDef) bool {
	return e.mode == merlon.Shadow || t.Mode == merlon.Shadow ||
		slices.ContainsFunc(t.rules, func(r *ruleDef) bool { return r.Caller == s.Name })
}
