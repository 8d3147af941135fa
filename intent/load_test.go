package intent

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"

	"merlon"
)

func mustLoad(t testing.TB, fsys fs.FS) *Loaded {
	t.Helper()
	l, ds := Load(fsys)
	if ds.Failed() {
		var out bytes.Buffer
		Render(&out, fsys, ds, false)
		t.Fatalf("%s", out.Bytes())
	}
	return l
}

func files(pairs ...string) fstest.MapFS {
	fsys := fstest.MapFS{}
	for i := 0; i+1 < len(pairs); i += 2 {
		fsys[pairs[i]] = &fstest.MapFile{Data: []byte(pairs[i+1])}
	}
	return fsys
}

// TestValid loads every intent of testdata/valid, compares it with its golden
// JSON, holds its files against the schema, and loads its bundle again.
func TestValid(t *testing.T) {
	t.Parallel()
	schema := compiled(t)
	for name, a := range archives(t, "testdata/valid/*.txtar") {
		fsys := archiveFS(a)
		l := mustLoad(t, fsys)
		got, err := json.MarshalIndent(l.Intent, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		golden(t, strings.TrimSuffix(name, ".txtar")+".json", append(got, '\n'))
		for file, f := range fsys {
			if isIntentFile(file) {
				validate(t, schema, name+": "+file, f.Data)
				checkFormat(t, f.Data)
			}
		}
		checkBundle(t, l)
		formatted := fstest.MapFS{}
		for file, f := range fsys {
			if isIntentFile(file) {
				b, err := Format(f.Data)
				if err != nil {
					t.Fatalf("%s: %v", file, err)
				}
				f = &fstest.MapFile{Data: b}
			}
			formatted[file] = f
		}
		if again := mustLoad(t, formatted); !reflect.DeepEqual(withoutPos(l.Intent), withoutPos(again.Intent)) {
			t.Errorf("%s: formatting changes the intent", name)
		}
	}
}

// checkBundle loads the bundle of l: the same intent, name and bytes.
func checkBundle(t *testing.T, l *Loaded) {
	t.Helper()
	z, err := zip.NewReader(bytes.NewReader(l.Bundle), int64(len(l.Bundle)))
	if err != nil {
		t.Fatal(err)
	}
	again := mustLoad(t, z)
	if again.Hash != l.Hash || !bytes.Equal(again.Bundle, l.Bundle) || !reflect.DeepEqual(again.Intent, l.Intent) {
		t.Errorf("the bundle of %s is another intent: %s", l.Hash, again.Hash)
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	want, err := os.ReadFile(name)
	if err == nil && bytes.Equal(want, got) {
		return
	}
	if !*update {
		t.Errorf("%s is stale; run go test ./intent -update and read the difference\n%s", name, got)
		return
	}
	if err := os.WriteFile(name, got, 0o644); err != nil {
		t.Fatal(err)
	}
}

func compiled(t *testing.T) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("intent.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("intent.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// validate holds a file against the schema as an editor would.
func validate(t *testing.T, s *jsonschema.Schema, name string, text []byte) {
	t.Helper()
	if err := schemaError(s, text); err != nil {
		t.Errorf("%s: the schema refuses what Load takes: %v", name, err)
	}
}

func schemaError(s *jsonschema.Schema, text []byte) error {
	var v any
	if err := yaml.Load(text, &v); err != nil {
		return err
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		return err
	}
	return s.Validate(doc)
}

// TestSchemaRefuses holds the wrong intents whose fault is in one file's form
// against the schema: an editor should show them.
func TestSchemaRefuses(t *testing.T) {
	t.Parallel()
	s := compiled(t)
	form := map[string]bool{codeUnknownKey: true, codeKind: true, codeMissingKey: true, codeName: true}
	n := 0
	for name, a := range archives(t, "testdata/wrong/*.txtar") {
		fsys := archiveFS(a)
		_, ds := Load(fsys)
		if len(ds) == 0 || !form[ds[0].Code] || strings.Contains(ds[0].Message, "trustDomain") || strings.Contains(ds[0].Message, "not both") {
			continue
		}
		n++
		if schemaError(s, fsys[ds[0].Pos.File].Data) == nil {
			t.Errorf("%s: the schema takes what Load refuses: %v", name, ds[0])
		}
	}
	if n < 15 {
		t.Errorf("only %d wrong intents are about form", n)
	}
}

func TestSchemaGolden(t *testing.T) {
	t.Parallel()
	golden(t, filepath.Join("..", "docs", "intent.schema.json"), Schema())
}

// withoutPos is a deep copy through JSON, without positions.
func withoutPos(in *merlon.Intent) any {
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	var strip func(any)
	strip = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			delete(v, "pos")
			delete(v, "whenPos")
			for _, child := range v {
				strip(child)
			}
		case []any:
			for _, child := range v {
				strip(child)
			}
		}
	}
	strip(v)
	return v
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	in := mustLoad(t, files("merlon.yaml", inGateway("limit: 100/s")+"services:\n  web:\n    operations: {home: GET /}\n    callers:\n      anyone: {operations: all, limit: 5/m}\n  cart: {}\n  orders:\n    operations: {home: GET /}\n    callers: {web: {operations: all, limit: {rate: 5/h, burst: 9}}}\n"+
		"external:\n  stripe: {hosts: [api.stripe.com], callers: {web: all}}\n")).Intent
	g := in.Gateway
	if g.Listen != ":8443" || g.MinTLS != "1.3" || g.Certificate.Kind != merlon.CertificateSelfSigned || g.Limit.Burst != 100 || g.Limit.Per != merlon.PerClient {
		t.Errorf("gateway %+v limit %+v", g, g.Limit)
	}
	web := in.Service("web")
	if web.Timeout != 15*time.Second || web.Retry != 20 || web.MaxBody != 1<<20 || web.Protocol != merlon.HTTP || !reflect.DeepEqual(web.Hosts, []string{"shop.example"}) {
		t.Errorf("web %+v", web)
	}
	if l := web.Rules[0].Limit; l.Per != merlon.PerClient || l.Window != time.Minute {
		t.Errorf("limit for anyone %+v", l)
	}
	if l := in.Service("orders").Rules[0].Limit; l.Per != merlon.PerCaller || l.Window != time.Hour || l.Burst != 9 || l.Count != 5 {
		t.Errorf("limit for a service %+v", l)
	}
	stripe := in.Service("stripe")
	if !stripe.External || !reflect.DeepEqual(stripe.Addresses, []string{"dns:api.stripe.com:443"}) {
		t.Errorf("stripe %+v", stripe)
	}
	if r := stripe.Rules[0]; !r.All || !reflect.DeepEqual(r.Operations, []string{"any", "root"}) {
		t.Errorf("rule %+v", r)
	}
}

// TestConditionPosition: package policy counts columns of CEL from WhenPos.
func TestConditionPosition(t *testing.T) {
	t.Parallel()
	for when, want := range map[string]merlon.Pos{
		"when: true":              {File: "merlon.yaml", Line: 9, Column: 15},
		"when: 'true'":            {File: "merlon.yaml", Line: 9, Column: 16},
		"when: >\n          true": {File: "merlon.yaml", Line: 10, Column: 11},
		"when:\n          true":   {File: "merlon.yaml", Line: 10, Column: 11},
	} {
		text := "trustDomain: shop.example\nservices:\n  web: {}\n  orders:\n    operations: {read: GET /}\n    callers:\n      web:\n        operations: all\n        " + when + "\n"
		r := mustLoad(t, files("merlon.yaml", text)).Intent.Service("orders").Rules[0]
		if r.WhenPos != want || strings.TrimSpace(r.When) != "true" {
			t.Errorf("%q: %q at %v, want %v", when, r.When, r.WhenPos, want)
		}
	}
}

func TestOwnersFiles(t *testing.T) {
	t.Parallel()
	fsys := files("merlon.yaml", "trustDomain: shop.example\n",
		"web/web.merlon.yaml", "services:\n  web: {run: {command: [./web]}}\n",
		"a/b/orders.merlon.yaml", "services:\n  orders: {contract: api/c.proto, callers: {web: all}, run: {dir: cmd, command: [./orders]}}\n",
		"a/b/api/c.proto", "syntax = \"proto3\";\npackage a;\nmessage M {}\nservice S { rpc Get(M) returns (M); }\n",
		"node_modules/x/evil.merlon.yaml", "services: {evil: {}}\n",
		"vendor/evil.merlon.yaml", "services: {evil: {}}\n",
		".git/evil.merlon.yaml", "services: {evil: {}}\n")
	l := mustLoad(t, fsys)
	checkBundle(t, l)
	in := l.Intent
	if len(in.Services) != 2 || in.Service("orders").Pos != (merlon.Pos{File: "a/b/orders.merlon.yaml", Line: 2, Column: 3}) {
		t.Fatalf("services %+v", in.Services)
	}
	orders := in.Service("orders")
	if orders.Protocol != merlon.GRPC || orders.Operation("Get") == nil || orders.Run.Dir != "a/b/cmd" || in.Service("web").Run.Dir != "web" {
		t.Errorf("orders %+v run %+v", orders, orders.Run)
	}
}

// TestHash: the hash depends on names and contents, and on nothing else.
func TestHash(t *testing.T) {
	t.Parallel()
	base := mustLoad(t, files("merlon.yaml", "trustDomain: shop.example\n", "notes.txt", "1"))
	other := files("merlon.yaml", "trustDomain: shop.example\n", "notes.txt", "2")
	other["merlon.yaml"].ModTime = time.Unix(1, 0)
	if l := mustLoad(t, other); l.Hash != base.Hash || !bytes.Equal(l.Bundle, base.Bundle) {
		t.Error("what is not read changes the hash")
	}
	if l := mustLoad(t, files("merlon.yaml", "trustDomain: shop.example # x\n")); l.Hash == base.Hash {
		t.Error("what is read does not change the hash")
	}
	if len(base.Hash) != 64 {
		t.Errorf("hash %q", base.Hash)
	}
}

// TestRootEscape: a symbolic link in the directory leads out of it, and
// os.Root refuses it.
func TestRootEscape(t *testing.T) {
	t.Parallel()
	dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "merlon.yaml"), []byte(inLogin("")), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "keys.json")); err != nil {
		t.Skip("SKIPPED: this system makes no symbolic links: ", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	l, ds := Load(root.FS())
	if l != nil || !ds.Failed() || ds[0].Code != codeFile {
		t.Errorf("loaded %v, %v", l != nil, ds)
	}
}

// endless is a file that claims to be small.
type endless struct{ fs.File }

func (e endless) Read(p []byte) (int, error) { return len(p), nil }
func (e endless) Close() error               { return nil }
func (e endless) Stat() (fs.FileInfo, error) {
	return &memoryFile{Reader: bytes.NewReader(nil), name: "x"}, nil
}

type oneFile struct {
	fstest.MapFS
	name string
	file fs.File
	err  error
}

func (f oneFile) Open(name string) (fs.File, error) {
	if name == f.name {
		return f.file, f.err
	}
	return f.MapFS.Open(name)
}

func TestBounds(t *testing.T) {
	t.Parallel()
	text := "trustDomain: shop.example\n"
	big := files("merlon.yaml", text+strings.Repeat("# filler\n", maxIntentFile/8))
	many := files("merlon.yaml", text)
	for i := range maxIntentFiles + 1 {
		many[fmt.Sprintf("s%d.merlon.yaml", i)] = &fstest.MapFile{Data: []byte("services: {}\n")}
	}
	all := files("merlon.yaml", text)
	for i := range 3 {
		name := fmt.Sprintf("c%d.yaml", i)
		all["merlon.yaml"].Data = append(all["merlon.yaml"].Data, fmt.Sprintf("%s  s%d: {contract: %s}\n", map[bool]string{true: "services:\n"}[i == 0], i, name)...)
		all[name] = &fstest.MapFile{Data: bytes.Repeat([]byte("#\n"), maxOtherFile/2)}
	}
	for name, c := range map[string]struct {
		fsys fs.FS
		code string
		want string
	}{
		"file":     {big, codeFile, "too large"},
		"files":    {many, codeTooMuch, "more than"},
		"total":    {all, codeFile, "all files together"},
		"endless":  {oneFile{MapFS: files("merlon.yaml", text), name: "merlon.yaml", file: endless{}}, codeFile, "too large"},
		"failing":  {oneFile{MapFS: files("merlon.yaml", text), name: "merlon.yaml", err: errors.New("disk on fire")}, codeFile, "disk on fire"},
		"no root":  {os.DirFS("testdata/nowhere"), codeFile, "cannot read the directory"},
		"crowded":  {files("merlon.yaml", text+"x: 1\n"+strings.Repeat("y: 1\n", 500)), codeUnknownKey, `no key "x"`},
		"bad name": {files("merlon.yaml", text, "a\\b.merlon.yaml", "services: {}\n"), codeFileName, "backslash"},
	} {
		l, ds := Load(c.fsys)
		if l != nil || len(ds) == 0 || len(ds) > maxDiagnostics {
			t.Errorf("%s: loaded %v with %d diagnostics", name, l != nil, len(ds))
			continue
		}
		found := false
		for _, d := range ds {
			found = found || d.Code == c.code && strings.Contains(d.Message, c.want)
		}
		if !found {
			t.Errorf("%s: %v, want %s %q", name, ds[0], c.code, c.want)
		}
	}
}

func TestRecorderIsAFileSystem(t *testing.T) {
	t.Parallel()
	rec := &recorder{fsys: files("a.yaml", "x"), files: map[string][]byte{}}
	for _, bad := range []string{"../a.yaml", "/a.yaml", "a\\b", "", "nowhere"} {
		if _, err := rec.Open(bad); err == nil {
			t.Errorf("opened %q", bad)
		}
	}
	f, err := rec.Open("a.yaml")
	if err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil || info.Name() != "a.yaml" || info.Size() != 1 || info.IsDir() || !info.ModTime().IsZero() || info.Sys() != nil || info.Mode().Perm() != 0o444 {
		t.Errorf("%v %v", info, err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// estateOf writes an intent of n services with ten rules each.
func estateOf(n int) fstest.MapFS {
	fsys := files("merlon.yaml", "trustDomain: shop.example\ngateway:\n  hosts: [shop.example]\n")
	for i := range n {
		var b strings.Builder
		fmt.Fprintf(&b, "services:\n  s%d:\n    address: 10.0.0.1:8080\n    zone: z%d\n    operations:\n", i, i%10)
		for o := range 5 {
			fmt.Fprintf(&b, "      op%d: GET /s%d/op%d/{id}\n", o, i, o)
		}
		b.WriteString("    callers:\n")
		for r := range 10 {
			fmt.Fprintf(&b, "      s%d: [op%d, op%d]\n", (i+r+1)%n, r%5, (r+1)%5)
		}
		fsys[fmt.Sprintf("s%d/s%d.merlon.yaml", i, i)] = &fstest.MapFile{Data: []byte(b.String())}
	}
	return fsys
}

func BenchmarkLoad(b *testing.B) {
	fsys := estateOf(1000)
	b.ReportAllocs()
	for b.Loop() {
		mustLoad(b, fsys)
	}
}

func BenchmarkFormat(b *testing.B) {
	src := estateOf(12)["s1/s1.merlon.yaml"].Data
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Format(src); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzLoad(f *testing.F) {
	for _, pattern := range []string{"testdata/valid/*.txtar", "testdata/wrong/*.txtar"} {
		names, err := filepath.Glob(pattern)
		if err != nil || len(names) == 0 {
			f.Fatal(pattern, err)
		}
		for _, name := range names {
			b, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			if _, after, ok := strings.Cut(string(b), "-- merlon.yaml --\n"); ok {
				text, _, _ := strings.Cut(after, "\n-- ")
				if len(text) < 1<<14 {
					f.Add([]byte(text + "\n"))
				}
			}
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		fsys := files("merlon.yaml", string(text), "orders/openapi.yaml", exampleAPI, "keys.json", exampleKeys, "partner.json", exampleBundle)
		l, ds := Load(fsys)
		Render(&bytes.Buffer{}, fsys, ds, true)
		if (l == nil) != ds.Failed() {
			t.Fatalf("loaded %v with %v", l != nil, ds)
		}
		if l == nil {
			return
		}
		checkBundle(t, l)
		checkFormat(t, text)
		b, err := Format(text)
		if err != nil {
			t.Fatalf("a good intent cannot be formatted: %v\n%s", err, text)
		}
		fsys["merlon.yaml"] = &fstest.MapFile{Data: b}
		if again := mustLoad(t, fsys); !reflect.DeepEqual(withoutPos(l.Intent), withoutPos(again.Intent)) {
			t.Fatalf("formatting changes the intent\n%s\n%s", text, b)
		}
	})
}
