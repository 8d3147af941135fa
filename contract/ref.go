package contract

import (
	"io/fs"
	"net/url"
	"path"
	"strconv"
	"strings"

	"merlon/contract/route"
)

// follow returns what n refers to, through any number of references, or n
// itself when it is no reference. It returns nil when that cannot be had.
func (o *openAPI) follow(n *node) *node {
	for range maxChain {
		ref := n.get("$ref")
		if ref == nil {
			return n
		}
		if n = o.resolve(ref); n == nil {
			return nil
		}
	}
	ref := n.get("$ref")
	if ref == nil {
		return n
	}
	o.report.Errorf(ref.pos(), ref.width(), "E0209", "", "reference %s leads through more than %d others, or to itself", route.Quote(ref.text), maxChain)
	return nil
}

// resolve returns what a reference names: a value in this file or in another
// one of the same fs.FS. Anything else is refused, and nothing is ever fetched:
// a contract must not make its reader call servers of a stranger's choice.
func (o *openAPI) resolve(ref *node) *node {
	if !o.expect(ref, text, "$ref") {
		return nil
	}
	key := ref.doc.file + "\x00" + ref.text
	target, ok := o.targets[key]
	if !ok {
		target = o.lookUp(ref)
		o.targets[key] = target
	}
	return target
}

func (o *openAPI) lookUp(ref *node) *node {
	fail := func(code, hint, why string) *node {
		o.report.Errorf(ref.pos(), ref.width(), code, hint, "reference %s %s", route.Quote(ref.text), why)
		return nil
	}
	const local = "refer to a value in this file (#/components/...) or to a file beside it"
	file, fragment, _ := strings.Cut(ref.text, "#")
	name := ref.doc.file
	if file != "" {
		u, err := url.Parse(file)
		if err != nil {
			return fail("E0207", local, "is no URI reference")
		}
		if u.Scheme != "" || u.Host != "" || u.RawQuery != "" {
			return fail("E0207", local, "is not to a local file; contracts are never fetched")
		}
		// The decoded path is what will be opened: %2e%2e must not hide in it.
		name = path.Join(path.Dir(ref.doc.file), u.Path)
		if strings.HasPrefix(u.Path, "/") || strings.ContainsAny(u.Path, "\\\x00:") || !fs.ValidPath(name) {
			return fail("E0207", local, "leads out of the directory of the intent")
		}
	}
	root, err := o.tree(name)
	if err != nil {
		return fail("E0208", "", "cannot be read: "+err.Error())
	}
	if root == nil {
		return nil // the file itself has its diagnostics
	}
	pointer, err := url.PathUnescape(fragment)
	if err != nil {
		return fail("E0207", local, "is no URI reference")
	}
	if pointer != "" && pointer[0] != '/' {
		return fail("E0207", "refer by a path such as #/components/schemas/Pet", "is to an anchor; only JSON pointers are followed")
	}
	target := root.point(pointer)
	if target == nil {
		return fail("E0208", "", "leads to nothing")
	}
	return target
}

// point follows a JSON pointer (RFC 6901), or returns nil.
func (n *node) point(pointer string) *node {
	unescape := strings.NewReplacer("~1", "/", "~0", "~")
	if pointer == "" {
		return n
	}
	for step := range strings.SplitSeq(pointer[1:], "/") {
		if n == nil {
			return nil
		}
		if n.kind == array {
			i, err := strconv.Atoi(step)
			if err != nil || i < 0 || i >= len(n.items) || strconv.Itoa(i) != step {
				return nil
			}
			n = n.items[i]
			continue
		}
		n = n.get(unescape.Replace(step))
	}
	return n
}
