package merlon_test

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// read returns a file of the tree.
func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.FromSlash(name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestClassesAreTested holds the table of docs/security.md to the tree: every
// class is there once, every test it names exists, and the classes that apply
// today have one.
func TestClassesAreTested(t *testing.T) {
	t.Parallel()
	absent := map[int]bool{14: true, 19: true} // SAML, remote authorization: not spoken
	seen := map[int]bool{}
	named := regexp.MustCompile("`([a-z0-9/-]+)\\.((?:Test|Fuzz)[A-Za-z0-9_]+)`")
	for line := range strings.Lines(read(t, "docs/security.md")) {
		cells := strings.Split(line, "|")
		if len(cells) < 5 {
			continue
		}
		n, err := strconv.Atoi(strings.TrimSpace(cells[1]))
		if err != nil {
			continue
		}
		if seen[n] {
			t.Errorf("class %d is there twice", n)
		}
		seen[n] = true
		tests := named.FindAllStringSubmatch(line, -1)
		if len(tests) == 0 != absent[n] {
			t.Errorf("class %d names %d tests", n, len(tests))
		}
		for _, m := range tests {
			if !hasFunc(t, m[1], m[2]) {
				t.Errorf("class %d: there is no %s in %s", n, m[2], m[1])
			}
		}
	}
	for n := 1; n <= 19; n++ {
		if !seen[n] {
			t.Errorf("docs/security.md has no class %d", n)
		}
	}
}

// hasFunc reports whether a test file in dir has a function.
func hasFunc(t *testing.T, dir, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(filepath.FromSlash(dir), "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.Contains(read(t, filepath.ToSlash(file)), "\nfunc "+name+"(") {
			return true
		}
	}
	return false
}

// TestArchitecture: what ARCHITECTURE.md names exists, where it says.
func TestArchitecture(t *testing.T) {
	t.Parallel()
	text := read(t, "ARCHITECTURE.md")
	if n := strings.Count(text, "\n"); n > 200 {
		t.Errorf("ARCHITECTURE.md has %d lines", n)
	}
	for _, m := range regexp.MustCompile("`([a-z0-9_./-]+)`").FindAllStringSubmatch(text, -1) {
		if name := m[1]; strings.Contains(name, "/") || strings.HasSuffix(name, ".go") || strings.HasSuffix(name, ".txt") {
			if _, err := os.Stat(filepath.FromSlash(name)); err != nil {
				t.Errorf("ARCHITECTURE.md names %s: %v", name, err)
			}
		}
	}
	found := regexp.MustCompile("`([A-Za-z.]+)` \\(`([a-z0-9_/]+\\.go)`\\)").FindAllStringSubmatch(text, -1)
	for _, m := range found {
		name := m[1][strings.LastIndexByte(m[1], '.')+1:]
		if !regexp.MustCompile(`(?m)^func (\([^)]*\) )?` + name + `[\[(]|^var ` + name + `\b|^type ` + name + `\b`).MatchString(read(t, m[2])) {
			t.Errorf("ARCHITECTURE.md names %s in %s, which is not there", m[1], m[2])
		}
	}
	if len(found) < 20 {
		t.Errorf("ARCHITECTURE.md names %d functions with their files", len(found))
	}
}

// TestReadme keeps the README short, and its test command where the checks of
// a change look for it.
func TestReadme(t *testing.T) {
	t.Parallel()
	text := read(t, "README.md")
	if n := strings.Count(text, "\n"); n > 150 {
		t.Errorf("README.md has %d lines", n)
	}
	if !strings.Contains(text, "\n## Tests\n\n```sh\ngo test ./...\n```\n") {
		t.Error("README.md has no test command right below ## Tests")
	}
}

// TestLinks: relative links in documents lead to files.
func TestLinks(t *testing.T) {
	t.Parallel()
	link := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".md" || strings.Contains(path, "testdata") {
			return err
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range link.FindAllSubmatch(src, -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), filepath.FromSlash(string(m[1])))); err != nil {
				t.Errorf("%s links to %s: %v", path, m[1], err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestDecisions: every page has the same parts, and numbers without gaps.
func TestDecisions(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob(filepath.Join("docs", "decisions", "*.md"))
	if err != nil || len(pages) == 0 {
		t.Fatal("no decisions: ", err)
	}
	for i, page := range pages {
		if !strings.HasPrefix(filepath.Base(page), strconv.Itoa(10000 + i + 1)[1:]+"-") {
			t.Errorf("%s is the decision number %d", page, i+1)
		}
		src, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range []string{"# ", "\n## Why\n", "\n## What follows\n", "\n## Instead of\n"} {
			if !bytes.Contains(src, []byte(part)) {
				t.Errorf("%s has no %q", page, strings.TrimSpace(part))
			}
		}
	}
}
