// Package exposition writes metrics in the text format that Prometheus reads,
// version 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats/),
// and knows those of every Go process.
//
// It holds no counter: whoever counts does so where it costs least, and adds up
// when somebody looks.
package exposition

import (
	"bufio"
	"io"
	"math"
	"strconv"
	"strings"
)

// ContentType is that of what a Writer writes.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// Kind is the type of a family.
type Kind string

// Kinds of families.
const (
	Counter   Kind = "counter"
	Gauge     Kind = "gauge"
	Histogram Kind = "histogram"
)

// Writer writes families, one after the other, and remembers the first error.
type Writer struct {
	out    *bufio.Writer
	family string
	number []byte
}

// New returns a Writer to w. Flush ends it.
func New(w io.Writer) *Writer { return &Writer{out: bufio.NewWriterSize(w, 16<<10)} }

// Family begins a family of series. Its help has no line end.
func (w *Writer) Family(name string, kind Kind, help string) {
	w.family = name
	w.put("# HELP ", name, " ", help, "\n# TYPE ", name, " ", string(kind), "\n")
}

// Labels are the names and values of a series, as they stand between braces.
type Labels string

// Label renders pairs of a name and a value. Values may be anything.
func Label(pairs ...string) Labels {
	var b strings.Builder
	for i := 0; i+1 < len(pairs); i += 2 {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(pairs[i])
		b.WriteString(`="`)
		escaper.WriteString(&b, strings.ToValidUTF8(pairs[i+1], "\uFFFD"))
		b.WriteByte('"')
	}
	return Labels(b.String())
}

var escaper = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// With adds labels.
func (l Labels) With(pairs ...string) Labels {
	more := Label(pairs...)
	if l == "" || more == "" {
		return l + more
	}
	return l + "," + more
}

// Value writes the value of one series of the family.
func (w *Writer) Value(l Labels, v float64) {
	w.sample("", l, strconv.AppendFloat(w.number[:0], v, 'g', -1, 64))
}

// Count writes the whole number that one series of the family has.
func (w *Writer) Count(l Labels, n uint64) { w.sample("", l, strconv.AppendUint(w.number[:0], n, 10)) }

// Distribution writes one histogram of the family: how many observations were
// at most each bound, and after that how many were beyond the last; and the sum
// of all.
func (w *Writer) Distribution(l Labels, bounds []float64, counts []uint64, sum float64) {
	total := uint64(0)
	for i, n := range counts {
		total += n
		bound := math.Inf(1)
		if i < len(bounds) {
			bound = bounds[i]
		}
		w.sample("_bucket", l.With("le", strconv.FormatFloat(bound, 'g', -1, 64)), strconv.AppendUint(w.number[:0], total, 10))
	}
	w.sample("_sum", l, strconv.AppendFloat(w.number[:0], sum, 'g', -1, 64))
	w.sample("_count", l, strconv.AppendUint(w.number[:0], total, 10))
}

func (w *Writer) sample(suffix string, l Labels, value []byte) {
	w.number = value
	w.put(w.family, suffix)
	if l != "" {
		w.put("{", string(l), "}")
	}
	w.out.WriteByte(' ')
	w.out.Write(value)
	w.out.WriteByte('\n')
}

func (w *Writer) put(parts ...string) {
	for _, s := range parts {
		w.out.WriteString(s)
	}
}

// Flush writes what is left, and returns the first error of all writing.
func (w *Writer) Flush() error { return w.out.Flush() }
