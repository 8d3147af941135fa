// Package nginxtest starts a real nginx for a test, as a child process on a
// loopback port of its own.
package nginxtest

import (
	"bufio"
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"merlon/internal/peertest"
)

const config = `daemon off;
master_process off;
pid nginx.pid;
error_log stderr notice;
events { worker_connections 256; }
http {
	access_log off;
	client_body_temp_path body;
	proxy_temp_path proxy;
	fastcgi_temp_path fastcgi;
	uwsgi_temp_path uwsgi;
	scgi_temp_path scgi;
	client_header_timeout 2s;
	client_body_timeout 2s;
	lingering_close off;
	lingering_timeout 1s;
	lingering_time 1s;
	server {
		listen %s default_server;
		%s
	}
}
`

// Start runs nginx with one server whose block contains directives, waits until
// it listens and returns its address. The test is skipped when nginx is not
// installed.
func Start(t testing.TB, directives string) (addr string) {
	t.Helper()
	program := peertest.Find(t, "nginx", "Debian: nginx-light", "nothing is compared with it")
	// Between our closing of a free port and nginx's taking it somebody else may.
	var said string
	for range 3 {
		addr = peertest.Address(t)
		if said = start(t, program, fmt.Appendf(nil, config, addr, directives)); said == "" {
			return addr
		}
	}
	t.Fatalf("nginx does not start: %s", said)
	return ""
}

// start runs nginx until the end of the test. It returns "" once nginx listens,
// or what it said before it gave up.
func start(t testing.TB, program string, conf []byte) (said string) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, conf, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-p", dir, "-c", file, "-e", "stderr")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready, done := make(chan bool, 1), make(chan string, 1)
	go func() {
		var all strings.Builder
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			if strings.Contains(lines.Text(), "event method") { // its sockets are open by then
				ready <- true
				continue
			}
			all.WriteString(lines.Text() + "\n")
		}
		done <- all.String()
		ready <- false
	}()
	stop := func() string {
		cmd.Process.Kill()
		said := <-done
		cmd.Wait()
		return said
	}
	if !<-ready {
		return cmp.Or(stop(), "nothing")
	}
	t.Cleanup(func() {
		if said := stop(); t.Failed() {
			t.Logf("nginx said:\n%s", said)
		}
	})
	return ""
}
