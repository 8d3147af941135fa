package record

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"strconv"
)

// maxBatch bounds a batch in a file. The writer stays far below, so a longer
// one is damage, and no file can make a reader use more memory.
const maxBatch = 64 << 20

// batch is what lies between two seals, with its seal.
type batch struct {
	lines  []byte // records, or the header; a view that dies with the next call
	line   int    // number of the first line
	start  int64  // offset in the file
	end    int64  // offset behind the seal
	header *header
	seal   seal
	hash   digest
}

// reader reads one segment batch by batch, and checks each against its seal.
type reader struct {
	file  io.Reader
	name  string
	buf   []byte // buf[start:] is read and not yet consumed
	start int
	line  int    // number of the next line
	off   int64  // offset of buf[start]
	prev  digest // hash of the last seal
	next  uint64 // sequence number to come
	began bool   // the header was read
	lost  bool   // the last batch was broken: the next one says what it follows
	sum   hash.Hash
}

func newReader(file io.Reader, name string) *reader {
	return &reader{file: file, name: name, line: 1, sum: sha256.New()}
}

// unsealed is the error for a segment whose end has no seal: it is being
// written, or a crash tore it.
type unsealed struct{ bytes int64 }

func (u *unsealed) Error() string { return fmt.Sprintf("the last %d bytes have no seal", u.bytes) }

// read returns the next batch. At the end the error is io.EOF, or *unsealed
// when bytes are left. A *Broken stops nothing: the next read continues
// behind the seal, as if the chain were whole up to there.
func (r *reader) read() (batch, error) {
	pos, line := r.start, r.line // of the line looked at
	for {
		i := bytes.IndexByte(r.buf[pos:], '\n')
		if i < 0 {
			pos -= r.start
			if err := r.fill(); err != nil {
				return batch{}, err
			}
			pos += r.start
			continue
		}
		text := r.buf[pos : pos+i+1]
		if bytes.HasPrefix(text, []byte(sealPrefix)) {
			return r.check(r.buf[r.start:pos], text, line)
		}
		pos += i + 1
		line++
	}
}

// fill reads more of the file into buf. At its end it tells a clean one from
// one that lacks a seal.
func (r *reader) fill() error {
	if len(r.buf)-r.start > maxBatch {
		err := r.broken(r.line, "no seal in %d bytes", len(r.buf)-r.start)
		*r = reader{file: bytes.NewReader(nil), name: r.name, sum: r.sum} // the next read is at the end
		return err
	}
	if r.start > 0 {
		r.buf = r.buf[:copy(r.buf, r.buf[r.start:])]
		r.start = 0
	}
	if cap(r.buf)-len(r.buf) < 4<<10 {
		r.buf = append(make([]byte, 0, max(64<<10, 2*cap(r.buf))), r.buf...)
	}
	n, err := r.file.Read(r.buf[len(r.buf):cap(r.buf)])
	r.buf = r.buf[:len(r.buf)+n]
	switch {
	case n > 0:
		return nil
	case err == io.EOF && len(r.buf) > 0:
		return &unsealed{int64(len(r.buf))}
	case err == nil:
		return io.ErrNoProgress
	}
	return err
}

// check consumes the lines and their seal, and holds them to each other.
func (r *reader) check(lines, text []byte, sealLine int) (batch, error) {
	b := batch{lines: lines, line: r.line, start: r.off}
	size := len(lines) + len(text)
	r.off += int64(size)
	r.start += size
	r.line = sealLine + 1
	b.end = r.off

	var err error
	if b.seal, b.hash, err = parseSeal(text); err != nil {
		return b, r.broken(sealLine, "%v", err)
	}
	prev, next := r.prev, r.next
	if r.lost {
		parseDigest(b.seal.Prev, &prev) // or stays as it was, which is wrong too
		next = b.seal.First
	}
	r.prev, r.next, r.lost = b.hash, b.seal.Last+1, false

	if !r.began {
		if b.header, prev, next, err = r.open(lines, b.seal); err != nil {
			return b, err
		}
		lines = nil
	}
	if b.seal.Prev != prev.String() {
		return b, r.broken(sealLine, "the seal does not follow the one before it: something between them is missing or was moved")
	}
	r.sum.Reset()
	r.sum.Write(prev[:])
	r.sum.Write(b.lines)
	r.sum.Write(text[:len(text)-sealTail])
	var sum digest
	if r.sum.Sum(sum[:0]); sum != b.hash {
		return b, r.broken(b.line, "lines %d to %d are not what the seal in line %d says", b.line, sealLine, sealLine)
	}
	return b, r.count(b, lines, next)
}

// open takes the first batch of a segment, which is its header.
func (r *reader) open(lines []byte, s seal) (h *header, prev digest, next uint64, err error) {
	r.began = true
	if !bytes.HasPrefix(lines, []byte(headerPrefix)) || bytes.IndexByte(lines, '\n') != len(lines)-1 {
		return nil, prev, 0, r.broken(1, "the segment does not begin with its header")
	}
	got, prev, err := parseHeader(lines)
	if err != nil {
		return nil, prev, 0, r.broken(1, "%v", err)
	}
	if segmentName(got.Number) != r.name {
		return nil, prev, 0, r.broken(1, "the header is of segment %d", got.Number)
	}
	if s.Count != 0 {
		return nil, prev, 0, r.broken(2, "the header's seal counts records")
	}
	return &got, prev, got.First, nil
}

// count holds the sequence numbers of a batch to its seal.
func (r *reader) count(b batch, lines []byte, next uint64) error {
	s, line, first := b.seal, b.line, next
	for len(lines) > 0 {
		i := bytes.IndexByte(lines, '\n')
		if seq, ok := lineSeq(lines[:i]); !ok || seq != next {
			return r.broken(line, "expected record %d", next)
		}
		lines = lines[i+1:]
		next++
		line++
	}
	if s.First != first || s.Last != next-1 || s.Count != next-first {
		return r.broken(r.line-1, "the seal says records %d to %d; there are %d to %d", s.First, s.Last, first, next-1)
	}
	return nil
}

// lineSeq reads the sequence number of a record's line.
func lineSeq(line []byte) (uint64, bool) {
	digits, ok := bytes.CutPrefix(line, []byte(recordPrefix))
	i := bytes.IndexByte(digits, ',')
	if !ok || i < 1 || i > 20 {
		return 0, false
	}
	seq, err := strconv.ParseUint(string(digits[:i]), 10, 64)
	return seq, err == nil
}

func (r *reader) broken(line int, format string, args ...any) error {
	r.lost = true
	return &Broken{File: r.name, Line: line, What: fmt.Sprintf(format, args...), Hint: hintRestore}
}
