package workloadapi

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/emptypb"

	"merlon/authority"
	"merlon/identity/spiffe"
)

// script runs a client in another language, which says OK at the end.
func script(t *testing.T, name string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), "OK") {
		t.Errorf("%v\n%s", err, out)
	}
}

// The Python library spiffe.
func TestPython(t *testing.T) {
	t.Parallel()
	python := os.Getenv("MERLON_SPIFFE_PYTHON")
	if python == "" {
		t.Skip("MERLON_SPIFFE_PYTHON names no Python with the package spiffe: that it gets its identity is not shown")
	}
	e := start(t, authority.Options{}, me(t, "web"))
	script(t, python, "testdata/client.py", "unix://"+e.path, "spiffe://shop.example/web") // it knows no TCP
}

// Plain gRPC in JavaScript, by the published definitions.
func TestNode(t *testing.T) {
	t.Parallel()
	modules := os.Getenv("MERLON_GRPC_NODE")
	node, err := exec.LookPath("node")
	if modules == "" || err != nil {
		t.Skip("MERLON_GRPC_NODE names no node_modules with @grpc/grpc-js and @grpc/proto-loader: that they get an identity is not shown")
	}
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/spiffe/go-spiffe/v2").Output()
	if err != nil {
		t.Fatal(err)
	}
	proto := filepath.Join(strings.TrimSpace(string(dir)), "proto", "spiffe", "workload", "workload.proto")
	e := start(t, authority.Options{}, me(t, "web"))
	for _, address := range []string{"unix:" + e.path, e.tcp} {
		script(t, node, "testdata/client.js", modules, proto, address, "spiffe://shop.example/web")
	}
}

// A real Envoy serves TLS with the SVID that it gets over its Secret Discovery
// Service, takes a client by the bundle, and goes on with the next SVID.
func TestEnvoy(t *testing.T) {
	t.Parallel()
	envoy, err := exec.LookPath("envoy")
	if err != nil {
		t.Skip("envoy is not installed: that it gets its certificates is not shown")
	}
	e := start(t, authority.Options{Lifetime: 10 * time.Second}, me(t, "web"))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	config, err := os.ReadFile("testdata/envoy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "envoy.yaml")
	text := strings.NewReplacer("SOCKET", e.path, "PORT", fmt.Sprint(port)).Replace(string(config))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(envoy, "-c", file, "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	own, err := e.authority.Source(t.Context(), "spiffe://shop.example/client", nil)
	if err != nil {
		t.Fatal(err)
	}
	serials := map[string]bool{}
	for ctx := within(t); len(serials) < 2; {
		if ctx.Err() != nil {
			said, _ := os.ReadFile(log.Name())
			t.Fatalf("%d SVIDs of Envoy were seen\n%s", len(serials), said)
		}
		conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port), spiffe.ClientConfig(own, "spiffe://shop.example/web"))
		if err != nil {
			time.Sleep(100 * time.Millisecond)
			continue
		}
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
		b := make([]byte, 12)
		if _, err := conn.Read(b); err == nil && string(b) == "HTTP/1.1 200" {
			serials[conn.ConnectionState().PeerCertificates[0].SerialNumber.String()] = true
		}
		conn.Close()
		time.Sleep(100 * time.Millisecond)
	}
	// By the same bundle it refuses who has no SVID.
	conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port), &tls.Config{InsecureSkipVerify: true})
	if err == nil {
		_, err = conn.Read(make([]byte, 1))
		conn.Close()
	}
	if err == nil {
		t.Error("Envoy lets in a client without SVID")
	}
}

// secretsOf reads the secrets of a DiscoveryResponse, by name.
func secretsOf(t *testing.T, b []byte) (secrets map[string][]byte, version, nonce string) {
	t.Helper()
	secrets = map[string][]byte{}
	for _, f := range fields(t, b) {
		switch f.number {
		case 1:
			version = string(f.value)
		case 5:
			nonce = string(f.value)
		case 2:
			resource := fields(t, f.value)
			if string(resource[0].value) != secretType {
				t.Errorf("type %s", resource[0].value)
			}
			secret := fields(t, resource[1].value)
			secrets[string(secret[0].value)] = secret[1].value
		}
	}
	return
}

type wireField struct {
	number protowire.Number
	value  []byte
}

func fields(t *testing.T, b []byte) (all []wireField) {
	t.Helper()
	for len(b) > 0 {
		number, _, n := protowire.ConsumeTag(b)
		v, m := protowire.ConsumeBytes(b[max(n, 0):])
		if n < 0 || m < 0 {
			t.Fatal("not a message of strings")
		}
		all, b = append(all, wireField{number, v}), b[n+m:]
	}
	return
}

func request(names ...string) *emptypb.Empty {
	var b []byte
	for _, name := range names {
		b = field(b, 3, name)
	}
	m := new(emptypb.Empty)
	m.ProtoReflect().SetUnknown(field(b, 4, secretType))
	return m
}

func TestSDS(t *testing.T) {
	t.Parallel()
	e := start(t, authority.Options{}, me(t, "web"))
	c, err := grpc.NewClient("unix://"+e.path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const service = "/envoy.service.secret.v3.SecretDiscoveryService/"
	fetch := func(names ...string) (map[string][]byte, error) {
		out := new(emptypb.Empty)
		err := c.Invoke(within(t), service+"FetchSecrets", request(names...), out)
		if err != nil {
			return nil, err
		}
		all, version, nonce := secretsOf(t, out.ProtoReflect().GetUnknown())
		if version == "" || nonce == "" {
			t.Error("no version or nonce")
		}
		return all, nil
	}
	for _, tt := range []struct{ ask, want string }{
		{"", "ROOTCA default"}, {"default", "default"}, {"ROOTCA", "ROOTCA"}, {"default ROOTCA", "ROOTCA default"},
		{"spiffe://shop.example/web spiffe://shop.example", "spiffe://shop.example spiffe://shop.example/web"},
		{"spiffe://shop.example/orders", ""},
	} {
		all, err := fetch(strings.Fields(tt.ask)...)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, name := range []string{"ROOTCA", "default", "spiffe://shop.example", "spiffe://shop.example/web", "spiffe://shop.example/orders"} {
			if all[name] != nil {
				got = append(got, name)
			}
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%q gives %q", tt.ask, got)
		}
	}
	testSecretStream(t, e, c, service)
	// What is no request of secrets is refused, and over TCP there is none.
	e.apply(t, me(t, "web"))
	out, wrong := new(emptypb.Empty), new(emptypb.Empty)
	wrong.ProtoReflect().SetUnknown(field(nil, 4, "type.googleapis.com/envoy.config.cluster.v3.Cluster"))
	if err := c.Invoke(within(t), service+"FetchSecrets", wrong, out); status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
	tcp, err := grpc.NewClient(e.tcp, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	if err := tcp.Invoke(within(t), service+"FetchSecrets", request(), out); status.Code(err) != codes.PermissionDenied {
		t.Error(err)
	}
}

// testSecretStream holds a stream: it is told of what is asked for anew, and of
// the end.
func testSecretStream(t *testing.T, e *estate, c *grpc.ClientConn, service string) {
	t.Helper()
	stream, err := c.NewStream(within(t), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, service+"StreamSecrets")
	if err != nil {
		t.Fatal(err)
	}
	out := new(emptypb.Empty)
	for _, name := range []string{"default", "ROOTCA"} {
		if err := stream.SendMsg(request(name)); err != nil {
			t.Fatal(err)
		}
		if err := stream.RecvMsg(out); err != nil {
			t.Fatal(err)
		}
		all, _, _ := secretsOf(t, out.ProtoReflect().GetUnknown())
		if len(all) != 1 || all[name] == nil {
			t.Errorf("%q gives %d secrets", name, len(all))
		}
		if name == "ROOTCA" {
			pool := x509.NewCertPool()
			if trusted := fields(t, fields(t, all[name])[0].value); !pool.AppendCertsFromPEM(trusted[0].value) {
				t.Errorf("%q is no PEM", trusted[0].value)
			}
		}
	}
	e.apply(t)
	if err := stream.RecvMsg(out); status.Code(err) != codes.PermissionDenied {
		t.Errorf("an identity that was taken away: %v", err)
	}
}

func FuzzDiscovery(f *testing.F) {
	f.Add([]byte(request("default").ProtoReflect().GetUnknown()))
	f.Add([]byte{0x1a, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := parseDiscovery(b); err == nil && len(d.names) > maxNames {
			t.Errorf("%d names", len(d.names))
		}
	})
}
