package http2

import "strings"

// Decoder shows the decoder of header blocks to tests.
type Decoder struct{ d decoder }

// NewDecoder makes one with an empty table.
func NewDecoder() *Decoder { return &Decoder{decoder{dyn: table{max: tableSize}}} }

// Decode decodes a block without bounds.
func (d *Decoder) Decode(block []byte) (list [][2]string, err error) {
	if err := d.d.decode(block, 1<<30, 1<<20); err != nil {
		return nil, err
	}
	for _, s := range d.d.spans {
		list = append(list, [2]string{strings.Clone(nameOf(d.d.out, s)), strings.Clone(valueOf(d.d.out, s))})
	}
	return list, nil
}
