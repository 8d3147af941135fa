package workloadapi

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"merlon/authority"
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
