package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"

	"merlon"
	"merlon/record"
)

// ui is how a command speaks: beautifully to a terminal, plainly to a pipe, in
// JSON to a program.
type ui struct {
	ink // of the standard output

	in       io.Reader
	out, err io.Writer
	errInk   ink // of the standard error
	terminal bool
	json     bool
	state    string
}

func newUI(in io.Reader, out, err io.Writer) *ui {
	u := &ui{in: in, out: out, err: err, terminal: isTerminal(out)}
	// https://no-color.org
	colorful := os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	u.color = colorful && u.terminal
	u.errInk.color = colorful && isTerminal(err)
	return u
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// ink colours words where colours are seen.
type ink struct{ color bool }

func (k ink) paint(code, s string) string {
	if !k.color || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (k ink) bold(s string) string   { return k.paint("1", s) }
func (k ink) dim(s string) string    { return k.paint("2", s) }
func (k ink) red(s string) string    { return k.paint("31", s) }
func (k ink) green(s string) string  { return k.paint("32", s) }
func (k ink) yellow(s string) string { return k.paint("33", s) }
func (k ink) cyan(s string) string   { return k.paint("36", s) }

// printf prints to the standard output.
func (u *ui) printf(format string, args ...any) { fmt.Fprintf(u.out, format, args...) }

// say tells of progress, where it does not mix with results.
func (u *ui) say(format string, args ...any) {
	if !u.json {
		fmt.Fprintln(u.err, u.errInk.dim("· "+fmt.Sprintf(format, args...)))
	}
}

// failure is an error as programs read it.
type failure struct {
	OK          bool               `json:"ok"` // false
	Error       string             `json:"error,omitzero"`
	Hint        string             `json:"hint,omitzero"`
	Diagnostics merlon.Diagnostics `json:"diagnostics,omitzero"`
}

// fail shows an error: what is wrong in one line, and then what to do.
func (u *ui) fail(err error) {
	text, hint := hintOf(err)
	if u.json {
		u.printJSON(failure{Error: text, Hint: hint})
		return
	}
	fmt.Fprintf(u.err, "%s %s\n", u.errInk.red("merlon:"), printable(text))
	if hint != "" {
		fmt.Fprintf(u.err, "%s %s\n", u.errInk.cyan("hint:"), printable(hint))
	}
}

// hinted is an error that says what to do.
func hinted(err error, hint string, args ...any) error {
	return fmt.Errorf("%w\nhint: %s", err, fmt.Sprintf(hint, args...))
}

// hintOf splits an error into what is wrong and what to do.
func hintOf(err error) (text, hint string) {
	text = err.Error()
	if b, ok := errors.AsType[*record.Broken](err); ok {
		return text, b.Hint
	}
	for _, mark := range []string{"\nhint: ", "; hint: "} {
		if text, hint, ok := strings.Cut(text, mark); ok {
			return text, hint
		}
	}
	return text, ""
}

// printable makes visible what a terminal would obey: a name in a record, or
// an error about it, may come from whoever made the call.
func printable(s string) string {
	commands := func(c rune) bool {
		return unicode.IsControl(c) && c != '\n' && c != '\t' || unicode.Is(unicode.Bidi_Control, c) || c == utf8.RuneError
	}
	if !strings.ContainsFunc(s, commands) {
		return s
	}
	return strings.Map(func(c rune) rune {
		if commands(c) {
			return utf8.RuneError
		}
		return c
	}, s)
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
