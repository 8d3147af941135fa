package record

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Open continues the chain in dir, or begins one. Only one Writer may have a
// directory open, in all processes.
//
// Open checks the newest segment, the end of the one before and head; Verify
// checks all. What a crash left behind the last valid seal is moved into
// SEGMENT.torn. Anything else that is not as it was written is a *Broken, and
// the directory is not touched.
func Open(dir string, opt Options) (*Writer, error) {
	w, err := prepare(dir, opt)
	if err == nil {
		go w.flush()
	}
	return w, err
}

// prepare is Open without the flusher.
func prepare(dir string, opt Options) (*Writer, error) {
	if err := opt.fill(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	w := &Writer{
		dir: dir, opt: opt, lock: lock, sum: sha256.New(),
		active: make([]byte, 0, 4<<10),
		wake:   make(chan struct{}, 1),
		full:   make(chan struct{}, 1),
		syncs:  make(chan chan error),
		quit:   make(chan struct{}),
		done:   make(chan struct{}),
	}
	if err := w.recover(); err != nil {
		w.closeFiles()
		return nil, err
	}
	w.seq, w.synced = w.last, w.last
	return w, nil
}

// recover finds the end of the chain, repairs a torn tail and makes the
// directory ready for writing.
func (w *Writer) recover() error {
	list, err := segments(w.dir)
	if err != nil {
		return err
	}
	h, err := readHead(w.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist) && len(list) > 0:
		return &Broken{File: headName, What: "the file is missing", Hint: hintRestore}
	case errors.Is(err, fs.ErrNotExist):
		err = w.createHead()
	case err == nil:
		w.headFile, err = os.OpenFile(filepath.Join(w.dir, headName), os.O_RDWR, 0)
	}
	if err != nil {
		return err
	}
	if len(list) == 0 {
		if h.Segment != 0 {
			return &Broken{File: segmentName(h.Segment), What: "the segment is missing", Hint: hintRestore}
		}
		if err := w.create(1); err != nil {
			return err
		}
		return w.sync(true)
	}
	if err := w.resume(list, h); err != nil {
		return err
	}
	if err := w.sync(true); err != nil {
		return err
	}
	return w.retire()
}

// createHead writes the head of a chain without segments. A crash leaves the
// whole head or none.
func (w *Writer) createHead() error {
	name := filepath.Join(w.dir, headName)
	f, err := os.OpenFile(name+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	w.headFile = f
	_, err = f.WriteAt(head{Hash: digest{}.String()}.encode(), 0)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(name+".new", name)
	}
	if err == nil {
		err = syncDir(w.dir)
	}
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	return nil
}

// resume continues in the newest segment of list.
//
// Each rotation makes the old segment and a head that names its end durable
// before it begins the new one. So head names the newest segment or the end
// of the one before it, and only the newest may have a torn tail.
func (w *Writer) resume(list []segment, h head) error {
	newest := list[len(list)-1]
	if h.Segment > newest.number {
		return &Broken{File: segmentName(h.Segment), What: "the segment is missing", Hint: hintRestore}
	}
	if h.Segment+1 < newest.number {
		return &Broken{File: headName, What: fmt.Sprintf("the file is older than %s", newest.name), Hint: hintRestore}
	}
	var before end
	if len(list) > 1 {
		previous := list[len(list)-2]
		var err error
		if before, err = scan(w.dir, previous.name, h); err != nil {
			return err
		}
		if before.bad != nil {
			return before.bad
		}
	}
	e, err := scan(w.dir, newest.name, h)
	if err != nil {
		return err
	}
	if e.header != nil && len(list) > 1 && (e.header.Prev != before.hash.String() || e.header.First != before.last+1) {
		return &Broken{File: newest.name, Line: 1, What: "the segment does not follow the one before it", Hint: hintRestore}
	}
	w.list = list[:len(list)-1]
	w.number = newest.number
	if w.file, err = os.OpenFile(filepath.Join(w.dir, newest.name), os.O_RDWR, 0); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	if e.header == nil { // a crash left not even the header
		e.hash, e.last = before.hash, before.last
	}
	w.size, w.prev, w.last = e.size, e.hash, e.last
	switch {
	case e.bad != nil:
		return w.cut(newest.name)
	case e.header == nil:
		return w.begin()
	}
	return nil
}

// cut moves everything behind the last valid seal of the newest segment into
// a file of its own, and says so in the chain. A crash at any point of this
// leaves the tail in place or the copy complete.
func (w *Writer) cut(name string) error {
	info, err := w.file.Stat()
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	tail := info.Size() - w.size
	torn, err := w.keepTail(name, tail)
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	if w.size == 0 {
		if err := w.begin(); err != nil {
			return err
		}
	}
	_, err = w.append(nil, seal{First: w.last + 1, Last: w.last, Recovered: &Recovered{Bytes: tail, File: torn}})
	if err != nil {
		return err
	}
	if err := w.file.Truncate(w.size); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	return nil
}

// keepTail copies the tail into a new file, durably, and returns its name.
func (w *Writer) keepTail(name string, tail int64) (string, error) {
	for n := 1; ; n++ {
		torn := name + ".torn"
		if n > 1 {
			torn = fmt.Sprintf("%s.%d", torn, n)
		}
		f, err := os.OpenFile(filepath.Join(w.dir, torn), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		_, err = io.Copy(f, io.NewSectionReader(w.file, w.size, tail))
		return torn, errors.Join(err, f.Sync(), f.Close(), syncDir(w.dir))
	}
}

// end is where the valid part of a segment ends.
type end struct {
	header *header // nil when not even that is whole
	size   int64
	hash   digest
	last   uint64
	bad    error // *Broken or *unsealed: what follows is not valid; nil at a clean end
}

// scan reads a segment up to its first invalid byte. It fails when head says
// that more than that was on the disk.
func scan(dir, name string, h head) (end, error) {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return end{}, fmt.Errorf("record: %w", err)
	}
	defer f.Close()
	var e end
	r := newReader(f, name)
	held := segmentName(h.Segment) != name
	for {
		b, err := r.read()
		if err == io.EOF {
			break
		}
		var broken *Broken
		var tail *unsealed
		if errors.As(err, &broken) || errors.As(err, &tail) {
			e.bad = err
			break
		}
		if err != nil {
			return end{}, fmt.Errorf("record: %w", err)
		}
		if b.header != nil {
			e.header = b.header
		}
		e.size, e.hash, e.last = b.end, b.hash, b.seal.Last
		held = held || e.size == h.Size && e.hash.String() == h.Hash && e.last == h.Last
	}
	if !held {
		if e.bad == nil || !errors.As(e.bad, new(*Broken)) {
			e.bad = &Broken{File: name, Line: r.line, What: "the end is missing: records up to " + fmt.Sprint(h.Last) + " were on the disk", Hint: hintRestore}
		}
		return end{}, e.bad
	}
	return e, nil
}
