package authority

import (
	"crypto"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"merlon/internal/private"
)

// requestFile holds the key of a request for an intermediate that an offline
// root is to sign, until the answer is installed.
const requestFile = "request.pem"

// Request is a certificate request (PEM) for an intermediate of the authority in
// dir, for a root that is kept elsewhere. Its key stays in dir. Asked again
// before Install, it is the same request, for the same key.
func Request(dir, trustDomain string) ([]byte, error) {
	if err := checkTrustDomain(trustDomain); err != nil {
		return nil, err
	}
	if err := openDir(dir); err != nil {
		return nil, err
	}
	key, err := readRequest(dir)
	if errors.Is(err, errAbsent) {
		made, merr := newKeyPair()
		if merr != nil {
			return nil, merr
		}
		data, merr := encodePair(nil, made)
		if merr != nil {
			return nil, merr
		}
		if err := private.Create(filepath.Join(dir, requestFile), data); err != nil {
			return nil, err
		}
		key, err = readRequest(dir) // what counts is what the disk gives back
	}
	if err != nil {
		return nil, fmt.Errorf("%s in %s: %w", requestFile, dir, err)
	}
	csr, err := certificateRequest(trustDomain, key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}), nil
}

func readRequest(dir string) (crypto.Signer, error) {
	data, err := readPrivate(dir, requestFile)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("it is no private key")
	}
	return parseKey(block.Bytes)
}

// Install takes what the offline root made of the last Request: PEM, the
// certificate first, then what lies between it and the root, then the root. It
// is tried before it is kept. A running authority takes it up when its
// intermediate is due; one that is opened next begins with it.
func Install(dir, trustDomain string, certs []byte, now time.Time) error {
	if err := checkTrustDomain(trustDomain); err != nil {
		return err
	}
	key, err := readRequest(dir)
	if errors.Is(err, errAbsent) {
		return errors.New("nothing was asked for here: merlon id csr comes first")
	}
	if err != nil {
		return fmt.Errorf("%s in %s: %w", requestFile, dir, err)
	}
	chain, anchors, err := sortChain(certs)
	if err != nil {
		return err
	}
	j, err := openJournal(dir)
	if err != nil {
		return err
	}
	defer j.close()
	a := &Authority{dir: dir, trustDomain: trustDomain, journal: j}
	if err := a.opt.fill(); err != nil {
		return err
	}
	s, err := a.read(now)
	if err != nil {
		return err
	}
	cert, root, err := a.checkChain(chain, anchors, key, now)
	if err != nil {
		return err
	}
	for _, der := range anchors {
		if err := a.anchor(s, der, now); err != nil {
			return err
		}
	}
	if err := a.keepIntermediate(s, cert, root, chain, key, now); err != nil {
		return err
	}
	return remove(dir, requestFile)
}
