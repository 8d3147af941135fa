package http2_test

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"merlon/gate/http2"
)

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// peer is a client made of x/net's framer, that speaks to a Conn in memory.
type peer struct {
	t   testing.TB
	c   *http2.Conn
	in  bytes.Buffer // written by the client, not yet fed
	out bytes.Buffer // written by the core, not yet read
	*xhttp2.Framer
	block bytes.Buffer
	enc   *hpack.Encoder
	dec   *hpack.Decoder
	now   int64
	cut   int  // feed so many bytes at a time; 0 for all
	keep  bool // do not consume data by itself
}

// newPeer makes a connection with the greetings exchanged.
func newPeer(t testing.TB, cfg http2.Config) *peer {
	p := rawPeer(t, http2.New(cfg))
	p.in.WriteString(preface)
	p.WriteSettings()
	p.WriteSettingsAck()
	p.feed()
	p.frames()
	return p
}

// newServer is a peer that is the server of a client.
func newServer(t testing.TB, cfg http2.Config) *peer {
	cfg.Client = true
	c := http2.New(cfg)
	if greeting := c.Output(); !bytes.HasPrefix(greeting, []byte(preface)) {
		t.Fatalf("the client says %q first", greeting)
	}
	c.Sent(len(preface))
	p := rawPeer(t, c)
	p.WriteSettings()
	p.WriteSettingsAck()
	p.feed()
	p.frames()
	return p
}

// open opens a stream of the client and passes over its frames.
func (p *peer) open(method string, end bool) uint32 {
	id, err := p.c.Open(&http2.Request{Method: method, Scheme: "http", Host: "app", Path: "/"}, 0, end)
	if err != nil {
		p.t.Fatal(err)
	}
	p.frames()
	return id
}

func rawPeer(t testing.TB, c *http2.Conn) *peer {
	p := &peer{t: t, c: c, now: 1}
	p.Framer = xhttp2.NewFramer(&p.in, &p.out)
	p.Framer.AllowIllegalWrites = true
	p.enc = hpack.NewEncoder(&p.block)
	p.dec = hpack.NewDecoder(4096, nil)
	return p
}

// encode makes a header block of "name: value" lines.
func (p *peer) encode(lines ...string) []byte {
	p.block.Reset()
	for _, line := range lines {
		i := strings.Index(line[1:], ":") + 1
		p.enc.WriteField(hpack.HeaderField{Name: line[:i], Value: strings.TrimPrefix(line[i+1:], " ")})
	}
	return bytes.Clone(p.block.Bytes())
}

// request writes a HEADERS frame.
func (p *peer) request(id uint32, end bool, lines ...string) {
	p.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: id, BlockFragment: p.encode(lines...), EndStream: end, EndHeaders: true})
}

var get = []string{":method: GET", ":scheme: https", ":authority: shop.example", ":path: /"}
var post = []string{":method: POST", ":scheme: https", ":authority: shop.example", ":path: /"}

// feed gives the core what the client wrote, and returns its events in words.
func (p *peer) feed() (events []string) {
	in := bytes.Clone(p.in.Bytes())
	p.in.Reset()
	for {
		piece := in
		if p.cut > 0 {
			piece = in[:min(p.cut, len(in))]
		}
		n, ev, err := p.c.Next(piece, p.now)
		if n > len(piece) {
			p.t.Fatalf("%d bytes used of %d", n, len(piece))
		}
		in = in[n:]
		if err != nil {
			e := err.(*http2.Error)
			return append(events, fmt.Sprintf("over %v %s", xhttp2.ErrCode(e.Code), e.Reason))
		}
		if ev.Kind != http2.None {
			events = append(events, p.word(&ev))
		} else if len(in) == 0 {
			return merge(events)
		}
	}
}

// merge joins pieces of data, so that events do not depend on cuts.
func merge(events []string) []string {
	var out []string
	for _, e := range events {
		if n := len(out); n > 0 && strings.HasPrefix(e, "data ") && strings.HasPrefix(out[n-1], "data ") {
			var id, id2 uint32
			var size, size2 int
			var end string
			fmt.Sscanf(out[n-1], "data %d %d%s", &id, &size, &end)
			fmt.Sscanf(e, "data %d %d%s", &id2, &size2, &end)
			if id == id2 && !strings.HasSuffix(out[n-1], " end") {
				out[n-1] = fmt.Sprintf("data %d %d", id, size+size2)
				if strings.HasSuffix(e, " end") {
					out[n-1] += " end"
				}
				continue
			}
		}
		out = append(out, e)
	}
	return out
}

func (p *peer) word(ev *http2.Event) string {
	w := ""
	switch ev.Kind {
	case http2.Begin:
		r := ev.Request
		w = fmt.Sprintf("begin %d %s %s %s %s?%s %d", ev.Stream, r.Method, r.Scheme, r.Host, r.Path, r.Query, r.Length)
		for _, f := range r.Fields {
			w += fmt.Sprintf(" %s=%s", f.Name, f.Value)
			if f.Class != 0 {
				w += fmt.Sprintf("(%d)", f.Class)
			}
		}
	case http2.Interim, http2.Answer:
		w = fmt.Sprintf("answer %d %d %d", ev.Stream, ev.Answer.Status, ev.Answer.Length)
		for _, f := range ev.Answer.Fields {
			w += fmt.Sprintf(" %s=%s", f.Name, f.Value)
		}
	case http2.Data:
		w = fmt.Sprintf("data %d %d", ev.Stream, len(ev.Data))
		if !p.keep {
			p.c.Consumed(ev.Stream, len(ev.Data))
		}
	case http2.Trailers:
		w = fmt.Sprintf("trailers %d", ev.Stream)
		for _, f := range ev.Fields {
			w += fmt.Sprintf(" %s=%s", f.Name, f.Value)
		}
	case http2.Refused:
		return fmt.Sprintf("refused %d %d %s", ev.Stream, ev.Err.Status, ev.Err.Reason)
	case http2.Reset:
		w = fmt.Sprintf("reset %d %v", ev.Stream, xhttp2.ErrCode(ev.Code))
		if ev.Err != nil {
			w += " " + ev.Err.Reason
		}
	case http2.Writable:
		w = fmt.Sprintf("writable %d", ev.Stream)
	case http2.GoneAway:
		w = fmt.Sprintf("gone away %v", xhttp2.ErrCode(ev.Code))
		if ev.Stream != 1<<31-1 {
			w += fmt.Sprintf(" after %d", ev.Stream)
		}
	}
	if ev.End {
		w += " end"
	}
	return w
}

// frames reads what the core wrote, in words.
func (p *peer) frames() (words []string) {
	n := len(p.c.Output())
	p.out.Write(p.c.Output())
	p.c.Sent(n)
	for {
		f, err := p.ReadFrame()
		if err == io.EOF {
			return words
		}
		if err != nil {
			p.t.Fatalf("the core wrote a bad frame: %v", err)
		}
		w := ""
		id := f.Header().StreamID
		switch f := f.(type) {
		case *xhttp2.SettingsFrame:
			w = "settings"
			if f.IsAck() {
				w = "settings ack"
			}
		case *xhttp2.PingFrame:
			w = fmt.Sprintf("ping %q %v", f.Data, f.IsAck())
		case *xhttp2.RSTStreamFrame:
			w = fmt.Sprintf("reset %d %v", id, f.ErrCode)
		case *xhttp2.GoAwayFrame:
			w = fmt.Sprintf("goaway %d %v %s", f.LastStreamID, f.ErrCode, f.DebugData())
		case *xhttp2.WindowUpdateFrame:
			w = fmt.Sprintf("window %d %d", id, f.Increment)
		case *xhttp2.DataFrame:
			w = fmt.Sprintf("data %d %d", id, len(f.Data()))
			if f.StreamEnded() {
				w += " end"
			}
		case *xhttp2.HeadersFrame:
			w = fmt.Sprintf("headers %d", id)
			fields, err := p.dec.DecodeFull(f.HeaderBlockFragment())
			if err != nil || !f.HeadersEnded() {
				p.t.Fatalf("the core wrote a bad header block: %v", err)
			}
			for _, hf := range fields {
				w += fmt.Sprintf(" %s=%s", hf.Name, hf.Value)
			}
			if f.StreamEnded() {
				w += " end"
			}
		}
		words = append(words, w)
	}
}

// want compares.
func want(t testing.TB, what string, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%s:\n got %q\nwant %q", what, got, want)
	}
}
