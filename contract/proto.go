package contract

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"sync"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/ast"
	"github.com/bufbuild/protocompile/linker"
	"github.com/bufbuild/protocompile/reporter"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"merlon"
	"merlon/contract/route"
)

// method is one rpc, before it has its name.
type method struct {
	service protoreflect.FullName
	name    protoreflect.Name
	streams bool // either side sends any number of messages
	pos     merlon.Pos
}

// grpcContract makes operations of rpcs. One that shares its name with an rpc
// of another service is named with its service.
func grpcContract(r *route.Report, methods []method) *Contract {
	services := map[protoreflect.Name]map[protoreflect.FullName]bool{}
	for _, m := range methods {
		if services[m.name] == nil {
			services[m.name] = map[protoreflect.FullName]bool{}
		}
		services[m.name][m.service] = true
	}
	c := &Contract{Protocol: merlon.GRPC}
	for i, m := range methods {
		if i == maxOperations {
			r.Errorf(m.pos, 0, "E0214", "split the contract", "the contract has more than %d operations", maxOperations)
			break
		}
		op := merlon.Operation{
			Name:    string(m.name),
			Method:  "POST",
			Path:    fmt.Sprintf("/%s/%s", m.service, m.name),
			Pos:     m.pos,
			Streams: m.streams,
		}
		if len(services[m.name]) > 1 {
			op.Name = string(m.service.Name()) + "." + op.Name
		}
		c.Operations = append(c.Operations, op)
	}
	return c
}

// loadProto compiles a .proto file. Its imports are looked for in its own
// directory, then in each above it up to the root of the fs.FS, as nobody says
// which of them is the import path; the well-known types are built in.
func loadProto(l *loader, name string) *Contract {
	main := path.Base(name)
	s := &protoSource{loader: l, main: main, files: map[string]string{main: name}}
	for dir := path.Dir(name); ; dir = path.Dir(dir) {
		s.roots = append(s.roots, dir)
		if dir == "." || dir == "/" {
			break
		}
	}
	var err error
	if s.source, err = l.read(name, maxProto); err == nil {
		err = checkNesting(s.source)
	}
	if err != nil {
		l.unreadable(name, err)
		return nil
	}
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(protocompile.ResolverFunc(s.find)),
		MaxParallelism: 1,
		Reporter:       reporter.NewReporter(s.failed, nil),
		RetainASTs:     true,
	}
	files, err := compiler.Compile(context.Background(), main)
	if err != nil && !l.report.Failed() {
		var at reporter.ErrorWithPos
		if errors.As(err, &at) {
			s.failed(at)
		} else {
			l.report.Errorf(merlon.Pos{File: name}, 0, "E0202", "", "invalid protobuf: %s", oneLine(err))
		}
	}
	if err != nil || len(files) != 1 {
		return nil
	}
	var methods []method
	services := files[0].Services()
	for i := range services.Len() {
		service := services.Get(i)
		for j := range service.Methods().Len() {
			m := service.Methods().Get(j)
			methods = append(methods, method{service.FullName(), m.Name(), m.IsStreamingClient() || m.IsStreamingServer(), s.rpcPos(files[0], m)})
		}
	}
	return grpcContract(l.report, methods)
}

// protoSource finds .proto files for the compiler, which asks from goroutines
// of its own.
type protoSource struct {
	*loader
	roots  []string // where imports are looked for, in order
	main   string   // the contract, as an import in its own directory would name it
	source []byte   // of main

	mu    sync.Mutex
	files map[string]string // name in fsys, by name in an import
}

// find opens the file that an import names.
func (s *protoSource) find(name string) (protocompile.SearchResult, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name == s.main {
		return protocompile.SearchResult{Source: source{bytes.NewReader(s.source)}}, nil
	}
	// An import never climbs: its directories are below an import path.
	if !fs.ValidPath(name) || strings.ContainsAny(name, "\\:") {
		return protocompile.SearchResult{}, fmt.Errorf("%w: an import is a relative path below an import path", fs.ErrNotExist)
	}
	for _, root := range s.roots {
		full := path.Join(root, name)
		if _, err := fs.Stat(s.fsys, full); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		src, err := s.read(full, maxProto)
		if err == nil {
			err = checkNesting(src)
		}
		if err != nil {
			return protocompile.SearchResult{}, err
		}
		s.files[name] = full
		return protocompile.SearchResult{Source: source{bytes.NewReader(src)}}, nil
	}
	return protocompile.SearchResult{}, fs.ErrNotExist
}

// source lets the compiler close what is already in memory.
type source struct{ io.Reader }

func (source) Close() error { return nil }

// failed takes an error of the compiler. It returns nil, to see more of them.
func (s *protoSource) failed(err reporter.ErrorWithPos) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	pos := s.pos(err.GetPosition())
	hint := ""
	if errors.Is(err, fs.ErrNotExist) {
		hint = "imports are looked for in the directory of the contract and those above it"
	}
	s.report.Errorf(pos, 1, "E0202", hint, "invalid protobuf: %s", oneLine(err.Unwrap()))
	return nil
}

// pos is a place of the compiler as a place in fsys.
func (s *protoSource) pos(at ast.SourcePos) merlon.Pos {
	file := s.files[at.Filename]
	if file == "" {
		file = at.Filename
	}
	return merlon.Pos{File: file, Line: at.Line, Column: at.Col}
}

// rpcPos is where the name of an rpc is written.
func (s *protoSource) rpcPos(file linker.File, m protoreflect.MethodDescriptor) merlon.Pos {
	result, ok := file.(linker.Result)
	if !ok {
		return merlon.Pos{File: s.files[file.Path()]}
	}
	service := result.FileDescriptorProto().GetService()[m.Parent().Index()]
	node := result.MethodNode(service.GetMethod()[m.Index()])
	return s.pos(result.FileNode().NodeInfo(node.GetName()).Start())
}

// oneLine is an error's message without line breaks: some quote the source.
func oneLine(err error) string {
	return strings.Join(strings.Fields(err.Error()), " ")
}

// checkNesting refuses deep nesting before the compiler sees it: the compiler
// recurses, and a stack that overflows cannot be recovered from.
func checkNesting(src []byte) error {
	depth := 0
	for i := 0; i < len(src); i++ {
		switch src[i] {
		case '{', '[', '<', '(':
			if depth++; depth > maxDepth {
				return fmt.Errorf("it is nested deeper than %d levels", maxDepth)
			}
		case '}', ']', '>', ')':
			depth = max(0, depth-1)
		case '"', '\'':
			i = endOfString(src, i)
		case '/':
			i = endOfComment(src, i)
		}
	}
	return nil
}

// endOfString is the index of the quote that closes the one at i.
func endOfString(src []byte, i int) int {
	for j := i + 1; j < len(src); j++ {
		switch src[j] {
		case '\\':
			j++
		case '\n': // not closed: the compiler will say so
			return j
		case src[i]:
			return j
		}
	}
	return len(src)
}

// endOfComment is the index of the last character of a comment at i, or i.
func endOfComment(src []byte, i int) int {
	end, skip := "", 0
	switch {
	case bytes.HasPrefix(src[i:], []byte("//")):
		end, skip = "\n", 2
	case bytes.HasPrefix(src[i:], []byte("/*")):
		end, skip = "*/", 2
	default:
		return i
	}
	n := bytes.Index(src[i+skip:], []byte(end))
	if n < 0 {
		return len(src)
	}
	return i + skip + n + len(end) - 1
}

// loadDescriptorSet reads a FileDescriptorSet, as protoc --descriptor_set_out
// writes it. All services in it are offered. Positions name the set alone: the
// sources are elsewhere.
func loadDescriptorSet(l *loader, name string) *Contract {
	src, err := l.read(name, maxFile)
	if err != nil {
		l.unreadable(name, err)
		return nil
	}
	pos := merlon.Pos{File: name}
	const hint = "write it with: protoc --descriptor_set_out=FILE or buf build -o FILE"
	var set descriptorpb.FileDescriptorSet
	if err := (proto.UnmarshalOptions{RecursionLimit: maxDepth}).Unmarshal(src, &set); err != nil {
		l.report.Errorf(pos, 0, "E0202", hint, "invalid descriptor set %s", route.Quote(name))
		return nil
	}
	var methods []method
	for _, file := range set.GetFile() {
		for _, s := range file.GetService() {
			service := protoreflect.FullName(s.GetName())
			if pkg := file.GetPackage(); pkg != "" {
				service = protoreflect.FullName(pkg + "." + s.GetName())
			}
			for _, m := range s.GetMethod() {
				rpc := protoreflect.Name(m.GetName())
				if !service.IsValid() || !rpc.IsValid() || len(service)+len(rpc) > route.MaxName {
					l.report.Errorf(pos, 0, "E0202", hint, "invalid descriptor set %s: %s is no name of an rpc",
						route.Quote(name), route.Quote(fmt.Sprintf("%s/%s", service, rpc)))
					continue
				}
				methods = append(methods, method{service, rpc, m.GetClientStreaming() || m.GetServerStreaming(), pos})
			}
		}
	}
	return grpcContract(l.report, methods)
}
