package http2_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"merlon/gate/http2"
)

// client is Go's HTTP/2 client over plain TCP.
func client(t testing.TB, addr net.Addr) *http.Client {
	tr := &http.Transport{
		Protocols: new(http.Protocols),
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr.String())
		},
	}
	tr.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// TestGoClient speaks to Go's client: bodies of all sizes both ways, at once,
// with and without a length, with trailers.
func TestGoClient(t *testing.T) {
	t.Parallel()
	failed := func(err error) { t.Errorf("the core ended the connection: %v", err) }
	for _, cfg := range []http2.Config{{}, {StreamWindow: 1 << 20, ConnWindow: 1 << 22, Output: 1000}} {
		c := client(t, listen(t, cfg, failed))
		var all sync.WaitGroup
		for worker := range 8 {
			all.Add(1)
			go func() {
				defer all.Done()
				rnd := rand.New(rand.NewPCG(1, uint64(worker)))
				for range 40 {
					if err := echo(c, rnd); err != nil {
						t.Error(err)
						return
					}
				}
			}()
		}
		all.Wait()
	}
}

// echo sends one random request and compares the answer.
func echo(c *http.Client, rnd *rand.Rand) error {
	size := []int{0, 1, 100, 16384, 16385, 70000, 300000}[rnd.IntN(7)]
	body := make([]byte, size)
	for i := range body {
		body[i] = byte(rnd.Uint32())
	}
	var r io.Reader = bytes.NewReader(body)
	if rnd.IntN(2) == 0 {
		r = struct{ io.Reader }{r} // of unknown length
	}
	req, err := http.NewRequest("POST", "http://shop.example/a/b?c=d", r)
	if err != nil {
		return err
	}
	req.Header.Set("X-Field", strings.Repeat("v", rnd.IntN(1000)))
	trailers := req.ContentLength < 0 && rnd.IntN(2) == 0
	if trailers {
		req.Trailer = http.Header{"X-Sum": {"1234"}}
	}
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		return fmt.Errorf("%d bytes: %w", size, err)
	case res.Header.Get("X-Asked") != "POST http shop.example /a/b c=d":
		return fmt.Errorf("asked %q", res.Header.Get("X-Asked"))
	case res.Header.Get("X-Got-X-Field") != req.Header.Get("X-Field"):
		return fmt.Errorf("the field came as %q", res.Header.Get("X-Got-X-Field"))
	case size > 0 && !bytes.Equal(got, body):
		return fmt.Errorf("%d bytes came back as %d", size, len(got))
	case trailers && size > 0 && res.Trailer.Get("X-Sum") != "1234":
		return fmt.Errorf("trailers %v", res.Trailer)
	}
	return nil
}

// TestGoClientLargeAnswer: a body larger than all windows and buffers.
func TestGoClientLargeAnswer(t *testing.T) {
	t.Parallel()
	c := client(t, listen(t, http2.Config{}, nil))
	res, err := c.Get("http://shop.example/bytes/5000000")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if n, err := io.Copy(io.Discard, res.Body); n != 5000000 || err != nil {
		t.Error(n, err)
	}
}

// TestGoClientRefused: a request that is refused leaves the connection alone.
func TestGoClientRefused(t *testing.T) {
	t.Parallel()
	c := client(t, listen(t, http2.Config{}, func(err error) { t.Errorf("the core ended the connection: %v", err) }))
	for i := range 20 {
		req, _ := http.NewRequest("GET", "http://shop.example/", nil)
		if i%2 == 0 {
			req.Header.Set("Merlon_Caller", "me")
		}
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if want := []int{400, 200}[i%2]; res.StatusCode != want {
			t.Errorf("status %d, want %d", res.StatusCode, want)
		}
	}
}

// TestGoClientCancels: streams that end early leave nothing behind.
func TestGoClientCancels(t *testing.T) {
	t.Parallel()
	c := client(t, listen(t, http2.Config{}, func(err error) { t.Errorf("the core ended the connection: %v", err) }))
	for range 150 { // more than there may be at once
		ctx, cancel := context.WithCancel(t.Context())
		req, _ := http.NewRequestWithContext(ctx, "GET", "http://shop.example/bytes/1000000", nil)
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		res.Body.Close()
	}
	res, err := c.Get("http://shop.example/bytes/1000000")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if n, err := io.Copy(io.Discard, res.Body); n != 1000000 || err != nil {
		t.Error(n, err)
	}
}
