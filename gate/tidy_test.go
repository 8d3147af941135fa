package gate

import (
	"runtime"
	"testing"
)

// TestTidy: a crowd that has settled is worth one collection, and nothing else
// is worth any.
func TestTidy(t *testing.T) {
	collections := func() uint32 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.NumForcedGC
	}
	var d tidy
	for _, step := range []struct {
		name  string
		new   int64
		looks int
		want  uint32
	}{
		{"nobody came", 0, 10, 0},
		{"a few", crowd - 1, 10, 0},
		{"one more, and no second of quiet", 1, 4, 0},
		{"the second is over", 0, 1, 1},
		{"it was tidied up", 0, 20, 0},
		{"the next crowd", 3 * crowd, 5, 1},
	} {
		before := collections()
		d.opened.Add(step.new)
		for range step.looks {
			d.look()
		}
		if got := collections() - before; got != step.want {
			t.Errorf("%s: %d collections, want %d", step.name, got, step.want)
		}
	}
}
