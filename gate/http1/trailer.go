package http1

import "merlon/internal/httpfield"

// Bounds of a trailer section: those of a head.
const (
	maxTrailer       = 16 << 10 // bytes, with the blank line
	maxTrailerFields = 100
	keepTrailer      = 4 << 10 // bytes of memory that a Trailer keeps
)

// Trailer is the trailer section of an answer's chunked body (RFC 9112 7.1.2),
// read as strictly as a head. What may not stand there (RFC 9110 6.5.1, see
// httpfield.MayTrail) is dropped: it comes when all that it could change has
// been decided.
type Trailer struct {
	Fields []Field // views that hold until Reset, or until another is read

	mem []byte
}

// Reset forgets the section, and lets large memory go.
func (t *Trailer) Reset() {
	clear(t.Fields[:cap(t.Fields)])
	t.Fields, t.mem = t.Fields[:0], t.mem[:0]
	if cap(t.mem) > keepTrailer {
		t.mem = nil
	}
}

// take takes one byte and reports whether it was the last.
func (t *Trailer) take(b byte) (done bool, err error) {
	t.mem = append(t.mem, b)
	n := len(t.mem)
	switch {
	case b == '\n' && n >= 4 && string(t.mem[n-4:]) == "\r\n\r\n":
		return true, t.parse()
	case n >= maxTrailer:
		return false, refuse(400, "trailer_too_large")
	}
	return false, nil
}

// parse reads the section, which is whole.
func (t *Trailer) parse() error {
	lim := Limits{Fields: maxTrailerFields}
	lim.setDefaults()
	h := head{response: true}
	fields, _, err := h.fields(t.Fields[:0], t.mem, view(t.mem), 0, &lim)
	if err != nil {
		return err
	}
	t.Fields = fields[:0]
	for _, f := range fields {
		if httpfield.MayTrail(f.Name) {
			t.Fields = append(t.Fields, f)
		}
	}
	return nil
}
