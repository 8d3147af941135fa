package merlon_test

import (
	"bufio"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	maxFileLines     = 800
	maxFunctionLines = 80
)

// house is house.txt, parsed.
type house struct {
	floors   []floor
	families []string
	keepOut  []keepOut
}

type floor struct {
	number  int
	pattern string
}

type keepOut struct{ program, pattern, why string }

func readHouse(t *testing.T) house {
	t.Helper()
	f, err := os.Open("house.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var h house
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		words := strings.Fields(text)
		switch {
		case len(words) == 0:
		case words[0] == "family" && len(words) == 2:
			h.families = append(h.families, words[1])
		case words[0] == "keep-out" && len(words) > 3:
			h.keepOut = append(h.keepOut, keepOut{words[1], words[2], strings.Join(words[3:], " ")})
		default:
			number, err := strconv.Atoi(words[0])
			if err != nil || len(words) < 2 {
				t.Fatalf("house.txt:%d: cannot read %q", n, lines.Text())
			}
			for _, pattern := range words[1:] {
				h.floors = append(h.floors, floor{number, pattern})
			}
		}
	}
	return h
}

// floorOf is the floor of a package by its directory, or 0 if it has none.
func (h house) floorOf(dir string) int {
	for _, f := range h.floors {
		if matches(f.pattern, dir) {
			return f.number
		}
	}
	return 0
}

// sameFamily reports whether one is the head of a family and the other a member.
func (h house) headAndMember(importer, imported string) bool {
	return slices.Contains(h.families, importer) && strings.HasPrefix(imported, importer+"/")
}

func matches(pattern, dir string) bool {
	if base, ok := strings.CutSuffix(pattern, "/..."); ok {
		return dir == base || strings.HasPrefix(dir, base+"/")
	}
	return dir == pattern
}

// source is one Go file of the tree.
type source struct {
	dir, name string
	file      *ast.File
	lines     int
}

func readSources(t *testing.T, set *token.FileSet) []source {
	t.Helper()
	var all []source
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if base := d.Name(); base == "testdata" || base != "." && strings.HasPrefix(base, ".") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		file, err := parser.ParseFile(set, name, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		all = append(all, source{filepath.ToSlash(filepath.Dir(name)), name, file, set.File(file.Pos()).LineCount()})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// ownImport is the directory of an imported package of this module.
func ownImport(spec *ast.ImportSpec) (string, bool) {
	name, _ := strconv.Unquote(spec.Path.Value)
	if name == "merlon" {
		return ".", true
	}
	return strings.CutPrefix(name, "merlon/")
}

// TestHouseFloors holds every import to house.txt, and the tree to its
// vocabulary: the most imported package is the one of the nouns.
func TestHouseFloors(t *testing.T) {
	h, set := readHouse(t), token.NewFileSet()
	importers := map[string]map[string]bool{}
	for _, s := range readSources(t, set) {
		from := h.floorOf(s.dir)
		if from == 0 {
			t.Errorf("%s: house.txt gives package %s no floor", s.name, s.dir)
		}
		if strings.HasSuffix(s.name, "_test.go") {
			continue
		}
		for _, spec := range s.file.Imports {
			dir, own := ownImport(spec)
			if !own || dir == s.dir {
				continue
			}
			if importers[dir] == nil {
				importers[dir] = map[string]bool{}
			}
			importers[dir][s.dir] = true
			if to := h.floorOf(dir); to >= from && !(to == from && (from == 1 || h.headAndMember(s.dir, dir))) {
				t.Errorf("%v: %s (floor %d) imports %s (floor %d)", set.Position(spec.Pos()), s.dir, from, dir, to)
			}
		}
	}
	for dir, by := range importers {
		if dir != "." && len(by) >= len(importers["."]) {
			t.Errorf("%s is imported by %d packages, the nouns by %d: plumbing has become the centre", dir, len(by), len(importers["."]))
		}
	}
}

// TestHouseRooms keeps files and functions readable in one sitting, and gives
// every package a comment that says what it is.
func TestHouseRooms(t *testing.T) {
	set := token.NewFileSet()
	documented := map[string]bool{}
	for _, s := range readSources(t, set) {
		if s.lines > maxFileLines {
			t.Errorf("%s has %d lines; at most %d", s.name, s.lines, maxFileLines)
		}
		isTest := strings.HasSuffix(s.name, "_test.go")
		if !isTest {
			documented[s.dir] = documented[s.dir] || s.file.Doc != nil
		}
		for _, decl := range s.file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			lines := set.Position(f.End()).Line - set.Position(f.Pos()).Line + 1
			if lines > maxFunctionLines && !isTable(f) {
				t.Errorf("%v: %s has %d lines; at most %d", set.Position(f.Pos()), f.Name.Name, lines, maxFunctionLines)
			}
			if f.Name.Name == "init" && f.Recv == nil {
				t.Errorf("%v: init(): make it an explicit value", set.Position(f.Pos()))
			}
		}
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("package %s has no package comment", dir)
		}
	}
}

// isTable reports whether a function is mostly one composite literal.
func isTable(f *ast.FuncDecl) bool {
	longest := 0
	ast.Inspect(f, func(n ast.Node) bool {
		if lit, ok := n.(*ast.CompositeLit); ok {
			longest = max(longest, int(lit.End()-lit.Pos()))
		}
		return true
	})
	return 2*longest > int(f.End()-f.Pos())
}

// TestHousePurity keeps clocks and the environment out of the pure floors.
func TestHousePurity(t *testing.T) {
	h, set := readHouse(t), token.NewFileSet()
	for _, s := range readSources(t, set) {
		if strings.HasSuffix(s.name, "_test.go") {
			continue
		}
		from := h.floorOf(s.dir)
		ast.Inspect(s.file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			pkg, ok := sel.X.(*ast.Ident)
			if !ok {
				return true
			}
			switch pkg.Name + "." + sel.Sel.Name {
			case "os.Getenv", "os.LookupEnv":
				if from < 10 {
					t.Errorf("%v: the environment is for cmd only", set.Position(n.Pos()))
				}
			case "time.Now":
				if slices.Contains([]string{".", "contract", "intent", "policy", "verify"}, s.dir) {
					t.Errorf("%v: %s is pure: take the time as an argument", set.Position(n.Pos()), s.dir)
				}
			}
			return true
		})
	}
}

// TestHouseTLS keeps the verification of peers to crypto/tls, but for the one
// package that verifies SVIDs: its tests are about that alone.
func TestHouseTLS(t *testing.T) {
	set := token.NewFileSet()
	for _, s := range readSources(t, set) {
		if strings.HasSuffix(s.name, "_test.go") || s.dir == "identity/spiffe" || strings.HasPrefix(s.dir, "bench") {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if id, ok := n.(*ast.Ident); ok && slices.Contains([]string{"InsecureSkipVerify", "RequireAnyClientCert", "RequestClientCert"}, id.Name) {
				t.Errorf("%v: %s: peers are verified by crypto/tls, or in identity/spiffe", set.Position(n.Pos()), id.Name)
			}
			return true
		})
	}
}

// TestHouseKeepOut checks what programs link against house.txt.
func TestHouseKeepOut(t *testing.T) {
	t.Parallel()
	h := readHouse(t)
	linked := map[string][]string{}
	for _, k := range h.keepOut {
		if _, ok := linked[k.program]; !ok {
			out, err := exec.Command("go", "list", "-deps", "./"+k.program).CombinedOutput()
			if err != nil {
				t.Fatalf("go list %s: %v\n%s", k.program, err, out)
			}
			linked[k.program] = strings.Fields(string(out))
		}
		for _, pkg := range linked[k.program] {
			if matches(k.pattern+"/...", pkg) {
				t.Errorf("%s links %s: %s", k.program, pkg, k.why)
			}
		}
	}
}

// TestDependenciesAreJustified wants one line in docs/dependencies.md for
// every direct dependency, and none for what is gone.
func TestDependenciesAreJustified(t *testing.T) {
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("docs/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	direct := map[string]bool{}
	for line := range strings.Lines(string(mod)) {
		words := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "require "))
		if len(words) >= 2 && strings.Contains(words[0], ".") && strings.HasPrefix(words[1], "v") && !strings.Contains(line, "// indirect") {
			direct[words[0]] = true
			if !strings.Contains(string(doc), "`"+words[0]+"`") {
				t.Errorf("docs/dependencies.md does not justify %s", words[0])
			}
		}
	}
	for line := range strings.Lines(string(doc)) {
		if name, ok := strings.CutPrefix(line, "| `"); ok {
			name, _, _ = strings.Cut(name, "`")
			if !direct[name] {
				t.Errorf("docs/dependencies.md lists %s, which go.mod does not require directly", name)
			}
		}
	}
	if len(direct) == 0 {
		t.Error(fmt.Sprint("found no direct dependency in go.mod: is ", path.Base("go.mod"), " read rightly?"))
	}
}
