package policy

import (
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/interpreter"

	"merlon"
)

// failure is why a condition is not true, for people who may know.
type failure string

// Error is the failure in words.
func (f failure) Error() string { return string(f) }

// Failures of a condition. Where an application might read a request in
// another way than we do, the condition is not met: a guess would be an answer
// that the caller chose.
const (
	failFalse     failure = "it is not true"
	failEval      failure = "it cannot be evaluated for this call"
	failNever     failure = "it did not compile"
	failPath      failure = "a path parameter is missing or malformed"
	failSlash     failure = "a parameter that spans segments holds an encoded slash"
	failMatrix    failure = "a path parameter holds a semicolon, which some applications cut"
	failSemicolon failure = "the query holds a semicolon, which some applications take for &"
	failEncoding  failure = "the query is badly percent-encoded"
	failRepeated  failure = "a query parameter is given twice, or under two spellings"
	failBare      failure = "a query parameter has no ="
	failPlus      failure = "a query parameter holds a plus sign, which some applications take for a space"
	failMissing   failure = "a query parameter is missing"
	failSize      failure = "what it reads is too large"
	failType      failure = "a parameter does not have the type that the contract says"
)

// eval is nil when the condition is true for the call, else why it is not.
// Every parameter that the condition reads is checked first, so that no part
// of the condition can be met by a request that says two things.
func (cond *condition) eval(c *merlon.Call, op *operation) error {
	if cond.program == nil {
		return failNever
	}
	if !cond.bounded(c) {
		return failSize
	}
	vars := activation{call: c, cond: cond}
	var room [8]any
	vars.values = append(room[:0], make([]any, len(cond.params))...)
	if err := vars.bind(op); err != nil {
		return err
	}
	out, _, err := cond.program.Eval(&vars)
	switch {
	case err != nil:
		return failEval
	case out == types.True:
		return nil
	}
	return failFalse
}

// bounded reports whether all that the condition reads is as small as its cost
// was estimated for.
func (cond *condition) bounded(c *merlon.Call) bool {
	if max(len(c.Caller.Name), len(c.Caller.Subject), len(c.Caller.Client), len(c.Method), len(c.Host)) > maxInput {
		return false
	}
	if cond.all {
		values := maxValues
		return boundedValue(c.Caller.Claims, &values, maxDepth)
	}
	for _, name := range cond.claims {
		values := maxValues
		if !boundedValue(c.Caller.Claims[name], &values, maxDepth) {
			return false
		}
	}
	return true
}

// boundedValue counts a claim down, until nothing is left of values or depth.
func boundedValue(v any, values *int, depth int) bool {
	if *values--; *values < 0 || depth < 0 {
		return false
	}
	switch v := v.(type) {
	case string:
		return len(v) <= maxInput
	case []any:
		if len(v) > maxItems {
			return false
		}
		for _, item := range v {
			if !boundedValue(item, values, depth-1) {
				return false
			}
		}
	case map[string]any:
		if len(v) > maxItems {
			return false
		}
		for name, item := range v {
			if len(name) > maxInput || !boundedValue(item, values, depth-1) {
				return false
			}
		}
	case nil, bool, float64, int64, int, uint64:
	default:
		return false // nothing that JSON or YAML gives
	}
	return true
}

// activation gives the values of one call to CEL.
type activation struct {
	call   *merlon.Call
	cond   *condition
	values []any // by cond.params; nil when absent
}

// Parent is nil: there is nothing around a call.
func (*activation) Parent() interpreter.Activation { return nil }

// ResolveName finds a variable of conditions.
func (a *activation) ResolveName(name string) (any, bool) {
	switch name {
	case nounClaims:
		return a.call.Caller.Claims, true
	case "caller.name":
		return a.call.Caller.Name, true
	case "caller.subject":
		return a.call.Caller.Subject, true
	case "caller.client":
		return a.call.Caller.Client, true
	case "method":
		return a.call.Method, true
	case "host":
		return a.call.Host, true
	case "now":
		return time.Unix(0, a.call.Time).UTC(), true
	}
	for i := range a.cond.params {
		switch p := &a.cond.params[i]; name {
		case p.variable:
			return a.values[i], a.values[i] != nil
		case p.presence:
			return a.values[i] != nil, true
		}
	}
	return nil, false
}

// bind decodes what the condition reads.
func (a *activation) bind(op *operation) error {
	for i := range a.cond.params {
		p := &a.cond.params[i]
		if p.In != merlon.InPath {
			continue
		}
		raw, found := "", false
		for _, given := range a.call.Params {
			if given.Name == p.Name {
				raw, found = given.Value, true
				break
			}
		}
		if !found {
			return failPath
		}
		if strings.IndexByte(raw, ';') >= 0 {
			return failMatrix
		}
		if p.rest && (strings.Contains(raw, "%2F") || strings.Contains(raw, "%2f")) {
			return failSlash
		}
		decoded, ok := decode(raw)
		if !ok {
			return failPath
		}
		if a.values[i], ok = typed(decoded, p.Type); !ok {
			return failType
		}
	}
	if a.cond.query {
		return a.bindQuery(op)
	}
	return nil
}

// bindQuery reads the query once. A name that an application might take for a
// parameter that the condition reads counts as that parameter given again.
func (a *activation) bindQuery(op *operation) error {
	query := a.call.Query
	if strings.IndexByte(query, ';') >= 0 {
		return failSemicolon
	}
	for query != "" {
		var piece string
		piece, query, _ = strings.Cut(query, "&")
		if piece == "" {
			continue
		}
		rawName, rawValue, bare := piece, "", true
		if i := strings.IndexByte(piece, '='); i >= 0 {
			rawName, rawValue, bare = piece[:i], piece[i+1:], false
		}
		name, ok := decode(rawName)
		if !ok {
			return failEncoding
		}
		for i := range a.cond.params {
			p := &a.cond.params[i]
			if p.In != merlon.InQuery || !resembles(name, p.Name) {
				continue
			}
			if name != p.Name || rawName != name && strings.IndexByte(rawName, '+') >= 0 || a.values[i] != nil {
				return failRepeated
			}
			if bare {
				return failBare
			}
			if strings.IndexByte(rawValue, '+') >= 0 {
				return failPlus
			}
			value, ok := decode(rawValue)
			if !ok {
				return failEncoding
			}
			if a.values[i], ok = typed(value, p.Type); !ok {
				return failType
			}
		}
	}
	for i := range a.cond.params {
		p := &a.cond.params[i]
		if p.In != merlon.InQuery || a.values[i] != nil {
			continue
		}
		if spec, ok := findParam(op, p.Name, p.In); !ok || spec.Required || p.presence == "" {
			return failMissing
		}
	}
	return nil
}

// resembles reports whether an application could take name for want: in other
// case, as an element of an array (want[], want[0]), or with the characters
// that PHP turns into an underscore.
func resembles(name, want string) bool {
	name = strings.TrimLeft(name, " +")
	if i := strings.IndexByte(name, '['); i > 0 && strings.IndexByte(want, '[') < 0 {
		name = name[:i]
	}
	if len(name) != len(want) {
		return strings.EqualFold(name, want) // folding may change the length
	}
	for i := range len(name) {
		if fold(name[i]) != fold(want[i]) {
			return strings.EqualFold(name, want)
		}
	}
	return true
}

func fold(b byte) byte {
	switch {
	case 'A' <= b && b <= 'Z':
		return b + 'a' - 'A'
	case b == '.' || b == ' ' || b == '+':
		return '_'
	}
	return b
}

// decode undoes percent-encoding, exactly once (RFC 3986 2.1). What is not
// UTF-8 afterwards, or holds a NUL, is refused.
func decode(s string) (string, bool) {
	if len(s) > 3*maxInput {
		return "", false
	}
	if strings.IndexByte(s, '%') < 0 {
		return s, utf8.ValidString(s) && strings.IndexByte(s, 0) < 0
	}
	out := make([]byte, 0, len(s))
	for len(s) > 0 {
		if s[0] != '%' {
			out, s = append(out, s[0]), s[1:]
			continue
		}
		if len(s) < 3 || !isHex(s[1]) || !isHex(s[2]) {
			return "", false
		}
		b := unhex(s[1])<<4 | unhex(s[2])
		if b == 0 {
			return "", false
		}
		out, s = append(out, b), s[3:]
	}
	return string(out), utf8.Valid(out)
}

func isHex(b byte) bool {
	return '0' <= b && b <= '9' || 'a' <= b && b <= 'f' || 'A' <= b && b <= 'F'
}

func unhex(b byte) byte {
	if b <= '9' {
		return b - '0'
	}
	return b | 0x20 - 'a' + 10
}

// typed reads a value as its declared type.
func typed(s string, t merlon.ParamType) (any, bool) {
	switch t {
	case merlon.Integer:
		n, err := strconv.ParseInt(s, 10, 64)
		return n, err == nil && s[0] != '+'
	case merlon.Number:
		if strings.Trim(s, "0123456789.-+eE") != "" {
			return nil, false // neither hexadecimal, nor infinite, nor with underscores
		}
		x, err := strconv.ParseFloat(s, 64)
		return x, err == nil && !math.IsInf(x, 0)
	case merlon.Boolean:
		return s == "true", s == "true" || s == "false"
	}
	return s, len(s) <= maxInput
}
