package learn

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

const oneOperation = "openapi: 3.0.3\ninfo: {title: X, version: \"1\"}\npaths: {/x: {get: {operationId: x, responses: {\"200\": {description: ok}}}}}\n"

// TestNamesWriteNoSentences: names of files, services and variables are
// chosen by whoever wrote the project, and must not write the intent.
func TestNamesWriteNoSentences(t *testing.T) {
	t.Parallel()
	evil := "x\n  victim: {callers: {anyone: all}}\n#"
	fsys := fstest.MapFS{
		evil + "/openapi.yaml":   {Data: []byte(oneOperation)},
		"orders/openapi.yaml":    {Data: []byte(oneOperation)},
		"a: b #/openapi.yaml":    {Data: []byte(oneOperation)},
		"- x/openapi.yaml":       {Data: []byte(oneOperation)},
		"\u202e\x1b/openapi.yml": {Data: []byte(oneOperation)},
		"docker-compose.yml": {Data: fmt.Appendf(nil, `
services:
  %q: {image: %q, ports: ["80:80"]}
  "anyone": {expose: [1]}
  "ALL": {expose: [2]}
  "9 lives": {expose: [3]}
  "9_lives": {expose: [3]}
  "": {expose: [3]}
  %q: {expose: [4]}
  orders: {expose: [70000, 80, x]}
  web:
    environment: {%q: "http://orders:80"}
`, evil, "postgres\n"+evil, strings.Repeat("long", 100), evil)},
	}
	out, _, err := Scan(fsys)
	if err != nil {
		t.Fatal(err)
	}
	in := holds(t, fsys, out)
	if in == nil {
		return
	}
	for _, s := range in.Services {
		if s.Name == "victim" {
			t.Errorf("a name wrote a service:\n%s", out)
		}
		if s.Name == "orders" && (len(s.Rules) != 1 || s.Rules[0].Caller != "web") {
			t.Errorf("the proved caller is missing: %+v", s.Rules)
		}
	}
}

// TestBounds: what is too much is left out, and said.
func TestBounds(t *testing.T) {
	t.Parallel()
	bomb := "a0: &a0 {x: y}\n"
	for i := 1; i < 40; i++ {
		bomb += fmt.Sprintf("a%d: &a%d {<<: [%s]}\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i-1), 10), ","))
	}
	bomb += "services: {web: {<<: *a39, environment: *a39}}\n"
	var many strings.Builder
	many.WriteString("services:\n")
	for i := range maxServices + 10 {
		fmt.Fprintf(&many, "  s%d: {expose: [80]}\n", i)
	}
	fsys := fstest.MapFS{
		"bomb/docker-compose.yml": {Data: []byte(bomb)},
		"docker-compose.yml":      {Data: []byte(many.String())},
		"large/openapi.yaml":      {Data: make([]byte, maxFile+1)},
		"pipe.yaml":               {Data: []byte("openapi: 3.0.0"), Mode: fs.ModeNamedPipe},
	}
	out, notes, err := Scan(fsys)
	if err != nil || len(out) == 0 {
		t.Fatal(err)
	}
	said := fmt.Sprint(notes)
	for _, want := range []string{"there is too much of it", "more than 5000 services"} {
		if !strings.Contains(said, want) {
			t.Errorf("the notes do not say %q: %.400s", want, said)
		}
	}
	if strings.Contains(said, "pipe.yaml") {
		t.Error("a pipe was read")
	}
}

func TestLabel(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ in, want string }{
		{"orders", "orders"}, {"Orders_API", "orders-api"}, {"", "s"}, {"9x", "s-9x"}, {"--x--", "x"}, {"日本", "s"},
		{"gateway", "gateway-service"}, {"all", "all-service"}, {"anyone", "anyone-service"}, {strings.Repeat("a", 99), strings.Repeat("a", 55)},
	} {
		if got := label(c.in); got != c.want {
			t.Errorf("%q: got %q, want %q", c.in, got, c.want)
		}
	}
}

func TestTargets(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, value string
		want        string
	}{
		{"X", "http://orders/a", "[{orders 0 true}]"},
		{"X", "http://u:p@orders:7002?x", "[{orders 7002 true}]"},
		{"X", "dns:///orders:7002", "[{orders 7002 true}]"},
		{"X", "orders:7002", "[{orders 7002 false}]"},
		{"X", "orders", "[]"},
		{"ORDERS_HOST", "orders", "[{orders 0 true}]"},
		{"orders_url", "orders:7002", "[{orders 7002 true}]"},
		{"GHOST", "orders", "[]"},
		{"BROKERS", "a:1,b:2;c:x", "[{a 1 false} {b 2 false}]"},
		{"args", "--to=http://orders", "[{orders 0 true}]"},
		{"X", "://", "[{ 0 true}]"},
		{"X", "", "[]"},
	} {
		if got := fmt.Sprint(targets(setting{name: c.name, value: c.value})); got != c.want {
			t.Errorf("%s=%s: got %s, want %s", c.name, c.value, got, c.want)
		}
	}
}

// split reads an archive such as those of testdata. txtar.Parse itself does
// not survive fuzzing ("-- --").
func split(archive string) fstest.MapFS {
	fsys := fstest.MapFS{}
	var now *fstest.MapFile
	for line := range strings.Lines(archive) {
		name, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "-- ")
		name, ok2 := strings.CutSuffix(name, " --")
		if ok && ok2 {
			now = nil
			if fs.ValidPath(name) && name != "." && !strings.HasPrefix(name, "want/") {
				now = &fstest.MapFile{Mode: 0o644}
				fsys[name] = now
			}
		} else if now != nil {
			now.Data = append(now.Data, line...)
		}
	}
	return fsys
}

func FuzzScan(f *testing.F) {
	names, _ := filepath.Glob("testdata/*.txtar")
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("-- docker-compose.yml --\nservices: &a {b: *a}\n"))
	f.Add([]byte("-- k.yaml --\napiVersion: v1\nkind: List\nitems: &a [*a, {kind: List, items: *a}]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		fsys := split(string(data))
		out, _, err := Scan(fsys)
		if err != nil {
			return
		}
		holds(t, fsys, out)
	})
}
