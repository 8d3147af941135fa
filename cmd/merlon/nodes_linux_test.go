package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestNodeHosts: the authority and a node are two hosts with a wire between them,
// and nothing else in common than what the token says.
func TestNodeHosts(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("ip"); err != nil || os.Geteuid() != 0 {
		t.Skip("SKIP: hosts with a wire between them need root and ip")
	}
	s := nodeSite(t, "n1: {joinToken: true}")
	h := newHost(t)
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Skipf("SKIP: this machine makes no hosts: ip %v: %s", args, out)
		}
	}
	a, b := fmt.Sprintf("merlon-nodes-%d-a", os.Getpid()), fmt.Sprintf("merlon-nodes-%d-b", os.Getpid())
	for _, name := range []string{a, b} {
		ip("netns", "add", name)
		t.Cleanup(func() { exec.Command("ip", "netns", "del", name).Run() })
		ip("-n", name, "link", "set", "lo", "up")
	}
	ip("-n", a, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b)
	for name, address := range map[string]string{a: "10.9.7.1/24", b: "10.9.7.2/24"} {
		ip("-n", name, "address", "add", address, "dev", "eth0")
		ip("-n", name, "link", "set", "eth0", "up")
	}
	s.enter, h.enter = []string{"ip", "netns", "exec", a}, []string{"ip", "netns", "exec", b}
	s.up("--node-endpoint", "10.9.7.1:8445")
	h.start("10.9.7.1:8445", "--token-file", h.write("token", s.token("n1")))
	h.says("the agent is connected")
	if id, _, err := h.svid(); id != serviceC {
		t.Fatal(id, err, h.said)
	}
	if out := s.must("node", "list"); !strings.Contains(out, "10.9.7.2:") {
		t.Error(out)
	}
}
