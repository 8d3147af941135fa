package authority

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"merlon/internal/private"
)

const (
	journalFile  = "issued.jsonl"
	journalBytes = 16 << 20 // then a new file begins
	journalKeep  = 4        // older files: issued.1.jsonl is the youngest
)

// journal is the list of everything that was about to be signed, one line of
// JSON each, on disk before the signature exists. A certificate that is not in
// it was forged, or signed by a stolen key. The reverse does not hold: after a
// crash the last line may be of a certificate that was never made.
//
// Who comes while the disk is busy waits with others, and one write serves them
// all: a thousand workloads that start at once wait for a few syncs, not for a
// thousand.
//
// It keeps the youngest 64 to 80 MiB, some 200,000 certificates.
type journal struct {
	dir string
	max int64

	mu   sync.Mutex
	next *batch // what gathers while the disk is busy; nil for nothing

	disk   sync.Mutex // of what follows
	file   *os.File   // nil once closed
	size   int64
	closed bool
}

// batch is lines that reach the disk together, or of which nobody knows whether
// they did.
type batch struct {
	lines []byte
	done  chan struct{} // closed when err is known
	err   error
}

// entry is one line.
type entry struct {
	Kind      string    `json:"kind"`   // root, intermediate, jwt, svid, jwt-svid or edge
	Serial    string    `json:"serial"` // of a JWT-SVID, its jti
	Names     []string  `json:"names"`
	Audience  []string  `json:"audience,omitempty"` // of a JWT-SVID
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	Key       string    `json:"key,omitempty"`    // SHA-256 of the public key (SPKI)
	Issuer    string    `json:"issuer,omitempty"` // serial number of the signer; none when it signs itself
}

func openJournal(dir string) (*journal, error) {
	j := &journal{dir: dir, max: journalBytes}
	if err := j.open(); err != nil {
		return nil, err
	}
	return j, nil
}

func (j *journal) path(n int) string {
	if n == 0 {
		return filepath.Join(j.dir, journalFile)
	}
	return filepath.Join(j.dir, fmt.Sprintf("issued.%d.jsonl", n))
}

// open opens the file to append to. A crash may have torn the last line: it is
// ended, so that the next one stands alone.
func (j *journal) open() error {
	path := j.path(0)
	if info, err := os.Lstat(path); err == nil {
		if err := alone(path, info, 0, 0o600); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil && size > 0 {
		last := make([]byte, 1)
		if _, err = f.ReadAt(last, size-1); err == nil && last[0] != '\n' {
			_, err = f.Write([]byte{'\n'})
			size++
		}
	}
	if err == nil {
		err = private.Sync(j.dir)
	}
	if err != nil {
		f.Close()
		return err
	}
	j.file, j.size = f, size
	return nil
}

// certEntry is the line for a certificate.
func certEntry(kind string, t, parent *x509.Certificate, public crypto.PublicKey) (entry, error) {
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return entry{}, err
	}
	hash := sha256.Sum256(spki)
	e := entry{
		Kind: kind, Serial: t.SerialNumber.Text(16), Names: append([]string{}, t.DNSNames...),
		NotBefore: t.NotBefore.UTC(), NotAfter: t.NotAfter.UTC(), Key: hex.EncodeToString(hash[:]),
	}
	for _, ip := range t.IPAddresses {
		e.Names = append(e.Names, ip.String())
	}
	for _, uri := range t.URIs {
		e.Names = append(e.Names, uri.String())
	}
	if parent != t {
		e.Issuer = parent.SerialNumber.Text(16)
	}
	return e, nil
}

// add writes down what is about to be signed and waits for the disk. Whoever
// begins a batch writes it, once the one before is written.
func (j *journal) add(e entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	j.mu.Lock()
	b, first := j.next, j.next == nil
	if first {
		b = &batch{done: make(chan struct{})}
		j.next = b
	}
	b.lines = append(append(b.lines, line...), '\n')
	j.mu.Unlock()
	if !first {
		<-b.done
		return b.err
	}
	j.disk.Lock()
	defer j.disk.Unlock()
	j.mu.Lock()
	j.next = nil
	j.mu.Unlock()
	b.err = j.write(b.lines)
	close(b.done)
	return b.err
}

// write writes lines and waits for the disk; j.disk is held.
func (j *journal) write(lines []byte) error {
	if j.closed {
		return errClosed
	}
	if j.file == nil {
		if err := j.open(); err != nil { // a rotation failed half-way
			return err
		}
	}
	if j.size > 0 && j.size+int64(len(lines)) > j.max {
		if err := j.rotate(); err != nil {
			return err
		}
	}
	n, err := j.file.Write(lines)
	j.size += int64(n)
	if err == nil {
		err = j.file.Sync()
	}
	if err != nil {
		// What reached the disk is unknown. The next line begins by looking.
		err = errors.Join(err, j.file.Close())
		j.file = nil
	}
	return err
}

// rotate begins a new file and drops the oldest.
func (j *journal) rotate() error {
	err := j.file.Close()
	j.file = nil
	if err != nil {
		return err
	}
	for n := journalKeep - 1; n >= 0; n-- {
		if err := os.Rename(j.path(n), j.path(n+1)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return j.open()
}

func (j *journal) close() error {
	j.disk.Lock()
	defer j.disk.Unlock()
	j.closed = true
	if j.file == nil {
		return nil
	}
	err := j.file.Close()
	j.file = nil
	return err
}
