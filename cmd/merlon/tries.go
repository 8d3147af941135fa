package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"merlon"
	"merlon/policy"
)

// try is a command that shows one thing the system does.
type try struct{ about, command string }

// gatewayURL is where clients reach the gateway of an intent.
func gatewayURL(in *merlon.Intent) string {
	scheme, usual := "https", "443"
	if in.Gateway.Certificate.Kind == merlon.CertificateNone {
		scheme, usual = "http", "80"
	}
	host := first(in.Gateway.Hosts)
	_, port, err := net.SplitHostPort(in.Gateway.Listen)
	if err != nil || port == usual {
		return scheme + "://" + host
	}
	return scheme + "://" + host + ":" + port
}

// tries are commands for the intent at hand: calls that are allowed, and calls
// that are denied for one reason each.
func (s *system) tries(in *merlon.Intent) []try {
	t := trier{s: s, in: in}
	if p, ds := policy.Compile(in); !ds.Failed() {
		t.edges = slices.Collect(p.Edges())
	}
	if in.Gateway != nil {
		t.outside()
	}
	t.inside()
	t.questions()
	return t.list
}

type trier struct {
	s     *system
	in    *merlon.Intent
	edges []policy.Edge
	list  []try
}

func (t *trier) add(about, format string, args ...any) {
	t.list = append(t.list, try{about, fmt.Sprintf(format, args...)})
}

// curl is the beginning of a call to the gateway.
func (t *trier) curl() string {
	words := []string{"curl -i"}
	if t.in.Gateway.Certificate.Kind == merlon.CertificateSelfSigned {
		words = append(words, "--cacert "+relative(filepath.Join(t.s.state, edgeCertName)))
	}
	host := first(t.in.Gateway.Hosts)
	listen, port, err := net.SplitHostPort(t.in.Gateway.Listen)
	if err == nil && host != "localhost" {
		if listen == "" {
			listen = "127.0.0.1"
		}
		words = append(words, fmt.Sprintf("--resolve %s:%s:%s", host, port, listen))
	}
	return strings.Join(words, " ")
}

// outside shows calls through the gateway.
func (t *trier) outside() {
	curl, url := t.curl(), gatewayURL(t.in)
	open := t.find(func(e policy.Edge) bool { return e.Kind == merlon.Anyone && e.Rule.When == "" })
	if open != nil {
		op := t.operation(open)
		path := examplePath(op.Path)
		t.add("a call that anyone may make: answered by "+open.Service, "%s%s %s%s", curl, method(op), url, path)
		if len(t.in.Gateway.Logins) > 0 {
			t.add("the same with an invalid token: 401 invalid_token, there is no way down to anyone", "%s%s -H 'Authorization: Bearer nonsense' %s%s", curl, method(op), url, path)
		}
		t.add("the same with forged identity: the headers are removed before the app sees them", "%s%s -H 'Merlon-Caller: admin' -H 'X-Forwarded-For: 10.0.0.1' %s%s", curl, method(op), url, path)
		t.add("a path that two programs could read differently: 400", "%s --path-as-is '%s%s/%%2e%%2e/admin'", curl, url, strings.TrimSuffix(path, "/"))
		t.add("two lengths in one request, as smugglers send: 400", "%s -X POST -H 'Content-Length: 5' -H 'Transfer-Encoding: chunked' -d hello %s%s", curl, url, path)
		if l := open.Rule.Limit; l != nil {
			t.add(fmt.Sprintf("too many of them: 429 after a burst of %d", l.Burst), "%s%s -s -o /dev/null -w '%%{http_code}\\n' '%s%s?n=[1-%d]' | sort | uniq -c",
				strings.Replace(curl, " -i", "", 1), method(op), url, path, 3*l.Burst)
		}
	}
	login := t.find(func(e policy.Edge) bool { return e.Kind == merlon.Login })
	if login != nil {
		op := t.operation(login)
		t.add("an operation for "+login.Caller+" only, without a token: 401 no_rule", "%s%s %s%s", curl, method(op), url, examplePath(op.Path))
	}
	t.add("an operation that no contract has: 404 no_operation", "%s %s/no/such/thing", curl, url)
}

// inside shows calls between services, through the caller's gate.
func (t *trier) inside() {
	allowed := t.find(func(e policy.Edge) bool {
		return e.Kind == merlon.Workload && e.Rule.When == "" && !t.in.Service(e.Service).External && t.operation(&e).Method == "GET"
	})
	if allowed == nil {
		allowed = t.find(func(e policy.Edge) bool { return e.Kind == merlon.Workload && !t.in.Service(e.Service).External })
	}
	if allowed == nil {
		return
	}
	out := func(caller string) string { return t.s.gates[merlon.Place{Service: caller}].out }
	op := t.operation(allowed)
	t.add(fmt.Sprintf("%s calls %s through its gate, as it may", allowed.Caller, allowed.Service), "curl -i -x http://%s%s http://%s%s",
		out(allowed.Caller), method(op), allowed.Service, examplePath(op.Path))
	for i := range t.in.Services {
		svc := &t.in.Services[i]
		for j := range svc.Operations {
			op := &svc.Operations[j]
			may := slices.ContainsFunc(t.edges, func(e policy.Edge) bool {
				return e.Caller == allowed.Caller && e.Service == svc.Name && e.Operation == op.Name
			})
			if !may && svc.Name != allowed.Caller && !svc.External {
				t.add(fmt.Sprintf("%s calls %s.%s, which it may not: denied", allowed.Caller, svc.Name, op.Name), "curl -i -x http://%s%s http://%s%s",
					out(allowed.Caller), method(op), svc.Name, examplePath(op.Path))
				t.add("why that is, and what would change it", "merlon can '%s -> %s.%s' %s", allowed.Caller, svc.Name, op.Name, relative(t.s.dir))
				return
			}
		}
	}
}

// questions are commands of merlon itself.
func (t *trier) questions() {
	dir := relative(t.s.dir)
	t.add("every denial, as it happens", "merlon record tail -f --denied %s", dir)
	t.add("a past call, by the Merlon-Request-Id of its answer", "merlon why REQUEST-ID %s", dir)
	t.add("which gate enforces which rule, since when", "merlon status %s", dir)
}

func (t *trier) find(ok func(policy.Edge) bool) *policy.Edge {
	// GET without parameters first: it needs no body and no known id.
	better := func(e policy.Edge) bool {
		op := t.operation(&e)
		return op != nil && op.Method == "GET" && !strings.Contains(op.Path, "{")
	}
	for _, want := range []func(policy.Edge) bool{better, func(policy.Edge) bool { return true }} {
		for i := range t.edges {
			if e := t.edges[i]; t.operation(&e) != nil && want(e) && ok(e) {
				return &e
			}
		}
	}
	return nil
}

func (t *trier) operation(e *policy.Edge) *merlon.Operation {
	return t.in.Service(e.Service).Operation(e.Operation)
}

func method(op *merlon.Operation) string {
	switch op.Method {
	case "GET", "*":
		return ""
	case "HEAD":
		return " -I"
	}
	return " -X " + op.Method
}

// examplePath is a path that a template matches.
func examplePath(template string) string {
	var b strings.Builder
	for {
		before, rest, ok := strings.Cut(template, "{")
		b.WriteString(before)
		if !ok {
			return b.String()
		}
		_, after, _ := strings.Cut(rest, "}")
		b.WriteString("1")
		template = after
	}
}

// relative is a path as a person in this directory would type it.
func relative(path string) string {
	wd, err := os.Getwd()
	if err != nil {
		return path
	}
	if rel, err := filepath.Rel(wd, path); err == nil && !strings.HasPrefix(rel, "..") {
		return rel
	}
	return path
}
