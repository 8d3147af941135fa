package intent

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"merlon"
)

// Bounds on what one Load says.
const (
	maxDiagnostics = 100 // shown
	maxCollected   = 500 // kept before sorting
)

// word is a text and the place where it stands.
type word struct {
	text  string
	pos   merlon.Pos
	width int // characters
}

// part is the word at text[from:to] of w, for text that stands in the file as
// it is.
func (w word) part(from, to int) word {
	if w.width != utf8.RuneCountInString(w.text) { // escaped or folded: only the whole has a place
		return word{w.text[from:to], w.pos, w.width}
	}
	p := w.pos
	p.Column += utf8.RuneCountInString(w.text[:from])
	return word{w.text[from:to], p, utf8.RuneCountInString(w.text[from:to])}
}

// reporter collects diagnostics.
type reporter struct{ ds merlon.Diagnostics }

func (r *reporter) at(w word, code, hint, format string, args ...any) {
	r.add(w, code, hint, nil, format, args...)
}

func (r *reporter) add(w word, code, hint string, also []merlon.Pos, format string, args ...any) {
	if r.full() {
		return
	}
	r.ds = append(r.ds, merlon.Diagnostic{
		Pos: w.pos, Width: w.width, Code: code, Warning: strings.HasPrefix(code, "W"),
		Message: fmt.Sprintf(format, args...), Hint: hint, Also: also,
	})
}

// full says that more would not be kept, so that nobody searches for hints.
func (r *reporter) full() bool { return len(r.ds) >= maxCollected }

// problem reports p at w.
func (r *reporter) problem(w word, p *problem) { r.at(w, p.code, p.hint, "%s", p.message) }

// sorted is everything found, in the order of position, errors before warnings
// when there are too many.
func (r *reporter) sorted() merlon.Diagnostics {
	ds := slices.Clone(r.ds)
	byPos := func(a, b merlon.Diagnostic) int {
		return cmp.Or(a.Pos.Compare(b.Pos), strings.Compare(a.Code, b.Code), strings.Compare(a.Message, b.Message))
	}
	slices.SortStableFunc(ds, byPos)
	ds = slices.CompactFunc(ds, func(a, b merlon.Diagnostic) bool {
		return a.Pos == b.Pos && a.Code == b.Code && a.Message == b.Message
	})
	if len(ds) > maxDiagnostics {
		slices.SortStableFunc(ds, func(a, b merlon.Diagnostic) int {
			switch {
			case a.Warning == b.Warning:
				return 0
			case a.Warning:
				return 1
			}
			return -1
		})
		ds = ds[:maxDiagnostics]
		slices.SortStableFunc(ds, byPos)
	}
	return ds
}

// clip keeps a user's word short enough to quote.
func clip(s string) string {
	const most = 60
	if utf8.RuneCountInString(s) <= most {
		return s
	}
	return string([]rune(s)[:most]) + "..."
}

// didYouMean is the hint that names the nearest of the words, and where it is
// defined.
func didYouMean(s string, defined map[string]merlon.Pos) string {
	names := make([]string, 0, len(defined))
	for name := range defined {
		names = append(names, name)
	}
	slices.Sort(names)
	near := nearest(s, names)
	switch {
	case near == "":
		return ""
	case defined[near].IsZero():
		return fmt.Sprintf("did you mean %q?", near)
	}
	p := defined[near]
	p.Column = 0
	return fmt.Sprintf("did you mean %q? it is defined at %v", near, p)
}

// someOf lists words for a hint.
func someOf(names []string) string {
	const most = 8
	if len(names) > most {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
	}
	return strings.Join(names, ", ")
}

// nearest is the word nearest to s, or "" when none is near: fewer than three
// edits, and no more than a third of the word.
func nearest(s string, words []string) string {
	const longest = 64
	if len(s) > longest {
		return ""
	}
	best, bestDistance := "", 3
	for _, w := range words {
		if strings.EqualFold(s, w) {
			return w
		}
		most := min(bestDistance-1, max(1, max(len(s), len(w))/3))
		if abs(len(s)-len(w)) > most {
			continue
		}
		if d := distance(strings.ToLower(s), strings.ToLower(w)); d <= most {
			best, bestDistance = w, d
		}
	}
	return best
}

func abs(n int) int { return max(n, -n) }

// distance counts the edits between a and b: insert, delete, replace, and swap
// of neighbours.
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
