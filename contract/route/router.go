package route

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"merlon"
)

// Route is a method and a path template that a Router picks.
type Route struct {
	Method string // "*" is any method that no other route of the template has
	Path   string
	Pos    merlon.Pos // where it is written, for diagnostics
	Name   string
}

// Found says what a Router found.
type Found uint8

const (
	NotFound Found = iota // no template matches the path
	NoMethod              // a template matches the path, but no route of it has the method
	Matched
)

// Router picks exactly one route for a method and a canonical path. It is
// immutable, and safe for concurrent use.
//
// The template is chosen by the path alone, as OpenAPI has it, and only then
// the method: a path that /users/me matches never falls back to /users/{id},
// not even for a method that only the latter has. Of several templates that
// match, segment by segment from the left the most concrete wins: text before
// text with parameters (more given characters first), before {name}, before
// {name...}. Slashes at the end count: /a and /a/ are two paths.
//
// A parameter takes one character or more. Of a segment such as
// {base}...{head} each parameter takes as little as it can; where there is more
// than one way to split it, the path is not found: the application could read
// what was decided upon differently.
type Router struct {
	root   branch
	routes []compiled
}

// compiled is a route with its template, for the values of its parameters.
type compiled struct {
	Route
	template Template
}

// branch is a place between two segments in the tree of templates. Every
// template is one way from the root to a leaf.
type branch struct {
	literal map[string]*branch
	partial []edge // most concrete first
	param   *branch
	rest    *leaf
	end     *leaf
	texts   []string // keys of literal, sorted
}

// edge is a segment with parameters and what follows it.
type edge struct {
	segment segment
	to      *branch
}

// leaf is one template and its routes, by method.
type leaf struct{ routes []methodRoute }

type methodRoute struct {
	method string
	index  int
}

// NewRouter builds a router over routes. Diagnostics tell of a template that
// cannot be read (E0210), of two routes with one method whose templates match
// the same paths (E0212), of two templates that match one path where neither is
// the more concrete in the segment in which they part (E0213), and warn of two
// that match one path where only the order of the segments decides, such as
// /a/{x} and /{y}/b (W0201): OpenAPI leaves those to the tools, so an
// application may decide them the other way round. The router is of use even
// so: the first of two equal routes wins.
func NewRouter(routes []Route) (*Router, merlon.Diagnostics) {
	r := &Router{routes: make([]compiled, len(routes))}
	rep := &Report{}
	for i, route := range routes {
		r.routes[i].Route = route
		t, err := ParseTemplate(route.Path)
		if err != nil {
			rep.Errorf(route.Pos, 0, CodeTemplate, "", "%v", err)
			continue
		}
		r.routes[i].template = t
		l := r.root.leaf(t)
		if first := l.exact(route.Method); first >= 0 {
			sameTemplate(rep, &r.routes[first], &r.routes[i])
			continue
		}
		l.routes = append(l.routes, methodRoute{route.Method, i})
	}
	r.root.sort()
	o := overlaps{router: r, report: rep, budget: maxSteps}
	o.pairs(&r.root, &r.root)
	return r, rep.Sorted()
}

// sameTemplate reports two routes of which the second could never be reached.
func sameTemplate(rep *Report, a, b *compiled) {
	if b.Pos.Compare(a.Pos) < 0 {
		a, b = b, a
	}
	_, example := compare(a.template, b.template)
	rep.Add(merlon.Diagnostic{Pos: b.Pos, Width: utf8.RuneCountInString(b.Name), Code: "E0212",
		Message: fmt.Sprintf("%s and %s are the same: both match %s", Quote(a.Method+" "+a.Path), Quote(b.Method+" "+b.Path),
			Quote(example)),
		Hint: "leave one of them", Also: []merlon.Pos{a.Pos}})
}

// leaf is the leaf of a template; it grows the tree where needed.
func (b *branch) leaf(t Template) *leaf {
	for i := range t {
		s := &t[i]
		if s.rest {
			if b.rest == nil {
				b.rest = &leaf{}
			}
			return b.rest
		}
		b = b.next(s)
	}
	if b.end == nil {
		b.end = &leaf{}
	}
	return b.end
}

// next is the branch after a segment.
func (b *branch) next(s *segment) *branch {
	switch {
	case len(s.names) == 0:
		to := b.literal[s.literals[0]]
		if to == nil {
			to = &branch{}
			if b.literal == nil {
				b.literal = map[string]*branch{}
			}
			b.literal[s.literals[0]] = to
		}
		return to
	case s.whole():
		if b.param == nil {
			b.param = &branch{}
		}
		return b.param
	}
	at, ok := slices.BinarySearchFunc(b.partial, s, func(e edge, s *segment) int { return compareSegments(&e.segment, s) })
	if !ok {
		b.partial = slices.Insert(b.partial, at, edge{*s, &branch{}})
	}
	return b.partial[at].to
}

// compareSegments orders partial segments, the most concrete first. One that
// matches only a part of what another matches has more given characters; so
// this order never lets the wider one win.
func compareSegments(a, b *segment) int {
	return cmp.Or(cmp.Compare(b.concreteness(), a.concreteness()), slices.Compare(b.literals, a.literals))
}

// sort readies the tree for the search of overlaps.
func (b *branch) sort() {
	for text, to := range b.literal {
		b.texts = append(b.texts, text)
		to.sort()
	}
	slices.Sort(b.texts)
	for _, e := range b.partial {
		e.to.sort()
	}
	if b.param != nil {
		b.param.sort()
	}
}

// exact is the index of the route with just this method, or -1.
func (l *leaf) exact(method string) int {
	for i := range l.routes {
		if l.routes[i].method == method {
			return l.routes[i].index
		}
	}
	return -1
}

// Match picks the route for a method and a canonical path. The values of the
// template's parameters are appended to params[:0] in the order of the path;
// they are views of path, in its percent-encoded form. Without enough room in
// params it allocates, else never. When nothing is Matched, index is -1.
func (r *Router) Match(method, path string, params []merlon.Param) (index int, ps []merlon.Param, found Found) {
	ps = params[:0]
	if path == "" || path[0] != '/' {
		return -1, ps, NotFound
	}
	l := r.root.match(path[1:])
	if l == nil {
		return -1, ps, NotFound
	}
	if index = l.exact(method); index < 0 {
		if index = l.exact("*"); index < 0 {
			return -1, ps, NoMethod
		}
	}
	ps, ok := r.routes[index].template.capture(path[1:], ps)
	if !ok {
		return -1, ps[:0], NotFound
	}
	return index, ps, Matched
}

// match finds the leaf for the rest of a path, the most concrete first. It may
// come back from a way that leads nowhere; as no branch has two ways to it,
// each is visited once at most.
func (b *branch) match(path string) *leaf {
	text, after, more := strings.Cut(path, "/")
	if to := b.literal[text]; to != nil {
		if l := to.follow(after, more); l != nil {
			return l
		}
	}
	if text == "" {
		return nil // no parameter is empty
	}
	for i := range b.partial {
		if e := &b.partial[i]; e.segment.match(text) {
			if l := e.to.follow(after, more); l != nil {
				return l
			}
		}
	}
	if b.param != nil {
		if l := b.param.follow(after, more); l != nil {
			return l
		}
	}
	return b.rest
}

// follow goes on behind a segment that matched.
func (b *branch) follow(after string, more bool) *leaf {
	if !more {
		return b.end
	}
	return b.match(after)
}

// match reports whether a partial segment matches text. Taking the first place
// for each literal finds a match if there is one.
func (s *segment) match(text string) bool {
	_, ok := s.split(text)
	return ok
}

// split finds where each literal between parameters stands, the first place
// possible each.
func (s *segment) split(text string) (at [maxSplits]int, ok bool) {
	last := len(s.names)
	first, tail := s.literals[0], s.literals[last]
	end := len(text) - len(tail)
	if end <= len(first) || text[:len(first)] != first || text[end:] != tail {
		return at, false
	}
	pos := len(first)
	for i := 1; i < last; i++ {
		if pos+1 > end {
			return at, false
		}
		n := strings.Index(text[pos+1:end], s.literals[i])
		if n < 0 {
			return at, false
		}
		at[i] = pos + 1 + n
		pos = at[i] + len(s.literals[i])
	}
	return at, pos < end
}

// capture appends the parameters' values in a path that the template matches.
// It reports false when a segment can be split in more than one way, or only
// within a percent-encoding.
func (t Template) capture(path string, ps []merlon.Param) (_ []merlon.Param, ok bool) {
	for i := range t {
		s := &t[i]
		if s.rest {
			return append(ps, merlon.Param{Name: s.names[0], Value: path}), true
		}
		text, after, _ := strings.Cut(path, "/")
		path = after
		switch {
		case len(s.names) == 0:
		case s.whole():
			ps = append(ps, merlon.Param{Name: s.names[0], Value: text})
		default:
			if ps, ok = s.capture(text, ps); !ok {
				return ps, false
			}
		}
	}
	return ps, true
}

func (s *segment) capture(text string, ps []merlon.Param) (_ []merlon.Param, ok bool) {
	at, ok := s.split(text)
	if !ok {
		return ps, false
	}
	last := len(s.names)
	start, end := len(s.literals[0]), len(text)-len(s.literals[last])
	// From the right, each literal must stand where it stands from the left.
	for i, from := last-1, end; i > 0; i-- {
		if strings.LastIndex(text[:from-1], s.literals[i]) != at[i] {
			return ps, false
		}
		from = at[i]
	}
	for i, name := range s.names {
		stop := end
		if i+1 < last {
			stop = at[i+1]
		}
		value := text[start:stop]
		if n := len(value); value[n-1] == '%' || n > 1 && value[n-2] == '%' {
			return ps, false
		}
		ps = append(ps, merlon.Param{Name: name, Value: value})
		start = stop + len(s.literals[i+1])
	}
	return ps, true
}
