package grpc

import (
	"encoding/base64"
	"encoding/binary"
	"errors"

	"merlon/internal/httpfield"
)

// trailerFrame is the flag of the frame that holds the trailers of an answer in
// gRPC-Web.
const trailerFrame = 0x80

// AppendTrailerFrame appends the frame that ends an answer in gRPC-Web: fields
// as HTTP/1.1 has them, names in lower case, without a blank line.
func AppendTrailerFrame(dst []byte, fields []httpfield.Field) []byte {
	at := len(dst)
	dst = append(dst, trailerFrame, 0, 0, 0, 0)
	for i := range fields {
		for j := range len(fields[i].Name) {
			dst = append(dst, httpfield.Lower(fields[i].Name[j]))
		}
		dst = append(dst, ':', ' ')
		dst = append(dst, fields[i].Value...)
		dst = append(dst, "\r\n"...)
	}
	binary.BigEndian.PutUint32(dst[at+1:], uint32(len(dst)-at-frameHead))
	return dst
}

// AppendText appends data in base64. Each piece of a body is padded by itself,
// so that it can leave at once.
func AppendText(dst, data []byte) []byte { return base64.StdEncoding.AppendEncode(dst, data) }

// ErrText says that a body is not in base64.
var ErrText = errors.New("grpc: the text of a body is not base64")

// Text decodes a body in base64 that comes in pieces (RFC 4648 4). Padding may
// come at the end of any four characters: clients encode message by message.
type Text struct {
	quad [4]byte
	have int
}

// Append decodes in and appends what it gives to dst, which must not overlap
// it.
func (t *Text) Append(dst, in []byte) ([]byte, error) {
	for _, c := range in {
		t.quad[t.have] = c
		if t.have++; t.have < len(t.quad) {
			continue
		}
		t.have = 0
		var out [3]byte
		n, err := base64.StdEncoding.Strict().Decode(out[:], t.quad[:])
		if err != nil || t.newline() {
			return dst, ErrText
		}
		dst = append(dst, out[:n]...)
	}
	return dst, nil
}

// newline finds the line ends that package base64 passes over.
func (t *Text) newline() bool {
	for _, c := range t.quad {
		if c == '\r' || c == '\n' {
			return true
		}
	}
	return false
}

// Whole reports whether the text may end here.
func (t *Text) Whole() bool { return t.have == 0 }
