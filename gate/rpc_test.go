package gate_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"merlon"
	"merlon/gate"
	"merlon/internal/peertest"
)

// rpcShop is a shop whose payments are made by gRPC.
const rpcShop = `
trustDomain: shop.example
gateway:
  hosts: [shop.example]
services:
  web:
    operations: {home: GET /, events: GET /events}
    callers: {anyone: all}
  pay:
    contract: pay.proto
    timeout: 20s
    maxBody: 64KiB
    callers:
      anyone: [{operations: [Charge, Talk, Watch]}, {operations: [Refund], when: 'caller.subject == "me"'}]
      web: [{operations: [Charge, Talk, Watch]}, {operations: [Refund], when: 'caller.subject == "me"'}]
`

var rpcFiles = fstest.MapFS{"pay.proto": {Data: []byte(`syntax = "proto3";
package pay;
message M {}
service Pay {
  rpc Charge(M) returns (M);
  rpc Refund(M) returns (M);
  rpc Talk(stream M) returns (stream M);
  rpc Watch(M) returns (stream M);
}
`)}}

// frame is one message of gRPC.
func frame(data string) string {
	return string(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(data)))) + data
}

// unframe reads one message.
func unframe(r io.Reader) (string, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return "", err
	}
	data := make([]byte, binary.BigEndian.Uint32(head[1:]))
	_, err := io.ReadFull(r, data)
	return string(data), err
}

// pay is an application of gRPC, written with nothing but HTTP.
type pay struct {
	began, ended atomic.Int64
	timeout      atomic.Value // what the last call said
}

func (p *pay) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.began.Add(1)
	defer p.ended.Add(1)
	p.timeout.Store(r.Header.Get("Grpc-Timeout"))
	http.NewResponseController(w).EnableFullDuplex()
	w.Header().Set("Content-Type", "application/grpc")
	flush := func() { http.NewResponseController(w).Flush() }
	status, said := "0", ""
	switch r.URL.Path {
	case "/pay.Pay/Charge":
		ask, err := unframe(r.Body)
		switch {
		case err != nil:
			status, said = "13", "no message"
		case ask == "hang":
			<-r.Context().Done()
		case ask == "declined":
			w.Header().Set("Grpc-Status", "9")
			w.Header().Set("Grpc-Message", "declined")
			return
		case ask == "break":
			w.WriteHeader(200)
			io.WriteString(w, frame("half")[:7])
			flush()
			panic(http.ErrAbortHandler)
		case ask == "": // a message of protobuf
			io.WriteString(w, frame(""))
		default:
			fmt.Fprint(w, frame(fmt.Sprintf("%s %s %s", ask, r.Header.Get("Content-Type"), r.Header.Get("Te"))))
		}
	case "/pay.Pay/Talk":
		w.WriteHeader(200)
		flush()
		for {
			text, err := unframe(r.Body)
			if err != nil {
				if !errors.Is(err, io.EOF) {
					status = "13"
				}
				break
			}
			io.WriteString(w, frame("re: "+text))
			flush()
		}
	case "/pay.Pay/Watch":
		ask, _ := unframe(r.Body)
		io.WriteString(w, frame(ask))
		flush()
		<-r.Context().Done()
		return
	}
	w.Header().Set(http.TrailerPrefix+"Grpc-Status", status)
	w.Header().Set(http.TrailerPrefix+"Grpc-Message", said)
}

// serveBoth serves h over HTTP/1.1 and, for those who know beforehand, HTTP/2.
func serveBoth(t testing.TB, h http.Handler) string {
	t.Helper()
	l := listen(t)
	s := &http.Server{Handler: h, Protocols: new(http.Protocols)}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return l.Addr().String()
}

func paySetup(t testing.TB, p *pay) setup {
	return setup{files: rpcFiles, apps: map[string]http.Handler{"web": echo("web")}, addresses: map[string]string{"pay": serveBoth(t, p)}}
}

func startPay(t testing.TB, bounds gate.Bounds, apps ...func(*setup)) (*estate, *pay) {
	t.Helper()
	p := new(pay)
	s := paySetup(t, p)
	s.bounds = bounds
	for _, change := range apps {
		change(&s)
	}
	return s.start(t, rpcShop), p
}

// as2 is an HTTP/2 client that calls as a service does, in plain text.
func (e *estate) as2(service string) *http.Client {
	c := e.as(service)
	tr := c.Transport.(*http.Transport)
	tr.Protocols = new(http.Protocols)
	tr.Protocols.SetUnencryptedHTTP2(true)
	return c
}

// rpcAnswer is what a client of gRPC sees of one call.
type rpcAnswer struct {
	http     int
	kind     string // content type
	messages []string
	code     string
	text     string
	reason   string
	only     bool // the status was in the head
	err      error
}

// call makes a call with one message.
func call(t testing.TB, c *http.Client, url, text string, fields ...string) (a rpcAnswer) {
	t.Helper()
	req, _ := http.NewRequest("POST", url, strings.NewReader(frame(text)))
	req.ContentLength = -1
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		req.Header.Add(name, value)
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s: %v", url, err)
	}
	return readRPC(res)
}

func readRPC(res *http.Response) (a rpcAnswer) {
	defer res.Body.Close()
	a.http, a.kind, a.reason = res.StatusCode, res.Header.Get("Content-Type"), res.Header.Get("Merlon-Reason")
	for a.err == nil {
		var text string
		if text, a.err = unframe(res.Body); a.err == nil {
			a.messages = append(a.messages, text)
		}
	}
	if a.err == io.EOF {
		a.err = nil
	}
	a.code, a.text = res.Trailer.Get("Grpc-Status"), res.Trailer.Get("Grpc-Message")
	if code := res.Header.Get("Grpc-Status"); code != "" {
		a.code, a.text, a.only = code, res.Header.Get("Grpc-Message"), true
	}
	return a
}

// TestRPC: calls of gRPC through one gate and two, and their refusals.
func TestRPC(t *testing.T) {
	t.Parallel()
	e, p := startPay(t, gate.Bounds{})
	edge, web := e.client2(), e.as2("web")
	const outside, inside = "https://shop.example", "http://pay"
	for _, test := range []struct {
		client *http.Client
		url    string
		text   string
		fields string
		want   string // status, messages
		reason string
	}{
		{edge, outside + "/pay.Pay/Charge", "10", "", "0 10 application/grpc trailers", ""},
		{web, inside + "/pay.Pay/Charge", "10", "", "0 10 application/grpc trailers", ""},
		{web, inside + "/pay.Pay/Charge", "10", "Grpc-Timeout: 10S", "0 10 application/grpc trailers", ""},
		{web, inside + "/pay.Pay/Charge", strings.Repeat("x", 50000), "", "0 " + strings.Repeat("x", 50000) + " application/grpc trailers", ""},
		{edge, outside + "/pay.Pay/Charge", "declined", "", "9 declined", ""},
		{edge, outside + "/pay.Pay/Refund", "10", "", "7", "condition"},
		{web, inside + "/pay.Pay/Refund", "10", "", "7", "condition"},
		{web, inside + "/pay.Pay/Nothing", "10", "", "12", "no_operation"},
		{web, inside + "/pay.Other/Charge", "10", "", "12", "no_operation"},
		{web, "http://other/pay.Pay/Charge", "10", "", "12", "no_service"},
		{edge, outside + "/pay.Pay/Charge", "10", "Grpc-Timeout: 10", "3", "grpc_timeout_invalid"},
		{edge, outside + "/pay.Pay/Charge", "10", "Grpc-Timeout: 1S\nGrpc-Timeout: 1S", "3", "grpc_timeout_invalid"},
		{edge, outside + "/pay.Pay/Charge", "10", "Grpc-Timeout: 0n", "4", "deadline_exceeded"},
		{edge, outside + "/pay.Pay/Charge", strings.Repeat("x", 70000), "", "8", "body_too_large"},
		{web, inside + "/pay.Pay/Talk", strings.Repeat("x", 70000), "", "8", "body_too_large"},
		{edge, outside + "/pay.Pay/../Charge", "10", "", "3", "path_dot_segment"},
	} {
		var fields []string
		if test.fields != "" {
			fields = strings.Split(test.fields, "\n")
		}
		a := call(t, test.client, test.url, test.text, fields...)
		got := strings.TrimRight(a.code+" "+strings.Join(append(a.messages, ""), " "), " ")
		if a.code == "9" {
			got += " " + a.text
		}
		// An answer that has begun is refused in its trailers.
		if got != test.want || a.only && a.reason != test.reason || a.http != 200 || a.kind != "application/grpc" || a.err != nil {
			t.Errorf("%s %.20q %s: %.80q, %+v", test.url, test.text, test.fields, got, a)
		}
		if test.reason != "" && !strings.HasPrefix(a.text, test.reason+" (request ") {
			t.Errorf("%s: refused as %+v", test.url, a)
		}
	}
	// What is no gRPC is told so in HTTP.
	for _, kind := range []string{"", "application/json", "application/grpc-web", "application/grpcx"} {
		req, _ := http.NewRequest("POST", inside+"/pay.Pay/Charge", strings.NewReader(frame("10")))
		req.Header.Set("Content-Type", kind)
		if a := do2(t, web, req); a.status != 415 || a.reason != "not_grpc" {
			t.Errorf("content type %q: %+v", kind, a)
		}
	}
	// A call of another service is answered as that service speaks.
	req, _ := http.NewRequest("POST", outside+"/", strings.NewReader(frame("10")))
	req.Header.Set("Content-Type", "application/grpc")
	if a := do2(t, edge, req); a.status != 404 && a.header.Get("Grpc-Status") != "12" {
		t.Errorf("not of gRPC: %+v", a)
	}
	if said := p.timeout.Load(); said != "" {
		t.Errorf("a call without a deadline got one: %v", said)
	}
	e.stop()
	codes := map[string]int{}
	for _, place := range []merlon.Place{merlon.Edge, {Service: "web"}, {Service: "pay"}} {
		for _, r := range e.evidence(place) {
			if r.Service == "pay" && r.GRPC == "" && r.Verdict.Reason != "not_grpc" {
				t.Errorf("%v: no status of %+v", place, r)
			}
			codes[r.GRPC]++
		}
	}
	for _, code := range []string{"OK", "FAILED_PRECONDITION", "PERMISSION_DENIED", "UNIMPLEMENTED", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"} {
		if codes[code] == 0 {
			t.Errorf("no record has %s: %v", code, codes)
		}
	}
}

// TestRPCFailures: what goes wrong behind the gate is a status too.
func TestRPCFailures(t *testing.T) {
	t.Parallel()
	e, p := startPay(t, gate.Bounds{})
	c := e.client2()
	a := call(t, c, "https://shop.example/pay.Pay/Charge", "hang", "Grpc-Timeout: 500m")
	if a.code != "4" || a.reason != "deadline_exceeded" {
		t.Errorf("a call that hangs: %+v", a)
	}
	if said, _ := p.timeout.Load().(string); said == "" || said == "500m" || len(said) > 9 {
		t.Errorf("the application heard of %q", said)
	}
	a = call(t, c, "https://shop.example/pay.Pay/Charge", "break")
	if a.code != "14" || a.only || a.err == nil && len(a.messages) > 0 {
		t.Errorf("an answer that breaks off: %+v", a)
	}
	until(t, "the application to be rid of the call", func() bool { return p.began.Load() == p.ended.Load() })

	gone := peertest.Address(t)
	e, _ = startPay(t, gate.Bounds{}, func(s *setup) { s.addresses["pay"] = gone })
	if a := call(t, e.client2(), "https://shop.example/pay.Pay/Charge", "10"); a.code != "14" || a.reason != "upstream_connect" {
		t.Errorf("an application that is not there: %+v", a)
	}
}

// talk is a call that streams.
type talk struct {
	t    testing.TB
	up   *io.PipeWriter
	res  *http.Response
	stop context.CancelFunc
}

func (e *estate) talk(c *http.Client, url string) *talk {
	e.t.Helper()
	pipe, up := io.Pipe()
	ctx, stop := context.WithCancel(context.Background())
	e.t.Cleanup(stop)
	req, _ := http.NewRequestWithContext(ctx, "POST", url, pipe)
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	c.Timeout = 0
	res, err := c.Do(req)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { up.Close(); res.Body.Close() })
	return &talk{e.t, up, res, stop}
}

// say sends a message and waits for its answer.
func (k *talk) say(text string) error {
	if _, err := io.WriteString(k.up, frame(text)); err != nil {
		return err
	}
	got, err := unframe(k.res.Body)
	if err == nil && got != "re: "+text {
		err = fmt.Errorf("answered with %q", got)
	}
	return err
}

// stalls begins a download that stops in its middle, and returns what waits until
// the gate has cut it off: by then a bound on stalling has passed.
func (e *estate) stalls() func() {
	e.t.Helper()
	res, err := e.client().Get("https://shop.example/")
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { res.Body.Close() })
	return func() {
		if _, err := io.ReadAll(res.Body); err == nil {
			e.t.Error("a stalled answer was not cut off")
		}
	}
}

// stalling is an app that begins an answer and leaves it there.
func stalling() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/events" {
			w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		} else {
			w.Header().Set("Content-Type", "text/plain")
		}
		w.WriteHeader(200)
		io.WriteString(w, "data: first\n\n")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
}

// TestRPCStreams: messages pass at once, both ways, and nothing but the end of
// either side ends them.
func TestRPCStreams(t *testing.T) {
	t.Parallel()
	e, p := startPay(t, gate.Bounds{Stall: 300 * time.Millisecond}, func(s *setup) { s.apps["web"] = stalling() })
	for _, from := range []struct {
		client *http.Client
		url    string
	}{{e.client2(), "https://shop.example/pay.Pay/"}, {e.as2("web"), "http://pay/pay.Pay/"}} {
		k := e.talk(from.client, from.url+"Talk")
		for i := range 50 {
			if err := k.say(strings.Repeat("x", i*i*20)); err != nil {
				t.Fatalf("message %d: %v", i, err)
			}
		}
		watch, err := watches(from.client, from.url)
		if err != nil {
			t.Fatal(err)
		}
		e.stalls()()
		if err := k.say("still there?"); err != nil {
			t.Error(err)
		}
		k.up.Close()
		if _, err := io.ReadAll(k.res.Body); err != nil || k.res.Trailer.Get("Grpc-Status") != "0" {
			t.Errorf("the end: %v, %v", err, k.res.Trailer)
		}
		before := p.ended.Load()
		watch.Body.Close() // which resets the stream
		until(t, "the application to hear that the client is gone", func() bool { return p.ended.Load() == before+1 })
	}
	e.stop()
	for _, r := range e.evidence(merlon.Place{Service: "pay"}) {
		if r.Operation == "Watch" && (r.GRPC != "CANCELLED" || r.Verdict.Reason != gate.ReasonClientGone) {
			t.Errorf("recorded as %+v", r)
		}
	}
}

// watches begins a call of Watch and reads its first message.
func watches(c *http.Client, url string) (*http.Response, error) {
	req, _ := http.NewRequest("POST", url+"Watch", strings.NewReader(frame("")))
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	c.Timeout = 0
	res, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	_, err = unframe(res.Body)
	return res, err
}

// TestRPCQuiet: a call that lasts ends when nothing comes from either side, and
// goes on as long as one of them speaks.
func TestRPCQuiet(t *testing.T) {
	t.Parallel()
	e, _ := startPay(t, gate.Bounds{Quiet: 400 * time.Millisecond})
	c := e.client2()
	res, err := watches(c, "https://shop.example/pay.Pay/")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if a := readRPC(res); a.code != "4" || !strings.HasPrefix(a.text, "upstream_timeout") {
		t.Errorf("a quiet call ended with %+v", a)
	}
}

// TestRPCRevoked: new orders reach a call that streams, and it is told so.
func TestRPCRevoked(t *testing.T) {
	t.Parallel()
	e, p := startPay(t, gate.Bounds{})
	for _, from := range []struct {
		client *http.Client
		url    string
	}{{e.client2(), "https://shop.example/pay.Pay/"}, {e.as2("web"), "http://pay/pay.Pay/"}} {
		k := e.talk(from.client, from.url+"Talk")
		if err := k.say("hello"); err != nil {
			t.Fatal(err)
		}
		watch, err := watches(from.client, from.url)
		if err != nil {
			t.Fatal(err)
		}
		e.swap(strings.ReplaceAll(rpcShop, "operations: [Charge, Talk, Watch]", "operations: [Charge]"))
		for _, res := range []*http.Response{k.res, watch} {
			if a := readRPC(res); a.code != "7" || !strings.HasPrefix(a.text, "revoked (request ") {
				t.Errorf("ended with %+v", a)
			}
		}
		if a := call(t, from.client, from.url+"Charge", "10"); a.code != "0" {
			t.Errorf("another call: %+v", a)
		}
		e.swap(rpcShop)
	}
	until(t, "the application to be rid of the calls", func() bool { return p.began.Load() == p.ended.Load() })
}

// TestRPCOwn: calls over one connection of HTTP/2 are proved to be the
// workload's as those over HTTP/1.1 are, once for the connection.
func TestRPCOwn(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	var stranger atomic.Bool
	own := func(c net.Conn) error {
		asked.Add(1)
		if _, tcp := c.(*net.TCPConn); !tcp {
			t.Errorf("asked about a %T", c)
		}
		if stranger.Load() {
			return errors.New("a stranger")
		}
		return nil
	}
	e, _ := startPay(t, gate.Bounds{}, func(s *setup) { s.own = own })
	c := e.as2("web")
	for range 20 {
		if a := call(t, c, "http://pay/pay.Pay/Charge", "10"); a.code != "0" {
			t.Fatalf("%+v", a)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	stranger.Store(true)
	e.gates[merlon.Place{Service: "web"}].AskOwn()
	if a := call(t, c, "http://pay/pay.Pay/Charge", "10"); a.code != "7" || a.reason != "not_own_workload" {
		t.Errorf("a stranger: %+v", a)
	}
}

// TestEvents: server-sent events pass at once, and last.
func TestEvents(t *testing.T) {
	t.Parallel()
	e, _ := startPay(t, gate.Bounds{Stall: 300 * time.Millisecond}, func(s *setup) { s.apps["web"] = stalling() })
	for _, c := range []*http.Client{e.client(), e.client2()} {
		c.Timeout = 0
		res, err := c.Get("https://shop.example/events")
		if err != nil {
			t.Fatal(err)
		}
		first := make([]byte, len("data: first\n\n"))
		if _, err := io.ReadFull(res.Body, first); err != nil || string(first) != "data: first\n\n" {
			t.Fatalf("%q, %v", first, err)
		}
		e.stalls()()
		more := make(chan error, 1)
		go func() {
			_, err := res.Body.Read(make([]byte, 1))
			more <- err
		}()
		select {
		case err := <-more:
			t.Errorf("%s: the events ended with a stall: %v", res.Proto, err)
		default:
		}
		e.swap(strings.Replace(rpcShop, "callers: {anyone: all}", "callers: {anyone: [home]}", 1))
		if err := <-more; err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: new orders ended it with %v", res.Proto, err)
		}
		res.Body.Close()
		e.swap(rpcShop)
	}
}

// TestEventsDrain: a drain does not wait for events longer than it is told to.
func TestEventsDrain(t *testing.T) {
	t.Parallel()
	e, _ := startPay(t, gate.Bounds{}, func(s *setup) { s.apps["web"] = stalling() })
	res, err := e.client2().Get("https://shop.example/events")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := e.gates[merlon.Edge].Drain(ctx); err == nil {
		t.Error("the drain says that nothing was cut short")
	}
	if _, err := io.ReadAll(res.Body); err == nil {
		t.Error("the events ended as if they were whole")
	}
}

// web makes a call of gRPC-Web and takes its answer apart.
func (e *estate) web(c *http.Client, url, kind string, body []byte) rpcAnswer {
	e.t.Helper()
	req, _ := http.NewRequest("POST", url, bytes.NewReader(body))
	req.Header.Set("Content-Type", kind)
	req.Header.Set("X-Grpc-Web", "1")
	res, err := c.Do(req)
	if err != nil {
		e.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	a := rpcAnswer{http: res.StatusCode, kind: res.Header.Get("Content-Type"), reason: res.Header.Get("Merlon-Reason"), err: err,
		code: res.Header.Get("Grpc-Status"), text: res.Header.Get("Grpc-Message"), only: res.Header.Get("Grpc-Status") != ""}
	if strings.HasPrefix(kind, "application/grpc-web-text") {
		var plain []byte
		for len(text) >= 4 {
			data, err := base64.StdEncoding.DecodeString(string(text[:4]))
			if err != nil {
				e.t.Fatalf("%q: %v", text, err)
			}
			plain, text = append(plain, data...), text[4:]
		}
		text = plain
	}
	for len(text) >= 5 {
		n := binary.BigEndian.Uint32(text[1:])
		data := string(text[5 : 5+n])
		if text[0] == 0x80 {
			head, err := http.ReadResponse(bufioReader("HTTP/1.1 200 OK\r\n"+data+"\r\n"), nil)
			if err != nil {
				e.t.Fatalf("trailers %q: %v", data, err)
			}
			a.code, a.text = head.Header.Get("Grpc-Status"), head.Header.Get("Grpc-Message")
		} else {
			a.messages = append(a.messages, data)
		}
		text = text[5+n:]
	}
	if len(text) > 0 {
		e.t.Errorf("%q is left", text)
	}
	return a
}

// TestRPCWeb: gRPC for browsers is translated at the edge.
func TestRPCWeb(t *testing.T) {
	t.Parallel()
	e, _ := startPay(t, gate.Bounds{})
	text := func(parts ...string) []byte {
		var all string
		for _, part := range parts {
			all += base64.StdEncoding.EncodeToString([]byte(part))
		}
		return []byte(all)
	}
	const url = "https://shop.example/pay.Pay/"
	for _, test := range []struct {
		name, method, kind string
		body               []byte
		want               string // content type, status, messages
	}{
		{"binary", "Charge", "application/grpc-web+proto", []byte(frame("10")), "application/grpc-web 0 10 application/grpc+proto trailers"},
		{"no suffix", "Charge", "application/grpc-web", []byte(frame("10")), "application/grpc-web 0 10 application/grpc trailers"},
		{"text", "Charge", "application/grpc-web-text", text(frame("10")), "application/grpc-web-text 0 10 application/grpc trailers"},
		{"text in pieces", "Charge", "application/grpc-web-text+proto", text("\x00", "\x00\x00\x00", "\x0210"), "application/grpc-web-text 0 10 application/grpc+proto trailers"},
		{"large text", "Charge", "application/grpc-web-text", text(frame(strings.Repeat("y", 60000))), "application/grpc-web-text 0 " + strings.Repeat("y", 60000) + " application/grpc trailers"},
		{"stream", "Talk", "application/grpc-web", []byte(frame("a") + frame("b")), "application/grpc-web 0 re: a re: b"},
		{"stream of text", "Talk", "application/grpc-web-text", text(frame("a")+frame("b"), frame("c")), "application/grpc-web-text 0 re: a re: b re: c"},
		{"trailers only", "Charge", "application/grpc-web", []byte(frame("declined")), "application/grpc 9"},
		{"denied", "Refund", "application/grpc-web", []byte(frame("10")), "application/grpc-web 7"},
		{"denied in text", "Refund", "application/grpc-web-text", text(frame("10")), "application/grpc-web-text 7"},
		{"broken off", "Charge", "application/grpc-web", []byte(frame("break")), "broken"},
		{"no text", "Charge", "application/grpc-web-text", []byte("!!!!"), "application/grpc-web-text 3"},
		{"text cut short", "Charge", "application/grpc-web-text", text(frame("10"))[:9], "application/grpc-web-text 3"},
		{"empty text", "Charge", "application/grpc-web-text", nil, "application/grpc-web-text 13"},
	} {
		for _, c := range []*http.Client{e.client(), e.client2()} {
			if test.want == "broken" {
				continue
			}
			a := e.web(c, url+test.method, test.kind, test.body)
			got := strings.TrimSpace(a.kind + " " + a.code + " " + strings.Join(a.messages, " "))
			if got != test.want || a.err != nil || a.http != 200 {
				t.Errorf("%s: %.100q, %+v", test.name, got, a)
			}
		}
	}
}

// TestConnectIsNoWayAround: who asks for a proxy to a service that speaks HTTP
// gets the gate itself, which decides every request as if it had come without.
func TestConnectIsNoWayAround(t *testing.T) {
	t.Parallel()
	var stranger atomic.Bool
	e, _ := startPay(t, gate.Bounds{}, func(s *setup) {
		s.own = func(net.Conn) error {
			if stranger.Load() {
				return errors.New("a stranger")
			}
			return nil
		}
	})
	const ask = "POST /pay.Pay/%s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/grpc\r\nContent-Length: 7\r\nTE: trailers\r\n\r\n\x00\x00\x00\x00\x0210"
	w := newWire(t, dial(t, e.out["web"]))
	for _, test := range []struct {
		request      string
		status, code string
	}{
		{"CONNECT pay:80 HTTP/1.1\r\nHost: pay:80\r\n\r\n", "200", ""},
		{fmt.Sprintf(ask, "Charge", "pay:80"), "200", "0"},
		{fmt.Sprintf(ask, "Refund", "pay:80"), "200", "7"},
		{fmt.Sprintf(ask, "Charge", "other"), "200", "12"},
		{"CONNECT pay:80 HTTP/1.1\r\nHost: pay:80\r\n\r\n", "200", ""},
		{fmt.Sprintf(ask, "Charge", "pay"), "200", "0"},
		{"CONNECT other:80 HTTP/1.1\r\nHost: other:80\r\n\r\n", "404", ""},
	} {
		w.send(test.request)
		method, _, _ := strings.Cut(test.request, " ")
		res, err := http.ReadResponse(w.r, &http.Request{Method: method})
		if err != nil {
			t.Fatalf("%.40q: %v", test.request, err)
		}
		a := rpcAnswer{http: res.StatusCode}
		if method != "CONNECT" {
			a = readRPC(res)
		}
		if fmt.Sprint(a.http) != test.status || a.code != test.code {
			t.Errorf("%.40q: %+v", test.request, a)
		}
	}
	stranger.Store(true)
	if a := newWire(t, dial(t, e.out["web"])).ask("CONNECT pay:80 HTTP/1.1\r\nHost: pay:80\r\n\r\n"); a.status != 403 || a.reason != "not_own_workload" {
		t.Errorf("a stranger: %d %s", a.status, a.reason)
	}
}
