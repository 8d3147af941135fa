package node

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"merlon"
	"merlon/identity/spiffe"
	"merlon/internal/private"
)

// store is what an agent keeps, in a directory of its own: who it is, what it was
// told last, and SVIDs with their keys.
type store struct{ dir string }

// Kept is what an agent was told last.
type Kept struct {
	TrustDomain string `json:"trustDomain"`
	Node        string `json:"node"`
	View        View   `json:"view"`
}

const (
	keptFile = "agent.json"
	nodeFile = "node.pem"
	maxKept  = 64 << 20 // bytes
	maxPair  = 64 << 10
)

// openStore opens the directory, or makes it.
func openStore(dir string) (store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return store{}, err
	}
	info, err := os.Lstat(dir)
	switch {
	case err != nil:
		return store{}, err
	case !info.IsDir():
		return store{}, fmt.Errorf("%s is no directory", dir)
	case !private.Owned(info):
		return store{}, fmt.Errorf("%s belongs to another user, who could put files there: choose another state directory", dir)
	case info.Mode().Perm()&0o077 != 0:
		return store{}, fmt.Errorf("others can reach %s (mode %04o) and may know the keys in it: choose another state directory", dir, info.Mode().Perm())
	}
	return store{dir}, nil
}

// ReadKept reads what the agent with this state directory was told last. It is
// fs.ErrNotExist if there is none.
func ReadKept(dir string) (*Kept, error) {
	b, err := private.Read(filepath.Join(dir, keptFile), maxKept)
	if err != nil {
		return nil, err
	}
	k := new(Kept)
	if err := (codec{}).Unmarshal(b, k); err != nil {
		return nil, err
	}
	if k.TrustDomain == "" {
		return nil, errors.New("it is not what was left there")
	}
	return k, nil
}

// Intent is the part of the intent that the agent was told.
func (k *Kept) Intent() *merlon.Intent {
	in := &merlon.Intent{TrustDomain: k.TrustDomain}
	for _, s := range k.View.Services {
		in.Services = append(in.Services, merlon.Service{Name: s.Name, Pos: s.Pos, Workload: s.Workload})
	}
	return in
}

func (s store) keep(k *Kept) error {
	b, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return private.Replace(filepath.Join(s.dir, keptFile), b)
}

func svidFile(service string) string { return "svid-" + service + ".pem" }

// keepPair keeps an SVID and its key.
func (s store) keepPair(name string, chain [][]byte, key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return errors.New("the key cannot be written") // the cause could quote it
	}
	var b []byte
	for _, c := range chain {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})...)
	}
	b = append(b, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)
	return private.Replace(filepath.Join(s.dir, name), b)
}

// pair is the SVID that is kept by this name, if it is valid and one of those
// that good accepts. What is no good is as if it were not there: another is
// asked for.
func (s store) pair(name string, now time.Time, good func(id string) bool) *tls.Certificate {
	b, err := private.Read(filepath.Join(s.dir, name), maxPair)
	if err != nil {
		return nil
	}
	c, err := tls.X509KeyPair(b, b)
	if err != nil {
		return nil
	}
	id, err := spiffe.ID(c.Leaf)
	if err != nil || !good(id) || now.Before(c.Leaf.NotBefore) || !now.Before(c.Leaf.NotAfter) {
		return nil
	}
	return &c
}

// drop removes the SVIDs of services that the agent does not have any more.
func (s store) drop(have func(service string) bool) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		name, ok := strings.CutPrefix(e.Name(), "svid-")
		if name, pem := strings.CutSuffix(name, ".pem"); ok && pem && !have(name) {
			errs = append(errs, s.remove(e.Name()))
		}
	}
	return errors.Join(errs...)
}

func (s store) remove(name string) error {
	if err := os.Remove(filepath.Join(s.dir, name)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
