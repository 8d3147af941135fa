package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"merlon/internal/sockowner"
)

// host is the agent of a node, a process of its own.
type host struct {
	t      *testing.T
	state  string
	socket string
	cmd    *exec.Cmd
	said   *lockedBuffer
	ended  chan struct{}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newHost is a host that could be a node.
func newHost(t *testing.T) *host {
	t.Helper()
	dir, err := os.MkdirTemp("", "merlon-node-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &host{t: t, state: filepath.Join(dir, "state"), socket: "unix://" + filepath.Join(dir, "state", "spiffe.sock")}
}

// write leaves a secret on the host, and returns its file.
func (h *host) write(name, text string) string {
	h.t.Helper()
	file := filepath.Join(filepath.Dir(h.state), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
	return file
}

// start starts the agent.
func (h *host) start(server string, args ...string) {
	h.t.Helper()
	h.said, h.ended = new(lockedBuffer), make(chan struct{})
	h.cmd = exec.Command(merlonBin(h.t), append([]string{"agent", "--server", server, "--state", h.state}, args...)...)
	h.cmd.Stderr = h.said
	if err := h.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	cmd, ended := h.cmd, h.ended
	go func() { cmd.Wait(); close(ended) }()
	h.t.Cleanup(func() { cmd.Process.Kill(); <-ended })
}

// stop ends the agent.
func (h *host) stop(with os.Signal) {
	h.t.Helper()
	h.cmd.Process.Signal(with)
	h.end()
}

// end waits for the end of the agent.
func (h *host) end() int {
	h.t.Helper()
	select {
	case <-h.ended:
	case <-time.After(time.Minute):
		h.t.Fatalf("the agent does not end\n%s", h.said)
	}
	return h.cmd.ProcessState.ExitCode()
}

// until waits for a condition.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

func (h *host) says(text string) {
	h.t.Helper()
	until(h.t, "the agent does not say "+text, func() bool {
		if strings.Contains(h.said.String(), text) {
			return true
		}
		select {
		case <-h.ended:
			h.t.Fatalf("the agent ended without %q\n%s", text, h.said)
		default:
		}
		return false
	})
}

// svids streams the X.509-SVID of this process from the agent's Workload API.
func (h *host) svids() workload.SpiffeWorkloadAPI_FetchX509SVIDClient {
	h.t.Helper()
	client, done, err := dialWorkloads(h.socket)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(done)
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(h.t.Context(), "workload.spiffe.io", "true"), 2*time.Minute)
	h.t.Cleanup(cancel)
	stream, err := client.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err != nil {
		h.t.Fatal(err)
	}
	return stream
}

// svid is the SPIFFE ID and the serial number of this process's SVID, or why it has
// none.
func (h *host) svid() (id, serial string, err error) {
	h.t.Helper()
	r, err := h.svids().Recv()
	if err != nil {
		return "", "", err
	}
	leaf, err := x509.ParseCertificates(r.Svids[0].X509Svid)
	if err != nil {
		return "", "", err
	}
	return r.Svids[0].SpiffeId, leaf[0].SerialNumber.String(), nil
}

// nodeSite is a site with service c on some nodes, as which this very process is
// recognised there.
func nodeSite(t *testing.T, nodes string) *site {
	t.Helper()
	if !sockowner.Supported() {
		t.Skip("SKIP: this system does not tell who is at the other end of a socket")
	}
	s := newSite(t)
	s.nodes(nodes)
	s.onNode("c", "n1")
	return s
}

func (s *site) nodes(nodes string) {
	s.head(s.gateway)
	text, err := os.ReadFile(filepath.Join(s.dir, "merlon.yaml"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.write("merlon.yaml", string(text)+"nodes: {"+nodes+"}\n")
}

func (s *site) onNode(service, nodes string) {
	self, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	s.write(service+".merlon.yaml", fmt.Sprintf("services:\n  %s:\n    workload: {unix: {user: %d, path: %q}}\n    nodes: [%s]\n", service, os.Getuid(), self, nodes))
}

func (s *site) token(node string) string {
	s.t.Helper()
	return s.must("node", "token", node)
}

// TestNodeJoins: a node that joins by a token gives its services their identities,
// over restarts of either end, until the intent says otherwise.
func TestNodeJoins(t *testing.T) {
	t.Parallel()
	s := nodeSite(t, "n1: {joinToken: true}, n2: {joinToken: true}")
	s.onNode("d", "n2")
	endpoint := ports4(t)[0]
	u := s.up("--node-endpoint", endpoint)

	h := newHost(t)
	token := s.token("n1")
	h.start(endpoint, "--token-file", h.write("token", token))
	h.says("the agent is connected")
	stream := h.svids()
	r, err := stream.Recv()
	if err != nil || r.Svids[0].SpiffeId != "spiffe://test.example/c" {
		t.Fatal(r, err, h.said)
	}
	_, serial, _ := h.svid()
	// Here the same process is nobody: its service is on the node.
	if _, err := exec.Command(merlonBin(t), "id", "fetch", "--socket", u.WorkloadAPI).CombinedOutput(); err == nil {
		t.Error("a service of a node is recognised where merlon up runs")
	}
	var list struct {
		Nodes []struct {
			Node, Proof string
			Services    []string
			Agents      []struct{ Address string }
		}
	}
	if out := s.must("node", "list", "--json"); json.Unmarshal([]byte(out), &list) != nil || len(list.Nodes) != 2 || list.Nodes[0].Node != "n1" ||
		len(list.Nodes[0].Agents) != 1 || list.Nodes[0].Services[0] != "c" || len(list.Nodes[1].Agents) != 0 {
		t.Error(out)
	}
	if out := s.must("node", "list"); !strings.Contains(out, "join token") || !strings.Contains(out, "not connected") {
		t.Error(out)
	}
	if strings.Contains(s.log(), strings.Split(token, ":")[3]) {
		t.Error("the log has the token's secret")
	}

	// The agent starts again, without a token, and while the authority is away.
	h.stop(syscall.SIGKILL)
	u.end(15)
	h.start(endpoint)
	h.says("the agent is not connected")
	if id, again, err := h.svid(); id != "spiffe://test.example/c" || again != serial {
		t.Errorf("%q %q %v, want %q\n%s", id, again, err, serial, h.said)
	}
	s.up("--node-endpoint", endpoint)
	h.says("the agent is connected")

	// The token was good once, also after a restart.
	thief := newHost(t)
	thief.start(endpoint, "--token-file", thief.write("token", token))
	if code := thief.end(); code == 0 || !strings.Contains(thief.said.String(), "the node cannot join") {
		t.Errorf("exit %d\n%s", code, thief.said)
	}
	if !strings.Contains(s.log(), "the token was used already") || !strings.Contains(s.log(), "node=n1") {
		t.Error("nobody hears of the token that is used again")
	}

	// A service that is taken off the node loses its identity at once.
	stream = h.svids()
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	s.onNode("c", "n2")
	s.remove("d.merlon.yaml")
	s.must("apply", "--widen")
	if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("%v\n%s", err, h.said)
	}
	if files, _ := filepath.Glob(filepath.Join(h.state, "svid-*")); len(files) > 0 {
		t.Errorf("%v are kept", files)
	}
	// And so does a node that is taken out of the intent.
	s.onNode("c", "n1")
	s.must("apply", "--widen")
	until(t, "the service has no identity again", func() bool { _, _, err := h.svid(); return err == nil })
	stream = h.svids()
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	s.nodes("n2: {joinToken: true}")
	s.onNode("c", "n2")
	s.must("apply", "--widen")
	if _, err := stream.Recv(); err == nil {
		t.Error("a stream goes on after the node was removed")
	}
	if code := h.end(); code == 0 || !strings.Contains(h.said.String(), "the node is not in the intent any more") {
		t.Errorf("exit %d\n%s", code, h.said)
	}
	// A node of the same name is another node.
	s.nodes("n1: {joinToken: true}, n2: {joinToken: true}")
	s.onNode("c", "n1")
	s.must("apply", "--widen")
	h.start(endpoint)
	if code := h.end(); code == 0 {
		t.Errorf("a node that was removed is back\n%s", h.said)
	}
	h.start(endpoint, "--token-file", h.write("token", s.token("n1")))
	h.says("the agent is connected")
	if id, _, err := h.svid(); id != "spiffe://test.example/c" {
		t.Errorf("%q %v\n%s", id, err, h.said)
	}
}
