package route

import (
	"fmt"
	"strings"

	"merlon"
)

// maxSteps bounds the search for overlaps. Ten thousand ordinary routes take
// about as many steps; only templates made to overlap in every way reach it.
const maxSteps = 8 << 20

// compareCost is what it costs to compare two templates, in steps.
const compareCost = 16

// overlaps finds the templates that match a common path. It walks the tree
// against itself: only pairs of branches that a common path reaches are seen.
type overlaps struct {
	router *Router
	report *Report
	budget int
	each   func(a, b *leaf) // takes every pair in place of the report, when not nil
}

// spend counts steps and reports whether any are left.
func (o *overlaps) spend(steps int) bool {
	if o.budget -= steps; o.budget > 0 {
		return true
	}
	o.report.Errorf(o.router.routes[0].Pos, 0, "E0215", "make the paths more concrete at their beginning", "too many templates match the same paths to compare them all")
	return false
}

// pairs compares what is below two branches that a common path reaches; they
// may be the same one.
func (o *overlaps) pairs(a, b *branch) {
	if !o.spend(1) {
		return
	}
	if a != b {
		o.leaves(a.end, b.end)
		o.leaves(a.rest, b.rest)
		o.below(a.rest, b) // of one branch, it is the less concrete throughout
		o.below(b.rest, a)
		o.texts(b, a)
	} else if o.each != nil {
		o.below(a.rest, a)
	}
	o.texts(a, b)
	if a == b {
		for _, text := range a.texts {
			o.pairs(a.literal[text], a.literal[text])
		}
	} else {
		small, large := a, b
		if len(small.texts) > len(large.texts) {
			small, large = large, small
		}
		for _, text := range small.texts {
			if to := large.literal[text]; to != nil {
				o.pairs(small.literal[text], to)
			}
		}
	}
	o.wilds(a, b)
}

// texts compares the literals of a with the parameters of b.
func (o *overlaps) texts(a, b *branch) {
	for _, text := range a.texts {
		if text == "" || !o.spend(1+len(b.partial)) {
			continue
		}
		for i := range b.partial {
			if e := &b.partial[i]; e.segment.match(text) {
				o.pairs(a.literal[text], e.to)
			}
		}
		if b.param != nil {
			o.pairs(a.literal[text], b.param)
		}
	}
}

// wilds compares the parameters of a with those of b.
func (o *overlaps) wilds(a, b *branch) {
	for i := range a.partial {
		from := 0
		if a == b {
			from = i
		}
		for j := from; j < len(b.partial); j++ {
			s, t := &a.partial[i], &b.partial[j]
			if !o.spend(1) {
				return
			}
			if apart(&s.segment, &t.segment) {
				continue
			}
			if !o.spend(crossingCost(&s.segment, &t.segment)) {
				return
			}
			if _, ok := common(&s.segment, &t.segment); ok {
				o.pairs(s.to, t.to)
			}
		}
		if b.param != nil {
			o.pairs(a.partial[i].to, b.param)
		}
	}
	if a.param == nil {
		return
	}
	if b.param != nil {
		o.pairs(a.param, b.param)
	}
	if a != b {
		for i := range b.partial {
			o.pairs(a.param, b.partial[i].to)
		}
	}
}

// below compares a template that takes all that follows with everything below
// a branch, but for another such template right there.
func (o *overlaps) below(rest *leaf, b *branch) {
	if rest == nil {
		return
	}
	for _, text := range b.texts {
		if text != "" {
			o.all(rest, b.literal[text])
		}
	}
	for i := range b.partial {
		o.all(rest, b.partial[i].to)
	}
	if b.param != nil {
		o.all(rest, b.param)
	}
}

// all compares rest with every leaf at or below a branch.
func (o *overlaps) all(rest *leaf, b *branch) {
	if !o.spend(1) {
		return
	}
	o.leaves(rest, b.end)
	o.leaves(rest, b.rest)
	for _, text := range b.texts {
		o.all(rest, b.literal[text])
	}
	for i := range b.partial {
		o.all(rest, b.partial[i].to)
	}
	if b.param != nil {
		o.all(rest, b.param)
	}
}

// leaves reports two templates that match a common path, unless one of them is
// the more concrete in every segment in which they differ.
func (o *overlaps) leaves(a, b *leaf) {
	if a == nil || b == nil || !o.spend(compareCost) {
		return
	}
	if o.each != nil {
		o.each(a, b)
		return
	}
	x, y := &o.router.routes[a.routes[0].index], &o.router.routes[b.routes[0].index]
	rel, example := compare(x.template, y.template)
	if rel.first == 0 || rel.silent() {
		return
	}
	if rel.first != neither && len(o.report.warnings) == MaxReports {
		return
	}
	winner, loser := x, y
	if rel.first == bMore || rel.first == neither && compareTemplates(x.template, y.template) > 0 {
		winner, loser = y, x
	}
	d := merlon.Diagnostic{Code: "W0201", Warning: true,
		Message: fmt.Sprintf("%s and %s both match %s; %s is taken, the more concrete from the left",
			Quote(winner.Path), Quote(loser.Path), Quote(example), Quote(winner.Path)),
		Hint: "an application may take the other one; make one of the paths more concrete"}
	if rel.first == neither {
		d = merlon.Diagnostic{Code: "E0213",
			Message: fmt.Sprintf("%s and %s both match %s, and neither is the more concrete", Quote(winner.Path), Quote(loser.Path), Quote(example)),
			Hint:    "make one of the paths more concrete"}
	}
	d.Pos, d.Also = loser.Pos, []merlon.Pos{winner.Pos}
	if winner.Pos.Compare(loser.Pos) > 0 {
		d.Pos, d.Also = winner.Pos, []merlon.Pos{loser.Pos}
	}
	o.report.Add(d)
}

// relation says how two templates with a common path differ.
type relation struct {
	first difference // in the first segment that differs; 0 when none does
	all   difference // bits of all segments
}

// difference is a set of bits.
type difference uint8

const (
	aMore   difference = 1 << iota // a is the more concrete in a segment
	bMore                          // b is
	neither                        // they overlap otherwise
)

// silent reports whether one template is the more concrete throughout.
func (r relation) silent() bool { return r.all == aMore || r.all == bMore }

func (r *relation) add(d difference) {
	if r.first == 0 {
		r.first = d
	}
	r.all |= d
}

// compare says how two templates that match a common path differ, and gives an
// example of such a path.
func compare(a, b Template) (r relation, example string) {
	var path strings.Builder
	for i := range min(len(a), len(b)) {
		s, t := &a[i], &b[i]
		if s.rest || t.rest {
			other := b[i:]
			switch {
			case !t.rest:
				r.add(bMore)
			case !s.rest:
				r.add(aMore)
				other = a[i:]
			}
			for j := range other {
				path.WriteString("/" + sample(&other[j]))
			}
			break
		}
		text, _ := common(s, t)
		path.WriteString("/" + text)
		switch inB, inA := t.covers(s), s.covers(t); {
		case inA && inB:
		case inB:
			r.add(aMore)
		case inA:
			r.add(bMore)
		default:
			r.add(neither)
		}
	}
	return r, path.String()
}

// compareTemplates orders templates that part in a segment in which neither is
// the more concrete, as the tree orders them.
func compareTemplates(a, b Template) int {
	for i := range min(len(a), len(b)) {
		if c := compareSegments(&a[i], &b[i]); c != 0 {
			return c
		}
	}
	return 0
}

// sample is a text that a segment matches.
func sample(s *segment) string { return strings.Join(s.literals, "x") }

// covers reports whether s matches all that t matches. A parameter's value that
// no literal contains stands for every value.
func (s *segment) covers(t *segment) bool {
	text := strings.Join(t.literals, "\x00")
	if len(s.names) == 0 {
		return text == s.literals[0]
	}
	return text != "" && s.match(text)
}

// common finds a text that both segments match.
func common(s, t *segment) (string, bool) {
	switch {
	case len(s.names) == 0:
		text := s.literals[0]
		return text, len(t.names) == 0 && t.literals[0] == text || len(t.names) > 0 && text != "" && t.match(text)
	case len(t.names) == 0:
		return common(t, s)
	case s.whole():
		return sample(t), true
	case t.whole():
		return sample(s), true
	}
	c := crossing{a: s.tokens(), b: t.tokens()}
	c.failed = make([]bool, (len(c.a)+1)*(len(c.b)+1))
	if !c.from(0, 0) {
		return "", false
	}
	for i, j := 0, len(c.text)-1; i < j; i, j = i+1, j-1 {
		c.text[i], c.text[j] = c.text[j], c.text[i]
	}
	return string(c.text), true
}

// apart reports whether what two partial segments begin or end with tells them
// apart: the cheap test before common.
func apart(s, t *segment) bool {
	a, b := s.literals[0], t.literals[0]
	n := min(len(a), len(b))
	if a[:n] != b[:n] {
		return true
	}
	a, b = s.literals[len(s.names)], t.literals[len(t.names)]
	n = min(len(a), len(b))
	return a[len(a)-n:] != b[len(b)-n:]
}

// crossingCost is what common costs, in steps.
func crossingCost(s, t *segment) int {
	return 32 + (s.concreteness()+2*len(s.names)+1)*(t.concreteness()+2*len(t.names)+1)
}

// Tokens of a segment, besides its characters.
const (
	anyOne  = -1 // one character
	anyMore = -2 // none or more
)

// tokens spells a segment out: a parameter is anyOne and anyMore.
func (s *segment) tokens() []int {
	var ts []int
	for i, literal := range s.literals {
		if i > 0 {
			ts = append(ts, anyOne, anyMore)
		}
		for _, c := range []byte(literal) {
			ts = append(ts, int(c))
		}
	}
	return ts
}

// crossing searches a text that two token lists match.
type crossing struct {
	a, b   []int
	failed []bool // by position in a and b: known to lead nowhere
	text   []byte // reversed
}

func (c *crossing) from(i, j int) bool {
	if i == len(c.a) && j == len(c.b) {
		return true
	}
	key := i*(len(c.b)+1) + j
	if c.failed[key] {
		return false
	}
	if c.step(i, j) {
		return true
	}
	c.failed[key] = true
	return false
}

func (c *crossing) step(i, j int) bool {
	moreA, moreB := i < len(c.a) && c.a[i] == anyMore, j < len(c.b) && c.b[j] == anyMore
	switch {
	case moreA && c.from(i+1, j), moreB && c.from(i, j+1):
		return true
	case i == len(c.a) || j == len(c.b):
		return false
	case moreA && moreB:
		return false // both were tried to end
	case moreA:
		return c.from(i, j+1) && c.emit(c.b[j])
	case moreB:
		return c.from(i+1, j) && c.emit(c.a[i])
	case c.a[i] == anyOne:
		return c.from(i+1, j+1) && c.emit(c.b[j])
	case c.b[j] == anyOne || c.a[i] == c.b[j]:
		return c.from(i+1, j+1) && c.emit(c.a[i])
	}
	return false
}

// emit writes the character of a token.
func (c *crossing) emit(token int) bool {
	if token < 0 {
		token = 'x'
	}
	c.text = append(c.text, byte(token))
	return true
}
