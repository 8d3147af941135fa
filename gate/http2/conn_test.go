package http2_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	xhttp2 "golang.org/x/net/http2"

	"merlon/gate/http2"
)

// TestGreeting: the settings come first, and tell what is bounded.
func TestGreeting(t *testing.T) {
	t.Parallel()
	c := http2.New(http2.Config{Streams: 7, StreamWindow: 100000, HeaderList: 5000, Connect: true})
	p := rawPeer(t, c)
	p.out.Write(c.Output())
	f, err := p.ReadFrame()
	if err != nil {
		t.Fatal(err)
	}
	got := map[xhttp2.SettingID]uint32{}
	f.(*xhttp2.SettingsFrame).ForeachSetting(func(s xhttp2.Setting) error { got[s.ID] = s.Val; return nil })
	for id, val := range map[xhttp2.SettingID]uint32{3: 7, 4: 100000, 6: 5000, 8: 1, 9: 1} {
		if got[id] != val {
			t.Errorf("setting %v is %d, want %d", id, got[id], val)
		}
	}
	if len(got) != 5 {
		t.Errorf("%d settings", len(got))
	}
}

// TestExchange: an exchange as it should be.
func TestExchange(t *testing.T) {
	t.Parallel()
	p := newPeer(t, http2.Config{})
	p.request(1, false, with(post, "content-length: 6")...)
	p.WriteDataPadded(1, false, []byte("abc"), make([]byte, 9))
	p.WriteDataPadded(1, true, []byte("def"), nil)
	want(t, "events", p.feed(), "begin 1 POST https shop.example /? 6 content-length=6(2)", "data 1 6 end")
	fields := []http2.Field{{Name: "Content-Type", Value: "a/b"}, {Name: "X-Drop", Class: 1}, {Name: "X-Name", Value: "c"}}
	for _, err := range []error{
		p.c.WriteHeaders(1, 103, fields[2:], 0, true),
		p.c.WriteHeaders(1, 200, fields, 1, false),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if n, err := p.c.WriteData(1, []byte("answer"), false); n != 6 || err != nil {
		t.Fatal(n, err)
	}
	if err := p.c.WriteTrailers(1, []http2.Field{{Name: "Grpc-Status", Value: "0"}}, 0); err != nil {
		t.Fatal(err)
	}
	want(t, "frames", p.frames(), "headers 1 :status=103 x-name=c", "headers 1 :status=200 content-type=a/b x-name=c", "data 1 6", "headers 1 grpc-status=0 end")
	if p.c.Streams() != 1 {
		t.Error("the work has not ended, and its stream is gone")
	}
	p.c.Done(1)
	want(t, "after", p.frames())
	if p.c.Streams() != 0 {
		t.Error("a stream is left")
	}
	if _, err := p.c.WriteData(1, nil, true); err != http2.ErrClosed {
		t.Errorf("after the end: %v", err)
	}
}

// TestDone: what is not whole must not look whole.
func TestDone(t *testing.T) {
	t.Parallel()
	p := newPeer(t, http2.Config{})
	p.request(1, true, get...)
	p.request(3, false, post...)
	p.request(5, false, post...)
	p.feed()
	p.c.WriteHeaders(1, 200, nil, 0, false)
	p.c.WriteHeaders(3, 413, nil, 0, true)
	p.frames()
	for _, id := range []uint32{1, 3, 5, 7} {
		p.c.Done(id)
	}
	want(t, "frames", p.frames(), "reset 1 INTERNAL_ERROR", "reset 3 NO_ERROR", "reset 5 INTERNAL_ERROR")
	// What was on its way is passed over.
	p.WriteData(3, true, []byte("late"))
	p.request(5, true, "x-late: trailer")
	p.WriteRSTStream(5, xhttp2.ErrCodeCancel)
	p.WriteWindowUpdate(5, 100)
	want(t, "late", p.feed())
	want(t, "late frames", p.frames())
}

// TestFrames holds frames to RFC 9113 5 and 6, beyond what h2spec tries.
func TestFrames(t *testing.T) {
	t.Parallel()
	begun := func(p *peer) { p.request(1, false, post...) }
	const begin = "begin 1 POST https shop.example /? -1"
	for _, c := range []struct {
		name   string
		write  func(p *peer)
		events []string
		frames []string
	}{
		{"push", func(p *peer) {
			p.WritePushPromise(xhttp2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true})
		},
			[]string{"over PROTOCOL_ERROR push_refused"}, []string{"goaway 0 PROTOCOL_ERROR push_refused"}},
		{"even stream", func(p *peer) { p.request(2, true, get...) }, []string{"over PROTOCOL_ERROR stream_id_invalid"}, nil},
		{"idle", func(p *peer) { p.WriteData(1, true, nil) }, []string{"over PROTOCOL_ERROR stream_idle"}, nil},
		{"frame too large", func(p *peer) { begun(p); p.WriteData(1, true, make([]byte, 16385)) }, []string{begin, "over FRAME_SIZE_ERROR frame_too_large"}, nil},
		{"frame size", func(p *peer) { p.WriteRawFrame(xhttp2.FramePing, 0, 0, make([]byte, 7)) }, []string{"over FRAME_SIZE_ERROR frame_size_wrong"}, nil},
		{"padding", func(p *peer) { begun(p); p.WriteRawFrame(xhttp2.FrameData, xhttp2.FlagDataPadded, 1, []byte{3, 0, 0}) },
			[]string{begin, "over PROTOCOL_ERROR padding_too_long"}, nil},
		{"padding of headers", func(p *peer) {
			p.WriteRawFrame(xhttp2.FrameHeaders, xhttp2.FlagHeadersPadded|xhttp2.FlagHeadersEndHeaders, 1, []byte{3, 0, 0})
		}, []string{"over PROTOCOL_ERROR padding_too_long"}, nil},
		{"only padding", func(p *peer) {
			begun(p)
			p.WriteRawFrame(xhttp2.FrameData, xhttp2.FlagDataPadded|xhttp2.FlagDataEndStream, 1, []byte{2, 0, 0})
		},
			[]string{begin, "data 1 0 end"}, nil},
		{"continuation alone", func(p *peer) { p.WriteContinuation(1, true, nil) }, []string{"over PROTOCOL_ERROR continuation_alone"}, nil},
		{"continuation missing", func(p *peer) {
			p.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: p.encode(get...)})
			p.WritePing(false, [8]byte{})
		}, []string{"over PROTOCOL_ERROR continuation_missing"}, nil},
		{"continued", func(p *peer) {
			b := p.encode(get...)
			p.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:1], EndStream: true})
			p.WriteContinuation(1, false, b[1:3])
			p.WriteContinuation(1, true, b[3:])
		}, []string{"begin 1 GET https shop.example /? 0 end"}, nil},
		{"id goes back", func(p *peer) { p.request(5, true, get...); p.request(3, true, get...) },
			[]string{"begin 5 GET https shop.example /? 0 end", "over PROTOCOL_ERROR stream_id_invalid"}, nil},
		{"after the end", func(p *peer) { p.request(1, true, get...); p.WriteData(1, true, nil) },
			[]string{"begin 1 GET https shop.example /? 0 end", "reset 1 STREAM_CLOSED stream_closed"}, []string{"reset 1 STREAM_CLOSED"}},
		{"self", func(p *peer) {
			p.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: p.encode(get...), EndHeaders: true, Priority: xhttp2.PriorityParam{StreamDep: 1}})
		}, []string{"refused 1 0 depends_on_itself"}, []string{"reset 1 PROTOCOL_ERROR"}},
		{"setting", func(p *peer) { p.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingEnablePush, Val: 2}) }, []string{"over PROTOCOL_ERROR setting_invalid"}, nil},
		{"hpack", func(p *peer) {
			p.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff}, EndHeaders: true})
		},
			[]string{"over COMPRESSION_ERROR header_block_invalid"}, nil},
		{"ping", func(p *peer) { p.WritePing(false, [8]byte{1}); p.WritePing(true, [8]byte{2}) }, nil, []string{`ping "\x01\x00\x00\x00\x00\x00\x00\x00" true`}},
		{"reset", func(p *peer) { begun(p); p.WriteRSTStream(1, xhttp2.ErrCodeCancel) }, []string{begin, "reset 1 CANCEL"}, nil},
		{"away", func(p *peer) { p.WriteGoAway(0, xhttp2.ErrCodeNo, nil); p.WriteGoAway(0, xhttp2.ErrCodeNo, nil) }, []string{"gone away NO_ERROR after 0"}, nil},
		{"unknown", func(p *peer) { p.WriteRawFrame(0x77, 0xff, 9, []byte("abc")); p.WriteRawFrame(0x77, 0, 0, nil) }, nil, nil},
		{"too long", func(p *peer) {
			p.request(1, false, with(post, "content-length: 2")...)
			p.WriteData(1, false, []byte("abc"))
		},
			[]string{"begin 1 POST https shop.example /? 2 content-length=2(2)", "reset 1 PROTOCOL_ERROR content_length_differs"}, []string{"reset 1 PROTOCOL_ERROR"}},
		{"too short", func(p *peer) {
			p.request(1, false, with(post, "content-length: 4")...)
			p.WriteData(1, true, []byte("abc"))
		},
			[]string{"begin 1 POST https shop.example /? 4 content-length=4(2)", "reset 1 PROTOCOL_ERROR content_length_differs"}, []string{"reset 1 PROTOCOL_ERROR"}},
	} {
		for _, cut := range []int{0, 1, 7} {
			p := newPeer(t, http2.Config{})
			p.cut = cut
			c.write(p)
			want(t, c.name, p.feed(), c.events...)
			if frames := p.frames(); c.frames != nil {
				want(t, c.name+": frames", frames, c.frames...)
			}
		}
	}
	p := rawPeer(t, http2.New(http2.Config{}))
	p.in.WriteString("GET / HTTP/1.1\r\n")
	want(t, "other protocol", p.feed(), "over PROTOCOL_ERROR preface_invalid")
	p = rawPeer(t, http2.New(http2.Config{}))
	p.in.WriteString(preface)
	p.WritePing(false, [8]byte{})
	want(t, "no settings", p.feed(), "over PROTOCOL_ERROR settings_missing")
	want(t, "stays over", p.feed(), "over PROTOCOL_ERROR settings_missing")
}

// TestReceiveWindows: the peer's windows open as data is passed on, and no
// other way; padding and what nobody wants is passed on at once.
func TestReceiveWindows(t *testing.T) {
	t.Parallel()
	p := newPeer(t, http2.Config{ConnWindow: 100000})
	p.keep = true
	p.request(1, false, post...)
	p.request(3, false, post...)
	piece := make([]byte, 16384)
	for range 3 {
		p.WriteData(1, false, piece)
	}
	p.WriteData(1, false, piece[:65535-3*16384])
	p.feed()
	want(t, "nothing consumed", p.frames())
	p.c.Consumed(1, 32000)
	want(t, "below half", p.frames())
	p.c.Consumed(1, 18000)
	want(t, "half", p.frames(), "window 0 50000", "window 1 50000")
	p.WriteData(1, false, piece)
	p.WriteData(1, false, piece)
	p.WriteData(1, false, piece)
	p.feed()
	p.WriteData(3, false, piece)
	p.WriteData(3, false, piece)
	p.WriteData(3, false, piece)
	want(t, "connection's window", p.feed(), "data 3 16384", "data 3 16384", "over FLOW_CONTROL_ERROR window_exceeded")

	p = newPeer(t, http2.Config{})
	p.keep = true
	p.request(1, false, post...)
	for range 4 {
		p.WriteData(1, false, piece)
	}
	got := p.feed()
	want(t, "stream's window", got[len(got)-1:], "reset 1 FLOW_CONTROL_ERROR window_exceeded")

	// Nobody wants it: it counts, and comes back.
	p = newPeer(t, http2.Config{ConnWindow: 65535})
	for i := range 20 {
		id := uint32(2*i + 1)
		p.request(id, false, with(post, "host: other")...)
		p.WriteData(id, false, piece)
		p.WriteDataPadded(id, true, nil, make([]byte, 255))
		p.feed()
		p.c.Done(id)
	}
	if got := strings.Join(p.frames(), " "); strings.Count(got, "window 0") < 5 || strings.Contains(got, "goaway") {
		t.Errorf("refused data did not come back: %s", got)
	}
}

// TestSendWindows: no more is sent than the peer has room for (RFC 9113 6.9).
func TestSendWindows(t *testing.T) {
	t.Parallel()
	p := newPeer(t, http2.Config{Output: 1 << 20})
	data := make([]byte, 100000)
	p.request(1, true, get...)
	p.request(3, true, get...)
	p.feed()
	p.c.WriteHeaders(1, 200, nil, 0, false)
	p.frames()
	if n, err := p.c.WriteData(1, data, true); n != 65535 || err != nil {
		t.Fatal(n, err)
	}
	want(t, "first window", p.frames(), "data 1 16384", "data 1 16384", "data 1 16384", "data 1 16383")
	if n, _ := p.c.WriteData(3, data, true); n != 0 {
		t.Errorf("the connection's window is used up, and takes %d", n)
	}
	p.WriteWindowUpdate(0, 100)
	want(t, "connection", p.feed(), "writable 0")
	if n, _ := p.c.WriteData(1, data, true); n != 0 {
		t.Errorf("the stream's window is used up, and takes %d", n)
	}
	if n, _ := p.c.WriteData(3, data, true); n != 100 {
		t.Errorf("took %d of 100", n)
	}
	p.WriteWindowUpdate(1, 10)
	p.WriteWindowUpdate(0, 1000000)
	p.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingInitialWindowSize, Val: 65545})
	want(t, "opened", p.feed(), "writable 1", "writable 0", "writable 0")
	if n, _ := p.c.WriteData(1, data[:20], true); n != 20 {
		t.Errorf("took %d of 20", n)
	}
	p.frames()
	p.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingInitialWindowSize, Val: 0})
	p.feed()
	if n, _ := p.c.WriteData(3, data, true); n != 0 {
		t.Errorf("a window below zero took %d", n)
	}
	if n, err := p.c.WriteData(3, nil, true); n != 0 || err != nil {
		t.Error(n, err)
	}
	want(t, "an end needs no window", p.frames()[1:], "data 3 0 end")
}

// TestOutputBounded: a peer that does not read stops what is answered, and one
// that makes us answer besides is sent away.
func TestOutputBounded(t *testing.T) {
	t.Parallel()
	p := newPeer(t, http2.Config{Output: 5000})
	p.WriteWindowUpdate(0, 1<<30)
	p.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingInitialWindowSize, Val: 1 << 30})
	for i := range 50 {
		p.request(uint32(2*i+1), true, get...)
	}
	p.feed()
	data := make([]byte, 1<<20)
	for range 3 {
		for i := range 50 {
			p.c.WriteHeaders(uint32(2*i+1), 200, []http2.Field{{Name: "X-A", Value: strings.Repeat("a", 1000)}}, 0, false)
			p.c.WriteData(uint32(2*i+1), data, false)
		}
	}
	if n := len(p.c.Output()); n > 5000+16384+9+1100 {
		t.Errorf("%d bytes wait to be written", n)
	}
	if err := p.c.WriteHeaders(99, 200, nil, 0, false); err != http2.ErrFull {
		t.Errorf("got %v", err)
	}
	for range 4000 {
		p.now += 1e9 // the budget of effort is not the bound here
		p.WritePing(false, [8]byte{})
		if got := p.feed(); len(got) > 0 {
			want(t, "pings unread", got, "over ENHANCE_YOUR_CALM peer_does_not_read")
			return
		}
	}
	t.Error("a peer that does not read went on")
}

// TestGracefulGoAway: a shutdown takes what was on its way, and nothing later.
func TestGracefulGoAway(t *testing.T) {
	t.Parallel()
	p := newPeer(t, http2.Config{})
	p.request(1, true, get...)
	p.feed()
	p.c.GoAway()
	p.c.GoAway()
	want(t, "first", p.frames(), "goaway 2147483647 NO_ERROR ", `ping "leaving." false`)
	p.request(3, true, get...)
	p.WritePing(true, [8]byte([]byte("leaving.")))
	p.request(5, true, get...)
	want(t, "events", p.feed(), "begin 3 GET https shop.example /? 0 end")
	want(t, "then", p.frames(), "goaway 3 NO_ERROR ", "reset 5 REFUSED_STREAM")
	for _, id := range []uint32{1, 3} {
		if p.c.Drained() {
			t.Error("drained too early")
		}
		p.c.WriteHeaders(id, 204, nil, 0, true)
		p.c.Done(id)
	}
	if !p.c.Drained() {
		t.Error("not drained")
	}
}

// TestLargeHead: a head larger than a frame continues in others.
func TestLargeHead(t *testing.T) {
	t.Parallel()
	p := newPeer(t, http2.Config{Output: 1 << 20})
	p.request(1, true, get...)
	p.feed()
	value := strings.Repeat("0123456789", 5000)
	p.c.WriteHeaders(1, 200, []http2.Field{{Name: "X-A", Value: value}, {Name: "X-B", Value: "b"}}, 0, true)
	p.ReadMetaHeaders = p.dec
	p.MaxHeaderListSize = 1 << 20
	p.out.Write(p.c.Output())
	f, err := p.ReadFrame()
	if err != nil {
		t.Fatal(err)
	}
	mh := f.(*xhttp2.MetaHeadersFrame)
	if len(mh.Fields) != 3 || mh.Fields[1].Value != value || mh.Fields[2].Value != "b" || !mh.StreamEnded() {
		t.Errorf("got %d fields", len(mh.Fields))
	}
}

// TestInit: a connection that is used again knows nothing of the one before.
func TestInit(t *testing.T) {
	t.Parallel()
	c := http2.New(http2.Config{})
	fresh := bytes.Clone(c.Output())
	for range 3 {
		p := rawPeer(t, c)
		p.in.WriteString(preface)
		p.WriteSettings()
		p.request(1, true, with(get, "x-a: secret")...)
		p.request(3, false, post...)
		want(t, "first", p.feed(), "begin 1 GET https shop.example /? 0 x-a=secret end", "begin 3 POST https shop.example /? -1")
		p.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 5, BlockFragment: []byte{0xff, 0xff}, EndHeaders: true})
		p.feed()
		c.Init(http2.Config{})
		if !bytes.Equal(c.Output(), fresh) || c.Streams() != 0 {
			t.Fatalf("%d streams, output %q", c.Streams(), c.Output())
		}
	}
	p := rawPeer(t, c)
	p.in.WriteString(preface)
	p.WriteSettings()
	// The dynamic table of the one before.
	p.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x80 | 62}, EndHeaders: true})
	want(t, "table", p.feed(), "over COMPRESSION_ERROR header_block_invalid")
}

// TestErrorText: logs name the package.
func TestErrorText(t *testing.T) {
	t.Parallel()
	if got := fmt.Sprint(&http2.Error{Reason: "rapid_reset"}); got != "http2: rapid_reset" {
		t.Error(got)
	}
}
