package gate_test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	"merlon"
	"merlon/gate"
)

const interop = `
trustDomain: shop.example
services:
  app: {}
  interop:
    contract: interop.binpb
    maxBody: 4MiB
    callers: {app: all}
`

// tool finds a program, or skips the test aloud.
func tool(t testing.TB, name, install string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed; %s", name, install)
	}
	return path
}

// serveProgram runs a program until the test ends, and waits until it listens.
func serveProgram(t testing.TB, address, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	if testing.Verbose() {
		cmd.Stderr = os.Stderr
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	until(t, name+" to listen", func() bool {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// interopContract describes the services that gRPC's interoperability tests call:
// the names of their methods, and which of them stream. That is all that a gate
// has to know.
func interopContract(t testing.TB) []byte {
	t.Helper()
	const none, client, server = 0, 1, 2
	set := &descriptorpb.FileDescriptorSet{}
	for _, s := range []struct {
		pkg, name string
		methods   map[string]int
	}{
		{"grpc.testing", "TestService", map[string]int{"EmptyCall": none, "UnaryCall": none, "CacheableUnaryCall": none, "UnimplementedCall": none,
			"StreamingOutputCall": server, "StreamingInputCall": client, "FullDuplexCall": client | server, "HalfDuplexCall": client | server}},
		{"grpc.testing", "UnimplementedService", map[string]int{"UnimplementedCall": none}},
		{"xds.service.orca.v3", "OpenRcaService", map[string]int{"StreamCoreMetrics": server}},
	} {
		svc := &descriptorpb.ServiceDescriptorProto{Name: proto.String(s.name)}
		for name, streams := range s.methods {
			svc.Method = append(svc.Method, &descriptorpb.MethodDescriptorProto{
				Name: proto.String(name), ClientStreaming: proto.Bool(streams&client != 0), ServerStreaming: proto.Bool(streams&server != 0),
			})
		}
		set.File = append(set.File, &descriptorpb.FileDescriptorProto{Package: proto.String(s.pkg), Service: []*descriptorpb.ServiceDescriptorProto{svc}})
	}
	data, err := proto.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// startInterop runs the interop server of grpc-go behind two gates.
func startInterop(t testing.TB, text string) *estate {
	t.Helper()
	const install = "go install google.golang.org/grpc/interop/{client,server}@v1.79.3, as grpc-interop-client and grpc-interop-server"
	server := tool(t, "grpc-interop-server", install)
	port := freePort(t)
	address := net.JoinHostPort("127.0.0.1", port)
	serveProgram(t, address, server, "--port="+port)
	return setup{
		files:     fstest.MapFS{"interop.binpb": {Data: interopContract(t)}},
		addresses: map[string]string{"interop": address},
		bounds:    gate.Bounds{Stall: 5 * time.Second},
	}.start(t, text)
}

// TestInterop runs all of gRPC's interoperability tests that need no credentials
// of a cloud, grpc-go's client to grpc-go's server through two gates.
func TestInterop(t *testing.T) {
	t.Parallel()
	client := tool(t, "grpc-interop-client", "see startInterop")
	e := startInterop(t, interop)
	for _, name := range []string{
		"empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong", "empty_stream", "timeout_on_sleeping_server",
		"cancel_after_begin", "cancel_after_first_response", "status_code_and_message", "special_status_message", "custom_metadata",
		"unimplemented_method", "unimplemented_service", "orca_per_rpc", "orca_oob", "rpc_soak", "channel_soak",
		// Not pick_first_unary: it wants to know the server's name, which grpc-go's
		// server does not tell, gates or no gates.
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, client, "--server_host=interop", "--server_port=80", "--test_case="+name,
				"--soak_per_iteration_max_acceptable_latency_ms=20000", "--soak_overall_timeout_seconds=80", "--soak_iterations=50", "--soak_num_threads=5")
			if strings.HasPrefix(name, "orca") { // the balancer that the test is about
				cmd.Args = append(cmd.Args, `--service_config_json={"loadBalancingConfig":[{"test_backend_metrics_load_balancer":{}}]}`)
			}
			cmd.Env = append(os.Environ(), "HTTPS_PROXY=http://"+e.out["app"])
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	e.stop()
	for _, place := range []merlon.Place{{Service: "app"}, {Service: "interop"}} {
		codes := map[string]int{}
		for _, r := range e.evidence(place) {
			codes[r.GRPC]++
		}
		t.Logf("%v: %v", place, codes)
		for _, code := range []string{"OK", "UNKNOWN", "UNIMPLEMENTED"} {
			if codes[code] == 0 {
				t.Errorf("%v: no record has %s: %v", place, code, codes)
			}
		}
	}
}
