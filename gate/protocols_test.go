package gate_test

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestProtocolsDocument runs the examples of docs/protocols.md: an intent, and
// commands with what they print.
func TestProtocolsDocument(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/protocols.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"gRPC", "gRPC-Web", "Server-sent events", "WebSocket", "TCP", "CONNECT", "PROXY protocol"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			curl, bash := program(t, "curl"), program(t, "bash")
			_, section, _ := strings.Cut(string(text), "\n## "+name+"\n")
			section, _, _ = strings.Cut(section, "\n## ")
			block := func(kind string) string {
				_, rest, _ := strings.Cut(section, "\n```"+kind+"\n")
				b, _, found := strings.Cut(rest, "```\n")
				if !found {
					t.Fatalf("there is no block of %s", kind)
				}
				return b
			}
			port := freePort(t)
			ledger := greet(t, "ledger ready\n")
			archive := app(t, func(c net.Conn, r *bufio.Reader) {
				readRequest(r)
				fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 12\r\nConnection: close\r\n\r\nthe archive\n")
			})
			s := setup{files: rpcFiles, apps: map[string]http.Handler{"chat": chat(), "web": echo("web")},
				addresses: map[string]string{"ledger": ledger.Addr().String(), "archive": archive, "site": archive, "pay": serveBoth(t, new(pay))}}
			if strings.Contains(section, "/events") {
				s.apps["web"] = stalling()
			}
			e := s.start(t, strings.Replace(block("yaml"), "15432", port, 1))
			ca := filepath.Join(t.TempDir(), "ca.pem")
			if err := os.WriteFile(ca, e.edgePEM, 0o600); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			var said strings.Builder
			ran := 0
			for line := range strings.Lines(block("console")) {
				command, ok := strings.CutPrefix(line, "$ ")
				if !ok {
					continue
				}
				ran++
				cmd := exec.CommandContext(ctx, bash, "-c", strings.NewReplacer("curl ", "ask ", "15432", port, "127.0.0.1:7102", cmp.Or(e.out["payments"], e.out["orders"])).Replace(command))
				cmd.Env = append(os.Environ(), "BASH_ENV="+filepath.Join(filepath.Dir(ca), "env"))
				env := fmt.Sprintf("ask() { %s --cacert %s --connect-to shop.example:443:%s \"$@\"; }\n", curl, ca, e.edge)
				if err := os.WriteFile(filepath.Join(filepath.Dir(ca), "env"), []byte(env), 0o600); err != nil {
					t.Fatal(err)
				}
				out, _ := cmd.CombinedOutput()
				said.WriteString(line + strings.ReplaceAll(string(out), "\r", ""))
			}
			if got, want := said.String(), block("console"); ran == 0 || got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}
