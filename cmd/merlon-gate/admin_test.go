package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"merlon/gate"
	"merlon/internal/adminhttp"
)

// TestAdmin: how a gate is, in its whole life.
func TestAdmin(t *testing.T) {
	t.Parallel()
	begun, finish := make(chan struct{}, 1), make(chan struct{})
	s := newStand(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			begun <- struct{}{}
			<-finish
		}
		fmt.Fprint(w, "done")
	}))
	hash := s.orders("callers: {a: [hello, slow]}", nil)
	s.start("-admin", "127.0.0.1:0")
	admin := s.address("admin")
	probe := func(what string) (string, error) {
		out, err := exec.Command(build(t), "-admin", admin, "-probe", what).CombinedOutput()
		return string(out), err
	}
	for _, what := range []string{"live", "ready"} {
		if out, err := probe(what); err != nil || out != "" {
			t.Errorf("%s: %v %q", what, err, out)
		}
	}
	if out, err := probe("well"); err == nil || !strings.Contains(out, `"well": expect live or ready`) {
		t.Errorf("%v %q", err, out)
	}
	var live liveness
	if status := fetch(t, admin, "/livez", &live); status != 200 || !live.Live || live.PID != s.cmd.Process.Pid || live.Goroutines == 0 {
		t.Errorf("%d %+v", status, live)
	}
	var ready readiness
	if status := fetch(t, admin, "/readyz", &ready); status != 200 || !ready.Ready || ready.Orders != hash || len(ready.Reasons) > 0 {
		t.Errorf("%d %+v", status, ready)
	}
	s.want("/hello", 200, "done")
	if text := scrape(t, admin); !strings.Contains(text, "\nmerlon_") || !strings.Contains(text, `operation="hello"`) {
		t.Errorf("the metrics know of no call:\n%s", text)
	}
	answered := make(chan error, 1)
	go func() {
		status, says, err := s.get("/slow")
		if err == nil && (status != 200 || says != "done") {
			err = fmt.Errorf("%d %s", status, says)
		}
		answered <- err
	}()
	<-begun
	s.cmd.Process.Signal(syscall.SIGTERM)
	s.until("the gate stops", func() bool { return strings.Contains(s.said(), "stopping") })
	s.until("it is not ready any more", func() bool { return fetch(t, admin, "/readyz", &ready) == 503 })
	if len(ready.Reasons) != 1 || ready.Reasons[0].Code != "draining" || ready.Ready {
		t.Errorf("%+v", ready)
	}
	if out, err := probe("ready"); err == nil || !strings.Contains(out, "not ready\ndraining: the gate finishes") {
		t.Errorf("%v %q", err, out)
	}
	if out, err := probe("live"); err != nil {
		t.Errorf("a gate that ends is not live: %q", out)
	}
	close(finish)
	if err := <-answered; err != nil {
		t.Error(err)
	}
	s.awaitEnd()
	if out, err := probe("live"); err == nil || !strings.Contains(out, "refused") {
		t.Errorf("a gate that has ended is live: %q", out)
	}
}

func scrape(t *testing.T, address string) string {
	t.Helper()
	c := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := c.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if kind := res.Header.Get("Content-Type"); err != nil || kind != gate.MetricsType {
		t.Errorf("%v, %q", err, kind)
	}
	return string(text)
}

func fetch(t *testing.T, address, path string, into any) int {
	t.Helper()
	c := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := c.Get("http://" + address + path)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(into); err != nil {
		t.Errorf("%s: %d %v", path, res.StatusCode, err)
	}
	return res.StatusCode
}

// TestClass07AdminAddress: the address answers exact paths, to who calls it by
// its number; a page that a browser shows cannot ask it.
func TestClass07AdminAddress(t *testing.T) {
	t.Parallel()
	s := newStand(t, http.NotFoundHandler())
	s.start("-admin", "127.0.0.1:0")
	admin := s.address("admin")
	_, port, _ := net.SplitHostPort(admin)
	const fine = "Host: 127.0.0.1\r\n"
	for _, tt := range []struct {
		line, fields string
		want         int
	}{
		{"GET /livez HTTP/1.1", fine, 200},
		{"HEAD /readyz HTTP/1.1", fine, 200},
		{"GET /livez HTTP/1.1", "Host: localhost:" + port + "\r\n", 200},
		{"GET /livez HTTP/1.1", "Host: [::1]:" + port + "\r\n", 200},
		{"GET /livez HTTP/1.1", "Host: [::1]\r\n", 200},
		{"GET /livez HTTP/1.1", "Host: evil.example\r\n", 403},
		{"GET /livez HTTP/1.1", "Host: evil.example:" + port + "\r\n", 403},
		{"GET /livez HTTP/1.1", "Host: localhost.evil.example\r\n", 403},
		{"GET /livez HTTP/1.1", "Host: 127.0.0.1.evil.example\r\n", 403},
		{"GET http://evil.example/livez HTTP/1.1", fine, 403},
		{"GET /livez HTTP/1.0", "", 403},
		{"GET /livez HTTP/1.1", "", 400},
		{"GET /livez HTTP/1.1", fine + "Origin: http://127.0.0.1:" + port + "\r\n", 403},
		{"GET /livez HTTP/1.1", fine + "Sec-Fetch-Site: none\r\n", 403},
		{"POST /livez HTTP/1.1", fine + "Content-Length: 0\r\n", 405},
		{"DELETE /readyz HTTP/1.1", fine, 405},
		{"OPTIONS * HTTP/1.1", fine, 404},
		{"GET / HTTP/1.1", fine, 404},
		{"GET /livez/ HTTP/1.1", fine, 404},
		{"GET //livez HTTP/1.1", fine, 404},
		{"GET /x/../livez HTTP/1.1", fine, 404},
		{"GET /livez?x HTTP/1.1", fine, 404},
		{"GET /%6civez HTTP/1.1", fine, 404},
		{"GET /debug/pprof/ HTTP/1.1", fine, 404},
		{"GET /livez HTTP/1.1", fine + "X: " + strings.Repeat("x", 16<<10) + "\r\n", 431},
	} {
		c, err := net.Dial("tcp", admin)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintf(c, "%s\r\n%s\r\n", tt.line, tt.fields)
		method, _, _ := strings.Cut(tt.line, " ")
		r := bufio.NewReader(c)
		res, err := http.ReadResponse(r, &http.Request{Method: method})
		if err != nil || res.StatusCode != tt.want {
			t.Errorf("%s %.60q: %v %v, want %d", tt.line, tt.fields, res, err, tt.want)
		} else if !res.Close {
			t.Errorf("%s: the connection is kept", tt.line)
		}
		c.Close()
	}
}

// TestAdminBounded: who holds connections to the admin address is cut off, and
// costs no more than there is room for.
func TestAdminBounded(t *testing.T) {
	t.Parallel()
	s := newStand(t, http.NotFoundHandler())
	s.start("-admin", "127.0.0.1:0")
	admin := s.address("admin")
	var held []net.Conn
	for range 4 * adminhttp.MaxConns {
		c, err := net.Dial("tcp", admin)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "GET /livez HT")
		held = append(held, c)
	}
	for _, c := range held {
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		_, err := io.Copy(io.Discard, c)
		if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
			t.Fatal("a connection is held for 20 s")
		}
	}
	var live liveness
	if status := fetch(t, admin, "/livez", &live); status != 200 {
		t.Errorf("%d %+v", status, live)
	}
}

// TestAdminLoud: an address that others can reach is said aloud, and without an
// address there is none.
func TestAdminLoud(t *testing.T) {
	t.Parallel()
	for address, loud := range map[string]bool{"0.0.0.0:0": true, "127.0.0.1:0": false, "[::1]:0": false} {
		if l, err := net.Listen("tcp", address); err != nil {
			t.Logf("no %s here: %v", address, err)
			continue
		} else {
			l.Close()
		}
		s := newStand(t, http.NotFoundHandler())
		s.start("-admin", address)
		s.address("admin")
		if said := strings.Contains(s.said(), "CAN BE REACHED FROM OTHER HOSTS"); said != loud {
			t.Errorf("%s: said %v\n%s", address, said, s.said())
		}
	}
	s := newStand(t, http.NotFoundHandler())
	s.start()
	if strings.Contains(s.said(), "at=admin") {
		t.Error("there is an admin address that nobody asked for")
	}
}

// TestLimits: what a gate chooses, and that it says why.
func TestLimits(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		before string
		more   []string
		want   []string
	}{
		{"", nil, []string{`processors=1 because="beside a service"`}},
		{"", []string{"-procs", "2", "-connections", "77"}, []string{"processors=2 because=-procs", "connections=77 as=-connections"}},
		{"GOMAXPROCS=2 ", nil, []string{"processors=2 because=GOMAXPROCS"}},
		{"ulimit -n 300; ", nil, []string{`connections=118 as="300 descriptors"`}},
		{"ulimit -n 300; ", []string{"-connections", "77"}, []string{"connections=77"}},
		{"ulimit -Sn 200; ulimit -Hn 300; ", nil, []string{"connections=11"}}, // the soft limit is raised
	} {
		s := newStand(t, http.NotFoundHandler())
		s.run(exec.Command("/bin/sh", append([]string{"-c", tt.before + `exec "$0" "$@"`, build(t)}, s.arguments(tt.more...)...)...))
		s.address("in")
		for _, want := range tt.want {
			if !strings.Contains(s.said(), want) {
				t.Errorf("%s %q: %q is not in\n%s", tt.before, tt.more, want, s.said())
			}
		}
	}
}
