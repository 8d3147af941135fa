package route

import (
	"strings"
	"testing"

	"merlon"
)

func FuzzParseInline(f *testing.F) {
	for _, s := range []string{"GET /", "* /a/{b}?c&d", "PUT /%7e/{x}.{y}", "GET /{a...}", "get /a", "GET /;"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		op, err := ParseInline(s)
		if err != nil {
			return
		}
		// What was read is written so that it reads the same.
		again := op.Method + " " + op.Path
		sep := "?"
		for _, p := range op.Params {
			if p.In == merlon.InQuery {
				again, sep = again+sep+p.Name, "&"
			}
		}
		op2, err := ParseInline(again)
		if err != nil || op2.Path != op.Path || len(op2.Params) != len(op.Params) {
			t.Fatalf("%q became %q, then %+v %v", s, again, op2, err)
		}
	})
}

// FuzzRouter compares the router with the reference on fuzzed routes, one a
// line, and a fuzzed path.
func FuzzRouter(f *testing.F) {
	f.Add("GET /a/{x}\nGET /{y}/b\n* /{z...}", "GET", "/a/b")
	f.Add("GET /c/{b}...{h}\nPUT /c/{x}", "PUT", "/c/a...b")
	f.Add("GET /{a}.json\nGET /{a}/\nGET /", "GET", "/x.json")
	f.Fuzz(func(t *testing.T, routes, method, path string) {
		lines := strings.Split(routes, "\n")
		if len(lines) > 16 || len(path) > 200 || len(routes) > 1000 {
			return
		}
		for i, line := range lines {
			if !strings.Contains(line, " ") {
				lines[i] = "GET " + line
			}
			if strings.HasPrefix(lines[i], "* ") && method == "*" {
				return
			}
		}
		// A path that is its own canonical form, as package canon hands it on.
		segments, err := canonical(strings.ReplaceAll(strings.ReplaceAll(path, "{", ""), "}", ""))
		if err != nil || !strings.HasPrefix(path, "/") {
			return
		}
		path = strings.ReplaceAll(segments, "%2F", "/")
		r, _ := newRouter(t, lines...)
		checkRouter(t, r, newReference(lines), lines, method, path)
	})
}
