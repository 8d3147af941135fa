package httpfield

import "testing"

// TestNamesFolded: the tables hold folded names only, each one once.
func TestNamesFolded(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, list := range [][]entry{exact, prefixes} {
		for _, e := range list {
			for i := range len(e.name) {
				if fold[e.name[i]] != e.name[i] {
					t.Errorf("%q is not folded", e.name)
				}
			}
			if seen[e.name] {
				t.Errorf("%q is there twice", e.name)
			}
			seen[e.name] = true
			if class, _ := Classify(e.name); class&e.class != e.class {
				t.Errorf("%q has class %b, want %b", e.name, class, e.class)
			}
		}
	}
	for _, e := range prefixes {
		if class, _ := Classify(e.name + "-x"); class&e.class != e.class {
			t.Errorf("%q-x has class %b, want %b", e.name, class, e.class)
		}
	}
}
