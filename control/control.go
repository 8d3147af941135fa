// Package control is the control plane: it keeps intents with their history,
// decides whether a new one may replace the old, delivers to every gate the
// orders of its place, and says what is enforced as far as gates have
// acknowledged it.
//
// A change goes one way: compile, run the intent's tests, see that every rule
// has gates that can enforce it, compare with what is in force, record, and
// only then send. What fails before the record changes nothing. What is
// recorded is in force: a control plane that is killed at any instant comes
// back with the old intent or with the new one.
//
// Gates connect with Connect. The transport is in process; what crosses it is
// what a remote one would carry: a Hello, Orders of which only the newest
// matters, and an Ack by hash.
package control

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"merlon"
	"merlon/authority"
	"merlon/federation"
	"merlon/intent"
	"merlon/node"
	"merlon/policy"
	"merlon/verify"
)

// Options are the settings of a control plane. The zero value is usable.
type Options struct {
	Now     func() time.Time // default time.Now
	AckWait time.Duration    // how long a change waits for the gates; default 10 s
	Records string           // directory of the records that Why reads; "" for none

	// Prepare is asked to bring up what an intent needs, such as gates for new
	// places, before it is decided whether it can be enforced. It is asked for
	// an intent that is in force already too, and brings up what is missing.
	// An error refuses the intent. It may be nil.
	Prepare func(context.Context, *merlon.Intent) error
	// InForce is told of an intent at the moment it is put in force, by Open too.
	// It must not wait for anything. It may be nil.
	InForce func(*merlon.Intent)
	// Committed is told of a prepared intent that is in force, when all gates
	// have answered. What it returns went wrong too late to refuse the intent.
	// It may be nil.
	Committed func(*merlon.Intent) merlon.Diagnostics
	// Refused is told of a prepared intent that is not put in force after all,
	// so that what Prepare brought up can be taken down. It may be nil.
	Refused func(*merlon.Intent)
	// Exec lets a process and what it starts call as a service until release,
	// that way. It may be nil.
	Exec func(ctx context.Context, service string, pid, uid int) (way Way, release func(), err error)
	// Explain says which service a process is, and why. It may be nil.
	Explain func(ctx context.Context, pid int) (*Explanation, error)
	// Authority says how the keys of the authority fare. It may be nil.
	Authority func() authority.Status
	// Roots are those of the trust domain, PEM. It may be nil.
	Roots func() []byte
	// Nodes says how the nodes of the intent in force are. It may be nil.
	Nodes func() []node.Status
	// JoinToken makes a join token for a node. It may be nil.
	JoinToken func(name string, ttl time.Duration) (*node.JoinToken, error)
	// Federation says how the bundles of partners fare. It may be nil.
	Federation func() []federation.Status
	// Workloads is the address of the Workload API. It may be nil.
	Workloads func() string
	// Problems says why gates are not ready, by place. It may be nil.
	Problems func() map[string][]string
}

// Control is a control plane. It is safe for concurrent use.
type Control struct {
	opt      Options
	store    *store
	applying sync.Mutex // one change at a time

	mu       sync.Mutex
	inForce  *force // nil before the first commit
	sessions map[merlon.Place]map[*Session]struct{}
	current  map[merlon.Place]*merlon.Orders    // the newest of each place with a gate
	reach    map[merlon.Place][]merlon.Endpoint // of the gates of a place, as others reach them
	waiting  int                                // gates that have not answered their newest orders
	quiet    chan struct{}                      // closed when waiting falls to 0, new when it rises from there
	closed   bool
}

// Commit is an intent in the history.
type Commit struct {
	Number  int64           `json:"number"`
	Hash    string          `json:"hash"` // of the intent
	Time    time.Time       `json:"time"`
	Who     string          `json:"who"`
	Message string          `json:"message,omitzero"`
	Changes []verify.Change `json:"changes,omitempty"` // against the commit before
}

// Open opens the state directory dir, makes it when it is not there, and puts
// the last committed intent in force.
func Open(ctx context.Context, dir string, opt Options) (*Control, error) {
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.AckWait == 0 {
		opt.AckWait = 10 * time.Second
	}
	st, err := openStore(ctx, dir)
	if err != nil {
		return nil, err
	}
	c := &Control{
		opt: opt, store: st, sessions: map[merlon.Place]map[*Session]struct{}{},
		current: map[merlon.Place]*merlon.Orders{}, reach: map[merlon.Place][]merlon.Endpoint{}, quiet: make(chan struct{}),
	}
	close(c.quiet)
	if err := c.restore(ctx); err != nil {
		return nil, errors.Join(err, st.close())
	}
	return c, nil
}

// restore puts the last commit in force.
func (c *Control) restore(ctx context.Context) error {
	last, err := c.store.history(ctx, 1)
	if err != nil || len(last) == 0 {
		return err
	}
	_, loaded, err := c.load(ctx, last[0].Hash)
	if err != nil {
		return err
	}
	p, ds := policy.Compile(loaded.Intent)
	if ds.Failed() {
		return c.unreadable(last[0].Hash, ds)
	}
	c.putInForce(newForce(last[0], loaded.Intent, p))
	return nil
}

// putInForce needs c.mu, or that nobody else knows c yet.
func (c *Control) putInForce(f *force) {
	c.inForce = f
	if c.opt.InForce != nil {
		c.opt.InForce(f.intent)
	}
}

// Intent is the intent in force, or nil before the first commit. It must not be
// changed.
func (c *Control) Intent() *merlon.Intent {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inForce == nil {
		return nil
	}
	return c.inForce.policy.Intent()
}

// load reads an intent of the history.
func (c *Control) load(ctx context.Context, hash string) (string, *intent.Loaded, error) {
	full, bundle, err := c.store.bundle(ctx, hash)
	if err != nil {
		return "", nil, err
	}
	loaded, ds, err := LoadBundle(bundle)
	switch {
	case err != nil:
		return "", nil, damaged(c.store.path, fmt.Sprintf("intent %.12s", full), err)
	case ds.Failed():
		return "", nil, c.unreadable(full, ds)
	case loaded.Hash != full:
		return "", nil, damaged(c.store.path, fmt.Sprintf("intent %.12s now has the hash %.12s", full, loaded.Hash), nil)
	}
	return full, loaded, nil
}

func (c *Control) unreadable(hash string, ds merlon.Diagnostics) error {
	return &StateError{Path: c.store.path, Problem: fmt.Sprintf("this merlon does not accept the recorded intent %.12s", hash), Err: ds,
		Hint: "use the merlon that applied it, or move the file aside and apply a mended intent"}
}

// Bounds of a bundle: what an intent may be made of.
const (
	maxBundle   = 16 << 20 // bytes, compressed
	maxUnpacked = 64 << 20 // bytes, all files together
	maxFiles    = 10_000
)

// LoadBundle loads an intent from a bundle. The error says that the bundle
// itself is none, the diagnostics what is wrong with the files in it.
func LoadBundle(bundle []byte) (*intent.Loaded, merlon.Diagnostics, error) {
	if len(bundle) > maxBundle {
		return nil, nil, fmt.Errorf("the bundle has %d bytes; the most is %d", len(bundle), maxBundle)
	}
	files, err := zip.NewReader(bytes.NewReader(bundle), int64(len(bundle)))
	if err != nil {
		return nil, nil, fmt.Errorf("the bundle cannot be read: %w", err)
	}
	if len(files.File) > maxFiles {
		return nil, nil, fmt.Errorf("the bundle has %d files; the most is %d", len(files.File), maxFiles)
	}
	var size uint64
	for _, f := range files.File { // package zip holds the files to these sizes
		if size += min(f.UncompressedSize64, maxUnpacked+1); size > maxUnpacked {
			return nil, nil, fmt.Errorf("the files of the bundle have more than %d bytes", maxUnpacked)
		}
	}
	loaded, ds := intent.Load(files)
	return loaded, ds, nil
}

// Close ends all sessions, finishes a change that is being recorded, and closes
// the state.
func (c *Control) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	for _, gates := range c.sessions {
		for s := range gates {
			s.end() // nobody waits for an answer any more
		}
	}
	c.mu.Unlock()
	c.applying.Lock()
	defer c.applying.Unlock()
	return c.store.close()
}

// maxHistory bounds what History returns.
const maxHistory = 100

// History returns the newest commits first, at most limit of them; 0 is as
// many as there may be at once.
func (c *Control) History(ctx context.Context, limit int) ([]Commit, error) {
	if limit <= 0 || limit > maxHistory {
		limit = maxHistory
	}
	return c.store.history(ctx, limit)
}
