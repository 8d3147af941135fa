package intent

import (
	"fmt"
	"net/url"
	"strings"

	"merlon"
)

const (
	callHint  = "write CALLER -> SERVICE.OPERATION, CALLER -> SERVICE METHOD /path, or CALLER -> METHOD https://HOST/path"
	edgesHint = "write CALLER -> CALLEE or CALLER -> CALLEE.OPERATION; either side may be *, a service or zone:ZONE"
)

// ParseCall reads a call as people write it:
//
//	web -> orders.createOrder
//	web -> orders POST /orders?x=1
//	anyone -> GET https://shop.example/products/7
//
// In the last form Callee is empty and Path is the whole URL. A service that
// speaks TCP has no operations and is called by its name alone. ParseCall knows
// no intent: whether the names are defined is for the caller to say.
func ParseCall(s string) (merlon.Test, error) {
	t, p := parseCall(word{text: s})
	if p != nil {
		return merlon.Test{}, fmt.Errorf("%s; %s", p.message, p.hint)
	}
	return t.Test, nil
}

// call is a merlon.Test and where its parts stand.
type call struct {
	merlon.Test
	caller, callee, operation, path word
}

func parseCall(w word) (call, *problem) {
	fail := func(hint string) (call, *problem) {
		return call{}, &problem{codeCall, fmt.Sprintf("%q is not a call", clip(w.text)), hint}
	}
	if len(w.text) > maxTextBytes {
		return fail(fmt.Sprintf("at most %d bytes", maxTextBytes))
	}
	caller, right, ok := arrow(w)
	if !ok {
		return fail(callHint)
	}
	if p := callerName(caller.text); p != nil {
		return fail("the caller is a service, a login, anyone or a workload such as partner.example/billing; " + callHint)
	}
	c := call{caller: caller}
	c.Call.Caller = caller.text
	parts := fieldsOf(right)
	switch {
	case len(parts) == 1 && !strings.Contains(parts[0].text, "/"):
		callee, operation, dotted := strings.Cut(parts[0].text, ".")
		if label(callee) != nil || dotted && operationName(operation) != nil {
			return fail(callHint)
		}
		c.callee, c.operation = parts[0].part(0, len(callee)), parts[0].part(len(parts[0].text)-len(operation), len(parts[0].text))
		c.Call.Callee, c.Call.Operation = callee, operation
	case len(parts) == 2 && isMethod(parts[0].text) && strings.Contains(parts[1].text, "://"):
		u, err := url.Parse(parts[1].text)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || strings.Contains(parts[1].text, "#") {
			return fail("the URL is https://HOST/path, without user and fragment")
		}
		c.Method, c.Path, c.path = parts[0].text, parts[1].text, parts[1]
	case len(parts) == 3 && label(parts[0].text) == nil && isMethod(parts[1].text):
		if !strings.HasPrefix(parts[2].text, "/") || strings.Contains(parts[2].text, "#") {
			return fail("the path starts with / and has no fragment")
		}
		c.callee, c.Call.Callee, c.Method, c.Path, c.path = parts[0], parts[0].text, parts[1].text, parts[2].text, parts[2]
	case len(parts) >= 2 && isMethod(strings.ToUpper(parts[len(parts)-2].text)) && parts[len(parts)-2].text != strings.ToUpper(parts[len(parts)-2].text):
		return fail("write the method in upper case: " + clip(strings.ToUpper(parts[len(parts)-2].text)))
	default:
		return fail(callHint)
	}
	return c, nil
}

// edges is a merlon.Edges and where its parts stand.
type edges struct {
	merlon.Edges
	caller, callee, operation word
}

// parseEdges reads the set of calls that a guardrail denies.
func parseEdges(w word) (edges, *problem) {
	fail := func() (edges, *problem) {
		return edges{}, &problem{codeCall, fmt.Sprintf("%q is not a set of calls", clip(w.text)), edgesHint}
	}
	caller, right, ok := arrow(w)
	if !ok || len(fieldsOf(right)) != 1 {
		return fail()
	}
	right = fieldsOf(right)[0]
	callee, operation, dotted := strings.Cut(right.text, ".")
	if !isSide(caller.text) || !isSide(callee) || dotted && operationName(operation) != nil {
		return fail()
	}
	return edges{
		Edges:  merlon.Edges{Caller: caller.text, Callee: callee, Operation: operation},
		caller: caller, callee: right.part(0, len(callee)),
		operation: right.part(len(right.text)-len(operation), len(right.text)),
	}, nil
}

// isSide says whether s can be one side of an edge.
func isSide(s string) bool {
	zone, _ := strings.CutPrefix(s, "zone:")
	return s == "*" || label(zone) == nil
}

// arrow splits w at its ->.
func arrow(w word) (left, right word, ok bool) {
	i := strings.Index(w.text, "->")
	if i < 0 {
		return
	}
	l := fieldsOf(w.part(0, i))
	if len(l) != 1 {
		return
	}
	return l[0], w.part(i+2, len(w.text)), true
}

// fieldsOf splits w at spaces.
func fieldsOf(w word) []word {
	var out []word
	start := -1
	for i := 0; i <= len(w.text); i++ {
		space := i == len(w.text) || w.text[i] == ' '
		switch {
		case space && start >= 0:
			out = append(out, w.part(start, i))
			start = -1
		case !space && start < 0:
			start = i
		}
	}
	return out
}

// isMethod says whether s is a method as this system writes them: upper case.
func isMethod(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < 'A' || c > 'Z') && c != '-' {
			return false
		}
	}
	return s != "" && len(s) <= 32
}
