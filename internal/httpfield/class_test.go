package httpfield

import (
	"strings"
	"testing"
)

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

// TestMayTrail: what a gate acts upon and what controls an answer does not
// travel in trailers, in whatever spelling.
func TestMayTrail(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"grpc-status", "Grpc-Message", "grpc-status-details-bin", "X-Sum", "ETag", "Digest", "Server-Timing", "Ages", "agent"} {
		if !MayTrail(name) {
			t.Errorf("%q may not", name)
		}
	}
	for _, begin := range untrailing {
		name := strings.TrimSuffix(begin, ":")
		for i := range len(name) {
			if fold[name[i]] != name[i] {
				t.Errorf("%q is not folded", name)
			}
		}
		for _, spelt := range []string{name, strings.ToUpper(name), strings.ReplaceAll(name, "-", "_")} {
			if MayTrail(spelt) {
				t.Errorf("%q may", spelt)
			}
		}
	}
	for _, e := range exact {
		if MayTrail(e.name) {
			t.Errorf("%q may", e.name)
		}
	}
}
