package learn

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/rogpeppe/go-internal/txtar"

	"merlon"
	"merlon/intent"
)

var update = flag.Bool("update", false, "rewrite what the tests want")

func files(ar *txtar.Archive) fstest.MapFS {
	fsys := fstest.MapFS{}
	for _, f := range ar.Files {
		if !strings.HasPrefix(f.Name, "want/") {
			fsys[f.Name] = &fstest.MapFile{Data: f.Data, Mode: 0o644}
		}
	}
	return fsys
}

// holds checks what is true of every proposal: it is formatted, an intent
// without errors, the same each time, and opens nothing to the outside.
func holds(t *testing.T, fsys fstest.MapFS, out []byte) *merlon.Intent {
	t.Helper()
	again, _, err := Scan(fsys)
	if err != nil || !bytes.Equal(out, again) {
		t.Errorf("a second scan differs: %v", err)
	}
	if formatted, err := intent.Format(out); err != nil || !bytes.Equal(formatted, out) {
		t.Errorf("not formatted: %v", err)
	}
	with := fstest.MapFS{"merlon.yaml": {Data: out}}
	for name, f := range fsys {
		if filepath.Base(name) != "merlon.yaml" && !strings.HasSuffix(name, ".merlon.yaml") {
			with[name] = f
		}
	}
	loaded, ds := intent.Load(with)
	if ds.Failed() || loaded == nil { // a contract may have warnings
		t.Errorf("the proposal has mistakes: %v\n%s", ds, out)
		return nil
	}
	if loaded.Intent.Gateway != nil {
		t.Error("the proposal opens a gateway")
	}
	for _, s := range loaded.Intent.Services {
		for _, r := range s.Rules {
			if r.Caller == merlon.AnyCaller || r.All {
				t.Errorf("%s is open to %s for %v", s.Name, r.Caller, r.Operations)
			}
		}
	}
	return loaded.Intent
}

func TestScan(t *testing.T) {
	t.Parallel()
	names, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(names) < 3 {
		t.Fatalf("%v %v", names, err)
	}
	for _, name := range names {
		t.Run(filepath.Base(name), func(t *testing.T) {
			t.Parallel()
			ar, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			fsys := files(ar)
			out, notes, err := Scan(fsys)
			if err != nil {
				t.Fatal(err)
			}
			holds(t, fsys, out)
			for _, secret := range []string{"hunter2", "s3cret"} {
				if bytes.Contains(out, []byte(secret)) || strings.Contains(fmt.Sprint(notes), secret) {
					t.Errorf("a secret was copied: %s", secret)
				}
			}
			var list strings.Builder
			for _, n := range notes {
				fmt.Fprintf(&list, "%v: %s\n", n.Pos, n.Text)
			}
			got := map[string]string{"want/merlon.yaml": string(out), "want/notes": list.String()}
			if *update {
				inputs := ar.Files[:0]
				for _, f := range ar.Files {
					if _, ok := got[f.Name]; !ok {
						inputs = append(inputs, f)
					}
				}
				ar.Files = inputs
				for _, n := range []string{"want/merlon.yaml", "want/notes"} {
					ar.Files = append(ar.Files, txtar.File{Name: n, Data: []byte(got[n])})
				}
				if err := os.WriteFile(name, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			seen := 0
			for _, f := range ar.Files {
				if want, ok := got[f.Name]; ok {
					if seen++; want != string(f.Data) {
						t.Errorf("%s: got\n%s\nwant\n%s", f.Name, want, f.Data)
					}
				}
			}
			if seen != len(got) {
				t.Error("the archive does not say what is wanted; run with -update and read it")
			}
		})
	}
}
