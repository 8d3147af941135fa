package http2

import (
	"strings"

	"merlon/internal/httpfield"
)

// Request is the head of one request. Its strings are views that hold until
// Done of its stream; who keeps one clones it.
type Request struct {
	Method        string
	Scheme        string // "http" or "https"
	Path          string // of :path, raw, before any '?'; package canon makes it canonical
	Query         string // of :path, raw, after the first '?'
	Host          string // with its port; only its syntax is checked here
	Protocol      string // of an extended CONNECT (RFC 8441); else ""
	Authorization string
	Fields        []Field // without the pseudo-fields; crumbs of cookies are one field
	Length        int64   // of the body, as content-length says; -1 when it does not
	Expect        bool    // the client waits for "100" before it sends the body
	Trailers      bool    // the client takes trailers (te: trailers)

	list
}

// list is a header list, and the memory that its views are of.
type list struct {
	mem    []byte
	fields []Field
}

// keepMemory is how much of a large head is kept for the next one.
const keepMemory = 4 << 10

func (l *list) reset() {
	if cap(l.mem) > keepMemory {
		l.mem = nil
	}
	clear(l.fields)
	l.mem, l.fields = l.mem[:0], l.fields[:0]
}

func (r *Request) reset() {
	r.list.reset()
	*r = Request{list: r.list}
}

// refuse makes the refusal of a request that is well-formed HTTP/2, and is
// answered with a status.
func refuse(status int, reason string) *Error { return &Error{NoError, status, reason} }

// malformed makes the refusal of a request that is none (RFC 9113 8.1.1).
func malformed(reason string) *Error { return &Error{ProtocolError, 0, reason} }

// pseudo are the pseudo-fields of a request (RFC 9113 8.3.1).
type pseudo uint8

const (
	method pseudo = iota
	scheme
	authority
	path
	protocol
	pseudos
)

// head collects what the fields of one request say about it.
type head struct {
	count  [httpfield.Kinds]uint8
	pseudo [pseudos]string
	has    [pseudos]bool
	host   string
	expect string
	crumbs int // bytes of all cookies together
	cookie int // how many there are
}

// parse makes a request of what the decoder read. Its strings move to memory of
// the request's own, since the decoder goes on with other streams.
func (r *Request) parse(d *decoder, cfg *Config, ended bool) *Error {
	r.Length = -1
	r.mem = append(r.mem[:0], d.out...)
	var h head
	i, err := h.pseudoFields(r.mem, d.spans)
	if err == nil {
		err = r.addFields(&h, d.spans[i:])
	}
	switch {
	case err != nil:
		return err
	case d.over != nil:
		return d.over
	}
	r.Fields = r.fields
	if h.cookie > 1 {
		r.joinCookies(h.crumbs)
	}
	if err := h.mandatory(); err != nil {
		return err
	}
	switch {
	case ended && r.Length > 0:
		return malformed("content_length_differs")
	case ended:
		r.Length = 0
	}
	return r.meaning(&h, cfg)
}

func nameOf(mem []byte, s span) string { return view(mem[s.at : s.at+s.name]) }

func valueOf(mem []byte, s span) string {
	return view(mem[s.at+s.name : s.at+s.name+s.value])
}

// pseudoFields reads the pseudo-fields, which come first, and returns how many
// there are.
func (h *head) pseudoFields(mem []byte, spans []span) (int, *Error) {
	for i, s := range spans {
		name := nameOf(mem, s)
		if name == "" || name[0] != ':' {
			return i, nil
		}
		var p pseudo
		switch name {
		case ":method":
			p = method
		case ":scheme":
			p = scheme
		case ":authority":
			p = authority
		case ":path":
			p = path
		case ":protocol":
			p = protocol
		default:
			return 0, malformed("pseudo_field_unknown")
		}
		if h.has[p] {
			return 0, malformed("pseudo_field_repeated")
		}
		h.pseudo[p], h.has[p] = valueOf(mem, s), true
	}
	return len(spans), nil
}

// addFields reads the other fields.
func (r *Request) addFields(h *head, spans []span) *Error {
	for _, s := range spans {
		k, err := r.add(s, false)
		if err != nil {
			return err
		}
		if k == httpfield.Other {
			f := &r.fields[len(r.fields)-1]
			if f.Class&httpfield.HopByHop != 0 {
				err = r.connectionField(f)
			}
		} else {
			err = r.known(h, k, valueOf(r.mem, s))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// add appends one field that must not be a pseudo-field.
func (l *list) add(s span, response bool) (httpfield.Kind, *Error) {
	name, value := nameOf(l.mem, s), valueOf(l.mem, s)
	seen, err := checkName(name)
	if err != nil {
		return 0, err
	}
	if err := checkValue(value, response); err != nil {
		return 0, err
	}
	class, k := httpfield.Classify(name)
	switch {
	case len(name) > httpfield.MaxName:
		return 0, refuse(431, "field_too_large")
	case seen&httpfield.Odd != 0 && httpfield.Disguised(class, k, response):
		return 0, refuse(400, "field_name_disguised")
	}
	l.fields = append(l.fields, Field{Name: name, Value: value, Class: class})
	return k, nil
}

// checkName checks a name (RFC 9113 8.2.1).
func checkName(name string) (seen httpfield.Set, err *Error) {
	if name == "" {
		return 0, malformed("field_name_empty")
	}
	for i := 0; i < len(name); i++ {
		c := name[i]
		set := httpfield.Of(c)
		switch {
		case c == ':' && i == 0:
			return 0, malformed("pseudo_field_late")
		case set&httpfield.Token == 0, 'A' <= c && c <= 'Z':
			return 0, malformed("field_name_invalid")
		}
		seen |= set
	}
	return seen, nil
}

// checkValue checks a value (RFC 9113 8.2.1), and refuses what package http1
// does beyond: control characters, and in requests bytes that are not ASCII.
func checkValue(v string, response bool) *Error {
	var bad *Error
	for i := 0; i < len(v); i++ {
		switch c := v[i]; {
		case httpfield.Is(c, httpfield.Text) || c == '\t':
		case c == 0 || c == '\r' || c == '\n':
			return malformed("field_value_line_end")
		case bad != nil || response && c >= 0x80:
		case c < 0x80:
			bad = refuse(400, "field_value_control")
		default:
			bad = refuse(400, "field_value_not_ascii")
		}
	}
	if v != "" && (isSpace(v[0]) || isSpace(v[len(v)-1])) {
		return malformed("field_value_padded")
	}
	return bad
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' }

// connectionField refuses what is about an HTTP/1.1 connection (RFC 9113
// 8.2.2). Others that a gate holds back, such as proxy-authorization, are well-formed.
func (r *Request) connectionField(f *Field) *Error {
	if f.Name == "keep-alive" || f.Name == "proxy-connection" {
		return malformed("connection_field")
	}
	return nil
}

// known takes note of a field that must be understood.
func (r *Request) known(h *head, k httpfield.Kind, value string) *Error {
	again := h.count[k] > 0
	h.count[k] = 1
	switch k {
	case httpfield.Connection, httpfield.TransferEncoding, httpfield.Upgrade:
		return malformed("connection_field")
	case httpfield.ContentLength:
		return r.contentLength(value, again)
	case httpfield.TE:
		if value != "trailers" {
			return malformed("te_invalid")
		}
		r.Trailers = true
	case httpfield.Host:
		if again {
			return refuse(400, "host_repeated")
		}
		h.host = value
	case httpfield.Expect:
		if again {
			return refuse(400, "expect_repeated")
		}
		h.expect = value
	case httpfield.Authorization:
		if again {
			return refuse(400, "authorization_repeated")
		}
		r.Authorization = value
	case httpfield.ContentType:
		if again {
			return refuse(400, "content_type_repeated")
		}
	case httpfield.Protected:
		if r.fields[len(r.fields)-1].Name == "cookie" {
			h.cookie++
			h.crumbs += len(value) + len("; ")
		}
	}
	return nil
}

func (r *Request) contentLength(value string, again bool) *Error {
	n, err := httpfield.Length(value)
	switch {
	case again:
		return malformed("content_length_repeated")
	case err != nil:
		return malformed("content_length_invalid")
	}
	r.Length = n
	return nil
}

// joinCookies makes one field of all cookies (RFC 9113 8.2.3): HTTP/1.1 has one
// only, and an application may read the first of several.
func (r *Request) joinCookies(size int) {
	at := len(r.mem)
	// The other views stay good: they hold the memory they are of.
	r.mem = append(r.mem, make([]byte, size)...)[:at]
	kept, first := r.fields[:0], -1
	for _, f := range r.fields {
		if f.Name != "cookie" {
			kept = append(kept, f)
			continue
		}
		if first < 0 {
			first = len(kept)
			kept = append(kept, f)
		} else {
			r.mem = append(r.mem, "; "...)
		}
		r.mem = append(r.mem, f.Value...)
	}
	kept[first].Value = view(r.mem[at:])
	clear(r.fields[len(kept):])
	r.fields, r.Fields = kept, kept
}

// mandatory checks that the pseudo-fields make a request (RFC 9113 8.3.1, 8.5,
// RFC 8441 4).
func (h *head) mandatory() *Error {
	connect := h.pseudo[method] == "CONNECT"
	switch {
	case !h.has[method]:
		return malformed("method_missing")
	case h.has[protocol] && !connect:
		return malformed("protocol_without_connect")
	case connect && !h.has[protocol]:
		if h.has[scheme] || h.has[path] || !h.has[authority] {
			return malformed("connect_invalid")
		}
		return nil
	case !h.has[scheme]:
		return malformed("scheme_missing")
	case h.pseudo[path] == "":
		return malformed("path_missing")
	}
	return nil
}

// meaning checks what package http1 checks of a request line and Host.
func (r *Request) meaning(h *head, cfg *Config) *Error {
	r.Method, r.Scheme, r.Protocol = h.pseudo[method], h.pseudo[scheme], h.pseudo[protocol]
	if err := r.checkMethod(cfg); err != nil {
		return err
	}
	r.Host = h.pseudo[authority]
	switch {
	case !h.has[authority] && h.count[httpfield.Host] == 0:
		return refuse(400, "host_missing")
	case !h.has[authority]:
		r.Host = h.host
	case h.count[httpfield.Host] != 0 && !httpfield.EqualFold(h.host, r.Host):
		return refuse(400, "host_differs")
	}
	switch {
	case !httpfield.ValidHost(r.Host):
		return refuse(400, "host_invalid")
	case r.Scheme != "https" && r.Scheme != "http":
		return refuse(400, "scheme_invalid")
	}
	if err := r.target(h.pseudo[path], cfg); err != nil {
		return err
	}
	if h.count[httpfield.Expect] != 0 {
		if !httpfield.EqualFold(h.expect, "100-continue") {
			return refuse(417, "expect_unknown") // RFC 9110 10.1.1
		}
		r.Expect = r.Length != 0
	}
	return nil
}

const maxMethod = 20 // bytes; the longest registered one has 16

func (r *Request) checkMethod(cfg *Config) *Error {
	for i := 0; i < len(r.Method); i++ {
		if c := r.Method[i]; c != '-' && (c < 'A' || c > 'Z') {
			return refuse(400, "method_invalid")
		}
	}
	switch {
	case r.Method == "" || r.Method[0] == '-':
		return refuse(400, "method_invalid")
	case len(r.Method) > maxMethod:
		return refuse(501, "method_too_long")
	case r.Method == "CONNECT" && (r.Protocol == "" || !cfg.Connect):
		return refuse(501, "connect_not_spoken")
	case r.Method == "TRACE" || r.Method == "TRACK":
		return refuse(501, "trace_refused")
	}
	for i := 0; i < len(r.Protocol); i++ {
		if !httpfield.Is(r.Protocol[i], httpfield.Token) {
			return refuse(400, "protocol_invalid")
		}
	}
	return nil
}

func (r *Request) target(target string, cfg *Config) *Error {
	switch {
	case len(target) > cfg.Target:
		return refuse(414, "target_too_long")
	case target == "*":
		return refuse(400, "asterisk_form")
	case target[0] != '/':
		return refuse(400, "target_invalid")
	}
	for i := 0; i < len(target); i++ {
		if !httpfield.Is(target[i], httpfield.Target) {
			return refuse(400, "target_invalid")
		}
	}
	r.Path, r.Query, _ = strings.Cut(target, "?")
	return nil
}

// parseTrailers makes the trailers of what the decoder read (RFC 9110 6.5). A
// field of a request that a gate acts upon came after the decision, and is
// refused; of an answer, only what frames it or is about a connection.
func (l *list) parseTrailers(d *decoder, response bool) *Error {
	l.reset()
	l.mem = append(l.mem, d.out...)
	for _, s := range d.spans {
		k, err := l.add(s, response)
		if err != nil {
			return err
		}
		class := l.fields[len(l.fields)-1].Class
		if class&(httpfield.HopByHop|httpfield.Framing) != 0 || !response && (k != httpfield.Other || class != 0) {
			return malformed("trailer_refused")
		}
	}
	return d.over
}
