package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// documents are those whose console blocks are run, from the root of the tree.
var documents = []string{"README.md", "docs/cli.md", "docs/identity.md", "docs/security.md"}

// TestDocuments runs every console block of the documents that begins with
// "$ merlon", in a directory with a running copy of examples/shop, and
// compares the output. A line "..." stands for any lines, and "..." in a line
// for any text.
func TestDocuments(t *testing.T) {
	t.Parallel()
	for _, name := range documents {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join("..", "..", filepath.FromSlash(name))
			src, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			dir := workspace(t)
			var out strings.Builder
			ran := 0
			for block := range blocks(string(src)) {
				if block.kind != "console" || !strings.HasPrefix(block.text, "$ merlon") {
					out.WriteString(block.raw)
					continue
				}
				ran++
				out.WriteString("```console\n" + replay(t, dir, fmt.Sprintf("%s:%d", name, block.line), block.text) + "```\n")
			}
			if ran == 0 && name != "docs/security.md" {
				t.Error("no console block was run")
			}
			if *update {
				golden(t, file, out.String())
			}
		})
	}
}

// workspace is a directory as the documents speak of it.
func workspace(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	shop := filepath.Join(dir, "examples", "shop")
	next := filepath.Join(dir, "next")
	stopped := filepath.Join(dir, "stopped")
	err := errors.Join(copyShop(shop), copyShop(next), copyShop(stopped), os.CopyFS(dir, os.DirFS(filepath.Join("testdata", "docs"))), makeHistory(shop))
	if err != nil {
		t.Fatal(err)
	}
	stop, err := serve(shop)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	name := filepath.Join(next, "merlon.yaml")
	src, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.Replace(src, []byte("payments: [postEntry]"), []byte("payments: [postEntry, getAccount]"), 1)
	if bytes.Equal(src, changed) {
		t.Fatal("examples/shop has changed: next is no other intent")
	}
	if err := os.WriteFile(name, changed, 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// block is a fenced block of Markdown, or the text between two.
type block struct {
	raw, kind, text string
	line            int
}

// blocks splits Markdown at its fences.
func blocks(src string) func(yield func(block) bool) {
	return func(yield func(block) bool) {
		var b block
		n, inside := 0, false
		for line := range strings.Lines(src) {
			n++
			fence := strings.HasPrefix(line, "```")
			switch {
			case fence && !inside:
				if b.raw != "" && !yield(b) {
					return
				}
				b, inside = block{raw: line, kind: strings.TrimSpace(line[3:]), line: n}, true
			case fence:
				b.raw += line
				if !yield(b) {
					return
				}
				b, inside = block{}, false
			default:
				b.raw += line
				if inside {
					b.text += line
				}
			}
		}
		if b.raw != "" {
			yield(b)
		}
	}
}

// replay runs the commands of a block and returns it with what they print.
func replay(t *testing.T, dir, place, text string) string {
	t.Helper()
	var out strings.Builder
	status := 0
	for _, part := range regexp.MustCompile(`(?m)^\$ `).Split(text, -1)[1:] {
		command, want, _ := strings.Cut(part, "\n")
		c := exec.Command("sh", "-c", fmt.Sprintf("(exit %d); %s", status, command))
		c.Dir = dir
		c.Env = append(os.Environ(), "TZ=UTC", "NO_COLOR=1")
		got, err := c.CombinedOutput()
		status = c.ProcessState.ExitCode()
		if _, failed := errors.AsType[*exec.ExitError](err); err != nil && !failed {
			t.Fatal(err)
		}
		if strings.Contains(want, "...") {
			if !like(want, string(got)) {
				t.Errorf("%s: $ %s\nprints:\n%s\nnot like:\n%s", place, command, got, want)
			}
			got = []byte(want)
		} else if want != string(got) && !*update {
			t.Errorf("%s: $ %s\nprints:\n%s\nnot:\n%s", place, command, got, want)
		}
		out.WriteString("$ " + command + "\n" + string(got))
	}
	return out.String()
}

// like reports whether got is want, in which "..." stands for anything.
func like(want, got string) bool {
	var re strings.Builder
	for line := range strings.Lines(want) {
		if line == "...\n" {
			re.WriteString(`(?:.*\n)*?`)
			continue
		}
		re.WriteString(strings.ReplaceAll(regexp.QuoteMeta(line), `\.\.\.`, `.*`))
	}
	return regexp.MustCompile(`\A` + re.String() + `\z`).MatchString(got)
}

// TestLike: a wildcard that matches too much would make every document true.
func TestLike(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		want, got string
		is        bool
	}{
		{"a\n", "a\n", true},
		{"a\n", "b\n", false},
		{"a\n", "a\nb\n", false},
		{"a ... c\n", "a b c\n", true},
		{"a ... c\n", "a b\nc\n", false},
		{"a\n...\nd\n", "a\nb\nc\nd\n", true},
		{"a\n...\nd\n", "a\nd\n", true},
		{"a\n...\nd\n", "a\nb\n", false},
		{"1 (.)\n...\n", "1 (x)\n", false},
	} {
		if like(c.want, c.got) != c.is {
			t.Errorf("like(%q, %q) is not %v", c.want, c.got, c.is)
		}
	}
}

// TestCommandsAreDocumented wants a section of docs/cli.md for every command,
// every flag of it in there, and no section for what does not exist.
func TestCommandsAreDocumented(t *testing.T) {
	t.Parallel()
	src, err := os.ReadFile(filepath.Join("..", "..", "docs", "cli.md"))
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for _, s := range strings.Split(string(src), "\n## merlon ")[1:] {
		name, text, _ := strings.Cut(s, "\n")
		sections[name] = text
	}
	var visit func(*cobra.Command)
	visit = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			visit(sub)
		}
		name := strings.TrimPrefix(strings.TrimPrefix(c.CommandPath(), "merlon"), " ")
		if name == "" || name == "help" || c.HasSubCommands() {
			return
		}
		text, ok := sections[name]
		delete(sections, name)
		if !ok {
			t.Errorf("docs/cli.md has no section for merlon %s", name)
			return
		}
		if !strings.Contains(text, strings.TrimSuffix(c.UseLine(), " [flags]")) {
			t.Errorf("docs/cli.md does not show: %s", c.UseLine())
		}
		for _, want := range []string{"```console\n$ merlon " + name, "Exit codes:"} {
			if !strings.Contains(text, want) && !slices.Contains([]string{"up"}, name) {
				t.Errorf("the section of merlon %s has no %q", name, want)
			}
		}
		c.NonInheritedFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" && !strings.Contains(text, "--"+f.Name) {
				t.Errorf("the section of merlon %s does not mention --%s", name, f.Name)
			}
		})
	}
	visit(newRoot(newUI(strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{})))
	for name := range sections {
		t.Errorf("docs/cli.md has a section for merlon %s, which does not exist", name)
	}
}

// TestReadmeIntent: the intent of the README is right, and its tests hold.
func TestReadmeIntent(t *testing.T) {
	t.Parallel()
	src, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for b := range blocks(string(src)) {
		if b.kind != "yaml" {
			continue
		}
		n++
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "merlon.yaml"), []byte(b.text), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("merlon", "check", dir).CombinedOutput(); err != nil || bytes.Contains(out, []byte("warning")) {
			t.Errorf("README.md:%d: %s", b.line, out)
		}
	}
	if n != 1 {
		t.Errorf("README.md has %d intents", n)
	}
}
