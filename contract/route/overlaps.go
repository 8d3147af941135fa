package route

import "iter"

// Overlap is two routes whose templates match a common path.
type Overlap struct {
	A, B int    // indexes of the routes; A is the smaller
	Path string // an example that both match
}

// Overlaps finds every two routes that match a common path, whatever their
// methods and whichever of them would win: what is no question within one
// contract is one between two owners. Templates that cannot be read overlap
// nothing. When there are too many to compare them all, the last element has
// indexes of -1, and nobody may rely on the others being complete.
func Overlaps(routes []Route) iter.Seq[Overlap] {
	return func(yield func(Overlap) bool) {
		r := &Router{routes: make([]compiled, len(routes))}
		for i, route := range routes {
			t, err := ParseTemplate(route.Path)
			if err != nil {
				continue
			}
			r.routes[i] = compiled{route, t}
			l := r.root.leaf(t)
			l.routes = append(l.routes, methodRoute{route.Method, i})
		}
		r.root.sort()
		stopped := false
		o := overlaps{router: r, report: &Report{}, budget: maxSteps}
		pair := func(a, b int) {
			if stopped {
				return
			}
			_, example := compare(r.routes[a].template, r.routes[b].template)
			stopped = !yield(Overlap{min(a, b), max(a, b), example})
		}
		o.each = func(a, b *leaf) {
			for i := range a.routes {
				for j := range b.routes {
					pair(a.routes[i].index, b.routes[j].index)
				}
			}
		}
		r.root.leaves(func(l *leaf) {
			for i := range l.routes {
				for j := range i {
					pair(l.routes[j].index, l.routes[i].index)
				}
			}
		})
		o.pairs(&r.root, &r.root)
		if o.budget <= 0 && !stopped {
			yield(Overlap{A: -1, B: -1})
		}
	}
}

// leaves visits every leaf below b.
func (b *branch) leaves(visit func(*leaf)) {
	for _, l := range []*leaf{b.end, b.rest} {
		if l != nil {
			visit(l)
		}
	}
	for _, text := range b.texts {
		b.literal[text].leaves(visit)
	}
	for i := range b.partial {
		b.partial[i].to.leaves(visit)
	}
	if b.param != nil {
		b.param.leaves(visit)
	}
}
