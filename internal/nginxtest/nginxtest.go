// Package nginxtest starts a real nginx for a test, as a child process on a
// loopback port of its own.
package nginxtest

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

const config = `daemon off;
master_process off;
pid nginx.pid;
error_log stderr crit;
events { worker_connections 256; }
http {
	access_log off;
	client_body_temp_path body;
	proxy_temp_path proxy;
	fastcgi_temp_path fastcgi;
	uwsgi_temp_path uwsgi;
	scgi_temp_path scgi;
	client_header_timeout 5s;
	client_body_timeout 5s;
	lingering_close off;
	server {
		listen %s default_server;
		%s
	}
}
`

// Start runs nginx with one server whose block contains directives, and returns
// its address. The server answers at once: the test listens, nginx inherits.
// The test is skipped when nginx is not installed.
func Start(t testing.TB, directives string) (addr string) {
	t.Helper()
	program, err := exec.LookPath("nginx")
	if err != nil {
		program = "/usr/sbin/nginx" // Debian keeps it out of users' PATH
		if _, err := os.Stat(program); err != nil {
			t.Skip("SKIPPED: nginx is not installed (Debian: nginx-light), so nothing is compared with it")
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	socket, err := listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	addr = listener.Addr().String()

	dir := t.TempDir()
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, fmt.Appendf(nil, config, addr, directives), 0o600); err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd := exec.Command(program, "-p", dir, "-c", file, "-e", "stderr")
	cmd.Stderr = &stderr
	cmd.ExtraFiles = []*os.File{socket}
	cmd.Env = []string{"NGINX=3;"} // the sockets it inherits, by number
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() && stderr.Len() > 0 {
			t.Logf("nginx: %s", stderr.String())
		}
	})
	return addr
}
