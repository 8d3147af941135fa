package http1_test

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"net/http/httputil"
	"slices"
	"strings"
	"testing"

	"merlon/gate/http1"
)

// FuzzRequest holds every input to three promises: the cut does not matter;
// what is accepted, written again, is accepted and says the same; and where
// net/http accepts it too, it says the same.
func FuzzRequest(f *testing.F) {
	for _, s := range samples(f, "ambiguous.txt") {
		f.Add([]byte(s.raw))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 2000 {
			return
		}
		whole := parse(string(raw))
		if slow := parseSlowly(string(raw)); slow != whole {
			t.Fatalf("whole %+v, byte by byte %+v", whole, slow)
		}
		if whole.n == 0 {
			return
		}
		var r http1.Request
		n, _ := r.Parse(raw, limits)
		again := http1.AppendRequestLine(nil, r.Method, r.Path, r.Query)
		again = http1.AppendFields(again, r.Fields, 0)
		again = http1.AppendEnd(again)
		if r.Minor == 0 {
			again = bytes.Replace(again, []byte("HTTP/1.1"), []byte("HTTP/1.0"), 1)
		}
		var r2 http1.Request
		// A head may grow by the spaces after its colons.
		n2, err := r2.Parse(again, http1.Limits{Head: 4000, Field: 1000})
		if err != nil || n2 != len(again) {
			t.Fatalf("%q is accepted, %q is not: %v", raw[:n], again, err)
		}
		if r.Method != r2.Method || r.Path != r2.Path || r.Query != r2.Query || r.Host != r2.Host || r.Body != r2.Body || r.Length != r2.Length ||
			r.Close != r2.Close || r.Expect != r2.Expect || r.Upgrade != r2.Upgrade || !slices.Equal(r.Fields, r2.Fields) {
			t.Fatalf("%q became %q", raw[:n], again)
		}
		sameAsStandard(t, &r, raw)
	})
}

// sameAsStandard compares r, parsed from raw, with what net/http reads.
func sameAsStandard(t *testing.T, r *http1.Request, raw []byte) {
	std, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
	if err != nil {
		return
	}
	length := r.Length
	if r.Body == http1.BodyChunked {
		length = -1
	}
	if std.Method != r.Method || std.RequestURI != r.Target || std.Host != r.Host || std.ContentLength != length ||
		(r.Body == http1.BodyChunked) != slices.Equal(std.TransferEncoding, []string{"chunked"}) {
		t.Fatalf("net/http reads %s %s %s, %d bytes %v; this package %s %s %s, %v of %d", std.Method, std.RequestURI, std.Host,
			std.ContentLength, std.TransferEncoding, r.Method, r.Target, r.Host, r.Body, r.Length)
	}
	for _, field := range r.Fields {
		if field.Class&(http1.Framing|http1.HopByHop) != 0 {
			continue // net/http takes them out
		}
		if values := std.Header.Values(field.Name); !slices.Contains(values, field.Value) {
			t.Fatalf("net/http has %q for %q, this package %q", values, field.Name, field.Value)
		}
	}
}

// FuzzResponse: the cut does not matter, and where net/http accepts a response
// too, it finds the same status and framing.
func FuzzResponse(f *testing.F) {
	for _, s := range samples(f, "responses.txt") {
		f.Add([]byte(s.raw), s.method)
	}
	f.Fuzz(func(t *testing.T, raw []byte, method string) {
		if len(raw) > 2000 || method != "GET" && method != "HEAD" {
			return
		}
		whole := response(string(raw), method)
		var r http1.Response
		for i := range len(raw) + 1 {
			if n, err := r.Parse(raw[:i], method, limits); n != 0 || err != nil {
				if slow := responseOf(&r, n, err); slow != whole {
					t.Fatalf("whole %s, byte by byte %s", whole, slow)
				}
				break
			}
		}
		if !strings.HasPrefix(whole, "ok") {
			return
		}
		if _, err := r.Parse(raw, method, limits); err != nil {
			t.Fatal(err)
		}
		std, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(raw)), &http.Request{Method: method})
		if err != nil {
			return
		}
		chunked := slices.Equal(std.TransferEncoding, []string{"chunked"})
		if std.StatusCode != r.Status || r.Body == http1.BodyChunked && !chunked ||
			r.Body == http1.BodyLength && std.ContentLength != r.Length ||
			r.Body == http1.BodyClose && std.ContentLength != -1 {
			t.Fatalf("net/http reads %d, %d bytes, %v; this package %d, %v of %d", std.StatusCode, std.ContentLength, std.TransferEncoding, r.Status, r.Body, r.Length)
		}
	})
}

// FuzzChunks: the cut does not matter, and where net/http decodes a body that
// this package accepts, it finds the same data.
func FuzzChunks(f *testing.F) {
	for _, s := range samples(f, "ambiguous.txt") {
		if head, body, ok := strings.Cut(s.raw, "\r\n\r\n"); ok && strings.Contains(head, "chunked") {
			f.Add([]byte(body))
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		body, used, done, err := decode(raw, len(raw)+1)
		body1, used1, done1, err1 := decode(raw, 1)
		if !bytes.Equal(body, body1) || used != used1 || done != done1 || (err == nil) != (err1 == nil) || err != nil && reasonOf(err) != reasonOf(err1) {
			t.Fatalf("whole %q %d %v %v, byte by byte %q %d %v %v", body, used, done, err, body1, used1, done1, err1)
		}
		if !done {
			return
		}
		std, err := io.ReadAll(httputil.NewChunkedReader(bytes.NewReader(raw[:used])))
		if err == nil && !bytes.Equal(std, body) {
			t.Fatalf("net/http decodes %q, this package %q", std, body)
		}
	})
}
