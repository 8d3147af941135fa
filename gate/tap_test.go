package gate_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"
)

// tap stands between a gate and its backend and keeps what the gate sends.
type tap struct {
	address string
	mu      sync.Mutex
	conns   []*tapped
}

// tapped is one connection from the gate.
type tapped struct {
	sent  []byte // and not yet part of a whole request
	ended bool
}

func newTap(t testing.TB, backend string) *tap {
	l := listen(t)
	t.Cleanup(func() { l.Close() })
	tp := &tap{address: l.Addr().String()}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go tp.relay(c, backend)
		}
	}()
	return tp
}

func (tp *tap) relay(c net.Conn, backend string) {
	defer c.Close()
	to, err := net.Dial("tcp", backend)
	if err != nil {
		return
	}
	defer to.Close()
	kept := new(tapped)
	tp.mu.Lock()
	tp.conns = append(tp.conns, kept)
	tp.mu.Unlock()
	back := make(chan struct{})
	go func() {
		defer close(back)
		io.Copy(c, to)
		c.(*net.TCPConn).CloseWrite()
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := c.Read(buf)
		tp.mu.Lock()
		kept.sent = append(kept.sent, buf[:n]...)
		kept.ended = err != nil
		tp.mu.Unlock()
		if n > 0 {
			to.Write(buf[:n])
		}
		if err != nil {
			break
		}
	}
	to.(*net.TCPConn).CloseWrite()
	<-back
}

// take returns the requests that have come since the last time. Those that are
// not whole, and never will be, are there too.
func (tp *tap) take() (all []reading, waiting bool, err error) {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	tp.conns = slices.DeleteFunc(tp.conns, func(c *tapped) bool {
		for len(c.sent) > 0 && err == nil {
			r, n, bad := strictRequest(c.sent)
			switch {
			case bad != nil:
				err = fmt.Errorf("the gate sent what is no request: %w: %q", bad, c.sent)
			case r.Whole:
				all, c.sent = append(all, r), c.sent[n:]
			case !c.ended:
				waiting = true
				return false
			case n == 0:
				err = fmt.Errorf("the gate broke off in a head: %q", c.sent)
			default:
				all, c.sent = append(all, r), nil
			}
		}
		return c.ended
	})
	return all, waiting, err
}

var (
	requestLine = regexp.MustCompile(`^([!#$%&'*+.^_|~0-9A-Za-z-]+) (/[!-~]*) HTTP/1\.1$`)
	fieldLine   = regexp.MustCompile("^([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?(|[!-~\u00a0-\U0010ffff]|[!-~\u00a0-\U0010ffff][\t -~\u00a0-\U0010ffff]*[!-~\u00a0-\U0010ffff])$")
	chunkLine   = regexp.MustCompile(`^[0-9a-f]+$`)
	lengthValue = regexp.MustCompile(`^(0|[1-9][0-9]{0,17})$`)
)

// strictRequest reads the request that b begins with, and takes nothing that
// could be read in another way. n is 0 while its head is not whole. It shares
// no code with the gate, and net/http must read the same.
func strictRequest(b []byte) (r reading, n int, err error) {
	head, _, whole := strings.Cut(string(b), "\r\n\r\n")
	if !whole {
		return r, 0, nil
	}
	lines := strings.Split(head, "\r\n")
	first := requestLine.FindStringSubmatch(lines[0])
	if first == nil {
		return r, 0, fmt.Errorf("request line %q", lines[0])
	}
	r = reading{Method: first[1], Target: first[2], Fields: map[string]string{}}
	seen := map[string]int{}
	for _, line := range lines[1:] {
		m := fieldLine.FindStringSubmatch(line)
		if m == nil || !utf8.ValidString(line) {
			return r, 0, fmt.Errorf("field line %q", line)
		}
		r.join(m[1], m[2])
		seen[strings.ToLower(m[1])]++
	}
	if seen["host"] != 1 || seen["merlon-request-id"] != 1 || seen["content-length"]+seen["transfer-encoding"] > 1 ||
		seen["upgrade"]+seen["trailer"]+seen["expect"]+seen["keep-alive"]+seen["proxy-connection"] > 0 {
		return r, 0, errors.New("fields that frame or name it are missing, repeated or hop by hop")
	}
	// That trailers are understood is the one thing that is said about the
	// connection, always in the same words.
	if said := r.Fields["connection"] + "/" + r.Fields["te"]; said != "/" && said != "TE/trailers" {
		return r, 0, fmt.Errorf("connection %q, TE %q", r.Fields["connection"], r.Fields["te"])
	}
	r.Host, r.ID = r.Fields["host"], r.Fields["merlon-request-id"]
	n = len(head) + 4
	switch length, coding := r.Fields["content-length"], r.Fields["transfer-encoding"]; {
	case seen["transfer-encoding"] == 1:
		if coding != "chunked" {
			return r, 0, fmt.Errorf("coding %q", coding)
		}
		var used int
		if r.Body, used, r.Whole, err = strictChunks(string(b[n:])); err != nil {
			return r, 0, err
		}
		n += used
	case seen["content-length"] == 1:
		if !lengthValue.MatchString(length) {
			return r, 0, fmt.Errorf("length %q", length)
		}
		want, _ := strconv.Atoi(length)
		r.Whole = want <= len(b)-n
		r.Body = string(b[n : n+min(want, len(b)-n)])
		n += len(r.Body)
	default:
		r.Whole = true
	}
	return r, n, asStandard(b, &r)
}

func strictChunks(b string) (body string, used int, whole bool, err error) {
	for {
		size, rest, ok := strings.Cut(b[used:], "\r\n")
		if !ok {
			return body, len(b), false, nil
		}
		if !chunkLine.MatchString(size) {
			return "", 0, false, fmt.Errorf("chunk size %q", size)
		}
		n, err := strconv.ParseInt(size, 16, 32)
		if err != nil {
			return "", 0, false, err
		}
		if len(rest) < int(n)+2 {
			return body + rest[:min(len(rest), int(n))], len(b), false, nil
		}
		if rest[n:n+2] != "\r\n" {
			return "", 0, false, fmt.Errorf("%q after a chunk", rest[n:n+2])
		}
		body += rest[:n]
		used += len(size) + 2 + int(n) + 2
		if n == 0 {
			return body, used, true, nil
		}
	}
}

// asStandard holds a reading to that of net/http.
func asStandard(b []byte, r *reading) error {
	std, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
	if err != nil {
		return fmt.Errorf("net/http does not read it: %w", err)
	}
	body, err := io.ReadAll(std.Body)
	if std.Method != r.Method || std.RequestURI != r.Target || std.Host != r.Host || string(body) != r.Body || r.Whole != (err == nil) {
		return fmt.Errorf("net/http reads %s %s %s, a body of %d bytes, %v", std.Method, std.RequestURI, std.Host, len(body), err)
	}
	for name, values := range std.Header {
		if got := strings.Join(values, ", "); got != r.Fields[strings.ToLower(name)] {
			return fmt.Errorf("net/http reads %q for %s, not %q", got, name, r.Fields[strings.ToLower(name)])
		}
	}
	return nil
}
