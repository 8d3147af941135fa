package intent

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// checkFormat: what Format gives it gives again.
func checkFormat(t *testing.T, src []byte) {
	t.Helper()
	once, err := Format(src)
	if err != nil {
		if errors.Is(err, errChanges) {
			t.Fatalf("well formed, and cannot be formatted: %v\n%s", err, src)
		}
		return
	}
	twice, err := Format(once)
	if err != nil || !bytes.Equal(once, twice) {
		t.Fatalf("formatting is not idempotent: %v\n%s\n--- once\n%s\n--- twice\n%s", err, src, once, twice)
	}
}

// TestFormat formats "in" of every archive and compares it with "want".
func TestFormat(t *testing.T) {
	t.Parallel()
	for name, a := range archives(t, "testdata/format/*.txtar") {
		got, err := Format(a.Files[0].Data)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		checkFormat(t, a.Files[0].Data)
		if len(a.Files) > 1 && bytes.Equal(a.Files[1].Data, got) {
			continue
		}
		if !*update {
			t.Errorf("%s: got\n%s", name, got)
			continue
		}
		a.Files = append(a.Files[:1], txtar.File{Name: "want", Data: got})
		if err := os.WriteFile(name, txtar.Format(a), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFormatWrong: a file that is not well formed is refused with its place.
func TestFormatWrong(t *testing.T) {
	t.Parallel()
	for _, src := range []string{"a: [", "a: &x b", "\ta: b", "a: b\n---\nc: d", "text", "? a\n: b"} {
		if out, err := Format([]byte(src)); err == nil {
			t.Errorf("%q is formatted to %q", src, out)
		}
	}
	for _, empty := range []string{"", "\n\n", "---\n", "null"} {
		if out, err := Format([]byte(empty)); err != nil && empty != "null" || len(out) > 0 {
			t.Errorf("%q: %q, %v", empty, out, err)
		}
	}
}

// TestFormatRandom formats random trees in random layouts, with comments at
// every place that may have one.
func TestFormatRandom(t *testing.T) {
	t.Parallel()
	for seed := range uint64(1500) {
		src := randomYAML(rand.New(rand.NewPCG(seed, 1)))
		out, err := Format([]byte(src))
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, src)
		}
		checkFormat(t, []byte(src))
		if got, want := strings.Count(string(out), "# c"), strings.Count(src, "# c"); got != want {
			t.Fatalf("seed %d: %d comments of %d\n%s\n%s", seed, got, want, src, out)
		}
	}
}

type randomWriter struct {
	*rand.Rand
	b        strings.Builder
	comments int
}

func randomYAML(r *rand.Rand) string {
	w := &randomWriter{Rand: r}
	w.noise(0)
	w.mapping(0, 0)
	w.noise(0)
	return w.b.String()
}

func (w *randomWriter) comment() string {
	w.comments++
	return fmt.Sprintf("# c%d", w.comments)
}

// noise writes comments and blank lines at an indentation.
func (w *randomWriter) noise(indent int) {
	for range w.IntN(3) {
		switch w.IntN(3) {
		case 0:
			w.b.WriteByte('\n')
		case 1:
			w.b.WriteString(strings.Repeat(" ", indent) + w.comment() + "\n")
		}
	}
}

func (w *randomWriter) eol() {
	if w.IntN(4) == 0 {
		w.b.WriteString(strings.Repeat(" ", 1+w.IntN(3)) + w.comment())
	}
	w.b.WriteByte('\n')
}

func (w *randomWriter) mapping(indent, depth int) {
	keys := []string{"tests", "services", "web", "callers", "gateway", "hosts", "trustDomain", "when", "operations", "orders"}
	w.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	for i := range 1 + w.IntN(4) {
		if i > 0 {
			w.noise(indent)
		}
		w.b.WriteString(strings.Repeat(" ", indent) + keys[i] + ":")
		w.value(indent, depth, false)
	}
}

func (w *randomWriter) value(indent, depth int, inList bool) {
	deeper := indent + 1 + w.IntN(4)
	kind := w.IntN(6)
	if depth > 3 {
		kind = w.IntN(3)
	}
	switch {
	case kind == 0:
		w.b.WriteString(" " + w.flow(depth))
		w.eol()
	case kind == 1 && !inList:
		w.b.WriteString([]string{" |", " >", " >-", " |-"}[w.IntN(4)])
		w.eol()
		for range 1 + w.IntN(3) {
			w.b.WriteString(strings.Repeat(" ", deeper) + "text # not a comment\n")
			if w.IntN(3) == 0 {
				w.b.WriteByte('\n')
			}
		}
		w.b.WriteString(strings.Repeat(" ", deeper) + "end\n")
	case kind <= 2:
		w.b.WriteString(" " + w.scalar())
		w.eol()
	case kind == 3 && !inList:
		w.eol()
		w.noise(deeper)
		w.mapping(deeper, depth+1)
		w.noise(deeper)
	case kind == 4 && !inList:
		w.eol()
		for range 1 + w.IntN(3) {
			w.noise(deeper)
			w.b.WriteString(strings.Repeat(" ", deeper) + "-")
			w.value(deeper, depth+1, true)
		}
	default:
		w.b.WriteString(" " + w.scalar())
		w.eol()
	}
}

func (w *randomWriter) scalar() string {
	return []string{"a", "1", "'it''s # one'", `"a \" # b"`, "GET /orders/{id}", "a#b", "100/s", "true", "~", `"two
      lines"`}[w.IntN(10)]
}

func (w *randomWriter) flow(depth int) string {
	var parts []string
	for i := range w.IntN(6) {
		part := []string{"abc", "'x, y'", `"}"`, "1"}[w.IntN(4)]
		if depth < 3 && w.IntN(4) == 0 {
			part = w.flow(depth + 1)
		}
		if w.IntN(8) == 0 {
			part = "\n            " + part
		}
		if i > 0 && w.IntN(10) == 0 {
			part = " " + w.comment() + "\n            " + part
		}
		parts = append(parts, part)
	}
	return "[" + strings.Join(parts, ",") + "]"
}

func FuzzFormat(f *testing.F) {
	names, err := filepath.Glob("testdata/format/*.txtar")
	if err != nil || len(names) == 0 {
		f.Fatal(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(txtar.Parse(b).Files[0].Data)
	}
	for seed := range uint64(20) {
		f.Add([]byte(randomYAML(rand.New(rand.NewPCG(seed, 1)))))
	}
	f.Fuzz(func(t *testing.T, src []byte) { checkFormat(t, src) })
}
