package intent

import (
	"fmt"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v4"

	"merlon"
)

// shape says what a value of the language may be. A shape allows a scalar, a
// mapping and a list independently: the three look different in YAML, so there
// is never a doubt which one was meant.
type shape struct {
	text   *text  // a scalar, when not nil
	object []key  // a mapping with these keys, when not nil
	dict   *shape // a mapping from names to this, when not nil
	names  *text  // the names of dict
	list   *shape // a list of this, when not nil
	any    bool   // anything: the claims of a test
	empty  bool   // an empty list or dict says something
}

// key is one key of the language: all that the parser, the schema and the
// reference know about it.
type key struct {
	name     string
	doc      string // for people, in sentences
	shape    *shape
	def      string // what is meant when the key is left out
	required bool
	example  string // a whole intent that loads
	see      string // the key that has the reference, when this one is like it
}

// text says what a scalar may be.
type text struct {
	what    string   // completes "expects ..."
	enum    []string // these words only
	pattern string   // the form, for the schema; and for Load when there is no check
	check   func(string) *problem
	hint    func(string) string // what to do about a word that is not in enum
	code    string              // of a failure; codeValue when empty
	number  bool                // YAML may take it for a number or a boolean
	integer bool
}

// problem is what is wrong with a text.
type problem struct {
	code    string
	message string
	hint    string
}

// problemOf examines s. A nil result is good.
func (t *text) problemOf(s string) *problem {
	code := t.code
	if code == "" {
		code = codeValue
	}
	switch {
	case strings.TrimSpace(s) == "" && t.enum == nil && !t.number:
		return &problem{code, "the text is empty", "write " + t.what + ", or leave the key out"}
	case t.enum != nil:
		for _, word := range t.enum {
			if s == word {
				return nil
			}
		}
		hint := "expects " + t.what
		if near := nearest(s, t.enum); near != "" && !t.number {
			hint = fmt.Sprintf("did you mean %q?", near)
		}
		if t.hint != nil {
			hint = t.hint(s)
		}
		return &problem{code, fmt.Sprintf("%q is not %s", clip(s), t.what), hint}
	case t.check != nil:
		return t.check(s)
	case t.pattern != "" && !regexp.MustCompile(t.pattern).MatchString(s):
		return &problem{code, fmt.Sprintf("%q is not %s", clip(s), t.what), ""}
	}
	return nil
}

// checker compares what was written in one file with the table of the
// language. What it finds wrong it reports and marks, so that nothing later
// stumbles over it.
type checker struct {
	*source
	report *reporter
	bad    map[*yaml.Node]bool
}

func (c *checker) fail(n *yaml.Node, code, hint, format string, args ...any) {
	c.bad[n] = true
	c.report.at(c.word(n), code, hint, format, args...)
}

// check holds n against s; what names n for messages, and at is where that
// name stands.
func (c *checker) check(n *yaml.Node, s *shape, what string, at word) {
	if s.any {
		c.checkAny(n)
		return
	}
	switch {
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null" && n.Value == "":
		c.fail(n, codeKind, "write "+s.expects()+", or leave the key out", "%s has no value", what)
	case n.Kind == yaml.ScalarNode && s.text != nil:
		if p := s.text.problemOf(n.Value); p != nil {
			c.fail(n, p.code, p.hint, "%s", p.message)
		}
	case n.Kind == yaml.MappingNode && s.object != nil:
		c.checkObject(n, s.object, what, at)
	case n.Kind == yaml.MappingNode && s.dict != nil:
		c.checkDict(n, s, what)
	case n.Kind == yaml.SequenceNode && s.list != nil:
		if len(n.Content) == 0 && !s.empty {
			c.fail(n, codeKind, "write "+s.expects()+", or leave the key out", "%s is empty", what)
		}
		for _, item := range n.Content {
			c.check(item, s.list, "an item of "+what, c.word(item))
		}
	default:
		hint := ""
		if isUnquotedBrace(n) && s.text != nil {
			hint = fmt.Sprintf("quote it: \"{%s}\"", n.Content[0].Value)
		} else if s.dict != nil && n.Kind == yaml.SequenceNode {
			hint = "write each name as a key, without a dash"
		}
		c.fail(n, codeKind, hint, "%s expects %s, not %s", what, s.expects(), kindName(n))
	}
}

func (c *checker) checkObject(n *yaml.Node, keys []key, what string, at word) {
	byName := make(map[string]*key, len(keys))
	names := make([]string, len(keys))
	for i := range keys {
		names[i] = keys[i].name
		byName[keys[i].name] = &keys[i]
	}
	seen, meant := make(map[string]*yaml.Node, len(keys)), map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if !c.checkKey(k, v, seen) {
			continue
		}
		known := byName[k.Value]
		if known == nil {
			c.bad[v] = true
			hint := "the keys here are " + strings.Join(names, ", ")
			if near := nearest(k.Value, names); near != "" {
				meant[near] = true
				hint = fmt.Sprintf("did you mean %q?", near)
			}
			c.fail(k, codeUnknownKey, hint, "%s has no key %q", what, clip(k.Value))
			continue
		}
		c.check(v, known.shape, known.name, c.word(k))
	}
	for i := range keys {
		if keys[i].required && seen[keys[i].name] == nil && !meant[keys[i].name] {
			hint := "write " + keys[i].name + ": " + keys[i].shape.expects()
			c.report.at(at, codeMissingKey, hint, "%s needs the key %q", what, keys[i].name)
		}
	}
}

func (c *checker) checkDict(n *yaml.Node, s *shape, what string) {
	if len(n.Content) == 0 && !s.empty {
		c.fail(n, codeKind, "leave the key out", "%s is empty", what)
	}
	seen := make(map[string]*yaml.Node, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if !c.checkKey(k, v, seen) {
			continue
		}
		if p := s.names.problemOf(k.Value); p != nil {
			c.fail(k, p.code, p.hint, "%s", p.message)
		}
		c.check(v, s.dict, fmt.Sprintf("%q", clip(k.Value)), c.word(k))
	}
}

// checkKey says whether a key is a word that is not there already.
func (c *checker) checkKey(k, v *yaml.Node, seen map[string]*yaml.Node) bool {
	if first := seen[k.Value]; first != nil {
		c.bad[v] = true
		c.bad[k] = true
		c.report.add(c.word(k), codeDuplicateKey, "join the two, or remove one", []merlon.Pos{c.word(first).pos},
			"%q is here twice", clip(k.Value))
		return false
	}
	seen[k.Value] = k
	return true
}

// checkAny checks only that keys are words and there once.
func (c *checker) checkAny(n *yaml.Node) {
	switch n.Kind {
	case yaml.MappingNode:
		seen := make(map[string]*yaml.Node, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			if c.checkKey(n.Content[i], n.Content[i+1], seen) {
				c.checkAny(n.Content[i+1])
			}
		}
	case yaml.SequenceNode:
		for _, item := range n.Content {
			c.checkAny(item)
		}
	}
}

// field is one good entry of a mapping.
type field struct{ key, value *yaml.Node }

// fields are the good entries of n in the order they were written.
func (c *checker) fields(n *yaml.Node) []field {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	out := make([]field, 0, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		if k, v := n.Content[i], n.Content[i+1]; !c.bad[k] && !c.bad[v] {
			out = append(out, field{k, v})
		}
	}
	return out
}

// get is the good value of a key, or nil.
func (c *checker) get(n *yaml.Node, name string) *yaml.Node {
	for _, f := range c.fields(n) {
		if f.key.Value == name {
			return f.value
		}
	}
	return nil
}

// has says whether a key is there, good or not.
func (c *checker) has(n *yaml.Node, name string) bool {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name {
			return true
		}
	}
	return false
}

// words are the good scalars of a list, or the one scalar that n is.
func (c *checker) words(n *yaml.Node) []word {
	switch {
	case n == nil || c.bad[n]:
		return nil
	case n.Kind == yaml.ScalarNode:
		return []word{c.word(n)}
	}
	var out []word
	for _, item := range n.Content {
		if item.Kind == yaml.ScalarNode && !c.bad[item] {
			out = append(out, c.word(item))
		}
	}
	return out
}

// expects completes "expects ...".
func (s *shape) expects() string {
	var parts []string
	if s.text != nil {
		parts = append(parts, s.text.what)
	}
	switch {
	case s.object != nil:
		names := make([]string, len(s.object))
		for i := range s.object {
			names[i] = s.object[i].name
		}
		parts = append(parts, "a mapping {"+strings.Join(names, ", ")+"}")
	case s.dict != nil:
		parts = append(parts, "a mapping from "+s.names.what)
	}
	if s.list != nil {
		parts = append(parts, "a list")
	}
	return strings.Join(parts, " or ")
}

func kindName(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Value == "":
		return "nothing"
	}
	return "text"
}

// isUnquotedBrace recognises {bin}: a placeholder that YAML takes for a mapping.
func isUnquotedBrace(n *yaml.Node) bool {
	return n.Kind == yaml.MappingNode && n.Style&yaml.FlowStyle != 0 && len(n.Content) == 2 &&
		n.Content[0].Kind == yaml.ScalarNode && n.Content[1].Tag == "!!null" && n.Content[1].Value == ""
}
