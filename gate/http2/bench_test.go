package http2_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"merlon/gate/http2"
)

// typical is what curl or a library sends; its second and later requests are
// mostly indices.
var typical = []string{":method: GET", ":path: /api/items", ":scheme: https", ":authority: api.example.com",
	"user-agent: Mozilla/5.0 (X11; Linux x86_64)", "accept: application/json", "accept-encoding: gzip, deflate", "x-request-id: 0123456789abcdef"}

var answer = []http2.Field{{Name: "Server", Value: "app"}, {Name: "Date", Value: "Sun, 06 Nov 2026 08:49:37 GMT"},
	{Name: "Content-Type", Value: "application/json"}, {Name: "Content-Length", Value: "1024"}, {Name: "Cache-Control", Value: "no-store"}}

// rounds makes an endless connection: exchange feeds one more request with the
// next stream id, answers it, and passes over the output.
type rounds struct {
	t           testing.TB
	c           *http2.Conn
	first, rest []byte // frames of a request: literals, and indices
	id          uint32
	body        []byte
	now         int64
}

func newRounds(t testing.TB, lines ...string) *rounds {
	p := newPeer(t, http2.Config{})
	p.c.Sent(len(p.c.Output()))
	r := &rounds{t: t, c: p.c, id: 1, body: make([]byte, 1024)}
	p.request(1, true, lines...)
	r.first = bytes.Clone(p.in.Bytes())
	p.in.Reset()
	p.request(1, true, lines...)
	p.WriteWindowUpdate(0, 1024)
	r.rest = bytes.Clone(p.in.Bytes())
	r.exchange(r.first)
	return r
}

func (r *rounds) exchange(in []byte) {
	binary.BigEndian.PutUint32(in[5:], r.id)
	for len(in) > 0 {
		r.now += 1e6
		n, ev, err := r.c.Next(in, r.now)
		if err != nil {
			r.t.Fatal(err)
		}
		if in = in[n:]; ev.Kind != http2.Begin {
			continue
		}
		if len(ev.Request.Fields) != 4 || ev.Request.Path == "" {
			r.t.Fatal("not the request that was sent")
		}
		r.c.WriteHeaders(ev.Stream, 200, answer, 0, false)
		if n, _ := r.c.WriteData(ev.Stream, r.body, true); n != len(r.body) {
			r.t.Fatalf("took %d", n)
		}
		r.c.Done(ev.Stream)
	}
	r.c.Sent(len(r.c.Output()))
	if r.id += 2; r.id > 1<<30 {
		r.t.Fatal("too many rounds")
	}
}

// TestRequestAllocatesNothing: neither indices nor literals make garbage.
func TestRequestAllocatesNothing(t *testing.T) {
	for name, literal := range map[string]bool{"indices": false, "literals": true} {
		r := newRounds(t, typical...)
		in := r.rest
		if literal {
			in = r.first
		}
		round := func() { r.exchange(in) }
		if literal { // its windows are not opened again
			r.body = nil
		}
		for range 100 {
			round()
		}
		if n := testing.AllocsPerRun(1000, round); n > poolLosses {
			t.Errorf("%s: %v allocations per request", name, n)
		}
	}
}

func BenchmarkRequest(b *testing.B) {
	for name, literal := range map[string]bool{"indices": false, "literals": true} {
		b.Run(name, func(b *testing.B) {
			r := newRounds(b, typical...)
			in := r.rest
			if literal {
				in, r.body = r.first, nil
			}
			b.ReportAllocs()
			for b.Loop() {
				r.exchange(in)
			}
		})
	}
}
