package record

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func seeds(f *testing.F) {
	for name, data := range chain(f) {
		f.Add(data)
		if name != headName {
			f.Add(data[:len(data)/2])
			f.Add(data[len(data)/2:])
			f.Add(append(bytes.Clone(data), data...))
		}
	}
	f.Add([]byte(sealPrefix + "\n"))
	f.Add([]byte(headerPrefix + "}}\n" + sealPrefix + `"hash":"` + string(bytes.Repeat([]byte{'0'}, 64)) + sealSuffix))
}

// FuzzReader gives a reader any file: it ends, and what it calls whole adds up.
func FuzzReader(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		r := newReader(bytes.NewReader(data), segmentName(1))
		var at int64
		for n := 0; ; n++ {
			b, err := r.read()
			var tail *unsealed
			if err == io.EOF || errors.As(err, &tail) {
				if tail != nil && r.off+tail.bytes != int64(len(data)) {
					t.Fatalf("%d bytes whole, %d left, of %d", r.off, tail.bytes, len(data))
				}
				return
			}
			if n > len(data) {
				t.Fatal("the reader does not end")
			}
			if err != nil {
				if !errors.As(err, new(*Broken)) {
					t.Fatal(err)
				}
				continue
			}
			if b.start < at || b.end <= b.start || b.end > int64(len(data)) {
				t.Fatalf("batch from %d to %d after %d", b.start, b.end, at)
			}
			at = b.end
		}
	})
}

// FuzzRecover opens a directory whose first segment is any file: either Open
// refuses and changes nothing, or the chain verifies and every byte is still
// there, in the segment or in what was cut off.
func FuzzRecover(f *testing.F) {
	seeds(f)
	dir := memDir(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		sub, err := os.MkdirTemp(dir, "")
		must(t, err)
		defer os.RemoveAll(sub)
		img := image{headName: head{Hash: digest{}.String()}.encode(), segmentName(1): data}
		img.store(t, sub)
		w, err := Open(sub, quick())
		if err != nil {
			if !load(t, sub).equal(img) {
				t.Fatalf("refused (%v) and changed the directory", err)
			}
			return
		}
		must(t, w.Add(&Record{ID: "after"}))
		must(t, w.Close())
		verified(t, sub)
		after := load(t, sub)
		kept, torn := after[segmentName(1)], after[segmentName(1)+".torn"]
		if n := len(data) - len(torn); n < 0 || !bytes.Equal(data[n:], torn) || !bytes.Equal(kept[:n], data[:n]) {
			t.Fatalf("bytes are missing: %d given, %d cut off", len(data), len(torn))
		}
		if _, err := os.Stat(filepath.Join(sub, headName)); err != nil {
			t.Fatal(err)
		}
	})
}
