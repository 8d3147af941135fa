package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"merlon"
	"merlon/gate"
	"merlon/policy"
)

// try is a command that shows one thing the system does, and what it must
// answer: the tests hold every try to it.
type try struct {
	About   string `json:"about"`
	Command string `json:"command"` // for a shell
	// Status and Reason are of the gate's refusal. Both are empty when the call
	// is allowed: what the app then answers is its own.
	Status int           `json:"status,omitzero"`
	Reason merlon.Reason `json:"reason,omitzero"`
	Exit   int           `json:"exit,omitzero"`  // of a command of merlon
	Stays  bool          `json:"stays,omitzero"` // goes on until it is interrupted
	Asks   bool          `json:"asks,omitzero"`  // REQUEST-ID in Command is for the reader to fill in
}

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

// wayOut is where a service's calls go into its gate.
type wayOut struct {
	address string
	open    bool // to every process of the host
	walled  bool // in a network namespace of its own
}

func outbound(gates map[merlon.Place]*running) map[string]wayOut {
	out := map[string]wayOut{}
	for place, g := range gates {
		if g.out != "" {
			out[place.Service] = wayOut{g.out, g.local.open(), g.ns != nil}
		}
	}
	return out
}

// tries are commands for the intent at hand: calls that are allowed, and calls
// that are denied for one reason each.
func tries(in *merlon.Intent, dir, state string, out map[string]wayOut) []try {
	t := trier{in: in, dir: dir, state: state, out: out}
	p, ds := policy.Compile(in)
	if ds.Failed() {
		return nil
	}
	t.policy, t.edges = p, slices.Collect(p.Edges())
	if in.Gateway != nil {
		t.outside()
	}
	t.inside()
	t.questions()
	return t.list
}

type trier struct {
	in         *merlon.Intent
	dir, state string
	out        map[string]wayOut
	policy     *policy.Policy
	edges      []policy.Edge
	list       []try
}

func (t *trier) add(about, format string, args ...any) *try {
	t.list = append(t.list, try{About: about, Command: fmt.Sprintf(format, args...)})
	return &t.list[len(t.list)-1]
}

func (t *try) refused(status int, reason merlon.Reason) {
	t.Status, t.Reason = status, reason
	t.About += fmt.Sprintf(": %d %s", status, reason)
}

// curl is the beginning of a call to the gateway.
func (t *trier) curl() string {
	words := []string{"curl -i"}
	if t.in.Gateway.Certificate.Kind == merlon.CertificateSelfSigned {
		words = append(words, "--cacert "+quote(relative(filepath.Join(t.state, edgeCertName))))
	}
	host := first(t.in.Gateway.Hosts)
	listen, port, err := net.SplitHostPort(t.in.Gateway.Listen)
	if err == nil && host != "localhost" {
		if ip := net.ParseIP(listen); listen == "" || ip != nil && ip.IsUnspecified() {
			listen = "127.0.0.1"
		}
		words = append(words, fmt.Sprintf("--resolve %s:%s:%s", host, port, listen))
	}
	return strings.Join(words, " ")
}

// outside shows calls through the gateway.
func (t *trier) outside() {
	curl, url := t.curl(), gatewayURL(t.in)
	open := t.find(func(e *policy.Edge) bool { return e.Kind == merlon.Anyone && t.allowed(e) })
	if open != nil {
		op := t.operation(open)
		path := examplePath(op.Path)
		t.add("a call that anyone may make: answered by "+open.Service+ownAnswer(op), "%s%s %s%s", curl, method(op), url, path)
		t.add("the same with forged identity: the headers are removed before the app sees them", "%s%s -H 'Merlon-Caller: admin' -H 'X-Forwarded-For: 10.0.0.1' %s%s", curl, method(op), url, path)
		if len(t.in.Gateway.Logins) > 0 {
			t.add("the same with an invalid token, which is no way down to anyone", "%s%s -H 'Authorization: Bearer nonsense' %s%s", curl, method(op), url, path).
				refused(401, merlon.ReasonInvalidToken)
		}
		t.add("a path that two programs could read differently", "%s --path-as-is '%s%s/%%2e%%2e/admin'", curl, url, strings.TrimSuffix(path, "/")).
			refused(400, "path_dot_segment")
		t.add("two lengths in one request, as smugglers send", "%s --http1.1 -X POST -H 'Content-Length: 5' -H 'Transfer-Encoding: chunked' -d hello %s%s", curl, url, path).
			refused(400, "length_and_transfer_encoding")
	}
	t.add("an operation that no contract has", "%s %s/no/such/thing", curl, url).refused(404, merlon.ReasonNoOperation)
	if login := t.find(func(e *policy.Edge) bool { return e.Kind == merlon.Login && !t.open(e) }); login != nil {
		op := t.operation(login)
		t.add("an operation for "+login.Caller+" only, without a token", "%s%s %s%s", curl, method(op), url, examplePath(op.Path)).
			refused(401, merlon.ReasonNoRule)
	}
	t.guarded(curl, url)
	if open != nil {
		t.tooMany(open, curl, url)
	}
}

// guarded shows a call that its owner's rule allows and a guardrail denies.
func (t *trier) guarded(curl, url string) {
	for i := range t.in.Services {
		svc := &t.in.Services[i]
		for j := range svc.Rules {
			r := &svc.Rules[j]
			if r.Caller != merlon.AnyCaller || !curls(svc) {
				continue
			}
			for _, name := range r.Operations {
				op := svc.Operation(name)
				e := policy.Edge{Kind: merlon.Anyone, Service: svc.Name, Operation: name}
				if !t.atHost(&e) {
					continue
				}
				if v := t.policy.Decide(t.call(&e, op)); v.Reason == merlon.ReasonGuardrail && v.Effect == merlon.Deny {
					t.add(fmt.Sprintf("%s.%s, which its owner opened to anyone and a guardrail closes", svc.Name, name), "%s%s %s%s", curl, method(op), url, examplePath(op.Path)).
						refused(403, merlon.ReasonGuardrail)
					return
				}
			}
		}
	}
}

// tooMany shows a limit, when a person with curl can reach it.
func (t *trier) tooMany(e *policy.Edge, curl, url string) {
	l := e.Rule.Limit
	if l == nil || l.Burst > 200 || float64(l.Count)/l.Window.Seconds() > 60 {
		return
	}
	op := t.operation(e)
	a := t.add(fmt.Sprintf("too many of them, after a burst of %d", l.Burst), "%s%s -s -o /dev/null -w '%%{http_code}\\n' '%s%s?n=[1-%d]' | sort | uniq -c",
		strings.Replace(curl, " -i", "", 1), method(op), url, examplePath(op.Path), 3*l.Burst)
	a.About += ": 429 " + string(merlon.ReasonRateLimited)
	a.Status = 429
}

// inside shows calls between services, through the caller's gate.
func (t *trier) inside() {
	allowed := t.find(func(e *policy.Edge) bool {
		return e.Kind == merlon.Workload && !t.in.Service(e.Service).External && t.out[e.Caller].address != "" && t.allowed(e)
	})
	if allowed == nil {
		return
	}
	through := func(service string, op *merlon.Operation) string {
		return fmt.Sprintf("%s exec %s %s -- curl -i%s http://%s%s", self(), allowed.Caller, quote(relative(t.dir)), method(op), service, examplePath(op.Path))
	}
	op := t.operation(allowed)
	t.add(fmt.Sprintf("%s calls %s through its gate, as it may%s", allowed.Caller, allowed.Service, ownAnswer(op)), "%s", through(allowed.Service, op))
	app := first(t.in.Service(allowed.Service).Addresses)
	switch out := t.out[allowed.Caller]; {
	case t.out[allowed.Service].walled && onLoopback(app):
		t.add("a program that calls "+allowed.Service+" past its gate: nobody is there", "curl -sS --noproxy '*' http://%s 2>&1", app).Exit = 7
	case !out.open && !out.walled:
		t.add(fmt.Sprintf("a program that is not %s's calls there through its gate", allowed.Caller), "curl -i -x http://%s%s http://%s%s",
			out.address, method(op), allowed.Service, examplePath(op.Path)).refused(403, gate.ReasonNotOwn)
	}
	for i := range t.in.Services {
		svc := &t.in.Services[i]
		for j := range svc.Operations {
			e := policy.Edge{Kind: merlon.Workload, Caller: allowed.Caller, Service: svc.Name, Operation: svc.Operations[j].Name}
			if svc.Name == allowed.Caller || svc.External || !curls(svc) || t.policy.Decide(t.call(&e, &svc.Operations[j])).Effect != merlon.Deny {
				continue
			}
			status, reason := t.refusal(&e, &svc.Operations[j])
			t.add(fmt.Sprintf("%s calls %s.%s, which it may not and knows nothing of", e.Caller, e.Service, e.Operation), "%s", through(svc.Name, &svc.Operations[j])).
				refused(status, reason)
			t.add("why that is, and what would change it", "%s can '%s -> %s.%s' %s", self(), e.Caller, e.Service, e.Operation, quote(relative(t.dir))).
				Exit = exitDenied
			return
		}
	}
}

// refusal is what the caller's own gate answers, which has only the part of
// the intent that concerns it.
func (t *trier) refusal(e *policy.Edge, op *merlon.Operation) (int, merlon.Reason) {
	part := policy.Scope(t.in, merlon.Place{Service: e.Caller})
	p, ds := policy.Compile(&part)
	if ds.Failed() {
		return 403, merlon.ReasonNoRule
	}
	route := p.RouteService(e.Service, op.Method, examplePath(op.Path), nil)
	if route.Reason != "" {
		return 404, route.Reason
	}
	return 403, p.Decide(t.call(e, op)).Reason
}

// questions are commands of merlon itself.
func (t *trier) questions() {
	dir, merlon := quote(relative(t.dir)), self()
	t.add("every denial, as it happens", "%s record tail -f --denied %s", merlon, dir).Stays = true
	t.add("a past call, by the Merlon-Request-Id of its answer", "%s why REQUEST-ID %s", merlon, dir).Asks = true
	t.add("which gate enforces which rule, since when", "%s status %s", merlon, dir)
}

// find finds an edge for an example: GET without parameters first, for it
// needs no body and no known id.
func (t *trier) find(ok func(*policy.Edge) bool) *policy.Edge {
	better := func(e *policy.Edge) bool {
		op := t.operation(e)
		return op.Method == "GET" && !strings.Contains(op.Path, "{")
	}
	for _, want := range []func(*policy.Edge) bool{better, func(*policy.Edge) bool { return true }} {
		for i := range t.edges {
			if e := &t.edges[i]; t.operation(e) != nil && curls(t.in.Service(e.Service)) && t.atHost(e) && want(e) && ok(e) {
				return e
			}
		}
	}
	return nil
}

// curls reports whether a service can be called by curl: messages of gRPC are
// hard to write in a command.
func curls(s *merlon.Service) bool { return s.Protocol == merlon.HTTP || s.Protocol == merlon.HTTP2 }

// call is the example call of an edge.
func (t *trier) call(e *policy.Edge, op *merlon.Operation) *merlon.Call {
	c := &merlon.Call{
		Caller:  merlon.Caller{Kind: e.Kind, Name: e.Caller},
		Service: e.Service, Operation: op.Name, Method: op.Method, Host: e.Service, Path: examplePath(op.Path), Time: time.Now().UnixNano(),
	}
	if e.Kind == merlon.Anyone {
		c.Caller.Name, c.Host = "", first(t.in.Gateway.Hosts)
	}
	c.Params = t.policy.RouteService(e.Service, c.Method, c.Path, nil).Params
	return c
}

// allowed reports whether the example call of an edge passes, and is meant to.
func (t *trier) allowed(e *policy.Edge) bool {
	v := t.policy.Decide(t.call(e, t.operation(e)))
	return v.Effect == merlon.Allow && !v.Shadow
}

// atHost reports whether a call from outside is answered at the gateway's first
// host, which the examples use.
func (t *trier) atHost(e *policy.Edge) bool {
	if e.Kind == merlon.Workload {
		return true
	}
	hosts := t.in.Service(e.Service).Hosts
	return len(hosts) == 0 || slices.Contains(hosts, first(t.in.Gateway.Hosts))
}

// open reports whether an operation is anyone's too.
func (t *trier) open(e *policy.Edge) bool {
	for i := range t.in.Service(e.Service).Rules {
		r := &t.in.Service(e.Service).Rules[i]
		if r.Caller == merlon.AnyCaller && slices.Contains(r.Operations, e.Operation) {
			return true
		}
	}
	return false
}

func (t *trier) operation(e *policy.Edge) *merlon.Operation {
	return t.in.Service(e.Service).Operation(e.Operation)
}

// ownAnswer warns of a made-up id.
func ownAnswer(op *merlon.Operation) string {
	if strings.Contains(op.Path, "{") {
		return ", though the app may not know the example's id"
	}
	return ""
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

// self is how a person types this program's name.
func self() string {
	exe, err := os.Executable()
	if err != nil {
		return "merlon"
	}
	if found, err := exec.LookPath("merlon"); err == nil {
		if a, err := filepath.EvalSymlinks(found); err == nil {
			if b, err := filepath.EvalSymlinks(exe); err == nil && a == b {
				return "merlon"
			}
		}
	}
	if _, err := os.Stat("cmd/merlon/main.go"); err == nil && strings.Contains(exe, "go-build") {
		return "go run ./cmd/merlon" // whose program is gone after it
	}
	return quote(exe)
}

// quote makes a word that a shell takes as it is.
func quote(word string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:@%+,=", r)
	}
	if word != "" && strings.IndexFunc(word, func(r rune) bool { return !plain(r) }) < 0 {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
