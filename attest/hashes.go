package attest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"merlon/internal/sockowner"
)

const (
	maxExecutable = 1 << 30 // bytes that are hashed of one file
	maxHashes     = 4096    // that are remembered
)

// hashes remembers the SHA-256 of executables: a thousand processes of one file
// cost one reading of it. A file is known by what makes its content its own, see
// sockowner.FileVersion; where nothing does, it is read each time.
type hashes struct {
	now func() time.Time
	mu  sync.Mutex
	of  map[sockowner.FileID]*hash
}

// hash is that of one file. Who is first reads the file, others wait.
type hash struct {
	ready chan struct{}
	sum   string
	err   error
}

// executable is the hash of the file that a process runs, hexadecimal.
func (h *hashes) executable(ctx context.Context, p *sockowner.Process) (string, error) {
	f, err := p.OpenExecutable()
	if err != nil {
		return "", err
	}
	defer f.Close()
	// Taken before the file is read: what changes afterwards has another.
	id, lasts, err := sockowner.FileVersion(f, h.now())
	if err != nil {
		return "", err
	}
	read := func() (string, error) {
		text, err := sum(ctx, f)
		if err == nil {
			err = h.unchanged(p, id)
		}
		return text, err
	}
	if !lasts {
		return read()
	}
	h.mu.Lock()
	e, found := h.of[id]
	if !found {
		if h.of == nil || len(h.of) >= maxHashes {
			h.of = map[sockowner.FileID]*hash{}
		}
		e = &hash{ready: make(chan struct{})}
		h.of[id] = e
	}
	h.mu.Unlock()
	if !found {
		if e.sum, e.err = read(); e.err != nil { // of this caller, such as its end
			h.mu.Lock()
			delete(h.of, id)
			h.mu.Unlock()
		}
		close(e.ready)
		return e.sum, e.err
	}
	select {
	case <-e.ready:
	case <-ctx.Done():
		return "", ctx.Err()
	}
	if e.err != nil {
		return read()
	}
	return e.sum, nil
}

// unchanged checks that the process runs the file still, as it was. While a file
// runs the kernel lets nobody write to it (ETXTBSY); but a process can run another
// while it is being looked at, and so let the first be written to.
func (h *hashes) unchanged(p *sockowner.Process, id sockowner.FileID) error {
	f, err := p.OpenExecutable()
	if err != nil {
		return err
	}
	defer f.Close()
	if again, _, err := sockowner.FileVersion(f, h.now()); err != nil || again != id {
		return errors.Join(errors.New("its executable changed meanwhile"), err)
	}
	return nil
}

func sum(ctx context.Context, r io.Reader) (string, error) {
	hash := sha256.New()
	n, err := io.Copy(hash, io.LimitReader(patient{ctx, r}, maxExecutable+1))
	if err == nil && n > maxExecutable {
		err = fmt.Errorf("its executable has more than %d bytes", maxExecutable)
	}
	if err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// patient is a reader that ends with its context.
type patient struct {
	ctx context.Context
	r   io.Reader
}

func (p patient) Read(b []byte) (int, error) {
	if err := p.ctx.Err(); err != nil {
		return 0, err
	}
	return p.r.Read(b)
}
