package authority

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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
	return private(dir, info, fs.ModeDir, 0o700)
}

// private refuses a file or directory that others may read, or could have
// written. Nothing is repaired: who could read the keys has them already.
func private(path string, info fs.FileInfo, kind fs.FileMode, want fs.FileMode) error {
	switch mode := info.Mode(); {
	case mode.Type() != kind:
		return fmt.Errorf("%s is a %v, not what the authority left there", path, mode.Type())
	case mode.Perm()&0o077 != 0:
		return fmt.Errorf("others can reach %s (mode %04o) and may know its keys: if that cannot be, run chmod %o %s; "+
			"if it can, move it away to begin a new trust domain", path, mode.Perm(), want, path)
	case !owned(info):
		return fmt.Errorf("%s belongs to another user", path)
	}
	return nil
}

// readPair reads a file of one certificate and its key. A file that is there
// but is not that is an error other than errAbsent.
func readPair(dir, name string) (pair, error) {
	path := filepath.Join(dir, name)
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return pair{}, errAbsent
	case err != nil:
		return pair{}, err
	}
	if err := private(path, info, 0, 0o600); err != nil {
		return pair{}, err
	}
	if info.Size() > maxFile {
		return pair{}, fmt.Errorf("it has %d bytes, which is not what the authority left there", info.Size())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return pair{}, err
	}
	return decodePair(data)
}

func decodePair(data []byte) (pair, error) {
	block, rest := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return pair{}, errors.New("it does not begin with a certificate")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return pair{}, err
	}
	block, _ = pem.Decode(rest)
	if block == nil || block.Type != "PRIVATE KEY" {
		return pair{}, errors.New("it lacks a private key")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return pair{}, errors.New("its private key cannot be read") // the cause could quote it
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return pair{}, errors.New("its private key does not sign")
	}
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(cert.PublicKey) {
		return pair{}, errors.New("its private key is not the certificate's")
	}
	return pair{cert, key}, nil
}

func encodePair(cert []byte, key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	b := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	return append(b, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...), nil
}

// writeNew stores a file that must not be there yet, whole or not at all. A
// link never overwrites: of two processes that begin at once, one wins.
func writeNew(dir, name string, data []byte) error { return write(dir, name, data, os.Link) }

// replace stores a file in place of another, whole or not at all.
func replace(dir, name string, data []byte) error { return write(dir, name, data, os.Rename) }

func write(dir, name string, data []byte, move func(from, to string) error) error {
	from := filepath.Join(dir, "."+name+"."+hex.EncodeToString(random(8)))
	f, err := os.OpenFile(from, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(from) // gone already after a rename
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := move(from, filepath.Join(dir, name)); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes a new name in dir survive a power cut.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails: it ends the program instead
	return b
}
