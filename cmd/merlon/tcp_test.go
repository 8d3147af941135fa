package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// TestUpTCP runs a service that speaks TCP, and speaks first, behind merlon up.
func TestUpTCP(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go greet(l)
	_, port, _ := net.SplitHostPort(s.c)
	ledger := func(callers string) {
		s.write("ledger.merlon.yaml", fmt.Sprintf("services:\n  ledger:\n    address: %s\n    protocol: tcp\n    callers: {%s}\n", l.Addr(), callers))
	}
	batch := "services:\n  batch:\n    address: 127.0.0.1:1\n    localPorts: {ledger: " + port + "}\n"
	ledger("batch: all")
	s.write("batch.merlon.yaml", batch)
	s.up()
	c, err := net.Dial("tcp", s.c)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	r := bufio.NewReader(c)
	line := func() string { text, _ := r.ReadString('\n'); return text }
	if got := line(); got != "220 ledger\r\n" {
		t.Fatalf("read %q", got)
	}
	io.WriteString(c, "helo\n")
	if got := line(); got != "helo\n" {
		t.Fatalf("read %q", got)
	}

	out := s.must("can", "batch -> ledger")
	if !strings.Contains(out, "gate of batch") || !strings.Contains(out, "gate of ledger") {
		t.Errorf("can:\n%s", out)
	}
	if out := s.must("graph"); !strings.Contains(out, `|"tcp"| n_ledger`) {
		t.Errorf("graph:\n%s", out)
	}
	s.fails(3, []string{"can", "a -> ledger"}, "no_rule")
	if out := s.must("status"); !strings.Contains(out, "ledger: batch") {
		t.Errorf("status:\n%s", out)
	}
	why, errs, code := s.merlon("why", s.callOf("ledger"))
	if code != 0 || !strings.Contains(why, "batch -> ledger") || !strings.Contains(why, "gate of ledger, in") {
		t.Errorf("why: exit %d\n%s%s", code, why, errs)
	}

	// A port that is taken: the gate refuses its orders, and apply says why.
	taken, err := net.Listen("tcp", s.gateway[:strings.LastIndexByte(s.gateway, ':')]+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, busy, _ := net.SplitHostPort(taken.Addr().String())
	s.write("batch.merlon.yaml", strings.Replace(batch, port, busy, 1))
	stdout, stderr, _ := s.merlon("apply")
	if all := stdout + stderr; !strings.Contains(all, "local port "+busy+" for ledger") {
		t.Errorf("apply with a port that is taken:\n%s", all)
	}
	s.write("batch.merlon.yaml", batch)
	s.must("apply")

	// Without the rule, the connection ends at once.
	s.write("batch.merlon.yaml", "services:\n  batch:\n    address: 127.0.0.1:1\n")
	ledger("a: all")
	s.must("apply", "--widen")
	if got := line(); got != "" {
		t.Errorf("read %q", got)
	}
}

// greet speaks first, and echoes.
func greet(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			io.WriteString(c, "220 ledger\r\n")
			io.Copy(c, c)
		}()
	}
}

// callOf is the id of a call of a service that was recorded.
func (s *site) callOf(service string) (id string) {
	s.t.Helper()
	eventually(s.t, "the record of the call", func() bool {
		out, _, _ := s.merlon("record", "tail", "--json")
		for line := range strings.Lines(out) {
			var r struct{ ID, Service string }
			if json.Unmarshal([]byte(line), &r) == nil && r.Service == service {
				id = r.ID
			}
		}
		return id != ""
	})
	return id
}
