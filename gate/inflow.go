package gate

import "merlon/gate/http1"

// inflow is a message that comes in frames of HTTP/2, to be read as HTTP/1.1
// has it.
type inflow struct {
	framed  []byte // to be read next: a head, or a chunk that there was no room for
	pending []byte // of the body, not yet read; bounded by the stream's window
	used    int    // of pending
	length  int64  // of the body; -1 when it goes in chunks, since that is not known
	tail    []byte // what ends a body in chunks; nil without trailers
	ended   bool   // all of it came
	lastOut bool   // the end of a body in chunks was read
}

// unread is how much of the body has come that was not read.
func (f *inflow) unread() int { return len(f.pending) - f.used }

// ready reports whether there is something to read, or the end.
func (f *inflow) ready() bool { return len(f.framed) > 0 || f.unread() > 0 || f.ended }

// read copies to b what there is. It tells how much that was, 0 for the end, and
// how many bytes of the body are in it.
func (f *inflow) read(b []byte) (n, data int) {
	const margin = 64 // what a chunk has beside its data, and more
	for n < len(b) {
		pending, rest := f.pending[f.used:], b[n:]
		k := 0
		switch {
		case len(f.framed) > 0:
			copied := copy(rest, f.framed)
			f.framed = f.framed[copied:]
			n += copied
			continue
		case f.length >= 0:
			if k = copy(rest, pending); k == 0 {
				return n, data
			}
			n += k
		case len(pending) > 0 && len(rest) > margin:
			k = min(len(pending), len(rest)-margin)
			n += len(http1.AppendChunk(rest[:0], pending[:k]))
		case len(pending) > 0 && n > 0:
			return n, data
		case len(pending) > 0:
			k = min(len(pending), margin)
			f.framed = http1.AppendChunk(nil, pending[:k])
		case f.ended && !f.lastOut:
			if f.framed = f.tail; f.framed == nil {
				f.framed = lastChunk
			}
			f.lastOut = true
		default:
			return n, data
		}
		data += k
		if f.used += k; f.used == len(f.pending) {
			f.pending, f.used = f.pending[:0], 0
		}
	}
	return n, data
}

var lastChunk = http1.AppendLastChunk(nil)
