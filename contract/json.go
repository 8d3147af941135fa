package contract

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"

	"merlon"
	"merlon/contract/route"
)

// errStop ends reading: what is wrong has been reported.
var errStop = errors.New("stop")

// jsonReader builds a tree from the tokens of encoding/json and the offsets at
// which they stand.
type jsonReader struct {
	report *route.Report
	doc    *document
	dec    *json.Decoder
	at     cursor // of the last token
	values int
}

// readJSON reads one JSON text (RFC 8259), or reports why not and returns nil.
func readJSON(r *route.Report, doc *document, src []byte) *node {
	j := &jsonReader{report: r, doc: doc, dec: json.NewDecoder(bytes.NewReader(src)), at: cursor{src: src, line: 1, col: 1}}
	j.dec.UseNumber()
	root, err := j.value(0)
	if err != nil {
		return nil
	}
	switch tok, err := j.token(); err {
	case io.EOF:
		return root
	case nil:
		r.Errorf(j.at.pos(doc), 1, "E0202", "a JSON file holds one value", "unexpected %v after the end of the JSON value", tok)
	default:
		j.invalid(err)
	}
	return nil
}

// token reads one token and moves the cursor to its first character.
func (j *jsonReader) token() (json.Token, error) {
	start := int(j.dec.InputOffset())
	for start < len(j.at.src) && strings.IndexByte(" \t\r\n,:", j.at.src[start]) >= 0 {
		start++
	}
	tok, err := j.dec.Token()
	j.at.to(start)
	return tok, err
}

// next reads a token that must be there.
func (j *jsonReader) next() (json.Token, error) {
	tok, err := j.token()
	if err != nil {
		return nil, j.invalid(err)
	}
	return tok, nil
}

// invalid reports an error of the decoder.
func (j *jsonReader) invalid(err error) error {
	message := "the file ends too early"
	if syntax := (*json.SyntaxError)(nil); errors.As(err, &syntax) {
		j.at.to(int(syntax.Offset) - 1)
		message = strings.TrimPrefix(syntax.Error(), "json: ")
	} else {
		j.at.to(len(j.at.src))
	}
	j.report.Errorf(j.at.pos(j.doc), 1, "E0202", "", "invalid JSON: %s", message)
	return errStop
}

// value reads the next value; depth is how many stand around it.
func (j *jsonReader) value(depth int) (*node, error) {
	tok, err := j.next()
	if err != nil {
		return nil, err
	}
	return j.valueOf(tok, depth)
}

func (j *jsonReader) valueOf(tok json.Token, depth int) (*node, error) {
	n := &node{doc: j.doc, line: j.at.line, col: j.at.col}
	if err := withinBounds(j.report, n.pos(), depth, &j.values); err != nil {
		return nil, err
	}
	switch t := tok.(type) {
	case json.Delim:
		if t == '[' {
			n.kind = array
			return n, j.array(n, depth)
		}
		n.kind = object
		return n, j.object(n, depth)
	case string:
		n.kind, n.text = text, t
	case json.Number:
		n.kind, n.text = number, t.String()
	case bool:
		n.kind, n.text = boolean, "false"
		if t {
			n.text = "true"
		}
	default:
		n.text = "null"
	}
	return n, nil
}

func (j *jsonReader) array(n *node, depth int) error {
	for {
		tok, err := j.next()
		if err != nil {
			return err
		}
		if tok == json.Delim(']') {
			return nil
		}
		item, err := j.valueOf(tok, depth+1)
		if err != nil {
			return err
		}
		n.items = append(n.items, item)
	}
}

func (j *jsonReader) object(n *node, depth int) error {
	for {
		tok, err := j.next()
		if err != nil {
			return err
		}
		name, ok := tok.(string)
		if !ok { // the closing brace: the decoder lets nothing else stand here
			return nil
		}
		f := field{name: name, line: j.at.line, col: j.at.col}
		if f.value, err = j.value(depth + 1); err != nil {
			return err
		}
		if old := n.add(f); old != nil {
			duplicateKey(j.report, n, old, &f)
		}
	}
}

// withinBounds counts one more value at a depth.
func withinBounds(r *route.Report, pos merlon.Pos, depth int, values *int) error {
	if *values++; *values > maxValues {
		r.Errorf(pos, 1, "E0204", "split the contract, or leave out what no caller needs", "the contract has more than %d values", maxValues)
		return errStop
	}
	if depth > maxDepth {
		r.Errorf(pos, 1, "E0204", "", "the contract is nested deeper than %d levels", maxDepth)
		return errStop
	}
	return nil
}

// duplicateKey reports a key that a mapping has twice.
func duplicateKey(r *route.Report, in *node, first, second *field) {
	r.Add(merlon.Diagnostic{Pos: second.pos(in), Width: second.width(), Code: "E0203",
		Message: "key " + route.Quote(second.name) + " is written twice", Hint: "leave one of them",
		Also: []merlon.Pos{first.pos(in)}})
}
