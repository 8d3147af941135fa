package record

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"time"

	"merlon"
)

// Filter chooses records. A zero field chooses all.
type Filter struct {
	ID        string
	Caller    string
	Subject   string
	Client    string
	Service   string
	Operation string
	Place     string
	Reason    merlon.Reason
	Denied    bool   // only calls that were denied, or would have been in shadow mode
	Since     int64  // unix nanoseconds, inclusive
	Until     int64  // unix nanoseconds, exclusive
	After     uint64 // only records with a greater sequence number
}

// Match reports whether f chooses r.
func (f *Filter) Match(r *Record) bool {
	is := func(want, got string) bool { return want == "" || want == got }
	return is(f.ID, r.ID) && is(f.Caller, r.Caller) && is(f.Subject, r.Subject) && is(f.Client, r.Client) &&
		is(f.Service, r.Service) && is(f.Operation, r.Operation) && is(f.Place, r.Place) &&
		is(string(f.Reason), string(r.Verdict.Reason)) &&
		(!f.Denied || r.Verdict.Effect != merlon.Allow || r.Verdict.Shadow) &&
		(f.Since == 0 || r.Time >= f.Since) && (f.Until == 0 || r.Time < f.Until) && r.Seq > f.After
}

// needle is a piece of every line that f can match, or nil. It spares most
// lines the decoder.
func (f *Filter) needle() []byte {
	if f.ID == "" {
		return nil
	}
	return append(appendEscaped(nil, f.ID), '"')
}

// Read yields the records of dir that f chooses, oldest first. All that it
// yields is sealed and was checked against its seal; a broken place yields a
// *Broken, after which Read goes on if the caller does. It ends at the last
// seal; see Follow.
func Read(dir string, f Filter) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		list, err := segments(dir)
		if err != nil {
			yield(Record{}, err)
			return
		}
		for i, s := range list {
			if i+1 < len(list) && f.After > 0 && lastBefore(dir, list[i+1].name) <= f.After {
				continue
			}
			if !readSegment(dir, s.name, &f, yield) {
				return
			}
		}
	}
}

// lastBefore is the last sequence number before the segment name, or the
// greatest one when that cannot be read.
func lastBefore(dir, name string) uint64 {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return ^uint64(0) >> 1
	}
	defer f.Close()
	b, err := newReader(f, name).read()
	if err != nil {
		return ^uint64(0) >> 1
	}
	return b.header.First - 1
}

func readSegment(dir, name string, f *Filter, yield func(Record, error) bool) bool {
	file, err := os.Open(filepath.Join(dir, name))
	if errors.Is(err, os.ErrNotExist) {
		return true // retired just now
	}
	if err != nil {
		return yield(Record{}, fmt.Errorf("record: %w", err))
	}
	defer file.Close()
	more, err := readBatches(newReader(file, name), f, yield)
	var tail *unsealed
	if err != nil && !errors.As(err, &tail) {
		return yield(Record{}, fmt.Errorf("record: %w", err))
	}
	return more
}

// readBatches yields what f chooses up to the end of the segment. The error
// is nil at a clean end.
func readBatches(r *reader, f *Filter, yield func(Record, error) bool) (more bool, err error) {
	needle := f.needle()
	for {
		b, err := r.read()
		var broken *Broken
		switch {
		case err == io.EOF:
			return true, nil
		case errors.As(err, &broken):
			if !yield(Record{}, err) {
				return false, nil
			}
			continue
		case err != nil:
			return true, err
		}
		if b.header != nil || b.seal.Last <= f.After || !bytes.Contains(b.lines, needle) {
			continue
		}
		if !yieldBatch(r, b, f, needle, yield) {
			return false, nil
		}
	}
}

func yieldBatch(r *reader, b batch, f *Filter, needle []byte, yield func(Record, error) bool) bool {
	no := b.line - 1
	for line := range bytes.Lines(b.lines) {
		no++
		if !bytes.Contains(line, needle) {
			continue
		}
		var rec Record
		if err := json.Unmarshal(line, &rec); err != nil {
			if !yield(Record{}, r.broken(no, "the record cannot be read: %v", err)) {
				return false
			}
			continue
		}
		if f.Match(&rec) && !yield(rec, nil) {
			return false
		}
	}
	return true
}

// Find returns the records of the call with this request id in all chains of
// dir, oldest first: one of every place that the call passed.
func Find(dir, id string) ([]Record, error) {
	chains, errs := Chains(dir)
	var found []Record
	for _, chain := range chains {
		for r, err := range Read(chain, Filter{ID: id}) {
			if err != nil {
				errs = errors.Join(errs, err)
				continue
			}
			found = append(found, r)
		}
	}
	byTime(found)
	return found, errs
}

// byTime puts records of several chains in order.
func byTime(all []Record) {
	slices.SortStableFunc(all, func(a, b Record) int { return cmp.Compare(a.Time, b.Time) })
}

// Tail returns the last n records that f chooses in all chains of dir, oldest
// first, and how far each chain was read, for Follow.
func Tail(dir string, n int, f Filter) (found []Record, read map[string]uint64, errs error) {
	chains, errs := Chains(dir)
	read = map[string]uint64{}
	for _, chain := range chains {
		part, err := tail(chain, n, f)
		errs = errors.Join(errs, err)
		if len(part) > 0 {
			read[chain] = part[len(part)-1].Seq
		}
		found = append(found, part...)
	}
	byTime(found)
	return found[max(0, len(found)-max(n, 0)):], read, errs
}

func tail(dir string, n int, f Filter) ([]Record, error) {
	list, err := segments(dir)
	if err != nil || n <= 0 {
		return nil, err
	}
	var found []Record // newest segment last
	var errs error
	for i := len(list) - 1; i >= 0 && len(found) < n; i-- {
		var part []Record
		readSegment(dir, list[i].name, &f, func(r Record, err error) bool {
			if err != nil {
				errs = errors.Join(errs, err)
				return true
			}
			if part = append(part, r); len(part) >= 2*n {
				part = append(part[:0], part[len(part)-n:]...)
			}
			return true
		})
		found = append(part, found...)
	}
	if len(found) > n {
		found = found[len(found)-n:]
	}
	return found, errs
}

// pollEvery is how often Follow looks for more.
const pollEvery = 100 * time.Millisecond

// Follow yields records that f chooses as they are sealed, until ctx ends.
// It begins behind f.After, or at the present end when that is 0. To miss
// nothing after a Tail, give After the last Seq.
func Follow(ctx context.Context, dir string, f Filter) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		fl := follower{dir: dir, f: f}
		defer fl.close()
		if f.After == 0 {
			h, err := lastSeq(dir)
			if err != nil {
				yield(Record{}, err)
				return
			}
			fl.f.After = h
		}
		tick := time.NewTicker(pollEvery)
		defer tick.Stop()
		for {
			more, err := fl.poll(yield)
			if err != nil {
				more = yield(Record{}, err)
			}
			if !more {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}
}

// lastSeq is the last sealed sequence number, 0 without any.
func lastSeq(dir string) (uint64, error) {
	list, err := segments(dir)
	if err != nil || len(list) == 0 {
		return 0, err
	}
	last := uint64(0)
	name := list[len(list)-1].name
	file, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return 0, fmt.Errorf("record: %w", err)
	}
	defer file.Close()
	for r := newReader(file, name); ; {
		b, err := r.read()
		var tail *unsealed
		if err == io.EOF || errors.As(err, &tail) {
			return last, nil
		}
		if err != nil {
			return 0, err
		}
		last = b.seal.Last
	}
}

// follower keeps its place between polls.
type follower struct {
	dir    string
	f      Filter
	file   *os.File
	r      *reader
	number uint64 // of the segment being read
}

func (fl *follower) close() {
	if fl.file != nil {
		fl.file.Close()
	}
}

// poll yields what is new, over as many segments as there are.
func (fl *follower) poll(yield func(Record, error) bool) (more bool, err error) {
	for {
		list, err := segments(fl.dir) // before reading: a segment that is not the newest grows no more
		if err != nil {
			return true, err
		}
		if fl.r == nil && !fl.next(list) {
			return true, nil
		}
		newest := list[len(list)-1].number
		more, err := readBatches(fl.r, &fl.f, yield)
		var tail *unsealed
		if err != nil && !errors.As(err, &tail) {
			return more, fmt.Errorf("record: %w", err)
		}
		if !more || fl.number >= newest {
			return more, nil
		}
		fl.close()
		fl.file, fl.r = nil, nil
	}
}

// next opens the segment to read after the last one, if there is one.
func (fl *follower) next(list []segment) bool {
	for i, s := range list {
		if s.number <= fl.number || fl.number == 0 && i+1 < len(list) && lastBefore(fl.dir, list[i+1].name) <= fl.f.After {
			continue
		}
		file, err := os.Open(filepath.Join(fl.dir, s.name))
		if err != nil {
			continue // retired just now
		}
		fl.file, fl.r, fl.number = file, newReader(file, s.name), s.number
		return true
	}
	return false
}
