package record

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"merlon"
)

// written is a chain of n records over many segments; record i has id "r<i>".
func written(t testing.TB, n int) string {
	t.Helper()
	dir, opt := memDir(t), quick()
	opt.SegmentBytes = 2000
	w := open(t, dir, opt)
	for i := 1; i <= n; i++ {
		must(t, w.Add(&Record{ID: fmt.Sprintf("r%d", i), Time: int64(i), Service: []string{"orders", "web"}[i%2]}))
		if i%3 == 0 {
			must(t, w.Sync())
		}
	}
	must(t, w.Close())
	return dir
}

func seqs(t testing.TB, dir string, f Filter) []uint64 {
	t.Helper()
	var got []uint64
	for r, err := range Read(dir, f) {
		must(t, err)
		got = append(got, r.Seq)
	}
	return got
}

func TestRead(t *testing.T) {
	t.Parallel()
	dir := written(t, 50)
	if report := verified(t, dir); report.Segments < 5 {
		t.Fatalf("too few segments: %+v", report)
	}
	all := seqs(t, dir, Filter{})
	if len(all) != 50 || !slices.IsSorted(all) || all[0] != 1 {
		t.Errorf("got %v", all)
	}
	for after := range uint64(52) {
		got := seqs(t, dir, Filter{After: after})
		if want := all[min(after, 50):]; !slices.Equal(got, want) {
			t.Errorf("after %d: got %v, want %v", after, got, want)
		}
	}
	for _, n := range []int{-1, 0, 1, 2, 7, 49, 50, 51} {
		got, _, err := Tail(dir, n, Filter{Service: "web"})
		must(t, err)
		if want := max(0, min(n, 25)); len(got) != want || want > 0 && got[len(got)-1].Seq != 49 {
			t.Errorf("tail %d: got %d records", n, len(got))
		}
	}
	found, err := Find(dir, "r7")
	if err != nil || len(found) != 1 || found[0].Seq != 7 {
		t.Errorf("found %v, %v", found, err)
	}
	if found, err := Find(dir, `r"`); err != nil || found != nil {
		t.Errorf("found %v, %v", found, err)
	}
	for range Read(dir, Filter{}) {
		break // stops early without harm
	}
	if _, err := Find(filepath.Join(dir, "none"), "r7"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

func TestFilter(t *testing.T) {
	t.Parallel()
	r := whole()
	yes := []Filter{
		{}, {ID: r.ID}, {Caller: "web"}, {Subject: r.Subject}, {Client: r.Client}, {Service: "orders"}, {Operation: "createOrder"},
		{Place: r.Place}, {Reason: merlon.ReasonNoRule}, {Denied: true}, {Since: r.Time}, {Until: r.Time + 1}, {After: 6},
	}
	no := []Filter{
		{ID: "x"}, {Caller: "x"}, {Subject: "x"}, {Client: "x"}, {Service: "x"}, {Operation: "x"},
		{Place: "x"}, {Reason: "x"}, {Since: r.Time + 1}, {Until: r.Time}, {After: 7}, {Service: "orders", Caller: "x"},
	}
	for _, f := range yes {
		if !f.Match(&r) {
			t.Errorf("%+v does not match", f)
		}
	}
	for _, f := range no {
		if f.Match(&r) {
			t.Errorf("%+v matches", f)
		}
	}
	fields := reflect.TypeFor[Filter]().NumField()
	if len(yes) != fields+1 {
		t.Errorf("%d cases for %d fields", len(yes), fields)
	}
	allowed := Record{Verdict: merlon.Verdict{Effect: merlon.Allow}}
	if f := (Filter{Denied: true}); f.Match(&allowed) {
		t.Error("an allowed call counts as denied")
	}
}

func TestFollow(t *testing.T) {
	t.Parallel()
	dir := written(t, 10)
	opt := quick()
	opt.SegmentBytes = 2000
	w := open(t, dir, opt)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()

	// From a place in the past, over what is added meanwhile and over segments.
	next := uint64(5)
	for r, err := range Follow(ctx, dir, Filter{After: 4}) {
		must(t, err)
		if r.Seq != next {
			t.Fatalf("got %d, want %d", r.Seq, next)
		}
		if next++; r.Seq == 60 {
			break
		}
		if r.Seq == 10 || r.Seq == 30 {
			for i := range 30 {
				must(t, w.Add(&Record{ID: "late"}))
				if i%5 == 0 {
					must(t, w.Sync())
				}
			}
		}
	}
	must(t, w.Close())
}

// TestFollowFromNow: without a place to begin, only what comes later counts.
func TestFollowFromNow(t *testing.T) {
	dir := written(t, 10)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var got []uint64
		done := make(chan struct{})
		go func() {
			defer close(done)
			for r, err := range Follow(ctx, dir, Filter{}) {
				if err != nil {
					t.Error(err)
				}
				got = append(got, r.Seq)
			}
		}()
		synctest.Wait() // it has begun and waits for its clock
		w := open(t, dir, quick())
		must(t, w.Add(&Record{}))
		must(t, w.Close())
		time.Sleep(2 * pollEvery) // of the test's clock: no time passes
		synctest.Wait()
		cancel()
		<-done
		if !slices.Equal(got, []uint64{11}) {
			t.Errorf("got %v", got)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	dir := b.TempDir()
	w := open(b, dir, Options{Now: time.Now, Wait: time.Minute})
	add(b, w, 200_000)
	must(b, w.Close())
	b.SetBytes(verified(b, dir).Bytes)
	for b.Loop() {
		if _, err := Verify(dir); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFind(b *testing.B) {
	dir := b.TempDir()
	w := open(b, dir, Options{Now: time.Now, Wait: time.Minute})
	add(b, w, 200_000)
	must(b, w.Close())
	b.SetBytes(verified(b, dir).Bytes)
	for b.Loop() {
		if _, err := Find(dir, "none"); err != nil {
			b.Fatal(err)
		}
	}
}
