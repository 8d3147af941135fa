package merlon_test

import (
	"go/ast"
	"go/token"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"merlon"
	"merlon/gate"
)

// shipped returns the sources of the tree that are no tests.
func shipped(t *testing.T) []source {
	t.Helper()
	return slices.DeleteFunc(readSources(t, token.NewFileSet()), func(s source) bool {
		return strings.HasSuffix(s.name, "_test.go")
	})
}

// literal is the text of a string literal.
func literal(n ast.Node) (string, bool) {
	lit, ok := n.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return "", false
	}
	s, err := strconv.Unquote(lit.Value)
	return s, err == nil
}

// TestDiagnosticCodes: docs/diagnostics.md says what every code means, once,
// and nothing of codes that are gone. Only one package makes a code.
func TestDiagnosticCodes(t *testing.T) {
	t.Parallel()
	code := regexp.MustCompile(`^[EW]0\d{3}$`)
	made := map[string]string{} // by which package
	for _, s := range shipped(t) {
		ast.Inspect(s.file, func(n ast.Node) bool {
			c, ok := literal(n)
			if !ok || !code.MatchString(c) {
				return true
			}
			if other, ok := made[c]; ok && other != s.dir {
				t.Errorf("%s is a code of both %s and %s", c, other, s.dir)
			}
			made[c] = s.dir
			return true
		})
	}
	text := read(t, "docs/diagnostics.md")
	row := regexp.MustCompile(`(?m)^\| ([EW]0\d{3}) \| [A-Z].*\. \|$`)
	said := map[string]bool{}
	for _, m := range row.FindAllStringSubmatch(text, -1) {
		if said[m[1]] {
			t.Errorf("docs/diagnostics.md says twice what %s means", m[1])
		}
		said[m[1]] = true
	}
	for _, c := range regexp.MustCompile(`\b[EW]0\d{3}\b`).FindAllString(text, -1) {
		if made[c] == "" {
			t.Errorf("docs/diagnostics.md has %s, which no package makes", c)
		}
	}
	for c, dir := range made {
		if !said[c] {
			t.Errorf("docs/diagnostics.md does not say what %s of %s means", c, dir)
		}
	}
	if len(made) < 50 {
		t.Errorf("found %d codes in the sources; are they still string literals?", len(made))
	}
}

// reasons are the reasons that sources give, each with the statuses that are
// given beside it; those of package gate's function Status are not among them.
type reasons map[string][]int

func (r reasons) add(reason string, status ...int) {
	r[reason] = append(r[reason], status...)
}

// constants takes exported constants of the type merlon.Reason.
func (r reasons) constants(spec *ast.ValueSpec) {
	name := ""
	switch x := spec.Type.(type) {
	case *ast.Ident:
		name = x.Name
	case *ast.SelectorExpr:
		name = x.Sel.Name
	}
	for i, value := range spec.Values {
		// What is not exported stays inside its package.
		if reason, ok := literal(value); ok && name == "Reason" && spec.Names[i].IsExported() {
			r.add(reason)
		}
	}
}

// call takes refuse("x") of gate/canon, refuse(400, "x") of gate/http1 and gate/http2, what ends a
// stream or a connection there, and what
// names a reason without a constant: deny("x") and merlon.Reason("x"). It
// returns a call of refuse that it cannot read.
func (r reasons) call(dir string, call *ast.CallExpr) (unread bool) {
	name := ""
	switch x := call.Fun.(type) {
	case *ast.Ident:
		name = x.Name
	case *ast.SelectorExpr:
		name = x.Sel.Name
	}
	args := call.Args
	switch {
	case name == "refuse" && (dir == "gate/http1" || dir == "gate/http2" || dir == "gate/canon"):
	case (name == "malformed" || name == "broken" || name == "charge") && dir == "gate/http2":
		if reason, ok := literal(args[len(args)-1]); ok {
			r.add(reason, 400) // in the record; the peer gets a code of HTTP/2
		}
		return false
	case len(args) == 1 && (name == "deny" && dir == "gate" || name == "Reason"):
		if reason, ok := literal(args[0]); ok {
			r.add(reason, gate.Status(merlon.Reason(reason), false))
		}
		return false
	default:
		return false
	}
	reason, ok := literal(args[len(args)-1])
	if !ok {
		return true
	}
	status := 400 // all of gate/canon
	if len(args) == 2 {
		lit, ok := args[0].(*ast.BasicLit)
		if !ok {
			return true
		}
		status, _ = strconv.Atoi(lit.Value)
	}
	r.add(reason, status)
	return false
}

// madeReasons reads the reasons from the sources.
func madeReasons(t *testing.T) reasons {
	t.Helper()
	made := reasons{}
	for _, s := range shipped(t) {
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec:
				made.constants(n)
			case *ast.CallExpr:
				if made.call(s.dir, n) {
					t.Errorf("%s: a refusal whose reason is no literal", s.name)
				}
			case *ast.KeyValueExpr: // merlon.Verdict{Reason: "x"}, http1.Error{Reason: "x"}
				key, _ := n.Key.(*ast.Ident)
				if reason, ok := literal(n.Value); ok && key != nil && key.Name == "Reason" {
					made.add(reason)
				}
			}
			return true
		})
	}
	return made
}

// TestReasons: docs/diagnostics.md says what every reason of a denied call
// means, once, with the status that the gate answers with.
func TestReasons(t *testing.T) {
	t.Parallel()
	made := madeReasons(t)
	_, text, _ := strings.Cut(read(t, "docs/diagnostics.md"), "\n## Reasons of denied calls\n")
	row := regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)` \\| (.+?) \\| [A-Z].*\\. \\|$")
	said := map[string]string{}
	for _, m := range row.FindAllStringSubmatch(text, -1) {
		if _, ok := said[m[1]]; ok {
			t.Errorf("docs/diagnostics.md says twice what %s means", m[1])
		}
		said[m[1]] = m[2]
	}
	for reason, statuses := range made {
		if len(statuses) == 0 {
			statuses = []int{gate.Status(merlon.Reason(reason), false), gate.Status(merlon.Reason(reason), true)}
		}
		var want []string
		for _, status := range slices.Compact(slices.Sorted(slices.Values(statuses))) {
			want = append(want, strconv.Itoa(status))
		}
		if reason == string(merlon.ReasonAllowed) || reason == "exec" {
			want = []string{"–"} // no denials
		}
		if got := said[reason]; got != strings.Join(want, " or ") {
			t.Errorf("docs/diagnostics.md has status %q for reason %s; want %q", got, reason, strings.Join(want, " or "))
		}
	}
	for _, reason := range slices.Sorted(maps.Keys(said)) {
		if _, ok := made[reason]; !ok {
			t.Errorf("docs/diagnostics.md has the reason %s, which nothing gives", reason)
		}
	}
	if len(made) < 80 {
		t.Errorf("found %d reasons in the sources; are they still string literals?", len(made))
	}
}
