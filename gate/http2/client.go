package http2

import (
	"strconv"

	"merlon/internal/httpfield"
)

// Response is the head of one answer, to a client.
type Response struct {
	Status int
	Fields []Field // without :status
	Length int64   // as content-length says, also where no body comes (HEAD, 304); -1 when it does not

	list
}

// Room is how many streams a client may open now.
func (c *Conn) Room() int {
	if c.Leaving() {
		return 0
	}
	return max(0, c.most-len(c.ids))
}

// Leaving reports whether Room is none for ever.
func (c *Conn) Leaving() bool {
	return c.err != nil || c.peerGoing || c.going != staying || c.newest >= maxWindow-1
}

// Ping asks the peer whether it is there; that it is, anything that comes says.
func (c *Conn) Ping() {
	c.out = append(appendFrame(c.out, len(presentPing), framePing, 0, 0), presentPing...)
}

const presentPing = "present?"

// Open begins a stream with a request: those fields that have no class in drop,
// after Method, Scheme, Host, Path, Query and Protocol; te as Trailers says. All of
// them must come from a parsed head. With end there is no body. The work of the
// stream ends with Done. It returns ErrFull or, without Room, ErrClosed when it
// did nothing.
func (c *Conn) Open(r *Request, drop Class, end bool) (id uint32, err error) {
	switch {
	case c.Room() == 0:
		return 0, ErrClosed
	case c.full():
		return 0, ErrFull
	}
	if id = c.newest + 2; c.newest == 0 {
		id = 1
	}
	c.newest = id
	// What was charged for streams before, such as answers that came too late,
	// does not add up: see ignoreData.
	c.strain.earn(costReset)
	s := c.open(id)
	s.bodiless = r.Method == "HEAD"
	c.add(s)
	at := c.beginBlock()
	c.out = append(c.out, 0x20) // there is no dynamic table (RFC 7541 6.3)
	c.out = appendRequest(c.out, r)
	c.out = appendFields(c.out, r.Fields, drop)
	c.endHeaderBlock(at, s, end)
	return id, nil
}

// Indices of pseudo-fields in the static table (RFC 7541 appendix A).
const (
	indexAuthority = 1
	indexGet       = 2
	indexPost      = 3
	indexPath      = 4
	indexHTTP      = 6
	indexHTTPS     = 7
)

// appendRequest appends the pseudo-fields, and te.
func appendRequest(dst []byte, r *Request) []byte {
	switch r.Method {
	case "GET":
		dst = append(dst, 0x80|indexGet)
	case "POST":
		dst = append(dst, 0x80|indexPost)
	default:
		dst = appendLiteral(append(dst, indexGet), r.Method)
	}
	if r.Scheme == "https" {
		dst = append(dst, 0x80|indexHTTPS)
	} else {
		dst = append(dst, 0x80|indexHTTP)
	}
	dst = appendLiteral(append(dst, indexAuthority), r.Host)
	dst = append(dst, indexPath)
	if r.Query == "" {
		dst = appendLiteral(dst, r.Path)
	} else {
		dst = appendInteger(dst, 0, 7, uint64(len(r.Path)+1+len(r.Query)))
		dst = append(append(append(dst, r.Path...), '?'), r.Query...)
	}
	if r.Protocol != "" {
		dst = appendField(dst, ":protocol", r.Protocol)
	}
	if r.Trailers {
		dst = appendField(dst, "te", "trailers")
	}
	return dst
}

func appendLiteral(dst []byte, s string) []byte {
	return append(appendInteger(dst, 0, 7, uint64(len(s))), s...)
}

// answer takes a head of an answer.
func (c *Conn) answer(s *stream, ev *Event) {
	r := &s.response
	err := r.parse(&c.dec)
	if err == nil {
		err = r.framing(s, c.block.ended)
	}
	if err != nil {
		err.Code = ProtocolError
		c.fault(s, err, ev)
		return
	}
	if r.Status < 200 {
		c.strain.charge(costEmpty, "interim_flood")
		*ev = Event{Kind: Interim, Stream: s.id, Answer: r}
		return
	}
	s.began, s.peerEnded = true, c.block.ended
	if !s.done {
		*ev = Event{Kind: Answer, End: s.peerEnded, Stream: s.id, Answer: r}
	}
	c.settle(s)
}

// parse makes a response of what the decoder read.
func (r *Response) parse(d *decoder) *Error {
	r.list.reset()
	*r = Response{Length: -1, list: r.list}
	r.mem = append(r.mem, d.out...)
	if len(d.spans) == 0 || nameOf(r.mem, d.spans[0]) != ":status" {
		return malformed("status_missing")
	}
	status := valueOf(r.mem, d.spans[0])
	if n, err := strconv.Atoi(status); err != nil || len(status) != 3 || n < 100 || n > 599 {
		return malformed("status_invalid")
	} else {
		r.Status = n
	}
	for _, s := range d.spans[1:] {
		k, err := r.add(s, true)
		if err != nil {
			return err
		}
		if err := r.known(k); err != nil {
			return err
		}
	}
	r.Fields = r.fields
	return d.over
}

// known takes note of a field that must be understood (RFC 9113 8.1.1, 8.2.2).
func (r *Response) known(k httpfield.Kind) *Error {
	f := &r.fields[len(r.fields)-1]
	switch {
	case k == httpfield.Connection, k == httpfield.TransferEncoding, k == httpfield.Upgrade,
		f.Name == "keep-alive", f.Name == "proxy-connection":
		return malformed("connection_field")
	case k != httpfield.ContentLength:
		return nil
	}
	n, err := httpfield.Length(f.Value)
	switch {
	case r.Length >= 0:
		return malformed("content_length_repeated")
	case err != nil:
		return malformed("content_length_invalid")
	}
	r.Length = n
	return nil
}

// framing checks that the head can have the body that it says it has.
func (r *Response) framing(s *stream, ended bool) *Error {
	switch {
	case r.Status == 101:
		return malformed("status_invalid") // RFC 9113 8.6
	case r.Status < 200 || r.Status == 204:
		if r.Length > 0 {
			return malformed("body_forbidden")
		}
		if r.Status < 200 {
			if ended {
				return malformed("interim_ends") // RFC 9113 8.1
			}
			return nil
		}
		s.left = 0
	case s.bodiless || r.Status == 304:
		s.left = 0
	case ended && r.Length > 0:
		return malformed("content_length_differs")
	default:
		s.left = r.Length
	}
	return nil
}
