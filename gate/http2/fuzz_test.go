package http2_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"merlon/gate/http2"
)

// FuzzConn holds any input to these promises: nothing panics, how it is cut
// does not matter, and what the core writes is well-formed.
func FuzzConn(f *testing.F) {
	seed := func(write func(p *peer)) {
		p := rawPeer(f, http2.New(http2.Config{}))
		p.in.WriteString(preface)
		p.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingInitialWindowSize, Val: 100})
		write(p)
		f.Add(p.in.Bytes()[len(preface):], uint8(3))
	}
	for _, c := range requests(strings.Repeat("x", 4000)) {
		seed(func(p *peer) { p.request(1, false, c.lines...); p.WriteData(1, true, []byte("body")) })
	}
	seed(func(p *peer) {
		p.request(1, false, post...)
		p.WriteDataPadded(1, false, []byte("body"), make([]byte, 9))
		p.WriteWindowUpdate(0, 1000)
		p.WriteWindowUpdate(1, 1)
		p.WritePing(false, [8]byte{})
		p.WriteRSTStream(1, 8)
		p.WriteData(1, true, nil)
		p.request(1, true, "x: y")
		p.WriteGoAway(0, 0, nil)
	})
	seed(func(p *peer) {
		b := p.encode(get...)
		p.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:2]})
		p.WriteContinuation(1, true, b[2:])
		p.request(1, true, "x: y")
		p.WritePriority(1, xhttp2.PriorityParam{StreamDep: 3})
	})
	f.Fuzz(func(t *testing.T, raw []byte, cut uint8) {
		if len(raw) > 6000 {
			return
		}
		whole, wholeOut := run(t, raw, 0)
		pieces, piecesOut := run(t, raw, int(cut)%50+1)
		if !slices.Equal(whole, pieces) || !bytes.Equal(wholeOut, piecesOut) {
			t.Fatalf("whole %q\n%q\npieces %q\n%q", whole, wholeOut, pieces, piecesOut)
		}
	})
}

// run feeds raw after a preface and answers every request, and returns the
// events and all that the core wrote.
func run(t *testing.T, raw []byte, cut int) (events []string, out []byte) {
	p := rawPeer(t, http2.New(http2.Config{Streams: 3, Output: 1 << 20}))
	p.cut = cut
	p.in.WriteString(preface)
	p.in.Write(raw)
	events = p.feed()
	for i := range 20 {
		p.c.WriteHeaders(id(i), 200, []http2.Field{{Name: "X-A", Value: "b"}}, 0, false)
		p.c.WriteData(id(i), make([]byte, 200), i%2 == 0)
		if i%3 == 0 {
			p.c.Done(id(i))
		}
	}
	out = bytes.Clone(p.c.Output())
	p.frames()
	return events, out
}

// FuzzClient is FuzzConn for a client, with requests open.
func FuzzClient(f *testing.F) {
	seed := func(write func(p *peer)) {
		p := newServer(f, http2.Config{})
		p.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingInitialWindowSize, Val: 100}, xhttp2.Setting{ID: xhttp2.SettingMaxConcurrentStreams, Val: 3})
		write(p)
		f.Add(p.in.Bytes(), uint8(3))
	}
	seed(func(p *peer) {
		p.request(1, false, ":status: 103", "link: x")
		p.request(1, false, ":status: 200", "content-length: 4")
		p.WriteDataPadded(1, true, []byte("body"), make([]byte, 9))
		p.request(3, false, ":status: 200")
		p.WriteData(3, false, []byte("body"))
		p.WriteWindowUpdate(0, 1000)
		p.WriteWindowUpdate(3, 1)
		p.WritePing(false, [8]byte{})
		p.request(3, true, "grpc-status: 0")
		p.WriteRSTStream(5, 7)
		p.WriteGoAway(3, 0, nil)
	})
	seed(func(p *peer) {
		b := p.encode(":status: 404", "x: y")
		p.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:2]})
		p.WriteContinuation(1, true, b[2:])
		p.WriteGoAway(1<<31-1, 0, nil)
		p.WritePushPromise(xhttp2.PushPromiseParam{StreamID: 1, PromiseID: 2})
	})
	f.Fuzz(func(t *testing.T, raw []byte, cut uint8) {
		if len(raw) > 6000 {
			return
		}
		whole, wholeOut := runClient(t, raw, 0)
		pieces, piecesOut := runClient(t, raw, int(cut)%50+1)
		if !slices.Equal(whole, pieces) || !bytes.Equal(wholeOut, piecesOut) {
			t.Fatalf("whole %q\n%q\npieces %q\n%q", whole, wholeOut, pieces, piecesOut)
		}
	})
}

// runClient opens streams, feeds raw, and returns the events and all that the
// core wrote.
func runClient(t *testing.T, raw []byte, cut int) (events []string, out []byte) {
	c := http2.New(http2.Config{Client: true, Streams: 10, Output: 1 << 20})
	c.Sent(len(preface))
	p := rawPeer(t, c)
	p.cut = cut
	for i, method := range []string{"GET", "POST", "HEAD", "PUT"} {
		c.Open(&http2.Request{Method: method, Scheme: "http", Host: "app", Path: "/"}, 0, i%2 == 0)
	}
	p.in.Write(raw)
	events = merge(p.feed())
	for i := range 6 {
		c.WriteData(id(i), make([]byte, 200), i%2 == 0)
		if i%3 == 0 {
			c.Done(id(i))
		}
	}
	c.Open(&http2.Request{Method: "GET", Scheme: "http", Host: "app", Path: "/"}, 0, true)
	out = bytes.Clone(c.Output())
	p.frames()
	for i := range 6 {
		c.Done(id(i))
	}
	if c.Streams() != 0 {
		t.Fatalf("%d streams are left", c.Streams())
	}
	return events, out
}

// FuzzHeaderBlock compares with the decoder of package hpack, over several
// blocks of one connection: the same list, or both refuse.
func FuzzHeaderBlock(f *testing.F) {
	p := rawPeer(f, http2.New(http2.Config{}))
	for _, c := range requests(strings.Repeat("x", 4000)) {
		f.Add(p.encode(c.lines...), p.encode(c.lines...))
	}
	f.Add([]byte{0x3f, 0xe1, 0x1f, 0x20, 0x82}, []byte{0x40, 1, 'a', 1, 'b', 0x80 | 62})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if len(a) > 5000 || len(b) > 5000 {
			return
		}
		d := http2.NewDecoder()
		theirs := hpack.NewDecoder(4096, nil)
		theirs.SetMaxStringLength(1 << 20)
		for _, block := range [][]byte{a, b, a} {
			mine, err := d.Decode(block)
			other, otherErr := theirs.DecodeFull(block)
			if otherErr != nil {
				if err == nil {
					t.Fatalf("%x: hpack refuses (%v), this package reads %q", block, otherErr, mine)
				}
				return
			}
			if err != nil {
				return // stricter: long numbers, updates after a field
			}
			if len(mine) != len(other) {
				t.Fatalf("%x: %q, hpack has %q", block, mine, other)
			}
			for i, hf := range other {
				if mine[i] != [2]string{hf.Name, hf.Value} {
					t.Fatalf("%x: %q, hpack has %q", block, mine, other)
				}
			}
		}
	})
}
