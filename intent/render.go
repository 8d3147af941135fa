package intent

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/width"

	"merlon"
)

const (
	tabWidth  = 4
	maxColumn = 110 // of a source line; longer ones are shown around the word
)

// Colours of a terminal (ECMA-48 8.3.117).
const (
	bold   = "\x1b[1m"
	red    = "\x1b[1;31m"
	yellow = "\x1b[1;33m"
	cyan   = "\x1b[36m"
	dim    = "\x1b[2m"
	plain  = "\x1b[0m"
)

// Render writes diagnostics for people: what is wrong, the line with the word
// underlined, what to do, and the other places. fsys is where the files are;
// without it, or when a file is gone, the lines are left out. What cannot be
// written to w is lost.
//
// Text of the files goes to a terminal: characters that would command it, or
// change the direction of text, are replaced.
func Render(w io.Writer, fsys fs.FS, ds merlon.Diagnostics, color bool) {
	r := &renderer{fsys: fsys, color: color, files: map[string][]string{}}
	for i, d := range ds {
		if i > 0 {
			r.out.WriteByte('\n')
		}
		r.one(d)
	}
	_, _ = w.Write(r.out.Bytes()) // a closed terminal has nobody to tell
}

type renderer struct {
	out   bytes.Buffer
	fsys  fs.FS
	color bool
	files map[string][]string
}

func (r *renderer) paint(style, s string) string {
	if !r.color || s == "" {
		return s
	}
	return style + s + plain
}

func (r *renderer) one(d merlon.Diagnostic) {
	mark, kind := red, ""
	if d.Warning {
		mark, kind = yellow, "warning:"
	}
	if !d.Pos.IsZero() {
		r.out.WriteString(r.paint(bold, visible(d.Pos.String())+":") + " ")
	}
	if kind != "" {
		r.out.WriteString(r.paint(mark, kind) + " ")
	}
	fmt.Fprintf(&r.out, "%s %s\n", r.paint(bold, visible(d.Message)), r.paint(dim, "["+d.Code+"]"))
	if line, ok := r.line(d.Pos); ok {
		number := strconv.Itoa(d.Pos.Line)
		text, before, under := window(line, d.Pos.Column, d.Width)
		fmt.Fprintf(&r.out, "%s %s\n", r.paint(dim, "  "+number+" |"), text)
		if d.Pos.Column > 0 {
			fmt.Fprintf(&r.out, "%s %s%s\n", r.paint(dim, "  "+strings.Repeat(" ", len(number))+" |"),
				strings.Repeat(" ", before), r.paint(mark, strings.Repeat("^", under)))
		}
	}
	if d.Hint != "" {
		fmt.Fprintf(&r.out, "%s %s\n", r.paint(cyan, "hint:"), visible(d.Hint))
	}
	for _, p := range d.Also {
		fmt.Fprintf(&r.out, "%s %s\n", r.paint(cyan, "also:"), visible(p.String()))
	}
}

// line is the source line of p.
func (r *renderer) line(p merlon.Pos) (string, bool) {
	if r.fsys == nil || p.Line == 0 || !fs.ValidPath(p.File) {
		return "", false
	}
	lines, read := r.files[p.File]
	if !read {
		rec := &recorder{fsys: r.fsys, files: map[string][]byte{}}
		if b, err := rec.ReadFile(p.File); err == nil {
			lines = strings.Split(string(b), "\n")
		}
		r.files[p.File] = lines
	}
	if p.Line > len(lines) {
		return "", false
	}
	return strings.TrimSuffix(lines[p.Line-1], "\r"), true
}

// window is the part of a line to show, how many columns stand before the
// word, and how many to underline.
func window(line string, column, size int) (text string, before, under int) {
	runes := []rune(line)
	start := min(max(column-1, 0), len(runes))
	end := min(start+max(size, 1), len(runes))
	from, to := 0, len(runes)
	if len(runes) > maxColumn {
		from = max(0, start-maxColumn/3)
		to = min(len(runes), from+maxColumn)
		end = min(end, to)
	}
	var b strings.Builder
	at := 0
	if from > 0 {
		b.WriteString("...")
		at = 3
	}
	for i := from; i < to; i++ {
		if i == start {
			before = at
		}
		n := columns(runes[i], at)
		switch {
		case runes[i] == '\t':
			b.WriteString(strings.Repeat(" ", n))
		default:
			b.WriteString(visible(string(runes[i])))
		}
		if i >= start && i < end {
			under += n
		}
		at += n
	}
	if start >= to {
		before = at
	}
	if to < len(runes) {
		b.WriteString("...")
	}
	return strings.TrimRight(b.String(), " "), before, max(under, 1)
}

// columns is how many columns of a terminal c takes, at column at.
func columns(c rune, at int) int {
	switch {
	case c == '\t':
		return tabWidth - at%tabWidth
	case hidden(c):
		return 1
	case unicode.In(c, unicode.Mn, unicode.Me, unicode.Cf):
		return 0
	}
	switch width.LookupRune(c).Kind() {
	case width.EastAsianWide, width.EastAsianFullwidth:
		return 2
	}
	return 1
}

// hidden says whether c must not reach a terminal.
func hidden(c rune) bool {
	return unicode.IsControl(c) || c == utf8.RuneError || unicode.Is(unicode.Bidi_Control, c) || c == '\u2028' || c == '\u2029' || c == '\ufeff'
}

// visible shows what a terminal would obey.
func visible(s string) string {
	if !strings.ContainsFunc(s, hidden) {
		return s
	}
	return strings.Map(func(c rune) rune {
		if hidden(c) {
			return utf8.RuneError
		}
		return c
	}, s)
}
