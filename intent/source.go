package intent

import (
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
	"go.yaml.in/yaml/v4/plugin/loaderlimits"

	"merlon"
)

// maxDepth bounds the nesting of a file: the language needs nine levels, the
// rest is for the claims of a test.
const maxDepth = 32

// source is one file of an intent: its text, and the tree of it.
type source struct {
	name  string
	text  []byte
	lines []string
	root  *yaml.Node // a mapping; nil when the file says nothing

	cached int // the line of runes: nodes come line by line
	runes  []rune
}

// runesOf is a line as characters, without its end.
func (s *source) runesOf(line int) []rune {
	if line < 1 || line > len(s.lines) {
		return nil
	}
	if s.cached != line {
		s.cached, s.runes = line, []rune(strings.TrimSuffix(s.lines[line-1], "\r"))
	}
	return s.runes
}

// readSource parses a file into nodes, or reports why it cannot.
func readSource(name string, text []byte, r *reporter) (*source, bool) {
	s := &source{name: name, text: text}
	if !s.checkBytes(r) {
		return s, false
	}
	s.lines = strings.Split(string(text), "\n")
	for i, line := range s.lines { // no text of an intent can start a line: it is all in a mapping
		if strings.HasPrefix(line, "%") {
			r.at(word{pos: merlon.Pos{File: name, Line: i + 1, Column: 1}, width: len(strings.Fields(line)[0])}, codeFeature, "remove the line", "a YAML directive")
			return s, false
		}
	}
	var docs []yaml.Node
	err := yaml.Load(text, &docs, yaml.WithAllDocuments(), yaml.WithUniqueKeys(false),
		yaml.WithPlugin(loaderlimits.New(loaderlimits.AliasNone())))
	if err != nil {
		s.syntax(err, r)
		return s, false
	}
	if len(docs) == 0 {
		return s, true
	}
	if len(docs) > 1 {
		r.at(word{pos: merlon.Pos{File: name, Line: docs[1].Line, Column: docs[1].Column}, width: 3}, codeFeature,
			"put the second document in a file of its own", "the file holds %d documents", len(docs))
		return s, false
	}
	if !s.features(&docs[0], 0, r) {
		return s, false
	}
	if len(docs[0].Content) == 0 {
		return s, true
	}
	root := docs[0].Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" && root.Value == "" {
		return s, true
	}
	s.root = root
	return s, true
}

// checkBytes refuses what makes a file look different from what it says, or
// that an editor and this parser could number differently: invisible
// characters, those that change the direction of text, other line ends.
func (s *source) checkBytes(r *reporter) bool {
	line, column := 1, 1
	for i := 0; i < len(s.text); {
		c, size := utf8.DecodeRune(s.text[i:])
		w := word{pos: merlon.Pos{File: s.name, Line: line, Column: column}, width: 1}
		switch {
		case c == utf8.RuneError && size == 1:
			r.at(w, codeBytes, "save the file as UTF-8", "byte 0x%02x is not UTF-8", s.text[i])
			return false
		case c == '\t':
			r.at(w, codeBytes, "indent with spaces, and write \\t inside double quotes", "a tab")
			return false
		case c == '\n':
			line, column = line+1, 0
		case c == '\r' && i+1 < len(s.text) && s.text[i+1] == '\n':
		case unicode.IsControl(c), c == '\u2028', c == '\u2029', c == '\ufeff', unicode.Is(unicode.Bidi_Control, c):
			r.at(w, codeBytes, "remove it, or write it as an escape inside double quotes", "character %U does not show what it does", c)
			return false
		}
		i += size
		column++
	}
	return true
}

// syntax reports an error of the YAML parser.
func (s *source) syntax(err error, r *reporter) {
	var one *yaml.LoadError
	if many := (*yaml.LoadErrors)(nil); errors.As(err, &many) && len(many.Errors) > 0 {
		one = many.Errors[0]
	} else if !errors.As(err, &one) {
		r.at(word{pos: merlon.Pos{File: s.name}}, codeSyntax, "", "not YAML: %v", err)
		return
	}
	w := word{pos: merlon.Pos{File: s.name, Line: one.Mark.Line, Column: one.Mark.Column}, width: 1}
	var also []merlon.Pos
	if one.ContextMark.Line > 0 && one.ContextMark.Line != one.Mark.Line {
		also = append(also, merlon.Pos{File: s.name, Line: one.ContextMark.Line, Column: one.ContextMark.Column})
	}
	message, hint := one.Message, ""
	switch {
	case strings.Contains(message, "unknown anchor"):
		r.add(w, codeFeature, "write the value out", nil, "an alias")
		return
	case strings.Contains(message, "exceeded max depth"):
		message = "nested too deep"
	case strings.Contains(one.ContextMsg, "flow mapping"), strings.Contains(one.ContextMsg, "flow sequence"):
		hint = "inside { } and [ ], quote text that has one of { } [ ] , : in it"
		if s.isBlankFrom(one.Mark.Line) {
			message, hint = "a list is not closed", "close it with ]"
			if strings.Contains(one.ContextMsg, "flow mapping") {
				message, hint = "a mapping is not closed", "close it with }"
			}
			w.pos.Line, w.pos.Column, also = one.ContextMark.Line, one.ContextMark.Column, nil
		}
	case strings.Contains(message, "mapping values are not allowed"):
		message = "a colon where no key can be"
		hint = "check the indentation, and quote text that has \": \" in it"
	case strings.Contains(message, "comment without preceding"):
		message, hint = "a comment directly behind a text", "write a space before #"
	case strings.Contains(message, "cannot start any token"):
		message = "no text starts with this character"
		hint = "quote text that starts with one of @ ` %"
	case strings.Contains(message, "did not find expected key"), strings.Contains(message, "did not find expected '-'"):
		hint = "check the indentation of this line and the one before"
	case strings.Contains(one.ContextMsg, "quoted scalar"):
		message, hint = "a quote is not closed", "close it, and quote text that has a quote in it with the other kind"
		w.pos.Line, w.pos.Column = one.ContextMark.Line, one.ContextMark.Column
		also = nil
	}
	r.add(w, codeSyntax, hint, also, "not YAML: %s", strings.TrimPrefix(message, "yaml: "))
}

// isBlankFrom says whether nothing follows from this line on.
func (s *source) isBlankFrom(line int) bool {
	return line > len(s.lines) || strings.TrimSpace(strings.Join(s.lines[line-1:], "")) == ""
}

// features refuses the parts of YAML that an intent does not need and that
// have been used to say one thing and mean another.
func (s *source) features(n *yaml.Node, depth int, r *reporter) bool {
	ok := false
	w := word{pos: merlon.Pos{File: s.name, Line: n.Line, Column: n.Column}, width: 1}
	switch {
	case depth > maxDepth:
		r.at(w, codeTooMuch, "", "nested deeper than %d levels", maxDepth)
		return false
	case n.Kind == yaml.AliasNode:
		w.width = 1 + utf8.RuneCountInString(n.Value)
		r.at(w, codeFeature, "write the value out", "an alias")
		return false
	case n.Anchor != "":
		w.width = 1 + utf8.RuneCountInString(n.Anchor)
		r.at(s.near(w, "&"+n.Anchor), codeFeature, "remove it, and write each value out", "an anchor")
	case n.Style&yaml.TaggedStyle != 0, s.at(n) == '!': // a lone ! is a tag too
		r.at(s.near(w, "!"), codeFeature, "remove it", "a tag")
	case n.Tag == "!!merge":
		w.width = len(n.Value)
		r.at(w, codeFeature, "write the keys out", "a merge key")
	default:
		ok = true
	}
	for i := 0; n.Kind == yaml.MappingNode && i < len(n.Content); i += 2 {
		ok = s.plainKey(n.Content[i], r) && ok
	}
	for _, child := range n.Content {
		ok = s.features(child, depth+1, r) && ok
	}
	return ok
}

// plainKey refuses keys that are not words, and keys behind a question mark.
func (s *source) plainKey(k *yaml.Node, r *reporter) bool {
	w := word{pos: merlon.Pos{File: s.name, Line: k.Line, Column: k.Column}, width: 1}
	if k.Kind == yaml.AliasNode {
		return true // reported as what it is
	}
	if k.Kind != yaml.ScalarNode || k.Style == 0 && k.Value == "" {
		r.at(w, codeFeature, "a key is one word", "a key is %s", kindName(k))
		return false
	}
	line := s.runesOf(k.Line)
	i := min(k.Column-1, len(line)) - 1
	for i > 0 && line[i] == ' ' {
		i--
	}
	if i >= 0 && line[i] == '?' || k.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
		r.at(w, codeFeature, "write key: value", "a key behind a question mark")
		return false
	}
	return true
}

// at is the character where n stands.
func (s *source) at(n *yaml.Node) rune {
	if line := s.runesOf(n.Line); n.Column >= 1 && n.Column <= len(line) {
		return line[n.Column-1]
	}
	return 0
}

// near moves w to where text stands on its line, at or before w: YAML places
// a block mapping at its first key and not at its anchor or tag.
func (s *source) near(w word, text string) word {
	for line := w.pos.Line; line >= max(1, w.pos.Line-1); line-- {
		l := s.lines[line-1]
		if line == w.pos.Line {
			l = string([]rune(l)[:min(utf8.RuneCountInString(l), w.pos.Column-1+utf8.RuneCountInString(text))])
		}
		if i := strings.LastIndex(l, text); i >= 0 {
			w.pos.Line, w.pos.Column = line, utf8.RuneCountInString(l[:i])+1
			return w
		}
	}
	return w
}

// word is where n stands: the text of a scalar without its quotes, the first
// key of a mapping, the bracket of what is written in brackets.
func (s *source) word(n *yaml.Node) word {
	w := word{text: n.Value, pos: merlon.Pos{File: s.name, Line: n.Line, Column: n.Column}, width: 1}
	if n.Kind != yaml.ScalarNode {
		if n.Style&yaml.FlowStyle == 0 && len(n.Content) > 0 {
			first := s.word(n.Content[0])
			w.pos, w.width = first.pos, first.width
		}
		return w
	}
	switch {
	case n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		for i := n.Line; i < len(s.lines); i++ { // the first line of the text
			if t := strings.TrimLeft(s.lines[i], " "); t != "" && t != "\r" {
				w.pos.Line, w.pos.Column = i+1, len(s.lines[i])-len(t)+1
				break
			}
		}
		first, _, _ := strings.Cut(n.Value, "\n")
		w.width = utf8.RuneCountInString(first)
	case n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0:
		w.width = s.quoted(n)
		w.pos.Column++
	default:
		w.width = utf8.RuneCountInString(n.Value)
	}
	w.width = max(w.width, 1)
	return w
}

// quoted is the number of characters between the quotes of n, up to the end of
// its first line.
func (s *source) quoted(n *yaml.Node) int {
	line := s.runesOf(n.Line)
	quote := '\''
	if n.Style&yaml.DoubleQuotedStyle != 0 {
		quote = '"'
	}
	i := n.Column
	for ; i < len(line); i++ {
		if line[i] == '\\' && quote == '"' {
			i++
			continue
		}
		if line[i] == quote {
			if quote == '\'' && i+1 < len(line) && line[i+1] == quote {
				i++
				continue
			}
			break
		}
	}
	return min(i, len(line)) - n.Column
}
