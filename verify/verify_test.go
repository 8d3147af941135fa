package verify_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/rogpeppe/go-internal/txtar"

	"merlon/intent"
	"merlon/policy"
	"merlon/verify"
)

var update = flag.Bool("update", false, "write what the dialogues in testdata say")

// TestDialogues holds pairs of intents to what Diff says about them. A pair
// without old, or without new, is compared with nothing.
func TestDialogues(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no dialogues: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			changes := verify.Diff(load(t, archive, "old"), load(t, archive, "new"))
			var b strings.Builder
			for _, c := range changes {
				b.WriteString(c.String() + "\n")
			}
			if verify.Widens(changes) {
				b.WriteString("access widens\n")
			}
			for i := range archive.Files {
				f := &archive.Files[i]
				if f.Name != "want" || string(f.Data) == b.String() {
					continue
				}
				if !*update {
					t.Errorf("got\n%s\nwant\n%s", b.String(), f.Data)
					continue
				}
				f.Data = []byte(b.String())
				if err := os.WriteFile(file, txtar.Format(archive), 0o666); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// load compiles one side of a dialogue.
func load(t *testing.T, archive *txtar.Archive, side string) *policy.Policy {
	t.Helper()
	sub := fstest.MapFS{}
	for _, f := range archive.Files {
		if name, ok := strings.CutPrefix(f.Name, side+"/"); ok {
			sub[name] = &fstest.MapFile{Data: f.Data, Mode: 0o444}
		}
	}
	if len(sub) == 0 {
		return nil
	}
	loaded, ds := intent.Load(sub)
	if ds.Failed() {
		for _, d := range ds {
			t.Error(d)
		}
		t.FailNow()
	}
	p, ds := policy.Compile(loaded.Intent)
	if ds.Failed() {
		for _, d := range ds {
			t.Error(d)
		}
		t.FailNow()
	}
	return p
}
