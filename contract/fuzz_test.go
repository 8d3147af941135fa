package contract

import (
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/rogpeppe/go-internal/txtar"

	"merlon"
)

// seed adds the files of all goldens with an extension in list.
func seed(f *testing.F, list string) {
	f.Helper()
	names, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range names {
		a, err := txtar.ParseFile(name)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range a.Files {
			if ext := filepath.Ext(file.Name); ext != "" && strings.Contains(list, ext) {
				f.Add(string(file.Data))
			}
		}
	}
}

// checkLoad holds what every Load promises, whatever is in the file.
func checkLoad(t *testing.T, name, src string) *Contract {
	t.Helper()
	c, ds := Load(fstest.MapFS{name: {Data: []byte(src)}}, name)
	if c == nil && !ds.Failed() {
		t.Fatal("neither a contract nor an error")
	}
	if len(ds) > maxReports {
		t.Fatalf("%d diagnostics", len(ds))
	}
	lines := strings.Split(src, "\n")
	for _, d := range ds {
		if d.Message == "" || d.Code == "" || strings.ContainsAny(d.Message, "\n\r\x1b") {
			t.Fatalf("bad diagnostic %q", d.Error())
		}
		if d.Pos.File == name && d.Pos.Line > len(lines)+1 {
			t.Fatalf("%v is beyond the end", d)
		}
	}
	if c == nil {
		return nil
	}
	for i, op := range c.Operations {
		if op.Name == "" || op.Method == "" {
			t.Fatalf("bad operation %+v", op)
		}
		tm, err := parseTemplate(op.Path)
		if err != nil {
			t.Fatalf("operation %s: %v", op.Name, err)
		}
		if tm.String() != op.Path {
			t.Fatalf("operation %s: path %s is not canonical", op.Name, op.Path)
		}
		if i > 0 && op.Name == c.Operations[i-1].Name && !ds.Failed() {
			t.Fatalf("operation %s twice, and nothing said", op.Name)
		}
	}
	return c
}

func FuzzOpenAPI(f *testing.F) {
	seed(f, ".yaml.json")
	f.Fuzz(func(t *testing.T, src string) {
		checkLoad(t, "a.yaml", src)
		checkLoad(t, "a.json", src)
	})
}

func FuzzProto(f *testing.F) {
	seed(f, ".proto")
	f.Fuzz(func(t *testing.T, src string) {
		checkLoad(t, "a.proto", src)
		checkLoad(t, "a.binpb", src)
	})
}

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
