package route

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func TestOverlaps(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ routes, want string }{
		{"GET /a|GET /b", ""},
		{"GET /a/{x}|POST /a/b", "0 1 /a/b"},
		{"GET /a/{x}|POST /a/{y}", "0 1 /a/x"},
		{"GET /a/{x}|GET /{y}/b|GET /c", "0 1 /a/b"},
		{"GET /{all...}|GET /a/b", "0 1 /a/b"},
		{"GET /{all...}|GET /", ""},
		{"GET /a|PUT /a|POST /a", "0 1 /a,0 2 /a,1 2 /a"},
		{"GET bad|GET /a", ""},
	} {
		var routes []Route
		for _, r := range strings.Split(test.routes, "|") {
			method, path, _ := strings.Cut(r, " ")
			routes = append(routes, Route{Method: method, Path: path})
		}
		var got []string
		for o := range Overlaps(routes) {
			got = append(got, fmt.Sprint(o.A, " ", o.B, " ", o.Path))
		}
		slices.Sort(got)
		if strings.Join(got, ",") != test.want {
			t.Errorf("%s: got %q, want %q", test.routes, strings.Join(got, ","), test.want)
		}
	}
	for range Overlaps([]Route{{Path: "/a"}, {Path: "/a"}, {Path: "/a"}}) {
		break // must not panic
	}
}

// meet is the plain answer for two templates.
func meet(a, b Template) bool {
	for i := range max(len(a), len(b)) {
		if i >= len(a) || i >= len(b) {
			return false
		}
		if a[i].rest || b[i].rest {
			return (a[i].rest || a[i].literals[0] != "" || len(a[i].names) > 0) &&
				(b[i].rest || b[i].literals[0] != "" || len(b[i].names) > 0)
		}
		if _, ok := common(&a[i], &b[i]); !ok {
			return false
		}
	}
	return true
}

func TestOverlapsAll(t *testing.T) {
	t.Parallel()
	words := []string{"a", "b", "{x}", "{y}", "a{z}", "{z}b", "{all...}", ""}
	random := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		var routes []Route
		var parsed []Template
		for range 2 + random.IntN(6) {
			path := ""
			for range 1 + random.IntN(3) {
				path += "/" + words[random.IntN(len(words))]
			}
			if tpl, err := ParseTemplate(path); err == nil {
				routes, parsed = append(routes, Route{Method: "GET", Path: path}), append(parsed, tpl)
			}
		}
		got := map[[2]int]bool{}
		for o := range Overlaps(routes) {
			got[[2]int{o.A, o.B}] = true
		}
		for i := range routes {
			for j := range i {
				if want := meet(parsed[j], parsed[i]); got[[2]int{j, i}] != want {
					t.Fatalf("%s and %s: overlap %v, want %v", routes[j].Path, routes[i].Path, !want, want)
				}
			}
		}
	}
}
