package record

import (
	"errors"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// TestOpenFree: writers side by side have a chain each, and who comes later
// continues the first that is free.
func TestOpenFree(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	opt := Options{Now: time.Now}
	open := func() *Writer {
		t.Helper()
		w, err := OpenFree(dir, opt)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { w.Close() })
		return w
	}
	first, second := open(), open()
	add := func(w *Writer, id string) {
		t.Helper()
		if err := w.Add(&Record{ID: id, Time: 1}); err != nil {
			t.Fatal(err)
		}
	}
	add(first, "a")
	add(second, "b")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	third := open()
	add(third, "c")
	for i, w := range []*Writer{first, second, third} {
		if want := []string{dir, filepath.Join(dir, "chain-2"), dir}[i]; w.Dir() != want {
			t.Errorf("writer %d has %s, want %s", i+1, w.Dir(), want)
		}
	}
	if _, err := Open(dir, opt); !errors.Is(err, ErrLocked) {
		t.Errorf("a chain has two writers: %v", err)
	}
	if err := errors.Join(second.Close(), third.Close()); err != nil {
		t.Fatal(err)
	}
	chains, err := Chains(dir)
	if err != nil || len(chains) != 2 {
		t.Fatalf("%q %v", chains, err)
	}
	for i, want := range [][]string{{"a", "c"}, {"b"}} {
		var got []string
		for r, err := range Read(chains[i], Filter{}) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, r.ID)
		}
		if report, err := Verify(chains[i]); err != nil || !slices.Equal(got, want) || int(report.Records) != len(want) {
			t.Errorf("chain %d: %q, want %q; %v", i+1, got, want, err)
		}
	}
}

// TestOpenFreeBounded: there is an end to chains.
func TestOpenFreeBounded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for range maxChains {
		w, err := OpenFree(dir, Options{Now: time.Now})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { w.Close() })
	}
	if _, err := OpenFree(dir, Options{Now: time.Now}); !errors.Is(err, ErrLocked) {
		t.Errorf("one more than %d: %v", maxChains, err)
	}
}

// TestTailOfChains: what several processes have recorded is read as one.
func TestTailOfChains(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for chain, ids := range [][]string{{"a", "c", "e", "b"}, {"b", "d"}} {
		w, err := Open(chainDir(dir, chain+1), Options{Now: time.Now})
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range ids {
			if err := w.Add(&Record{ID: id, Time: int64(id[0])}); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	all := func(records []Record) (ids string) {
		for _, r := range records {
			ids += r.ID
		}
		return ids
	}
	last, read, err := Tail(dir, 4, Filter{})
	if err != nil || all(last) != "bcde" || read[dir] != 4 || read[chainDir(dir, 2)] != 2 {
		t.Errorf("the last four are %q, read was %v, %v", all(last), read, err)
	}
	if found, err := Find(dir, "b"); err != nil || all(found) != "bb" {
		t.Errorf("found %q, %v", all(found), err)
	}
}
