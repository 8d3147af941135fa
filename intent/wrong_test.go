package intent

import (
	"bytes"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/rogpeppe/go-internal/txtar"

	"merlon"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// archiveFS is the files of an archive but the golden ones.
func archiveFS(a *txtar.Archive) fstest.MapFS {
	fsys := fstest.MapFS{}
	for _, f := range a.Files {
		if f.Name != "want" {
			fsys[f.Name] = &fstest.MapFile{Data: f.Data}
		}
	}
	return fsys
}

func archives(t *testing.T, pattern string) map[string]*txtar.Archive {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil || len(names) == 0 {
		t.Fatalf("no archive at %s: %v", pattern, err)
	}
	out := map[string]*txtar.Archive{}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = txtar.Parse(b)
	}
	return out
}

// TestWrong loads every wrong intent of testdata/wrong and compares what is
// said about it, as people see it, with the golden part of the archive.
func TestWrong(t *testing.T) {
	t.Parallel()
	all := archives(t, "testdata/wrong/*.txtar")
	if len(all) < 60 {
		t.Errorf("%d wrong intents, want at least 60", len(all))
	}
	seen := map[string]bool{}
	for name, a := range all {
		fsys := archiveFS(a)
		loaded, ds := Load(fsys)
		if (loaded != nil) == ds.Failed() {
			t.Errorf("%s: loaded %v with %v", name, loaded != nil, ds)
		}
		var out bytes.Buffer
		Render(&out, fsys, ds, false)
		for _, d := range ds {
			seen[d.Code] = true
			checkDiagnostic(t, name, fsys, d)
		}
		want := 0
		for ; want < len(a.Files) && a.Files[want].Name != "want"; want++ {
		}
		if want == len(a.Files) {
			a.Files = append(a.Files, txtar.File{Name: "want"})
		}
		if bytes.Equal(a.Files[want].Data, out.Bytes()) {
			continue
		}
		if !*update {
			t.Errorf("%s: got\n%s\nwant\n%s", name, out.Bytes(), a.Files[want].Data)
			continue
		}
		a.Files[want].Data = out.Bytes()
		if err := os.WriteFile(name, txtar.Format(a), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range Codes() {
		if !seen[c.Code] {
			t.Errorf("no wrong intent shows %s: %s", c.Code, c.Meaning)
		}
	}
}

// checkDiagnostic holds the manners of every diagnostic: the position is in
// the file, the underlined word is the one that is quoted, no capital, no stop.
func checkDiagnostic(t *testing.T, name string, fsys fs.FS, d merlon.Diagnostic) {
	t.Helper()
	if d.Message == "" || strings.HasSuffix(d.Message, ".") || strings.HasSuffix(d.Hint, ".") {
		t.Errorf("%s: message %q, hint %q: empty, or ends with a stop", name, d.Message, d.Hint)
	}
	if c := d.Message[0]; c >= 'A' && c <= 'Z' {
		t.Errorf("%s: %q starts with a capital", name, d.Message)
	}
	if d.Pos.Line == 0 {
		return
	}
	b, err := fs.ReadFile(fsys, d.Pos.File)
	if err != nil {
		if d.Code != codeNoIntent && d.Code != codeMissingKey {
			t.Errorf("%s: %v: %v", name, d, err)
		}
		return
	}
	lines := strings.Split(string(b), "\n")
	if d.Pos.Line > len(lines) {
		t.Errorf("%s: %v is after the end of the file", name, d)
		return
	}
	line := []rune(lines[d.Pos.Line-1])
	if d.Pos.Column < 1 || d.Pos.Column > len(line)+1 || d.Pos.Column-1+d.Width > max(len(line), d.Pos.Column) {
		t.Errorf("%s: %v (width %d) is outside its line of %d", name, d, d.Width, len(line))
		return
	}
	for _, p := range d.Also {
		if p.Line == 0 || p.Column == 0 {
			t.Errorf("%s: %v: also %v is not exact", name, d, p)
		}
	}
	if d.Width < 1 {
		t.Errorf("%s: %v underlines nothing", name, d)
	}
	switch d.Code {
	case codeMissingKey, codeGatewayHost, codeNothing, codeCannotCall, codeKind, codeOverlap, codeTwice: // quote what is not there, or who it is about
		return
	}
	word, quoted := string(line[d.Pos.Column-1:min(d.Pos.Column-1+d.Width, len(line))]), strings.Split(d.Message, `"`)
	if !strings.HasPrefix(d.Code, "E01") || len(quoted) < 3 {
		return
	}
	for i := 1; i < len(quoted); i += 2 {
		q := strings.TrimSuffix(strings.ReplaceAll(quoted[i], `\\`, `\`), "...")
		if strings.HasPrefix(word, q) || strings.Contains(word, q) {
			return
		}
	}
	t.Errorf("%s: %v underlines %q", name, d, word)
}
