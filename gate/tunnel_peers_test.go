package gate_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"merlon"
)

// Peers that others have made, on both sides of two gates.

// program finds one, or skips.
func program(t testing.TB, name string, places ...string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, place := range places {
		found, _ := filepath.Glob(filepath.Join(place, name))
		if len(found) > 0 {
			return found[len(found)-1]
		}
	}
	t.Skipf("SKIP: %s is not installed, and is not tested as a peer", name)
	return ""
}

// script is the command of a script in testdata, with what it needs; or the test
// is skipped.
func script(t testing.TB, ctx context.Context, name string, args ...string) *exec.Cmd {
	t.Helper()
	interpreter, probe := "node", []string{"-e", "require('ws')"}
	if strings.HasSuffix(name, ".py") {
		interpreter, probe = "python3", []string{"-c", "import websockets.asyncio.server"}
	}
	interpreter = program(t, interpreter)
	if out, err := exec.Command(interpreter, probe...).CombinedOutput(); err != nil {
		t.Skipf("SKIP: %s cannot be run: %s", name, bytes.TrimSpace(out))
	}
	return exec.CommandContext(ctx, interpreter, append([]string{filepath.Join("testdata", "peers", name)}, args...)...)
}

// run runs a command to its end.
func run(t testing.TB, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v: %v", cmd.Args, err)
	}
	return strings.TrimSpace(string(out))
}

// background starts a command that runs until the test ends.
func background(t testing.TB, cmd *exec.Cmd) (out *bufio.Reader) {
	t.Helper()
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("%v: %s", cmd.Args, errs.String())
		}
	})
	return bufio.NewReader(pipe)
}

// TestWebSocketPeers: npm's ws and Python's websockets, both as client and as
// server, and an HTTP/2 client as browsers are.
func TestWebSocketPeers(t *testing.T) {
	t.Parallel()
	for _, server := range []string{"server.js", "server.py"} {
		t.Run(server, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			port, err := background(t, script(t, ctx, server)).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			s := setup{addresses: map[string]string{"chat": "127.0.0.1:" + strings.TrimSpace(port)}}
			e := s.start(t, strings.Replace(chatIntent, "CERT", "self-signed", 1))
			ca := filepath.Join(t.TempDir(), "ca.pem")
			if err := os.WriteFile(ca, e.edgePEM, 0o600); err != nil {
				t.Fatal(err)
			}
			_, edge, _ := net.SplitHostPort(e.edge)
			_, out, _ := net.SplitHostPort(e.out["web"])
			const all = "chat hello true are you there 1000"
			for _, tt := range []struct {
				client string
				args   []string
				want   string
			}{
				{"client.js", []string{edge, "shop.example", ca}, all},
				{"client.js", []string{out, "chat"}, all},
				{"client.py", []string{edge, "shop.example", ca}, all},
				{"client.py", []string{out, "chat"}, all},
				{"client2.js", []string{edge, "shop.example", ca}, "true 200 chat hello 1000"},
			} {
				if got := run(t, script(t, ctx, tt.client, tt.args...)); got != tt.want {
					t.Errorf("%s %v: %q, want %q", tt.client, tt.args, got, tt.want)
				}
			}
			e.stop()
			ends := 0
			for _, r := range e.evidence(merlon.Place{Service: "chat"}) {
				if strings.HasPrefix(r.Detail, "tunnel ended") {
					ends++
				}
			}
			if ends != 5 {
				t.Errorf("%d ends are recorded", ends)
			}
		})
	}
}

// startBytes is an estate in which web has a local port to ledger, which is at
// an address.
func startBytes(t testing.TB, address string) (e *estate, port string) {
	t.Helper()
	port = freePort(t)
	s := setup{addresses: map[string]string{"ledger": address}}
	return s.start(t, "trustDomain: shop.example\nservices:\n  web: {localPorts: {ledger: "+port+"}}\n  ledger: {protocol: tcp, callers: {web: all}}\n"), port
}

// TestPostgreSQL: psql to a real server, which copies, listens, and is cancelled.
func TestPostgreSQL(t *testing.T) {
	t.Parallel()
	const place = "/usr/lib/postgresql/*/bin"
	initdb, postgres, psql := program(t, "initdb", place), program(t, "postgres", place), program(t, "psql", place)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "merlon-pg-") // where another user may look too
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	as := func(cmd *exec.Cmd) *exec.Cmd { return cmd }
	if os.Getuid() == 0 { // which the server refuses
		other, err := user.Lookup("nobody")
		if err != nil {
			t.Skipf("SKIP: PostgreSQL does not run as root, and there is nobody else: %v", err)
		}
		uid, _ := strconv.Atoi(other.Uid)
		gid, _ := strconv.Atoi(other.Gid)
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
		as = func(cmd *exec.Cmd) *exec.Cmd {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
			cmd.Dir = dir
			return cmd
		}
	}
	data := filepath.Join(dir, "data")
	if out := run(t, as(exec.CommandContext(ctx, initdb, "-D", data, "-U", "merlon", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale", "C"))); t.Failed() {
		t.Fatal(out)
	}
	server := freePort(t)
	background(t, as(exec.CommandContext(ctx, postgres, "-D", data, "-p", server, "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off")))
	e, port := startBytes(t, "127.0.0.1:"+server)
	ask := func(sql string) (string, error) {
		cmd := exec.CommandContext(ctx, psql, "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", port, "-U", "merlon", "postgres")
		cmd.Stdin = strings.NewReader(sql)
		out, err := cmd.CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	until(t, "the server", func() bool { _, err := ask("select 1"); return err == nil })
	var rows strings.Builder
	for i := range 20000 {
		fmt.Fprintf(&rows, "%d\trow %d\n", i, i)
	}
	got, err := ask("create table t (i int, s text); copy t from stdin;\n" + rows.String() + "\\.\nselect count(*), sum(i) from t;\n")
	if err != nil || got != "20000|199990000" {
		t.Errorf("psql: %q, %v", got, err)
	}
	if got, err := ask("select repeat('x', 3000000)"); err != nil || len(got) != 3000000 {
		t.Errorf("psql: %d bytes, %v", len(got), err)
	}
	e.stop()
	for _, place := range []string{"web", "ledger"} {
		for _, r := range e.evidence(merlon.Place{Service: place}) {
			if r.Verdict.Effect != merlon.Allow || r.Caller != "web" || r.Service != "ledger" {
				t.Errorf("%s recorded %+v", place, r)
			}
		}
	}
}

// TestRedis: redis-cli to a real server, with a pipeline and a subscription.
func TestRedis(t *testing.T) {
	t.Parallel()
	server, cli := program(t, "redis-server"), program(t, "redis-cli")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	at := freePort(t)
	background(t, exec.CommandContext(ctx, server, "--bind", "127.0.0.1", "--port", at, "--save", "", "--dir", t.TempDir()))
	e, port := startBytes(t, "127.0.0.1:"+at)
	ask := func(in string, args ...string) string {
		cmd := exec.CommandContext(ctx, cli, append([]string{"-p", port}, args...)...)
		cmd.Stdin = strings.NewReader(in)
		out, _ := cmd.CombinedOutput()
		return strings.TrimSpace(string(out))
	}
	until(t, "the server", func() bool { return ask("", "ping") == "PONG" })
	var many strings.Builder
	for i := range 10000 {
		fmt.Fprintf(&many, "SET key:%d %d\r\n", i, i)
	}
	if got := ask(many.String(), "--pipe"); !strings.HasSuffix(got, "errors: 0, replies: 10000") {
		t.Errorf("--pipe: %s", got)
	}
	if got := ask("", "dbsize"); got != "10000" {
		t.Errorf("dbsize: %s", got)
	}
	news := background(t, exec.CommandContext(ctx, cli, "-p", port, "subscribe", "news"))
	until(t, "the subscriber", func() bool { return ask("", "publish", "news", "hello") == "1" })
	for line := ""; line != "hello\n"; {
		var err error
		if line, err = news.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	e.swap("trustDomain: shop.example\nservices:\n  web: {}\n  ledger: {protocol: tcp}\n")
	if rest, _ := io.ReadAll(news); bytes.Contains(rest, []byte("hello")) {
		t.Errorf("the subscriber goes on: %q", rest)
	}
}

// TestSMTP: the server speaks first.
func TestSMTP(t *testing.T) {
	t.Parallel()
	python := program(t, "python3")
	mails := make(chan int, 1)
	address := app(t, func(c net.Conn, r *bufio.Reader) {
		c.SetDeadline(time.Now().Add(time.Minute))
		fmt.Fprint(c, "220 ledger.shop.example\r\n")
		text := textproto.NewReader(r)
		for {
			line, err := text.ReadLine()
			if err != nil {
				return
			}
			switch verb, _, _ := strings.Cut(strings.ToUpper(line), " "); verb {
			case "DATA":
				fmt.Fprint(c, "354 go on\r\n")
				lines, _ := text.ReadDotLines()
				mails <- len(lines)
				fmt.Fprint(c, "250 taken\r\n")
			case "QUIT":
				fmt.Fprint(c, "221 bye\r\n")
				return
			default:
				fmt.Fprint(c, "250 ok\r\n")
			}
		}
	})
	_, port := startBytes(t, address)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if got := run(t, exec.CommandContext(ctx, python, filepath.Join("testdata", "peers", "smtp.py"), port)); got != "sent" || <-mails != 20002 {
		t.Errorf("smtplib: %s", got)
	}
}

// TestConnectPeers: curl and Python's http.client ask for a tunnel as they ask
// proxies.
func TestConnectPeers(t *testing.T) {
	t.Parallel()
	address := app(t, func(c net.Conn, r *bufio.Reader) {
		readRequest(r)
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 11\r\nConnection: close\r\n\r\nthe archive")
	})
	s := setup{addresses: map[string]string{"archive": address}}
	e := s.start(t, "trustDomain: shop.example\nservices:\n  web: {}\nexternal:\n  archive: {hosts: [archive.example.com:8080], protocol: tcp, callers: {web: all}}\n")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	curl := func(url string) string {
		out, _ := exec.CommandContext(ctx, program(t, "curl"), "-sS", "-p", "-x", "http://"+e.out["web"], url).CombinedOutput()
		return strings.TrimSpace(string(out))
	}
	if got := curl("http://archive.example.com:8080/"); got != "the archive" {
		t.Errorf("curl: %q", got)
	}
	if got := curl("http://archive.example.com:8081/"); !strings.Contains(got, "404") {
		t.Errorf("curl to another port: %q", got)
	}
	const code = `import http.client, sys
c = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=60)
c.set_tunnel("archive.example.com", 8080)
c.request("GET", "/")
print(c.getresponse().read().decode())`
	_, out, _ := net.SplitHostPort(e.out["web"])
	if got := run(t, exec.CommandContext(ctx, program(t, "python3"), "-c", code, out)); got != "the archive" {
		t.Errorf("http.client: %q", got)
	}
}
