package http1

import (
	"strconv"

	"merlon/internal/httpfield"
)

const (
	maxChunkDigits = 8  // of a chunk's size, padding included: below 4 GiB
	maxExtension   = 64 // bytes of a chunk's extensions
)

// Chunks decodes a chunked body (RFC 9112 7.1). The zero Chunks is ready;
// after done it must be zeroed for the next body.
//
// Extensions are skipped, and bounded since nobody reads them. Trailers are
// refused, all of them, unless somebody asks for them: they arrive after the
// decision that fields are part of. So a body ends with "0 CRLF CRLF" and
// nothing else.
type Chunks struct {
	Trailer *Trailer // collects the trailer section; nil refuses one

	state  chunkState
	digits uint8 // of the size so far
	ext    uint8 // bytes of the extension so far
	left   int64 // of the chunk
}

type chunkState uint8

const (
	chunkSize   chunkState = iota // before the size, or inside
	chunkExt                      // after ';'
	chunkSizeLF                   // before the LF of the size line
	chunkData
	chunkDataCR // after the data
	chunkDataLF
	chunkEndCR // after the size line of the last chunk
	chunkEndLF
	chunkTrailer
	chunkDone
	chunkBroken
)

// Decode reads in, consumes n bytes of it and returns at most one run of data,
// a view into in. Call it again with what is left of in until done, an error,
// or n is 0: then it needs more bytes. An error is an *Error with Status 400
// and stays.
func (c *Chunks) Decode(in []byte) (n int, data []byte, done bool, err error) {
	for n < len(in) && c.state != chunkDone {
		if c.state == chunkData {
			k := int(min(c.left, int64(len(in)-n)))
			if c.left -= int64(k); c.left == 0 {
				c.state = chunkDataCR
			}
			return n + k, in[n : n+k], false, nil
		}
		if err := c.step(in[n]); err != nil {
			c.state = chunkBroken
			return n, nil, false, err
		}
		n++
	}
	return n, nil, c.state == chunkDone, nil
}

// step takes one byte that is not data.
func (c *Chunks) step(b byte) error {
	switch c.state {
	case chunkSize:
		return c.size(b)
	case chunkExt:
		if b == '\r' {
			c.state = chunkSizeLF
			return nil
		}
		if !is(b, text) || b == ' ' {
			return refuse(400, "chunk_extension_invalid")
		}
		if c.ext++; c.ext > maxExtension {
			return refuse(400, "chunk_extension_too_long")
		}
	case chunkSizeLF:
		if b != '\n' {
			return refuse(400, "chunk_size_invalid")
		}
		c.state, c.digits, c.ext = chunkData, 0, 0
		if c.left == 0 {
			c.state = chunkEndCR
		}
	case chunkDataCR, chunkDataLF:
		if b != "\r\n"[c.state-chunkDataCR] {
			return refuse(400, "chunk_end_invalid")
		}
		if c.state++; c.state > chunkDataLF {
			c.state = chunkSize
		}
	case chunkEndCR:
		switch {
		case b == '\r':
			c.state = chunkEndLF
		case is(b, token) && c.Trailer == nil:
			return refuse(400, "trailer_refused")
		case is(b, token):
			c.state = chunkTrailer
			c.Trailer.Reset()
			return c.trailer(b)
		default:
			return refuse(400, "chunk_end_invalid")
		}
	case chunkEndLF:
		if b != '\n' {
			return refuse(400, "chunk_end_invalid")
		}
		c.state = chunkDone
	case chunkTrailer:
		return c.trailer(b)
	default:
		return refuse(400, "chunk_broken")
	}
	return nil
}

// trailer takes one byte of the trailer section.
func (c *Chunks) trailer(b byte) error {
	done, err := c.Trailer.take(b)
	if done {
		c.state = chunkDone
	}
	return err
}

// size takes one byte of a size line: hexadecimal digits, no white space, then
// the end of the line or an extension.
func (c *Chunks) size(b byte) error {
	switch {
	case httpfield.IsHex(b):
		if c.digits++; c.digits > maxChunkDigits {
			return refuse(400, "chunk_size_overflow")
		}
		digit := int64(httpfield.Lower(b) - '0')
		if digit > 9 {
			digit = int64(httpfield.Lower(b)-'a') + 10
		}
		c.left = c.left<<4 | digit
	case c.digits == 0:
		return refuse(400, "chunk_size_invalid")
	case b == '\r':
		c.state = chunkSizeLF
	case b == ';':
		c.state = chunkExt
	default:
		return refuse(400, "chunk_size_invalid")
	}
	return nil
}

// AppendChunk appends data as one chunk. Empty data appends nothing, since an
// empty chunk would end the body.
func AppendChunk(dst, data []byte) []byte {
	if len(data) == 0 {
		return dst
	}
	dst = strconv.AppendInt(dst, int64(len(data)), 16)
	dst = append(dst, "\r\n"...)
	dst = append(dst, data...)
	return append(dst, "\r\n"...)
}

// AppendLastChunk appends the end of a chunked body.
func AppendLastChunk(dst []byte) []byte { return append(dst, "0\r\n\r\n"...) }

// AppendTrailer appends the end of a chunked body with a trailer section (RFC
// 9112 7.1.2): the fields that have none of the classes in drop.
func AppendTrailer(dst []byte, fields []Field, drop Class) []byte {
	dst = append(dst, "0\r\n"...)
	dst = AppendFields(dst, fields, drop)
	return append(dst, "\r\n"...)
}
