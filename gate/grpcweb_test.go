package gate_test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
)

// webVariable names the directory of the packages that fetch-grpc-web.sh
// installs.
const webVariable = "MERLON_GRPC_WEB"

// TestRPCWebClients: what calls gRPC from browsers, the gRPC project's own client
// and Connect's, calls through the gateway.
func TestRPCWebClients(t *testing.T) {
	t.Parallel()
	packages := os.Getenv(webVariable)
	if packages == "" {
		t.Skipf("%s is not set; see testdata/fetch-grpc-web.sh", webVariable)
	}
	node := tool(t, "node", "install Node.js")
	e := paySetup(t, new(pay)).start(t, strings.Replace(rpcShop, "hosts: [shop.example]", "hosts: [localhost]\n  certificate: none", 1))
	_, port, _ := net.SplitHostPort(e.edge)
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, node, "testdata/grpcweb.cjs", packages, "http://localhost:"+port, payContract(t))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	const want = `grpc-web text Charge 10 answered
grpc-web text Charge yyyyyyyy answered
grpc-web text Charge declined failed 9 declined
grpc-web text Refund 10 failed 7 condition
grpc-web text Talk re: hello
grpc-web binary Charge 10 answered
grpc-web binary Charge yyyyyyyy answered
grpc-web binary Charge declined failed 9 declined
grpc-web binary Refund 10 failed 7 condition
connect 1.1 charge pay.M
connect 1.1 refund failed 7 condition
connect 1.1 watch pay.M
connect 2 charge pay.M
connect 2 refund failed 7 condition
connect 2 watch pay.M
`
	if err != nil || string(out) != want {
		t.Errorf("%v\n%s\nwant\n%s", err, out, want)
	}
}

// payContract writes the contract of pay as a descriptor set.
func payContract(t testing.TB) string {
	t.Helper()
	method := func(name string, client, server bool) *descriptorpb.MethodDescriptorProto {
		return &descriptorpb.MethodDescriptorProto{Name: proto.String(name), InputType: proto.String(".pay.M"), OutputType: proto.String(".pay.M"),
			ClientStreaming: proto.Bool(client), ServerStreaming: proto.Bool(server)}
	}
	data, err := proto.Marshal(&descriptorpb.FileDescriptorSet{File: []*descriptorpb.FileDescriptorProto{{
		Name: proto.String("pay.proto"), Package: proto.String("pay"), Syntax: proto.String("proto3"),
		MessageType: []*descriptorpb.DescriptorProto{{Name: proto.String("M")}},
		Service: []*descriptorpb.ServiceDescriptorProto{{Name: proto.String("Pay"), Method: []*descriptorpb.MethodDescriptorProto{
			method("Charge", false, false), method("Refund", false, false), method("Talk", true, true), method("Watch", false, true),
		}}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "pay.binpb")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
