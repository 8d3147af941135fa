package route

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"merlon"
)

// MaxReports bounds the diagnostics about one input.
const MaxReports = 100

// Report collects the diagnostics about one input. Errors and warnings are
// capped apart, so that a flood of warnings cannot hide the error that stops
// the contract.
type Report struct {
	errors, warnings merlon.Diagnostics
	seen             map[reportKey]struct{}
}

type reportKey struct {
	pos     merlon.Pos
	code    string
	message string
}

// Add keeps d unless it was said before, as happens where much refers to one
// mistake.
func (r *Report) Add(d merlon.Diagnostic) {
	to := &r.errors
	if d.Warning {
		to = &r.warnings
	}
	if len(*to) == MaxReports {
		return
	}
	key := reportKey{d.Pos, d.Code, d.Message}
	if _, ok := r.seen[key]; ok {
		return
	}
	if r.seen == nil {
		r.seen = map[reportKey]struct{}{}
	}
	r.seen[key] = struct{}{}
	*to = append(*to, d)
}

// Errorf adds an error at a place.
func (r *Report) Errorf(pos merlon.Pos, width int, code, hint, format string, args ...any) {
	r.Add(merlon.Diagnostic{Pos: pos, Width: width, Code: code, Message: fmt.Sprintf(format, args...), Hint: hint})
}

// Warnf adds a warning at a place.
func (r *Report) Warnf(pos merlon.Pos, width int, code, hint, format string, args ...any) {
	r.Add(merlon.Diagnostic{Pos: pos, Width: width, Code: code, Warning: true, Message: fmt.Sprintf(format, args...), Hint: hint})
}

// Failed reports whether there is an error.
func (r *Report) Failed() bool { return len(r.errors) > 0 }

// Sorted is all that was collected, in the order of Pos.
func (r *Report) Sorted() merlon.Diagnostics {
	ds := slices.Concat(r.errors, r.warnings)
	if len(ds) > MaxReports {
		ds = ds[:MaxReports] // errors stand first
	}
	slices.SortStableFunc(ds, func(a, b merlon.Diagnostic) int {
		return cmp.Or(a.Pos.Compare(b.Pos), strings.Compare(a.Code, b.Code), strings.Compare(a.Message, b.Message))
	})
	return ds
}

// Quote quotes a user's word, shortened when it is absurdly long.
func Quote(s string) string {
	const most = 200
	if len(s) > most {
		s = s[:most]
		for !utf8.ValidString(s) {
			s = s[:len(s)-1]
		}
		s += "…"
	}
	b, err := json.Marshal(s)
	if err != nil {
		return `"?"`
	}
	return string(b)
}
