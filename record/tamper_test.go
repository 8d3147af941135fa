package record

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// image is the content of a directory by file name.
type image map[string][]byte

func load(t testing.TB, dir string) image {
	t.Helper()
	img := image{}
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		must(t, err)
		if e.Name() != "lock" {
			img[e.Name()] = data
		}
	}
	return img
}

// store makes dir hold exactly img.
func (img image) store(t testing.TB, dir string) {
	t.Helper()
	must(t, os.RemoveAll(dir))
	must(t, os.MkdirAll(dir, 0o700))
	for name, data := range img {
		must(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}
}

func (img image) equal(other image) bool { return maps.EqualFunc(img, other, bytes.Equal) }

// chain is a closed chain of three segments and several batches; its first
// segments were retired.
func chain(t testing.TB) image {
	t.Helper()
	dir, opt := t.TempDir(), quick()
	opt.SegmentBytes, opt.RetainBytes = 1500, 5<<10
	w := open(t, dir, opt)
	for i := range 12 {
		for j := range 2 {
			must(t, w.Add(&Record{ID: fmt.Sprint(i, j), Path: "/orders", Status: 200}))
		}
		must(t, w.Sync())
	}
	must(t, w.Close())
	img := load(t, dir)
	if report := verified(t, dir); report.Segments != 3 || report.Retired < 2 {
		t.Fatalf("the chain is not the one to test: %+v", report)
	}
	return img
}

// bench is a directory in which a chain is changed in many ways.
type bench struct {
	dir   string
	img   image // the intact one
	now   image // what is in dir
	tried int
}

func newBench(t *testing.T) *bench {
	b := &bench{dir: memDir(t), img: chain(t), now: image{}}
	b.put(t, b.img)
	return b
}

// put makes the directory hold img, and writes only what differs.
func (b *bench) put(t *testing.T, img image) {
	t.Helper()
	for name := range b.now {
		if _, ok := img[name]; !ok {
			must(t, os.Remove(filepath.Join(b.dir, name)))
		}
	}
	for name, data := range img {
		if old, ok := b.now[name]; !ok || !bytes.Equal(old, data) {
			must(t, os.WriteFile(filepath.Join(b.dir, name), data, 0o600))
		}
	}
	b.now = img
}

// detected takes a changed chain: Verify must name a place, and Open, if it
// refuses as it should, must leave all as it is. Open syncs, so only a part is
// given to it.
func (b *bench) detected(t *testing.T, img image, format string, args ...any) {
	t.Helper()
	b.put(t, img)
	report, err := Verify(b.dir)
	if err == nil && report.Unsealed > 0 {
		return // something was appended, and Verify says so
	}
	what := fmt.Sprintf(format, args...)
	var broken *Broken
	if !errors.As(err, &broken) {
		t.Errorf("%s: Verify says %v", what, err)
		return
	}
	if broken.File == "" || broken.What == "" || broken.Hint == "" {
		t.Errorf("%s: %+v", what, broken)
	}
	if b.tried++; b.tried%29 != 0 {
		return
	}
	w, err := Open(b.dir, quick())
	if err == nil {
		must(t, w.Close())
		if _, err := Verify(b.dir); err == nil {
			t.Errorf("%s: Open made it look right", what)
		}
		b.now = load(t, b.dir)
	} else if !load(t, b.dir).equal(img) {
		t.Errorf("%s: Open refused (%v) and changed the directory", what, err)
	}
}

// with is img with one file changed.
func (img image) with(name string, data []byte) image {
	other := maps.Clone(img)
	other[name] = data
	return other
}

func TestEveryFlipIsDetected(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	img := b.img
	for name, data := range img {
		for i := range data {
			for _, bit := range []byte{1, 0x20} {
				other := bytes.Clone(data)
				other[i] ^= bit
				b.detected(t, img.with(name, other), "%s: byte %d ^ %#x", name, i, bit)
			}
		}
	}
}

func TestEveryDeletionIsDetected(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	img := b.img
	for name, data := range img {
		for i := range data {
			b.detected(t, img.with(name, slices.Delete(bytes.Clone(data), i, i+1)), "%s: byte %d deleted", name, i)
			b.detected(t, img.with(name, data[:i]), "%s: cut at %d", name, i)
		}
		for _, other := range []byte{'\n', '0'} {
			for i := range data {
				b.detected(t, img.with(name, slices.Insert(bytes.Clone(data), i, other)), "%s: %q inserted at %d", name, other, i)
			}
		}
	}
}

func TestEveryMoveOfLinesIsDetected(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	img := b.img
	for name, data := range img {
		lines := strings.SplitAfter(strings.TrimSuffix(string(data), "\n"), "\n")
		if len(lines) > 1 {
			lines[len(lines)-1] += "\n"
		}
		join := func(lines []string) []byte { return []byte(strings.Join(lines, "")) }
		for i := range lines {
			b.detected(t, img.with(name, join(slices.Delete(slices.Clone(lines), i, i+1))), "%s: line %d deleted", name, i+1)
			for j := range i {
				other := slices.Clone(lines)
				other[i], other[j] = other[j], other[i]
				b.detected(t, img.with(name, join(other)), "%s: lines %d and %d swapped", name, j+1, i+1)
				// A run of lines gone, whole batches among them.
				b.detected(t, img.with(name, join(slices.Delete(slices.Clone(lines), j, i+1))), "%s: lines %d to %d deleted", name, j+1, i+1)
				if i < len(lines)-1 {
					other := slices.Insert(slices.Clone(lines), i+1, lines[j])
					b.detected(t, img.with(name, join(other)), "%s: line %d repeated after %d", name, j+1, i+1)
				}
			}
		}
	}
}

func TestEveryLossOfFilesIsDetected(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	img := b.img
	names := slices.Sorted(maps.Keys(img))
	for set := 1; set < 1<<len(names)-1; set++ {
		other, what := image{}, "lost:"
		for i, name := range names {
			if set&(1<<i) != 0 {
				what += " " + name
			} else {
				other[name] = img[name]
			}
		}
		b.detected(t, other, "%s", what)
	}
	for _, old := range names {
		for _, by := range names {
			if old != by {
				b.detected(t, img.with(old, img[by]), "%s replaced by %s", old, by)
			}
		}
	}
}

// TestRetiredMustBeSaid: a chain whose first segments were taken away by
// someone else is not one that retired them.
func TestRetiredMustBeSaid(t *testing.T) {
	t.Parallel()
	img := chain(t)
	names := slices.Sorted(maps.Keys(img))
	delete(img, names[1]) // names[0] is head
	dir := filepath.Join(t.TempDir(), "x")
	img.store(t, dir)
	_, err := Verify(dir)
	if err == nil || !strings.Contains(err.Error(), names[1]+": the segment is missing, and nothing says that it was retired") {
		t.Errorf("got %v", err)
	}
}

func TestBrokenNamesThePlace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	w := open(t, dir, quick())
	for range 3 {
		add(t, w, 2)
		must(t, w.Sync())
	}
	must(t, w.Close())
	img := load(t, dir)
	name := segmentName(1)
	for _, c := range []struct{ old, new, want string }{
		{`"id":"01JD7Z"`, `"id":"01JD7Y"`, name + ":3: lines 3 to 5 are not what the seal in line 5 says"},
		{`{"segment":{"format":1`, `{"segment":{"format":2`, name + ":1: the file has format 2; this program reads format 1"},
		{`"segment":`, `"sigment":`, name + ":1: the segment does not begin with its header"},
		{`"first":3,"last":4`, `"first":3,"last":5`, name + ":6: lines 6 to 8 are not what the seal in line 8 says"},
	} {
		img.with(name, bytes.Replace(img[name], []byte(c.old), []byte(c.new), 1)).store(t, dir)
		if _, err := Verify(dir); err == nil || err.Error() != c.want {
			t.Errorf("%s: got %v, want %s", c.new, err, c.want)
		}
		// A reader says so, and goes on behind it.
		var seqs []uint64
		var errs []string
		for r, err := range Read(dir, Filter{}) {
			if err != nil {
				errs = append(errs, err.Error())
				continue
			}
			seqs = append(seqs, r.Seq)
		}
		if len(errs) == 0 || errs[0] != c.want || len(seqs) < 4 {
			t.Errorf("%s: Read gives %v and %v", c.new, seqs, errs)
		}
	}
	img.with("head", []byte("{}")).store(t, dir)
	if _, err := Verify(dir); err == nil || err.Error() != "head:1: the file is damaged" {
		t.Errorf("got %v", err)
	}
}
