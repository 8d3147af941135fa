package http1_test

import (
	"bytes"
	"testing"

	"merlon/gate/http1"
)

// decode reads a whole chunked body, given at most step bytes at a time.
func decode(raw []byte, step int) (body []byte, used int, done bool, err error) {
	var c http1.Chunks
	for used < len(raw) {
		in := raw[used:min(len(raw), used+step)]
		for len(in) > 0 {
			n, data, done, err := c.Decode(in)
			body = append(body, data...)
			used += n
			if done || err != nil {
				return body, used, done, err
			}
			in = in[n:]
		}
	}
	return body, used, false, nil
}

// TestChunksRoundTrip: what the encoder writes the decoder reads, cut anywhere,
// and not a byte more.
func TestChunksRoundTrip(t *testing.T) {
	t.Parallel()
	var want, raw []byte
	for n := range 40 {
		data := bytes.Repeat([]byte{byte(n)}, n*n)
		want = append(want, data...)
		raw = http1.AppendChunk(raw, data)
	}
	raw = http1.AppendLastChunk(raw)
	end := len(raw)
	raw = append(raw, "GET / HTTP/1.1\r\n"...)
	for _, step := range []int{1, 2, 3, 7, 64, 1000, len(raw)} {
		body, used, done, err := decode(raw, step)
		if err != nil || !done || used != end || !bytes.Equal(body, want) {
			t.Errorf("%d bytes at a time: %d bytes of body from %d, done %v, %v", step, len(body), used, done, err)
		}
	}
}

// TestChunksStayBroken: after a refusal nothing more is decoded.
func TestChunksStayBroken(t *testing.T) {
	t.Parallel()
	var c http1.Chunks
	if _, _, _, err := c.Decode([]byte("x")); err == nil || reasonOf(err) != "chunk_size_invalid" {
		t.Errorf("got %v", err)
	}
	if n, data, done, err := c.Decode([]byte("5\r\nhello\r\n")); n != 0 || data != nil || done || err == nil || reasonOf(err) != "chunk_broken" {
		t.Errorf("got %d, %q, %v, %v", n, data, done, err)
	}
}

// TestChunksDone: after the end nothing more is consumed.
func TestChunksDone(t *testing.T) {
	t.Parallel()
	var c http1.Chunks
	for _, in := range []string{"0\r\n\r\n", "GET"} {
		n, _, done, err := c.Decode([]byte(in))
		if want := len(in) - len(in)%5; n != want || !done || err != nil {
			t.Errorf("%q: %d, %v, %v", in, n, done, err)
		}
	}
}

func TestChunksAllocateNothing(t *testing.T) {
	raw := http1.AppendLastChunk(http1.AppendChunk(nil, make([]byte, 1000)))
	allocs := testing.AllocsPerRun(100, func() {
		var c http1.Chunks
		for in := raw; ; {
			n, _, done, err := c.Decode(in)
			if err != nil {
				t.Fatal(err)
			}
			if in = in[n:]; done {
				return
			}
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations per run", allocs)
	}
}
