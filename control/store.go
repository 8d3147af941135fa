package control

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite"
)

const (
	databaseName = "control.db"
	lockName     = "control.lock"

	// applicationID is "MRLN": another program's database is refused.
	applicationID = 0x4d524c4e
	// schemaVersion is the version of the tables. A database of any other is
	// refused. History: 1, the first.
	schemaVersion = 1
)

// schema holds intents by hash, and commits: which of them was in force from
// when. sum guards a bundle against a damaged disk, which SQLite cannot see.
const schema = `
CREATE TABLE intents (
	hash   TEXT PRIMARY KEY,
	bundle BLOB NOT NULL,
	sum    TEXT NOT NULL
) STRICT;
CREATE TABLE commits (
	number  INTEGER PRIMARY KEY AUTOINCREMENT,
	hash    TEXT NOT NULL REFERENCES intents(hash),
	time    INTEGER NOT NULL,
	who     TEXT NOT NULL,
	message TEXT NOT NULL,
	changes TEXT NOT NULL
) STRICT;`

// StateError says that the state directory cannot be used as it is. Nothing in
// it was changed.
type StateError struct {
	Path    string
	Problem string
	Hint    string // what to do
	Err     error  // the cause, or nil
}

// Error is the problem and what to do about it.
func (e *StateError) Error() string {
	s := e.Path + ": " + e.Problem
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s + "; hint: " + e.Hint
}

// Unwrap is the cause.
func (e *StateError) Unwrap() error { return e.Err }

// store keeps intents and their history in one SQLite database. It has one
// connection, so writes never meet each other, and one process, by a lock.
type store struct {
	db   *sql.DB
	lock *os.File
	path string
}

// openStore opens the database in dir, or makes one in an empty place.
func openStore(ctx context.Context, dir string) (_ *store, err error) {
	if err := privateDir(dir); err != nil {
		return nil, err
	}
	s := &store{path: filepath.Join(dir, databaseName)}
	if s.lock, err = lockFile(filepath.Join(dir, lockName)); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err := s.find(ctx); err != nil {
		return nil, err
	}
	if s.db, err = openDatabase(s.path, "wal"); err != nil {
		return nil, err
	}
	if err := s.check(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *store) close() error {
	var err error
	if s.db != nil {
		err = s.db.Close()
	}
	// Unlocked by name: a child that is being forked just now has the file
	// too, and would keep the lock until its exec.
	return errors.Join(err, syscall.Flock(int(s.lock.Fd()), syscall.LOCK_UN), s.lock.Close())
}

// privateDir makes dir for this user alone. One that others can enter is
// refused: the socket in it is as good as the right to change the intent.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return &StateError{Path: dir, Problem: fmt.Sprintf("other users can enter the state directory (mode %04o)", info.Mode().Perm()), Hint: "chmod 700 " + dir}
	}
	return nil
}

// lockFile takes the lock that one process holds on a state directory. The
// kernel gives it back when the process ends, however it ends.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, &StateError{Path: filepath.Dir(path), Problem: "another merlon uses this state directory", Hint: "stop it, or choose another directory", Err: err}
	}
	return f, nil
}

// find makes the database when there is none. It is made under another name
// and renamed when it is whole, so that an empty or half made one is never
// taken for a new one: what was in it would be forgotten in silence.
func (s *store) find(ctx context.Context) error {
	_, err := os.Stat(s.path)
	if err == nil {
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("state: %w", err)
	}
	if _, err := os.Stat(s.path + "-wal"); err == nil {
		return damaged(s.path, "it is gone, but its log "+databaseName+"-wal is there", nil)
	}
	fresh := s.path + ".new"
	for _, suffix := range []string{"", "-journal"} {
		if err := os.Remove(fresh + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("state: %w", err)
		}
	}
	f, err := os.OpenFile(fresh, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("state: %w", err)
	}
	defer f.Close()
	db, err := openDatabase(fresh, "delete")
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, fmt.Sprintf("BEGIN; PRAGMA application_id = %d; PRAGMA user_version = %d; %s COMMIT;", applicationID, schemaVersion, schema))
	if err := errors.Join(err, db.Close(), f.Sync()); err != nil {
		return fmt.Errorf("make %s: %w", fresh, err)
	}
	if err := os.Rename(fresh, s.path); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	return syncDir(filepath.Dir(s.path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func openDatabase(path, journal string) (*sql.DB, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	// FULL: a commit is on the disk before it is answered. rw: never made here.
	u := url.URL{Scheme: "file", Path: abs, RawQuery: url.Values{
		"mode":    {"rw"},
		"_txlock": {"immediate"},
		"_pragma": {"busy_timeout(5000)", "journal_mode(" + journal + ")", "synchronous(full)", "foreign_keys(1)"},
	}.Encode()}
	db, err := sql.Open("sqlite", u.String())
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

func damaged(path, problem string, cause error) error {
	return &StateError{Path: path, Problem: "the state is damaged: " + problem, Err: cause,
		Hint: "nothing was changed; restore the file from a backup, or move it and its -wal and -shm files aside and apply the intent again"}
}

// check refuses a database that is not ours, not of this version or not whole.
func (s *store) check(ctx context.Context) error {
	info, err := os.Stat(s.path)
	if err != nil {
		return fmt.Errorf("state: %w", err)
	}
	if info.Size() == 0 {
		return damaged(s.path, "the file is empty", nil)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return &StateError{Path: s.path, Problem: fmt.Sprintf("other users can open the state (mode %04o)", info.Mode().Perm()), Hint: "chmod 600 " + s.path}
	}
	var app, version int
	if err := s.db.QueryRowContext(ctx, "PRAGMA application_id").Scan(&app); err != nil {
		return damaged(s.path, "it cannot be read", err)
	}
	if app != applicationID {
		return &StateError{Path: s.path, Problem: "this is not a database of merlon", Hint: "choose another state directory, or move the file aside"}
	}
	if err := s.db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return damaged(s.path, "it cannot be read", err)
	}
	if version != schemaVersion {
		return &StateError{Path: s.path, Problem: fmt.Sprintf("the state has schema version %d; this merlon reads version %d", version, schemaVersion),
			Hint: "use the merlon that wrote it, or move the file aside and apply the intent again"}
	}
	var found string
	if err := s.db.QueryRowContext(ctx, "PRAGMA integrity_check(1)").Scan(&found); err != nil {
		return damaged(s.path, "it cannot be checked", err)
	}
	if found != "ok" {
		return damaged(s.path, found, nil)
	}
	return nil
}

// commit records an intent as the one in force. It is on the disk when commit
// returns without an error, and not there at all when it returns one.
func (s *store) commit(ctx context.Context, c Commit, bundle []byte) (Commit, error) {
	changes, err := json.Marshal(c.Changes)
	if err != nil {
		return Commit{}, err
	}
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return Commit{}, fmt.Errorf("record the intent: %w", err)
	}
	defer tx.Rollback() // after Commit it does nothing
	sum := sha256.Sum256(bundle)
	if _, err := tx.ExecContext(ctx, "INSERT INTO intents (hash, bundle, sum) VALUES (?, ?, ?) ON CONFLICT (hash) DO NOTHING",
		c.Hash, bundle, hex.EncodeToString(sum[:])); err != nil {
		return Commit{}, fmt.Errorf("record the intent: %w", err)
	}
	res, err := tx.ExecContext(ctx, "INSERT INTO commits (hash, time, who, message, changes) VALUES (?, ?, ?, ?, ?)",
		c.Hash, c.Time.UnixNano(), c.Who, c.Message, string(changes))
	if err != nil {
		return Commit{}, fmt.Errorf("record the intent: %w", err)
	}
	if c.Number, err = res.LastInsertId(); err != nil {
		return Commit{}, fmt.Errorf("record the intent: %w", err)
	}
	if err := tx.Commit(); err != nil {
		return Commit{}, fmt.Errorf("record the intent: %w", err)
	}
	return c, nil
}

// history returns the newest commits first, at most limit of them.
func (s *store) history(ctx context.Context, limit int) ([]Commit, error) {
	rows, err := s.db.QueryContext(ctx, "SELECT number, hash, time, who, message, changes FROM commits ORDER BY number DESC LIMIT ?", limit)
	if err != nil {
		return nil, fmt.Errorf("read the history: %w", err)
	}
	defer rows.Close()
	var commits []Commit
	for rows.Next() {
		var c Commit
		var at int64
		var changes string
		if err := rows.Scan(&c.Number, &c.Hash, &at, &c.Who, &c.Message, &changes); err != nil {
			return nil, fmt.Errorf("read the history: %w", err)
		}
		c.Time = time.Unix(0, at).UTC()
		if err := json.Unmarshal([]byte(changes), &c.Changes); err != nil {
			return nil, damaged(s.path, fmt.Sprintf("commit %d cannot be read", c.Number), err)
		}
		commits = append(commits, c)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read the history: %w", err)
	}
	return commits, nil
}

// errNoIntent says that no intent has a hash.
var errNoIntent = errors.New("no such intent in the history")

// bundle returns the files of an intent by its hash, or by the beginning of
// its hash when that names only one.
func (s *store) bundle(ctx context.Context, hash string) (full string, bundle []byte, err error) {
	rows, err := s.db.QueryContext(ctx, "SELECT hash, bundle, sum FROM intents WHERE substr(hash, 1, length(?1)) = ?1 LIMIT 2", hash)
	if err != nil {
		return "", nil, fmt.Errorf("read the intent %.12q: %w", hash, err)
	}
	defer rows.Close()
	n := 0
	var want string
	for rows.Next() {
		n++
		if err := rows.Scan(&full, &bundle, &want); err != nil {
			return "", nil, fmt.Errorf("read the intent %.12q: %w", hash, err)
		}
	}
	if err := rows.Err(); err != nil {
		return "", nil, fmt.Errorf("read the intent %.12q: %w", hash, err)
	}
	switch {
	case n == 0 || hash == "":
		return "", nil, fmt.Errorf("%q: %w", hash, errNoIntent)
	case n > 1:
		return "", nil, fmt.Errorf("%q is the beginning of more than one intent's hash; give more of it", hash)
	}
	if sum := sha256.Sum256(bundle); hex.EncodeToString(sum[:]) != want {
		return "", nil, damaged(s.path, fmt.Sprintf("the files of intent %.12s are not what was recorded", full), nil)
	}
	return full, bundle, nil
}
