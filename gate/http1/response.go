package http1

import (
	"errors"

	"merlon/internal/httpfield"
)

// Response is the head of one response. The zero Response is ready for Parse,
// and one Response is meant to be used for all responses of a connection.
type Response struct {
	Status      int // 100 to 599
	Minor       int // 0 or 1, of HTTP/1.x
	Reason      string
	Fields      []Field
	Body        Body
	Length      int64 // what Content-Length says, also where no body comes (HEAD, 304); -1 without it
	Close       bool  // the connection ends after this response
	ContentType string
	Upgrade     string // with Status 101: the protocol changed to

	seen int
}

// Reset forgets the response, and with it every view into a buffer.
func (r *Response) Reset() {
	fields := r.Fields[:cap(r.Fields)]
	clear(fields)
	*r = Response{Fields: fields[:0]}
}

// Parse reads the head of the response to a request with the given method, as
// Request.Parse does. An interim response (Status 1xx but 101) is followed by
// another head; the reader bounds how many it takes. Every refusal has Status 502: a response that can be read in
// two ways would answer the next client with somebody else's bytes.
func (r *Response) Parse(buf []byte, method string, lim Limits) (n int, err error) {
	lim.setDefaults()
	seen := r.seen
	*r = Response{Fields: r.Fields[:0]}
	for i := 0; i < len(buf) && i < 7; i++ {
		if buf[i] != "HTTP/1."[i] {
			return 0, refuse(502, "status_line_invalid")
		}
	}
	if seen == 0 {
		n = quickEnd(buf, &lim)
	}
	if n == 0 {
		n, err = headEnd(buf, &seen, &lim)
	}
	if err != nil {
		return 0, badGateway(err)
	}
	if n == 0 {
		r.seen = seen
		return 0, nil
	}
	whole := buf[:n]
	if n, err = r.head(whole, method, &lim); err != nil {
		r.Reset()
		return 0, badGateway(rank(err, whole, &lim))
	}
	return n, nil
}

// badGateway is err as the fault of an upstream.
func badGateway(err error) error {
	var e *Error
	if errors.As(err, &e) {
		e.Status = 502
	}
	return err
}

// head parses the head that buf begins with and has whole.
func (r *Response) head(buf []byte, method string, lim *Limits) (n int, err error) {
	s := view(buf)
	h := head{response: true}
	pos, err := r.line(&h, buf, s)
	if err != nil {
		return 0, err
	}
	if r.Fields, n, err = h.fields(r.Fields, buf, s, pos, lim); err != nil {
		return 0, err
	}
	if err := h.options(r.Fields); err != nil {
		return 0, err
	}
	r.Length, r.ContentType = h.length, h.contentType
	r.Close = h.close || r.Minor == 0 && !h.keepAlive
	return n, r.framing(&h, method)
}

// framing decides where the body ends (RFC 9112 6.3).
func (r *Response) framing(h *head, method string) error {
	chunked, err := h.chunked(r.Minor)
	switch {
	case err != nil:
		return err
	case r.Status < 200 || r.Status == 204 || method == "CONNECT" && r.Status < 300:
		if chunked || r.Length > 0 {
			// Some would wait for that body, some take it for the next response, or
			// for the first bytes of a tunnel (RFC 9110 9.3.6).
			return refuse(502, "body_forbidden")
		}
		if r.Status == 101 {
			if !h.upgrading || h.upgrade == "" || r.Minor == 0 {
				return refuse(502, "upgrade_invalid")
			}
			r.Upgrade = h.upgrade
		}
		r.Body = BodyNone
	case method == "HEAD" || r.Status == 304:
		r.Body = BodyNone
	case chunked:
		r.Body = BodyChunked
	case r.Length >= 0:
		r.Body = BodyLength
	default:
		r.Body, r.Close = BodyClose, true
	}
	return nil
}

// line parses the status line (RFC 9112 4) and returns where the first field
// begins. A reason phrase may be missing together with the space before it. No
// index is out of range: four bytes follow any byte before the blank line.
func (r *Response) line(h *head, buf []byte, s string) (pos int, err error) {
	const start = len("HTTP/1.1 ")
	if s[7] != '0' && s[7] != '1' || s[8] != ' ' {
		return 0, refuse(502, "status_line_invalid")
	}
	r.Minor = int(s[7] - '0')
	if s[start] < '1' || s[start] > '5' || !httpfield.IsDigit(s[start+1]) || !httpfield.IsDigit(s[start+2]) {
		return 0, refuse(502, "status_invalid")
	}
	r.Status = int(s[start]-'0')*100 + int(s[start+1]-'0')*10 + int(s[start+2]-'0')
	pos = start + 3
	switch s[pos] {
	case '\r':
	case ' ':
		pos++
	default:
		return 0, refuse(502, "status_invalid")
	}
	end, err := h.value(buf, pos)
	if err != nil {
		return 0, err
	}
	r.Reason = s[pos:end]
	return end + len("\r\n"), nil
}
