package contract

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"merlon"
	"merlon/contract/route"
)

// gitHubVariable names the file of GitHub's published REST contract, some 13 MB
// of JSON; testdata/fetch-github-openapi.sh gets it.
const gitHubVariable = "MERLON_GITHUB_OPENAPI"

func gitHubFile(t testing.TB) string {
	t.Helper()
	file := os.Getenv(gitHubVariable)
	if file == "" {
		t.Skipf("SKIPPED: %s is not set; see testdata/fetch-github-openapi.sh", gitHubVariable)
	}
	return file
}

// TestGitHub loads GitHub's contract whole and routes every path that it
// describes, with the values it gives as examples, to the right operation.
func TestGitHub(t *testing.T) {
	file := gitHubFile(t)
	dir, name := filepath.Split(file)
	c, ds := Load(os.DirFS(dir), name)
	for _, d := range ds {
		if !d.Warning {
			t.Error(d)
		}
	}
	if c == nil || len(c.Operations) < 1000 {
		t.Fatalf("only %v", describe(c, nil))
	}
	checkPositions(t, file, c)

	routes := make([]route.Route, len(c.Operations))
	for i, op := range c.Operations {
		routes[i] = route.Route{Method: op.Method, Path: op.Path, Pos: op.Pos, Name: op.Name}
	}
	r, _ := route.NewRouter(routes)
	root, err := (&loader{fsys: os.DirFS(dir), report: &route.Report{}, docs: map[string]loaded{}}).tree(name)
	if err != nil {
		t.Fatal(err)
	}
	examples := gitHubExamples(root)
	calls := 0
	buf := make([]merlon.Param, 0, 16)
	for i, op := range c.Operations {
		for _, path := range examplePaths(op, examples) {
			calls++
			index, ps, found := r.Match(op.Method, path, buf)
			if found != route.Matched || index != i {
				t.Errorf("%s %s: found %v %d, want %s (%s)", op.Method, path, found, index, op.Name, op.Path)
				continue
			}
			var values []string
			for _, p := range ps {
				values = append(values, "/"+p.Name+"="+p.Value)
			}
			if got := strings.Join(values, ""); strings.Count(op.Path, "{") != len(ps) {
				t.Errorf("%s %s: got values %s", op.Method, path, got)
			}
		}
	}
	t.Logf("%d operations, %d warnings, %d calls routed", len(c.Operations), len(ds), calls)
}

// checkPositions holds that every operation's place is where its name stands.
func checkPositions(t *testing.T, file string, c *Contract) {
	t.Helper()
	src, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(src), "\n")
	for _, op := range c.Operations {
		line := []rune(lines[op.Pos.Line-1])
		if rest := string(line[op.Pos.Column-1:]); !strings.HasPrefix(rest, `"`+op.Name+`"`) {
			t.Fatalf("%s: at %v stands %.40s", op.Name, op.Pos, rest)
		}
	}
}

// gitHubExamples collects the values that a document gives for parameters in
// the path, by name.
func gitHubExamples(root *node) map[string][]string {
	examples := map[string][]string{}
	var walk func(n *node)
	walk = func(n *node) {
		if in := n.get("in"); in != nil && in.text == "path" && n.get("name") != nil {
			name := n.get("name").text
			add := func(v *node) {
				if v != nil && v.kind != object && v.kind != array && v.kind != null && v.text != "" {
					examples[name] = append(examples[name], v.text)
				}
			}
			add(n.get("example"))
			if all := n.get("examples"); all != nil {
				for _, f := range all.fields {
					add(f.value.get("value"))
				}
			}
			schema := n.get("schema")
			add(schema.get("example"))
			add(schema.get("default"))
			if enum := schema.get("enum"); enum != nil {
				for _, v := range enum.items {
					add(v)
				}
			}
		}
		for _, f := range n.fields {
			walk(f.value)
		}
		for _, item := range n.items {
			walk(item)
		}
	}
	walk(root)
	return examples
}

// examplePaths are the canonical paths of an operation: one with plausible
// values, and one for each example of each parameter.
func examplePaths(op merlon.Operation, examples map[string][]string) []string {
	plain := func(p merlon.ParamSpec) string {
		if p.Type == merlon.Integer {
			return "42"
		}
		return "octo-" + strings.ReplaceAll(p.Name, "_", "-")
	}
	fill := func(name, value string) string {
		path := op.Path
		for _, p := range op.Params {
			if p.In != merlon.InPath {
				continue
			}
			v := plain(p)
			if p.Name == name {
				v = value
			}
			path = strings.Replace(path, "{"+p.Name+"}", encodeValue(v), 1)
		}
		return path
	}
	paths := []string{fill("", "")}
	for _, p := range op.Params {
		if p.In == merlon.InPath {
			for _, v := range examples[p.Name] {
				paths = append(paths, fill(p.Name, v))
			}
		}
	}
	return paths
}

// encodeValue writes a value as it stands in a canonical path.
func encodeValue(v string) string {
	var b strings.Builder
	for _, c := range []byte(v) {
		if strings.IndexByte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,=:@", c) >= 0 {
			b.WriteByte(c)
		} else {
			b.WriteString("%" + strings.ToUpper(string("0123456789abcdef"[c>>4])+string("0123456789abcdef"[c&15])))
		}
	}
	return b.String()
}

func BenchmarkLoadGitHub(b *testing.B) {
	dir, name := filepath.Split(gitHubFile(b))
	b.ReportAllocs()
	for b.Loop() {
		if _, ds := Load(os.DirFS(dir), name); ds.Failed() {
			b.Fatal(ds)
		}
	}
}
