package record

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Report is what Verify found, up to the end or the first broken place.
type Report struct {
	Segments  int         `json:"segments"`
	Bytes     int64       `json:"bytes"`
	Records   uint64      `json:"records"`
	FirstSeq  uint64      `json:"firstSeq"` // greater than 1 when older segments were retired
	LastSeq   uint64      `json:"lastSeq"`
	First     time.Time   `json:"first,omitzero"` // time of the first record
	Last      time.Time   `json:"last,omitzero"`  // time of the last record
	Hash      string      `json:"hash"`           // of the last seal; keep it elsewhere to prove the chain later
	Retired   uint64      `json:"retired"`        // segments removed to stay within Options.RetainBytes
	Recovered []Recovered `json:"recovered"`      // what crashes left half written
	Unsealed  int64       `json:"unsealed"`       // bytes behind the last seal: being written, or torn by a crash
}

// Verify reads the whole chain in dir and checks every byte of it against the
// seals, and the end against head. A writer may be at work meanwhile. The
// error is a *Broken at the first place that is not as it was written.
func Verify(dir string) (Report, error) {
	for try := 0; ; try++ {
		report, err := verify(dir)
		// The writer retires the oldest segments while they are read.
		if errors.Is(err, fs.ErrNotExist) && try < 3 {
			continue
		}
		return report, err
	}
}

// verifier is the state of one Verify.
type verifier struct {
	Report
	dir     string
	head    head
	headMet bool
	prev    digest // hash of the last seal
	// missing is the hash with which the segment before the first one must
	// have been retired; "" when there is none, or when a seal said so.
	missing  string
	lastLine []byte // of the last record
}

func verify(dir string) (Report, error) {
	h, err := readHead(dir) // before the segments: they only grow
	if errors.Is(err, fs.ErrNotExist) {
		return Report{}, verifyEmpty(dir)
	}
	if err != nil {
		return Report{}, err
	}
	list, err := segments(dir)
	if err != nil {
		return Report{}, err
	}
	v := verifier{dir: dir, head: h, headMet: h.Segment == 0}
	for i, s := range list {
		if err := v.segment(s, i == 0, i == len(list)-1); err != nil {
			return v.Report, err
		}
	}
	v.Report.Last = lineTime(v.lastLine)
	switch {
	case !v.headMet:
		name, what := segmentName(h.Segment), fmt.Sprintf("the end is missing: records up to %d were on the disk", h.Last)
		return v.Report, &Broken{File: name, What: what, Hint: hintRestore}
	case v.missing != "":
		return v.Report, &Broken{File: segmentName(list[0].number - 1), What: "the segment is missing, and nothing says that it was retired", Hint: hintRestore}
	}
	return v.Report, nil
}

// verifyEmpty judges a directory without a head.
func verifyEmpty(dir string) error {
	list, err := segments(dir)
	if err == nil && len(list) > 0 {
		err = &Broken{File: headName, What: "the file is missing", Hint: hintRestore}
	}
	return err
}

func (v *verifier) segment(s segment, first, last bool) error {
	f, err := os.Open(filepath.Join(v.dir, s.name))
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	defer f.Close()
	v.Segments++
	r := newReader(f, s.name)
	for {
		b, err := r.read()
		var tail *unsealed
		switch {
		case err == io.EOF && (r.began || last):
			return nil
		case err == io.EOF:
			return r.broken(0, "the segment is empty")
		case errors.As(err, &tail) && last:
			v.Unsealed = tail.bytes
			return nil
		case errors.As(err, &tail):
			return r.broken(r.line, "%v", err)
		case err != nil:
			return err
		}
		if err := v.batch(r, b, s, first); err != nil {
			return err
		}
	}
}

// batch takes one batch that is whole in itself.
func (v *verifier) batch(r *reader, b batch, s segment, first bool) error {
	v.Bytes += b.end - b.start
	if b.header != nil {
		switch {
		case !first && (b.header.Prev != v.prev.String() || b.header.First != v.LastSeq+1):
			return r.broken(1, "the segment does not follow the one before it")
		case first && s.number > 1:
			v.missing = b.header.Prev
			v.Retired = s.number - 1
		case first && (b.header.Prev != digest{}.String() || b.header.First != 1):
			return r.broken(1, "the first segment does not begin the chain")
		}
		if first {
			v.FirstSeq = b.header.First
		}
	} else if b.seal.Count > 0 {
		if v.First.IsZero() {
			v.First = lineTime(b.lines)
		}
		v.lastLine = append(v.lastLine[:0], lastLine(b.lines)...)
	}
	v.prev, v.Hash = b.hash, b.seal.Hash
	v.Records += b.seal.Count
	v.LastSeq = b.seal.Last
	if b.seal.Recovered != nil {
		v.Recovered = append(v.Recovered, *b.seal.Recovered)
	}
	if t := b.seal.Retired; t != nil && t.Segment == v.Retired && t.Hash == v.missing {
		v.missing = ""
	}
	if v.head.Segment == s.number && v.head.Size == b.end {
		v.headMet = v.head.Hash == b.seal.Hash && v.head.Last == b.seal.Last
	}
	return nil
}

// lastLine is the last of some lines, without its line feed.
func lastLine(lines []byte) []byte {
	lines = lines[:len(lines)-1]
	for i := len(lines) - 1; i >= 0; i-- {
		if lines[i] == '\n' {
			return lines[i+1:]
		}
	}
	return lines
}

// lineTime is the time of the first record of lines, or zero.
func lineTime(lines []byte) time.Time {
	var r struct {
		Time time.Time `json:"time"`
	}
	for i, c := range lines {
		if c == '\n' {
			lines = lines[:i]
			break
		}
	}
	json.Unmarshal(lines, &r)
	return r.Time
}
