package gate_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"merlon"
	"merlon/record"
)

// lightClient2 makes calls over one connection of HTTP/2 without allocating.
type lightClient2 struct {
	net.Conn
	request []byte // frames
	id      uint32
	buf     []byte
}

// call sends a request and reads frames until its stream ends.
func (c *lightClient2) call() error {
	c.id += 2
	for at := 0; at < len(c.request); at += 9 + int(c.request[at+1])<<8 + int(c.request[at+2]) {
		binary.BigEndian.PutUint32(c.request[at+5:], c.id)
	}
	if _, err := c.Write(c.request); err != nil {
		return err
	}
	n, good := 0, false
	for {
		m, err := c.Read(c.buf[n:])
		if err != nil {
			return err
		}
		n += m
		in := c.buf[:n]
		for len(in) >= 9 && len(in) >= 9+int(in[2])+int(in[1])<<8 {
			size := 9 + int(in[2]) + int(in[1])<<8
			kind, flags, id := xhttp2.FrameType(in[3]), xhttp2.Flags(in[4]), binary.BigEndian.Uint32(in[5:])
			good = good || kind == xhttp2.FrameHeaders && in[10] == 0x88 // after 0x20, :status 200
			if in = in[size:]; id == c.id && flags.Has(xhttp2.FlagDataEndStream) && kind <= xhttp2.FrameHeaders {
				if !good {
					return io.ErrUnexpectedEOF
				}
				return nil
			}
		}
		n = copy(c.buf, in)
	}
}

// newLightClient2 makes one whose calls have these fields, and a body unless that
// is "".
func newLightClient2(t testing.TB, edge, body, method, path string, fields ...string) *lightClient2 {
	c := &lightClient2{Conn: dial(t, edge), buf: make([]byte, 32<<10)}
	var out bytes.Buffer
	f := &frames2{Framer: xhttp2.NewFramer(&out, nil)}
	f.enc = hpack.NewEncoder(&f.block)
	f.enc.SetMaxDynamicTableSize(0)
	f.request(1, body == "", method, path, fields...)
	if body != "" {
		f.WriteData(1, true, []byte(body))
	}
	c.request = bytes.Clone(out.Bytes())
	out.Reset()
	out.WriteString(xhttp2.ClientPreface)
	f.WriteSettings()
	f.WriteWindowUpdate(0, 1<<30)
	if _, err := c.Write(out.Bytes()); err != nil {
		t.Fatal(err)
	}
	c.id = ^uint32(0)
	return c
}

// browse2 is what a browser sends.
var browse2 = []string{"user-agent=Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
	"accept=text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "cookie=session=0123456789abcdef", "cookie=theme=dark"}

// lightApp2 answers every request over HTTP/2 when it is whole, as a page or as
// gRPC does, and allocates nothing.
func lightApp2(t testing.TB, rpc bool) (address string) {
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	enc.SetMaxDynamicTableSize(0)
	encode := func(name, value string) []byte {
		defer block.Reset()
		enc.WriteField(hpack.HeaderField{Name: name, Value: value})
		return bytes.Clone(block.Bytes())
	}
	kind, flags := "text/plain", xhttp2.FlagDataEndStream
	if rpc {
		kind, flags = "application/grpc", 0
	}
	var whole bytes.Buffer
	f := xhttp2.NewFramer(&whole, nil)
	f.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: append(encode(":status", "200"), encode("content-type", kind)...)})
	f.WriteData(1, flags != 0, []byte(frame("Hello, world!")))
	if rpc {
		f.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true, BlockFragment: encode("grpc-status", "0")})
	}
	l := listen(t)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go answer2(c, whole.Bytes())
		}
	}()
	return l.Addr().String()
}

// answer2 answers every request on c.
func answer2(c net.Conn, answer []byte) {
	defer c.Close()
	buf := make([]byte, 32<<10)
	if _, err := io.ReadFull(c, buf[:len(xhttp2.ClientPreface)]); err != nil {
		return
	}
	f := xhttp2.NewFramer(c, nil)
	f.WriteSettings()
	f.WriteWindowUpdate(0, 1<<30)
	out := bytes.Clone(answer)
	for n := 0; ; {
		m, err := c.Read(buf[n:])
		if err != nil {
			return
		}
		n += m
		in := buf[:n]
		for len(in) >= 9 && len(in) >= 9+int(in[2])+int(in[1])<<8 {
			kind, flags, id := xhttp2.FrameType(in[3]), xhttp2.Flags(in[4]), in[5:9]
			if kind <= xhttp2.FrameHeaders && flags.Has(xhttp2.FlagDataEndStream) {
				for at := 0; at < len(out); at += 9 + int(out[at+1])<<8 + int(out[at+2]) {
					copy(out[at+5:], id)
				}
				if _, err := c.Write(out); err != nil {
					return
				}
			}
			in = in[9+int(in[2])+int(in[1])<<8:]
		}
		n = copy(buf, in)
	}
}

// TestStreamsAllocateLittle: once warm, a call over HTTP/2 takes no more memory
// than is written here.
func TestStreamsAllocateLittle(t *testing.T) {
	plain := func(text string) string {
		return strings.Replace(text, "hosts: [shop.example]", "hosts: [shop.example]\n  certificate: none", 1)
	}
	light2 := strings.Replace(light, "  web:\n", "  web:\n    protocol: http2\n", 1)
	for _, test := range []struct {
		name    string
		text    string
		service string
		pair    bool
		most    float64
	}{
		{"to an application of HTTP/1.1", light, "web", false, 0},
		{"to an application of HTTP/2", light2, "web", false, 2},
		{"through two gates", light2, "web", true, 6},
		{"gRPC", plain(rpcShop), "pay", false, 5},
		{"gRPC through two gates", plain(rpcShop), "pay", true, 11},
	} {
		t.Run(test.name, func(t *testing.T) {
			rpc := test.service == "pay"
			app := lightApp2(t, rpc)
			if test.text == light {
				app = lightApp(t)
			}
			s := setup{files: rpcFiles, addresses: map[string]string{test.service: app}, records: record.Options{FlushEvery: 50 * time.Millisecond}}
			e := s.start(t, test.text)
			if !test.pair {
				o := e.orders(load(t, test.text, rpcFiles), merlon.Edge)
				o.Endpoints[test.service] = []merlon.Endpoint{{Address: app}}
				if err := e.gates[merlon.Edge].Swap(o); err != nil {
					t.Fatal(err)
				}
			}
			c := newLightClient2(t, e.edge, "", "GET", "/pages/42?utm=1", browse2...)
			if rpc {
				c = newLightClient2(t, e.edge, frame("hello"), "POST", "/pay.Pay/Charge", "content-type=application/grpc", "te=trailers")
			}
			calls := func(n int) {
				for range n {
					if err := c.call(); err != nil {
						t.Fatal(err)
					}
				}
			}
			calls(2000)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			const n = 5000
			calls(n)
			runtime.ReadMemStats(&after)
			per := float64(after.Mallocs-before.Mallocs) / n
			t.Logf("%.4f allocations and %.1f bytes a call", per, float64(after.TotalAlloc-before.TotalAlloc)/n)
			if per >= test.most+0.3+2*poolLosses {
				t.Errorf("%.4f allocations a call", per)
			}
		})
	}
}

// BenchmarkServeHTTP2 is BenchmarkServe/one over HTTP/2.
func BenchmarkServeHTTP2(b *testing.B) {
	edge := startLight(b, false, "").RemoteAddr().String()
	c := newLightClient2(b, edge, "", "GET", "/pages/42?utm=1", browse2...)
	b.ReportAllocs()
	for b.Loop() {
		if err := c.call(); err != nil {
			b.Fatal(err)
		}
	}
}
