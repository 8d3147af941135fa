package policy

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"merlon"
)

func TestConditions(t *testing.T) {
	t.Parallel()
	noon := time.Date(2026, 3, 2, 12, 30, 0, 0, time.UTC).UnixNano()
	for _, test := range []struct {
		when  string
		call  merlon.Call // Path and Query of getItem, Caller's Claims
		allow bool
	}{
		// Claims.
		{`claims.role == "support"`, claims(`{"role": "support"}`), true},
		{`claims.role == "support"`, claims(`{"role": "guest"}`), false},
		{`claims.role == "support"`, claims(`{}`), false},
		{`claims.role == "support"`, merlon.Call{}, false},
		{`claims.role == "support"`, claims(`{"role": ["support"]}`), false},
		{`claims.role == "support"`, claims(`{"role": {"support": true}}`), false},
		{`claims.role == "support"`, claims(`{"role": null}`), false},
		{`claims.role != "guest"`, claims(`{}`), false}, // absent is not "something else"
		{`!has(claims.role)`, claims(`{}`), true},
		{`has(claims.role) && claims.role == "support"`, claims(`{}`), false},
		{`"admin" in claims.groups`, claims(`{"groups": ["user", "admin"]}`), true},
		{`"admin" in claims.groups`, claims(`{"groups": "admin"}`), false}, // no substring of a string
		{`claims.groups.exists(g, g == "admin")`, claims(`{"groups": ["user"]}`), false},
		{`claims.groups.exists_one(g, g.startsWith("a"))`, claims(`{"groups": ["user", "admin"]}`), true},
		{`claims.groups.all(g, g in ["a", "b"])`, claims(`{"groups": ["a", "c"]}`), false},
		{`claims.level >= 3`, claims(`{"level": 3}`), true},
		{`claims.level >= 3`, claims(`{"level": "4"}`), false},
		{`claims.address.country == "CH"`, claims(`{"address": {"country": "CH"}}`), true},
		{`claims.address.country == "CH"`, claims(`{"address": "CH"}`), false},
		{`claims["https://shop.example/role"] == "x"`, claims(`{"https://shop.example/role": "x"}`), true},
		{`claims.email_verified == true`, claims(`{"email_verified": "true"}`), false},
		{`int(claims.auth_time) > 5`, claims(`{"auth_time": 6}`), true},
		{`1 / claims.n == 1 || true`, claims(`{"n": 0}`), false}, // there is no division; see below
		// The caller, the method, the host and the time.
		{`caller.name == "staff" && caller.subject == "ann" && caller.client == "192.0.2.1"`, merlon.Call{}, true},
		{`caller.name == "Staff"`, merlon.Call{}, false},
		{`method == "GET" && host == "shop.example"`, merlon.Call{}, true},
		{`now.getHours() >= 9 && now.getHours() < 17 && now.getDayOfWeek() in [1, 2, 3, 4, 5]`, merlon.Call{Time: noon}, true},
		{`now.getHours() >= 13`, merlon.Call{Time: noon}, false},
		{`now < timestamp("2026-03-03T00:00:00Z")`, merlon.Call{Time: noon}, true},
		{`now - timestamp(int(claims.auth_time)) < duration("300s")`, withTime(claims(`{"auth_time": 1772454500}`), noon), true},
		{`now - timestamp(int(claims.auth_time)) < duration("300s")`, withTime(claims(`{"auth_time": 1772450000}`), noon), false},
		{`now - timestamp(int(claims.auth_time)) < duration("300s")`, withTime(claims(`{"auth_time": 1e30}`), noon), false},
		// Path parameters, decoded once.
		{`path.id == "7"`, path("7"), true},
		{`path.id == "a/b"`, path("a%2Fb"), true},
		{`path.id == "a%2Fb"`, path("a%252Fb"), true},
		{`path.id == "a/b"`, path("a%252Fb"), false},
		{`path.id == "é"`, path("%C3%A9"), true},
		{`path.id != ""`, path("%FF"), false}, // not UTF-8
		{`path.id != ""`, path("%"), false},
		{`path.id != ""`, path("%4"), false},
		{`path.id != ""`, path("%zz"), false},
		{`path.id != ""`, path("a%00"), false},
		{`path.id != "secret"`, path("secret;v=1"), false}, // an application may cut at the semicolon
		{`path.id != "secret"`, path("secret%3Bv=1"), true},
		{`path.id == "a+b"`, path("a+b"), true},
		// Query parameters, there once and plainly.
		{`query.q == "x"`, query("q=x"), true},
		{`query.q == "x"`, query("a=1&q=x&b"), true},
		{`query.q == "x y"`, query("q=x%20y"), true},
		{`query.q == "x=y"`, query("q=x=y"), true},
		{`query.q == ""`, query("q="), true},
		{`query.q == "x"`, query("%71=x"), true},
		{`query.q == "x"`, query(""), false},
		{`query.q == "x"`, query("q=x&q=x"), false},
		{`query.q == "x"`, query("q=x&q=y"), false},
		{`query.q == "x"`, query("q=y&q=x"), false},
		{`query.q == "x"`, query("q=x&%71=y"), false},
		{`query.q == "x"`, query("q=x&Q=y"), false},
		{`query.q == "x"`, query("q=x&q[]=y"), false},
		{`query.q == "x"`, query("q=x&q[0]=y"), false},
		{`query.q == "x"`, query("q=x&+q=y"), false},
		{`query.q == "x"`, query("q=x&%20q=y"), false},
		{`query.q == "x"`, query("q=x;q=y"), false},
		{`query.q == "x"`, query("a=1;q=y&q=x"), false},
		{`query.q != "y"`, query("q"), false},
		{`query.q != "y"`, query("q=%zz"), false},
		{`query.q != "y"`, query("q=x&a%zz=1"), false},
		{`query.q != "y"`, query("q=a+b"), false},
		{`query.q != "y"`, query("q=a%2Bb"), true},
		{`query.q == "x" || true`, query(""), false}, // what is read must be there
		{`has(query.q)`, query("q=x"), true},
		{`has(query.q)`, query(""), false},
		{`!has(query.q)`, query("a=1"), true},
		{`!has(query.q)`, query("q=x&q=y"), false}, // given twice is not absent
		{`!has(query.q)`, query("Q=x"), false},
		{`!has(query.q) || query.q == "x"`, query(""), true},
		{`!has(query.q) || query.q == "x"`, query("q=y"), false},
		{`has(query.must)`, query("must=1"), true},
		{`!has(query.must)`, query("q=x"), false}, // the contract requires it
		{"query.`page-size` == 10", query("page-size=10"), true},
		{"query.`page-size` == 10", query("page_size=10"), false},
		{"query.`page-size` < 100", query("page-size=1e1"), false},
		{"query.`page-size` < 100", query("page-size=99999999999999999999"), false},
		{"query.`page-size` < 100", query("page-size=0x1"), false},
		{"query.`page-size` < 100", query("page-size=%2B1"), false},
		{"query.`page-size` < 100", query("page-size="), false},
		{`query.ratio < 0.5`, query("ratio=1e-3"), true},
		{`query.ratio < 0.5`, query("ratio=-Inf"), false},
		{`query.ratio < 0.5`, query("ratio=nan"), false},
		{`query.ratio < 0.5`, query("ratio=0x1p-3"), false},
		{`query.deep`, query("deep=true"), true},
		{`query.deep`, query("deep=True"), false},
		{`!query.deep`, query("deep=0"), false},
		// PHP makes these two one.
		{`query.user_id == "7"`, query("user_id=7&user.id=8"), false},
	} {
		d := newDraft(t).gateway("shop.example", "staff")
		s := d.service("shop", "getItem GET /items/{id}?q&must&page-size&ratio&deep&user_id")
		for i, typ := range map[string]merlon.ParamType{"page-size": merlon.Integer, "ratio": merlon.Number, "deep": merlon.Boolean} {
			for j := range s.Operations[0].Params {
				if p := &s.Operations[0].Params[j]; p.Name == i {
					p.Type = typ
				} else if p.Name == "must" {
					p.Required = true
				}
			}
		}
		d.rule("shop", "staff: getItem", test.when)
		p, ds := Compile(d.in)
		if ds.Failed() {
			if test.allow || ds[0].Code != "E0310" {
				t.Errorf("%s: %s", test.when, render(ds))
			}
			continue
		}
		c := test.call
		c.Caller = login("staff", c.Caller.Claims)
		c.Service, c.Operation, c.Method, c.Host = "shop", "getItem", "GET", "shop.example"
		if c.Params == nil {
			c.Params = []merlon.Param{{Name: "id", Value: "7"}}
		}
		if v := p.Decide(&c); (v.Effect == merlon.Allow) != test.allow {
			t.Errorf("%s: %v %s for %v %q %v", test.when, v.Effect, p.Explain(&c).Why, c.Params, c.Query, c.Caller.Claims)
		}
	}
}

func claims(text string) merlon.Call {
	var c merlon.Call
	if err := json.Unmarshal([]byte(text), &c.Caller.Claims); err != nil {
		panic(err)
	}
	return c
}

func withTime(c merlon.Call, now int64) merlon.Call { c.Time = now; return c }

func path(id string) merlon.Call {
	return merlon.Call{Params: []merlon.Param{{Name: "id", Value: id}}}
}

func query(q string) merlon.Call { return merlon.Call{Query: q} }

// TestConditionRest: a parameter that spans segments must not blur where they
// end.
func TestConditionRest(t *testing.T) {
	t.Parallel()
	d := newDraft(t)
	d.service("web", "home GET /")
	d.service("files", "get GET /{rest...}")
	d.rule("files", "web: get", `path.rest.startsWith("public/")`)
	p := d.compile()
	for rest, allow := range map[string]bool{"public/x": true, "private/x": false, "public%2Fx": false, "public/..%2fprivate": false, "public%2fx": false} {
		v := p.Decide(&merlon.Call{Caller: workload("web"), Service: "files", Operation: "get", Params: []merlon.Param{{Name: "rest", Value: rest}}})
		if (v.Effect == merlon.Allow) != allow {
			t.Errorf("%s: %v", rest, v)
		}
	}
	if v := p.Decide(&merlon.Call{Caller: workload("web"), Service: "files", Operation: "get"}); v.Effect != merlon.Deny {
		t.Errorf("without the parameter: %v", v)
	}
}

// TestConditionBounds: what is larger than the cost was estimated for is
// refused before it costs anything.
func TestConditionBounds(t *testing.T) {
	t.Parallel()
	d := newDraft(t).gateway("shop.example", "staff")
	d.service("shop", "get GET /")
	d.rule("shop", "staff: get", `claims.list.exists(x, x == "needle")`)
	p := d.compile()
	list := make([]any, 200_000)
	for i := range list {
		list[i] = "hay"
	}
	list[len(list)-1] = "needle"
	call := &merlon.Call{Caller: login("staff", map[string]any{"list": list}), Service: "shop", Operation: "get"}
	if v := p.Decide(call); v.Effect != merlon.Deny || v.Reason != merlon.ReasonCondition {
		t.Errorf("a huge list: %+v", v)
	}
	call.Caller.Claims = map[string]any{"list": list[len(list)-100:]}
	if v := p.Decide(call); v.Effect != merlon.Allow {
		t.Errorf("a small list: %+v", v)
	}
	deep := any("needle")
	for range 100 {
		deep = []any{deep}
	}
	for name, value := range map[string]any{
		"deep": deep, "long": []any{strings.Repeat("x", maxInput+1)}, "wide": map[string]any{"a": list},
		"foreign": []any{struct{}{}}, "many": []any{list[:maxItems], list[:maxItems], list[:maxItems], list[:maxItems], "needle"},
	} {
		call.Caller.Claims = map[string]any{"list": value}
		if v := p.Decide(call); v.Effect != merlon.Deny || p.Explain(call).Advice == "" {
			t.Errorf("%s: %+v", name, v)
		}
	}
	call.Caller.Claims = map[string]any{"list": []any{"needle"}, "other": deep} // not read
	if v := p.Decide(call); v.Effect != merlon.Allow {
		t.Errorf("a claim that is not read: %+v", v)
	}
	call.Caller.Subject = strings.Repeat("x", maxInput+1)
	if v := p.Decide(call); v.Effect != merlon.Deny {
		t.Errorf("a huge subject: %+v", v)
	}
}

// TestConditionsAreShared: one text is compiled once, however often it is
// written.
func TestConditionsAreShared(t *testing.T) {
	t.Parallel()
	d := newDraft(t).gateway("shop.example", "staff", "partners")
	d.service("shop", "get GET /{id}", "put PUT /{id}")
	d.rule("shop", "staff: get put", `path.id == "7"`)
	d.rule("shop", "partners: get", `path.id == "7"`)
	p := d.compile()
	op := p.services["shop"].operations["get"]
	if op.rules[0].rule.when != op.rules[1].rule.when {
		t.Error("the same condition was compiled twice")
	}
}
