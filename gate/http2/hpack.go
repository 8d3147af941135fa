package http2

import (
	"errors"

	"golang.org/x/net/http2/hpack"
)

// tableSize bounds the memory of a peer's dynamic table: the size that every
// peer may use unasked (RFC 9113 6.5.2).
const tableSize = 4096

// entryOverhead is what an entry counts beyond its bytes (RFC 7541 4.1).
const entryOverhead = 32

// static is the static table (RFC 7541 appendix A), as package hpack has it.
var static = staticTable()

const staticEntries = 61

func staticTable() (t [staticEntries]hpack.HeaderField) {
	i := 0
	d := hpack.NewDecoder(0, func(f hpack.HeaderField) { t[i] = f })
	for i = range t {
		d.Write([]byte{0x80 | byte(i+1)})
	}
	return t
}

// table is a dynamic table (RFC 7541 2.3.2). Its strings lie in one piece of
// memory, oldest first, so that it makes no garbage.
type table struct {
	mem  []byte
	ents []entry // the live ones are ents[first:], oldest first
	// first entries are dead, and so is the memory before ents[first].
	first     int
	size, max int
}

type entry struct{ at, name, value int }

func (e entry) size() int { return e.name + e.value + entryOverhead }

// get is the i-th newest entry; 0 is the newest.
func (t *table) get(i uint64) (name, value []byte, ok bool) {
	if i >= uint64(len(t.ents)-t.first) {
		return nil, nil, false
	}
	e := t.ents[len(t.ents)-1-int(i)]
	return t.mem[e.at : e.at+e.name], t.mem[e.at+e.name : e.at+e.name+e.value], true
}

func (t *table) resize(size int) {
	t.max = size
	t.evict(0)
}

// evict makes room for need.
func (t *table) evict(need int) {
	for t.first < len(t.ents) && t.size+need > t.max {
		t.size -= t.ents[t.first].size()
		t.first++
	}
	if t.first == len(t.ents) {
		t.first, t.ents, t.mem = 0, t.ents[:0], t.mem[:0]
	}
}

// add inserts an entry. One larger than the table empties it (RFC 7541 4.4).
// The strings must not be the table's own.
func (t *table) add(name, value []byte) {
	e := entry{name: len(name), value: len(value)}
	t.evict(e.size())
	if e.size() > t.max {
		return
	}
	t.compact(len(name) + len(value))
	e.at = len(t.mem)
	t.mem = append(append(t.mem, name...), value...)
	t.ents = append(t.ents, e)
	t.size += e.size()
}

// compact drops what is dead rather than grow beyond twice what can be alive.
func (t *table) compact(need int) {
	if t.first == 0 || len(t.mem)+need <= max(cap(t.mem), 2*tableSize) && len(t.ents) < max(cap(t.ents), 2*tableSize/entryOverhead) {
		return
	}
	dead := t.ents[t.first].at
	t.mem = t.mem[:copy(t.mem, t.mem[dead:])]
	t.ents = t.ents[:copy(t.ents, t.ents[t.first:])]
	t.first = 0
	for i := range t.ents {
		t.ents[i].at -= dead
	}
}

// span is a field in decoder.out.
type span struct{ at, name, value int }

// decoder decodes header blocks. That of package hpack makes a string of every
// literal and keeps strings in its table; this one makes no garbage.
type decoder struct {
	dyn   table
	spans []span
	out   []byte // what spans are in
	list  int    // size of the list (RFC 9113 6.5.2)
	over  *Error // why the list is refused; what is beyond the bound is not kept
}

// errCompression ends a connection, since the tables do not agree any more.
var errCompression = errors.New("header block is not well-formed")

// errBomb ends a connection: a byte of a block can mean 4 KiB of a list.
var errBomb = errors.New("header block grows too large")

// decode reads a whole block into spans and out. A list beyond the bounds is
// read to its end, since the tables must agree, but not kept.
func (d *decoder) decode(b []byte, maxList, maxFields int) error {
	d.spans, d.out, d.list, d.over = d.spans[:0], d.out[:0], 0, nil
	for updates := 0; len(b) > 0; {
		var err error
		switch c := b[0]; {
		case c >= 0x80: // indexed (RFC 7541 6.1)
			b, err = d.indexed(b)
		case c >= 0x40: // literal with incremental indexing (6.2.1)
			b, err = d.literal(b, 6, true)
		case c >= 0x20: // table size update (6.3), before the first field
			if updates++; updates > 2 || len(d.spans) > 0 || d.list > 0 {
				return errCompression
			}
			b, err = d.update(b)
		default: // literal without indexing, or never indexed (6.2.2, 6.2.3)
			b, err = d.literal(b, 4, false)
		}
		if err != nil {
			return err
		}
		switch {
		case d.list > 4*maxList:
			return errBomb
		case d.over != nil:
		case d.list > maxList:
			d.over = refuse(431, "head_too_large")
		case len(d.spans) > maxFields:
			d.over = refuse(431, "too_many_fields")
		}
	}
	return nil
}

func (d *decoder) update(b []byte) ([]byte, error) {
	size, b, ok := integer(b, 5)
	if !ok || size > tableSize {
		return nil, errCompression
	}
	d.dyn.resize(int(size))
	return b, nil
}

func (d *decoder) indexed(b []byte) ([]byte, error) {
	i, b, ok := integer(b, 7)
	if !ok {
		return nil, errCompression
	}
	at := len(d.out)
	name, err := d.copyName(i)
	if err != nil {
		return nil, err
	}
	if i <= staticEntries {
		d.out = append(d.out, static[i-1].Value...)
	} else {
		_, value, _ := d.dyn.get(i - staticEntries - 1)
		d.out = append(d.out, value...)
	}
	d.keep(at, name)
	return b, nil
}

func (d *decoder) literal(b []byte, bits int, index bool) (_ []byte, err error) {
	i, b, ok := integer(b, bits)
	if !ok {
		return nil, errCompression
	}
	at, name := len(d.out), 0
	if i > 0 {
		name, err = d.copyName(i)
	} else {
		b, err = d.text(b)
		name = len(d.out) - at
	}
	if err != nil {
		return nil, err
	}
	if b, err = d.text(b); err != nil {
		return nil, err
	}
	if index {
		d.dyn.add(d.out[at:at+name], d.out[at+name:])
	}
	d.keep(at, name)
	return b, nil
}

// copyName appends the name of entry i to out and returns its length.
func (d *decoder) copyName(i uint64) (int, error) {
	if i == 0 {
		return 0, errCompression
	}
	if i <= staticEntries {
		name := static[i-1].Name
		d.out = append(d.out, name...)
		return len(name), nil
	}
	name, _, ok := d.dyn.get(i - staticEntries - 1)
	if !ok {
		return 0, errCompression
	}
	d.out = append(d.out, name...)
	return len(name), nil
}

// keep makes a field of out[at:], unless the list is too large already.
func (d *decoder) keep(at, name int) {
	value := len(d.out) - at - name
	d.list += name + value + entryOverhead
	if d.over != nil {
		d.out = d.out[:at]
		return
	}
	d.spans = append(d.spans, span{at, name, value})
}

// text appends a string literal (RFC 7541 5.2) to out.
func (d *decoder) text(b []byte) ([]byte, error) {
	if len(b) == 0 {
		return nil, errCompression
	}
	huffman := b[0]&0x80 != 0
	n, b, ok := integer(b, 7)
	if !ok || n > uint64(len(b)) {
		return nil, errCompression
	}
	if !huffman {
		d.out = append(d.out, b[:n]...)
	} else if _, err := hpack.HuffmanDecode((*sink)(&d.out), b[:n]); err != nil {
		return nil, errCompression
	}
	return b[n:], nil
}

// sink appends what is written to it.
type sink []byte

// Write appends p.
func (s *sink) Write(p []byte) (int, error) {
	*s = append(*s, p...)
	return len(p), nil
}

// integer reads an integer with an n-bit prefix (RFC 7541 5.1). No number that
// is good for anything has more than four bytes after its prefix.
func integer(b []byte, n int) (uint64, []byte, bool) {
	if len(b) == 0 {
		return 0, nil, false
	}
	mask := uint64(1)<<n - 1
	v := uint64(b[0]) & mask
	b = b[1:]
	if v < mask {
		return v, b, true
	}
	for shift := 0; shift <= 21 && len(b) > 0; shift += 7 {
		c := b[0]
		b = b[1:]
		if v += uint64(c&0x7f) << shift; c < 0x80 {
			return v, b, true
		}
	}
	return 0, nil, false
}

// appendInteger appends v with an n-bit prefix, whose other bits are first.
func appendInteger(dst []byte, first byte, n int, v uint64) []byte {
	mask := uint64(1)<<n - 1
	if v < mask {
		return append(dst, first|byte(v))
	}
	dst = append(dst, first|byte(mask))
	for v -= mask; v >= 0x80; v >>= 7 {
		dst = append(dst, byte(v)|0x80)
	}
	return append(dst, byte(v))
}
