package http2_test

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"testing"

	xhttp2 "golang.org/x/net/http2"

	"merlon/gate/http2"
)

// TestClientGreeting: the preface and the settings come first; push is off.
func TestClientGreeting(t *testing.T) {
	t.Parallel()
	c := http2.New(http2.Config{Client: true, Streams: 7, HeaderList: 5000, Connect: true})
	out := c.Output()
	if !bytes.HasPrefix(out, []byte(preface)) {
		t.Fatalf("%q", out)
	}
	p := rawPeer(t, c)
	p.out.Write(out[len(preface):])
	f, err := p.ReadFrame()
	if err != nil {
		t.Fatal(err)
	}
	var got []xhttp2.Setting
	f.(*xhttp2.SettingsFrame).ForeachSetting(func(s xhttp2.Setting) error { got = append(got, s); return nil })
	if want := []xhttp2.Setting{{ID: 2, Val: 0}, {ID: 6, Val: 5000}, {ID: 9, Val: 1}}; !slices.Equal(got, want) {
		t.Errorf("settings %v, want %v", got, want)
	}
}

// TestClientExchange: an exchange as it should be.
func TestClientExchange(t *testing.T) {
	t.Parallel()
	p := newServer(t, http2.Config{})
	fields := []http2.Field{{Name: "Content-Type", Value: "a/b"}, {Name: "Connection", Value: "close", Class: 1}, {Name: "Cookie", Value: "c"}}
	id, err := p.c.Open(&http2.Request{Method: "PUT", Scheme: "https", Host: "app:1", Path: "/a", Query: "b=c", Fields: fields, Trailers: true}, 1, false)
	if err != nil || id != 1 {
		t.Fatal(id, err)
	}
	if n, err := p.c.WriteData(id, []byte("body"), true); n != 4 || err != nil {
		t.Fatal(n, err)
	}
	want(t, "frames", p.frames(), "headers 1 :method=PUT :scheme=https :authority=app:1 :path=/a?b=c te=trailers content-type=a/b cookie=c", "data 1 4 end")
	p.request(1, false, ":status: 103", "link: x")
	p.request(1, false, ":status: 200", "x-name: grün")
	p.WriteData(1, false, []byte("answer"))
	p.request(1, true, "grpc-status: 0", "x-user: me")
	want(t, "events", p.feed(), "answer 1 103 -1 link=x", "answer 1 200 -1 x-name=grün", "data 1 6", "trailers 1 grpc-status=0 x-user=me end")
	if p.c.Streams() != 1 {
		t.Error("the work has not ended, and its stream is gone")
	}
	p.c.Done(1)
	want(t, "after", p.frames())
	if p.c.Streams() != 0 {
		t.Error("a stream is left")
	}
	for _, method := range []string{"GET", "POST"} {
		if _, err := p.c.Open(&http2.Request{Method: method, Scheme: "http", Host: "app", Path: "/"}, 0, true); err != nil {
			t.Fatal(err)
		}
	}
	want(t, "more", p.frames(), "headers 3 :method=GET :scheme=http :authority=app :path=/ end", "headers 5 :method=POST :scheme=http :authority=app :path=/ end")
}

// TestAnswers: what a server may say in answer to a request, and what not.
func TestAnswers(t *testing.T) {
	t.Parallel()
	reset := func(reason string) []string { return []string{"reset 1 PROTOCOL_ERROR " + reason} }
	for _, test := range []struct {
		name   string
		method string
		answer func(p *peer)
		events []string
	}{
		{"no body", "GET", func(p *peer) { p.request(1, true, ":status: 200") }, []string{"answer 1 200 -1 end"}},
		{"a length", "GET", func(p *peer) {
			p.request(1, false, ":status: 200", "content-length: 3")
			p.WriteData(1, true, []byte("abc"))
		},
			[]string{"answer 1 200 3 content-length=3", "data 1 3 end"}},
		{"head", "HEAD", func(p *peer) { p.request(1, true, ":status: 200", "content-length: 3") }, []string{"answer 1 200 3 content-length=3 end"}},
		{"not modified", "GET", func(p *peer) { p.request(1, true, ":status: 304", "content-length: 3") }, []string{"answer 1 304 3 content-length=3 end"}},
		{"ended later", "HEAD", func(p *peer) { p.request(1, false, ":status: 200", "content-length: 3"); p.WriteData(1, true, nil) },
			[]string{"answer 1 200 3 content-length=3", "data 1 0 end"}},
		{"no status", "GET", func(p *peer) { p.request(1, true, "x: y") }, reset("status_missing")},
		{"nothing", "GET", func(p *peer) {
			p.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true})
		}, reset("status_missing")},
		{"a short status", "GET", func(p *peer) { p.request(1, true, ":status: 20") }, reset("status_invalid")},
		{"a signed status", "GET", func(p *peer) { p.request(1, true, ":status: +20") }, reset("status_invalid")},
		{"a large status", "GET", func(p *peer) { p.request(1, true, ":status: 600") }, reset("status_invalid")},
		{"switching", "GET", func(p *peer) { p.request(1, true, ":status: 101") }, reset("status_invalid")},
		{"two statuses", "GET", func(p *peer) { p.request(1, true, ":status: 200", ":status: 404") }, reset("pseudo_field_late")},
		{"a pseudo-field of requests", "GET", func(p *peer) { p.request(1, true, ":status: 200", ":path: /") }, reset("pseudo_field_late")},
		{"capitals", "GET", func(p *peer) { p.request(1, true, ":status: 200", "Server: x") }, reset("field_name_invalid")},
		{"a line end", "GET", func(p *peer) { p.request(1, true, ":status: 200", "x: a\r\nset-cookie: b") }, reset("field_value_line_end")},
		{"a control", "GET", func(p *peer) { p.request(1, true, ":status: 200", "x: a\x01") }, reset("field_value_control")},
		{"connection", "GET", func(p *peer) { p.request(1, true, ":status: 200", "connection: close") }, reset("connection_field")},
		{"keep-alive", "GET", func(p *peer) { p.request(1, true, ":status: 200", "keep-alive: 5") }, reset("connection_field")},
		{"transfer-encoding", "GET", func(p *peer) { p.request(1, false, ":status: 200", "transfer-encoding: chunked") }, reset("connection_field")},
		{"a disguise", "GET", func(p *peer) { p.request(1, true, ":status: 200", "content_length: 5") }, reset("field_name_disguised")},
		{"two lengths", "GET", func(p *peer) { p.request(1, false, ":status: 200", "content-length: 5", "content-length: 5") }, reset("content_length_repeated")},
		{"a list of lengths", "GET", func(p *peer) { p.request(1, false, ":status: 200", "content-length: 5, 5") }, reset("content_length_invalid")},
		{"too little", "GET", func(p *peer) {
			p.request(1, false, ":status: 200", "content-length: 5")
			p.WriteData(1, true, []byte("abc"))
		},
			append([]string{"answer 1 200 5 content-length=5"}, reset("content_length_differs")...)},
		{"nothing of a length", "GET", func(p *peer) { p.request(1, true, ":status: 200", "content-length: 5") }, reset("content_length_differs")},
		{"a body to HEAD", "HEAD", func(p *peer) { p.request(1, false, ":status: 200"); p.WriteData(1, true, []byte("abc")) },
			append([]string{"answer 1 200 -1"}, reset("content_length_differs")...)},
		{"a body of no content", "GET", func(p *peer) { p.request(1, false, ":status: 204"); p.WriteData(1, true, []byte("abc")) },
			append([]string{"answer 1 204 -1"}, reset("content_length_differs")...)},
		{"a length of no content", "GET", func(p *peer) { p.request(1, true, ":status: 204", "content-length: 5") }, reset("body_forbidden")},
		{"a length of an interim answer", "GET", func(p *peer) { p.request(1, false, ":status: 103", "content-length: 5") }, reset("body_forbidden")},
		{"an interim answer that ends", "GET", func(p *peer) { p.request(1, true, ":status: 103") }, reset("interim_ends")},
		{"data first", "GET", func(p *peer) { p.WriteData(1, true, []byte("abc")) }, reset("data_before_head")},
		{"two heads", "GET", func(p *peer) { p.request(1, false, ":status: 200"); p.request(1, false, ":status: 200") },
			append([]string{"answer 1 200 -1"}, reset("trailers_without_end")...)},
		{"a status in trailers", "GET", func(p *peer) { p.request(1, false, ":status: 200"); p.request(1, true, ":status: 200") },
			append([]string{"answer 1 200 -1"}, reset("pseudo_field_late")...)},
		{"a length in trailers", "GET", func(p *peer) { p.request(1, false, ":status: 200"); p.request(1, true, "content-length: 5") },
			append([]string{"answer 1 200 -1"}, reset("trailer_refused")...)},
		{"large", "GET", func(p *peer) { p.request(1, true, ":status: 200", "x: "+strings.Repeat("y", 17<<10)) }, reset("head_too_large")},
		{"a stream that is none", "GET", func(p *peer) { p.request(3, true, ":status: 200") }, []string{"over PROTOCOL_ERROR stream_idle"}},
		{"a stream of the server", "GET", func(p *peer) { p.request(2, true, ":status: 200") }, []string{"over PROTOCOL_ERROR stream_id_invalid"}},
		{"push", "GET", func(p *peer) {
			p.WritePushPromise(xhttp2.PushPromiseParam{StreamID: 1, PromiseID: 2, BlockFragment: p.encode(get...), EndHeaders: true})
		}, []string{"over PROTOCOL_ERROR push_refused"}},
		{"push is allowed", "GET", func(p *peer) { p.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingEnablePush, Val: 1}) },
			[]string{"over PROTOCOL_ERROR setting_invalid"}},
	} {
		for _, cut := range []int{0, 1, 7} {
			p := newServer(t, http2.Config{})
			p.cut = cut
			p.open(test.method, true)
			test.answer(p)
			want(t, test.name, p.feed(), test.events...)
			if p.c.Done(1); p.c.Streams() != 0 {
				t.Errorf("%s: a stream is left", test.name)
			}
		}
	}
}

// TestClientDone: what has not ended is cancelled, and what still comes for it
// hurts nobody.
func TestClientDone(t *testing.T) {
	t.Parallel()
	p := newServer(t, http2.Config{})
	for range 200 {
		id := p.open("GET", true)
		p.c.Done(id)
		want(t, "cancelled", p.frames()[:1], "reset "+word(id)+" CANCEL")
		p.request(id, false, ":status: 200")
		for range 64 { // what the window permits
			p.WriteData(id, false, make([]byte, 500))
		}
		p.WriteWindowUpdate(id, 1000)
		p.WriteRSTStream(id, xhttp2.ErrCodeNo)
		want(t, "late", p.feed())
	}
	id := p.open("POST", false)
	p.request(id, true, ":status: 200")
	p.feed()
	p.c.Done(id)
	want(t, "a request that is not wanted", p.frames(), "reset "+word(id)+" CANCEL")
}

func word(id uint32) string { return strconv.Itoa(int(id)) }

// TestRoom: no more streams than the server takes at once.
func TestRoom(t *testing.T) {
	t.Parallel()
	p := newServer(t, http2.Config{Streams: 5})
	if n := p.c.Room(); n != 5 {
		t.Errorf("room for %d", n)
	}
	p.open("GET", true)
	for _, test := range []struct {
		most uint32
		room int
	}{{3, 2}, {0, 0}, {1, 0}, {1 << 31, 4}} {
		p.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingMaxConcurrentStreams, Val: test.most})
		want(t, "change", p.feed(), "writable 0")
		if n := p.c.Room(); n != test.room {
			t.Errorf("room for %d when the server takes %d", n, test.most)
		}
	}
	p.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingMaxConcurrentStreams, Val: 1})
	p.feed()
	if _, err := p.c.Open(&http2.Request{Method: "GET"}, 0, true); err != http2.ErrClosed {
		t.Errorf("without room: %v", err)
	}
}

// TestClientGoneAway: the streams that the server does not take end, the others
// go on, and there are no more.
func TestClientGoneAway(t *testing.T) {
	t.Parallel()
	p := newServer(t, http2.Config{})
	for range 4 {
		p.open("GET", true)
	}
	p.WriteGoAway(1<<31-1, xhttp2.ErrCodeNo, nil)
	want(t, "first", p.feed(), "gone away NO_ERROR")
	if p.c.Room() != 0 || !p.c.Leaving() || p.c.Streams() != 4 {
		t.Errorf("room for %d, %d streams", p.c.Room(), p.c.Streams())
	}
	p.c.Done(7)
	p.WriteGoAway(3, xhttp2.ErrCodeNo, nil)
	p.WriteGoAway(5, xhttp2.ErrCodeNo, nil) // never more again
	p.request(3, true, ":status: 200")
	p.request(5, true, ":status: 200")
	want(t, "second", p.feed(), "gone away NO_ERROR after 3", "answer 3 200 -1 end")
	p.c.Done(5)
	p.c.Done(3)
	if p.c.Done(1); p.c.Streams() != 0 {
		t.Errorf("%d streams are left", p.c.Streams())
	}
	q := newServer(t, http2.Config{})
	q.c.GoAway()
	want(t, "goodbye", q.frames(), "goaway 0 NO_ERROR ")
}

// TestClientWindows: a client waits for room like a server.
func TestClientWindows(t *testing.T) {
	t.Parallel()
	p := newServer(t, http2.Config{Output: 1 << 20})
	p.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingInitialWindowSize, Val: 10})
	p.feed()
	id := p.open("POST", false)
	if n, err := p.c.WriteData(id, make([]byte, 25), true); n != 10 || err != nil {
		t.Fatal(n, err)
	}
	p.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingInitialWindowSize, Val: 20})
	want(t, "settings", p.feed(), "writable 0")
	if n, err := p.c.WriteData(id, make([]byte, 15), true); n != 10 || err != nil {
		t.Fatal(n, err)
	}
	p.WriteWindowUpdate(id, 5)
	want(t, "window", p.feed(), "writable 1")
	if n, err := p.c.WriteData(id, make([]byte, 5), true); n != 5 || err != nil {
		t.Fatal(n, err)
	}
	p.WriteWindowUpdate(0, 1<<31-1)
	want(t, "overflow", p.feed(), "over FLOW_CONTROL_ERROR window_overflow")
}

// TestHostileServers: what costs a client and moves no data ends.
func TestHostileServers(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		round  func(p *peer, i int)
		reason string
	}{
		"interim answers": {func(p *peer, i int) { p.request(1, false, ":status: 103") }, "interim_flood"},
		"settings":        {func(p *peer, i int) { p.WriteSettings() }, "settings_flood"},
		"pings":           {func(p *peer, i int) { p.WritePing(false, [8]byte{}) }, "ping_flood"},
		"goodbyes":        {func(p *peer, i int) { p.WriteGoAway(1, 0, nil) }, "ignored_flood"},
		"empty data":      {func(p *peer, i int) { p.WriteData(1, false, nil) }, "empty_data_flood"},
		"no end of a head": {func(p *peer, i int) {
			if i == 0 {
				p.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: p.encode(":status: 200")})
			}
			p.WriteContinuation(1, false, []byte{0, 1, 'x', 1, 'y'})
		}, "continuation_flood"},
	} {
		p := newServer(t, http2.Config{})
		p.open("GET", true)
		if n, got := flood(p, 10000, func(i int) { test.round(p, i) }); !strings.Contains(got, "ENHANCE_YOUR_CALM "+test.reason) {
			t.Errorf("%s: %q after %d", name, got, n)
		}
	}
}

// TestPingsForData: a peer may measure the path with a PING for each frame of
// data, as grpc-go does, for as long as it likes.
func TestPingsForData(t *testing.T) {
	t.Parallel()
	p := newServer(t, http2.Config{})
	id := p.open("POST", false)
	for range 20000 {
		if n, err := p.c.WriteData(id, make([]byte, 10), false); n != 10 || err != nil {
			t.Fatal(n, err)
		}
		p.WritePing(false, [8]byte{})
		p.WriteWindowUpdate(0, 100)
		p.WriteWindowUpdate(id, 100)
		for _, e := range p.feed() {
			if strings.HasPrefix(e, "over") {
				t.Fatal(e)
			}
		}
		p.c.Sent(len(p.c.Output()))
	}
}

// TestClientAllocatesNothing: an exchange makes no garbage once the connection
// is warm.
func TestClientAllocatesNothing(t *testing.T) {
	p := newServer(t, http2.Config{})
	p.request(1, false, ":status: 200", "content-type: text/plain", "x-name: value")
	p.WriteData(1, true, make([]byte, 100))
	frames := bytes.Clone(p.in.Bytes())
	second := 9 + int(frames[0])<<16 + int(frames[1])<<8 + int(frames[2])
	fields := []http2.Field{{Name: "Content-Type", Value: "a/b"}, {Name: "X-Name", Value: "value"}}
	now := int64(0)
	round := func() {
		now += 1e6
		id, err := p.c.Open(&http2.Request{Method: "GET", Scheme: "http", Host: "app", Path: "/", Fields: fields}, 0, true)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []int{0, second} {
			frames[at+5], frames[at+6], frames[at+7], frames[at+8] = byte(id>>24), byte(id>>16), byte(id>>8), byte(id)
		}
		for in := frames; len(in) > 0; {
			n, ev, err := p.c.Next(in, now)
			if err != nil {
				t.Fatal(err)
			}
			in = in[n:]
			p.c.Consumed(id, len(ev.Data))
		}
		p.c.Done(id)
		p.c.Sent(len(p.c.Output()))
	}
	for range 100 {
		round()
	}
	if n := testing.AllocsPerRun(1000, round); n > poolLosses {
		t.Errorf("%v allocations per exchange", n)
	}
	if p.c.Streams() != 0 {
		t.Errorf("%d streams are left", p.c.Streams())
	}
}
