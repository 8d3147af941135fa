package intent

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// maxLine is how long a line with brackets may get before it is errChanges.
const maxLine = 100

var errChanges = errors.New("the file cannot be formatted without changing it")

// Format lays out an intent file in the one canonical way: keys in the order
// of the language, two spaces for each level, at most one blank line, comments
// where they were. It is idempotent and never changes what a file says: it
// reads its own output, and gives an error rather than a file that differs.
//
// A file that is not well formed is an error, of type merlon.Diagnostics. That
// its words mean something is not asked.
func Format(src []byte) ([]byte, error) {
	r := &reporter{}
	s, ok := readSource("", src, r)
	if !ok {
		return nil, r.sorted()
	}
	f := &formatter{source: s, layout: scan(s)}
	if s.root == nil {
		return f.onlyComments(), nil
	}
	if s.root.Kind == yaml.ScalarNode {
		return nil, errors.New("an intent starts with keys, such as \"services:\"")
	}
	f.root = f.build(s.root, nil)
	f.attach()
	f.sort(f.root, language())
	f.settle(f.root, 0)
	f.hoist(f.root)
	f.print()
	out := []byte(f.out.String())
	if err := f.verify(out); err != nil {
		return nil, err
	}
	return out, nil
}

// item is an entry of a mapping or of a list, with its comments.
type item struct {
	key, value *yaml.Node // key is nil in a list
	in         *group
	kids       *group   // nil for a scalar
	head       []string // comment lines before it; "" is a blank line
	tail       string   // comment at the end of its line
}

// start is where the item starts, and the column that comments before it have.
func (i *item) start() (at place, column int) {
	if i.key != nil {
		return placeOf(i.key), i.key.Column
	}
	return placeOf(i.value), i.in.node.Column
}

// group is a mapping or a list.
type group struct {
	node  *yaml.Node
	of    *item // nil for the whole file
	items []*item
	foot  []string
	flow  bool // stays in brackets
}

func (g *group) isFlow() bool { return g.node.Style&yaml.FlowStyle != 0 }

type formatter struct {
	*source
	layout layout
	root   *group
	order  []*item // as they stand in the file

	brackets, inside []*group // flow groups that are to come, and that are open
	header           []string
	out              strings.Builder
}

func (f *formatter) build(n *yaml.Node, of *item) *group {
	g := &group{node: n, of: of, flow: n.Style&yaml.FlowStyle != 0 || len(n.Content) == 0}
	if g.isFlow() {
		f.brackets = append(f.brackets, g)
	}
	step := 1
	if n.Kind == yaml.MappingNode {
		step = 2
	}
	for i := 0; i+step <= len(n.Content); i += step {
		it := &item{in: g, value: n.Content[i+step-1]}
		if step == 2 {
			it.key = n.Content[i]
		}
		g.items = append(g.items, it)
		f.order = append(f.order, it)
		if it.value.Kind != yaml.ScalarNode {
			it.kids = f.build(it.value, it)
		}
	}
	return g
}

// attach gives every comment and blank line to an item or a group.
func (f *formatter) attach() {
	next := 0
	var blank bool
	var limit *group // where the last foot of this run went: later ones go no deeper
	var heading bool // this run already belongs to the next item
	for _, c := range f.layout.comments {
		moved := false
		for next < len(f.order) {
			if at, _ := f.order[next].start(); !at.before(c.place) {
				break
			}
			next, moved = next+1, true
		}
		if moved {
			blank, limit, heading = false, nil, false
		}
		if c.text == "" {
			blank = true
			continue
		}
		lines := []string{c.text}
		if blank {
			lines = []string{"", c.text}
		}
		blank = false
		var prev, following *item
		if next > 0 {
			prev = f.order[next-1]
		}
		if next < len(f.order) {
			following = f.order[next]
		}
		switch owner := f.inner(c.place); {
		case !c.own && prev != nil:
			f.outer(prev, c.place).addTail(c.text)
		case prev != nil && prev.kids == nil && c.place.before(placeOf(prev.value)):
			prev.head = append(prev.head, lines...)
		case owner != nil && (following == nil || !f.contains(owner, following)):
			owner.foot = append(owner.foot, lines...)
		case owner != nil || heading:
			following.head = append(following.head, lines...)
		default:
			g := f.closing(prev, following, c.column, limit)
			if g == nil {
				following.head = append(following.head, lines...)
				heading = true
				break
			}
			g.foot = append(g.foot, lines...)
			limit = g
		}
	}
	f.blanks()
}

// blanks gives a blank line that stands directly before an item, or before its
// comments, to the item.
func (f *formatter) blanks() {
	empty := map[int]bool{}
	for _, c := range f.layout.comments {
		if c.text == "" {
			empty[c.line] = true
		}
	}
	done := map[int]bool{}
	for _, it := range f.order {
		at, _ := it.start()
		if done[at.line] {
			continue
		}
		done[at.line] = true
		if empty[at.line-1] {
			it.head = append(it.head, "")
		}
	}
}

func (i *item) addTail(text string) {
	if i.tail != "" {
		i.head = append(i.head, i.tail)
	}
	i.tail = text
}

// inner is the innermost pair of brackets around p. It is asked for places in
// order.
func (f *formatter) inner(p place) *group {
	for len(f.brackets) > 0 && placeOf(f.brackets[0].node).before(p) {
		f.inside, f.brackets = append(f.inside, f.brackets[0]), f.brackets[1:]
		f.leave(p)
	}
	f.leave(p)
	if len(f.inside) == 0 {
		return nil
	}
	return f.inside[len(f.inside)-1]
}

func (f *formatter) leave(p place) {
	for n := len(f.inside); n > 0 && f.layout.ends[f.inside[n-1].node].before(p); n-- {
		f.inside = f.inside[:n-1]
	}
}

func (f *formatter) contains(g *group, it *item) bool {
	for in := it.in; in != nil; in = in.of.in {
		if in == g {
			return true
		}
		if in.of == nil {
			return false
		}
	}
	return false
}

// outer climbs from it out of brackets that closed before p.
func (f *formatter) outer(it *item, p place) *item {
	for it.in.of != nil && it.in.isFlow() && f.layout.ends[it.in.node].before(p) {
		it = it.in.of
	}
	return it
}

// closing is the group at whose end a comment in this column stands: one that
// ends before the next item. It is nil when the comment is the next item's.
func (f *formatter) closing(prev, next *item, column int, limit *group) *group {
	switch {
	case prev == nil && next == nil:
		return f.root
	case prev == nil:
		return nil
	}
	if next != nil {
		if _, c := next.start(); column <= c {
			return nil
		}
	}
	g := prev.in
	if limit != nil {
		g = limit
	}
	for ; g.of != nil && (g.node.Column > column || g.isFlow()); g = g.of.in {
		if next != nil && f.contains(g, next) {
			return nil
		}
	}
	if next != nil && f.contains(g, next) {
		return nil
	}
	return g
}

// sort puts keys in the order of the language, and what is at the top of the
// file before all of them.
func (f *formatter) sort(g *group, s *shape) {
	if g == f.root && len(g.items) > 0 {
		if first := g.items[0]; slices.Contains(first.head, "") {
			i := len(first.head) - 1
			for first.head[i] != "" {
				i--
			}
			f.header, first.head = first.head[:i], first.head[i+1:]
		}
	}
	if s != nil && g.node.Kind == yaml.MappingNode && s.object != nil {
		order := canonicalKeys(s.object)
		rank := func(it *item) int {
			if n, known := order[it.key.Value]; known {
				return n
			}
			return len(order)
		}
		slices.SortStableFunc(g.items, func(a, b *item) int { return rank(a) - rank(b) })
	}
	for _, it := range g.items {
		if it.kids != nil {
			f.sort(it.kids, s.child(it))
		}
	}
}

// child is the shape of an item of s, or nil when the language has none.
func (s *shape) child(it *item) *shape {
	switch {
	case s == nil:
		return nil
	case it.key == nil:
		return s.list
	}
	for i := range s.object {
		if s.object[i].name == it.key.Value {
			return s.object[i].shape
		}
	}
	return s.dict
}

// settle decides which brackets stay. Brackets with comments inside, or longer
// than a line, become blocks.
func (f *formatter) settle(g *group, level int) {
	if g == f.root {
		g.flow = len(g.items) == 0
	}
	for _, it := range g.items {
		if it.kids == nil || !it.kids.flow {
			continue
		}
		if len(it.kids.items) == 0 {
			it.head, it.kids.foot = append(it.head, it.kids.foot...), nil
			continue
		}
		width := 2*level + utf8.RuneCountInString(f.inline(it.value))
		if it.key != nil {
			width += utf8.RuneCountInString(f.scalar(it.key)) + 2
		} else {
			width += 2
		}
		it.kids.flow = g.flow || width <= maxLine && !commented(it.kids)
	}
	for _, it := range g.items {
		if it.kids == nil {
			continue
		}
		if !it.kids.flow && it.key == nil && it.tail != "" {
			it.head, it.tail = append(it.head, it.tail), "" // "- # x" has no place for it
		}
		f.settle(it.kids, level+1)
	}
}

func commented(g *group) bool {
	for _, it := range g.items {
		if it.tail != "" || hasText(it.head) || it.kids != nil && commented(it.kids) {
			return true
		}
	}
	return len(g.foot) > 0
}

func hasText(lines []string) bool {
	return slices.ContainsFunc(lines, func(l string) bool { return l != "" })
}

// hoist moves comments before the first key of a list's item to before its
// dash, where the next reader would find them to be.
func (f *formatter) hoist(g *group) {
	for _, it := range g.items {
		if it.kids == nil || it.kids.flow {
			continue
		}
		f.hoist(it.kids)
		if first := it.kids.items; it.key == nil && len(first) > 0 {
			if hasText(first[0].head) {
				it.head = append(it.head, first[0].head...)
			}
			first[0].head = nil
		}
	}
}

func (f *formatter) print() {
	f.lines(f.header, 0)
	if len(f.header) > 0 {
		f.out.WriteByte('\n')
	}
	if f.root.flow {
		f.out.WriteString(f.inline(f.root.node) + "\n")
	}
	f.group(f.root, 0)
}

// lines prints comments; blank lines never double, and never start a group.
func (f *formatter) lines(lines []string, level int) {
	for i, l := range lines {
		switch {
		case l != "":
			f.out.WriteString(strings.Repeat("  ", level) + l + "\n")
		case i > 0 && lines[i-1] == "":
		default:
			f.out.WriteByte('\n')
		}
	}
}

func (f *formatter) group(g *group, level int) {
	for i, it := range g.items {
		head := it.head
		if i == 0 {
			head = trimBlank(head)
		}
		f.lines(head, level)
		f.out.WriteString(strings.Repeat("  ", level))
		f.item(it, level)
	}
	foot := g.foot
	if len(g.items) == 0 {
		foot = trimBlank(foot)
	}
	f.lines(foot, level)
}

func trimBlank(lines []string) []string {
	for len(lines) > 0 && lines[0] == "" {
		lines = lines[1:]
	}
	return lines
}

// item prints an item whose line is begun.
func (f *formatter) item(it *item, level int) {
	lead := "-"
	if it.key != nil {
		lead = f.scalar(it.key) + ":"
	}
	f.out.WriteString(lead)
	block := it.kids != nil && !it.kids.flow
	switch {
	case block && it.key == nil:
		f.out.WriteByte(' ')
		f.listItem(it.kids, level+1)
		return
	case block:
	case it.kids != nil:
		f.out.WriteString(" " + f.inline(it.value))
	default:
		if v, rest := f.value(it.value, level+1); v != "" {
			f.out.WriteString(" " + v)
			if rest != nil {
				f.tail(it)
				for _, l := range rest {
					if l != "" {
						l = strings.Repeat("  ", level+1) + l
					}
					f.out.WriteString(l + "\n")
				}
				return
			}
		}
	}
	f.tail(it)
	if block {
		f.group(it.kids, level+1)
	}
}

func (f *formatter) tail(it *item) {
	if it.tail != "" {
		f.out.WriteString("  " + it.tail)
	}
	f.out.WriteByte('\n')
}

// listItem prints a group whose first item stands behind a dash.
func (f *formatter) listItem(g *group, level int) {
	f.item(g.items[0], level)
	rest := *g
	rest.items = g.items[1:]
	for _, it := range rest.items {
		f.lines(it.head, level)
		f.out.WriteString(strings.Repeat("  ", level))
		f.item(it, level)
	}
	f.lines(g.foot, level)
}

// inline prints n in one line.
func (f *formatter) inline(n *yaml.Node) string {
	var parts []string
	switch n.Kind {
	case yaml.SequenceNode:
		for _, c := range n.Content {
			parts = append(parts, f.inline(c))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			part := f.scalar(n.Content[i])
			if v := f.inline(n.Content[i+1]); v != "" {
				part += ": " + v
			}
			parts = append(parts, part)
		}
		return "{" + strings.Join(parts, ", ") + "}"
	}
	return f.scalar(n)
}

// value prints a scalar: its text, or the header of a block and its lines.
func (f *formatter) value(n *yaml.Node, level int) (string, []string) {
	if n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) == 0 {
		return f.scalar(n), nil
	}
	lines := make([][]rune, len(f.source.lines))
	for i := n.Line - 1; i < len(lines); i++ {
		lines[i] = []rune(strings.TrimRight(f.source.lines[i], "\r"))
	}
	header := lines[n.Line-1][n.Column-1:]
	mark := string(header[0])
	for _, c := range header[1:] {
		if c == ' ' || c == '#' {
			break
		}
		mark += string(c)
	}
	first, margin := blockLines(lines, n.Line)
	if first == 0 || strings.Trim(mark, "|>-") != "" { // empty, or with an indentation or an end of its own
		return quote(n.Value), nil
	}
	if !strings.HasSuffix(n.Value, "\n") && len(mark) == 1 {
		mark += "-" // the file ended without a line end
	}
	c := &scanner{lines: lines}
	var out []string
	for line := n.Line + 1; line < c.blockEnd(n.Line); line++ {
		text := lines[line-1]
		out = append(out, string(text[min(margin, len(text)):]))
	}
	if !reads(mark, out, n.Value) { // such as spaces alone in the last line
		return quote(n.Value), nil
	}
	return mark, out
}

// reads says whether a block of lines has the value.
func reads(mark string, lines []string, value string) bool {
	var v struct{ X string }
	err := yaml.Load([]byte("x: "+mark+"\n  "+strings.Join(lines, "\n  ")+"\n"), &v)
	return err == nil && v.X == value
}

// scalar prints a scalar in one line, as it is written when it is in one line.
func (f *formatter) scalar(n *yaml.Node) string {
	switch {
	case n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0, strings.Contains(n.Value, "\n") && n.Style == 0:
		return quote(n.Value)
	case n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0:
		text := f.source.runesOf(n.Line)
		c := &scanner{lines: [][]rune{text}}
		if _, end := c.quoteEnd(1, n.Column-1); end > 0 {
			return string(text[n.Column-1 : end])
		}
		return quote(n.Value)
	}
	return n.Value
}

// quote writes a text in double quotes (YAML 1.2.2 5.7).
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteRune(c)
		case c == '\n':
			b.WriteString(`\n`)
		case c == '\t':
			b.WriteString(`\t`)
		case hidden(c):
			fmt.Fprintf(&b, `\U%08X`, c)
		default:
			b.WriteRune(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// onlyComments formats a file that says nothing.
func (f *formatter) onlyComments() []byte {
	var lines []string
	for _, c := range f.layout.comments {
		lines = append(lines, c.text)
	}
	for len(lines) > 0 && lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	f.lines(trimBlank(lines), 0)
	return []byte(f.out.String())
}

// verify reads what was printed and compares it with what was read.
func (f *formatter) verify(out []byte) error {
	r := &reporter{}
	again, ok := readSource("", out, r)
	if !ok || again.root == nil {
		return fmt.Errorf("%w: %v", errChanges, r.sorted())
	}
	if !sameTree(f.source.root, again.root) {
		return errChanges
	}
	texts := func(l layout) []string {
		var out []string
		for _, c := range l.comments {
			if c.text != "" {
				out = append(out, c.text)
			}
		}
		slices.Sort(out)
		return out
	}
	if !slices.Equal(texts(f.layout), texts(scan(again))) {
		return fmt.Errorf("%w: it would lose a comment", errChanges)
	}
	return nil
}

// sameTree compares what two trees say; the order of keys says nothing.
func sameTree(a, b *yaml.Node) bool {
	if a.Kind != b.Kind || len(a.Content) != len(b.Content) || a.Kind == yaml.ScalarNode && (a.Value != b.Value || a.ShortTag() != b.ShortTag()) {
		return false
	}
	if a.Kind != yaml.MappingNode {
		for i := range a.Content {
			if !sameTree(a.Content[i], b.Content[i]) {
				return false
			}
		}
		return true
	}
	used := make([]bool, len(b.Content))
	at := map[string][]int{}
	for i := 0; i+1 < len(b.Content); i += 2 {
		at[b.Content[i].Value] = append(at[b.Content[i].Value], i)
	}
	for i := 0; i+1 < len(a.Content); i += 2 {
		found := false
		for _, j := range at[a.Content[i].Value] {
			if !used[j] && sameTree(a.Content[i], b.Content[j]) && sameTree(a.Content[i+1], b.Content[j+1]) {
				used[j], found = true, true
				break
			}
		}
		if !found {
			return false
		}
	}
	return true
}
