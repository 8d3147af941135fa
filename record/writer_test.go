package record

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"merlon"
)

// quick are options under which everything happens in small files.
func quick() Options {
	return Options{Now: time.Now, TrustDomain: "shop.example", Place: "gateway", FlushEvery: time.Millisecond, RetainBytes: -1}
}

// memDir is a directory in memory where there is one: for tests that open a
// chain a thousand times, and would wait for the disk's syncs all day.
func memDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "record")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func open(t testing.TB, dir string, opt Options) *Writer {
	t.Helper()
	w, err := Open(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func add(t testing.TB, w *Writer, n int) {
	t.Helper()
	for range n {
		r := whole()
		if err := w.Add(&r); err != nil {
			t.Fatal(err)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func verified(t testing.TB, dir string) Report {
	t.Helper()
	report, err := Verify(dir)
	if err != nil {
		t.Fatalf("%v (%+v)", err, report)
	}
	return report
}

func TestContinue(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new", "records")
	hashes := map[string]bool{}
	for round := range uint64(3) {
		w := open(t, dir, quick())
		add(t, w, 10)
		must(t, w.Sync())
		if s := w.Stats(); s.Synced != 10*(round+1) || s.Added != s.Synced || s.Buffered != 0 || s.Err != nil {
			t.Errorf("stats %+v", s)
		}
		add(t, w, 0)
		must(t, w.Close())
		report := verified(t, dir)
		if report.Records != 10*(round+1) || report.LastSeq != report.Records || report.Segments != 1 || report.Unsealed != 0 {
			t.Errorf("report %+v", report)
		}
		hashes[report.Hash] = true
	}
	if len(hashes) != 3 {
		t.Error("the last hash does not change")
	}
	for _, name := range []string{"head", "lock", segmentName(1)} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v %v", name, info.Mode(), err)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v %v", info.Mode(), err)
	}
}

func TestQueriesOnlyWhenAsked(t *testing.T) {
	t.Parallel()
	for _, ask := range []bool{false, true} {
		dir, opt := t.TempDir(), quick()
		opt.Queries = ask
		w := open(t, dir, opt)
		r := Record{ID: "x", Path: "/a", Query: "token=hush"}
		must(t, w.Add(&r))
		must(t, w.Close())
		data, err := os.ReadFile(filepath.Join(dir, segmentName(1)))
		must(t, err)
		if got := strings.Contains(string(data), "hush"); got != ask {
			t.Errorf("asked %v, kept %v", ask, got)
		}
	}
}

func TestOneWriter(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	w := open(t, dir, quick())
	_, err := Open(dir, quick())
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("in use by another writer (process %d)", os.Getpid())) {
		t.Errorf("got %v", err)
	}
	must(t, w.Close())
	must(t, open(t, dir, quick()).Close())
	if _, err := Open(dir, Options{}); err == nil {
		t.Error("a writer without a clock")
	}
}

func TestAfterClose(t *testing.T) {
	t.Parallel()
	w := open(t, t.TempDir(), quick())
	must(t, w.Close())
	if err := w.Add(&Record{}); err != ErrClosed {
		t.Errorf("Add: %v", err)
	}
	if err := w.Sync(); err != ErrClosed {
		t.Errorf("Sync: %v", err)
	}
	if err := w.Close(); err != ErrClosed {
		t.Errorf("Close: %v", err)
	}
}

func TestRotateAndRetire(t *testing.T) {
	t.Parallel()
	dir, opt := t.TempDir(), quick()
	opt.SegmentBytes, opt.RetainBytes = 4<<10, 20<<10
	w := open(t, dir, opt)
	for range 100 {
		add(t, w, 3)
		must(t, w.Sync())
	}
	must(t, w.Close())
	report := verified(t, dir)
	if report.Segments < 3 || report.Segments > 6 || report.Bytes > 26<<10 {
		t.Errorf("not within bounds: %+v", report)
	}
	if report.Retired == 0 || report.FirstSeq == 1 || report.LastSeq != 300 || report.Records != 300-report.FirstSeq+1 {
		t.Errorf("report %+v", report)
	}
	if report.First.IsZero() || report.Last.IsZero() {
		t.Errorf("no times: %+v", report)
	}
	// With less room, Open retires too.
	opt.RetainBytes = 1
	must(t, open(t, dir, opt).Close())
	if report := verified(t, dir); report.Segments != 1 || report.LastSeq != 300 {
		t.Errorf("report %+v", report)
	}
}

func TestConcurrent(t *testing.T) {
	t.Parallel()
	dir, opt := t.TempDir(), quick()
	opt.SegmentBytes, opt.Buffer, opt.SyncRecords, opt.Wait = 64<<10, 8<<10, 100, time.Minute
	w := open(t, dir, opt)
	const writers, each = 8, 500
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			for j := range each {
				r := Record{ID: fmt.Sprintf("%d-%d", i, j)}
				if err := w.Add(&r); err != nil {
					t.Error(err)
					return
				}
				if j%100 == 0 {
					if err := w.Sync(); err != nil {
						t.Error(err)
					}
					if _, err := Verify(dir); err != nil { // beside a writer
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	must(t, w.Close())
	if report := verified(t, dir); report.Records != writers*each {
		t.Errorf("report %+v", report)
	}
	next := [writers]int{} // of one caller, in the order it added
	for r, err := range Read(dir, Filter{}) {
		must(t, err)
		var i, j int
		if _, err := fmt.Sscanf(r.ID, "%d-%d", &i, &j); err != nil || next[i] != j {
			t.Fatalf("record %s out of order", r.ID)
		}
		next[i]++
	}
}

// TestFull runs a writer whose flusher does not run: a disk that hangs.
func TestFull(t *testing.T) {
	t.Parallel()
	for name, limit := range map[string]func(*Options){
		"bytes":   func(o *Options) { o.Buffer = 4 << 10 },
		"records": func(o *Options) { o.SyncRecords = 8 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, opt := t.TempDir(), quick()
			opt.Wait = 10 * time.Millisecond
			limit(&opt)
			w, err := prepare(dir, opt)
			must(t, err)
			var added int
			for r := whole(); err == nil; {
				if err = w.Add(&r); err == nil {
					added++
				}
			}
			if err != ErrFull || added < 7 || added > 10 || w.Stats().Refused != 1 {
				t.Fatalf("%v after %d, stats %+v", err, added, w.Stats())
			}
			// A call that waits goes on as soon as there is room.
			w.opt.Wait = time.Minute
			done := make(chan error)
			go func() { r := whole(); done <- w.Add(&r) }()
			go w.flush()
			must(t, <-done)
			must(t, w.Close())
			if report := verified(t, dir); report.Records != uint64(added+1) {
				t.Errorf("%+v, added %d", report, added+1)
			}
		})
	}
}

// TestReserve: room that is reserved is room that others do not get.
func TestReserve(t *testing.T) {
	t.Parallel()
	dir, opt := t.TempDir(), quick()
	opt.SyncRecords, opt.Wait = 2, time.Millisecond
	w, err := prepare(dir, opt)
	must(t, err)
	must(t, w.Reserve())
	must(t, w.Reserve())
	if err := w.Reserve(); err != ErrFull {
		t.Errorf("a third of two: %v", err)
	}
	if err := w.Add(&Record{}); err != ErrFull {
		t.Errorf("Add beside two reserved: %v", err)
	}
	w.Cancel()
	must(t, w.Add(&Record{ID: "added"}))
	must(t, w.Commit(&Record{ID: "committed"}))
	if s := w.Stats(); s.Added != 2 || s.Refused != 2 {
		t.Errorf("stats %+v", s)
	}
	go w.flush()
	must(t, w.Sync())
	must(t, w.Reserve())
	must(t, w.Close())
	if err := w.Commit(&Record{}); err != ErrClosed {
		t.Errorf("Commit after Close: %v", err)
	}
	if report := verified(t, dir); report.Records != 2 {
		t.Errorf("%+v", report)
	}
}

// TestCloseFreesWaiting: nobody hangs on a writer that is closed.
func TestCloseFreesWaiting(t *testing.T) {
	t.Parallel()
	opt := quick()
	opt.SyncRecords, opt.Wait = 1, time.Hour
	w, err := prepare(t.TempDir(), opt)
	must(t, err)
	add(t, w, 1)
	done := make(chan error)
	go func() { done <- w.Add(&Record{}) }()
	go func() {
		for { // until it waits
			w.mu.Lock()
			waits := w.room != nil
			w.mu.Unlock()
			if waits {
				break
			}
		}
		go w.flush()
		w.Close()
	}()
	if err := <-done; err != nil && err != ErrClosed {
		t.Error(err)
	}
}

func TestRemovedSegment(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]func(string) error{
		"removed":   os.Remove,
		"truncated": func(name string) error { return os.Truncate(name, 10) },
	} {
		dir := t.TempDir()
		w := open(t, dir, quick())
		must(t, harm(filepath.Join(dir, segmentName(1))))
		add(t, w, 1)
		if err := w.Sync(); !errors.As(err, new(*Broken)) {
			t.Errorf("%s: Sync says %v", name, err)
		}
		if err := w.Add(&Record{}); !errors.As(err, new(*Broken)) {
			t.Errorf("%s: Add says %v", name, err)
		}
		if err := w.Close(); err == nil || !strings.Contains(err.Error(), "1 records may be lost") {
			t.Errorf("%s: Close says %v", name, err)
		}
	}
}

func TestAddDoesNotAllocate(t *testing.T) {
	opt := quick()
	opt.FlushEvery, opt.Wait = time.Hour, time.Minute
	w := open(t, t.TempDir(), opt)
	r := whole()
	for range 4 * flushBytes / 400 { // grow both buffers
		must(t, w.Add(&r))
	}
	if n := testing.AllocsPerRun(10000, func() {
		if err := w.Add(&r); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per Add", n)
	}
}

// BenchmarkAdd adds from GOMAXPROCS goroutines to a real directory. cpu-ns is
// all processor time of the process per record: encoding, hashing, writing.
func BenchmarkAdd(b *testing.B) {
	opt := Options{Now: time.Now, Wait: time.Minute, SyncRecords: 1 << 30, RetainBytes: 128 << 20}
	w := open(b, b.TempDir(), opt)
	full := whole()
	r := Record{ID: "01JD7ZK3QW8Y", Place: "gateway", Caller: "web", CallerKind: "workload", Subject: "spiffe://shop.example/web",
		Client: "192.0.2.7", Service: "orders", Operation: "createOrder", Method: "POST", Host: "shop.example", Path: "/orders", Status: 201,
		Verdict: merlon.Verdict{Effect: merlon.Allow, Reason: merlon.ReasonAllowed, Pos: full.Verdict.Pos, Rule: "orders: web"},
		Intent:  "3f8a1c22b07d", Duration: 1234567, BytesIn: 12, BytesOut: 345, Time: full.Time}
	b.ReportAllocs()
	before := cpu()
	b.RunParallel(func(pb *testing.PB) {
		r := r
		for pb.Next() {
			r.Time += 1000
			if err := w.Add(&r); err != nil {
				b.Error(err)
				return
			}
		}
	})
	if err := w.Sync(); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(cpu()-before)/float64(b.N), "cpu-ns/record")
	b.SetBytes(int64(len(new(encoder).appendRecord(nil, 1e6, &r, false))))
}

func cpu() int64 {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

func BenchmarkEncode(b *testing.B) {
	var e encoder
	r := whole()
	buf := make([]byte, 0, 1024)
	b.ReportAllocs()
	for b.Loop() {
		buf = e.appendRecord(buf[:0], 7, &r, false)
	}
}
