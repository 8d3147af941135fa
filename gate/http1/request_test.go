package http1

import "testing"

func TestSmoke(t *testing.T) {
	var r Request
	for _, s := range []string{
		"GET /a?b HTTP/1.1\r\nHost: x\r\nUser-Agent:  curl \r\nX_Forwarded-For: 1\r\n\r\n",
		"POST /a?b HTTP/1.1\r\nHost: x:80\r\nContent-Length: 5\r\nConnection: close, foo\r\nFoo: 1\r\n\r\nhello",
		"POST /a?b HTTP/1.1\r\nHost: x:80\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	} {
		n, err := r.Parse([]byte(s), Limits{})
		t.Logf("%d %v %+v", n, err, r)
	}
	var c Chunks
	in := []byte("5;a=b\r\nhello\r\n0\r\n\r\nGET")
	for {
		n, data, done, err := c.Decode(in)
		t.Logf("%d %q %v %v", n, data, done, err)
		in = in[n:]
		if n == 0 || done || err != nil {
			break
		}
	}
	var p Response
	n, err := p.Parse([]byte("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"), "GET", Limits{})
	t.Logf("%d %v %+v", n, err, p)
}

const typical = "GET /api/items HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nAccept: application/json\r\nAccept-Encoding: gzip, deflate, br\r\nX-Request-Id: 0123456789abcdef\r\nConnection: keep-alive\r\n\r\n"

func BenchmarkRequestParse(b *testing.B) {
	var r Request
	buf := []byte(typical)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		if n, err := r.Parse(buf, Limits{}); n == 0 || err != nil {
			b.Fatal(err)
		}
	}
}
