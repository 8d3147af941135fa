package route

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"merlon"
)

func TestParseInline(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ in, want string }{
		{"GET /", "GET /"},
		{"GET /products/{id}", "GET /products/{id} (path id string!)"},
		{"GET /products?q&page", "GET /products (query q string) (query page string)"},
		{"* /files/{path...}", "* /files/{path...} (path path string!)"},
		{"GET /a/{x}?x", "GET /a/{x} (path x string!) (query x string)"},
		{"PUT /%7euser/{id}.json", "PUT /~user/{id}.json (path id string!)"},
		{"GET /a?filter[name]", "GET /a (query filter[name] string)"},
		{"", `"" is no operation`},
		{"/products", `"/products" is no operation`},
		{"GET ", `"GET " is no operation`},
		{"get /a", `"get" is no method`},
		{"CONNECT /a", `"CONNECT" is no method`},
		{"GET  /a", `path " /a" does not begin with a slash`},
		{"GET https://x/a", `path "https://x/a" does not begin with a slash`},
		{"GET /a?", `has a parameter without a name`},
		{"GET /a?q=1", `has "q=1"`},
		{"GET /a?q&q", `names "q" twice`},
		{"GET /a?q b", `has "q b"`},
		{"GET /{a}/{a}", `names the parameter "a" twice`},
		{"GET /a?" + strings.Repeat("q", MaxName+1), "longer than"},
	} {
		op, err := ParseInline(test.in)
		got := fmt.Sprint(err)
		if err == nil {
			got = op.Method + " " + op.Path
			for _, p := range op.Params {
				got += " " + describeParam(p)
			}
			if got != test.want {
				t.Errorf("%q: got %s, want %s", test.in, got, test.want)
			}
		} else if !strings.Contains(got, test.want) {
			t.Errorf("%q: got %s, want %s", test.in, got, test.want)
		}
	}
}

func TestParseTemplate(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ in, want string }{
		{"/", "/"},
		{"/a/", "/a/"},
		{"/a b/é/%c3%a9", "/a%20b/%C3%A9/%C3%A9"},
		{"/a%2fb%2B%3b%3A+", "/a%2Fb%2B%3B:+"},
		{"/compare/{base}...{head}", "/compare/{base}...{head}"},
		{"/v1/{name}:cancel", "/v1/{name}:cancel"},
		{"/{x...}", "/{x...}"},
		{"a", "does not begin with a slash"},
		{"", "does not begin with a slash"},
		{"//a", "has an empty segment"},
		{"/a//b", "has an empty segment"},
		{"/a/./b", "has the dot segment"},
		{"/a/%2e%2E/b", "has the dot segment"},
		{"/a?b", `has a "?"`},
		{"/a#b", `has a "#"`},
		{"/a;b", "has a semicolon"},
		{`/a\b`, "has a backslash"},
		{"/a%5cb", "has a backslash"},
		{"/a%00b", "has a control character"},
		{"/a%0", "begins no percent-encoding"},
		{"/a%zz", "begins no percent-encoding"},
		{"/{a", "has no closing brace"},
		{"/a}", "has a closing brace"},
		{"/{}", "without a name"},
		{"/{...}", "without a name"},
		{"/{a}{b}", "nothing between them"},
		{"/{a...}/b", "goes on after"},
		{"/x{a...}", "stands alone"},
		{"/{a...}.json", "stands alone"},
		{"/{+a}", "only a name may stand in braces"},
		{"/{a*}", "only a name may stand in braces"},
		{"/{name=shelves/*}", "only a name may stand in braces"},
		{"/{a\n}", "control character"},
		{"/{" + strings.Repeat("a", MaxName+1) + "}", "longer than"},
		{"/" + strings.Repeat("a", MaxTemplate), "longer than"},
		{strings.Repeat("/a", maxSegments+1), "more than 64 segments"},
		{"/" + strings.Repeat("{a}.", maxSplits+1), "more than 8 parameters"},
	} {
		tm, err := ParseTemplate(test.in)
		got := fmt.Sprint(err)
		if err == nil {
			got = tm.String()
			if got != test.want {
				t.Errorf("%q: got %s, want %s", test.in, got, test.want)
			}
			if again, err := ParseTemplate(got); err != nil || again.String() != got {
				t.Errorf("%q is not its own canonical form", got)
			}
		} else if !strings.Contains(got, test.want) {
			t.Errorf("%q: got %s, want %s", test.in, got, test.want)
		}
	}
}

func describeParam(p merlon.ParamSpec) string {
	in := [...]string{"path", "query"}[p.In]
	typ := [...]string{"string", "integer", "number", "boolean"}[p.Type]
	required := ""
	if p.Required {
		required = "!"
	}
	return fmt.Sprintf("(%s %s %s%s)", in, p.Name, typ, required)
}

// codes are the codes of diagnostics, each once.
func codes(ds merlon.Diagnostics) string {
	var cs []string
	for _, d := range ds {
		cs = append(cs, d.Code)
	}
	slices.Sort(cs)
	return strings.Join(slices.Compact(cs), " ")
}
