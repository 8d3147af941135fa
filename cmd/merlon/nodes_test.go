package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
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
	enter  []string // a command that runs the agent on another host, when not nil
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
	h.startWith(nil, server, args...)
}

// startWith starts the agent with a standard input.
func (h *host) startWith(in io.Reader, server string, args ...string) {
	h.t.Helper()
	h.run(in, append([]string{"agent", "--server", server, "--state", h.state}, args...)...)
}

// run runs merlon agent.
func (h *host) run(in io.Reader, args ...string) {
	h.t.Helper()
	h.said, h.ended = new(lockedBuffer), make(chan struct{})
	argv := append(slices.Clone(h.enter), append([]string{merlonBin(h.t)}, args...)...)
	h.cmd = exec.Command(argv[0], argv[1:]...)
	h.cmd.Stdin, h.cmd.Stderr = in, h.said
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
	stream, done := h.stream()
	h.t.Cleanup(done)
	return stream
}

func (h *host) stream() (workload.SpiffeWorkloadAPI_FetchX509SVIDClient, func()) {
	h.t.Helper()
	client, done, err := dialWorkloads(h.socket)
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(h.t.Context(), "workload.spiffe.io", "true"), 2*time.Minute)
	stream, err := client.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err != nil {
		h.t.Fatal(err)
	}
	return stream, func() { cancel(); done() }
}

// svid is the SPIFFE ID and the serial number of this process's SVID, or why it has
// none.
func (h *host) svid() (id, serial string, err error) {
	h.t.Helper()
	stream, done := h.stream()
	defer done() // a process has a few connections only
	r, err := stream.Recv()
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

const serviceC = "spiffe://test.example/c"

// TestNodeJoins: a node that joins by a token gives its services their identities,
// over restarts of either end.
func TestNodeJoins(t *testing.T) {
	t.Parallel()
	s := nodeSite(t, "n1: {joinToken: true}, n2: {joinToken: true}")
	s.onNode("d", "n2")
	s.write("e.merlon.yaml", "services:\n  e: {workload: {unix: {user: no-such-user}}, nodes: [n1]}\n") // which is the node's to say
	endpoint := ports4(t)[0]
	u := s.up("--node-endpoint", endpoint)
	h := newHost(t)
	token := s.token("n1")
	h.start(endpoint, "--token-file", h.write("token", token))
	h.says("the agent is connected")
	id, serial, err := h.svid()
	if err != nil || id != serviceC {
		t.Fatal(id, err, h.said)
	}
	// Here the same process is nobody: its service is on the node.
	if _, err := exec.Command(merlonBin(t), "id", "fetch", "--socket", u.WorkloadAPI).CombinedOutput(); err == nil {
		t.Error("a service of a node is recognised where merlon up runs")
	}
	for _, p := range u.Places {
		if p.Place == "gate of c" {
			if a, err := fetch("http://b/hello", p.Out); err != nil || a.reason != "not_own_workload" {
				t.Errorf("it calls through the gate of merlon up: %+v %v", a, err)
			}
		}
	}
	s.checkList()
	h.checkExplain()
	if strings.Contains(s.log()+h.said.String(), strings.Split(token, ":")[3]) {
		t.Error("a log has the token's secret")
	}

	// The agent starts again, without a token, and while the authority is away.
	h.stop(syscall.SIGKILL)
	u.end(15)
	h.start(endpoint)
	h.says("the agent is not connected")
	if id, again, err := h.svid(); id != serviceC || again != serial {
		t.Errorf("%q %q %v, want %q\n%s", id, again, err, serial, h.said)
	}
	s.up("--node-endpoint", endpoint)
	h.says("the agent is connected")

	// The token was good once, also after a restart.
	thief := newHost(t)
	thief.start(endpoint, "--token-file", thief.write("token", token))
	if code := thief.end(); code == 0 || !strings.Contains(thief.said.String(), "the node cannot join") || !strings.Contains(thief.said.String(), "merlon node token") {
		t.Errorf("exit %d\n%s", code, thief.said)
	}
	if !strings.Contains(s.log(), "the token was used already") || !strings.Contains(s.log(), "node=n1") {
		t.Error("nobody hears of the token that is used again")
	}
}

// checkList holds merlon node list to what TestNodeJoins has.
func (s *site) checkList() {
	s.t.Helper()
	var list struct {
		Nodes []struct {
			Node, Proof string
			Services    []string
			Agents      []struct{ Address, Problem string }
		}
	}
	out := ""
	until(s.t, "the node tells what it cannot do", func() bool {
		out = s.must("node", "list", "--json")
		return strings.Contains(out, "no-such-user")
	})
	if json.Unmarshal([]byte(out), &list) != nil || len(list.Nodes) != 2 || list.Nodes[0].Node != "n1" ||
		len(list.Nodes[0].Agents) != 1 || list.Nodes[0].Services[0] != "c" || len(list.Nodes[1].Agents) != 0 {
		s.t.Error(out)
	}
	if out := s.must("node", "list"); !strings.Contains(out, "join token") || !strings.Contains(out, "not connected") || !strings.Contains(out, "the workload of e cannot be recognised") {
		s.t.Error(out)
	}
}

// checkExplain holds merlon id explain to what it knows on the node.
func (h *host) checkExplain() {
	h.t.Helper()
	out, err := exec.Command(merlonBin(h.t), "id", "explain", fmt.Sprint(os.Getpid()), "--state", h.state).CombinedOutput()
	if text := string(out); err != nil || !strings.Contains(text, "is c, "+serviceC) || !strings.Contains(text, "c.merlon.yaml:3:") || strings.Contains(text, "d.merlon.yaml") {
		h.t.Errorf("%v\n%s", err, out)
	}
}

// TestNodeRemoved: what the intent takes away ends at once: a service of a node,
// and the node.
func TestNodeRemoved(t *testing.T) {
	t.Parallel()
	s := nodeSite(t, "n1: {joinToken: true}, n2: {joinToken: true}")
	endpoint := ports4(t)[0]
	s.up("--node-endpoint", endpoint)
	h := newHost(t)
	h.start(endpoint, "--token-file", h.write("token", s.token("n1")))
	h.says("the agent is connected")
	begin := func() workload.SpiffeWorkloadAPI_FetchX509SVIDClient {
		t.Helper()
		stream := h.svids()
		if r, err := stream.Recv(); err != nil || r.Svids[0].SpiffeId != serviceC {
			t.Fatal(r, err)
		}
		return stream
	}
	stream := begin()
	s.onNode("c", "n2")
	s.must("apply", "--widen")
	if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("%v\n%s", err, h.said)
	}
	until(t, "the key of a service that is gone is gone", func() bool {
		files, err := filepath.Glob(filepath.Join(h.state, "svid-*"))
		return err == nil && len(files) == 0
	})
	s.onNode("c", "n1")
	s.must("apply", "--widen")
	until(t, "the service has an identity again", func() bool { _, _, err := h.svid(); return err == nil })
	stream = begin()
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
	token := s.token("n1")
	h.startWith(strings.NewReader(token), endpoint, "--token-file", "-")
	h.says("the agent is connected")
	begin()
}

// steps are the commands of a section of docs/identity.md, one a line, by their
// first words: so that what is shown is what is tested.
func steps(t *testing.T) (intent string, lines []string) {
	t.Helper()
	src, err := os.ReadFile(filepath.Join("..", "..", "docs", "identity.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(src), "\n## Nodes\n")
	section, _, _ = strings.Cut(section, "\n## ")
	for b := range blocks(section) {
		switch b.kind {
		case "yaml":
			intent = b.text
		case "sh":
			lines = append(lines, strings.Split(strings.TrimSpace(b.text), "\n")...)
		}
	}
	if intent == "" || len(lines) != 10 {
		t.Fatalf("docs/identity.md shows %d steps", len(lines))
	}
	return intent, lines
}

// TestNodesAreDocumented runs what docs/identity.md shows, line by line, with other
// addresses, directories and users: a node that joins by a token, and one with a
// certificate by openssl, whose services get JWT-SVIDs too.
func TestNodesAreDocumented(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("SKIP: openssl is not here to make certificates")
	}
	text, lines := steps(t)
	s, h, other := newSite(t), newHost(t), newHost(t)
	endpoint := ports4(t)[0]
	dir := filepath.Dir(h.state)
	text = strings.Replace(text, "user: ledger", fmt.Sprintf("user: %d", os.Getuid()), 1)
	change := strings.NewReplacer("/var/lib/merlon-agent", h.state, "10.0.1.5:8445", endpoint)
	intent := func(more string) {
		t.Helper()
		s.write("merlon.yaml", strings.Replace(text, "db1: {joinToken: true}", more, 1))
	}
	intent("db1: {joinToken: true}")
	s.remove("a.merlon.yaml")
	s.remove("b.merlon.yaml")
	for i, line := range lines {
		args := strings.Fields(change.Replace(line))
		switch {
		case strings.HasPrefix(line, "merlon up --node-endpoint "):
			s.up("--node-endpoint", endpoint)
		case args[0] == "merlon" && args[1] == "agent":
			if strings.Contains(line, "--cert") {
				intent("db1: {x509: {ca: nodes.pem, dns: db1.shop.example}}")
				ca, err := os.ReadFile(filepath.Join(dir, "nodes.pem"))
				if err != nil {
					t.Fatal(err)
				}
				s.write("nodes.pem", string(ca))
				s.must("apply", "--widen")
				h.end() // another proof is another node
				args = strings.Fields(strings.ReplaceAll(strings.Join(args, " "), h.state, other.state))
				h = other
			}
			for i, arg := range args {
				if strings.HasSuffix(arg, ".pem") || strings.HasSuffix(arg, ".key") || arg == "token" {
					args[i] = filepath.Join(dir, arg)
				}
			}
			h.run(nil, args[1:]...)
			h.says("the agent is connected")
		default:
			if args[0] == "merlon" {
				line = strings.Replace(line, "merlon ", merlonBin(t)+" --state "+filepath.Join(s.dir, ".merlon")+" ", 1)
			}
			cmd := exec.Command("sh", "-ec", line)
			cmd.Dir = dir
			if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(line, "node list") && !strings.Contains(string(out), endpoint[:10]) {
				t.Fatalf("step %d: %s: %v\n%s", i+1, line, err, out)
			}
		}
	}
	const ledger = "spiffe://shop.example/ledger"
	if id, _, err := h.svid(); id != ledger {
		t.Fatal(id, err, h.said)
	}
	h.checkToken(ledger)
	// Removed and named again, it proves itself anew by itself.
	text = strings.Replace(text, "[db1]", "[db2]", 1)
	intent("db2: {joinToken: true}")
	s.must("apply", "--widen")
	h.says("the node is not in the intent any more")
	if _, _, err := h.svid(); status.Code(err) != codes.PermissionDenied {
		t.Error(err)
	}
	text = strings.Replace(text, "[db2]", "[db1]", 1)
	intent("db1: {x509: {ca: nodes.pem, dns: db1.shop.example}}")
	s.must("apply", "--widen")
	until(t, "the node is back", func() bool { id, _, err := h.svid(); return err == nil && id == ledger })
}

// checkToken fetches a JWT-SVID and has it validated, both by the agent.
func (h *host) checkToken(want string) {
	h.t.Helper()
	client, done, err := dialWorkloads(h.socket)
	if err != nil {
		h.t.Fatal(err)
	}
	defer done()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(h.t.Context(), "workload.spiffe.io", "true"), time.Minute)
	defer cancel()
	token, err := client.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"https://db"}})
	if err != nil || token.Svids[0].SpiffeId != want {
		h.t.Fatal(token, err)
	}
	proved, err := client.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: "https://db", Svid: token.Svids[0].Svid})
	if err != nil || proved.SpiffeId != want {
		h.t.Error(proved, err)
	}
}

// TestNodeKubernetes: the agent of a pod joins by the pod's token, which is verified
// by the cluster's keys.
func TestNodeKubernetes(t *testing.T) {
	t.Parallel()
	s := nodeSite(t, "n1: {kubernetes: shop/merlon-agent}")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	jwks, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "1", Algorithm: "ES256", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "1"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	const issuer = "https://kubernetes.test.example"
	token := func(audience string) string {
		text, err := jwt.Signed(signer).Claims(map[string]any{"iss": issuer, "aud": []string{audience}, "sub": "system:serviceaccount:shop:merlon-agent",
			"iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
			"kubernetes.io": map[string]any{"namespace": "shop", "serviceaccount": map[string]any{"name": "merlon-agent"},
				"pod": map[string]any{"uid": "7c1f1b5e-0d7c-4a39-9c4b-0d6a6a3f3a11"}}}).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	h := newHost(t)
	endpoint := ports4(t)[0]
	s.up("--node-endpoint", endpoint, "--kubernetes-keys", h.write("keys.json", string(jwks)), "--kubernetes-issuer", issuer)
	file := h.write("token", token("https://kubernetes.default.svc.cluster.local"))
	h.start(endpoint, "--kubernetes-token", file, "--trust-domain", "test.example", "--trust-bundle", h.write("bundle.pem", s.must("id", "bundle")))
	h.says("proves no node of the intent")
	h.write("token", token("spiffe://test.example/merlon/node-endpoint")) // as the kubelet does, in place
	h.says("the agent is connected")
	if id, _, err := h.svid(); id != serviceC {
		t.Fatal(id, err, h.said)
	}
}

// TestNodeRenews: with SVIDs of seconds, a node and its services are renewed again
// and again, and nothing is cut off.
func TestNodeRenews(t *testing.T) {
	t.Parallel()
	s := nodeSite(t, "n1: {joinToken: true}")
	endpoint := ports4(t)[0]
	s.up("--node-endpoint", endpoint, "--svid-ttl", "10s")
	h := newHost(t)
	h.start(endpoint, "--token-file", h.write("token", s.token("n1")))
	h.says("the agent is connected")
	stream := h.svids()
	seen := map[string]bool{}
	for len(seen) < 6 { // the first has ended by then
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err, h.said)
		}
		seen[string(r.Svids[0].X509Svid)] = true
	}
	if said := h.said.String(); strings.Contains(said, "level=WARN") || strings.Contains(said, "level=ERROR") {
		t.Error(said)
	}
	if out := s.must("node", "list"); strings.Contains(out, "not connected") {
		t.Error(out)
	}
}

// TestNodeFlags: what cannot work is refused before anything runs.
func TestNodeFlags(t *testing.T) {
	t.Parallel()
	s := nodeSite(t, "n1: {joinToken: true}, n2: {kubernetes: shop/agent}")
	s.onNode("d", "n2")
	s.fails(1, []string{"up"}, "node n1 can join nowhere", "--node-endpoint", "merlon.yaml:6:")
	s.fails(1, []string{"up", "--node-endpoint", "127.0.0.1:0"}, "node n2 cannot prove itself", "no Kubernetes cluster")
	s.fails(1, []string{"node", "token", "n1"}, "merlon up")
	for _, tt := range []struct {
		args string
		want string
	}{
		{"", "nothing says where the authority is"},
		{"--server x", "is not HOST:PORT"},
		{"--server x:1", "keeps its keys"},
		{"--server x:1 --state S --token-file a --cert b --key c", "in several ways"},
		{"--server x:1 --state S --cert b", "--cert and --key go together"},
		{"--server x:1 --state S --cert b --key c", "--trust-domain and --trust-bundle"},
		{"--server x:1 --state S --kubernetes-token b --trust-domain c", "--trust-domain and --trust-bundle"},
	} {
		args := append([]string{"agent"}, strings.Fields(strings.ReplaceAll(tt.args, "S", filepath.Join(t.TempDir(), "s")))...)
		out, err := exec.Command(merlonBin(t), args...).CombinedOutput()
		if exited, ok := errors.AsType[*exec.ExitError](err); !ok || exited.ExitCode() != exitUsage || !strings.Contains(string(out), tt.want) {
			t.Errorf("%q: %v\n%s", tt.args, err, out)
		}
	}
	out, err := exec.Command(merlonBin(t), "agent", "--server", "x:1", "--state", filepath.Join(t.TempDir(), "s")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "nothing says which trust domain this is") {
		t.Errorf("%v\n%s", err, out)
	}
}
