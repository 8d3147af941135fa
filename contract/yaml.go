package contract

import (
	"bytes"
	"errors"
	"strings"

	"go.yaml.in/yaml/v4"

	"merlon"
	"merlon/contract/route"
)

// yamlReader builds a tree from YAML nodes. What an alias names is shared, not
// copied, but counts as often as it is used: that is the defence against an
// alias bomb.
type yamlReader struct {
	report *route.Report
	doc    *document
	values int
	anchor map[*yaml.Node]anchored
}

// anchored is the tree of a node with an anchor. A nil node is one still being
// read, so an alias to it is a cycle.
type anchored struct {
	node   *node
	values int // in it, aliases included
	height int
}

// readYAML reads one YAML document, or reports why not and returns nil.
func readYAML(r *route.Report, doc *document, src []byte) *node {
	if manyMarks(src) {
		r.Errorf(merlon.Pos{File: doc.file, Line: 1, Column: 1}, 0, "E0204", "write it as JSON, or split it", "the contract has too many values for YAML")
		return nil
	}
	var top yaml.Node
	if err := yaml.Load(src, &top); err != nil {
		pos, message := merlon.Pos{File: doc.file}, err.Error()
		var one *yaml.LoadError
		var many *yaml.LoadErrors
		if errors.As(err, &many) && len(many.Errors) > 0 {
			one = many.Errors[0]
		}
		if one != nil || errors.As(err, &one) {
			pos.Line, pos.Column, message = one.Mark.Line, one.Mark.Column, one.Message
		}
		r.Errorf(pos, 0, "E0202", "", "invalid YAML: %s", strings.TrimPrefix(message, "yaml: "))
		return nil
	}
	y := &yamlReader{report: r, doc: doc, anchor: map[*yaml.Node]anchored{}}
	if top.Kind == yaml.DocumentNode && len(top.Content) == 1 {
		n, _, err := y.value(top.Content[0], 0)
		if err != nil {
			return nil
		}
		return n
	}
	return &node{doc: doc, line: 1, col: 1, text: "null"} // an empty file
}

// manyMarks reports whether src may hold more values than are read. It counts
// the marks of which every value needs one, because the YAML parser would need
// two hundred times the memory before anyone could count values.
func manyMarks(src []byte) bool {
	marks := 0
	for _, mark := range []string{"\n", "\r", ",", ":", "[", "{", "- ", "? "} {
		marks += bytes.Count(src, []byte(mark))
	}
	return marks > maxMarks
}

// value converts a node. It returns the height of the tree: a scalar has 1.
func (y *yamlReader) value(from *yaml.Node, depth int) (*node, int, error) {
	n := &node{doc: y.doc, line: int32(from.Line), col: int32(from.Column)}
	if err := withinBounds(y.report, n.pos(), depth, &y.values); err != nil {
		return nil, 0, err
	}
	if from.Kind == yaml.AliasNode {
		return y.alias(from, n, depth)
	}
	before := y.values
	if from.Anchor != "" {
		y.anchor[from] = anchored{}
	}
	height := 1
	var err error
	switch from.Kind {
	case yaml.MappingNode:
		n.kind = object
		height, err = y.mapping(n, from, depth)
	case yaml.SequenceNode:
		n.kind = array
		for _, c := range from.Content {
			item, h, err := y.value(c, depth+1)
			if err != nil {
				return nil, 0, err
			}
			n.items, height = append(n.items, item), max(height, h+1)
		}
	default:
		n.kind, n.text = scalarKind(from.ShortTag()), from.Value
	}
	if from.Anchor != "" {
		y.anchor[from] = anchored{n, y.values - before, height}
	}
	return n, height, err
}

// alias returns the tree that an alias names.
func (y *yamlReader) alias(from *yaml.Node, at *node, depth int) (*node, int, error) {
	a := y.anchor[from.Alias]
	if a.node == nil {
		y.report.Errorf(at.pos(), len(from.Value)+1, "E0204", "", "alias %s contains itself", route.Quote("*"+from.Value))
		return nil, 0, errStop
	}
	y.values += a.values
	if y.values > maxValues || depth+a.height > maxDepth {
		y.report.Errorf(at.pos(), len(from.Value)+1, "E0204", "write the values out, or use $ref",
			"alias %s makes the contract too large: more than %d values or %d levels", route.Quote("*"+from.Value), maxValues, maxDepth)
		return nil, 0, errStop
	}
	return a.node, a.height, nil
}

// mapping converts the keys and values of a mapping, then what its merge keys
// bring in: a key that is written out wins, then the earlier source.
func (y *yamlReader) mapping(n *node, from *yaml.Node, depth int) (height int, err error) {
	height = 1
	var merged []*node
	for i := 0; i+1 < len(from.Content); i += 2 {
		key := from.Content[i]
		f := field{name: key.Value, line: int32(key.Line), col: int32(key.Column)}
		if key.Kind != yaml.ScalarNode || key.ShortTag() == "!!null" {
			y.report.Errorf(f.pos(n), 1, "E0202", "write the key as a plain word or a quoted string", "a key must be a string")
			return 0, errStop
		}
		var h int
		if f.value, h, err = y.value(from.Content[i+1], depth+1); err != nil {
			return 0, err
		}
		height = max(height, h+1)
		if key.ShortTag() == "!!merge" {
			sources := []*node{f.value}
			if f.value.kind == array {
				sources = f.value.items
			}
			merged = append(merged, sources...)
			continue
		}
		if old := n.add(f); old != nil {
			duplicateKey(y.report, n, old, &f)
		}
	}
	for _, source := range merged {
		if source.kind != object {
			y.report.Errorf(source.pos(), source.width(), "E0202", "", "a merge key takes a mapping, not %v", source.kind)
			return 0, errStop
		}
		for _, f := range source.fields {
			n.add(f)
		}
	}
	return height, nil
}

// scalarKind is the kind of a scalar with a tag.
func scalarKind(tag string) kind {
	switch tag {
	case "!!null":
		return null
	case "!!bool":
		return boolean
	case "!!int", "!!float":
		return number
	}
	return text
}
