package contract

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/rogpeppe/go-internal/txtar"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	"merlon"
	"merlon/contract/route"
)

var update = flag.Bool("update", false, "rewrite the goldens in testdata")

// TestGolden loads the first file of each archive in testdata and compares
// operations and diagnostics with its last, "want".
func TestGolden(t *testing.T) {
	t.Parallel()
	names, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(names) == 0 {
		t.Fatalf("no goldens: %v", err)
	}
	for _, name := range names {
		t.Run(filepath.Base(name), func(t *testing.T) {
			t.Parallel()
			a, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			fsys, want := fstest.MapFS{}, -1
			for i, f := range a.Files {
				if f.Name == "want" {
					want = i
					continue
				}
				fsys[f.Name] = &fstest.MapFile{Data: f.Data}
			}
			got := describe(Load(fsys, a.Files[0].Name))
			if *update {
				if want < 0 {
					a.Files, want = append(a.Files, txtar.File{Name: "want"}), len(a.Files)
				}
				a.Files[want].Data = []byte(got)
				if err := os.WriteFile(name, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if want < 0 || got != string(a.Files[want].Data) {
				t.Errorf("got:\n%s", got)
			}
		})
	}
}

// describe writes a contract and diagnostics for a golden.
func describe(c *Contract, ds merlon.Diagnostics) string {
	var b strings.Builder
	if c == nil {
		b.WriteString("no contract\n")
	} else {
		fmt.Fprintf(&b, "%v, %d operations\n", c.Protocol, len(c.Operations))
		for _, op := range c.Operations {
			fmt.Fprintf(&b, "%v: %s = %s %s", op.Pos, op.Name, op.Method, op.Path)
			if op.Streams {
				b.WriteString(" streams")
			}
			for _, p := range op.Params {
				fmt.Fprintf(&b, " %s", describeParam(p))
			}
			b.WriteByte('\n')
		}
	}
	for _, d := range ds {
		fmt.Fprintf(&b, "\n%v", d.Error())
		if d.Width > 0 {
			fmt.Fprintf(&b, " width %d", d.Width)
		}
		b.WriteByte('\n')
		if d.Hint != "" {
			fmt.Fprintf(&b, "  hint: %s\n", d.Hint)
		}
		for _, also := range d.Also {
			fmt.Fprintf(&b, "  also: %v\n", also)
		}
	}
	return b.String()
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

// TestCodes holds that every code has a golden, and a well-formed message.
func TestCodes(t *testing.T) {
	t.Parallel()
	sources, _ := filepath.Glob("*.go")
	goldens, _ := filepath.Glob("testdata/*.txtar")
	shown := map[string]bool{"E0215": true} // TestTooManyOverlaps; its input is made
	for _, name := range goldens {
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`\[([EW]\d{4})\]`).FindAllSubmatch(src, -1) {
			shown[string(m[1])] = true
		}
	}
	for _, name := range sources {
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`"([EW]02\d\d)"`).FindAllSubmatch(src, -1) {
			if !shown[string(m[1])] {
				t.Errorf("%s: %s has no golden", name, m[1])
			}
		}
	}
}

// load loads one file.
func load(name, content string) (*Contract, merlon.Diagnostics) {
	return Load(fstest.MapFS{name: {Data: []byte(content)}}, name)
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

const head = "openapi: 3.1.0\n"

// TestBounds holds that what is too large is refused, whatever is large in it.
func TestBounds(t *testing.T) {
	t.Parallel()
	var bomb strings.Builder
	bomb.WriteString(head + "x-0: &a0 [1, 2]\n")
	for i := 1; i < 64; i++ {
		fmt.Fprintf(&bomb, "x-%d: &a%d [*a%d, *a%d]\n", i, i, i-1, i-1)
	}
	var tower strings.Builder
	tower.WriteString(head + "x-0: &a0 [1]\n")
	for i := 1; i < 2*maxDepth; i++ {
		fmt.Fprintf(&tower, "x-%d: &a%d [*a%d]\n", i, i, i-1)
	}
	var many strings.Builder
	many.WriteString(`{"openapi":"3.0.0","paths":{"/":{}`)
	for i := range maxOperations + 1 {
		fmt.Fprintf(&many, `,"/p%d":{"get":{}}`, i)
	}
	many.WriteString("}}")
	// One path item, large and shared by many paths.
	var shared strings.Builder
	shared.WriteString(`{"openapi":"3.0.0","components":{"pathItems":{"p":{"x-":1`)
	for i := range 20_000 {
		fmt.Fprintf(&shared, `,"x-%d":1`, i)
	}
	shared.WriteString(`}}},"paths":{"x-":1`)
	for i := range 20_000 {
		fmt.Fprintf(&shared, `,"/%d":{"$ref":"#/components/pathItems/p"}`, i)
	}
	shared.WriteString("}}")
	tests := map[string]struct{ file, content, want string }{
		"bytes":            {"a.yaml", head + strings.Repeat("#", maxFile), "E0201"},
		"proto bytes":      {"a.proto", strings.Repeat("/", maxProto+1), "E0201"},
		"JSON depth":       {"a.json", strings.Repeat("[", 1<<20), "E0204"},
		"YAML depth":       {"a.yaml", "a: " + strings.Repeat("[", 2*maxDepth) + strings.Repeat("]", 2*maxDepth), "E0204"},
		"YAML deep parser": {"a.yaml", "a: " + strings.Repeat("[", 1<<19), "E0202"},
		"proto depth":      {"a.proto", strings.Repeat("message A {", 1<<16), "E0201"},
		"JSON values":      {"a.json", "[" + strings.Repeat("1,", maxValues) + "1]", "E0204"},
		"YAML values":      {"a.yaml", "[" + strings.Repeat("1,", maxMarks) + "1]", "E0204"},
		"alias bomb":       {"a.yaml", bomb.String(), "E0204"},
		"alias tower":      {"a.yaml", tower.String(), "E0204"},
		"operations":       {"a.json", many.String(), "E0214"},
		"references":       {"a.json", shared.String(), "E0204"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, ds := load(test.file, test.content)
			if got := codes(ds); got != test.want || !ds.Failed() {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// TestManyFiles holds that a contract cannot pull in files without end.
func TestManyFiles(t *testing.T) {
	t.Parallel()
	fsys := fstest.MapFS{}
	for i := range maxFiles + 10 {
		fsys[fmt.Sprintf("%d.yaml", i)] = &fstest.MapFile{Data: fmt.Appendf(nil,
			"openapi: 3.1.0\npaths:\n  /a: {get: {parameters: [{$ref: '%d.yaml#/p'}]}}\np: {$ref: '%d.yaml#/p'}\n", i+1, i+1)}
	}
	// The chain is bounded before the files are; so refer to each directly.
	var b strings.Builder
	b.WriteString(head + "paths:\n  /a:\n    get:\n      parameters:\n")
	for i := range route.MaxParams {
		fmt.Fprintf(&b, "      - {name: p%d, in: query, schema: {$ref: '%d.yaml#/x'}}\n", i, i)
	}
	fsys["main.yaml"] = &fstest.MapFile{Data: []byte(b.String())}
	_, ds := Load(fsys, "main.yaml")
	if !slices.ContainsFunc(ds, func(d merlon.Diagnostic) bool { return strings.Contains(d.Message, "more than 256 files") }) &&
		len(ds) < route.MaxReports {
		t.Errorf("got %v", ds)
	}
	if _, ds := Load(fsys, "0.yaml"); codes(ds) != "E0209" {
		t.Errorf("a long chain gives %v", ds)
	}
}

// TestReportCap holds that warnings cannot crowd out the errors.
func TestReportCap(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	b.WriteString(head + "paths:\n")
	for i := range 300 {
		fmt.Fprintf(&b, "  /%d: {foo: 1}\n", i)
	}
	b.WriteString("  /z: {get: []}\n")
	_, ds := load("a.yaml", b.String())
	if len(ds) != route.MaxReports || !ds.Failed() {
		t.Errorf("got %d diagnostics, failed %v", len(ds), ds.Failed())
	}
	if !slices.IsSortedFunc(ds, func(a, b merlon.Diagnostic) int { return a.Pos.Compare(b.Pos) }) {
		t.Error("not in the order of Pos")
	}
}

// TestNotRegular holds that only regular files are opened: a pipe would make
// the reader wait for ever.
func TestNotRegular(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "a.yaml"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, ds := Load(os.DirFS(dir), "a.yaml")
	if codes(ds) != "E0201" || !strings.Contains(ds[0].Message, "regular") {
		t.Errorf("got %v", ds)
	}
}

// TestJSONAndYAMLAgree holds that both syntaxes of one text mean the same, at
// the same places: JSON is YAML.
func TestJSONAndYAMLAgree(t *testing.T) {
	t.Parallel()
	src := `{
  "openapi": "3.0.3",
  "servers": [{"url": "https://{h}/v1", "variables": {"h": {"default": "x"}}}],
  "paths": {
    "/p/{id}": {
      "get": {"operationId": "größe", "parameters": [{"name": "id", "in": "path", "required": true, "schema": {"type": "integer"}}]},
      "put": {"parameters": [{"$ref": "#/components/parameters/ü~0~1"}]}
    }
  },
  "components": {"parameters": {"ü~/": {"name": "id", "in": "path", "schema": {"type": ["number", "null"]}}}}
}`
	fromJSON, ds := load("a.json", src)
	if len(ds) > 0 {
		t.Fatal(ds)
	}
	fromYAML, ds := load("a.yaml", src)
	if len(ds) > 0 {
		t.Fatal(ds)
	}
	for i := range fromYAML.Operations {
		fromYAML.Operations[i].Pos.File = "a.json"
	}
	if !reflect.DeepEqual(fromJSON, fromYAML) {
		t.Errorf("JSON gives\n%s\nYAML gives\n%s", describe(fromJSON, nil), describe(fromYAML, nil))
	}
}

// TestDescriptorSet reads what protoc would write.
func TestDescriptorSet(t *testing.T) {
	t.Parallel()
	set := &descriptorpb.FileDescriptorSet{File: []*descriptorpb.FileDescriptorProto{{
		Name: proto.String("shop/payments.proto"), Package: proto.String("shop.v1"), Dependency: []string{"absent.proto"},
		Service: []*descriptorpb.ServiceDescriptorProto{{
			Name:   proto.String("Payments"),
			Method: []*descriptorpb.MethodDescriptorProto{{Name: proto.String("Charge")}, {Name: proto.String("Refund")}},
		}, {
			Name:   proto.String("Admin"),
			Method: []*descriptorpb.MethodDescriptorProto{{Name: proto.String("Refund")}},
		}},
	}}}
	src, err := proto.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	c, ds := load("payments.binpb", string(src))
	want := `grpc, 3 operations
payments.binpb: Admin.Refund = POST /shop.v1.Admin/Refund
payments.binpb: Charge = POST /shop.v1.Payments/Charge
payments.binpb: Payments.Refund = POST /shop.v1.Payments/Refund
`
	if got := describe(c, ds); got != want {
		t.Errorf("got:\n%s", got)
	}
	set.File[0].Service[0].Method[0].Name = proto.String("a/../b")
	src, err = proto.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	if _, ds := load("payments.pb", string(src)); codes(ds) != "E0202" {
		t.Errorf("a name with a slash gives %v", ds)
	}
	if _, ds := load("payments.protoset", "\xff\xff"); codes(ds) != "E0202" {
		t.Errorf("garbage gives %v", ds)
	}
}

func TestDerivedName(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ method, path, want string }{
		{"get", "/", "get_"},
		{"get", "/users/{id}/posts", "get_users_id_posts"},
		{"delete", "/a-b.c/{x}...{y}/", "delete_a-b_c_x___y_"},
		{"put", "/größe", "put_gr__e"},
	} {
		if got := derivedName(test.method, test.path); got != test.want {
			t.Errorf("%s %s: got %s, want %s", test.method, test.path, got, test.want)
		}
	}
}

// TestRoot holds that links do not lead out of an os.Root.
func TestRoot(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(head+"paths: {/a: {get: {operationId: a}}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := os.Symlink("/etc/hostname", filepath.Join(dir, "b.yaml")); err != nil {
		t.Skipf("SKIPPED: no symbolic links: %v", err)
	}
	if c, ds := Load(root.FS(), "a.yaml"); ds.Failed() || len(c.Operations) != 1 {
		t.Error(ds)
	}
	if _, ds := Load(root.FS(), "b.yaml"); codes(ds) != "E0201" {
		t.Errorf("a link out of the root gives %v", ds)
	}
}
