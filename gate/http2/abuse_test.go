package http2_test

import (
	"bytes"
	"strings"
	"testing"

	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"merlon/gate/http2"
)

// flood feeds what one round writes until the connection is over or rounds are
// used up, and tells how many rounds it took.
func flood(p *peer, rounds int, round func(i int)) (int, string) {
	for i := range rounds {
		round(i)
		for _, e := range p.feed() {
			if strings.HasPrefix(e, "over ") {
				return i, e
			}
		}
		p.c.Sent(len(p.c.Output()))
	}
	return rounds, "never over"
}

func id(i int) uint32 { return uint32(2*i + 1) }

// TestClass10RapidReset: streams that are opened and reset are work for nothing
// (CVE-2023-44487).
func TestClass10RapidReset(t *testing.T) {
	t.Parallel()
	p := newPeer(t, http2.Config{})
	n, why := flood(p, 2000, func(i int) {
		p.request(id(i), true, get...)
		p.WriteRSTStream(id(i), xhttp2.ErrCodeCancel)
		p.feed()
		p.c.Done(id(i))
	})
	if why != "over ENHANCE_YOUR_CALM rapid_reset" || n > 501 {
		t.Errorf("%d rounds, %s", n, why)
	}

	// Work that goes on after the reset holds its place: no more than Streams
	// of them at any time.
	p = newPeer(t, http2.Config{Streams: 10})
	begun := 0
	flood(p, 100, func(i int) {
		p.request(id(i), true, get...)
		p.WriteRSTStream(id(i), xhttp2.ErrCodeCancel)
		for _, e := range p.feed() {
			if strings.HasPrefix(e, "begin") {
				begun++
			}
		}
	})
	if begun != 10 || p.c.Streams() != 10 {
		t.Errorf("%d requests began", begun)
	}

	// A slow one is an impatient user.
	p = newPeer(t, http2.Config{})
	if n, why := flood(p, 3000, func(i int) {
		p.now += 1e9 / 40
		p.request(id(i), true, get...)
		p.WriteRSTStream(id(i), xhttp2.ErrCodeCancel)
		p.feed()
		p.c.Done(id(i))
	}); n != 3000 {
		t.Errorf("40 a second: over after %d, %s", n, why)
	}
}

// TestClass10RapidFault: a peer that makes us reset in its place gains nothing
// (CVE-2025-8671).
func TestClass10RapidFault(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(p *peer, id uint32){
		"window":   func(p *peer, id uint32) { p.request(id, true, get...); p.WriteWindowUpdate(id, 0) },
		"overflow": func(p *peer, id uint32) { p.request(id, true, get...); p.WriteWindowUpdate(id, 1<<31-1) },
		"closed":   func(p *peer, id uint32) { p.request(id, true, get...); p.WriteData(id, true, nil) },
		"length": func(p *peer, id uint32) {
			p.request(id, false, with(post, "content-length: 1")...)
			p.WriteData(id, true, nil)
		},
		"malformed": func(p *peer, id uint32) { p.request(id, true, with(get, "X: y")...) },
	} {
		p := newPeer(t, http2.Config{})
		n, why := flood(p, 2000, func(i int) {
			fault(p, id(i))
			p.feed()
			p.c.Done(id(i))
		})
		if (why != "over ENHANCE_YOUR_CALM rapid_fault" && why != "over ENHANCE_YOUR_CALM empty_data_flood") || n > 501 {
			t.Errorf("%s: %d rounds, %s", name, n, why)
		}
	}
}

// TestClass10Continuation: a header block that does not end (CVE-2024-27316).
func TestClass10Continuation(t *testing.T) {
	t.Parallel()
	for size, limit := range map[int]int{0: 33, 1: 33, 16384: 3} {
		p := newPeer(t, http2.Config{})
		p.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: p.encode(get...)})
		n, why := flood(p, 2000, func(int) { p.WriteContinuation(1, false, bytes.Repeat([]byte{0x82}, size)) })
		if why != "over ENHANCE_YOUR_CALM continuation_flood" || n > limit {
			t.Errorf("%d bytes each: %d rounds, %s", size, n, why)
		}
	}
}

// TestClass10HeaderBomb: a byte of a block can name 4 KiB of a list
// (CVE-2016-1544); and a list within the block's bound is refused by itself.
func TestClass10HeaderBomb(t *testing.T) {
	t.Parallel()
	p := newPeer(t, http2.Config{})
	p.request(1, true, with(get, "x-a: "+strings.Repeat("a", 4000))...)
	p.feed()
	block := p.encode(get...)
	block = append(block, bytes.Repeat([]byte{0x80 | 62}, 10000)...)
	p.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 3, BlockFragment: block, EndHeaders: true})
	want(t, "bomb", p.feed(), "over ENHANCE_YOUR_CALM header_bomb")

	p = newPeer(t, http2.Config{})
	p.request(1, true, with(get, "x-a: "+strings.Repeat("a", 4000))...)
	p.feed()
	block = append(p.encode(get...), 0x80|62, 0x80|62, 0x80|62, 0x80|62, 0x80|62)
	p.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 3, BlockFragment: block, EndHeaders: true})
	p.request(5, true, with(get, "x-a: "+strings.Repeat("a", 4000))...)
	got := p.feed()
	if len(got) != 2 || got[0] != "refused 3 431 head_too_large" || !strings.HasPrefix(got[1], "begin 5 GET https shop.example /? 0 x-a=aaa") {
		t.Errorf("got %.200q", got)
	}
}

// TestClass10TableSize: the table is as large as we say, not as the peer does.
func TestClass10TableSize(t *testing.T) {
	t.Parallel()
	p := newPeer(t, http2.Config{})
	p.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingHeaderTableSize, Val: 1 << 30})                                 // of the answers' table, which does not exist
	p.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x3f, 0xe2, 0x1f}, EndHeaders: true}) // 4097
	want(t, "update", p.feed(), "over COMPRESSION_ERROR header_block_invalid")

	p = newPeer(t, http2.Config{})
	p.enc.SetMaxDynamicTableSize(100)
	p.request(1, true, with(get, "x-a: b", "x-c: d", "x-e: f")...)
	p.request(3, true, with(get, "x-a: b", "x-c: d", "x-e: f")...)
	if got := p.feed(); len(got) != 2 || !strings.HasSuffix(got[1], "x-a=b x-c=d x-e=f end") {
		t.Errorf("a smaller table: %q", got)
	}
}

// TestClass10Floods: frames that cost and move nothing.
func TestClass10Floods(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, why string
		limit     int
		round     func(p *peer)
	}{
		{"PING", "ping_flood", 1001, func(p *peer) { p.WritePing(false, [8]byte{}) }},
		{"PING unasked", "ignored_flood", 4001, func(p *peer) { p.WritePing(true, [8]byte{}) }},
		{"SETTINGS", "settings_flood", 201, func(p *peer) { p.WriteSettings() }},
		{"SETTINGS long", "settings_flood", 1, func(p *peer) { p.WriteSettings(make([]xhttp2.Setting, 100)...) }},
		{"SETTINGS unasked", "settings_flood", 4001, func(p *peer) { p.WriteSettingsAck() }},
		{"DATA empty", "empty_data_flood", 1001, func(p *peer) { p.WriteData(1, false, nil) }},
		{"PRIORITY", "ignored_flood", 4001, func(p *peer) { p.WritePriority(1, xhttp2.PriorityParam{}) }},
		{"unknown", "ignored_flood", 4001, func(p *peer) { p.WriteRawFrame(0x42, 0, 0, nil) }},
		{"GOAWAY", "ignored_flood", 4001, func(p *peer) { p.WriteGoAway(0, 0, nil) }},
		{"WINDOW_UPDATE", "window_flood", 1001, func(p *peer) { p.WriteWindowUpdate(1, 1) }},
		{"WINDOW_UPDATE late", "ignored_flood", 4001, func(p *peer) { p.WriteWindowUpdate(3, 1000) }},
		{"RST_STREAM late", "ignored_flood", 4001, func(p *peer) { p.WriteRSTStream(3, xhttp2.ErrCodeCancel) }},
		{"DATA late", "rapid_fault", 501, func(p *peer) { p.WriteData(3, false, []byte("x")) }},
	} {
		p := newPeer(t, http2.Config{})
		p.request(1, false, post...)
		p.request(3, true, get...)
		p.feed()
		p.c.WriteHeaders(3, 204, nil, 0, true)
		p.c.Done(3)
		n, why := flood(p, 5000, func(int) { c.round(p) })
		if why != "over ENHANCE_YOUR_CALM "+c.why || n > c.limit {
			t.Errorf("%s: %d rounds, %s", c.name, n, why)
		}
	}
}

// TestClass10Dribble: a window opened byte by byte (CVE-2019-9511).
func TestClass10Dribble(t *testing.T) {
	t.Parallel()
	p := newPeer(t, http2.Config{})
	p.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingInitialWindowSize, Val: 0})
	p.request(1, true, get...)
	p.feed()
	p.c.WriteHeaders(1, 200, nil, 0, false)
	data := make([]byte, 10000)
	n, why := flood(p, 5000, func(int) {
		p.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingInitialWindowSize, Val: 0})
		p.feed()
		p.now += 1e9 / 25 // so that neither the settings nor the window alone overdraw
		p.WriteWindowUpdate(1, 63)
		p.feed()
		p.c.WriteData(1, data, false)
	})
	if !strings.HasPrefix(why, "over ENHANCE_YOUR_CALM ") || n > 1001 {
		t.Errorf("%d rounds, %s", n, why)
	}

	p = newPeer(t, http2.Config{})
	p.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingInitialWindowSize, Val: 1})
	p.feed()
	n, why = flood(p, 5000, func(i int) {
		p.request(id(i), true, get...)
		p.feed()
		p.c.WriteHeaders(id(i), 200, nil, 0, false)
		p.c.WriteData(id(i), data, false)
		p.c.Done(id(i))
	})
	if why != "over ENHANCE_YOUR_CALM dribble" || n > 1001 {
		t.Errorf("tiny windows: %d rounds, %s", n, why)
	}

	// What overdraws while nothing is read counts after a rest, too.
	p = newPeer(t, http2.Config{Streams: 100})
	p.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingInitialWindowSize, Val: 1})
	for i := range 100 {
		p.request(id(i), true, get...)
	}
	for round := range 10 {
		p.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingInitialWindowSize, Val: uint32(round + 1)})
		p.feed()
		for i := range 100 {
			if round == 0 {
				p.c.WriteHeaders(id(i), 200, nil, 0, false)
			}
			p.c.WriteData(id(i), data, false)
		}
	}
	p.now += 60e9
	p.WritePing(false, [8]byte{})
	if got := p.feed(); len(got) == 0 || got[len(got)-1] != "over ENHANCE_YOUR_CALM dribble" {
		t.Errorf("after a rest: %q", got)
	}
}

// TestClass10WindowTricks: an update of nothing, and one beyond 2^31-1.
func TestClass10WindowTricks(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		id, more uint32
		want     string
	}{
		{0, 0, "over PROTOCOL_ERROR window_update_empty"},
		{0, 1<<31 - 1, "over FLOW_CONTROL_ERROR window_overflow"},
		{1, 0, "reset 1 PROTOCOL_ERROR window_update_empty"},
		{1, 1<<31 - 1, "reset 1 FLOW_CONTROL_ERROR window_overflow"},
	} {
		p := newPeer(t, http2.Config{})
		p.request(1, true, get...)
		p.WriteWindowUpdate(c.id, c.more)
		want(t, c.want, p.feed(), "begin 1 GET https shop.example /? 0 end", c.want)
	}
	p := newPeer(t, http2.Config{})
	p.request(1, true, get...)
	p.WriteWindowUpdate(1, 1<<30)
	p.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingInitialWindowSize, Val: 1<<31 - 1})
	got := p.feed()
	want(t, "by settings", got[len(got)-1:], "over FLOW_CONTROL_ERROR window_overflow")
}

// TestClass10Streams: no more at once than said, and the refusal may be tried
// again.
func TestClass10Streams(t *testing.T) {
	t.Parallel()
	p := newPeer(t, http2.Config{Streams: 3})
	for i := range 4 {
		p.request(id(i), true, get...)
	}
	if got := p.feed(); len(got) != 3 {
		t.Errorf("got %q", got)
	}
	want(t, "the fourth", p.frames(), "reset 7 REFUSED_STREAM")
	n, why := flood(p, 2000, func(i int) { p.request(id(i+4), true, get...) })
	if why != "over ENHANCE_YOUR_CALM streams_flood" || n > 500 {
		t.Errorf("%d rounds, %s", n, why)
	}

	// Each is reset by its client too, which is not even read any more: that
	// trifle may be what overdraws the budget, and does not name the flood.
	for before := range 9 {
		p := newPeer(t, http2.Config{Streams: 3})
		for range before {
			p.WritePriority(1, xhttp2.PriorityParam{})
		}
		for i := range 3 {
			p.request(id(i), true, get...)
		}
		_, why := flood(p, 2000, func(i int) {
			p.request(id(i+3), true, get...)
			p.WriteRSTStream(id(i+3), xhttp2.ErrCodeCancel)
		})
		if why != "over ENHANCE_YOUR_CALM streams_flood" {
			t.Errorf("after %d other trifles: %s", before, why)
		}
	}
}

// TestClass10Huffman: a string that is no Huffman code, or pads with what is no
// end.
func TestClass10Huffman(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"\xff\xff\xff\xff", "\x00", "\x1f\xff"} {
		p := newPeer(t, http2.Config{})
		block := append([]byte{0x00, 0x01, 'x', 0x80 | byte(len(s))}, s...)
		p.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndHeaders: true})
		want(t, s, p.feed(), "over COMPRESSION_ERROR header_block_invalid")
	}
	if _, err := hpack.HuffmanDecodeToString([]byte("\x1f\xff")); err == nil {
		t.Error("the counterpart takes what is refused here")
	}
}
