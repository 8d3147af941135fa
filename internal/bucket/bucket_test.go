package bucket

import (
	"testing"
	"time"
)

func TestBucket(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	b := New(3, 2, now)
	take := func(want int) {
		t.Helper()
		got := 0
		for b.Take(now) {
			if got++; got > 10 {
				break
			}
		}
		if got != want {
			t.Errorf("%d could be taken, want %d", got, want)
		}
	}
	take(3)
	now = now.Add(time.Second)
	take(2)
	now = now.Add(time.Hour)
	take(3) // never more than there may be
	now = now.Add(-time.Hour)
	take(0)
}
