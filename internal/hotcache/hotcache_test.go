package hotcache

import (
	"hash/maphash"
	"math/rand/v2"
	"sync"
	"testing"
)

func newStrings(max int) *Cache[string, int] {
	seed := maphash.MakeSeed()
	return New[string, int](max, func(s string) uint64 { return maphash.String(seed, s) })
}

func TestCache(t *testing.T) {
	t.Parallel()
	c := newStrings(100)
	if _, ok := c.Get("a"); ok {
		t.Error("an empty cache has an answer")
	}
	c.Put("a", 1)
	c.Put("a", 2)
	if v, ok := c.Get("a"); !ok || v != 2 || c.Len() != 1 {
		t.Error(v, ok, c.Len())
	}
}

// Against a plain map: what the cache answers is what was put last, and it
// never holds more than its bound.
func TestCacheProperty(t *testing.T) {
	t.Parallel()
	for _, max := range []int{0, 1, 16, 64, 1000} {
		c, truth, r := newStrings(max), map[string]int{}, rand.New(rand.NewPCG(1, uint64(max)))
		key := func() string { return string(rune('a' + r.IntN(300))) }
		for i := range 20000 {
			k := key()
			if r.IntN(2) == 0 {
				c.Put(k, i)
				truth[k] = i
				if v, ok := c.Get(k); !ok || v != i {
					t.Fatalf("max %d: what was just put is gone", max)
				}
			} else if v, ok := c.Get(k); ok && v != truth[k] {
				t.Fatalf("max %d: %q is %d, want %d", max, k, v, truth[k])
			}
			if n := c.Len(); n > max+shards {
				t.Fatalf("max %d: %d entries", max, n)
			}
		}
	}
}

// What is read stays, what is not goes.
func TestClock(t *testing.T) {
	t.Parallel()
	c := New[int, int](4*shards, func(int) uint64 { return 0 }) // one shard of four
	for i := range 4 {
		c.Put(i, i)
	}
	for i := 4; i < 100; i++ {
		c.Get(0)
		c.Put(i, i)
	}
	if _, ok := c.Get(0); !ok {
		t.Error("the entry that was read all the time is gone")
	}
	if _, ok := c.Get(1); ok {
		t.Error("the entry that was never read is there")
	}
}

func TestConcurrent(t *testing.T) {
	t.Parallel()
	c := newStrings(50)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 0))
			for range 5000 {
				k := string(rune('a' + r.IntN(200)))
				if v, ok := c.Get(k); ok && v != int(k[len(k)-1]) {
					t.Error("a value of another key")
					return
				}
				c.Put(k, int(k[len(k)-1]))
			}
		})
	}
	wg.Wait()
}

func TestHitAllocatesNothing(t *testing.T) {
	c := newStrings(10)
	c.Put("a", 1)
	if n := testing.AllocsPerRun(100, func() { c.Get("a") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkGet(b *testing.B) {
	c := newStrings(4096)
	c.Put("a", 1)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			c.Get("a")
		}
	})
}
