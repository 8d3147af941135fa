package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"merlon/internal/sockowner"
)

// TestWorkloadIdentity: a service that merlon starts has its identity before it
// listens, and a stranger has none.
func TestWorkloadIdentity(t *testing.T) {
	t.Parallel()
	if !sockowner.Supported() {
		t.Skip("SKIP: this system does not tell who is at the other end of a socket")
	}
	s := newSite(t)
	got := filepath.Join(s.dir, "identity")
	if err := os.Mkdir(got, 0o700); err != nil {
		t.Fatal(err)
	}
	command := fmt.Sprintf("%[1]s id fetch --write %[2]s && %[1]s id fetch --jwt db >%[2]s/token && exec %[3]s", merlonBin(t), got, appBin(t))
	s.serviceAs("a", s.a, "anyone: all", fmt.Sprintf("command: [sh, -c, %q]", command), "PEER: b")
	u := s.up()

	checkFetched(t, got)
	pid := s.want("/hello", 200, "a").pid
	explain := func(args ...string) string {
		out, err := exec.Command(merlonBin(t), append([]string{"id", "explain"}, args...)...).CombinedOutput()
		if err != nil {
			return "failed: " + string(out)
		}
		return string(out)
	}
	if out := explain(pid, s.dir); !strings.Contains(out, "is a, spiffe://test.example/a") || !strings.Contains(out, "started by merlon holds") ||
		!strings.Contains(out, "started by merlon does not hold") {
		t.Error(out)
	}
	me := fmt.Sprint(os.Getpid())
	if out := explain(me, s.dir); !strings.Contains(out, "has no identity: the process is no service of the intent") {
		t.Error(out)
	}
	var parsed struct {
		Process struct {
			Service  string
			Services []struct{ Service, Pos string }
		}
	}
	if out := explain("--json", pid, s.dir); json.Unmarshal([]byte(out), &parsed) != nil || parsed.Process.Service != "a" || len(parsed.Process.Services) != 2 ||
		parsed.Process.Services[0].Pos == "" {
		t.Error(out)
	}
	socket := "unix://" + filepath.Join(s.dir, ".merlon", "spiffe.sock")
	out, err := exec.Command(merlonBin(t), "id", "fetch", "--socket", socket).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "this process has no identity") {
		t.Errorf("a stranger: %v\n%s", err, out)
	}
	if !strings.Contains(s.log(), "a process asked for an identity and has none") {
		t.Error("nobody hears of the stranger")
	}
	u.end(15)
	if out := explain(me, s.dir); !strings.Contains(out, "merlon up") {
		t.Error(out)
	}
}

// checkFetched checks what merlon id fetch left in a directory.
func checkFetched(t *testing.T, got string) {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(filepath.Join(got, "svid.pem"), filepath.Join(got, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if uris := cert.Leaf.URIs; len(uris) != 1 || uris[0].String() != "spiffe://test.example/a" {
		t.Errorf("%v", uris)
	}
	bundle, err := os.ReadFile(filepath.Join(got, "bundle.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	for _, der := range cert.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		between.AddCert(c)
	}
	if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between}); err != nil {
		t.Error(err)
	}
	token, err := os.ReadFile(filepath.Join(got, "token"))
	if err != nil || strings.Count(string(token), ".") != 2 {
		t.Errorf("%q, %v", token, err)
	}
	if info, err := os.Stat(filepath.Join(got, "key.pem")); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info, err)
	}
}

// TestWorkloadRule: a service that merlon does not run is known by what the
// intent says, at the Workload API and at its gate; when the intent says
// otherwise, it ends at once.
func TestWorkloadRule(t *testing.T) {
	t.Parallel()
	if !sockowner.Supported() {
		t.Skip("SKIP: this system does not tell who is at the other end of a socket")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t)
	rule := func(path string) {
		s.write("c.merlon.yaml", fmt.Sprintf("services:\n  c:\n    workload: {unix: {user: %d, path: %q}}\n", os.Getuid(), path))
	}
	rule(self)
	s.service("b", s.b, "c: [hello]")
	s.service("a", s.a, "anyone: all")
	u := s.up("--workload-api", "tcp://127.0.0.1:0")
	client, done, err := dialWorkloads(u.WorkloadAPI)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "workload.spiffe.io", "true"), time.Minute)
	defer cancel()
	stream, err := client.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := stream.Recv()
	if err != nil || r.Svids[0].SpiffeId != "spiffe://test.example/c" {
		t.Fatal(r, err)
	}
	keys, err := client.FetchJWTBundles(ctx, &workload.JWTBundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := keys.Recv(); err != nil {
		t.Error(err)
	} else if _, err := jwtbundle.Parse(spiffeid.RequireTrustDomainFromString("test.example"), b.Bundles["spiffe://test.example"]); err != nil {
		t.Error(err)
	}

	out := ""
	for _, p := range u.Places {
		if p.Place == "gate of c" {
			out = p.Out
		}
	}
	if a, err := fetch("http://b/hello", out); err != nil || a.status != 200 {
		t.Errorf("the service's own process: %+v, %v", a, err)
	}
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("SKIP: curl is not here to be a stranger")
	}
	said, err := exec.Command(curl, "-s", "--noproxy", "", "-x", "http://"+out, "-D", "-", "http://b/hello").CombinedOutput()
	if err != nil || !strings.Contains(string(said), "not_own_workload") {
		t.Errorf("another program of the same user: %v\n%s", err, said)
	}

	rule(curl)
	s.must("apply", "--widen")
	if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("an identity that the intent does not give any more: %v", err)
	}
	if a, err := fetch("http://b/hello", out); err != nil || a.reason != "not_own_workload" {
		t.Errorf("the same at the gate: %+v, %v", a, err)
	}
	// What can never be checked here is not put in force.
	rule("/usr/bin/c")
	s.write("d.merlon.yaml", "services:\n  d: {workload: {kubernetes: shop/d}}\n")
	s.fails(1, []string{"apply", "--widen"}, "the keys of no Kubernetes cluster are known here", "d.merlon.yaml:2:")
}
