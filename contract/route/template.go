package route

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"merlon"
)

// Bounds of one template.
const (
	MaxTemplate = 2048 // bytes
	maxSegments = 64
	maxSplits   = 8 // parameters in one segment
)

// CodeTemplate is the code of a diagnostic about a template that cannot be read.
const CodeTemplate = "E0210"

// Bounds of one operation.
const (
	MaxParams = 256 // parameters
	MaxName   = 256 // bytes of its name, and of that of a parameter
)

// Template is a path with parameters, cut into segments.
type Template []segment

// segment is what stands between two slashes: literals with parameters between
// them, len(literals) == len(names)+1. A parameter takes one character or more,
// never a slash; rest is one alone that takes this and all further segments.
type segment struct {
	literals []string
	names    []string
	rest     bool
}

// whole reports whether s is one parameter and nothing else.
func (s *segment) whole() bool {
	return len(s.names) == 1 && s.literals[0] == "" && s.literals[1] == ""
}

// concreteness is how many characters of s are given.
func (s *segment) concreteness() (n int) {
	for _, l := range s.literals {
		n += len(l)
	}
	return n
}

// String writes the template in its canonical form.
func (t Template) String() string {
	var b strings.Builder
	for i := range t {
		b.WriteByte('/')
		t[i].write(&b, "")
	}
	return b.String()
}

// Shape is the template without the names of its parameters: two templates of
// one shape match the same paths.
func (t Template) Shape() string {
	var b strings.Builder
	for i := range t {
		b.WriteByte('/')
		t[i].write(&b, "*")
	}
	return b.String()
}

// write writes the segment, with as in place of every name unless as is "".
func (s *segment) write(b *strings.Builder, as string) {
	b.WriteString(s.literals[0])
	for i, name := range s.names {
		if as != "" {
			name = as
		}
		b.WriteString("{" + name)
		if s.rest {
			b.WriteString("...")
		}
		b.WriteString("}" + s.literals[i+1])
	}
}

// Names are the parameters, in the order of the path.
func (t Template) Names() []string {
	var names []string
	for _, s := range t {
		names = append(names, s.names...)
	}
	return names
}

// ParseTemplate reads a path template: OpenAPI's, with parameters that may be
// parts of a segment, and {name...} at the end for one segment or more. It
// brings the literals to canonical form.
func ParseTemplate(s string) (Template, error) {
	switch {
	case !strings.HasPrefix(s, "/"):
		return nil, fmt.Errorf("path %s does not begin with a slash", Quote(s))
	case len(s) > MaxTemplate:
		return nil, fmt.Errorf("path %s is longer than %d bytes", Quote(s), MaxTemplate)
	}
	parts := splitSegments(s[1:])
	if len(parts) > maxSegments {
		return nil, fmt.Errorf("path %s has more than %d segments", Quote(s), maxSegments)
	}
	t := make(Template, len(parts))
	for i, part := range parts {
		last := i == len(parts)-1
		if part == "" && !last {
			return nil, fmt.Errorf("path %s has an empty segment", Quote(s))
		}
		var err error
		if t[i], err = parseSegment(part); err != nil {
			return nil, fmt.Errorf("path %s %w", Quote(s), err)
		}
		if t[i].rest && !last {
			return nil, fmt.Errorf("path %s goes on after %s, which takes all that follows", Quote(s), Quote(part))
		}
	}
	names := t.Names()
	slices.Sort(names)
	for i := 1; i < len(names); i++ {
		if names[i] == names[i-1] {
			return nil, fmt.Errorf("path %s names the parameter %s twice", Quote(s), Quote(names[i]))
		}
	}
	return t, nil
}

// splitSegments splits at slashes, but for those within braces: they belong to
// a parameter's name and are refused with it.
func splitSegments(s string) []string {
	var parts []string
	start, braces := 0, 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '{':
			braces++
		case '}':
			braces--
		case '/':
			if braces <= 0 {
				parts, start = append(parts, s[start:i]), i+1
			}
		}
	}
	return append(parts, s[start:])
}

// parseSegment reads one segment. An error continues the sentence "path X ...".
func parseSegment(s string) (segment, error) {
	var seg segment
	for rest := s; ; {
		open := strings.IndexByte(rest, '{')
		before := rest
		if open >= 0 {
			before = rest[:open]
		}
		literal, err := canonical(before)
		if err != nil {
			return seg, err
		}
		if literal == "" && open >= 0 && len(seg.names) > 0 {
			return seg, fmt.Errorf("has two parameters with nothing between them in %s", Quote(s))
		}
		seg.literals = append(seg.literals, literal)
		if open < 0 {
			break
		}
		name, after, ok := strings.Cut(rest[open+1:], "}")
		if !ok {
			return seg, fmt.Errorf("has no closing brace in %s", Quote(s))
		}
		if name, seg.rest = strings.CutSuffix(name, "..."); seg.rest && s != "{"+name+"...}" {
			return seg, fmt.Errorf("has more than one parameter in %s; one that takes all that follows stands alone", Quote(s))
		}
		if err := checkParamName(name); err != nil {
			return seg, err
		}
		if seg.names = append(seg.names, name); len(seg.names) > maxSplits {
			return seg, fmt.Errorf("has more than %d parameters in %s", maxSplits, Quote(s))
		}
		rest = after
	}
	if len(seg.names) == 0 && (seg.literals[0] == "." || seg.literals[0] == "..") {
		return seg, fmt.Errorf("has the dot segment %s", Quote(s))
	}
	return seg, nil
}

// checkParamName refuses what other dialects write between braces: taken for a
// name, it would match something else than its author meant.
func checkParamName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("has a parameter without a name")
	case len(name) > MaxName:
		return fmt.Errorf("has a parameter whose name is longer than %d bytes", MaxName)
	case strings.ContainsAny(name, "{/*=") || strings.IndexByte("+#.;?&", name[0]) >= 0:
		return fmt.Errorf("has the parameter %s; only a name may stand in braces, or name... at the end", Quote("{"+name+"}"))
	}
	for _, r := range name {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return fmt.Errorf("has a control character in a parameter's name")
		}
	}
	return nil
}

// canonical brings literal text of a path to the form in which package
// gate/canon hands paths on (RFC 3986 6.2.2): characters of a path plain, all
// others percent-encoded with capital digits, and %2B, %2F and %3B left
// encoded. What no canonical path holds is refused.
func canonical(s string) (string, error) {
	const hexDigits = "0123456789ABCDEF"
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c, encoded := s[i], false
		if c == '%' {
			if i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]) {
				return "", fmt.Errorf("has a percent sign that begins no percent-encoding")
			}
			c, encoded = unhex(s[i+1])<<4|unhex(s[i+2]), true
			i += 2
		}
		switch {
		case c < ' ' || c == 0x7f:
			return "", fmt.Errorf("has a control character")
		case c == '\\':
			return "", fmt.Errorf("has a backslash")
		case !encoded && (c == '?' || c == '#'):
			return "", fmt.Errorf("has a %s; a path ends there", Quote(string(c)))
		case !encoded && c == ';':
			return "", fmt.Errorf("has a semicolon, which is refused in requests")
		case !encoded && c == '}':
			return "", fmt.Errorf("has a closing brace without an opening one")
		case isPathCharacter(c) && !(encoded && c == '+'):
			b.WriteByte(c)
		default:
			b.Write([]byte{'%', hexDigits[c>>4], hexDigits[c&15]})
		}
	}
	return b.String(), nil
}

// isPathCharacter reports whether c stands for itself in a segment (RFC 3986
// 3.3: pchar), but for the semicolon.
func isPathCharacter(c byte) bool {
	return isAlphanumeric(c) || strings.IndexByte("-._~!$&'()*+,=:@", c) >= 0
}

func isAlphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func unhex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c&^0x20 - 'A' + 10
}

// methods are what an operation may have (OpenAPI 4.8.9).
var methods = [...]string{"GET", "PUT", "POST", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE"}

// IsMethod reports whether an operation may have the method.
func IsMethod(method string) bool { return slices.Contains(methods[:], method) }

// ParseInline reads an operation written in one line, such as
// "GET /products/{id}" or "GET /products?q&page": names after the question mark
// are query parameters, none of them required. Method "*" is any method. The
// operation has neither Name nor Pos.
func ParseInline(s string) (merlon.Operation, error) {
	method, target, ok := strings.Cut(s, " ")
	if !ok || target == "" {
		return merlon.Operation{}, fmt.Errorf(`%s is no operation; write a method and a path, such as "GET /products/{id}"`, Quote(s))
	}
	if method != "*" && !IsMethod(method) {
		return merlon.Operation{}, fmt.Errorf("%s is no method; expect one of %s or *", Quote(method), strings.Join(methods[:], ", "))
	}
	target, query, asked := strings.Cut(target, "?")
	t, err := ParseTemplate(target)
	if err != nil {
		return merlon.Operation{}, err
	}
	op := merlon.Operation{Method: method, Path: t.String()}
	for _, name := range t.Names() {
		op.Params = append(op.Params, merlon.ParamSpec{Name: name, In: merlon.InPath, Required: true})
	}
	if !asked {
		return op, nil
	}
	for name := range strings.SplitSeq(query, "&") {
		if err := checkQueryName(name, op.Params); err != nil {
			return merlon.Operation{}, fmt.Errorf("query of %s %w", Quote(s), err)
		}
		op.Params = append(op.Params, merlon.ParamSpec{Name: name, In: merlon.InQuery})
	}
	return op, nil
}

// checkQueryName checks a name after the question mark of an inline operation.
// An error continues the sentence "query of X ...".
func checkQueryName(name string, before []merlon.ParamSpec) error {
	switch {
	case name == "":
		return fmt.Errorf("has a parameter without a name")
	case len(name) > MaxName:
		return fmt.Errorf("has a parameter whose name is longer than %d bytes", MaxName)
	case len(before) >= MaxParams:
		return fmt.Errorf("has more than %d parameters", MaxParams)
	case strings.ContainsFunc(name, func(r rune) bool { return r > '~' || r < '!' || strings.ContainsRune("=?#%+{}", r) }):
		return fmt.Errorf("has %s; write names only, such as ?q&page", Quote(name))
	case slices.ContainsFunc(before, func(p merlon.ParamSpec) bool { return p.In == merlon.InQuery && p.Name == name }):
		return fmt.Errorf("names %s twice", Quote(name))
	}
	return nil
}
