package intent

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"merlon"
)

// The names of intent files, and bounds on what is read.
const (
	rootFile       = "merlon.yaml"
	fileSuffix     = ".merlon.yaml"
	maxIntentFile  = 1 << 20
	maxOtherFile   = 32 << 20 // a contract, a key set
	maxTotal       = 64 << 20
	maxIntentFiles = 10_000
	maxEntries     = 200_000 // looked at while searching
)

var (
	errTooLarge   = errors.New("the file is too large")
	errTotal      = fmt.Errorf("all files together are larger than %d MiB", maxTotal>>20)
	errNotRegular = errors.New("it is not a regular file")
)

// recorder is a file system that remembers every file read through it: what
// an intent means depends on these bytes and on no others.
type recorder struct {
	fsys  fs.FS
	files map[string][]byte
	total int64
}

// Open reads the whole file, so that what was recorded is what was parsed even
// when the file changes meanwhile.
func (r *recorder) Open(name string) (fs.File, error) {
	b, err := r.ReadFile(name)
	if err != nil {
		return nil, err
	}
	return &memoryFile{Reader: bytes.NewReader(b), name: name}, nil
}

// ReadFile reads and records a file.
func (r *recorder) ReadFile(name string) ([]byte, error) {
	fail := func(err error) ([]byte, error) { return nil, &fs.PathError{Op: "open", Path: name, Err: err} }
	if !fs.ValidPath(name) || !plainName(name) {
		return fail(fs.ErrInvalid)
	}
	if b, there := r.files[name]; there {
		return b, nil
	}
	limit := int64(maxOtherFile)
	if isIntentFile(name) {
		limit = maxIntentFile
	}
	f, err := r.fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular(): // a pipe or a device would never end
		return fail(errNotRegular)
	case info.Size() > limit:
		return fail(fmt.Errorf("%w: %d bytes of at most %d", errTooLarge, info.Size(), limit))
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	switch {
	case err != nil:
		return nil, err
	case int64(len(b)) > limit:
		return fail(fmt.Errorf("%w: more than %d bytes", errTooLarge, limit))
	case r.total+int64(len(b)) > maxTotal:
		return fail(errTotal)
	}
	r.total += int64(len(b))
	r.files[name] = b
	return b, nil
}

// hash names the files by name and content. Lengths stand before both, so that
// no two sets of files have one stream.
func (r *recorder) hash() string {
	h := sha256.New()
	h.Write([]byte("merlon intent 1\n"))
	for _, name := range slices.Sorted(maps.Keys(r.files)) {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(name))))
		h.Write([]byte(name))
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(r.files[name]))))
		h.Write(r.files[name])
	}
	return hex.EncodeToString(h.Sum(nil))
}

// bundle packs the files into a zip that is the same, byte for byte, for the
// same files: sorted, without times, and stored, because what a compressor
// makes may change with its version.
func (r *recorder) bundle() ([]byte, error) {
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	for _, name := range slices.Sorted(maps.Keys(r.files)) {
		f, err := w.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store})
		if err != nil {
			return nil, err
		}
		if _, err := f.Write(r.files[name]); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// find lists the intent files, the root's first, and reports what looks like
// one and is not.
func find(fsys fs.FS, r *reporter) []string {
	var names []string
	entries := 0
	err := fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			if p == "." {
				return err
			}
			r.at(word{pos: merlon.Pos{File: p}}, codeFile, "an intent file may be in it", "cannot read the directory: %v", cause(err))
			return fs.SkipDir
		}
		if entries++; entries > maxEntries || len(names) >= maxIntentFiles {
			r.at(word{pos: merlon.Pos{File: p}}, codeTooMuch, "give the intent a directory of its own",
				"more than %d files, or %d intent files", maxEntries, maxIntentFiles)
			return fs.SkipAll
		}
		base := path.Base(p)
		if d.IsDir() {
			if p != "." && skipped(base) {
				return fs.SkipDir
			}
			if _, err := fs.Stat(fsys, path.Join(p, rootFile)); p != "." && err == nil {
				r.at(word{pos: merlon.Pos{File: path.Join(p, rootFile)}}, codeOtherEstate, "name the file "+path.Base(p)+fileSuffix+" if it belongs to this one",
					"another intent starts here: this directory is not part of this one")
				return fs.SkipDir
			}
			return nil
		}
		switch {
		case isIntentFile(p):
			if !plainName(p) {
				r.at(word{pos: merlon.Pos{File: strings.ToValidUTF8(p, "?")}}, codeFileName, "rename it", "the name of the file has control characters or a backslash")
				return nil
			}
			names = append(names, p)
		case looksLikeIntent(base):
			r.at(word{pos: merlon.Pos{File: p}}, codeFileName, "intent files are "+rootFile+" and *"+fileSuffix, "the file looks like an intent, and is not read")
		}
		return nil
	})
	if err != nil {
		r.at(word{pos: merlon.Pos{File: "."}}, codeFile, "", "cannot read the directory: %v", cause(err))
		return nil
	}
	if !slices.Contains(names, rootFile) && len(r.ds) == 0 {
		hint := "looked for " + rootFile + " here and for *" + fileSuffix + " below; start with: trustDomain: shop.example"
		if len(names) > 0 {
			hint = fmt.Sprintf("found %s; %s says trustDomain, and gateway if there is one", someOf(names), rootFile)
		}
		r.at(word{pos: merlon.Pos{File: rootFile}}, codeNoIntent, hint, "no intent here")
	}
	return names
}

// skipped says which directories hold no intent of this estate.
func skipped(base string) bool {
	return strings.HasPrefix(base, ".") || base == "node_modules" || base == "vendor"
}

func isIntentFile(p string) bool {
	base := path.Base(p)
	return p == rootFile || strings.HasSuffix(base, fileSuffix) && base != fileSuffix
}

// looksLikeIntent finds names by which somebody meant an intent: a file that is
// passed over in silence is a guardrail that does not exist.
func looksLikeIntent(base string) bool {
	b := strings.ToLower(base)
	for _, end := range []string{"merlon.yaml", "merlon.yml"} {
		if b == end || b == "."+end || strings.HasSuffix(b, "."+end) {
			return true
		}
	}
	return false
}

// plainName says whether a name is the same everywhere, also inside a zip.
func plainName(p string) bool {
	return utf8.ValidString(p) && !strings.ContainsRune(p, '\\') && !strings.ContainsFunc(p, unicode.IsControl)
}

// cause is err without the operation and the path, which the message has.
func cause(err error) error {
	if p := (*fs.PathError)(nil); errors.As(err, &p) {
		err = p.Err
	}
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("there is no such file")
	}
	return err
}

// memoryFile is a file that was read already.
type memoryFile struct {
	*bytes.Reader
	name string
}

func (f *memoryFile) Stat() (fs.FileInfo, error) { return f, nil }
func (f *memoryFile) Close() error               { return nil }
func (f *memoryFile) Name() string               { return path.Base(f.name) }
func (f *memoryFile) Mode() fs.FileMode          { return 0o444 }
func (f *memoryFile) ModTime() time.Time         { return time.Time{} }
func (f *memoryFile) IsDir() bool                { return false }
func (f *memoryFile) Sys() any                   { return nil }

// siblings lists the files of a directory, a bounded number of them.
func siblings(rec *recorder, dir string) []string {
	d, err := rec.fsys.Open(dir)
	if err != nil {
		return nil
	}
	defer d.Close()
	r, ok := d.(fs.ReadDirFile)
	if !ok {
		return nil
	}
	entries, _ := r.ReadDir(500) // a suggestion is worth no more
	var names []string
	for _, e := range entries {
		if !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names
}
