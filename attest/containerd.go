package attest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// containerd is the containerd of this host, asked over its Unix socket. Its API
// is gRPC, of which the few calls that matter are spoken by net/http, and the few
// fields are read by number.
type containerd struct {
	client *http.Client

	mu   sync.Mutex
	docs map[string]ociDocument // by digest: what has one never changes
}

// maxDocuments bounds what is remembered.
const maxDocuments = 4096

func newContainerd(socket string) *containerd {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &containerd{docs: map[string]ociDocument{}, client: &http.Client{
		Transport: &http.Transport{
			Protocols: protocols, DisableCompression: true, MaxResponseHeaderBytes: 16 << 10,
			IdleConnTimeout: 10 * time.Second, // attestors come and go with intents
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", socket)
			},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// containerdContainer is a container of containerd.
type containerdContainer struct {
	id     string
	name   string // of its image, as it was named when the container was made
	labels map[string]string
	root   func() (string, error)                        // what its file system began with: a chain of layers
	chains func(digest string) (all []string, err error) // of an image
}

// of is the container of a namespace that a process is in.
//
// The control group says which that is, and containerd is asked whether it
// agrees: a name of a control group is no proof. The process is pinned, so its
// number is no other's.
func (c *containerd) of(ctx context.Context, s *subject, namespace string) (*containerdContainer, error) {
	path, err := s.cgroup()
	if err != nil {
		return nil, err
	}
	id := containerIn(path, namespace)
	if id == "" {
		return nil, errNoContainer
	}
	answer, err := c.call(ctx, namespace, "containers.v1.Containers/Get", bytesField(nil, 1, id))
	if errors.Is(err, errNotFound) {
		return nil, fmt.Errorf("%w of namespace %q", errNoContainer, namespace)
	}
	if err != nil {
		return nil, err
	}
	var record message
	got := &containerdContainer{labels: map[string]string{}}
	if record, err = parseMessage(answer); err == nil {
		record, err = parseMessage(record.text(1))
	}
	if err != nil {
		return nil, err
	}
	got.id, got.name = string(record.text(1)), string(record.text(3))
	for _, entry := range record[2] {
		label, err := parseMessage(entry)
		if err != nil {
			return nil, err
		}
		got.labels[string(label.text(1))] = string(label.text(2))
	}
	if got.id != id {
		return nil, fmt.Errorf("containerd told of container %.12q instead of %.12q", got.id, id)
	}
	if err := c.holds(ctx, namespace, id, s.PID()); err != nil {
		return nil, err
	}
	got.root = sync.OnceValues(func() (string, error) {
		return c.parent(ctx, namespace, record.text(6), record.text(7))
	})
	got.chains = func(digest string) ([]string, error) { return c.image(ctx, namespace, digest) }
	return got, nil
}

// holds checks that a process is in a container.
func (c *containerd) holds(ctx context.Context, namespace, id string, pid int) error {
	answer, err := c.call(ctx, namespace, "tasks.v1.Tasks/ListPids", bytesField(nil, 1, id))
	if err != nil {
		return err
	}
	all, err := parseMessage(answer)
	if err != nil {
		return err
	}
	for _, process := range all[1] {
		// ProcessInfo: its number alone is a varint.
		number, kind, n := protowire.ConsumeTag(process)
		if n < 0 || number != 1 || kind != protowire.VarintType {
			continue
		}
		if v, n := protowire.ConsumeVarint(process[n:]); n > 0 && v == uint64(pid) {
			return nil
		}
	}
	return errMoved
}

// parent is the snapshot that a container's own is laid upon.
func (c *containerd) parent(ctx context.Context, namespace string, snapshotter, key []byte) (string, error) {
	if len(key) == 0 {
		return "", nil // its root is a directory
	}
	answer, err := c.call(ctx, namespace, "snapshots.v1.Snapshots/Stat", bytesField(bytesField(nil, 1, snapshotter), 2, key))
	if err != nil {
		return "", err
	}
	info, err := parseMessage(answer)
	if err == nil {
		info, err = parseMessage(info.text(1))
	}
	if err != nil {
		return "", err
	}
	return string(info.text(2)), nil
}

// image is the chains of layers of an image: one, or of an index those that are
// for this machine and are here.
//
// The name of an image means another one tomorrow, and containerd does not keep
// which it meant when a container was made. What it keeps is the layers that the
// container's file system began with, by their chain ID (OCI Image Format, Layer
// ChainID): so an image is what its digest says its layers are.
func (c *containerd) image(ctx context.Context, namespace, digest string) (chains []string, err error) {
	top, err := c.document(ctx, namespace, digest)
	if err != nil {
		return nil, err
	}
	all := top.manifests
	if len(all) == 0 {
		all = []string{digest}
	}
	for _, digest := range all {
		doc, err := c.document(ctx, namespace, digest)
		if err == nil && doc.config != "" {
			doc, err = c.document(ctx, namespace, doc.config)
		}
		switch {
		case errors.Is(err, errNotFound) && len(top.manifests) > 0: // of a variant that was not pulled
		case err != nil:
			return nil, err
		case doc.chain != "":
			chains = append(chains, doc.chain)
		}
	}
	return chains, nil
}

// document is what has this digest.
func (c *containerd) document(ctx context.Context, namespace, digest string) (ociDocument, error) {
	c.mu.Lock()
	doc, ok := c.docs[digest]
	c.mu.Unlock()
	if ok {
		return doc, nil
	}
	text, err := c.call(ctx, namespace, "content.v1.Content/Read", bytesField(nil, 1, digest))
	if err != nil {
		return doc, err
	}
	if digestOf(text) != digest {
		return doc, fmt.Errorf("containerd gave something else for %s", digest)
	}
	if doc, err = parseOCI(text); err != nil {
		return doc, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.docs) >= maxDocuments {
		clear(c.docs)
	}
	c.docs[digest] = doc
	return doc, nil
}

// ociDocument is what is read of an OCI image index, manifest or configuration,
// and of Docker's, which have the same fields.
type ociDocument struct {
	manifests []string // of an index, for this machine
	config    string   // of a manifest
	chain     string   // of a configuration
}

// maxManifests bounds how many platforms an index is followed to, and how many
// layers an image has.
const maxManifests, maxLayers = 64, 512

func parseOCI(text []byte) (doc ociDocument, err error) {
	type descriptor struct {
		Digest   string
		Platform struct{ Architecture string }
	}
	var d struct {
		Manifests []descriptor
		// A configuration has a field of this name too, which is another thing.
		Config json.RawMessage
		Layers []descriptor
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	if err := json.Unmarshal(text, &d); err != nil {
		return doc, fmt.Errorf("the image's description cannot be read: %w", err)
	}
	switch {
	case len(d.RootFS.DiffIDs) > 0 && len(d.RootFS.DiffIDs) <= maxLayers:
		doc.chain = chainID(d.RootFS.DiffIDs)
	case len(d.Layers) > 0:
		var config descriptor
		if err := json.Unmarshal(d.Config, &config); err != nil {
			return doc, fmt.Errorf("the image's manifest cannot be read: %w", err)
		}
		doc.config = config.Digest
	case len(d.Manifests) > 0 && len(d.Manifests) <= maxManifests:
		for _, m := range d.Manifests {
			if arch := m.Platform.Architecture; arch == "" || arch == runtime.GOARCH {
				doc.manifests = append(doc.manifests, m.Digest)
			}
		}
	}
	if doc.chain == "" && doc.config == "" && len(doc.manifests) == 0 {
		return doc, errors.New("the image's description names no layers for this machine, or too many")
	}
	return doc, nil
}

// chainID names layers that lie one upon the other (OCI Image Format, Layer
// ChainID).
func chainID(diffs []string) string {
	chain := diffs[0]
	for _, diff := range diffs[1:] {
		chain = digestOf([]byte(chain + " " + diff))
	}
	return chain
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

var errNotFound = errors.New("containerd knows no such thing")

// call makes one call, of a namespace. The answers of a stream, which are those
// of Content/Read alone, are joined: it is their data.
func (c *containerd) call(ctx context.Context, namespace, method string, request []byte) ([]byte, error) {
	body := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(request))), request...)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://containerd/containerd.services."+method, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/grpc")
	r.Header.Set("Te", "trailers")
	r.Header.Set("Containerd-Namespace", namespace)
	res, err := c.client.Do(r)
	if err != nil {
		return nil, fmt.Errorf("containerd could not be asked: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("containerd answered %s", res.Status)
	}
	all, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("containerd could not be asked: %w", err)
	case len(all) > maxAnswer:
		return nil, fmt.Errorf("containerd's answer has more than %d bytes", maxAnswer)
	}
	status := res.Trailer.Get("Grpc-Status")
	if status == "" {
		status = res.Header.Get("Grpc-Status") // an answer of trailers only
	}
	if status != "0" {
		text, _ := url.PathUnescape(res.Trailer.Get("Grpc-Message") + res.Header.Get("Grpc-Message"))
		err := fmt.Errorf("containerd refused with status %.3q: %.200q", status, text)
		if status == "5" { // NOT_FOUND
			err = fmt.Errorf("%w: %.200q", errNotFound, text)
		}
		return nil, err
	}
	return joinMessages(all, strings.HasSuffix(method, "/Read"))
}

// joinMessages is the one message of an answer, or the data of all messages of a
// stream of ReadContentResponse.
func joinMessages(b []byte, stream bool) (out []byte, err error) {
	for first := true; len(b) > 0; first = false {
		if len(b) < 5 || b[0] != 0 || uint64(len(b)-5) < uint64(binary.BigEndian.Uint32(b[1:])) || !stream && !first {
			return nil, errors.New("containerd's answer cannot be read")
		}
		n := 5 + int(binary.BigEndian.Uint32(b[1:]))
		text := b[5:n]
		if stream {
			m, err := parseMessage(text)
			if err != nil {
				return nil, err
			}
			text = m.text(2)
		}
		out, b = append(out, text...), b[n:]
	}
	return out, nil
}

// message is the fields of a protobuf message that are bytes, strings or
// messages.
type message map[protowire.Number][][]byte

// text is the last value of a field, or nothing.
func (m message) text(number protowire.Number) []byte {
	if all := m[number]; len(all) > 0 {
		return all[len(all)-1]
	}
	return nil
}

func parseMessage(b []byte) (message, error) {
	m := message{}
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, errors.New("containerd's answer cannot be read")
		}
		b = b[n:]
		if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
			return nil, errors.New("containerd's answer cannot be read")
		}
		if kind == protowire.BytesType {
			v, _ := protowire.ConsumeBytes(b)
			m[number] = append(m[number], v)
		}
		b = b[n:]
	}
	return m, nil
}

func bytesField[T string | []byte](b []byte, number protowire.Number, v T) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), []byte(v))
}

// inContainerd asks about the container of a namespace that a process is in.
func inContainerd(namespace string, ask func(*containerdContainer) (bool, func() string, error)) selector {
	return func(s *subject) (bool, func() string, error) {
		c, err := s.containerd(namespace)
		switch {
		case errors.Is(err, errNoContainer):
			return false, err.Error, nil
		case err != nil:
			return false, nil, err
		}
		return ask(c)
	}
}

// containerdNamespace holds for a process in any container of a namespace.
func containerdNamespace(namespace string) selector {
	return inContainerd(namespace, func(*containerdContainer) (bool, func() string, error) { return true, nil, nil })
}

// containerdLabel holds for a process in a container with this label.
func containerdLabel(namespace, name, want string) selector {
	return inContainerd(namespace, func(c *containerdContainer) (bool, func() string, error) {
		return hasLabel(c.id, c.labels, name, want)
	})
}

// containerdImage holds for a process in a container that began with the layers
// of this image, by the digest of its index, manifest or configuration.
func containerdImage(namespace, want string) selector {
	name, digest := splitImage(want)
	return inContainerd(namespace, func(c *containerdContainer) (bool, func() string, error) {
		root, err := c.root()
		if err != nil {
			return false, nil, err
		}
		saw := func() string {
			return fmt.Sprintf("its container %.12s was made of %q, with the layers %s", c.id, c.name, root)
		}
		if root == "" || name != "" && name != repository(c.name) {
			return false, saw, nil
		}
		chains, err := c.chains(digest)
		if errors.Is(err, errNotFound) {
			return false, func() string {
				return saw() + "; containerd has no image " + digest + " (any more): what it was made of is not known"
			}, nil
		}
		return err == nil && slices.Contains(chains, root), saw, err
	})
}
