package record

import (
	"errors"
	"fmt"
	"hash"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// ErrLocked is the error of Open for a directory that has a writer.
var ErrLocked = errors.New("in use by another writer")

// Errors of Add. Others come from the disk.
var (
	ErrFull   = errors.New("record: the queue is full: the disk does not follow")
	ErrClosed = errors.New("record: the writer is closed")
)

// Options of a Writer. Zero values give the defaults named here.
type Options struct {
	Now         func() time.Time // the clock, for seals; required
	TrustDomain string           // written into headers
	Place       string           // written into headers
	Queries     bool             // keep query strings

	FlushEvery   time.Duration // the oldest record waits so long to be written: 50 ms
	SyncEvery    time.Duration // and so long for a disk sync to begin: 1 s
	SyncRecords  int           // at most so many records are not yet synced: 65,536
	Buffer       int           // bytes of records not yet written: 4 MiB, at most 32 MiB
	Wait         time.Duration // how long Add waits for room: 100 ms
	SegmentBytes int64         // a segment that is longer is ended: 64 MiB
	RetainBytes  int64         // of all segments; older ones are removed: 1 GiB; -1 keeps all
}

// flushBytes is the size of a batch that is written without waiting. Each batch
// wakes the flusher, another thread, and the thread that watches over both: at
// saturation those of 1 MiB cost a call 7 % less than those of 256 KiB.
const flushBytes = 1 << 20

func (o *Options) fill() error {
	if o.Now == nil {
		return errors.New("record: Options.Now is missing")
	}
	def(&o.FlushEvery, 50*time.Millisecond)
	def(&o.SyncEvery, time.Second)
	def(&o.SyncRecords, 1<<16)
	def(&o.Buffer, 4<<20)
	def(&o.Wait, 100*time.Millisecond)
	def(&o.SegmentBytes, 64<<20)
	def(&o.RetainBytes, 1<<30)
	o.Buffer = min(o.Buffer, maxBatch/2)
	return nil
}

func def[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

// Writer appends records to the chain of one directory. Its methods are safe
// for concurrent use.
//
// Add encodes into the active batch under a short lock. One goroutine takes
// the batch, seals it and writes it; everything below "of the flusher" belongs
// to that goroutine alone.
type Writer struct {
	dir  string
	opt  Options
	lock *os.File

	mu       sync.Mutex
	enc      encoder
	active   []byte // lines not yet taken by the flusher
	count    uint64 // of them
	seq      uint64 // last sequence number given
	synced   uint64 // last sequence number known to be on the disk
	taken    int    // bytes taken by the flusher and not yet written
	err      error  // why nothing can be written now
	closed   bool
	room     chan struct{} // closed when waiting calls shall look again; nil when none waits
	refused  uint64
	reserved int // records to come, see Reserve

	wake  chan struct{}   // the first record of a batch was added
	full  chan struct{}   // the batch is worth writing now
	syncs chan chan error // calls of Sync
	quit  chan struct{}
	done  chan struct{}

	// Of the flusher.
	batch    []byte // taken, and not yet written when longer than 0
	batchN   uint64
	small    int // batches in a row that were much smaller than their buffer
	file     *os.File
	number   uint64 // of the segment
	size     int64  // of the segment
	prev     digest
	last     uint64 // last sequence number written
	sum      hash.Hash
	headFile *os.File
	list     []segment // all segments but the current one
	dirty    bool      // written since the last sync
	fatal    error     // after a failed sync nobody knows what the disk holds
}

// Add appends r to the chain. It keeps no reference to r or its strings.
// It does not allocate and does not wait, unless the queue is full: then it
// waits for at most Options.Wait and returns ErrFull. While the disk refuses
// writes it returns the disk's error. Whoever gets an error must not let the
// call pass: its evidence is not kept.
func (w *Writer) Add(r *Record) error {
	w.mu.Lock()
	if w.err != nil || w.closed || !w.hasRoom() {
		if err := w.wait(); err != nil {
			w.refused++
			w.mu.Unlock()
			return err
		}
	}
	first, full := w.add(r)
	w.mu.Unlock()
	w.signal(first, full)
	return nil
}

// add encodes r into the active batch; mu is held.
func (w *Writer) add(r *Record) (first, full bool) {
	w.seq++
	first = w.count == 0
	before := len(w.active)
	w.active = w.enc.appendRecord(w.active, w.seq, r, w.opt.Queries)
	w.count++
	full = before < flushBytes && len(w.active) >= flushBytes
	return first, full
}

// signal wakes the flusher after add.
func (w *Writer) signal(first, full bool) {
	if first {
		nudge(w.wake)
	}
	if full {
		nudge(w.full)
	}
}

// Reserve makes room for one record to come, as Add does; Commit fills it and
// Cancel gives it back. So a call can be held back before it passes when there
// would be no evidence of it, although its record is complete only afterwards.
func (w *Writer) Reserve() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil || w.closed || !w.hasRoom() {
		if err := w.wait(); err != nil {
			w.refused++
			return err
		}
	}
	w.reserved++
	return nil
}

// Commit appends r in the room that Reserve made. It does not wait, and fails
// only when the writer is closed.
func (w *Writer) Commit(r *Record) error {
	w.mu.Lock()
	w.reserved--
	if w.closed {
		w.refused++
		w.mu.Unlock()
		return ErrClosed
	}
	first, full := w.add(r)
	w.mu.Unlock()
	w.signal(first, full)
	return nil
}

// Cancel gives up the room that Reserve made.
func (w *Writer) Cancel() {
	w.mu.Lock()
	w.reserved--
	w.release()
	w.mu.Unlock()
}

// typical is the room held for a record to come, in bytes.
const typical = 1 << 10

// hasRoom reports whether one more record keeps the promises about memory and
// about a power cut.
func (w *Writer) hasRoom() bool {
	return len(w.active)+w.taken+w.reserved*typical < w.opt.Buffer &&
		w.seq+uint64(w.reserved)-w.synced < uint64(w.opt.SyncRecords)
}

// wait waits, with mu held at entry and return, until there is room.
func (w *Writer) wait() error {
	var timer *time.Timer
	for {
		switch {
		case w.closed:
			return ErrClosed
		case w.err != nil:
			return w.err
		case w.hasRoom():
			return nil
		}
		if w.room == nil {
			w.room = make(chan struct{})
		}
		room := w.room
		w.mu.Unlock()
		nudge(w.full)
		if timer == nil {
			timer = time.NewTimer(w.opt.Wait)
			defer timer.Stop()
		}
		timeout := false
		select {
		case <-room:
		case <-timer.C:
			timeout = true
		}
		w.mu.Lock()
		if timeout && (w.closed || w.err != nil || !w.hasRoom()) {
			return cmpErr(w.err, ErrFull)
		}
	}
}

func cmpErr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// nudge wakes the flusher, which may be awake already.
func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Sync returns nil when all records added before are on the disk.
func (w *Writer) Sync() error {
	reply := make(chan error, 1)
	select {
	case w.syncs <- reply:
		return <-reply
	case <-w.done:
		return ErrClosed
	}
}

// Stats are figures of a Writer.
type Stats struct {
	Added    uint64 // sequence number of the last record added
	Synced   uint64 // sequence number of the last record on the disk
	Refused  uint64 // calls of Add that failed
	Buffered int    // bytes in memory
	Err      error  // why nothing can be written now, or nil
}

// Stats returns the figures of this instant.
func (w *Writer) Stats() Stats {
	w.mu.Lock()
	defer w.mu.Unlock()
	return Stats{w.seq, w.synced, w.refused, len(w.active) + w.taken, w.err}
}

// Close writes and syncs what was added and releases the directory. Its error
// says how many records could not be kept.
func (w *Writer) Close() error {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		<-w.done
		return ErrClosed
	}
	w.closed = true
	w.release()
	w.mu.Unlock()
	close(w.quit)
	<-w.done

	w.mu.Lock()
	defer w.mu.Unlock()
	err := w.err
	if lost := w.seq - w.synced; lost > 0 {
		err = fmt.Errorf("record: %d records may be lost: %w", lost, cmpErr(w.err, ErrClosed))
	}
	return errors.Join(err, w.closeFiles())
}

func (w *Writer) closeFiles() error {
	var err error
	for _, f := range []*os.File{w.file, w.headFile, w.lock} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}

// release lets waiting calls look again; mu is held.
func (w *Writer) release() {
	if w.room != nil {
		close(w.room)
		w.room = nil
	}
}

// retryEvery is how often a failed write is tried again.
const retryEvery = 250 * time.Millisecond

// flush is the goroutine that writes. It sleeps while nothing is added.
func (w *Writer) flush() {
	defer close(w.done)
	flush, sync, syncSoon := stoppedTimer(), stoppedTimer(), false
	for {
		var reply chan error
		mustSync := false
		select {
		case <-w.wake:
			flush.Reset(w.opt.FlushEvery)
			continue
		case <-w.full:
		case <-flush.C:
		case <-sync.C:
			mustSync, syncSoon = true, false
		case reply = <-w.syncs:
			mustSync = true
		case <-w.quit:
			w.finish()
			return
		}
		err := w.step(mustSync)
		if reply != nil {
			reply <- err
		}
		if err != nil {
			flush.Reset(retryEvery)
		}
		if w.dirty && !syncSoon {
			sync.Reset(max(0, w.opt.SyncEvery-w.opt.FlushEvery))
			syncSoon = true
		}
	}
}

// finish writes and syncs all there is; nothing is added any more.
func (w *Writer) finish() {
	err := w.step(true)
	if err == nil {
		err = datasync(w.headFile)
	}
	w.mu.Lock()
	w.err = err
	w.mu.Unlock()
}

func stoppedTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// step writes what there is and syncs when asked, or when too many records
// are not synced. It tells Add how it went.
func (w *Writer) step(mustSync bool) error {
	err := w.fatal
	// Twice: a batch that an error left behind, and what was added since.
	for i := 0; i < 2 && err == nil && w.take(); i++ {
		err = w.writeBatch()
	}
	w.mu.Lock()
	mustSync = mustSync || w.last-w.synced >= uint64(w.opt.SyncRecords)/2
	w.mu.Unlock()
	if err == nil && mustSync && w.dirty {
		err = w.sync(false)
	}
	w.mu.Lock()
	w.err = err
	w.release()
	w.mu.Unlock()
	return err
}

// take takes the active batch, unless one is still waiting to be written.
// It reports whether there is something to write.
func (w *Writer) take() bool {
	if len(w.batch) > 0 {
		return true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.count == 0 {
		return false
	}
	spare := w.batch
	if w.small++; len(w.active) > cap(spare)/8 {
		w.small = 0
	}
	if w.small > 50 && cap(spare) > flushBytes {
		spare = nil // a burst is over: its memory goes back
	}
	w.batch, w.batchN = w.active, w.count
	w.active, w.count = spare[:0], 0
	w.taken = len(w.batch)
	return true
}

// writeBatch seals the batch and writes it. When that fails, the batch stays.
func (w *Writer) writeBatch() error {
	if w.size >= w.opt.SegmentBytes {
		if err := w.rotate(); err != nil {
			return err
		}
	}
	s := seal{First: w.last + 1, Last: w.last + w.batchN, Count: w.batchN}
	n := len(w.batch)
	var err error
	if w.batch, err = w.append(w.batch, s); err != nil {
		w.batch = w.batch[:n]
		return err
	}
	w.batch = w.batch[:0]
	w.mu.Lock()
	w.taken = 0
	w.release()
	w.mu.Unlock()
	return nil
}

// append writes lines with their seal, in one write, at the end of the
// segment. It returns lines, grown by the seal. After an error the chain is
// as before: the next write starts at the same place.
func (w *Writer) append(lines []byte, s seal) ([]byte, error) {
	info, err := w.file.Stat()
	if err != nil {
		return lines, fmt.Errorf("record: %w", err)
	}
	if info.Size() < w.size || removed(info) {
		w.fatal = &Broken{File: segmentName(w.number), What: "someone else removed or truncated the file", Hint: hintRestore}
		return lines, w.fatal
	}
	s.Time = timestamp(w.opt.Now())
	lines, sum := appendSeal(w.sum, lines, s, w.prev)
	if _, err := w.file.WriteAt(lines, w.size); err != nil {
		w.file.Truncate(w.size) // give the disk back what was half written
		return lines, fmt.Errorf("record: %w", err)
	}
	w.size += int64(len(lines))
	w.prev, w.last, w.dirty = sum, s.Last, true
	return lines, nil
}

// sync makes what was written durable, and then says so in head. When hard,
// head itself is made durable too.
//
// A failed sync is final: the kernel may have dropped the pages and report
// success the next time. Only Open, which reads the disk, can tell.
func (w *Writer) sync(hard bool) error {
	if err := w.syncFile(hard); err != nil {
		w.fatal = fmt.Errorf("record: the disk did not sync; nothing more is written until a restart: %w", err)
		return w.fatal
	}
	w.dirty = false
	w.mu.Lock()
	w.synced = w.last
	w.release()
	w.mu.Unlock()
	return nil
}

func (w *Writer) syncFile(hard bool) error {
	if err := datasync(w.file); err != nil {
		return err
	}
	h := head{Segment: w.number, Size: w.size, Last: w.last, Hash: w.prev.String()}
	if _, err := w.headFile.WriteAt(h.encode(), 0); err != nil {
		return err
	}
	if hard {
		return datasync(w.headFile)
	}
	return nil
}

// rotate ends the segment and begins the next one. The old one is durable
// before the new one exists, so only the newest can ever be torn.
func (w *Writer) rotate() error {
	if err := w.sync(true); err != nil {
		return err
	}
	old := segment{w.number, segmentName(w.number), w.size}
	file, size := w.file, w.size
	if err := w.create(w.number + 1); err != nil {
		w.file, w.size, w.number = file, size, old.number
		return err
	}
	file.Close()
	w.list = append(w.list, old)
	return w.retire()
}

// create begins a segment with its header. On failure nothing is left.
func (w *Writer) create(number uint64) error {
	name := filepath.Join(w.dir, segmentName(number))
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	w.file, w.size, w.number = f, 0, number
	if err := w.begin(); err != nil {
		f.Close()
		os.Remove(name)
		return err
	}
	return nil
}

// begin writes the header into an empty segment.
func (w *Writer) begin() error {
	if err := syncDir(w.dir); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	line := appendHeader(nil, header{
		Format: formatVersion, Number: w.number, First: w.last + 1,
		TrustDomain: w.opt.TrustDomain, Place: w.opt.Place,
		Created: timestamp(w.opt.Now()), Prev: w.prev.String(),
	})
	_, err := w.append(line, seal{First: w.last + 1, Last: w.last})
	return err
}

// retire removes oldest segments until the rest is small enough. The chain
// says so, durably, before a file goes.
func (w *Writer) retire() error {
	total := w.size
	for _, s := range w.list {
		total += s.size
	}
	for w.opt.RetainBytes >= 0 && len(w.list) > 0 && total > w.opt.RetainBytes {
		oldest, next := w.list[0], segmentName(w.list[0].number+1)
		hash, err := readPrev(w.dir, next)
		if err != nil {
			return err
		}
		_, err = w.append(nil, seal{First: w.last + 1, Last: w.last,
			Retired: &Retired{Segment: oldest.number, Bytes: oldest.size, Hash: hash}})
		if err != nil {
			return err
		}
		if err := w.sync(true); err != nil {
			return err
		}
		if err := os.Remove(filepath.Join(w.dir, oldest.name)); err != nil {
			return fmt.Errorf("record: %w", err)
		}
		w.list = w.list[1:]
		total -= oldest.size
	}
	return nil
}

// readPrev reads the hash with which the segment before name ended.
func readPrev(dir, name string) (string, error) {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return "", fmt.Errorf("record: %w", err)
	}
	defer f.Close()
	b, err := newReader(f, name).read()
	if err != nil {
		return "", err
	}
	return b.header.Prev, nil
}
