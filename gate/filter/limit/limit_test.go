package limit

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"merlon"
)

func per(count int, window time.Duration, burst int) *merlon.Limit {
	return &merlon.Limit{Count: count, Window: window, Burst: burst}
}

func TestAllow(t *testing.T) {
	t.Parallel()
	l := New(10)
	lim := per(2, time.Second, 3)
	const ms = int64(time.Millisecond)
	for _, c := range []struct {
		at   int64
		want State
	}{
		{0, State{true, 3, 2, 500 * time.Millisecond}},
		{0, State{true, 3, 1, 500 * time.Millisecond}},
		{100 * ms, State{true, 3, 0, 400 * time.Millisecond}},
		{100 * ms, State{false, 3, 0, 400 * time.Millisecond}},
		{499 * ms, State{false, 3, 0, time.Millisecond}},
		{500 * ms, State{true, 3, 0, 500 * time.Millisecond}},
		{1600 * ms, State{true, 3, 1, 400 * time.Millisecond}},
		{9000 * ms, State{true, 3, 2, 500 * time.Millisecond}},
		{9000 * ms, State{true, 3, 1, 500 * time.Millisecond}},
		{9000 * ms, State{true, 3, 0, 500 * time.Millisecond}},
		{8990 * ms, State{false, 3, 0, 500 * time.Millisecond}}, // a reader whose clock is behind: no refund
		{9499 * ms, State{false, 3, 0, time.Millisecond}},
	} {
		if got := l.Allow(7, lim, c.at); got != c.want {
			t.Errorf("at %d: got %+v, want %+v", c.at/ms, got, c.want)
		}
	}
}

func TestDeniesNonsense(t *testing.T) {
	t.Parallel()
	l := New(10)
	for _, lim := range []*merlon.Limit{nil, {}, per(0, time.Second, 1), per(1, 0, 1), per(1, time.Second, 0),
		per(-1, time.Second, 1), per(1, -time.Second, 1), per(1, time.Second, -1)} {
		if s := l.Allow(1, lim, 0); s.OK {
			t.Errorf("%+v admits", lim)
		} else if h := s.AppendHeaders(nil, lim); len(h) != 0 {
			t.Errorf("%+v has headers %q", lim, h)
		}
	}
	var zero Limiter
	var none *Limiter
	if zero.Allow(1, per(1, 1, 1), 0).OK || none.Allow(1, per(1, 1, 1), 0).OK {
		t.Error("a limiter that was never made admits")
	}
}

// Extremes must not overflow into admission.
func TestExtremes(t *testing.T) {
	t.Parallel()
	huge := []*merlon.Limit{
		per(1, math.MaxInt64, math.MaxInt), per(math.MaxInt, math.MaxInt64, math.MaxInt),
		per(math.MaxInt, 1, 1), per(1, math.MaxInt64, 1), per(1, 1, math.MaxInt),
	}
	for _, lim := range huge {
		for _, now := range []int64{math.MinInt64, -1, 0, 1, math.MaxInt64 / 2, math.MaxInt64} {
			l := New(1)
			s := l.Allow(1, lim, now)
			if !s.OK || s.Remaining < 0 || s.Reset < 0 {
				t.Errorf("%+v at %d: %+v", lim, now, s)
			}
			if lim.Burst == 1 && lim.Window > 1 {
				if s = l.Allow(1, lim, now); s.OK {
					t.Errorf("%+v at %d: admits twice", lim, now)
				}
			}
			if h := s.AppendHeaders(nil, lim); strings.Contains(string(h), "-1") || strings.Contains(string(h), "=-") {
				t.Errorf("headers %q", h)
			}
		}
	}
}

// bucketModel is the token bucket as the textbook has it, in exact fractions:
// it counts in units of 1/interval tokens, as ns of growth.
type bucketModel struct {
	tokens, last, depth, interval int64
}

func (m *bucketModel) allow(now int64) (ok bool, remaining int64) {
	m.tokens = min(m.tokens+now-m.last, m.depth)
	m.last = now
	if m.tokens >= m.interval {
		m.tokens -= m.interval
		ok = true
	}
	return ok, m.tokens / m.interval
}

func TestAgainstTokenBucket(t *testing.T) {
	t.Parallel()
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		lim := per(1+rng.IntN(1000), time.Duration(1+rng.Int64N(int64(2*time.Minute))), 1+rng.IntN(200))
		interval := (int64(lim.Window) + int64(lim.Count) - 1) / int64(lim.Count)
		m := bucketModel{tokens: interval * int64(lim.Burst), depth: interval * int64(lim.Burst), interval: interval}
		l := New(4)
		key, now, wait := rng.Uint64(), int64(0), time.Duration(-1)
		for i := range 2000 {
			ok, remaining := m.allow(now)
			got := l.Allow(key, lim, now)
			if got.OK != ok || int64(got.Remaining) != remaining {
				t.Fatalf("seed %d, step %d, %+v at %d: got %+v, want ok %v, remaining %d", seed, i, lim, now, got, ok, remaining)
			}
			if wait >= 0 && !got.OK {
				t.Fatalf("seed %d, step %d: refused after waiting the %v it asked for", seed, i, wait)
			}
			wait = -1
			switch rng.IntN(4) {
			case 0: // a storm: same instant
			case 1:
				now += rng.Int64N(2*interval + 1)
			case 2:
				now += rng.Int64N(interval*int64(lim.Burst) + 1)
			case 3:
				if !got.OK {
					wait = got.Reset
					now += int64(wait)
				}
			}
		}
	}
}

// In no stretch of time t are more than burst + rate*t calls admitted,
// whoever races for them.
func TestNeverMoreThanTheLimitConcurrently(t *testing.T) {
	t.Parallel()
	const workers, steps = 8, 4000
	lim := per(1000, time.Second, 50)
	l := New(100)
	var mu sync.Mutex
	now := int64(0)
	admitted := map[uint64]int{}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 2))
			mine := map[uint64]int{}
			for range steps {
				mu.Lock()
				now += rng.Int64N(int64(200 * time.Microsecond))
				at := now
				mu.Unlock()
				key := rng.Uint64N(4) << 60
				if l.Allow(key, lim, at).OK {
					mine[key]++
				}
			}
			mu.Lock()
			defer mu.Unlock()
			for k, n := range mine {
				admitted[k] += n
			}
		})
	}
	wg.Wait()
	most := lim.Burst + int(now/int64(time.Millisecond))
	if len(admitted) != 4 {
		t.Fatalf("%d keys were admitted, want 4", len(admitted))
	}
	for k, n := range admitted {
		if n > most {
			t.Errorf("key %x: admitted %d in %v, want at most %d", k, n, time.Duration(now), most)
		}
		if n < most*9/10 {
			t.Errorf("key %x: admitted only %d of %d", k, n, most)
		}
	}
}

// An attacker with any number of keys does not get an exhausted key afresh.
func TestFloodDoesNotResetAKey(t *testing.T) {
	t.Parallel()
	l := New(1000)
	lim := per(1, time.Hour, 2)
	rng := rand.New(rand.NewPCG(3, 3))
	victims := make([]uint64, 50)
	for i := range victims {
		victims[i] = rng.Uint64()
		for l.Allow(victims[i], lim, 0).OK {
		}
	}
	admitted := 0
	for i := range 200_000 {
		if l.Allow(rng.Uint64(), lim, int64(i)).OK {
			admitted++
		}
	}
	for _, key := range victims {
		if l.Allow(key, lim, int64(time.Minute)).OK {
			t.Fatalf("key %x is fresh again after a flood", key)
		}
	}
	places := 0
	for i := range l.shards {
		places += len(l.shards[i].sets) * ways
	}
	// One call each for the flood's own keys that found a place, and the
	// shared buckets: two each.
	if most := places + 2*shardCount; admitted > most {
		t.Errorf("the flood was admitted %d times, want at most %d", admitted, most)
	}
	// When the debts are paid, places are free again.
	later := int64(5 * time.Hour)
	for range 1000 {
		if !l.Allow(rng.Uint64(), lim, later).OK {
			t.Fatal("a new key is refused after the flood is over")
		}
	}
}

// A slow limit used up in an overflow bucket does not stop a fast one.
func TestOverflowKeepsLimitsApart(t *testing.T) {
	t.Parallel()
	l := New(1)
	slow := per(1, time.Hour, 1)
	rng := rand.New(rand.NewPCG(4, 4))
	for range 100_000 {
		l.Allow(rng.Uint64(), slow, 0)
	}
	fast := per(1000, time.Second, 10)
	if !l.Allow(rng.Uint64(), fast, 1).OK {
		t.Error("refused")
	}
	// Even limits are bounded: one too many is refused, not admitted.
	key, refused := rng.Uint64(), false
	for i := range 2 * overflowing {
		s := l.Allow(key, per(1, time.Hour, 2+i), 1)
		refused = refused || !s.OK
	}
	if !refused {
		t.Error("any number of limits overflow at once")
	}
}

func TestHoldsMaxKeys(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 100, 1000, 10_000, 65_536} {
		l := New(n)
		lim := per(1, time.Hour, 1)
		rng := rand.New(rand.NewPCG(uint64(n), 5))
		for i := range n {
			if key := rng.Uint64(); !l.Allow(key, lim, 0).OK || l.Allow(key, lim, 1).OK {
				t.Fatalf("max %d: key %d found no place of its own", n, i)
			}
		}
	}
}

// A changed limit keeps the debt, but nobody waits for a limit that is gone.
func TestLimitChanges(t *testing.T) {
	t.Parallel()
	l := New(1)
	if !l.Allow(1, per(1, 24*time.Hour, 1), 0).OK {
		t.Fatal("refused")
	}
	fast := per(10, time.Second, 5)
	s := l.Allow(1, fast, 0)
	if s.OK || s.Reset != 100*time.Millisecond {
		t.Errorf("new limit: %+v, want refused for 100ms", s)
	}
	if s = l.Allow(1, fast, int64(s.Reset)); !s.OK {
		t.Errorf("still refused after the wait it was told: %+v", s)
	}
}

func TestKey(t *testing.T) {
	t.Parallel()
	l := New(1)
	seen := map[uint64][]string{}
	for _, parts := range [][]string{{}, {""}, {"", ""}, {"a"}, {"ab", "c"}, {"a", "bc"}, {"abc"}, {"a", "b", "c"}, {"c", "b", "a"}, {"a", "a"}, {"b", "b"}} {
		k := l.Key(parts...)
		if other, ok := seen[k]; ok {
			t.Errorf("%q and %q have one key", parts, other)
		}
		seen[k] = parts
		if l.Key(parts...) != k {
			t.Errorf("%q has two keys", parts)
		}
	}
	if l.Key("a") == New(1).Key("a") {
		t.Error("two limiters share a secret")
	}
}

func TestClientKey(t *testing.T) {
	t.Parallel()
	l := New(1)
	key := func(scope, addr string) uint64 { return l.ClientKey(scope, netip.MustParseAddr(addr)) }
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1", "192.0.2.1", true},
		{"192.0.2.1", "192.0.2.2", false},
		{"192.0.2.1", "::ffff:192.0.2.1", true},
		{"2001:db8::1", "2001:db8::ffff:1:2", true},
		{"2001:db8::1", "2001:db8:0:1::1", false},
		{"fe80::1%eth0", "fe80::1", true},
	} {
		if got := key("s", c.a) == key("s", c.b); got != c.same {
			t.Errorf("%s and %s are one client: %v, want %v", c.a, c.b, got, c.same)
		}
	}
	if key("s", "192.0.2.1") == key("t", "192.0.2.1") {
		t.Error("two scopes share a key")
	}
}

func TestAppendHeaders(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		lim  merlon.Limit
		s    State
		want string
	}{
		{merlon.Limit{Count: 100, Window: time.Second, Burst: 100}, State{true, 100, 99, 10 * time.Millisecond},
			"RateLimit-Policy: \"client\";q=100;w=1\r\nRateLimit: \"client\";r=99;t=1\r\n"},
		{merlon.Limit{Count: 100, Window: time.Second, Burst: 250, Per: merlon.PerCaller}, State{true, 250, 249, 0},
			"RateLimit-Policy: \"caller\";q=250;w=3\r\nRateLimit: \"caller\";r=249;t=0\r\n"},
		{merlon.Limit{Count: 10, Window: 100 * time.Millisecond, Burst: 1}, State{false, 1, 0, 10 * time.Millisecond},
			"RateLimit-Policy: \"client\";q=100;w=1\r\nRateLimit: \"client\";r=0;t=1\r\nRetry-After: 1\r\n"},
		{merlon.Limit{Count: 1, Window: time.Hour, Burst: 1}, State{false, 1, 0, 59*time.Minute + 1},
			"RateLimit-Policy: \"client\";q=1;w=3600\r\nRateLimit: \"client\";r=0;t=3541\r\nRetry-After: 3541\r\n"},
		{merlon.Limit{Count: 1, Window: time.Hour, Burst: 1}, State{false, 1, 0, 0},
			"RateLimit-Policy: \"client\";q=1;w=3600\r\nRateLimit: \"client\";r=0;t=0\r\nRetry-After: 1\r\n"},
	} {
		if got := string(c.s.AppendHeaders(nil, &c.lim)); got != c.want {
			t.Errorf("%+v %+v:\ngot  %q\nwant %q", c.lim, c.s, got, c.want)
		}
	}
}

func TestNoAllocs(t *testing.T) {
	l := New(1000)
	lim := per(1000, time.Second, 10)
	addr := netip.MustParseAddr("2001:db8::1")
	buf := make([]byte, 0, 256)
	caller := strings.Repeat("x", 40)
	now := int64(0)
	for name, f := range map[string]func(){
		"Allow":         func() { now += 1000; l.Allow(uint64(now), lim, now) },
		"Key":           func() { l.Key("orders.merlon.yaml:3:5", "login", caller) },
		"ClientKey":     func() { l.ClientKey("gateway", addr) },
		"AppendHeaders": func() { buf = State{false, 10, 0, time.Second}.AppendHeaders(buf[:0], lim) },
	} {
		if n := testing.AllocsPerRun(1000, f); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

func BenchmarkAllow(b *testing.B) {
	for _, keys := range []int{1, 1000, 100_000} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			l := New(100_000)
			lim := per(1000, time.Second, 10)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				rng := rand.New(rand.NewPCG(rand.Uint64(), 1))
				for now := int64(0); pb.Next(); now += 100 {
					l.Allow(uint64(rng.IntN(keys))*0x9e3779b97f4a7c15, lim, now)
				}
			})
		})
	}
}

func BenchmarkKey(b *testing.B) {
	l := New(1)
	b.ReportAllocs()
	for b.Loop() {
		l.Key("orders.merlon.yaml:3:5", "staff", "user-12345678")
	}
}

func BenchmarkAppendHeaders(b *testing.B) {
	lim := per(100, time.Second, 200)
	buf := make([]byte, 0, 256)
	b.ReportAllocs()
	for b.Loop() {
		buf = State{true, 200, 17, time.Second}.AppendHeaders(buf[:0], lim)
	}
}
