package http1_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"merlon/internal/nginxtest"
)

// witness makes nginx say in each answer what it has read.
const witness = `location / {
	add_header X-Method $request_method always;
	add_header X-Uri "=$request_uri" always;
	add_header X-Host "=$host" always;
	add_header X-Length "=$http_content_length" always;
	add_header X-Coding "=$http_transfer_encoding" always;
	return 200;
}`

// markerURI is the request that follows on the same connection. If nginx sees
// it, and sees nothing before it but the request under test, it has found the
// same end of that request as the gate.
const markerURI = "/the-next-request"

const marker = "GET " + markerURI + " HTTP/1.1\r\nHost: marker\r\nConnection: close\r\n\r\n"

// exchange sends bytes and the marker to nginx and returns its answers, all of
// them until it closes the connection.
func exchange(addr string, request []byte, methods ...string) (answers []*http.Response, err error) {
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Write(append(request[:len(request):len(request)], marker...)); err != nil {
		return nil, err
	}
	conn.(*net.TCPConn).CloseWrite() // so that nginx does not wait where it expects more
	in := bufio.NewReader(conn)
	for i := 0; ; i++ {
		if _, err := in.Peek(1); err == io.EOF {
			return answers, nil
		}
		method := "GET"
		if i < len(methods) {
			method = methods[i]
		}
		answer, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil {
			return answers, err
		}
		if _, err := io.Copy(io.Discard, answer.Body); err != nil {
			return answers, err
		}
		answers = append(answers, answer)
	}
}

// disagreement compares what nginx read with what the gate read; "" when they
// agree. A refusal by nginx of the one request, after which it closes the
// connection, hurts nobody: refused is true then.
func disagreement(s seen, answers []*http.Response) (why string, refused bool) {
	if len(answers) == 1 && answers[0].StatusCode >= 400 {
		return "", true
	}
	if len(answers) > 1 && answers[0].StatusCode == 100 {
		return "nginx sent 100 Continue for an expectation that was to be held back", false
	}
	if len(answers) != 2 {
		return fmt.Sprintf("nginx saw %d requests, want 2", len(answers)), false
	}
	length, coding := "=", "="
	switch {
	case s.length:
		length += strconv.Itoa(len(s.body))
	case s.chunked:
		coding += "chunked"
	}
	first, second := answers[0].Header, answers[1].Header
	for _, c := range []struct{ what, got, want string }{
		{"method", first.Get("X-Method"), s.method},
		{"target", first.Get("X-Uri"), "=" + s.uri},
		{"host", first.Get("X-Host"), "=" + s.host},
		{"content length", first.Get("X-Length"), length},
		{"transfer coding", first.Get("X-Coding"), coding},
		{"second method", second.Get("X-Method"), "GET"},
		{"second target", second.Get("X-Uri"), "=" + markerURI},
		{"second host", second.Get("X-Host"), "=marker"},
	} {
		if c.got != c.want {
			return fmt.Sprintf("nginx read %s %q, the gate %q", c.what, c.got, c.want), false
		}
	}
	return "", false
}

// TestNginxAgrees sends what the gate would forward to a real nginx, with
// another request behind it: nginx must read exactly the same two. Whatever it
// reads differently must have been refused.
func TestNginxAgrees(t *testing.T) {
	t.Parallel()
	addr := nginxtest.Start(t, witness)
	compared := 0
	for _, s := range samples(t, "ambiguous.txt") {
		reason, forward, read, _ := gate([]byte(s.raw))
		if reason != "ok" {
			continue
		}
		answers, err := exchange(addr, forward, read.method)
		if err != nil {
			t.Errorf("ambiguous.txt:%d: %v\nforwarded %q", s.line, err, forward)
			continue
		}
		why, refused := disagreement(read, answers)
		if why != "" {
			t.Errorf("ambiguous.txt:%d: %s\nforwarded %q", s.line, why, forward)
		}
		if refused {
			t.Errorf("ambiguous.txt:%d: nginx refuses with %s what the gate accepts\nforwarded %q", s.line, answers[0].Status, forward)
		}
		compared++
	}
	if compared < 100 {
		t.Errorf("only %d requests were compared", compared)
	}
}

// TestNginxWouldBeFooled shows that the comparison can fail, and what the
// refusals are for: sent as they came, many of the requests that the gate
// refuses are taken by nginx, some of them as two.
func TestNginxWouldBeFooled(t *testing.T) {
	t.Parallel()
	addr := nginxtest.Start(t, witness)
	taken, two := 0, 0
	for _, s := range samples(t, "ambiguous.txt") {
		if s.want == "ok" || s.want == "more" || strings.HasPrefix(s.want, "method_") {
			continue
		}
		answers, err := exchange(addr, []byte(s.raw))
		if err != nil || len(answers) == 0 {
			continue
		}
		if answers[0].StatusCode == 200 {
			taken++
		}
		for _, a := range answers[1:] {
			if a.Header.Get("X-Uri") == "=/smuggled" {
				two++
				break
			}
		}
	}
	t.Logf("of the refused requests nginx takes %d, and %d of them as two", taken, two)
	if taken < 50 || two < 1 {
		t.Errorf("nginx takes %d of the refused requests, %d as two: the comparison has lost its power", taken, two)
	}
}

// TestNginxReadsCanonicalPath is class 1 against a real reader: nginx decodes
// and normalises the canonical path, and finds nothing to normalise.
func TestNginxReadsCanonicalPath(t *testing.T) {
	t.Parallel()
	addr := nginxtest.Start(t, `location / { add_header X-Path "=$uri" always; return 200; }`)
	for _, s := range samples(t, "ambiguous.txt") {
		reason, forward, read, _ := gate([]byte(s.raw))
		if reason != "ok" {
			continue
		}
		path, _, _ := strings.Cut(read.uri, "?")
		want, err := url.PathUnescape(path)
		if err != nil {
			t.Errorf("ambiguous.txt:%d: canonical path %q: %v", s.line, path, err)
			continue
		}
		answers, err := exchange(addr, forward, read.method)
		if err != nil || len(answers) == 0 {
			t.Errorf("ambiguous.txt:%d: %d answers, %v", s.line, len(answers), err)
			continue
		}
		if got := answers[0].Header.Get("X-Path"); got != "="+want {
			t.Errorf("ambiguous.txt:%d: nginx serves %q, the gate decided on %q", s.line, got, want)
		}
	}
}

// FuzzNginxAgrees searches for a request that the gate accepts and nginx reads
// differently.
func FuzzNginxAgrees(f *testing.F) {
	addr := nginxtest.Start(f, witness)
	for _, s := range samples(f, "ambiguous.txt") {
		if s.want == "ok" {
			f.Add([]byte(s.raw))
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		reason, forward, read, _ := gate(raw)
		if reason != "ok" || len(raw) > 4000 {
			return
		}
		answers, err := exchange(addr, forward, read.method)
		if err != nil {
			t.Fatalf("%v\nforwarded %q", err, forward)
		}
		if why, _ := disagreement(read, answers); why != "" {
			t.Fatalf("%s\nforwarded %q", why, forward)
		}
	})
}
