package gate_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"

	"merlon"
)

// halting is a body that comes in two pieces, the second after more.
type halting struct {
	pieces []string
	more   chan struct{}
	once   sync.Once
}

// goOn has the second piece come.
func (h *halting) goOn() { h.once.Do(func() { close(h.more) }) }

func (h *halting) Read(b []byte) (int, error) {
	if len(h.pieces) == 1 {
		<-h.more
	}
	if len(h.pieces) == 0 {
		return 0, io.EOF
	}
	n := copy(b, h.pieces[0])
	if h.pieces[0] = h.pieces[0][n:]; h.pieces[0] == "" {
		h.pieces = h.pieces[1:]
	}
	return n, nil
}

// TestUpstreamHTTP2RefusedBody: a call that was refused while its body was on the
// way is sent again whole, as long as that is all still there.
func TestUpstreamHTTP2RefusedBody(t *testing.T) {
	t.Parallel()
	refuse := func(f *frames2, id uint32) { f.WriteRSTStream(id, xhttp2.ErrCodeRefusedStream) }
	for _, test := range []struct {
		name   string
		first  int // bytes of the body that come before the refusal
		refuse func(f *frames2, id uint32)
		status int
	}{
		{"refused", 10, refuse, 200},
		{"gone away", 10, func(f *frames2, id uint32) { f.WriteGoAway(0, xhttp2.ErrCodeNo, nil) }, 200},
		{"much", 15 << 10, refuse, 200},
		{"too much", 40 << 10, refuse, 502},
		{"another reason", 10, func(f *frames2, id uint32) { f.WriteRSTStream(id, xhttp2.ErrCodeInternal) }, 502},
	} {
		for _, whole := range []bool{false, true} {
			t.Run(fmt.Sprint(test.name, whole), func(t *testing.T) {
				t.Parallel()
				const end = "the end"
				body := &halting{pieces: []string{strings.Repeat("x", test.first), end}, more: make(chan struct{})}
				var calls atomic.Int64
				var got bytes.Buffer
				addr := scripted2(t, func(n int, f *frames2) {
					came := 0
					var second uint32
					for {
						fr, err := f.ReadFrame()
						if err != nil {
							return
						}
						data, ok := fr.(*xhttp2.DataFrame)
						if h, is := fr.(*xhttp2.HeadersFrame); is && calls.Add(1) == 2 {
							second = h.StreamID
						}
						switch {
						case !ok:
						case data.StreamID == second:
							if got.Write(data.Data()); data.StreamEnded() {
								f.answer(second, "read")
							} else if !whole && got.Len() == test.first {
								body.goOn()
							}
						default:
							came += len(data.Data())
							if came == test.first && whole {
								body.goOn() // and all of it comes before the refusal
							}
							if came == test.first && !whole || data.StreamEnded() {
								test.refuse(f, data.StreamID)
							}
						}
					}
				})
				e := setup{addresses: map[string]string{"web": addr}}.start(t, shop2)
				res, err := e.client2().Post("https://shop.example/send", "a/b", body)
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
				text, err := io.ReadAll(res.Body)
				body.goOn()
				if err != nil || res.StatusCode != test.status || test.status == 200 && string(text) != "read" {
					t.Fatalf("%d %q %v", res.StatusCode, text, err)
				}
				if want := strings.Repeat("x", test.first) + end; test.status == 200 && got.String() != want {
					t.Errorf("the second upstream read %d bytes of %d", got.Len(), len(want))
				}
				if n := calls.Load(); test.status != 200 && n != 1 {
					t.Errorf("%d calls", n)
				}
			})
		}
	}
}

// streamed sends n calls with bodies of unknown length by each of some clients at
// once, and reports every one that fails.
func streamed(t *testing.T, e *estate, n int, url, kind, body string, well func(*http.Response, []byte) bool) {
	var all sync.WaitGroup
	for range 4 {
		c := e.client2()
		for range 4 {
			all.Go(func() {
				for range n {
					res, err := c.Post(url, kind, struct{ io.Reader }{strings.NewReader(body)})
					if err != nil {
						t.Error(err)
						return
					}
					text, err := io.ReadAll(res.Body)
					res.Body.Close()
					if err != nil || !well(res, text) {
						t.Errorf("%d %s %q %v, trailers %v", res.StatusCode, res.Header, text, err, res.Trailer)
						return
					}
				}
			})
		}
	}
	all.Wait()
}

// TestUpstreamHTTP2GoAway: an upstream that goes away again and again while calls
// are on their way to it, naming the last that it has taken, fails none.
func TestUpstreamHTTP2GoAway(t *testing.T) {
	t.Parallel()
	var conns, dropped atomic.Int64
	addr := scripted2(t, func(n int, f *frames2) {
		conns.Add(1)
		served, last, gone := 0, uint32(0), false
		began := map[uint32]bool{}
		for {
			fr, err := f.ReadFrame()
			if err != nil {
				return
			}
			id := fr.Header().StreamID
			switch fr.(type) {
			case *xhttp2.HeadersFrame:
				if gone {
					dropped.Add(1)
					continue
				}
				began[id] = true
			case *xhttp2.DataFrame:
			default:
				continue
			}
			if !fr.Header().Flags.Has(xhttp2.FlagDataEndStream) || gone && id > last {
				continue
			}
			delete(began, id)
			f.answer(id, "read")
			if last = max(last, id); !gone && served >= 40 && (len(began) > 0 || served >= 80) {
				f.WriteGoAway(last, xhttp2.ErrCodeNo, nil)
				gone = true
				for id := range began {
					if id > last {
						dropped.Add(1)
					}
				}
			}
			served++
		}
	})
	e := setup{addresses: map[string]string{"web": addr}}.start(t, shop2)
	for round := 0; dropped.Load() < 10 && round < 50; round++ {
		streamed(t, e, 20, "https://shop.example/send", "a/b", "body", func(res *http.Response, text []byte) bool {
			return res.StatusCode == 200 && string(text) == "read"
		})
	}
	if n := dropped.Load(); n < 10 {
		t.Errorf("%d connections, %d calls dropped", conns.Load(), n)
	}
}

// TestMaxConnectionAge: a server of grpc-go that ends its connections by their
// age, under load, fails no call.
func TestMaxConnectionAge(t *testing.T) {
	t.Parallel()
	lis := &countingListener{Listener: listen(t)}
	s := grpc.NewServer(grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: 20 * time.Millisecond, MaxConnectionAgeGrace: 10 * time.Second}),
		grpc.ForceServerCodecV2(asIs{}), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
			var message mem.BufferSlice
			if err := stream.RecvMsg(&message); err != nil {
				return err
			}
			return stream.SendMsg(message)
		}))
	go s.Serve(lis)
	t.Cleanup(s.Stop)
	e := setup{files: rpcFiles, addresses: map[string]string{"pay": lis.Addr().String()}}.start(t, rpcShop)
	for round := 0; lis.accepted.Load() < 8 && round < 50; round++ {
		streamed(t, e, 20, "https://shop.example/pay.Pay/Charge", "application/grpc", frame("hello"), func(res *http.Response, text []byte) bool {
			return res.StatusCode == 200 && string(text) == frame("hello") && res.Trailer.Get("Grpc-Status") == "0"
		})
	}
	if n := lis.accepted.Load(); n < 8 {
		t.Errorf("%d connections", n)
	}
}

// countingListener counts the connections that it accepts.
type countingListener struct {
	net.Listener
	accepted atomic.Int64
}

func (l *countingListener) Accept() (net.Conn, error) {
	l.accepted.Add(1)
	return l.Listener.Accept()
}

// asIs is a codec that leaves messages as they are.
type asIs struct{}

func (asIs) Name() string                           { return "proto" }
func (asIs) Marshal(v any) (mem.BufferSlice, error) { return v.(mem.BufferSlice), nil }
func (asIs) Unmarshal(b mem.BufferSlice, v any) error {
	*v.(*mem.BufferSlice) = mem.BufferSlice{mem.SliceBuffer(b.Materialize())}
	return nil
}

// TestUpstreamHTTP2Drain: a gate that leaves lets the streams to its upstreams
// end, and tells them that no more will come.
func TestUpstreamHTTP2Drain(t *testing.T) {
	t.Parallel()
	begun, release, closed := make(chan struct{}), make(chan struct{}), make(chan struct{})
	addr := scripted2(t, func(n int, f *frames2) {
		defer close(closed)
		f.each(func(id uint32) {
			f.block.Reset()
			f.enc.WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
			f.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: id, BlockFragment: f.block.Bytes(), EndHeaders: true})
			f.WriteData(id, false, []byte("first "))
			close(begun)
			<-release
			f.WriteData(id, true, []byte("last"))
		})
	})
	e := setup{addresses: map[string]string{"web": addr}}.start(t, shop2)
	res, err := e.client2().Get("https://shop.example/pages/1")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	<-begun
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	drained := make(chan error, 1)
	go func() { drained <- e.gates[merlon.Edge].Drain(ctx) }()
	until(t, "the gate to leave", func() bool {
		nc, err := net.Dial("tcp", e.edge)
		if err == nil {
			nc.Close()
		}
		return err != nil
	})
	close(release)
	if text, err := io.ReadAll(res.Body); string(text) != "first last" || err != nil {
		t.Errorf("%q %v", text, err)
	}
	if err := <-drained; err != nil {
		t.Error(err)
	}
	if err := e.gates[merlon.Place{Service: "web"}].Drain(ctx); err != nil {
		t.Error(err)
	}
	<-closed
}
