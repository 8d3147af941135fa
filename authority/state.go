package authority

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"merlon/internal/private"
)

// errAbsent says that there is no such file: the one state in which something
// new may be made.
var errAbsent = errors.New("it is absent")

const maxFile = 64 << 10 // bytes of a file with a certificate and its key

// openDir makes the state directory, or checks that it is ours alone.
func openDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	return alone(dir, info, fs.ModeDir, 0o700)
}

// alone refuses a file or directory that others may read, or could have
// written. Nothing is repaired: who could read the keys has them already.
func alone(path string, info fs.FileInfo, kind fs.FileMode, want fs.FileMode) error {
	switch mode := info.Mode(); {
	case mode.Type() != kind:
		return fmt.Errorf("%s is a %v, not what the authority left there", path, mode.Type())
	case mode.Perm()&0o077 != 0:
		return fmt.Errorf("others can reach %s (mode %04o) and may know its keys: if that cannot be, run chmod %o %s; "+
			"if it can, move it away to begin a new trust domain", path, mode.Perm(), want, path)
	case !private.Owned(info):
		return fmt.Errorf("%s belongs to another user", path)
	}
	return nil
}

// readPair reads a file of one certificate and its key. A file that is there
// but is not that is an error other than errAbsent.
func readPair(dir, name string) (pair, error) {
	data, err := readPrivate(dir, name)
	if err != nil {
		return pair{}, err
	}
	return decodePair(data)
}

// readPrivate reads a file that only its owner may read.
func readPrivate(dir, name string) ([]byte, error) {
	path := filepath.Join(dir, name)
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, errAbsent
	case err != nil:
		return nil, err
	}
	if err := alone(path, info, 0, 0o600); err != nil {
		return nil, err
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("it has %d bytes, which is not what the authority left there", info.Size())
	}
	return os.ReadFile(path)
}

// decodePair reads certificates and a key. The key may be absent: whether it
// may be, the caller knows.
func decodePair(data []byte) (pair, error) {
	var p pair
	block, rest := pem.Decode(data)
	for ; block != nil && block.Type == "CERTIFICATE"; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return pair{}, err
		}
		if p.cert == nil {
			p.cert = cert
		} else {
			p.chain = append(p.chain, cert.Raw)
		}
	}
	switch {
	case p.cert == nil:
		return pair{}, errors.New("it does not begin with a certificate")
	case block == nil:
		return p, nil
	case block.Type != "PRIVATE KEY":
		return pair{}, fmt.Errorf("it holds a %q", block.Type)
	}
	key, err := parseKey(block.Bytes)
	if err != nil {
		return pair{}, err
	}
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(p.cert.PublicKey) {
		return pair{}, errors.New("its private key is not the certificate's")
	}
	p.key = key
	return p, nil
}

func parseKey(der []byte) (crypto.Signer, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, errors.New("its private key cannot be read") // the cause could quote it
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, errors.New("its private key does not sign")
	}
	return key, nil
}

// encodePair writes a certificate and its chain, and its key if there is one.
func encodePair(chain [][]byte, key crypto.Signer) ([]byte, error) {
	var b []byte
	for _, der := range chain {
		b = pemAppend(b, der)
	}
	if key == nil {
		return b, nil
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return append(b, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...), nil
}

// anchorFile is what the file of a root is called that signs elsewhere: a root
// of our own that has lost its key is not taken for one.
const anchorFile = "anchor"

// fileName is the file of a pair: root.pem, and its successors root.1.pem and
// so on.
func fileName(word string, number int) string {
	if number == 0 {
		return word + ".pem"
	}
	return fmt.Sprintf("%s.%d.pem", word, number)
}

// fileNumber reads a name that fileName wrote.
func fileNumber(word, name string) (int, bool) {
	number := 0
	if digits, ok := strings.CutPrefix(strings.TrimSuffix(name, ".pem"), word+"."); ok {
		number, _ = strconv.Atoi(digits)
	}
	return number, name == fileName(word, number)
}

// readLine reads the pairs of one kind.
func readLine(dir string, k kind) (line, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var l line
	for _, e := range entries {
		number, ok := fileNumber(k.String(), e.Name())
		anchor := false
		if !ok && k == roots {
			number, ok = fileNumber(anchorFile, e.Name())
			anchor = ok
		}
		if !ok {
			continue
		}
		p, err := readPair(dir, e.Name())
		if err == nil && anchor != (p.key == nil) {
			err = errors.New("it lacks a private key")
			if anchor {
				err = errors.New("it has a private key, which the root of another has not")
			}
		}
		if err != nil {
			return nil, brokenState(dir, e.Name(), err)
		}
		p.number, p.file = number, e.Name()
		l = append(l, p)
	}
	slices.SortFunc(l, func(a, b pair) int { return a.number - b.number })
	return l, nil
}

// store writes a pair to a file of its own, and gives back what the disk gives
// back.
func (a *Authority) store(k kind, number int, chain [][]byte, key crypto.Signer) (pair, error) {
	data, err := encodePair(chain, key)
	if err != nil {
		return pair{}, err
	}
	name := fileName(k.String(), number)
	if key == nil {
		name = fileName(anchorFile, number)
	}
	if err := private.Create(filepath.Join(a.dir, name), data); err != nil {
		return pair{}, err
	}
	p, err := readPair(a.dir, name)
	p.number, p.file = number, name
	return p, err
}

func remove(dir, name string) error {
	if err := os.Remove(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails: it ends the program instead
	return b
}
