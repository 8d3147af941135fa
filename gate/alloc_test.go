package gate_test

import (
	"bytes"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"merlon"
	"merlon/record"
)

// light is everything a call passes at the edge: a limit per client, routing,
// a rule with a limit of its own, the assertion for the application, the record.
const light = `
trustDomain: shop.example
gateway:
  hosts: [shop.example]
  certificate: none
  limit: {rate: 1000000/s, burst: 1000000}
services:
  web:
    operations: {page: 'GET /pages/{id}', send: POST /send}
    callers: {anyone: {operations: [page, send], limit: {rate: 1000000/s, burst: 1000000}}}
`

// lightAnswer is what the application of these tests answers, always.
var lightAnswer = []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\nServer: light\r\n\r\nHello, world!")

// lightApp answers every head that it sees the end of, and allocates nothing.
func lightApp(t testing.TB) (address string) {
	l := listen(t)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 32<<10)
				for n := 0; ; {
					m, err := c.Read(buf[n:])
					if err != nil {
						return
					}
					if n += m; bytes.Contains(buf[:n], []byte("\r\n\r\n")) {
						if _, err := c.Write(lightAnswer); err != nil {
							return
						}
						n = 0
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

// lightClient makes calls over one connection without allocating.
type lightClient struct {
	net.Conn
	request, buf []byte
}

func (c *lightClient) call() error {
	if _, err := c.Write(c.request); err != nil {
		return err
	}
	return c.read()
}

// read reads one answer.
func (c *lightClient) read() error {
	for n := 0; ; {
		m, err := c.Read(c.buf[n:])
		if err != nil {
			return err
		}
		if n += m; bytes.HasSuffix(c.buf[:n], []byte("Hello, world!")) {
			if !bytes.HasPrefix(c.buf[:n], []byte("HTTP/1.1 200 ")) {
				return io.ErrUnexpectedEOF
			}
			return nil
		}
	}
}

// startLight is an edge in front of a plain application, or with pair of the
// application's own gate.
func startLight(t testing.TB, pair bool, request string) *lightClient {
	return startLightWith(t, light, pair, request)
}

// startLightWith is startLight with another intent.
func startLightWith(t testing.TB, light string, pair bool, request string) *lightClient {
	s := setup{addresses: map[string]string{"web": lightApp(t)}, records: record.Options{FlushEvery: 50 * time.Millisecond}}
	e := s.start(t, light)
	o := e.orders(load(t, light, nil), merlon.Edge)
	if !pair {
		o.Endpoints["web"] = []merlon.Endpoint{{Address: e.apps["web"]}}
	}
	if err := e.gates[merlon.Edge].Swap(o); err != nil {
		t.Fatal(err)
	}
	return &lightClient{dial(t, e.edge), []byte(request), make([]byte, 16<<10)}
}

// browse is what a browser sends.
var browse = get("/pages/42?utm=1", "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
	"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "Accept-Language: en-US,en;q=0.5",
	"Accept-Encoding: gzip, deflate, br", "Cookie: session=0123456789abcdef0123456789abcdef; theme=dark")

// inTrace is what a client sends that traces its calls.
var inTrace = get("/pages/42", "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", "tracestate: a=1")

// TestServeDoesNotAllocate: once warm, a call through the whole of a gate takes
// no memory, unless its trace is sampled.
func TestServeDoesNotAllocate(t *testing.T) {
	for _, test := range []struct {
		name    string
		pair    bool
		request string
		most    float64
	}{
		{"plain", false, browse, 0},
		{"in a trace", false, inTrace, 0},
		{"not canonical", false, get("/pages/%34%32"), 0},
		{"with a body", false, "POST /send HTTP/1.1\r\nHost: Shop.Example\r\nContent-Length: 5\r\n\r\nhello", 0},
		{"over mutual TLS", true, browse, 2}, // crypto/tls takes one for each record that it reads
	} {
		t.Run(test.name, func(t *testing.T) {
			if portable && test.pair {
				test.most++ // it asks TLS whether it holds more, since it cannot know
			}
			c := startLightWith(t, light+"telemetry: {traces: {collector: 'http://127.0.0.1:9', sample: 0%}}\n", test.pair, test.request)
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
			const n = 10_000
			calls(n)
			runtime.ReadMemStats(&after)
			per := float64(after.Mallocs-before.Mallocs) / n
			t.Logf("%.4f allocations and %.1f bytes a call", per, float64(after.TotalAlloc-before.TotalAlloc)/n)
			if per >= test.most+0.08+poolLosses {
				t.Errorf("%.4f allocations a call", per)
			}
		})
	}
}

// TestWaitingHeadIsSmall: a client that is slow about its head holds one buffer,
// and none once it is served.
func TestWaitingHeadIsSmall(t *testing.T) {
	if poolLosses > 0 {
		t.Skip("the race detector makes pools forget, and memory cost more")
	}
	const n, tcp = 200, 12 << 10 // two ends, two goroutines and the record of a connection
	c := startLight(t, false, browse)
	clients := make([]net.Conn, n)
	for i := range clients {
		clients[i] = dial(t, c.RemoteAddr().String())
	}
	size := func() int {
		var m runtime.MemStats
		for range 3 { // pools let go of what nobody has used for two
			runtime.GC()
		}
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	begun := size()
	for _, nc := range clients {
		nc.Write([]byte(browse[:len(browse)/2]))
	}
	until(t, "the heads to be waited for", func() bool {
		per := (size() - begun) / n
		return (portable || per > 10<<10) && per < 16<<10+tcp
	})
	for _, nc := range clients {
		nc.Write([]byte(browse[len(browse)/2:]))
		one := lightClient{nc, nil, make([]byte, 1<<10)}
		if err := one.read(); err != nil {
			t.Fatal(err)
		}
	}
	if !portable {
		until(t, "the buffers to be given back", func() bool { return (size()-begun)/n < tcp })
	}
}

// BenchmarkServe is a call through the whole of one gate, or of a pair with
// mutual TLS between them, on one connection, with a client and an application
// that do next to nothing.
func BenchmarkServe(b *testing.B) {
	for name, pair := range map[string]bool{"one": false, "pair": true} {
		b.Run(name, func(b *testing.B) {
			c := startLight(b, pair, browse)
			b.ReportAllocs()
			for b.Loop() {
				if err := c.call(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
