package contract

import (
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/rogpeppe/go-internal/txtar"

	"merlon/contract/route"
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
	if len(ds) > route.MaxReports {
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
		tm, err := route.ParseTemplate(op.Path)
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
