package gate_test

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"

	"merlon/gate"
)

// TestRPCPython: a client that is not of Go calls through two gates, by the name
// of the service as authority and by its gate as proxy.
func TestRPCPython(t *testing.T) {
	t.Parallel()
	python := program(t, "python3")
	if exec.Command(python, "-c", "import grpc; grpc.insecure_channel").Run() != nil {
		t.Skip("python3 has no module grpc: pip install grpcio")
	}
	e, _ := startPay(t, gate.Bounds{})
	const want = "Charge 10\nCharge FAILED_PRECONDITION declined\nRefund PERMISSION_DENIED condition\nTalk, re: a, re: b\n"
	for _, way := range []struct{ target, authority, proxy string }{
		{e.out["web"], "pay", ""},
		{"pay:80", "", "http://" + e.out["web"]},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, python, "testdata/grpc_client.py", way.target, way.authority)
		cmd.Stderr = os.Stderr
		if way.proxy != "" {
			cmd.Env = append(os.Environ(), "grpc_proxy="+way.proxy)
		}
		if out, err := cmd.Output(); err != nil || string(out) != want {
			t.Errorf("%+v: %v\n%s", way, err, out)
		}
	}
}
