package record

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// formatVersion is the version of the files. History: 1, the first.
const formatVersion = 1

// digest is a link of the chain. The zero digest comes before the first seal.
type digest [sha256.Size]byte

func (d digest) String() string { return hex.EncodeToString(d[:]) }

// header is the first line of a segment. It is a batch of its own, so it is
// sealed like everything else.
type header struct {
	Format      int    `json:"format"`
	Number      uint64 `json:"number"`
	First       uint64 `json:"first"` // sequence number of the first record to come
	TrustDomain string `json:"trustDomain"`
	Place       string `json:"place"`
	Created     string `json:"created"`
	Prev        string `json:"prev"` // hash of the last seal of the segment before
}

// seal is the last line of a batch. Hash covers Prev as 32 bytes, the lines
// of the batch and the seal's own line up to the hash itself.
type seal struct {
	First     uint64     `json:"first"` // records First to Last; Last is First-1 when there are none
	Last      uint64     `json:"last"`
	Count     uint64     `json:"count"`
	Time      string     `json:"time"`
	Recovered *Recovered `json:"recovered,omitempty"`
	Retired   *Retired   `json:"retired,omitempty"`
	Prev      string     `json:"prev"`
	Hash      string     `json:"hash"`
}

// Recovered says that a crash had left a part of a segment without a valid
// seal, and where that part is kept.
type Recovered struct {
	Bytes int64  `json:"bytes"`
	File  string `json:"file"`
}

// Retired says that the oldest segment was removed to stay within
// Options.RetainBytes, and with which hash it ended.
type Retired struct {
	Segment uint64 `json:"segment"`
	Bytes   int64  `json:"bytes"`
	Hash    string `json:"hash"`
}

const (
	headerPrefix = `{"segment":{`
	sealPrefix   = `{"seal":{`
	recordPrefix = `{"seq":`
	hashKey      = `"hash":"`
	sealSuffix   = `"}}` + "\n"
	// sealTail is how many bytes of a seal's line its hash does not cover:
	// the hash itself and a fixed suffix.
	sealTail = 2*sha256.Size + len(sealSuffix)
)

// appendSeal appends the line of s to batch, filling in Hash, and returns
// that hash.
func appendSeal(h hash.Hash, batch []byte, s seal, prev digest) ([]byte, digest) {
	s.Prev = prev.String()
	line, _ := json.Marshal(s) // of strings and numbers: cannot fail
	line = bytes.TrimSuffix(line, []byte(`"}`))
	batch = append(batch, `{"seal":`...)
	batch = append(batch, line...)
	var sum digest
	h.Reset()
	h.Write(prev[:])
	h.Write(batch)
	h.Sum(sum[:0])
	batch = hex.AppendEncode(batch, sum[:])
	return append(batch, sealSuffix...), sum
}

// parseSeal reads the line of a seal. It does not check the hash.
func parseSeal(line []byte) (seal, digest, error) {
	var s struct {
		Seal seal `json:"seal"`
	}
	var sum digest
	i := len(line) - sealTail
	if i < len(sealPrefix) || !bytes.HasSuffix(line[:i], []byte(hashKey)) || !bytes.HasSuffix(line, []byte(sealSuffix)) {
		return seal{}, sum, errors.New("the seal is not complete")
	}
	if err := strictJSON(line, &s); err != nil {
		return seal{}, sum, fmt.Errorf("the seal cannot be read: %w", err)
	}
	n, err := hex.Decode(sum[:], line[i:i+2*len(sum)])
	if err != nil || n != len(sum) || sum.String() != s.Seal.Hash {
		return seal{}, sum, errors.New("the seal's hash cannot be read")
	}
	return s.Seal, sum, nil
}

func appendHeader(dst []byte, h header) []byte {
	line, _ := json.Marshal(h)
	dst = append(dst, `{"segment":`...)
	dst = append(dst, line...)
	return append(dst, '}', '\n')
}

func parseHeader(line []byte) (header, digest, error) {
	var h struct {
		Segment header `json:"segment"`
	}
	var prev digest
	if err := strictJSON(line, &h); err != nil {
		return header{}, prev, fmt.Errorf("the header cannot be read: %w", err)
	}
	if h.Segment.Format != formatVersion {
		return header{}, prev, fmt.Errorf("the file has format %d; this program reads format %d", h.Segment.Format, formatVersion)
	}
	if err := parseDigest(h.Segment.Prev, &prev); err != nil {
		return header{}, prev, fmt.Errorf("the header's prev: %w", err)
	}
	return h.Segment, prev, nil
}

func parseDigest(s string, d *digest) error {
	if len(s) != 2*len(d) {
		return fmt.Errorf("%d characters are no hash", len(s))
	}
	_, err := hex.Decode(d[:], []byte(s))
	return err
}

func strictJSON(line []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

// segment is one file of the chain.
type segment struct {
	number uint64
	name   string
	size   int64
}

func segmentName(number uint64) string { return fmt.Sprintf("segment-%08d.jsonl", number) }

// segments lists the segments of dir in order. Numbers must follow each
// other: a gap is a removed file.
func segments(dir string) ([]segment, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var list []segment
	for _, e := range entries {
		digits, ok := strings.CutPrefix(e.Name(), "segment-")
		digits, ok2 := strings.CutSuffix(digits, ".jsonl")
		n, err := strconv.ParseUint(digits, 10, 64)
		if !ok || !ok2 || err != nil || segmentName(n) != e.Name() {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // retired just now
		}
		if err != nil {
			return nil, err
		}
		list = append(list, segment{n, e.Name(), info.Size()})
	}
	slices.SortFunc(list, func(a, b segment) int {
		if a.number < b.number {
			return -1
		}
		return 1
	})
	for i := 1; i < len(list); i++ {
		if want := list[i-1].number + 1; list[i].number != want {
			return nil, &Broken{File: segmentName(want), What: "the segment is missing", Hint: hintRestore}
		}
	}
	return list, nil
}

const hintRestore = "restore the directory from a copy, or move it away to start a new chain; nothing was changed"

// head is what the file "head" says: the last seal that was synced. What
// comes after it may be torn by a power cut; what comes before may not.
type head struct {
	Segment uint64 `json:"segment"` // 0 before the first one
	Size    int64  `json:"size"`    // of the segment, up to and with the seal
	Last    uint64 `json:"last"`    // sequence number
	Hash    string `json:"hash"`
	Check   string `json:"check"` // of the fields above, against a torn write
}

const (
	headName = "head"
	headSize = 256 // within one sector, written in place
)

func (h head) encode() []byte {
	h.Check = ""
	line, _ := json.Marshal(h)
	sum := sha256.Sum256(line)
	h.Check = hex.EncodeToString(sum[:8])
	line, _ = json.Marshal(h)
	out := bytes.Repeat([]byte{' '}, headSize)
	copy(out, line)
	out[headSize-1] = '\n'
	return out
}

// readHead reads the head of dir. A writer may be changing it: what does not
// check is read again.
func readHead(dir string) (head, error) {
	var h head
	for range 5 {
		data, err := os.ReadFile(filepath.Join(dir, headName))
		if errors.Is(err, fs.ErrNotExist) {
			return head{}, err
		} else if err != nil {
			return head{}, err
		}
		h = head{}
		if json.Unmarshal(data, &h) == nil && bytes.Equal(h.encode(), data) {
			return h, nil
		}
	}
	return head{}, &Broken{File: headName, Line: 1, What: "the file is damaged", Hint: hintRestore}
}

// timestamp formats a time of a seal or header.
func timestamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }
