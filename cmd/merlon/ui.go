package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"
)

// ui is how a command speaks: beautifully to a terminal, plainly to a pipe, in
// JSON to a program.
type ui struct {
	out, err io.Writer
	color    bool
	terminal bool
	json     bool
	state    string
}

func newUI(out, err io.Writer) *ui {
	u := &ui{out: out, err: err}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		u.terminal = true
		// https://no-color.org
		u.color = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	}
	return u
}

func (u *ui) paint(code, s string) string {
	if !u.color || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (u *ui) bold(s string) string   { return u.paint("1", s) }
func (u *ui) dim(s string) string    { return u.paint("2", s) }
func (u *ui) red(s string) string    { return u.paint("31", s) }
func (u *ui) green(s string) string  { return u.paint("32", s) }
func (u *ui) yellow(s string) string { return u.paint("33", s) }
func (u *ui) cyan(s string) string   { return u.paint("36", s) }

// printf prints to the standard output.
func (u *ui) printf(format string, args ...any) { fmt.Fprintf(u.out, format, args...) }

// say tells of progress, where it does not mix with results.
func (u *ui) say(format string, args ...any) {
	if !u.json {
		fmt.Fprintln(u.err, u.dim("· "+fmt.Sprintf(format, args...)))
	}
}

// fail shows an error; its "hint:" lines stand out.
func (u *ui) fail(err error) {
	if u.json {
		u.printJSON(map[string]any{"ok": false, "error": err.Error()})
		return
	}
	fmt.Fprintf(u.err, "%s %v\n", u.red("merlon:"), err)
}

func (u *ui) printJSON(v any) {
	e := json.NewEncoder(u.out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	e.Encode(v)
}

// table prints rows in columns that line up, two spaces apart. Colour codes
// take no room.
func (u *ui) table(indent string, rows [][]string) {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], visible(cell))
		}
	}
	for _, row := range rows {
		var b strings.Builder
		b.WriteString(indent)
		for i, cell := range row {
			b.WriteString(cell)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-visible(cell)+2))
			}
		}
		fmt.Fprintln(u.out, strings.TrimRight(b.String(), " "))
	}
}

// visible is the number of characters of s that show.
func visible(s string) int {
	n := 0
	for {
		i := strings.Index(s, "\x1b[")
		if i < 0 {
			return n + utf8.RuneCountInString(s)
		}
		n += utf8.RuneCountInString(s[:i])
		end := strings.IndexByte(s[i:], 'm')
		if end < 0 {
			return n
		}
		s = s[i+end+1:]
	}
}

// short is the part of a hash that people read.
func short(hash string) string { return hash[:min(len(hash), 12)] }
