package http1_test

import (
	"bufio"
	"bytes"
	"net/http"
	"strings"
	"testing"

	"merlon/gate/http1"
)

// typical is a request head of 200 bytes, the size the engine's budget is for.
const typical = "GET /api/items HTTP/1.1\r\n" +
	"Host: api.example.com\r\n" +
	"User-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n" +
	"Accept: application/json\r\n" +
	"Accept-Encoding: gzip, deflate\r\n" +
	"X-Request-Id: 0123456789abcdef\r\n" +
	"Connection: close\r\n\r\n"

// large is what a browser behind another proxy sends.
var large = "POST /api/items?q=abc&page=2 HTTP/1.1\r\n" +
	"Host: api.example.com\r\n" +
	"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n" +
	"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n" +
	"Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n" +
	"Content-Type: application/json\r\nContent-Length: 27\r\nOrigin: https://api.example.com\r\n" +
	"Connection: keep-alive\r\nReferer: https://api.example.com/\r\n" +
	"Cookie: session=" + strings.Repeat("0123456789abcdef", 16) + "; theme=dark\r\n" +
	"Authorization: Bearer " + strings.Repeat("eyJhbGciOiJFUzI1", 40) + "\r\n" +
	"Sec-Fetch-Dest: empty\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Site: same-origin\r\n" +
	"X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: api.example.com\r\n" +
	"Traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nPriority: u=4\r\n\r\n"

const typicalResponse = "HTTP/1.1 200 OK\r\nServer: app\r\nDate: Sun, 06 Nov 2026 08:49:37 GMT\r\n" +
	"Content-Type: application/json\r\nContent-Length: 1024\r\nCache-Control: no-store\r\nConnection: keep-alive\r\n\r\n"

func BenchmarkRequest(b *testing.B) {
	for _, c := range []struct{ name, raw string }{{"typical", typical}, {"large", large}} {
		raw := []byte(c.raw)
		b.Run(c.name+"/merlon", func(b *testing.B) {
			b.SetBytes(int64(len(raw)))
			b.ReportAllocs()
			var r http1.Request
			for b.Loop() {
				if n, err := r.Parse(raw, http1.Limits{}); n == 0 || err != nil {
					b.Fatal(n, err)
				}
			}
		})
		b.Run(c.name+"/net-http", func(b *testing.B) {
			b.SetBytes(int64(len(raw)))
			b.ReportAllocs()
			in := bytes.NewReader(raw)
			buf := bufio.NewReader(in)
			for b.Loop() {
				in.Reset(raw)
				buf.Reset(in)
				if _, err := http.ReadRequest(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkForward parses a head and writes the one the gate sends on.
func BenchmarkForward(b *testing.B) {
	raw, dst := []byte(typical), make([]byte, 0, 4096)
	b.ReportAllocs()
	var r http1.Request
	for b.Loop() {
		if n, err := r.Parse(raw, http1.Limits{}); n == 0 || err != nil {
			b.Fatal(n, err)
		}
		dst = http1.AppendRequestLine(dst[:0], r.Method, r.Path, r.Query)
		dst = http1.AppendField(dst, "Host", r.Host)
		dst = http1.AppendFields(dst, r.Fields, ^http1.Class(0))
		dst = http1.AppendFraming(dst, r.Body, r.Length)
		dst = http1.AppendEnd(dst)
	}
}

func BenchmarkResponse(b *testing.B) {
	raw := []byte(typicalResponse)
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	var r http1.Response
	for b.Loop() {
		if n, err := r.Parse(raw, "GET", http1.Limits{}); n == 0 || err != nil {
			b.Fatal(n, err)
		}
	}
}

func BenchmarkChunks(b *testing.B) {
	raw := http1.AppendLastChunk(http1.AppendChunk(nil, make([]byte, 4096)))
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		var c http1.Chunks
		for in, done := raw, false; !done; {
			n, _, end, err := c.Decode(in)
			if err != nil {
				b.Fatal(err)
			}
			in, done = in[n:], end
		}
	}
}
