package http1

import (
	"strings"

	"merlon/internal/httpfield"
)

const maxMethod = 20 // bytes; the longest registered one has 16

// Request is the head of one request. The zero Request is ready for Parse, and
// one Request is meant to be used for all requests of a connection.
type Request struct {
	Method string
	Target string // as received
	Path   string // of the target, raw, before any '?'; package canon makes it canonical; "" of CONNECT
	Query  string // of the target, raw, after the first '?'
	Minor  int    // 0 or 1, of HTTP/1.x
	Host   string // with its port; only its syntax is checked here
	Fields []Field
	Body   Body  // never BodyClose
	Length int64 // of the body, for BodyLength; else 0
	Close  bool  // the connection ends after this exchange; if not and Minor is 0, say keep-alive
	Expect bool  // the client waits for "100 Continue" before it sends the body
	// Upgrade is the protocol the client asks to change to; "" when it does not.
	Upgrade       string
	Authorization string
	ContentType   string
	Trailers      bool // the client takes trailers (TE: trailers, RFC 9110 10.1.4)
	Traced        bool // there is a traceparent

	seen int // bytes of an unfinished head already looked at
}

// Reset forgets the request, and with it every view into a buffer. It is only
// needed to give up a head that is not complete, or to let a buffer go.
func (r *Request) Reset() {
	fields := r.Fields[:cap(r.Fields)]
	clear(fields)
	*r = Request{Fields: fields[:0]}
}

// Parse reads the head that buf begins with and returns its length; the body,
// if any, begins there. It returns 0 and no error when the head is not
// complete: call again with the same bytes and more. What it returns does not
// depend on how the bytes were cut. An error is always an *Error.
func (r *Request) Parse(buf []byte, lim Limits) (n int, err error) {
	if len(buf) == 0 {
		return 0, nil
	}
	lim.setDefaults()
	seen := r.seen
	*r = Request{Fields: r.Fields[:0]}
	// The first byte tells TLS and most other protocols apart at once.
	switch c := buf[0]; {
	case c == '\r' || c == '\n':
		// RFC 9112 2.2 would skip it: but that is a message boundary moved.
		return 0, refuse(400, "leading_line_end")
	case c < 'A' || c > 'Z':
		return 0, refuse(400, "method_invalid")
	}
	if seen == 0 {
		n = quickEnd(buf, &lim)
	}
	if n == 0 {
		n, err = headEnd(buf, &seen, &lim)
	}
	if err != nil {
		return 0, err
	}
	if n == 0 {
		r.seen = seen
		return 0, nil
	}
	whole := buf[:n]
	if n, err = r.head(whole, &lim); err != nil {
		r.Reset()
		return 0, rank(err, whole, &lim)
	}
	return n, nil
}

// head parses the head that buf begins with and has whole.
func (r *Request) head(buf []byte, lim *Limits) (n int, err error) {
	s := view(buf)
	pos, err := r.line(s, lim)
	if err != nil {
		return 0, err
	}
	var h head
	if r.Fields, n, err = h.fields(r.Fields, buf, s, pos, lim); err != nil {
		return 0, err
	}
	if err := r.authority(&h, lim); err != nil {
		return 0, err
	}
	if err := h.options(r.Fields); err != nil {
		return 0, err
	}
	r.Authorization, r.ContentType = h.authorization, h.contentType
	r.Traced = h.count[traceParent] > 0
	r.Trailers = h.trailers && r.Minor == 1
	r.Close = h.close || r.Minor == 0 && !h.keepAlive
	chunked, err := h.chunked(r.Minor)
	switch {
	case err != nil:
		return 0, err
	case chunked:
		r.Body = BodyChunked
	case h.length >= 0:
		r.Body, r.Length = BodyLength, h.length
	}
	return n, r.intentions(&h)
}

// line parses the request line (RFC 9112 3) and returns where the first field
// begins.
func (r *Request) line(s string, lim *Limits) (pos int, err error) {
	for 'A' <= s[pos] && s[pos] <= 'Z' || s[pos] == '-' {
		pos++
	}
	r.Method = s[:pos]
	switch {
	case s[pos] != ' ':
		return 0, refuse(400, "method_invalid")
	case pos > maxMethod:
		return 0, refuse(501, "method_too_long")
	}
	start := pos + 1
	for pos = start; is(s[pos], target); pos++ {
	}
	r.Target = s[start:pos]
	switch {
	case len(r.Target) > lim.Target:
		return 0, refuse(414, "target_too_long")
	case s[pos] != ' ' && s[pos] != '\r' || r.Target == "":
		return 0, refuse(400, "target_invalid")
	case s[pos] == '\r':
		return 0, refuse(400, "version_missing") // HTTP/0.9
	}
	line, _, _ := strings.Cut(s[pos+1:], "\r")
	pos += 1 + len(line)
	switch {
	case s[pos+1] != '\n':
		return 0, refuse(400, "bare_cr")
	case line == "HTTP/1.1":
		r.Minor = 1
	case line == "HTTP/1.0":
		r.Minor = 0
	case r.Method == "PRI" && line == "HTTP/2.0":
		return 0, refuse(505, "http2_not_spoken") // RFC 9113 3.4
	case len(line) == 8 && line[:5] == "HTTP/" && httpfield.IsDigit(line[5]) && line[6] == '.' && httpfield.IsDigit(line[7]):
		return 0, refuse(505, "version_not_spoken")
	default:
		return 0, refuse(400, "version_invalid")
	}
	return pos + len("\r\n"), nil
}

// authority finds host, path and query (RFC 9112 3.2). Target and Host must
// agree, or policy and upstream could each believe another of them.
func (r *Request) authority(h *head, lim *Limits) error {
	switch r.Method {
	case "CONNECT":
		return r.connect(h, lim)
	case "TRACE", "TRACK": // would send the gate's own fields back to the caller
		return refuse(501, "trace_refused")
	}
	switch {
	case h.count[host] == 0:
		return refuse(400, "host_missing")
	case !httpfield.ValidHost(h.host):
		return refuse(400, "host_invalid")
	}
	r.Host = h.host
	rest := r.Target
	switch {
	case rest[0] == '/':
	case rest == "*":
		return refuse(400, "asterisk_form")
	case len(rest) < 7 || !equalFold(rest[:7], "http://"):
		return refuse(400, "target_invalid")
	case !lim.Absolute:
		return refuse(400, "absolute_form")
	default:
		rest = rest[7:]
		end := strings.IndexAny(rest, "/?")
		if end < 0 {
			end = len(rest)
		}
		if !equalFold(rest[:end], h.host) {
			return refuse(400, "absolute_host_differs")
		}
		rest = rest[end:]
		if rest == "" || rest[0] == '?' {
			if r.Method == "OPTIONS" {
				return refuse(400, "asterisk_form") // RFC 9112 3.2.4
			}
			r.Path, r.Query = "/", strings.TrimPrefix(rest, "?")
			return nil
		}
	}
	r.Path, r.Query, _ = strings.Cut(rest, "?")
	return nil
}

// connect takes the authority-form (RFC 9112 3.2.3): a tunnel to a host and a
// port. Older clients, of HTTP/1.0, do not repeat it as Host.
func (r *Request) connect(h *head, lim *Limits) error {
	switch {
	case !lim.Connect:
		return refuse(501, "connect_not_spoken")
	case h.count[host] == 0 && r.Minor > 0:
		return refuse(400, "host_missing")
	case !httpfield.ValidHost(r.Target):
		return refuse(400, "target_invalid")
	case h.count[host] != 0 && !equalFold(h.host, r.Target):
		return refuse(400, "connect_host_differs")
	}
	r.Host = r.Target
	return nil
}

// intentions checks what the client wants besides an answer.
func (r *Request) intentions(h *head) error {
	if r.Method == "CONNECT" && (r.Body == BodyChunked || r.Length > 0) {
		// RFC 9110 9.3.6: it has no meaning, so it would be read as the tunnel's
		// by some, and by others not.
		return refuse(400, "connect_with_body")
	}
	if h.count[expect] != 0 {
		if !equalFold(h.expect, "100-continue") {
			return refuse(417, "expect_unknown") // RFC 9110 10.1.1
		}
		r.Expect = r.Minor == 1 && (r.Body == BodyChunked || r.Length > 0)
	}
	if !h.upgrading || h.count[upgrade] == 0 || r.Minor == 0 {
		return nil // RFC 9110 7.8: without both there is no wish
	}
	switch {
	case h.upgrade == "":
		return refuse(400, "upgrade_invalid")
	case r.Body == BodyChunked || r.Length > 0:
		// Which protocol would the body be in?
		return refuse(400, "upgrade_with_body")
	}
	r.Upgrade = h.upgrade
	return nil
}
