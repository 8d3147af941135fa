package main

import (
	"bufio"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	soakClients = 8                     // of HTTP/1.1, and as many of HTTP/2
	soakPause   = 10 * time.Millisecond // between two calls of a client
	soakStreams = 2                     // of each version, that last all the time
	soakPooled  = 2 * (soakClients + soakStreams)
)

// traffic is calls and streams of every kind through gates, and the applications
// behind them. The first call of a client that fails ends it.
type traffic struct {
	t          *testing.T
	listen     string      // address of the gate that they enter by
	secure     *tls.Config // nil without TLS
	host, grpc string      // of the service that speaks HTTP/1.1, and of the one that speaks gRPC

	quit             chan struct{} // ends the calls
	finish           chan struct{} // ends the streams
	rest             func()        // ends what clients keep open
	clients, streams sync.WaitGroup
	calls            [3]atomic.Int64 // by version of HTTP
	lines            atomic.Int64    // of streams
	messages         atomic.Int64    // of gRPC
	texts            atomic.Int64    // of WebSockets
	failures         chan error
}

func newTraffic(t *testing.T) *traffic {
	return &traffic{t: t, quit: make(chan struct{}), finish: make(chan struct{}), failures: make(chan error, 1<<16)}
}

// talk is an application of gRPC that says again what it is told.
func talk(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status")
	w.WriteHeader(200)
	for buf := make([]byte, 4<<10); ; {
		http.NewResponseController(w).Flush()
		n, err := r.Body.Read(buf)
		w.Write(buf[:n])
		if err == io.EOF {
			w.Header().Set("Grpc-Status", "0")
			return
		}
		if err != nil {
			return
		}
	}
}

// talker serves talk, and says where.
func talker(t *testing.T) string {
	s := httptest.NewUnstartedServer(http.HandlerFunc(talk))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// app answers, echoes and streams.
func (s *traffic) app(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/echo":
		body, _ := io.ReadAll(r.Body)
		w.Write(body)
	case "/room":
		room(w, r)
	case "/stream":
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ; n++ {
			fmt.Fprintf(w, "line %d\n", n)
			http.NewResponseController(w).Flush()
			select {
			case <-r.Context().Done():
				return
			case <-s.finish:
				io.WriteString(w, "end\n")
				return
			case <-tick.C:
			}
		}
	default:
		io.WriteString(w, "done")
	}
}

// room is a WebSocket that says again what it is told: the frames of its client
// are masked with zeros, and all of one length.
func room(w http.ResponseWriter, r *http.Request) {
	sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) // RFC 6455 1.3
	c, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		base64.StdEncoding.EncodeToString(sum[:]))
	for frame := make([]byte, len(maskedHead)+8); ; {
		if _, err := io.ReadFull(buf, frame); err != nil {
			return
		}
		if _, err := c.Write(append([]byte("\x81\x08"), frame[len(maskedHead):]...)); err != nil {
			return
		}
	}
}

// maskedHead begins a text of 8 bytes from a client.
const maskedHead = "\x81\x88\x00\x00\x00\x00"

// enter is a client of room.
func (s *traffic) enter(begun *sync.WaitGroup) error {
	var once sync.Once
	defer once.Do(begun.Done)
	c, err := s.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	io.WriteString(c, "GET /room HTTP/1.1\r\nHost: "+s.host+"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	r := bufio.NewReader(c)
	res, err := http.ReadResponse(r, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		return fmt.Errorf("%v, %w", res, err)
	}
	for n := 0; ; n++ {
		select {
		case <-s.finish:
			return nil
		case <-time.After(50 * time.Millisecond):
		}
		text := fmt.Sprintf("%08d", n)
		c.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := io.WriteString(c, maskedHead+text); err != nil {
			return fmt.Errorf("message %d: %w", n, err)
		}
		got := make([]byte, 2+len(text))
		if _, err := io.ReadFull(r, got); err != nil || string(got) != "\x81\x08"+text {
			return fmt.Errorf("message %d: %q, %w", n, got, err)
		}
		s.texts.Add(1)
		once.Do(begun.Done)
	}
}

// dial opens a connection of its own.
func (s *traffic) dial() (net.Conn, error) {
	if s.secure == nil {
		return net.Dial("tcp", s.listen)
	}
	return tls.Dial("tcp", s.listen, s.secure)
}

// browser is a client of the standard library, of one version of HTTP.
func (s *traffic) browser(version int) *http.Client {
	t := &http.Transport{TLSClientConfig: s.secure.Clone(), Protocols: new(http.Protocols),
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", s.listen)
		}}
	t.Protocols.SetHTTP1(version == 1)
	t.Protocols.SetHTTP2(version == 2)
	t.Protocols.SetUnencryptedHTTP2(version == 2)
	return &http.Client{Transport: t}
}

func (s *traffic) url(host, path string) string {
	if s.secure == nil {
		return "http://" + host + path
	}
	return "https://" + host + path
}

// load begins to call and to stream.
func (s *traffic) load() {
	two := s.browser(2)
	s.t.Cleanup(two.CloseIdleConnections)
	s.rest = two.CloseIdleConnections
	begun := new(sync.WaitGroup)
	for range soakStreams {
		for _, c := range []*http.Client{s.browser(1), two} {
			begun.Add(1)
			s.streams.Go(func() { s.fail("stream", s.stream(c, begun)) })
		}
		begun.Add(2)
		s.streams.Go(func() { s.fail("gRPC", s.converse(two, begun)) })
		s.streams.Go(func() { s.fail("WebSocket", s.enter(begun)) })
	}
	begun.Wait()
	for range soakClients {
		s.clients.Go(func() { s.fail("HTTP/1.1", s.plain()) })
		s.clients.Go(func() { s.fail("HTTP/2", s.client(two)) })
	}
}

// none reports the calls that failed, if any did.
func (s *traffic) none() {
	s.t.Helper()
	if n := len(s.failures); n > 0 {
		for range min(n, 10) {
			s.t.Error(<-s.failures)
		}
		s.t.Errorf("%d calls failed or were cut off", n)
	}
}

func (s *traffic) fail(what string, err error) {
	if err != nil {
		s.failures <- fmt.Errorf("%s: %s: %w", time.Now().Format(time.StampMilli), what, err)
	}
}

// pause waits before the next call, and reports whether there is to be one.
func (s *traffic) pause() bool {
	select {
	case <-s.quit:
		return false
	case <-time.After(soakPause):
		return true
	}
}

// plain calls over one connection at a time, and never sends a call again.
func (s *traffic) plain() error {
	var c net.Conn
	var r *bufio.Reader
	defer func() {
		if c != nil {
			c.Close()
		}
	}()
	for n := 0; s.pause(); n++ {
		if c == nil {
			var err error
			if c, err = s.dial(); err != nil {
				return err
			}
			r = bufio.NewReader(c)
		}
		c.SetDeadline(time.Now().Add(30 * time.Second))
		request, want := "GET /hello HTTP/1.1\r\nHost: "+s.host+"\r\n\r\n", "done"
		if n%4 == 0 {
			want = strings.Repeat(strconv.Itoa(n), 1+n%2000)
			request = fmt.Sprintf("POST /echo HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s", s.host, len(want), want)
		}
		if _, err := io.WriteString(c, request); err != nil {
			return fmt.Errorf("call %d: %w", n, err)
		}
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			return fmt.Errorf("call %d: %w", n, err)
		}
		if err := same(res, want); err != nil {
			return fmt.Errorf("call %d: %w", n, err)
		}
		s.calls[1].Add(1)
		if res.Close {
			c.Close()
			c = nil
		}
	}
	return nil
}

func same(res *http.Response, want string) error {
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 200 || string(body) != want {
		return fmt.Errorf("%d %s %.40q, %w", res.StatusCode, res.Header.Get("Merlon-Reason"), body, err)
	}
	return nil
}

// client calls by the standard library's client.
func (s *traffic) client(c *http.Client) error {
	for n := 0; s.pause(); n++ {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		method, path, want := http.MethodGet, "/hello", "done"
		var body io.Reader
		if n%4 == 0 {
			want = strings.Repeat(strconv.Itoa(n), 1+n%2000)
			method, path, body = http.MethodPost, "/echo", strings.NewReader(want)
		}
		req, err := http.NewRequestWithContext(ctx, method, s.url(s.host, path), body)
		if err == nil {
			var res *http.Response
			if res, err = c.Do(req); err == nil {
				if err = same(res, want); err == nil && res.ProtoMajor != 2 {
					err = fmt.Errorf("answered in %s", res.Proto)
				}
			}
		}
		cancel()
		if err != nil {
			return fmt.Errorf("call %d: %w", n, err)
		}
		s.calls[2].Add(1)
	}
	return nil
}

// stream reads an answer that lasts as long as the test, whoever serves.
func (s *traffic) stream(c *http.Client, begun *sync.WaitGroup) error {
	defer c.CloseIdleConnections()
	var once sync.Once
	defer once.Do(begun.Done)
	res, err := c.Get(s.url(s.host, "/stream"))
	if err != nil {
		return err
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	for n := 0; lines.Scan(); n++ {
		if lines.Text() == "end" {
			return nil
		}
		if want := fmt.Sprintf("line %d", n); lines.Text() != want {
			return fmt.Errorf("%q instead of %q", lines.Text(), want)
		}
		s.lines.Add(1)
		once.Do(begun.Done)
	}
	return fmt.Errorf("cut off: %v", lines.Err())
}

const soakContract = `syntax = "proto3";
package talk;
message M {}
service Talk {
  rpc Again(stream M) returns (stream M);
}
`

// converse has one stream of gRPC, with messages both ways, in step.
func (s *traffic) converse(c *http.Client, begun *sync.WaitGroup) error {
	var once sync.Once
	defer once.Do(begun.Done)
	say, body := net.Pipe()
	defer say.Close()
	req, err := http.NewRequest(http.MethodPost, s.url(s.grpc, "/talk.Talk/Again"), body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	answers := bufio.NewReader(res.Body)
	for n := 0; ; n++ {
		select {
		case <-s.finish:
			say.Close()
			if _, err := io.Copy(io.Discard, answers); err != nil || res.Trailer.Get("Grpc-Status") != "0" {
				return fmt.Errorf("message %d: the end is %q, %v", n, res.Trailer.Get("Grpc-Status"), err)
			}
			return nil
		case <-time.After(50 * time.Millisecond):
		}
		text := fmt.Sprintf("\x00\x00\x00\x00\x08%08d", n)
		if _, err := io.WriteString(say, text); err != nil {
			return fmt.Errorf("message %d: %w", n, err)
		}
		got := make([]byte, len(text))
		if _, err := io.ReadFull(answers, got); err != nil || string(got) != text {
			return fmt.Errorf("message %d: %q, %w", n, got, err)
		}
		s.messages.Add(1)
		once.Do(begun.Done)
	}
}
