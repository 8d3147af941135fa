package route

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"

	"merlon"
)

// newRouter builds a router over "METHOD /path" lines.
func newRouter(t testing.TB, lines ...string) (*Router, merlon.Diagnostics) {
	t.Helper()
	routes := make([]Route, len(lines))
	for i, line := range lines {
		method, path, ok := strings.Cut(line, " ")
		if !ok {
			t.Fatalf("bad route %q", line)
		}
		routes[i] = Route{Method: method, Path: path, Pos: merlon.Pos{File: "routes", Line: i + 1}}
	}
	return NewRouter(routes)
}

func TestMatch(t *testing.T) {
	t.Parallel()
	routes := []string{
		"GET /",
		"GET /users/me",
		"GET /users/{id}",
		"DELETE /users/{id}",
		"GET /users/{id}/",
		"GET /files/{name}.json",
		"GET /files/{name}",
		"GET /files/{dir}/{rest...}",
		"GET /compare/{base}...{head}",
		"GET /compare/{basehead}",
		"GET /a/{x}/c",
		"GET /a/b/{y}",
		"GET /a/b/d/e",
		"* /any/{x}",
		"POST /any/{x}",
		"GET /v1/{name}:cancel",
		"GET /x/{a}-{b}.txt",
		"GET /é",
	}
	r, ds := newRouter(t, routes...)
	if got := codes(ds); got != "W0201" {
		t.Fatalf("diagnostics %v", ds)
	}
	for _, test := range []struct{ call, want string }{
		{"GET /", "GET /"},
		{"GET ", "not found"},
		{"GET *", "not found"},
		{"GET users/me", "not found"},
		{"GET /users", "not found"},
		{"GET /users/", "not found"},
		{"GET /users/me", "GET /users/me"},
		{"GET /users/Me", "GET /users/{id} id=Me"},
		{"GET /users/42", "GET /users/{id} id=42"},
		{"GET /users/42/", "GET /users/{id}/ id=42"},
		{"GET /users/42//", "not found"},
		{"GET //users/42", "not found"},
		{"DELETE /users/42", "DELETE /users/{id} id=42"},
		// The path decides before the method: no way round /users/me.
		{"DELETE /users/me", "no method"},
		{"POST /users/42", "no method"},
		{"get /users/42", "no method"},
		{"GET /files/a.json", "GET /files/{name}.json name=a"},
		{"GET /files/a.json.json", "GET /files/{name}.json name=a.json"},
		{"GET /files/.json", "GET /files/{name} name=.json"},
		{"GET /files/a.jsonx", "GET /files/{name} name=a.jsonx"},
		{"GET /files/a/b", "GET /files/{dir}/{rest...} dir=a rest=b"},
		{"GET /files/a/b/c/", "GET /files/{dir}/{rest...} dir=a rest=b/c/"},
		{"GET /files/a/", "not found"},
		{"GET /compare/a...b", "GET /compare/{base}...{head} base=a head=b"},
		{"GET /compare/a..b", "GET /compare/{basehead} basehead=a..b"},
		{"GET /compare/...b", "GET /compare/{basehead} basehead=...b"},
		// More than one way to split: nobody knows which one the application takes.
		{"GET /compare/a...b...c", "not found"},
		{"GET /compare/a....b", "not found"},
		{"GET /x/1-2.txt", "GET /x/{a}-{b}.txt a=1 b=2"},
		{"GET /x/1-2-3.txt", "not found"},
		// The most concrete from the left, and back again where it leads nowhere.
		{"GET /a/b/c", "GET /a/b/{y} y=c"},
		{"GET /a/x/c", "GET /a/{x}/c x=x"},
		{"GET /a/b/d/e", "GET /a/b/d/e"},
		{"GET /any/1", "* /any/{x} x=1"},
		{"POST /any/1", "POST /any/{x} x=1"},
		{"GET /v1/op:cancel", "GET /v1/{name}:cancel name=op"},
		{"GET /v1/op", "not found"},
		{"GET /%C3%A9", "GET /é"},
	} {
		method, path, _ := strings.Cut(test.call, " ")
		index, ps, found := r.Match(method, path, nil)
		if got := describeMatch(routes, index, ps, found); got != test.want {
			t.Errorf("%s: got %s, want %s", test.call, got, test.want)
		}
	}
}

// TestSplitWithinEncoding holds that a parameter never takes half of an octet.
func TestSplitWithinEncoding(t *testing.T) {
	t.Parallel()
	r, _ := newRouter(t, "GET /{a}20{b}", "GET /x/{a}F")
	for _, path := range []string{"/a%20b", "/x/%2F"} {
		if _, _, found := r.Match("GET", path, nil); found != NotFound {
			t.Errorf("%s is found", path)
		}
	}
	if _, ps, found := r.Match("GET", "/%2F20%2F", nil); found != Matched || ps[0].Value != "%2F" || ps[1].Value != "%2F" {
		t.Errorf("got %v %v", ps, found)
	}
}

func describeMatch(routes []string, index int, ps []merlon.Param, found Found) string {
	switch found {
	case NotFound:
		return "not found"
	case NoMethod:
		return "no method"
	}
	s := routes[index]
	for _, p := range ps {
		s += " " + p.Name + "=" + p.Value
	}
	return s
}

func TestOverlapDiagnostics(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		a, b string
		want string // code and example, or ""
	}{
		{"GET /a", "GET /a", "E0212 /a"},
		{"GET /a/{x}", "GET /a/{y}", "E0212 /a/x"},
		{"GET /a/{x}", "PUT /a/{y}", ""},
		{"GET /a/{x}", "* /a/{y}", ""},
		{"* /a", "* /a", "E0212 /a"},
		{"GET /a/{x}.json", "GET /a/{y}.json", "E0212 /a/x.json"},
		{"GET /a/{x...}", "GET /a/{y...}", "E0212 /a/x"},
		{"GET /a/b", "GET /a/{x}", ""},
		{"GET /a/{x}/c", "GET /a/{x}/{y}", ""},
		{"GET /a/{x}", "GET /a/{x}/", ""},
		{"GET /a/{x}", "GET /{y}/b", "W0201 /a/b"},
		{"GET /a/{x}", "DELETE /{y}/b", "W0201 /a/b"},
		{"GET /a/{x}/c", "GET /{y}/b/{z}", "W0201 /a/b/c"},
		{"GET /a/{x}", "GET /{y}/b/c", ""},
		{"GET /a/{x...}", "GET /a/b/{y}", ""},
		{"GET /a/{x...}", "GET /{y}/b/c", "W0201 /a/b/c"},
		{"GET /a/{x...}", "GET /{y}/", ""},
		{"GET /a/{x...}", "GET /{y}/{z...}", ""},
		{"GET /a/{x...}", "GET /{y}/b/{z...}", "W0201 /a/b/x"},
		{"GET /{x}.json", "GET /data", ""},
		{"GET /{x}.json", "GET /data.json", ""},
		{"GET /{x}.json", "GET /{y}", ""},
		{"GET /{x}.json", "GET /a{y}.json", ""},
		{"GET /{x}.json", "GET /{x}.yaml", ""},
		{"GET /{x}.json", "GET /data-{y}", "E0213 /data-.json"},
		{"GET /{x}ab{y}", "GET /{x}ba{y}", "E0213 /xbabx"},
		{"GET /a{x}", "GET /{y}a", "E0213 /aa"},
		{"GET /{x}.json/a", "GET /data-{y}/b", ""},
		{"GET /a/{x}.json", "GET /{z}/data-{y}", "W0201 /a/data-.json"},
		{"GET /{x}.tar.gz/{y}", "GET /{x}.gz/b", "W0201 /x.tar.gz/b"},
	} {
		for range 2 {
			_, ds := newRouter(t, test.a, test.b)
			got := ""
			if len(ds) > 0 {
				d := ds[0]
				got = d.Code + " " + regexp.MustCompile(`both match "([^"]*)"`).FindStringSubmatch(d.Message)[1]
				if len(ds) != 1 || d.Pos.Line != 2 || len(d.Also) != 1 || d.Also[0].Line != 1 {
					t.Errorf("%s, %s: %v does not cite both", test.a, test.b, ds)
				}
			}
			if got != test.want {
				t.Errorf("%s, %s: got %q, want %q", test.a, test.b, got, test.want)
			}
			test.a, test.b = test.b, test.a
		}
	}
}

// TestTooManyOverlaps holds that the search for overlaps ends, and says so.
func TestTooManyOverlaps(t *testing.T) {
	t.Parallel()
	var lines []string
	for i := range 2000 {
		lines = append(lines, fmt.Sprintf("GET /a%d/{x}", i), fmt.Sprintf("GET /{x}/b%d", i))
	}
	_, ds := newRouter(t, lines...)
	if got := codes(ds); got != "E0215 W0201" || !ds.Failed() {
		t.Errorf("got %s", got)
	}
}

// reference is a router as one would write it down: templates as regular
// expressions, tried from the most concrete on.
type reference struct {
	templates []Template
	patterns  []*regexp.Regexp
	routes    map[string][]int // by shape
}

func newReference(lines []string) *reference {
	ref := &reference{routes: map[string][]int{}}
	for i, line := range lines {
		_, path, _ := strings.Cut(line, " ")
		t, err := ParseTemplate(path)
		if err != nil {
			continue
		}
		if ref.routes[t.Shape()] == nil {
			ref.templates = append(ref.templates, t)
		}
		ref.routes[t.Shape()] = append(ref.routes[t.Shape()], i)
	}
	slices.SortFunc(ref.templates, func(a, b Template) int {
		for i := range min(len(a), len(b)) {
			if c := cmp.Or(cmp.Compare(rank(&a[i]), rank(&b[i])), cmp.Compare(b[i].concreteness(), a[i].concreteness()),
				slices.Compare(b[i].literals, a[i].literals)); c != 0 {
				return c
			}
		}
		return cmp.Compare(len(a), len(b))
	})
	for _, t := range ref.templates {
		var b strings.Builder
		for i := range t {
			b.WriteByte('/')
			for j, literal := range t[i].literals {
				if j > 0 && t[i].rest {
					b.WriteString("([^/].*)")
				} else if j > 0 {
					b.WriteString("([^/]+?)")
				}
				b.WriteString(regexp.QuoteMeta(literal))
			}
		}
		ref.patterns = append(ref.patterns, regexp.MustCompile(`\A`+b.String()+`\z`))
	}
	return ref
}

func rank(s *segment) int {
	switch {
	case s.rest:
		return 3
	case s.whole():
		return 2
	case len(s.names) > 0:
		return 1
	}
	return 0
}

// match returns the index of the route, and its values.
func (ref *reference) match(lines []string, method, path string) (int, []string, Found) {
	for i, pattern := range ref.patterns {
		values := pattern.FindStringSubmatch(path)
		if values == nil {
			continue
		}
		any := -1
		for _, index := range ref.routes[ref.templates[i].Shape()] {
			switch m, _, _ := strings.Cut(lines[index], " "); {
			case m == method:
				return ref.unambiguous(i, index, path, values[1:])
			case m == "*" && any < 0:
				any = index
			}
		}
		if any >= 0 {
			return ref.unambiguous(i, any, path, values[1:])
		}
		return -1, nil, NoMethod
	}
	return -1, nil, NotFound
}

// unambiguous refuses a path that the greedy reading splits otherwise.
func (ref *reference) unambiguous(i, index int, path string, values []string) (int, []string, Found) {
	greedy := regexp.MustCompile(strings.ReplaceAll(ref.patterns[i].String(), "+?", "+"))
	if !slices.Equal(greedy.FindStringSubmatch(path)[1:], values) {
		return -1, nil, NotFound
	}
	for _, v := range values {
		if strings.HasSuffix(v, "%") || len(v) > 1 && v[len(v)-2] == '%' {
			return -1, nil, NotFound
		}
	}
	return index, values, Matched
}

// checkRouter compares a router with the reference on one call.
func checkRouter(t *testing.T, r *Router, ref *reference, lines []string, method, path string) {
	t.Helper()
	index, ps, found := r.Match(method, path, nil)
	wantIndex, values, want := ref.match(lines, method, path)
	got := make([]string, 0, len(ps))
	for _, p := range ps {
		got = append(got, p.Value)
	}
	if index != wantIndex || found != want || !slices.Equal(got, values) {
		t.Fatalf("routes %q\n%s %s: got %d %v %q, want %d %v %q", lines, method, path, index, found, got, wantIndex, want, values)
	}
}

// TestRouterAgreesWithReference routes random paths over random templates of a
// few letters, so that they overlap as much as they can.
func TestRouterAgreesWithReference(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	pick := func(ss ...string) string { return ss[rng.IntN(len(ss))] }
	for range 3000 {
		var lines []string
		for range 1 + rng.IntN(8) {
			path := ""
			for i := range 1 + rng.IntN(4) {
				switch rng.IntN(8) {
				case 0, 1, 2:
					path += "/" + pick("a", "b", "ab", "a.b")
				case 3, 4:
					path += fmt.Sprintf("/{p%d}", i)
				case 5:
					path += fmt.Sprintf("/%s{p%d}%s", pick("", "a"), i, pick("b", ".b"))
				case 6:
					path += fmt.Sprintf("/{p%d}%s{q%d}", i, pick("a", "."), i)
				default:
					path += pick("/", fmt.Sprintf("/{p%d...}", i))
				}
			}
			lines = append(lines, pick("GET", "PUT", "*")+" "+path)
		}
		r, ds := newRouter(t, lines...)
		ref := newReference(lines)
		conflicts := strings.Contains(codes(ds), "E02")
		for range 30 {
			path := ""
			for range 1 + rng.IntN(4) {
				path += "/"
				for range rng.IntN(4) {
					path += pick("a", "b", ".")
				}
			}
			checkRouter(t, r, ref, lines, pick("GET", "PUT", "POST"), path)
		}
		if !conflicts {
			checkExamples(t, r, lines)
		}
	}
}

// checkExamples holds that overlaps are complete: when there is no diagnostic
// about two templates, one is the more concrete throughout on every common path.
func checkExamples(t *testing.T, r *Router, lines []string) {
	t.Helper()
	for i := range r.routes {
		for j := range i {
			a, b := r.routes[i].template, r.routes[j].template
			if a == nil || b == nil || len(a) != len(b) {
				continue
			}
			for k := range a {
				text, ok := common(&a[k], &b[k])
				if a[k].rest || b[k].rest {
					continue
				}
				if ok && (!a[k].accepts(text) || !b[k].accepts(text)) {
					t.Fatalf("routes %q: %q is no example of %v and %v", lines, text, a[k], b[k])
				}
			}
		}
	}
}

// accepts reports whether any segment matches text.
func (s *segment) accepts(text string) bool {
	if len(s.names) == 0 {
		return text == s.literals[0]
	}
	return text != "" && s.match(text)
}

// bigRouter has 10,000 routes, as a large estate has them.
func bigRouter(t testing.TB) *Router {
	t.Helper()
	var lines []string
	for i := range 1000 {
		for _, s := range []string{
			"GET /service%d/items", "POST /service%d/items", "GET /service%d/items/{id}", "PUT /service%d/items/{id}",
			"DELETE /service%d/items/{id}", "GET /service%d/items/{id}/parts/{part}", "GET /service%d/items/mine",
			"GET /service%d/files/{name}.json", "GET /service%d/compare/{base}...{head}", "GET /service%d/tree/{path...}",
		} {
			lines = append(lines, fmt.Sprintf(s, i))
		}
	}
	r, ds := newRouter(t, lines...)
	if len(ds) > 0 {
		t.Fatal(ds)
	}
	return r
}

// calls are one to each shape of bigRouter's routes, and some that fail.
var calls = [...][2]string{
	{"GET", "/service500/items"},
	{"GET", "/service500/items/42"},
	{"GET", "/service999/items/42/parts/7"},
	{"GET", "/service500/items/mine"},
	{"GET", "/service500/files/report.json"},
	{"GET", "/service500/compare/main...feature"},
	{"GET", "/service500/tree/a/b/c/d"},
	{"PATCH", "/service500/items"},
	{"GET", "/nothing/here"},
	{"GET", "/service500/compare/a...b...c"},
}

func TestMatchAllocatesNothing(t *testing.T) {
	r := bigRouter(t)
	params := make([]merlon.Param, 0, 8)
	for _, call := range calls {
		if n := testing.AllocsPerRun(100, func() { _, params, _ = r.Match(call[0], call[1], params) }); n != 0 {
			t.Errorf("%s %s: %v allocations", call[0], call[1], n)
		}
	}
}

func BenchmarkMatch(b *testing.B) {
	r := bigRouter(b)
	params := make([]merlon.Param, 0, 8)
	for _, call := range calls {
		b.Run(call[0]+call[1], func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, params, _ = r.Match(call[0], call[1], params)
			}
		})
	}
}

func BenchmarkNewRouter(b *testing.B) {
	for b.Loop() {
		bigRouter(b)
	}
}
