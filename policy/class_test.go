package policy

import (
	"strings"
	"testing"

	"merlon"
)

// The classes of mistakes that have bitten gateways, as far as they live in
// policy. Each table grows.

// TestClass04PublicRuleNotMatchedByQuery: a public operation is public by its
// method and path alone. A query or fragment that looks like its path opens
// nothing, and neither gives a value to a path parameter.
func TestClass04PublicRuleNotMatchedByQuery(t *testing.T) {
	t.Parallel()
	d := newDraft(t).gateway("shop.example", "staff")
	d.service("web", "health GET /health", "page GET /public/{rest...}", "admin GET /admin/{rest...}", "user GET /users/{id}")
	d.rule("web", "anyone: health page", "")
	d.rule("web", "staff: admin", "")
	d.rule("web", "staff: user", `path.id == "7"`)
	p := d.compile()
	for _, target := range []string{
		"/admin/x?/health", "/admin/x?path=/health", "/admin/x#/health", "/admin/x?/public/", "/admin/x%3F/health", "/admin/x;/health",
		"/admin/health", "/admin/public/x", "/health/", "/health/../admin/x", "/HEALTH", "//health", "/health%2F", "/health%00", "/health ", "health",
		"/public", "/public/", "*", "", "?/health", "#/health", "/admin/x?x=/health#/health", "https://shop.example/health",
	} {
		path, query, _ := strings.Cut(target, "?")
		for _, path := range []string{path, target} { // the second as if somebody forgot to cut
			r := p.RouteEdge("shop.example", "GET", path, nil)
			if r.Operation == nil {
				continue
			}
			v := p.Decide(&merlon.Call{Caller: anyone(), Service: r.Service.Name, Operation: r.Operation.Name, Method: "GET", Path: path, Query: query, Params: r.Params})
			if v.Effect != merlon.Deny {
				t.Errorf("%q is allowed by %v", target, v)
			}
		}
	}
	call := merlon.Call{Caller: login("staff", nil), Service: "web", Operation: "user", Path: "/users/8", Query: "id=7", Params: []merlon.Param{{Name: "id", Value: "8"}}}
	if v := p.Decide(&call); v.Effect != merlon.Deny {
		t.Errorf("the query is taken for the path: %v", v)
	}
	call.Params = nil
	if v := p.Decide(&call); v.Effect != merlon.Deny {
		t.Errorf("the query stands in for the path: %v", v)
	}
}

// TestClass06BrokenConfigFailsClosed: whatever is wrong with an intent, its
// policy denies everything, also what it would have allowed without the fault.
func TestClass06BrokenConfigFailsClosed(t *testing.T) {
	t.Parallel()
	for name, wreck := range map[string]func(d *draft){
		"a caller that is nobody":    func(d *draft) { d.rule("web", "nobody: home", "") },
		"an operation that is not":   func(d *draft) { d.rule("web", "orders: nothing", "") },
		"a condition without end":    func(d *draft) { d.rule("web", "orders: home", "(") },
		"a condition about nothing":  func(d *draft) { d.rule("web", "orders: home", "foo") },
		"two deciding rules":         func(d *draft) { d.rule("web", "anyone: home", "") },
		"a guardrail without callee": func(d *draft) { d.guardrail("g", "* -> nothing") },
		"a guardrail without caller": func(d *draft) { d.guardrail("g", "nobody -> web") },
		"routes that collide":        func(d *draft) { d.service("twin", "home GET /"); d.rule("twin", "anyone: all", "") },
		"a path that cannot be read": func(d *draft) {
			d.in.Services[0].Operations = append(d.in.Services[0].Operations, merlon.Operation{Name: "z", Method: "GET", Path: "no"})
		},
		"two services of one name":     func(d *draft) { d.in.Services = append(d.in.Services, d.in.Services[0]) },
		"a service without a name":     func(d *draft) { d.in.Services[0].Name = "" },
		"a service called anyone":      func(d *draft) { d.service("anyone", "x GET /x") },
		"an operation without a name":  func(d *draft) { d.in.Service("web").Operations[0].Name = "" },
		"a gateway that went away":     func(d *draft) { d.in.Gateway = nil },
		"a login that went away":       func(d *draft) { d.in.Gateway.Logins = nil },
		"a host that is not served":    func(d *draft) { d.in.Service("web").Hosts = []string{"other.example"} },
		"shadow mode does not save it": func(d *draft) { d.in.Mode = merlon.Shadow; d.rule("web", "nobody: home", "") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := shop(t)
			wreck(d)
			p, ds := Compile(d.in)
			if !ds.Failed() {
				t.Fatal("nothing is wrong with it")
			}
			for _, c := range []merlon.Call{
				{Caller: anyone(), Service: "web", Operation: "home"},
				{Caller: workload("web"), Service: "orders", Operation: "createOrder"},
			} {
				if v := p.Decide(&c); v.Effect != merlon.Deny || v.Shadow {
					t.Errorf("%+v is %+v", c, v)
				}
			}
			if r := p.RouteEdge("shop.example", "GET", "/", nil); r.Operation != nil {
				t.Errorf("the gateway still routes: %+v", r)
			}
		})
	}
	// A rule whose condition did not compile must not become one without.
	never := &condition{text: "x"}
	if never.eval(&merlon.Call{}, nil) == nil {
		t.Error("a condition that did not compile is true")
	}
	// An effect, kind or mode that does not exist allows nothing.
	d := shop(t)
	d.in.Service("orders").Mode = 7
	if v := d.compile().Decide(&merlon.Call{Caller: workload("payments"), Service: "orders", Operation: "createOrder"}); v.Effect != merlon.Deny {
		t.Errorf("an unknown mode lets pass: %+v", v)
	}
}

// TestClass08RoutesOfTwoOwnersCollide: no service can take a path of another at
// the gateway, neither by the same template nor by a more concrete one.
func TestClass08RoutesOfTwoOwnersCollide(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		a, b    string
		hostA   string
		hostB   string
		example string // "" for none
	}{
		{"GET /x", "GET /x", "", "", "a.example/x"},
		{"GET /x/{id}", "GET /x/{name}", "", "", "a.example/x/x"},
		{"GET /x/{id}", "GET /x/admin", "", "", "a.example/x/admin"},
		{"GET /x/{id}", "POST /x/admin", "", "", "a.example/x/admin"}, // the more concrete path would hide the other's method
		{"GET /{rest...}", "GET /x", "", "", "a.example/x"},
		{"GET /x/{rest...}", "GET /x/y/z", "", "", "a.example/x/y/z"},
		{"GET /{a}/y", "GET /x/{b}", "", "", "a.example/x/y"},
		{"GET /x-{id}", "GET /{id}", "", "", "a.example/x-x"},
		{"* /x", "GET /x", "", "", "a.example/x"},
		{"GET /x", "GET /x", "a.example", "a.example b.example", "a.example/x"},
		{"GET /x", "POST /x", "", "", ""},
		{"GET /x/{id}", "POST /x/{name}", "", "", ""},
		{"GET /x", "GET /y", "", "", ""},
		{"GET /x", "GET /x/", "", "", ""},
		{"GET /x", "GET /X", "", "", ""},
		{"GET /{rest...}", "GET /", "", "", ""},
		{"GET /x", "GET /x", "a.example", "b.example", ""},
	} {
		d := newDraft(t).gateway("a.example b.example")
		d.service("first", "one "+test.a).Hosts = strings.Fields(test.hostA)
		d.service("second", "two "+test.b).Hosts = strings.Fields(test.hostB)
		d.rule("first", "anyone: all", "")
		d.rule("second", "anyone: all", "")
		p, ds := Compile(d.in)
		if test.example == "" {
			if ds.Failed() {
				t.Errorf("%s and %s: %s", test.a, test.b, render(ds))
			}
			continue
		}
		if p != nil || len(ds) == 0 || ds[0].Code != "E0306" || !strings.Contains(ds[0].Message, test.example+" ") {
			t.Errorf("%s and %s: %s, want an example %s", test.a, test.b, render(ds), test.example)
			continue
		}
		one, two := d.in.Services[0].Operations[0].Pos, d.in.Services[1].Operations[0].Pos
		if ds[0].Pos != two || ds[0].Also[0] != one {
			t.Errorf("%s and %s: at %v and %v, want %v and %v", test.a, test.b, ds[0].Pos, ds[0].Also, two, one)
		}
	}
	// Inside, every service has its paths for itself.
	d := newDraft(t)
	d.service("first", "one GET /x")
	d.service("second", "two GET /x")
	d.rule("first", "second: all", "")
	d.rule("second", "first: all", "")
	d.compile()
}

// TestClass12PatternCharactersInIdentities: names are compared byte by byte.
// What means something in a pattern means itself here.
func TestClass12PatternCharactersInIdentities(t *testing.T) {
	t.Parallel()
	d := newDraft(t).gateway("shop.example", "st.ff")
	d.service("web.front", "x GET /w")
	d.service("target", "op GET /t", "guarded GET /g")
	d.rule("target", "web.front: op guarded", "")
	d.rule("target", "st.ff: op guarded", "")
	d.rule("target", "target: op guarded", "")
	d.guardrail("g", "st.ff -> target.guarded")
	p := d.compile()
	for _, name := range []string{"web.front", "webXfront", "web-front", "web.fron", "web.front2", "xweb.front", "Web.front", "WEB.FRONT", "web.*", ".*", "*",
		"web.front ", " web.front", "web.front\x00", "web%2Efront", "web.front/", "web\uff0efront", "st.ff", "staff", "anyone", "gateway", "zone:", "^target$", "target|x"} {
		for _, kind := range []merlon.CallerKind{merlon.Workload, merlon.Login} {
			v := p.Decide(&merlon.Call{Caller: merlon.Caller{Kind: kind, Name: name}, Service: "target", Operation: "op"})
			want := kind == merlon.Workload && name == "web.front" || kind == merlon.Login && name == "st.ff"
			if (v.Effect == merlon.Allow) != want {
				t.Errorf("%v %q: %+v", kind, name, v)
			}
			v = p.Decide(&merlon.Call{Caller: merlon.Caller{Kind: kind, Name: name}, Service: "target", Operation: "guarded"})
			if (v.Reason == merlon.ReasonGuardrail) != (kind == merlon.Login && name == "st.ff") {
				t.Errorf("guardrail for %v %q: %+v", kind, name, v)
			}
		}
	}
	for _, service := range []string{"targe.", "t*", "Target", "target.", "target/op"} {
		if v := p.Decide(&merlon.Call{Caller: workload("web.front"), Service: service, Operation: "op"}); v.Reason != merlon.ReasonNoService {
			t.Errorf("service %q: %+v", service, v)
		}
	}
	for _, host := range []string{"shopXexample", "Shop.example", "shop.example.", "shop.example:443", "*", ""} {
		if r := p.RouteEdge(host, "GET", "/t", nil); r.Reason != merlon.ReasonNoService {
			t.Errorf("host %q: %+v", host, r)
		}
	}
}
