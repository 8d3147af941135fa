package intent

import (
	"strings"

	"go.yaml.in/yaml/v4"
)

// place is a line and a column, both from 1, in characters.
type place struct{ line, column int }

func (p place) before(q place) bool {
	return p.line < q.line || p.line == q.line && p.column < q.column
}

func placeOf(n *yaml.Node) place { return place{n.Line, n.Column} }

// comment is one comment of a file, or a blank line (text is empty).
type comment struct {
	place
	text string
	own  bool // nothing but space, or the dashes of a list, stands before it
}

// layout is what the tree of a file does not tell: comments, blank lines and
// where brackets close.
type layout struct {
	comments []comment
	ends     map[*yaml.Node]place // of flow collections, the closing bracket
}

// scanner walks over the text of a file beside its tree. It can tell a comment
// from a number sign in a text because the tree says where quoted and block
// scalars start, and in a plain one " #" ends it (YAML 1.2.2 6.6).
type scanner struct {
	lines  [][]rune
	starts map[place]*yaml.Node // of quoted and block scalars and flow collections
	open   []*yaml.Node         // flow collections
	out    layout
}

func scan(s *source) layout {
	c := &scanner{starts: map[place]*yaml.Node{}, out: layout{ends: map[*yaml.Node]place{}}}
	for _, l := range s.lines {
		c.lines = append(c.lines, []rune(strings.TrimRight(l, "\r")))
	}
	if s.root != nil {
		c.collect(s.root)
	}
	for line := 1; line <= len(c.lines); {
		line = c.scanLine(line, 0)
	}
	return c.out
}

func (c *scanner) collect(n *yaml.Node) {
	quoted := n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0
	if n.Kind == yaml.ScalarNode && quoted || n.Kind != yaml.ScalarNode && n.Style&yaml.FlowStyle != 0 {
		if _, there := c.starts[placeOf(n)]; !there { // [[ has one place for each; {a} of [a: b] shares one
			c.starts[placeOf(n)] = n
		}
	}
	for _, child := range n.Content {
		c.collect(child)
	}
}

// scanLine reads a line from index i on, and returns the next line to read.
func (c *scanner) scanLine(line, i int) int {
	text := c.lines[line-1]
	if i == 0 && strings.TrimSpace(string(text)) == "" {
		c.out.comments = append(c.out.comments, comment{place: place{line, 1}, own: true})
		return line + 1
	}
	block := false
	for ; i < len(text); i++ {
		at := place{line, i + 1}
		n := c.starts[at]
		switch {
		case n != nil && n.Kind == yaml.ScalarNode && n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0:
			block = true
		case n != nil && n.Kind == yaml.ScalarNode:
			endLine, end := c.quoteEnd(line, i)
			if endLine != line {
				return c.scanLine(endLine, end)
			}
			i = end - 1
		case text[i] == '#' && (i == 0 || text[i-1] == ' '):
			before := strings.Trim(string(text[:i]), " -")
			own := before == "" || before == "---"
			if own {
				at.column = leading(text) + 1
			}
			c.out.comments = append(c.out.comments, comment{at, strings.TrimRight(string(text[i:]), " "), own})
			i = len(text)
		case n != nil && (text[i] == '[' || text[i] == '{'):
			c.open = append(c.open, n)
		case len(c.open) > 0 && (text[i] == ']' || text[i] == '}'):
			c.out.ends[c.open[len(c.open)-1]] = at
			c.open = c.open[:len(c.open)-1]
		}
	}
	if block {
		return c.blockEnd(line)
	}
	return line + 1
}

// quoteEnd is where the quoted scalar that starts at index i ends: its line,
// and the index after its closing quote.
func (c *scanner) quoteEnd(line, i int) (int, int) {
	quote := c.lines[line-1][i]
	for i++; line <= len(c.lines); line, i = line+1, 0 {
		text := c.lines[line-1]
		for ; i < len(text); i++ {
			switch {
			case quote == '"' && text[i] == '\\':
				i++
			case text[i] == quote && quote == '\'' && i+1 < len(text) && text[i+1] == quote:
				i++
			case text[i] == quote:
				return line, i + 1
			}
		}
	}
	return len(c.lines), 0
}

// blockEnd is the first line after the block scalar whose header is in line.
// Blank lines at its end are not its own.
func (c *scanner) blockEnd(line int) int {
	first, _ := blockLines(c.lines, line)
	if first == 0 {
		return line + 1
	}
	margin, last := leading(c.lines[first-1]), first
	for next := first; next <= len(c.lines); next++ {
		text := c.lines[next-1]
		if strings.TrimSpace(string(text)) == "" {
			continue
		}
		if leading(text) < margin {
			break
		}
		last = next
	}
	return last + 1
}

// blockLines finds the first line with text of a block scalar, and its margin.
func blockLines(lines [][]rune, header int) (first, margin int) {
	outer := leading(lines[header-1])
	for line := header + 1; line <= len(lines); line++ {
		text := lines[line-1]
		if strings.TrimSpace(string(text)) == "" {
			continue
		}
		if leading(text) <= outer {
			return 0, 0
		}
		return line, leading(text)
	}
	return 0, 0
}

func leading(text []rune) int {
	n := 0
	for n < len(text) && text[n] == ' ' {
		n++
	}
	return n
}
