package policy

import (
	"fmt"
	"strings"

	"merlon"
)

// Call is the call that a test, or a question of the same form, is about. The
// routing is that of the gates: what has no service or operation there has none
// in the call. The time of the call is the beginning of 1970, so that the same
// test always gives the same answer.
func (p *Policy) Call(t *merlon.Test) merlon.Call {
	c := merlon.Call{Service: t.Call.Callee, Operation: t.Call.Operation, Method: t.Method, Host: t.Call.Callee}
	c.Caller = p.caller(t.Call.Caller)
	if c.Caller.Kind == merlon.Login {
		c.Caller.Claims = t.Claims
		c.Caller.Subject, _ = t.Claims["sub"].(string)
	}
	if t.Method == "" {
		return c
	}
	c.Operation = ""
	target := t.Path
	if t.Call.Callee == "" {
		c.Host, target = splitURL(target)
	}
	c.Path, c.Query, _ = strings.Cut(target, "?")
	var r Route
	if t.Call.Callee == "" {
		if c.Caller.Kind == merlon.Workload {
			return c // services do not come in through the gateway
		}
		r = p.RouteEdge(c.Host, c.Method, c.Path, nil)
	} else {
		r = p.RouteService(c.Service, c.Method, c.Path, nil)
	}
	if r.Service != nil {
		c.Service = r.Service.Name
	}
	if r.Operation != nil {
		c.Operation = r.Operation.Name
	}
	c.Params = r.Params
	return c
}

// caller is the proved caller that a name stands for. A name that is unknown
// is taken for a service: it has no rule.
func (p *Policy) caller(name string) merlon.Caller {
	if name == merlon.AnyCaller {
		return merlon.Caller{Kind: merlon.Anyone}
	}
	in := p.Intent()
	if in == nil {
		return merlon.Caller{Kind: merlon.Workload, Name: name}
	}
	if in.Gateway != nil {
		for i := range in.Gateway.Logins {
			if in.Gateway.Logins[i].Name == name {
				return merlon.Caller{Kind: merlon.Login, Name: name}
			}
		}
	}
	if merlon.ForeignDomain(name) != "" {
		return merlon.Caller{Kind: merlon.Workload, Name: name, Subject: "spiffe://" + name}
	}
	return merlon.Caller{Kind: merlon.Workload, Name: name, Subject: in.SPIFFEID(name)}
}

// splitURL cuts https://HOST:PORT/path?query into the host and the rest.
func splitURL(url string) (host, target string) {
	_, rest, _ := strings.Cut(url, "://")
	host, target = rest, "/"
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		host, target = rest[:i], rest[i:]
	}
	if target[0] == '?' {
		target = "/" + target
	}
	if i := strings.LastIndexByte(host, ':'); i >= 0 && strings.IndexByte(host[i:], ']') < 0 {
		host = host[:i]
	}
	return strings.ToLower(strings.TrimSuffix(host, ".")), target
}

// Test runs the tests of the intent and says which do not hold, with what
// decided and what would change it. Shadow mode does not count: a test is about
// what the policy says, and warns where the call passes nevertheless.
func (p *Policy) Test() merlon.Diagnostics {
	var ds merlon.Diagnostics
	in := p.Intent()
	if in == nil {
		return nil
	}
	for i := range in.Tests {
		if len(ds) == maxDiagnostics {
			break
		}
		if d, ok := p.test(&in.Tests[i]); !ok {
			ds = append(ds, d)
		}
	}
	return sortDiagnostics(ds)
}

// test runs one test.
func (p *Policy) test(t *merlon.Test) (merlon.Diagnostic, bool) {
	d := merlon.Diagnostic{Pos: t.Pos}
	if t.Expect != merlon.Allow && t.Expect != merlon.Deny {
		d.Code = "E0503"
		d.Message = fmt.Sprintf("a test cannot expect %q", t.Expect)
		d.Hint = "expect allow or deny"
		return d, false
	}
	if t.Method != "" && !plainPath(t.Path) {
		d.Code = "E0502"
		d.Message = fmt.Sprintf("the path %q of a test is not canonical, and every gate refuses it", t.Path)
		d.Hint = "leave out dot segments, double slashes and backslashes"
		return d, false
	}
	call := p.Call(t)
	e := p.Explain(&call)
	got := e.Verdict.Effect
	if e.Verdict.Shadow {
		got = merlon.Deny
	}
	if !e.Verdict.Pos.IsZero() {
		d.Also = []merlon.Pos{e.Verdict.Pos}
	}
	if got == t.Expect {
		if !e.Verdict.Shadow {
			return d, true
		}
		d.Code, d.Warning = "W0501", true
		d.Message = fmt.Sprintf("%s is denied as expected, but passes in shadow mode", testText(t))
		d.Hint = "set the mode to enforce when the records show no call that should pass"
		return d, false
	}
	d.Code = "E0501"
	d.Message = fmt.Sprintf("expected %v, got %v for %s: %s", t.Expect, got, testText(t), e.Why)
	d.Hint = e.hint()
	if t.Method == "" && e.Verdict.Reason == merlon.ReasonCondition && p.readsParams(&call) {
		d.Hint = "a test that names an operation gives it no parameters; write its method and path, because the condition reads some"
	}
	return d, false
}

// readsParams reports whether the condition that decides c reads parameters.
func (p *Policy) readsParams(c *merlon.Call) bool {
	r := p.index[operationKey{c.Service, c.Operation}].rule(partyOf(&c.Caller))
	return r != nil && r.when != nil && len(r.when.params) > 0
}

// plainPath reports whether a path is one that a gate lets pass unchanged, as
// far as that can be seen without decoding it.
func plainPath(target string) bool {
	if strings.Contains(target, "://") {
		_, target = splitURL(target)
	}
	path, _, _ := strings.Cut(target, "?")
	return strings.HasPrefix(path, "/") && !strings.Contains(path, "//") && !strings.ContainsAny(path, "\\ #") &&
		!strings.Contains(path+"/", "/./") && !strings.Contains(path+"/", "/../")
}

// testText writes the call of a test as people do.
func testText(t *merlon.Test) string {
	text := t.Call.Caller + " ->"
	if t.Call.Callee != "" {
		text += " " + t.Call.Callee
	}
	switch {
	case t.Method != "":
		text += " " + t.Method + " " + t.Path
	case t.Call.Operation != "":
		text += "." + t.Call.Operation
	}
	return `"` + text + `"`
}
