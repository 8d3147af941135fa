package node

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"time"

	"merlon"
	"merlon/internal/private"
)

// JoinToken is what a node needs to join: who it is, a secret that says so once,
// and by what it knows the authority.
type JoinToken struct {
	TrustDomain string
	Node        string
	secret      string
	pin         [sha256.Size]byte // of the root that the endpoint's SVID leads to
}

const tokenVersion = "merlon1"

// String is the token as it is handed over. It is a secret.
func (t *JoinToken) String() string {
	return strings.Join([]string{tokenVersion, t.TrustDomain, t.Node, t.secret, base64.RawURLEncoding.EncodeToString(t.pin[:])}, ":")
}

// maxToken bounds a join token, in bytes.
const maxToken = 1 << 10

// ParseJoinToken reads a token as it was handed over. Errors do not quote it.
func ParseJoinToken(text string) (*JoinToken, error) {
	bad := errors.New("it is no join token, as merlon node token prints it")
	parts := strings.Split(strings.TrimSpace(text), ":")
	if len(text) > maxToken || len(parts) != 5 || parts[0] != tokenVersion {
		return nil, bad
	}
	t := &JoinToken{TrustDomain: parts[1], Node: parts[2], secret: parts[3]}
	pin, err := base64.RawURLEncoding.Strict().DecodeString(parts[4])
	if err != nil || len(pin) != sha256.Size || t.TrustDomain == "" || t.Node == "" || len(t.secret) != secretText {
		return nil, bad
	}
	copy(t.pin[:], pin)
	return t, nil
}

// secretText is the length of a secret: 256 bits, which nobody guesses.
const secretText = 43

func newSecret() string {
	b := make([]byte, 32)
	rand.Read(b) // never fails: it ends the program instead
	return base64.RawURLEncoding.EncodeToString(b)
}

// pinOf is the SHA-256 of a root's key (SubjectPublicKeyInfo, as RFC 7469 2.4
// pins keys).
func pinOf(root *x509.Certificate) [sha256.Size]byte {
	return sha256.Sum256(root.RawSubjectPublicKeyInfo)
}

// ledger is what is remembered about nodes, in a file.
type ledger struct {
	path string

	mu sync.Mutex
	book
}

// book is the file.
type book struct {
	Nodes map[string]*entry `json:"nodes"`
	Last  time.Time         `json:"last"` // the youngest Since that ever was
}

// entry is what is remembered about one node of the intent.
type entry struct {
	// Proof is the hash of how the node proves itself, Since when the intent has
	// said so without a break. An SVID that was issued before is of a node that
	// was removed, whatever is called by its name now. Certificates know whole
	// seconds only, so Since is the beginning of one that no other entry has, at
	// or after which no SVID was issued yet; the node's are dated to it at least.
	Proof []byte    `json:"proof"`
	Since time.Time `json:"since"`
	Token *ticket   `json:"token,omitempty"`
}

// ticket is a join token without its secret.
type ticket struct {
	Hash  []byte    `json:"hash"` // SHA-256 of the secret
	Until time.Time `json:"until"`
	Used  time.Time `json:"used,omitzero"`
}

const maxLedger = 16 << 20 // bytes

func openLedger(path string) (*ledger, error) {
	l := &ledger{path: path}
	b, err := private.Read(path, maxLedger)
	if errors.Is(err, fs.ErrNotExist) {
		l.Nodes = map[string]*entry{}
		return l, nil
	}
	if err == nil {
		err = codec{}.Unmarshal(b, &l.book)
	}
	if err == nil {
		for _, e := range l.Nodes {
			if e == nil {
				err = errors.New("it lacks an entry")
			}
		}
		if l.Nodes == nil {
			err = errors.New("it lacks the nodes")
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s cannot be used: %w; move it away to have every node join anew", path, err)
	}
	return l, nil
}

// set takes up the nodes of the intent that is in force.
func (l *ledger) set(nodes []merlon.Node, now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	next, changed := map[string]*entry{}, false
	begin := now.Truncate(time.Second).Add(time.Second)
	if !begin.After(l.Last) {
		begin = l.Last.Add(time.Second)
	}
	for i := range nodes {
		n := &nodes[i]
		e := l.Nodes[n.Name]
		if e == nil || !bytes.Equal(e.Proof, proofOf(n)) {
			e, changed = &entry{Proof: proofOf(n), Since: begin}, true
			l.Last = begin
		}
		next[n.Name] = e
	}
	changed = changed || len(next) != len(l.Nodes)
	l.Nodes = next
	if !changed {
		return nil
	}
	return l.write()
}

// proofOf is the hash of how a node proves itself, wherever that is written.
func proofOf(n *merlon.Node) []byte {
	proof := *n
	proof.Pos = merlon.Pos{}
	text, err := json.Marshal(proof)
	if err != nil {
		return nil // unreachable: it is texts; and no entry is equal to it
	}
	hash := sha256.Sum256(text)
	return hash[:]
}

// since is when the node came into the intent; ok says that it is there, and
// proves itself in this way. It may be nil.
func (l *ledger) since(n *merlon.Node) (at time.Time, ok bool) {
	if n == nil {
		return time.Time{}, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.Nodes[n.Name]
	if e == nil || !bytes.Equal(e.Proof, proofOf(n)) {
		return time.Time{}, false
	}
	return e.Since, true
}

// issue makes a token for a node, in the place of the one before.
func (l *ledger) issue(node string, until time.Time) (secret string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.Nodes[node]
	if e == nil {
		return "", fmt.Errorf("no node of the intent in force is called %q", node)
	}
	secret = newSecret()
	hash := sha256.Sum256([]byte(secret))
	before := e.Token
	e.Token = &ticket{Hash: hash[:], Until: until}
	if err := l.write(); err != nil {
		e.Token = before
		return "", err
	}
	return secret, nil
}

// redeem takes a token, once: that it is used is on disk before anybody has
// anything of it. The errors are for the log.
func (l *ledger) redeem(node, secret string, now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.Nodes[node]
	hash := sha256.Sum256([]byte(secret))
	switch {
	case e == nil || e.Token == nil:
		return errors.New("there is no token for the node")
	case subtle.ConstantTimeCompare(hash[:], e.Token.Hash) != 1:
		return errors.New("the token is not the node's last one")
	case !e.Token.Used.IsZero():
		return fmt.Errorf("the token was used already, at %s: if that was not the node, remove it from the intent", e.Token.Used.UTC().Format(time.RFC3339))
	case !now.Before(e.Token.Until):
		return fmt.Errorf("the token was good until %s", e.Token.Until.UTC().Format(time.RFC3339))
	}
	e.Token.Used = now
	if err := l.write(); err != nil {
		return fmt.Errorf("that the token is used cannot be written down: %w", err) // it stays used, in memory
	}
	return nil
}

func (l *ledger) write() error {
	b, err := json.Marshal(&l.book)
	if err != nil {
		return err
	}
	return private.Replace(l.path, b)
}
