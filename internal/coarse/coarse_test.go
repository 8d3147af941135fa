package coarse

import (
	"sync"
	"testing"
	"time"
)

func TestSet(t *testing.T) {
	t.Parallel()
	base := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	c := New(base)
	if c.Nanos() != 0 || c.Unix() != base.UnixNano() || !c.Now().Equal(base) {
		t.Fatalf("new clock: nanos %d, unix %d, now %v", c.Nanos(), c.Unix(), c.Now())
	}
	c.Set(base.Add(3 * time.Second))
	if got, want := c.Nanos(), int64(3*time.Second); got != want {
		t.Errorf("nanos = %d, want %d", got, want)
	}
	// The system's clock is set back: records follow, durations do not.
	c.Set(base.Add(-time.Hour))
	if got, want := c.Nanos(), int64(3*time.Second); got != want {
		t.Errorf("nanos after a step back = %d, want %d", got, want)
	}
	if got, want := c.Unix(), base.Add(-time.Hour).UnixNano(); got != want {
		t.Errorf("unix after a step back = %d, want %d", got, want)
	}
	c.Stop()
}

func TestStart(t *testing.T) {
	t.Parallel()
	reads := make(chan struct{})
	base := time.Now()
	var mu sync.Mutex
	n := 0
	c := Start(func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		n++
		if n == 5 {
			close(reads)
		}
		return base.Add(time.Duration(n) * time.Second)
	}, time.Millisecond)
	<-reads
	c.Stop()
	c.Stop()
	if got := c.Nanos(); got < int64(4*time.Second) {
		t.Errorf("nanos after five reads = %d, want at least 4s", got)
	}
	if got := c.Now().Sub(base); got < 5*time.Second {
		t.Errorf("now is %v after base, want at least 5s", got)
	}
}

func TestNoAllocs(t *testing.T) {
	c := New(time.Now())
	var sink int64
	if n := testing.AllocsPerRun(100, func() { sink += c.Nanos() + c.Unix() + c.Now().Unix() }); n != 0 {
		t.Errorf("reading allocates %v times", n)
	}
	_ = sink
}

func BenchmarkNanos(b *testing.B) {
	c := New(time.Now())
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			_ = c.Nanos()
		}
	})
}

func BenchmarkNow(b *testing.B) {
	c := New(time.Now())
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			_ = c.Now()
		}
	})
}
