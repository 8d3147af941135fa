package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"merlon"
	"merlon/identity/spiffe"
	"merlon/internal/sockowner"
	"merlon/node"
	"merlon/workloadapi"
)

// onNode runs the agent of a node on which processes of the gate's program are
// service b, and serves its Workload API.
func (s *stand) onNode() (socket, state string) {
	s.t.Helper()
	server, err := node.NewServer(node.Config{Authority: s.auth, TrustDomain: trustDomain, Dir: s.dir})
	if err != nil {
		s.t.Fatal(err)
	}
	server.Set(&merlon.Intent{TrustDomain: trustDomain, Nodes: []merlon.Node{{Name: "n1", JoinToken: true}}, Services: []merlon.Service{
		{Name: "b", Nodes: []string{"n1"}, Workload: &merlon.WorkloadRule{UnixUser: strconv.Itoa(os.Getuid()), Executable: build(s.t)}}}})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	token, err := server.JoinToken("n1", time.Minute)
	if err != nil {
		s.t.Fatal(err)
	}
	state = filepath.Join(s.dir, "agent")
	agent, err := node.OpenAgent(node.AgentConfig{Server: l.Addr().String(), Dir: state, Log: slog.New(slog.DiscardHandler),
		Token: func() ([]byte, error) { return []byte(token.String()), nil }})
	if err != nil {
		s.t.Fatal(err)
	}
	api, err := workloadapi.New(workloadapi.Config{Authority: agent, TrustDomain: agent.TrustDomain(), Identify: agent.Identify,
		Changed: agent.Changed, Federated: agent.Federated})
	if err != nil {
		s.t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "wl")
	if err != nil {
		s.t.Fatal(err)
	}
	at, err := workloadapi.Listen(filepath.Join(dir, "api.sock"))
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { server.Serve(l) })
	wg.Go(func() { agent.Run(ctx) })
	wg.Go(func() { api.Serve(at) })
	s.t.Cleanup(func() { cancel(); api.Close(); server.Close(); wg.Wait(); os.RemoveAll(dir) })
	return "unix://" + filepath.Join(dir, "api.sock"), state
}

// TestGateOnNode: a gate on a node takes its SVID from the node's agent, and the
// node itself is nobody to it.
func TestGateOnNode(t *testing.T) {
	t.Parallel()
	if !sockowner.Supported() {
		t.Skip("this system does not tell who is at the other end of a socket")
	}
	s := newStand(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "done") }))
	socket, state := s.onNode()
	s.run(exec.Command(build(t), s.arguments("-svid", socket)...))
	s.url, s.out = "https://"+s.address("in"), s.address("out")
	s.want("/hello", 200, "done")

	pair, err := tls.LoadX509KeyPair(filepath.Join(state, "node.pem"), filepath.Join(state, "node.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if id, err := spiffe.ID(pair.Leaf); err != nil || !strings.HasSuffix(id, "/merlon/node/n1") {
		t.Fatal(id, err)
	}
	own, err := s.auth.Source(t.Context(), "spiffe://"+trustDomain+"/a", nil)
	if err != nil {
		t.Fatal(err)
	}
	config := spiffe.ClientConfig(own, "spiffe://"+trustDomain+"/b")
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	s.client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: config}}
	if status, says, err := s.get("/hello"); err == nil && status < 400 {
		t.Errorf("a node calls as a workload: %d %q", status, says)
	} else {
		t.Logf("a node is answered %d %q %v", status, says, err)
	}
}
