package gate_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"merlon"
)

// answered is the status and the reason of the next answer.
func (f *frames2) answered(t testing.TB) (stream uint32, status, reason string, fields map[string]string) {
	t.Helper()
	frame, err := f.until(xhttp2.FrameHeaders)
	if err != nil {
		t.Fatal(err)
	}
	h := frame.(*xhttp2.HeadersFrame)
	list, err := hpack.NewDecoder(4096, nil).DecodeFull(h.HeaderBlockFragment())
	if err != nil {
		t.Fatal(err)
	}
	fields = map[string]string{}
	for _, x := range list {
		fields[x.Name] = x.Value
	}
	return h.StreamID, fields[":status"], fields["merlon-reason"], fields
}

// TestWebSocketOverHTTP2 opens WebSockets by extended CONNECT (RFC 8441).
func TestWebSocketOverHTTP2(t *testing.T) {
	t.Parallel()
	e := startChat(t, "none")
	f := dial2(t, e.edge)
	frame, err := f.until(xhttp2.FrameSettings)
	if err != nil {
		t.Fatal(err)
	}
	if v, ok := frame.(*xhttp2.SettingsFrame).Value(xhttp2.SettingEnableConnectProtocol); !ok || v != 1 {
		t.Fatalf("SETTINGS_ENABLE_CONNECT_PROTOCOL is %d, %v", v, ok)
	}
	f.refusals(t)

	// Two at once, one of which sends before it is answered.
	f.request(41, false, "CONNECT", "/rooms/1", ":protocol=websocket", version13, "sec-websocket-key=AAAA", "sec-websocket-protocol=chat")
	f.WriteData(41, false, []byte("early "))
	stream, status, _, fields := f.answered(t)
	if stream != 41 || status != "200" || fields["sec-websocket-accept"] != "" || fields["upgrade"] != "" || fields["sec-websocket-protocol"] != "chat" {
		t.Fatalf("answer of %d: %v", stream, fields)
	}
	got, ended := map[uint32]*bytes.Buffer{41: {}, 43: {}}, map[uint32]bool{}
	read := func(what string, done func() bool) { t.Helper(); f.collect(t, what, got, ended, done) }
	read("the echo", func() bool { return got[41].String() == "hello early " })
	f.request(43, false, "CONNECT", "/rooms/2", ":protocol=websocket", version13)
	read("the second", func() bool { return got[43].String() == "hello " })
	piece := []byte(strings.Repeat("x", 10_000))
	for i := range 20 { // as much as the windows allow, several times
		f.WriteData(43, false, piece)
		read("all", func() bool { return got[43].Len() == len("hello ")+(i+1)*len(piece) })
	}
	f.WriteData(41, true, []byte("bye"))
	read("the end", func() bool { return ended[41] })
	if got[41].String() != "hello early bye" {
		t.Errorf("read %q", got[41])
	}

	// Orders that forbid it reset the stream, and the connection lives on.
	e.swap(strings.Replace(strings.Replace(chatIntent, "CERT", "none", 1), "webSockets: [room]", "webSockets: [plain]", 1))
	if frame, err := f.until(xhttp2.FrameRSTStream); err != nil || frame.Header().StreamID != 43 {
		t.Errorf("after the swap: %v, %v", frame, err)
	}
	f.request(45, true, "GET", "/plain")
	if _, status, _, _ := f.answered(t); status != "200" {
		t.Errorf("after the swap: %s", status)
	}
	e.stop()
	ends := ""
	for _, r := range e.evidence(merlon.Edge) {
		if strings.HasPrefix(r.Detail, "tunnel ended") {
			ends += fmt.Sprintln(r.Verdict.Reason, r.BytesIn, r.BytesOut)
		}
	}
	if !strings.Contains(ends, "allowed 9 15\n") || !strings.Contains(ends, " 200000 200006\n") {
		t.Errorf("recorded\n%s", ends)
	}
}

const version13 = "sec-websocket-version=13"

// refusals asks for WebSockets that are not to be had.
func (f *frames2) refusals(t *testing.T) {
	for i, tt := range []struct {
		method, path   string
		fields         []string
		status, reason string
	}{
		{"CONNECT", "/plain", []string{":protocol=websocket", version13}, "501", "upgrade_not_spoken"},
		{"CONNECT", "/rooms/1", []string{":protocol=connect-udp", version13}, "501", "upgrade_not_spoken"},
		{"CONNECT", "/plain", []string{":protocol=h2c", version13}, "501", "upgrade_not_spoken"},
		{"CONNECT", "/rooms/1", []string{":protocol=websocket", "sec-websocket-version=8"}, "426", "websocket_version"},
		{"CONNECT", "/rooms/1?answer=200", []string{":protocol=websocket", version13}, "502", "upstream_invalid"},
		{"CONNECT", "/rooms/1?answer=403", []string{":protocol=websocket", version13}, "403", ""},
		{"CONNECT", "/rooms/1?answer=accept", []string{":protocol=websocket", version13}, "502", "upstream_invalid"},
		{"CONNECT", "/nowhere", []string{":protocol=websocket", version13}, "404", "no_operation"},
	} {
		id := uint32(2*i + 1)
		f.request(id, false, tt.method, tt.path, tt.fields...)
		if stream, status, reason, _ := f.answered(t); stream != id || status != tt.status || reason != tt.reason {
			t.Errorf("%d: got %s %s, want %s %s", i, status, reason, tt.status, tt.reason)
		}
	}

	// A CONNECT that is not extended is for proxies.
	f.block.Reset()
	f.enc.WriteField(hpack.HeaderField{Name: ":method", Value: "CONNECT"})
	f.enc.WriteField(hpack.HeaderField{Name: ":authority", Value: "chat:80"})
	f.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 31, BlockFragment: f.block.Bytes(), EndHeaders: true})
	if _, status, reason, _ := f.answered(t); status != "501" || reason != "connect_not_spoken" {
		t.Errorf("CONNECT: %s %s", status, reason)
	}
}

// collect reads data until that is done, and opens windows for as much again.
func (f *frames2) collect(t *testing.T, what string, got map[uint32]*bytes.Buffer, ended map[uint32]bool, done func() bool) {
	t.Helper()
	for !done() {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatalf("waiting for %s: %v", what, err)
		}
		if r, ok := frame.(*xhttp2.RSTStreamFrame); ok && got[r.StreamID] != nil {
			t.Fatalf("waiting for %s: stream %d reset: %v", what, r.StreamID, r.ErrCode)
		}
		d, ok := frame.(*xhttp2.DataFrame)
		if !ok {
			continue
		}
		got[d.StreamID].Write(d.Data())
		ended[d.StreamID] = d.StreamEnded()
		if n := uint32(len(d.Data())); n > 0 {
			f.WriteWindowUpdate(0, n)
			if !d.StreamEnded() {
				f.WriteWindowUpdate(d.StreamID, n)
			}
		}
	}
}
