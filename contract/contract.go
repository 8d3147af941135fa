// Package contract reads what a service offers: OpenAPI 3.0 and 3.1 (YAML or
// JSON) and protobuf (.proto files or descriptor sets) become Operations, each
// with the place where it is written. Package contract/route picks one of them
// for a request.
//
// # Names
//
// An OpenAPI operation is named by its operationId. Without one its name is
// derived from method and path alone, so it stays when others come and go: the
// method in lower case, then the path with its braces dropped and every
// character but ASCII letters, digits and "-" replaced by "_". So
// "GET /users/{id}/posts" is get_users_id_posts.
//
// An rpc is named by itself, such as Charge. When two services of one contract
// have an rpc of that name, both are named Service.Charge.
//
// # Paths
//
// The path of the first server's URL goes before every path; an operation's or
// path item's own servers replace it, as OpenAPI says.
//
// # Trust
//
// A contract may come from a stranger. Files are bounded in size, depth, number
// of values and number of operations; a $ref reaches local files of the same
// fs.FS only, never the network and never above the root; duplicate keys, alias
// bombs and reference cycles are refused.
package contract

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"merlon"
	"merlon/contract/route"
)

// Bounds of what one Load reads.
const (
	maxFile       = 32 << 20 // bytes of one file
	maxProto      = 4 << 20  // bytes of one .proto file: its syntax tree is forty times larger
	maxTotal      = 64 << 20 // bytes of a contract and all that it refers to
	maxFiles      = 256
	maxDepth      = 200     // levels of nesting, in OpenAPI as in protobuf
	maxValues     = 1 << 20 // values of one file, aliases counted as often as they are used
	maxMarks      = 2 << 20 // characters of a YAML file that may begin a value
	maxWork       = 4 << 20 // keys and items of one file, references counted as often as they are used
	maxOperations = 20_000
	maxChain      = 32 // references that lead to references
)

// Contract is what one service offers.
type Contract struct {
	Protocol   merlon.Protocol
	Operations []merlon.Operation // in the order of Name
}

// Load reads the contract in the file called name: OpenAPI from .yaml, .yml and
// .json, protobuf source from .proto, a protobuf descriptor set from .binpb,
// .pb and .protoset. When the diagnostics have Failed, the contract is nil or
// incomplete: it serves to find further mistakes, never to decide a call.
//
// Positions carry name and the names of files referred to, as fsys knows them.
// fsys must itself refuse symbolic links out of its root, as os.Root does.
func Load(fsys fs.FS, name string) (*Contract, merlon.Diagnostics) {
	r := &route.Report{}
	l := &loader{fsys: fsys, report: r, docs: map[string]loaded{}}
	var c *Contract
	switch ext := strings.ToLower(path.Ext(name)); ext {
	case ".yaml", ".yml", ".json":
		c = loadOpenAPI(l, name)
	case ".proto":
		c = loadProto(l, name)
	case ".binpb", ".pb", ".protoset":
		c = loadDescriptorSet(l, name)
	default:
		r.Add(merlon.Diagnostic{Pos: merlon.Pos{File: name}, Code: "E0201",
			Message: fmt.Sprintf("contract %q has an unknown kind of file", name),
			Hint:    "name an OpenAPI file (.yaml, .yml, .json), a .proto file or a descriptor set (.binpb, .pb, .protoset)"})
	}
	switch {
	case c != nil:
		c.finish(r, name)
	case !r.Failed(): // whoever forgets to say why must not make it look well
		l.unreadable(name, errors.New("unknown error"))
	}
	return c, r.Sorted()
}

// finish sorts the operations and checks them against each other.
func (c *Contract) finish(r *route.Report, name string) {
	slices.SortStableFunc(c.Operations, func(a, b merlon.Operation) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), a.Pos.Compare(b.Pos))
	})
	if len(c.Operations) == 0 && !r.Failed() {
		r.Add(merlon.Diagnostic{Pos: merlon.Pos{File: name}, Code: "W0205", Warning: true,
			Message: fmt.Sprintf("contract %q offers no operation", name),
			Hint:    "nothing of this service can be called until its contract offers something"})
	}
	routes := make([]route.Route, len(c.Operations))
	for i, op := range c.Operations {
		routes[i] = route.Route{Method: op.Method, Path: op.Path, Pos: op.Pos, Name: op.Name}
		if i > 0 && op.Name == c.Operations[i-1].Name {
			first := c.Operations[i-1]
			r.Add(merlon.Diagnostic{Pos: op.Pos, Width: utf8.RuneCountInString(op.Name), Code: "E0211",
				Message: fmt.Sprintf("operation %q is defined twice: %s %s and %s %s",
					op.Name, first.Method, first.Path, op.Method, op.Path),
				Hint: "give each operation an operationId of its own", Also: []merlon.Pos{first.Pos}})
		}
	}
	_, ds := route.NewRouter(routes)
	for _, d := range ds {
		r.Add(d)
	}
}

// loader reads files within the bounds, each once.
type loader struct {
	fsys   fs.FS
	report *route.Report
	docs   map[string]loaded // OpenAPI files by name
	files  int
	total  int64
}

// loaded is a file's tree, nil when it has none, and why it could not be read.
type loaded struct {
	root *node
	err  error
}

var (
	errTooLarge   = errors.New("it is too large")
	errTooMany    = fmt.Errorf("the contract refers to more than %d files", maxFiles)
	errNotRegular = errors.New("it is not a regular file")
)

// read returns the bytes of a file of at most limit bytes.
func (l *loader) read(name string, limit int64) ([]byte, error) {
	if l.files++; l.files > maxFiles {
		return nil, errTooMany
	}
	// Opening a named pipe or a device could wait for ever.
	info, err := fs.Stat(l.fsys, name)
	if err != nil {
		return nil, cause(err)
	}
	if !info.Mode().IsRegular() {
		return nil, errNotRegular
	}
	f, err := l.fsys.Open(name)
	if err != nil {
		return nil, cause(err)
	}
	defer f.Close()
	src, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, cause(err)
	}
	l.total += int64(len(src))
	switch {
	case int64(len(src)) > limit:
		return nil, fmt.Errorf("%w: more than %d MiB", errTooLarge, limit>>20)
	case l.total > maxTotal:
		return nil, fmt.Errorf("%w: with all that it refers to, more than %d MiB", errTooLarge, maxTotal>>20)
	}
	return src, nil
}

// cause is the reason in a file system's error, without operation and path.
func cause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// unreadable reports that the contract's own file cannot be read.
func (l *loader) unreadable(name string, err error) {
	hint := "write the path relative to the file that names the contract"
	if errors.Is(err, errTooLarge) {
		hint = "split the contract, or leave out what no caller needs"
	}
	l.report.Errorf(merlon.Pos{File: name}, 0, "E0201", hint, "cannot read contract %q: %v", name, err)
}
