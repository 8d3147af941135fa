package contract

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"merlon"
	"merlon/contract/route"
)

// openAPI reads one OpenAPI description.
type openAPI struct {
	*loader
	operations []merlon.Operation
	work       int                         // keys and items seen, as often as they are used
	full       bool                        // maxOperations is reached and said
	params     map[*node]*merlon.ParamSpec // read already; nil for one that is none of ours
	types      map[*node]merlon.ParamType  // of schemas read already
	bases      map[*node]string            // of lists of servers read already
	targets    map[string]*node            // of references resolved already, by file and reference
	paths      map[string]pathKey          // by shape, for templates that differ in names only
}

// pathKey is where a path stands.
type pathKey struct {
	path string
	pos  merlon.Pos
}

// place is what an operation inherits from around it.
type place struct {
	path   string // as the document has it
	base   string // path of the server
	params []merlon.ParamSpec
	depth  int // of references from path item to path item
}

// loadOpenAPI reads the description in a file.
func loadOpenAPI(l *loader, name string) *Contract {
	root, err := l.tree(name)
	if err != nil {
		l.unreadable(name, err)
	}
	if root == nil {
		return nil
	}
	o := &openAPI{loader: l,
		params: map[*node]*merlon.ParamSpec{}, types: map[*node]merlon.ParamType{}, bases: map[*node]string{},
		targets: map[string]*node{}, paths: map[string]pathKey{}}
	if !o.version(root) {
		return nil
	}
	top := place{base: o.base(root.get("servers"), "")}
	if paths := root.get("paths"); paths != nil && o.expect(paths, object, "paths") {
		for i := range paths.fields {
			o.path(paths, &paths.fields[i], top)
		}
	}
	return &Contract{Protocol: merlon.HTTP, Operations: o.operations}
}

// version reports whether the document is OpenAPI 3.0 or 3.1.
func (o *openAPI) version(root *node) bool {
	const hint = "the first line of an OpenAPI file is such as: openapi: 3.1.0"
	if root.kind != object {
		o.report.Errorf(root.pos(), 1, "E0205", hint, "the contract is %v, not an OpenAPI document", root.kind)
		return false
	}
	if v := root.get("swagger"); v != nil {
		o.report.Errorf(v.pos(), v.width(), "E0205", "convert it to OpenAPI 3, for example with swagger2openapi",
			"the contract is Swagger %s; only OpenAPI 3.0 and 3.1 are read", route.Quote(v.text))
		return false
	}
	v := root.get("openapi")
	if v == nil {
		o.report.Errorf(root.pos(), 1, "E0205", hint, "the contract does not say its OpenAPI version")
		return false
	}
	if v.text == "3.0" || v.text == "3.1" || strings.HasPrefix(v.text, "3.0.") || strings.HasPrefix(v.text, "3.1.") {
		return true
	}
	o.report.Errorf(v.pos(), v.width(), "E0205", hint, "OpenAPI version %s is not read; only 3.0 and 3.1 are", route.Quote(v.text))
	return false
}

// expect reports whether n is of a kind, or says that what should be.
func (o *openAPI) expect(n *node, k kind, what string) bool {
	if n.kind == k {
		return true
	}
	o.report.Errorf(n.pos(), n.width(), "E0206", "", "%s must be %v, not %v", what, k, n.kind)
	return false
}

// path reads one path and the operations on it.
func (o *openAPI) path(paths *node, f *field, at place) {
	if strings.HasPrefix(f.name, "x-") {
		return
	}
	pos := f.pos(paths)
	t, err := route.ParseTemplate(f.name)
	if err != nil {
		hint := ""
		if strings.Contains(f.name, "?") {
			hint = "declare what follows the question mark as query parameters"
		}
		o.report.Errorf(pos, f.width(), route.CodeTemplate, hint, "%v", err)
		return
	}
	// "Templated paths with the same hierarchy but different templated names
	// MUST NOT exist as they are identical" (OpenAPI 3.1 4.8.8). Real contracts
	// have them, with different methods; then they do no harm.
	shape := t.Shape()
	if first, ok := o.paths[shape]; ok {
		o.report.Add(merlon.Diagnostic{Pos: pos, Width: f.width(), Code: "W0207", Warning: true,
			Message: fmt.Sprintf("paths %s and %s are the same path", route.Quote(first.path), route.Quote(f.name)),
			Hint:    "write the operations of one path in one place", Also: []merlon.Pos{first.pos}})
	} else {
		o.paths[shape] = pathKey{f.name, pos}
	}
	at.path = f.name
	o.item(f.value, at)
}

// itemFields are the keys of a path item that are no methods.
var itemFields = [...]string{"$ref", "summary", "description", "servers", "parameters"}

// item reads a path item.
func (o *openAPI) item(n *node, at place) {
	if !o.expect(n, object, "a path item") || !o.spend(n, len(n.fields)) {
		return
	}
	at.base = o.base(n.get("servers"), at.base)
	at.params = o.parameters(n.get("parameters"), at.params)
	if ref := n.get("$ref"); ref != nil {
		if at.depth++; at.depth > maxChain {
			o.report.Errorf(ref.pos(), ref.width(), "E0209", "", "reference %s leads through more than %d others, or to itself", route.Quote(ref.text), maxChain)
			return
		}
		if target := o.resolve(ref); target != nil {
			o.item(target, at)
		}
	}
	for i := range n.fields {
		f := &n.fields[i]
		if strings.HasPrefix(f.name, "x-") || slices.Contains(itemFields[:], f.name) {
			continue
		}
		method := strings.ToUpper(f.name)
		hint := "methods are get, put, post, delete, options, head, patch and trace"
		if route.IsMethod(method) {
			lower := strings.ToLower(f.name)
			if f.name == lower {
				o.operation(n, f, method, at)
				continue
			}
			hint = "write " + lower
		}
		o.report.Warnf(f.pos(n), f.width(), "W0202", hint, "key %s of a path is not a method: it offers nothing", route.Quote(f.name))
	}
}

// operation reads the operation with a method.
func (o *openAPI) operation(item *node, f *field, method string, at place) {
	n := f.value
	if !o.expect(n, object, "an operation") || o.full {
		return
	}
	op := merlon.Operation{Method: method, Pos: f.pos(item), Name: derivedName(f.name, at.path)}
	if len(o.operations) == maxOperations {
		o.full = true
		o.report.Errorf(op.Pos, f.width(), "E0214", "split the contract", "the contract has more than %d operations", maxOperations)
		return
	}
	if id := n.get("operationId"); id != nil && o.expect(id, text, "operationId") && o.checkName(id, "operationId") {
		op.Name, op.Pos = id.text, id.pos()
	}
	base := o.base(n.get("servers"), at.base)
	t, err := route.ParseTemplate(base + at.path)
	if err != nil {
		o.report.Errorf(op.Pos, 0, route.CodeTemplate, "", "with the path of its server, %v", err)
		return
	}
	op.Path = t.String()
	declared := o.parameters(n.get("parameters"), at.params)
	if len(declared) > route.MaxParams {
		o.report.Errorf(op.Pos, 0, "E0214", "", "operation %s has more than %d parameters", route.Quote(op.Name), route.MaxParams)
		return
	}
	op.Params = o.match(&op, t, declared)
	o.operations = append(o.operations, op)
}

// spend counts work. References share what they refer to, so little text can
// mean much work; this is the bound on it.
func (o *openAPI) spend(at *node, work int) bool {
	if o.work += work; o.work <= maxWork {
		return true
	}
	o.report.Errorf(at.pos(), 1, "E0204", "write contracts with fewer references", "the contract's references make it too large")
	return false
}

// checkName refuses names that could not be written in an intent, or that would
// garble a terminal.
func (o *openAPI) checkName(n *node, what string) bool {
	switch {
	case n.text == "":
		o.report.Errorf(n.pos(), 1, "E0206", "", "%s is empty", what)
	case len(n.text) > route.MaxName:
		o.report.Errorf(n.pos(), n.width(), "E0206", "", "%s %s is longer than %d bytes", what, route.Quote(n.text), route.MaxName)
	case strings.ContainsFunc(n.text, func(r rune) bool { return r < ' ' || 0x7f <= r && r < 0xa0 }):
		o.report.Errorf(n.pos(), n.width(), "E0206", "", "%s %s has a control character", what, route.Quote(n.text))
	default:
		return true
	}
	return false
}

// derivedName names an operation without an operationId; see the package
// comment for the rule.
func derivedName(method, path string) string {
	var b strings.Builder
	b.WriteString(method)
	for _, r := range path {
		switch {
		case r == '{' || r == '}':
		case r == '-' || r < utf8.RuneSelf && (r >= '0' && r <= '9' || r|0x20 >= 'a' && r|0x20 <= 'z'):
			b.WriteRune(r)
		default:
			b.WriteByte('_')
		}
	}
	return b.String()
}

// match puts declared parameters in the order of the operation: those of the
// path as the template has them, then those of the query as declared.
func (o *openAPI) match(op *merlon.Operation, t route.Template, declared []merlon.ParamSpec) []merlon.ParamSpec {
	names := t.Names()
	params := make([]merlon.ParamSpec, 0, len(declared))
	for _, name := range names {
		i := slices.IndexFunc(declared, func(p merlon.ParamSpec) bool { return p.In == merlon.InPath && p.Name == name })
		if i >= 0 {
			params = append(params, declared[i])
			continue
		}
		o.report.Warnf(op.Pos, 0, "W0204", fmt.Sprintf("declare it: {name: %s, in: path, required: true, schema: {type: string}}", name),
			"operation %s does not declare the parameter %s of its path: it is taken for a string", route.Quote(op.Name), route.Quote(name))
		params = append(params, merlon.ParamSpec{Name: name, In: merlon.InPath, Required: true})
	}
	for _, p := range declared {
		switch {
		case p.In == merlon.InQuery:
			params = append(params, p)
		case !slices.Contains(names, p.Name):
			o.report.Warnf(op.Pos, 0, "W0204", "correct its name, or leave it out",
				"operation %s declares the path parameter %s, which its path %s does not have", route.Quote(op.Name), route.Quote(p.Name), route.Quote(op.Path))
		}
	}
	if len(params) == 0 {
		return nil
	}
	return params
}

// base is the path of the first server, or inherited when there is none.
func (o *openAPI) base(servers *node, inherited string) string {
	if servers == nil || servers.kind == array && len(servers.items) == 0 {
		return inherited
	}
	if base, ok := o.bases[servers]; ok {
		return base
	}
	o.bases[servers] = ""
	if !o.expect(servers, array, "servers") {
		return ""
	}
	var first string
	for i, server := range servers.items {
		if !o.expect(server, object, "a server") {
			continue
		}
		base, ok := o.serverPath(server)
		switch {
		case !ok:
		case i == 0:
			first = base
		case base != first:
			o.report.Warnf(server.pos(), 1, "W0203", "only the first server counts; give all servers one path, or write a contract for each",
				"the path of server %s is %s, not %s as that of the first", route.Quote(server.get("url").text), route.Quote(base+"/"), route.Quote(first+"/"))
		}
	}
	o.bases[servers] = first
	return first
}

// serverPath is the path of a server's URL, without a slash at its end.
// Variables take their defaults.
func (o *openAPI) serverPath(server *node) (string, bool) {
	n := server.get("url")
	if n == nil {
		o.report.Errorf(server.pos(), 1, "E0217", "", "a server has no url")
		return "", false
	}
	if !o.expect(n, text, "url") {
		return "", false
	}
	fail := func(why string) (string, bool) {
		o.report.Errorf(n.pos(), n.width(), "E0217", "write such as https://api.example/v1, or only a path", "server url %s %s", route.Quote(n.text), why)
		return "", false
	}
	if len(n.text) > route.MaxTemplate {
		return fail("is too long")
	}
	var b strings.Builder
	for rest := n.text; ; {
		before, after, found := strings.Cut(rest, "{")
		b.WriteString(before)
		if !found {
			break
		}
		name, after, found := strings.Cut(after, "}")
		if !found {
			return fail("has no closing brace")
		}
		value := server.get("variables").get(name).get("default")
		if value == nil || len(value.text) > route.MaxTemplate {
			return fail("uses the variable " + route.Quote(name) + ", which has no default")
		}
		b.WriteString(value.text)
		rest = after
	}
	u, err := url.Parse(b.String())
	if err != nil || u.Opaque != "" {
		return fail("is no URL")
	}
	if u.RawQuery != "" || u.Fragment != "" || u.ForceQuery {
		return fail("has a query or a fragment")
	}
	// A relative URL is relative to where the contract is served, which nobody
	// knows here: its root is taken.
	base := strings.TrimRight((&url.URL{Path: "/"}).ResolveReference(u).EscapedPath(), "/")
	if base == "" {
		return "", true
	}
	if t, err := route.ParseTemplate(base); err != nil || len(t.Names()) > 0 {
		return fail("has a path that no request has")
	}
	return base, true
}
