package contract

import (
	"bytes"
	"path"
	"strings"
	"unicode/utf8"

	"merlon"
	"merlon/contract/route"
)

// kind is what a JSON or YAML value is.
type kind uint8

const (
	null kind = iota
	boolean
	number
	text
	array
	object
)

var kindNames = [...]string{"null", "a boolean", "a number", "a string", "a list", "a mapping"}

func (k kind) String() string { return kindNames[k] }

// node is one value of a document, with its place. JSON and YAML become the
// same tree.
type node struct {
	kind      kind
	line, col int32
	doc       *document
	text      string // of a scalar
	items     []*node
	fields    []field          // in the order written
	index     map[string]int32 // of fields, when they are many
}

// field is one key of a mapping and its value.
type field struct {
	name      string
	line, col int32
	value     *node
}

// document is one file.
type document struct{ file string }

func (n *node) pos() merlon.Pos {
	return merlon.Pos{File: n.doc.file, Line: int(n.line), Column: int(n.col)}
}

// width is how many characters to underline: those of a scalar.
func (n *node) width() int { return max(1, utf8.RuneCountInString(n.text)) }

// pos is the place of the key.
func (f *field) pos(in *node) merlon.Pos {
	return merlon.Pos{File: in.doc.file, Line: int(f.line), Column: int(f.col)}
}

func (f *field) width() int { return max(1, utf8.RuneCountInString(f.name)) }

// manyFields is from where on a mapping has an index.
const manyFields = 12

// field finds a key of a mapping, or returns nil; so it does for all that is no
// mapping.
func (n *node) field(name string) *field {
	if n == nil {
		return nil
	}
	if n.index != nil {
		if i, ok := n.index[name]; ok {
			return &n.fields[i]
		}
		return nil
	}
	for i := range n.fields {
		if n.fields[i].name == name {
			return &n.fields[i]
		}
	}
	return nil
}

// get finds the value of a key, or returns nil.
func (n *node) get(name string) *node {
	if f := n.field(name); f != nil {
		return f.value
	}
	return nil
}

// add appends a key. It returns the field of the same name that is there
// already, if there is one, and then adds nothing: two readers of a document
// with a duplicate key may take different values (RFC 8259 4).
func (n *node) add(f field) *field {
	if old := n.field(f.name); old != nil {
		return old
	}
	n.fields = append(n.fields, f)
	switch {
	case n.index != nil:
		n.index[f.name] = int32(len(n.fields) - 1)
	case len(n.fields) > manyFields:
		n.index = make(map[string]int32, 2*manyFields)
		for i := range n.fields {
			n.index[n.fields[i].name] = int32(i)
		}
	}
	return nil
}

// tree reads a file of YAML or JSON into a tree, once. An error says that the
// file cannot be read at all; what is wrong in it is reported, and the tree nil.
func (l *loader) tree(name string) (*node, error) {
	doc, ok := l.docs[name]
	if !ok {
		var src []byte
		if src, doc.err = l.read(name, maxFile); doc.err == nil {
			doc.root = l.parse(name, src)
		}
		l.docs[name] = doc
	}
	return doc.root, doc.err
}

func (l *loader) parse(name string, src []byte) *node {
	doc := &document{file: name}
	src = bytes.TrimPrefix(src, []byte("\ufeff"))
	if !utf8.Valid(src) {
		at := cursor{src: src, line: 1, col: 1}
		at.to(invalidAt(src))
		l.report.Errorf(at.pos(doc), 1, "E0202", "save the file as UTF-8", "contract %s is not UTF-8", route.Quote(name))
		return nil
	}
	if strings.EqualFold(path.Ext(name), ".json") {
		return readJSON(l.report, doc, src)
	}
	return readYAML(l.report, doc, src)
}

// invalidAt is the offset of the first byte that is not UTF-8.
func invalidAt(src []byte) int {
	for i := 0; i < len(src); {
		r, size := utf8.DecodeRune(src[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return len(src)
}

// cursor turns growing offsets into lines and columns.
type cursor struct {
	src       []byte
	off       int
	line, col int32
}

// to moves the cursor forward to an offset.
func (c *cursor) to(off int) {
	off = min(off, len(c.src))
	if off <= c.off {
		return
	}
	span := c.src[c.off:off]
	if last := bytes.LastIndexByte(span, '\n'); last >= 0 {
		c.line += int32(bytes.Count(span, []byte{'\n'}))
		c.col = 1
		span = span[last+1:]
	}
	c.col += int32(utf8.RuneCount(span))
	c.off = off
}

func (c *cursor) pos(doc *document) merlon.Pos {
	return merlon.Pos{File: doc.file, Line: int(c.line), Column: int(c.col)}
}
