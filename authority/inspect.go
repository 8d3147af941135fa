package authority

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Inspection is what lies in the directory of an authority that is not open.
type Inspection struct {
	Status
	Torn   bool      // the journal ends half-way through a line, as a crash leaves it
	Alien  int       // lines of the journal that the authority did not write
	Issued time.Time // when the last in the journal was signed, by the clock of then
}

// Inspect says how the keys in dir fare, and changes nothing. The error is that
// of Open; it is fs.ErrNotExist when there is no authority.
func Inspect(dir, trustDomain string, now time.Time) (Inspection, error) {
	var in Inspection
	if err := checkTrustDomain(trustDomain); err != nil {
		return in, err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return in, err
	}
	if err := in.readJournal(dir); err != nil {
		return in, err
	}
	if err := alone(dir, info, fs.ModeDir, 0o700); err != nil {
		return in, err
	}
	a := &Authority{dir: dir, trustDomain: trustDomain}
	if err := a.opt.fill(); err != nil {
		return in, err
	}
	s, err := a.read(now)
	if err != nil {
		return in, err
	}
	in.Status = s.status(now)
	return in, nil
}

// readJournal reads the youngest file of the journal.
func (in *Inspection) readJournal(dir string) error {
	f, err := os.Open(filepath.Join(dir, journalFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	r := bufio.NewReader(io.LimitReader(f, 2*journalBytes))
	for {
		line, err := r.ReadBytes('\n')
		if err == io.EOF {
			in.Torn = len(line) > 0
			return nil
		}
		if err != nil {
			return err
		}
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		var e entry
		if err := json.Unmarshal(line, &e); err != nil || e.Kind == "" {
			// A line that only lacks its end was torn by a crash, and ended since.
			if syntax, ok := errors.AsType[*json.SyntaxError](err); !ok || syntax.Offset < int64(len(line)) {
				in.Alien++
			}
			continue
		}
		if at := e.issued(); at.After(in.Issued) {
			in.Issued = at
		}
	}
}

// issued is when the entry was written, by the clock of then.
func (e *entry) issued() time.Time {
	switch e.Kind {
	case "jwt-svid", "trial":
		return e.NotBefore
	}
	return e.NotBefore.Add(Skew)
}
