package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"merlon"
	"merlon/intent"
	"merlon/policy"
)

// TestAskAgreesWithPolicy: for every caller and operation of the example, the
// places on the way allow together exactly what the whole policy allows, however
// the question is put.
func TestAskAgreesWithPolicy(t *testing.T) {
	t.Parallel()
	loaded, ds := intent.Load(os.DirFS(filepath.Join("..", "..", "examples", "shop")))
	if ds.Failed() {
		t.Fatal(ds)
	}
	p, ds := policy.Compile(loaded.Intent)
	if ds.Failed() {
		t.Fatal(ds)
	}
	in := p.Intent()
	callers := []string{merlon.AnyCaller, "staff", "stranger"}
	for i := range in.Services {
		callers = append(callers, in.Services[i].Name)
	}
	claims := []map[string]any{nil, {"role": "support"}, {"role": "warehouse"}}
	allowed, denied := 0, 0
	for _, caller := range callers {
		for i := range in.Services {
			s := &in.Services[i]
			for j := range s.Operations {
				op := &s.Operations[j]
				for _, claims := range claims {
					named := merlon.Test{Call: merlon.Edges{Caller: caller, Callee: s.Name, Operation: op.Name}, Claims: claims}
					want, ok := agree(t, p, &named)
					if !ok {
						continue
					}
					if want {
						allowed++
					} else {
						denied++
					}
					wire := merlon.Test{Call: merlon.Edges{Caller: caller, Callee: s.Name}, Method: op.Method, Path: examplePath(op.Path), Claims: claims}
					agree(t, p, &wire)
					if caller == merlon.AnyCaller || caller == "staff" {
						wire.Call.Callee, wire.Path = "", "https://shop.example"+wire.Path
						agree(t, p, &wire)
					}
				}
			}
		}
	}
	if allowed < 10 || denied < 100 {
		t.Errorf("%d questions were allowed and %d denied: do these prove anything?", allowed, denied)
	}
}

// agree puts one question and reports what the policy says.
func agree(t *testing.T, p *policy.Policy, test *merlon.Test) (allowed, ok bool) {
	t.Helper()
	call := p.Call(test)
	want := p.Decide(&call).Effect == merlon.Allow
	a := ask(p, test, time.Unix(0, 0))
	text := fmt.Sprintf("%+v %s %s %v", test.Call, test.Method, test.Path, test.Claims)
	switch {
	case a.Allowed != want:
		t.Errorf("%s: the places allow it: %v, the policy: %v\n%+v", text, a.Allowed, want, a.Layers)
		return false, false
	case a.Allowed != (a.Status == 0):
		t.Errorf("%s: allowed %v with status %d", text, a.Allowed, a.Status)
	case a.Explanation.Why == "":
		t.Errorf("%s: nobody knows why", text)
	case len(a.Layers) == 0 || len(a.Layers) > 2:
		t.Errorf("%s: %d places", text, len(a.Layers))
	}
	return want, true
}

func TestParseClaims(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in   string
		want any // nil: refused
	}{
		{"a=b", "b"}, {"a=", ""}, {"a=b=c", "b=c"}, {"a=5", "5"},
		{"a:=5", int64(5)}, {"a:=5.5", 5.5}, {"a:=true", true}, {`a:="b"`, "b"}, {`a:=["b"]`, []any{"b"}},
		{`a:={"b":1}`, map[string]any{"b": int64(1)}},
		{"a", nil}, {"=b", nil}, {":=1", nil}, {"a:=", nil}, {"a:=b", nil}, {"a:=1 2", nil},
		{`a:=1,"v":2`, nil}, {`a:=1,"w":2`, nil}, {"a:=1}", nil}, {"a:=99999999999999999999", nil},
		{"a:=" + strings.Repeat("[", 30) + strings.Repeat("]", 30), nil},
	} {
		got, err := parseClaims([]string{c.in})
		if c.want == nil {
			if err == nil {
				t.Errorf("%s is taken for %v", c.in, got)
			}
			continue
		}
		if err != nil || fmt.Sprintf("%#v", got["a"]) != fmt.Sprintf("%#v", c.want) {
			t.Errorf("%s: %#v %v", c.in, got["a"], err)
		}
	}
}
