package policy

import (
	"cmp"
	"slices"
	"strings"

	"merlon"
)

// maxNames is how many names a hint lists before it gives up.
const maxNames = 8

// suggest is a hint for a word that is not among names: the nearest one, or
// the few there are. It is "" when there is nothing useful to say.
func suggest(word string, names []string) string {
	if near := nearest(word, names); near != "" {
		return "did you mean \"" + near + "\"?"
	}
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	if len(names) == 0 || len(names) > maxNames {
		return ""
	}
	return "expect one of " + strings.Join(names, ", ")
}

// nearest is the name within a third of word's length in edits, or "".
func nearest(word string, names []string) string {
	best, bestAt := "", max(1, len(word)/3)+1
	for _, name := range names {
		if len(name) > 256 || len(word) > 256 || name == word {
			continue
		}
		if d := distance(strings.ToLower(word), strings.ToLower(name)); d < bestAt {
			best, bestAt = name, d
		}
	}
	return best
}

// distance is the number of edits between a and b: a byte more, less or
// another, or two neighbours swapped (optimal string alignment).
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before, last, row = last, row, before
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(last[j]+cost, row[j]+1, last[j+1]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
	}
	return row[len(b)]
}

func operationNames(s *merlon.Service) []string {
	names := make([]string, len(s.Operations))
	for i := range s.Operations {
		names[i] = s.Operations[i].Name
	}
	return names
}

func (c *compiler) serviceNames() []string {
	names := make([]string, 0, len(c.order))
	for _, s := range c.order {
		names = append(names, s.Name)
	}
	return names
}

func (c *compiler) callerNames() []string {
	names := append(c.serviceNames(), merlon.AnyCaller)
	for name := range c.logins {
		names = append(names, name)
	}
	return names
}

func (c *compiler) zones() []string {
	var names []string
	for _, s := range c.order {
		if s.Zone != "" {
			names = append(names, s.Zone)
		}
	}
	return names
}

// sortDiagnostics puts ds in the order of Pos and bounds their number. Warnings
// are the first to be dropped: they must not hide an error.
func sortDiagnostics(ds merlon.Diagnostics) merlon.Diagnostics {
	order := func(a, b merlon.Diagnostic) int {
		return cmp.Or(a.Pos.Compare(b.Pos), cmp.Compare(a.Code, b.Code), cmp.Compare(a.Message, b.Message))
	}
	if len(ds) > maxDiagnostics {
		slices.SortStableFunc(ds, func(a, b merlon.Diagnostic) int {
			if a.Warning != b.Warning {
				if b.Warning {
					return -1
				}
				return 1
			}
			return order(a, b)
		})
		ds = ds[:maxDiagnostics]
	}
	slices.SortStableFunc(ds, order)
	return ds
}
