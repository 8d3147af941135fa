// Package learn proposes an intent. Scan reads what a project already says
// about itself: OpenAPI and protobuf contracts, compose files and Kubernetes
// manifests.
//
// A proposal allows only what is proved, and cites the file and line of each
// proof. A caller is proved when its own configuration (an environment
// variable, an argument, a compose link) holds the address of the callee. That proves that it
// calls, not what it calls: it gets the operations of the contract, one by
// one, and an owner strikes what it does not need. What is only likely, such
// as depends_on, which is about the order of starting, and everything that
// would open a service to the internet, is a comment.
//
// Values of environment variables are never copied: they may hold secrets.
package learn

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"merlon"
)

// Bounds on what is read.
const (
	maxEntries  = 50_000  // files and directories looked at
	maxFile     = 4 << 20 // bytes of a manifest
	maxTotal    = 64 << 20
	maxVisits   = 5_000_000 // nodes of YAML, counting each use of an alias
	maxServices = 5_000
	maxText     = 4096 // bytes of a value that is looked at
)

// Note is something a person should know about a proposal.
type Note struct {
	Pos  merlon.Pos
	Text string
}

// Scan reads the project in fsys and returns a starting intent with comments,
// to be written as merlon.yaml in the same directory. The same files give the
// same bytes. What could not be read or used is in the notes.
func Scan(fsys fs.FS) ([]byte, []Note, error) {
	s := &scan{fsys: fsys, visits: maxVisits, known: map[address]*service{}}
	if err := s.walk(); err != nil {
		return nil, nil, err
	}
	s.bind()
	s.name()
	s.prove()
	slices.SortFunc(s.notes, func(a, b Note) int {
		if c := a.Pos.Compare(b.Pos); c != 0 {
			return c
		}
		return strings.Compare(a.Text, b.Text)
	})
	return s.write(), slices.Compact(s.notes), nil
}

// scan is the state of one Scan.
type scan struct {
	fsys      fs.FS
	notes     []Note
	read      []string // files that said something
	bytes     int64
	visits    int
	project   string // name of the compose project
	services  []*service
	known     map[address]*service // the same, by scope and name
	hosts     map[address]*service // by what they are reached under; see index
	kube      []kubeService
	ingresses []ingress
	contracts []*contractFile
}

// service is something that a file says runs.
type service struct {
	name     string // in the intent
	called   string // in its file
	pos      merlon.Pos
	scopes   []string // where its bare name resolves: compose directories and namespaces
	zone     string
	image    string
	imagePos merlon.Pos
	account  merlon.Pos        // of its service account
	labels   map[string]string // of its pods
	ports    []port
	host     string // under which it is reached
	settings []setting
	starts   []setting // depends_on: the value is a name in its scope
	exposed  []proof   // where it is published to the outside
	contract *contractFile
	callers  map[string]*edge
}

// port is a port on which a service listens.
type port struct {
	number int
	pos    merlon.Pos
}

// setting is one value in a service's configuration.
type setting struct {
	pos         merlon.Pos
	name, value string
}

// proof is a place that says something, and what it says.
type proof struct {
	pos  merlon.Pos
	text string
}

// edge is that one service calls another.
type edge struct {
	caller string
	proved bool
	proofs []proof
}

func (s *scan) note(pos merlon.Pos, format string, args ...any) {
	s.notes = append(s.notes, Note{pos, fmt.Sprintf(format, args...)})
}

// walk reads every file that may say something.
func (s *scan) walk() error {
	entries := 0
	return fs.WalkDir(s.fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			if name == "." {
				return err
			}
			s.note(merlon.Pos{File: name}, "not read: %v", err)
			return nil
		}
		if entries++; entries > maxEntries {
			s.note(merlon.Pos{File: name}, "not read, like all that follows: the directory has more than %d entries", maxEntries)
			return fs.SkipAll
		}
		base := d.Name()
		if d.IsDir() {
			if name != "." && (strings.HasPrefix(base, ".") || base == "node_modules" || base == "vendor" || base == "testdata") {
				return fs.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() || strings.HasPrefix(base, ".") {
			return nil
		}
		switch path.Ext(base) {
		case ".yaml", ".yml", ".json", ".proto":
			if base != "merlon.yaml" && !strings.HasSuffix(base, ".merlon.yaml") {
				s.file(name)
			}
		}
		return nil
	})
}

func (s *scan) file(name string) {
	pos := merlon.Pos{File: name}
	info, err := fs.Stat(s.fsys, name)
	if err != nil {
		s.note(pos, "not read: %v", err)
		return
	}
	large := info.Size() > maxFile
	var data []byte
	if s.bytes += info.Size(); !large && s.bytes <= maxTotal {
		if data, err = fs.ReadFile(s.fsys, name); err != nil {
			s.note(pos, "not read: %v", err)
			return
		}
	}
	text := string(data)
	switch {
	case large || data == nil && info.Size() > 0:
		s.note(pos, "not read: there is too much of it")
	case path.Ext(name) == ".proto":
		if strings.Contains(text, "service ") {
			s.openContract(name)
		}
	case path.Ext(name) == ".json":
		if strings.Contains(text, `"openapi"`) {
			s.openContract(name)
		}
	default:
		s.yaml(name, data)
	}
}

// yaml takes a YAML file for what its content says it is.
func (s *scan) yaml(name string, data []byte) {
	pos := merlon.Pos{File: name}
	text := string(data)
	if !strings.Contains(text, "openapi") && !strings.Contains(text, "services") && !strings.Contains(text, "apiVersion") && !strings.Contains(text, "swagger") {
		return
	}
	var docs []yaml.Node
	if err := yaml.Load(data, &docs, yaml.WithAllDocuments()); err != nil {
		if strings.Contains(text, "{{") {
			s.note(pos, "not read: it is a template; render it first (helm template)")
		} else {
			s.note(pos, "not read: %v", err)
		}
		return
	}
	for i := range docs {
		doc := &docs[i]
		if doc.Kind == yaml.DocumentNode && len(doc.Content) == 1 {
			doc = doc.Content[0]
		}
		switch {
		case s.get(doc, "openapi") != nil:
			s.openContract(name)
			return
		case s.get(doc, "swagger") != nil:
			s.note(s.at(name, doc), "not used: it is Swagger 2.0; only OpenAPI 3 is read")
			return
		case s.get(doc, "apiVersion") != nil && s.get(doc, "kind") != nil:
			s.manifest(name, doc, 0)
		case isCompose(name) && s.get(doc, "services") != nil:
			s.compose(name, doc)
		}
	}
}

// used remembers that a file said something.
func (s *scan) used(name string) {
	if len(s.read) == 0 || s.read[len(s.read)-1] != name {
		s.read = append(s.read, name)
	}
}

func (s *scan) at(name string, n *yaml.Node) merlon.Pos {
	return merlon.Pos{File: name, Line: n.Line, Column: n.Column}
}

// follow is what an alias stands for, and otherwise n. It is nil when n is, or
// when the files have had their share of visits: aliases can make little text
// mean very much.
func (s *scan) follow(n *yaml.Node) *yaml.Node {
	if s.visits--; n == nil || s.visits < 0 {
		return nil
	}
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// fields calls yield for each key of a mapping, what it merges (<<) last.
func (s *scan) fields(n *yaml.Node, depth int, yield func(key, value *yaml.Node) bool) bool {
	n = s.follow(n)
	if n == nil || depth > 8 {
		return true
	}
	if n.Kind == yaml.SequenceNode && depth > 0 { // <<: [*a, *b]
		for _, c := range n.Content {
			if !s.fields(c, depth+1, yield) {
				return false
			}
		}
		return true
	}
	if n.Kind != yaml.MappingNode {
		return true
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if v := s.follow(n.Content[i+1]); v != nil && n.Content[i].Value != "<<" && !yield(n.Content[i], v) {
			return false
		}
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == "<<" && !s.fields(n.Content[i+1], depth+1, yield) {
			return false
		}
	}
	return true
}

// get walks down the keys of mappings. It returns nil when one is not there.
func (s *scan) get(n *yaml.Node, keys ...string) *yaml.Node {
	for _, key := range keys {
		var found *yaml.Node
		s.fields(n, 0, func(k, v *yaml.Node) bool {
			if k.Value == key {
				found = v
			}
			return found == nil
		})
		if found == nil {
			return nil
		}
		n = found
	}
	return s.follow(n)
}

// items are the elements of a list.
func (s *scan) items(n *yaml.Node) []*yaml.Node {
	if n = s.follow(n); n == nil || n.Kind != yaml.SequenceNode {
		return nil
	}
	var list []*yaml.Node
	for _, c := range n.Content {
		if c = s.follow(c); c != nil {
			list = append(list, c)
		}
	}
	return list
}

// text is a scalar's value, "" for anything else.
func (s *scan) text(n *yaml.Node) string {
	if n = s.follow(n); n == nil || n.Kind != yaml.ScalarNode || len(n.Value) > maxText || n.Tag == "!!null" {
		return ""
	}
	return n.Value
}
