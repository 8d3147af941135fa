package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"

	"merlon"
)

// maxOrders bounds the file of orders, in bytes.
const maxOrders = 64 << 20

// orderFile is the file of orders, as it was when it was last read.
type orderFile struct {
	name string
	seen os.FileInfo // nil when it was not there
}

// changed reports whether there is another file than the last one read.
func (f *orderFile) changed() bool {
	info, err := os.Stat(f.name)
	return err == nil && !(f.seen != nil && os.SameFile(info, f.seen) && info.ModTime().Equal(f.seen.ModTime()) && info.Size() == f.seen.Size())
}

// read reads the orders. What replaces them meanwhile is a change.
func (f *orderFile) read() (*merlon.Orders, error) {
	info, err := os.Stat(f.name)
	if f.seen = info; err != nil {
		return nil, err
	}
	if info.Size() > maxOrders {
		return nil, fmt.Errorf("%s: larger than %d bytes", f.name, maxOrders)
	}
	data, err := os.ReadFile(f.name)
	if err != nil {
		return nil, err
	}
	orders, err := merlon.DecodeOrders(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.name, err)
	}
	return orders, nil
}

// files is an SVID read from files; who writes them rotates them by an upgrade
// or a restart.
type files struct {
	cert  tls.Certificate
	roots *x509.CertPool
}

func (f *files) SVID() *tls.Certificate { return &f.cert }
func (f *files) Roots() *x509.CertPool  { return f.roots }

func readSVID(dir string) (*files, error) {
	key := filepath.Join(dir, "key.pem")
	info, err := os.Stat(key)
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%s: others can read the key (mode %04o): if nobody has, run chmod 600 %s", key, mode, key)
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "svid.pem"), key)
	if err != nil {
		return nil, err
	}
	bundle, err := os.ReadFile(filepath.Join(dir, "bundle.pem"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(bundle) {
		return nil, fmt.Errorf("%s/bundle.pem: no certificate in it", dir)
	}
	return &files{cert, roots}, nil
}
