package main

import (
	"slices"
	"testing"
	"time"
)

// stretch is a load that lasts for some looks.
type stretch struct {
	load  float64
	looks int
}

func TestPace(t *testing.T) {
	t.Parallel()
	calm := int(paceCalm / paceLook)
	for name, tt := range map[string]struct {
		loads []stretch
		want  []bool // at the end of each
	}{
		"idle":                    {[]stretch{{0, 100}}, []bool{false}},
		"ordinary":                {[]stretch{{0.5, 1000}}, []bool{false}},
		"one hiccup":              {[]stretch{{0.3, 10}, {1, 1}, {0.3, 10}, {1, 1}, {0, 1}}, []bool{false, false, false, false, false}},
		"a burst":                 {[]stretch{{0, 100}, {1, 1}, {1, 1}}, []bool{false, false, true}},
		"saturated":               {[]stretch{{1, 2}, {2, 1000}}, []bool{true, true}},
		"a pause within a second": {[]stretch{{1, 2}, {2, calm / 2}, {0, calm / 3}}, []bool{true, true, true}},
		"a burst, and over":       {[]stretch{{1, 2}, {1.9, calm}, {0.3, calm - 1}, {0.3, 1}}, []bool{true, true, true, false}},
		"between both":            {[]stretch{{1, 2}, {0.5, 1000}}, []bool{true, true}},
		"again":                   {[]stretch{{1, 2}, {0, calm}, {0.5, 100}, {1, 2}}, []bool{true, false, false, true}},
	} {
		var p pace
		var now usage
		var got []bool
		for _, s := range tt.loads {
			wide := false
			for range s.looks {
				now.at += paceLook
				now.used += time.Duration(s.load * float64(paceLook))
				wide = p.look(now)
			}
			got = append(got, wide)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: wide is %v, want %v", name, got, tt.want)
		}
	}
}

// TestPaceSuspended: a clock that stands or leaps moves nothing by itself.
func TestPaceSuspended(t *testing.T) {
	t.Parallel()
	var p pace
	for _, now := range []usage{{0, 0}, {0, time.Second}, {time.Hour, time.Second}, {time.Hour, time.Second}} {
		if p.look(now) {
			t.Errorf("all processors after %+v", now)
		}
	}
}
