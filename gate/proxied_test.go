package gate_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"merlon"
	"merlon/gate"
)

const proxiedIntent = `
trustDomain: shop.example
gateway: {hosts: [shop.example], certificate: CERT, proxyProtocol: [FROM], limit: {rate: 1000/s, burst: 5}}
services:
  web: {operations: {home: GET /}, callers: {anyone: all}}
`

func startProxied(t testing.TB, certificate, from string, bounds ...gate.Bounds) *estate {
	text := strings.NewReplacer("CERT", certificate, "FROM", from).Replace(proxiedIntent)
	return start(t, text, map[string]http.Handler{"web": echo("web")}, bounds...)
}

const (
	home   = "GET / HTTP/1.1\r\nHost: shop.example\r\nX-Forwarded-For: 9.9.9.9\r\nConnection: close\r\n\r\n"
	from1  = "PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\r\n"
	local2 = "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"
)

// header2 is a header of version 2.
func header2(client string, more string) string {
	b := bytes.NewBufferString("\r\n\r\n\x00\r\nQUIT\n\x21\x11")
	binary.Write(b, binary.BigEndian, uint16(12+len(more)))
	b.Write(net.ParseIP(client).To4())
	b.Write([]byte{192, 0, 2, 1, 0x12, 0x34, 1, 0xbb})
	return b.String() + more
}

// TestProxyProtocol: from the addresses that the intent names the header comes
// first, before TLS, and says who the client is; from all others it is no header.
func TestProxyProtocol(t *testing.T) {
	t.Parallel()
	plain, secure := startProxied(t, "none", "127.0.0.0/8"), startProxied(t, "self-signed", "127.0.0.0/8")
	unnamed := startProxied(t, "none", "10.0.0.0/8")
	for _, tt := range []struct {
		name   string
		e      *estate
		header string
		client string // "" for nothing: the connection ends
	}{
		{"version 1", plain, from1, "203.0.113.7"},
		{"version 1, IPv6", plain, "PROXY TCP6 2001:db8::7 ::1 4711 443\r\n", "2001:db8::7"},
		{"version 1, unknown", plain, "PROXY UNKNOWN whatever\r\n", "127.0.0.1"},
		{"version 2", plain, header2("203.0.113.7", ""), "203.0.113.7"},
		{"version 2 and more", plain, header2("203.0.113.7", "\x04\x00\x02ab"), "203.0.113.7"},
		{"version 2, local", plain, local2, "127.0.0.1"},
		{"version 1 before TLS", secure, from1, "203.0.113.7"},
		{"version 2 before TLS", secure, header2("203.0.113.7", ""), "203.0.113.7"},
		{"none", plain, "", ""},
		{"none before TLS", secure, "", ""},
		{"two", plain, from1 + from1, "refused"},
		{"nonsense", plain, "PROXY TCP4 203.0.113.7\r\n", ""},
		{"from an address that is not named", unnamed, from1, "refused"},
		{"version 2 from an address that is not named", unnamed, header2("203.0.113.7", ""), "refused"},
		{"none from an address that is not named", unnamed, "", "127.0.0.1"},
	} {
		c := dial(t, tt.e.edge)
		c.SetDeadline(time.Now().Add(30 * time.Second))
		io.WriteString(c, tt.header)
		if tt.e == secure {
			c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
		}
		io.WriteString(c, home)
		answer, _ := io.ReadAll(c)
		var client string
		if _, rest, ok := strings.Cut(string(answer), `"X-Forwarded-For":["`); ok {
			client, _, _ = strings.Cut(rest, `"`)
		} else if bytes.HasPrefix(answer, []byte("HTTP/1.1 400")) {
			client = "refused"
		}
		if client != tt.client {
			t.Errorf("%s: client %q, want %q: %.300q", tt.name, client, tt.client, answer)
		}
	}
	plain.stop()
	for _, r := range plain.evidence(merlon.Edge) {
		if r.Client == "9.9.9.9" || r.Client == "" {
			t.Errorf("recorded %+v", r)
		}
	}
}

// TestProxiedBounds: a proxy's clients are counted each for itself, in
// connections and by limits.
func TestProxiedBounds(t *testing.T) {
	t.Parallel()
	e := startProxied(t, "none", "127.0.0.0/8", gate.Bounds{ConnectionsPerClient: 2, Head: 10 * time.Second})
	open := func(client string) net.Conn {
		c := dial(t, e.edge)
		c.SetDeadline(time.Now().Add(30 * time.Second))
		io.WriteString(c, "PROXY TCP4 "+client+" 192.0.2.1 4711 443\r\n")
		return c
	}
	ask := func(c net.Conn) string {
		io.WriteString(c, strings.Replace(home, "Connection: close\r\n", "", 1))
		b := make([]byte, len("HTTP/1.1 200"))
		if _, err := io.ReadFull(c, b); err != nil {
			return "closed"
		}
		return string(b[9:])
	}
	for i := range 3 {
		client := fmt.Sprintf("203.0.113.%d", i)
		a, b := open(client), open(client)
		if x, y := ask(a), ask(b); x != "200" || y != "200" {
			t.Fatalf("%s: %s, %s", client, x, y)
		}
		if got := ask(open(client)); got != "closed" {
			t.Errorf("%s: a third connection: %s", client, got)
		}
		a.Close()
		until(t, "the place of a connection that ended", func() bool { return ask(open(client)) != "closed" })
	}
}

// TestProxyProtocolSlow: a header must come in time.
func TestProxyProtocolSlow(t *testing.T) {
	t.Parallel()
	e := startProxied(t, "none", "127.0.0.0/8", gate.Bounds{Head: 300 * time.Millisecond})
	for _, begin := range []string{"", "PROXY TCP4 203.0.113.7 ", "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x0f\xff"} {
		c := dial(t, e.edge)
		c.SetDeadline(time.Now().Add(30 * time.Second))
		io.WriteString(c, begin)
		if b, err := io.ReadAll(c); len(b) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%q: read %q, %v", begin, b, err)
		}
	}
}

// TestProxyProtocolPeers lets curl and haproxy write the header.
func TestProxyProtocolPeers(t *testing.T) {
	t.Parallel()
	e := startProxied(t, "self-signed", "127.0.0.0/8")
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, e.edgePEM, 0o600); err != nil {
		t.Fatal(err)
	}
	curl := func(address string, more ...string) string {
		t.Helper()
		program, err := exec.LookPath("curl")
		if err != nil {
			t.Skip("curl is not installed: it is not tested as a sender of the PROXY protocol")
		}
		argv := append([]string{"-sS", "--max-time", "30", "--cacert", ca, "--connect-to", "shop.example:443:" + address, "https://shop.example/"}, more...)
		out, err := exec.Command(program, argv...).CombinedOutput()
		if err != nil {
			return err.Error() + string(out)
		}
		return string(out)
	}
	if got := curl(e.edge, "--haproxy-protocol"); !strings.Contains(got, `"X-Forwarded-For":["127.0.0.1"]`) {
		t.Errorf("curl --haproxy-protocol: %s", got)
	}
	if got := curl(e.edge); strings.Contains(got, "X-Forwarded-For") {
		t.Errorf("curl without: %s", got)
	}
	program, err := exec.LookPath("haproxy")
	if err != nil {
		t.Skip("haproxy is not installed: it is not tested as a sender of the PROXY protocol")
	}
	for _, send := range []string{"send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options unique-id,crc32c"} {
		address := "127.0.0.1:" + freePort(t)
		config := filepath.Join(dir, "haproxy.cfg")
		text := fmt.Sprintf("global\n  maxconn 100\ndefaults\n  mode tcp\n  timeout client 30s\n  timeout server 30s\n  timeout connect 30s\nlisten edge\n  unique-id-format %%pid-%%Ts\n  bind %s\n  source 127.0.0.77\n  server gate %s %s\n", address, e.edge, send)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		cmd := exec.Command(program, "-db", "-f", config)
		cmd.Stdout, cmd.Stderr = &log, &log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		gone := make(chan struct{})
		go func() { cmd.Wait(); close(gone) }()
		until(t, "haproxy", func() bool {
			c, err := net.Dial("tcp", address)
			if err == nil {
				c.Close()
			}
			return err == nil
		})
		// haproxy's own address is 127.0.0.77, so what the app sees came in the header.
		if got := curl(address); !strings.Contains(got, `"X-Forwarded-For":["127.0.0.1"]`) {
			t.Errorf("haproxy, %s: %s", send, got)
		}
		cmd.Process.Kill()
		<-gone
		if t.Failed() {
			t.Log(log.String())
		}
	}
}
