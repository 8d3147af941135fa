package intent

import (
	"bytes"
	"strings"
	"testing"

	"merlon"
	"merlon/contract/route"
)

func TestParseCall(t *testing.T) {
	t.Parallel()
	edges := func(caller, callee, operation string) merlon.Edges {
		return merlon.Edges{Caller: caller, Callee: callee, Operation: operation}
	}
	for s, want := range map[string]merlon.Test{
		"web -> orders.createOrder":              {Call: edges("web", "orders", "createOrder")},
		"web->payments.shop.Payments.Charge":     {Call: edges("web", "payments", "shop.Payments.Charge")},
		"  web  ->  orders   POST   /orders?x=1": {Call: edges("web", "orders", ""), Method: "POST", Path: "/orders?x=1"},
		"web -> ledger":                          {Call: edges("web", "ledger", "")},
		"anyone -> GET https://shop.example/x":   {Call: edges("anyone", "", ""), Method: "GET", Path: "https://shop.example/x"},
		"staff -> M-SEARCH http://[::1]:80/":     {Call: edges("staff", "", ""), Method: "M-SEARCH", Path: "http://[::1]:80/"},
	} {
		got, err := ParseCall(s)
		if err != nil || got.Call != want.Call || got.Method != want.Method || got.Path != want.Path || got.Expect != merlon.Deny {
			t.Errorf("%q: %+v, %v", s, got, err)
		}
	}
	for _, s := range []string{
		"", "web", "web ->", "-> orders.x", "web -> orders.", "web -> .x", "web -> orders x", "web orders -> cart.x", "web -> orders get /x",
		"web -> orders GET x", "web -> orders GET /x#y", "web -> GET /x", "web -> orders GET /x y", "anyone -> GET https://u@h/", "anyone -> GET ftp://h/",
		"anyone -> GET https:///x", "anyone -> GET https://h/#x", "web\t-> orders.x", "* -> orders.x", "web -> zone:pci", "web -> orders.x.", "web -> orders.9",
		strings.Repeat("a", maxTextBytes+1), "web -> orders.createOrder\n", "web -> orders.\x1b[31m",
	} {
		got, err := ParseCall(s)
		if s == "web -> orders.x." { // a dot is part of a name, and may end it
			continue
		}
		if err == nil {
			t.Errorf("%q is taken for %+v", s, got)
		} else if hiddenIn(err.Error()) {
			t.Errorf("%q: the error commands a terminal: %q", s, err)
		}
	}
}

func hiddenIn(s string) bool { return strings.ContainsFunc(s, hidden) }

func FuzzParseCall(f *testing.F) {
	for _, s := range []string{"web -> orders.createOrder", "web -> orders POST /orders", "anyone -> GET https://shop.example/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseCall(s)
		if err != nil {
			return
		}
		text := c.Call.Caller + " -> " + strings.TrimSpace(c.Call.Callee+" "+c.Method+" "+c.Path)
		if c.Call.Operation != "" {
			text = c.Call.Caller + " -> " + c.Call.Callee + "." + c.Call.Operation
		}
		if again, err := ParseCall(text); err != nil || again.Call != c.Call || again.Method != c.Method || again.Path != c.Path {
			t.Fatalf("%q is %+v, and written again %q: %+v, %v", s, c, text, again, err)
		}
	})
}

func TestNearest(t *testing.T) {
	t.Parallel()
	words := []string{"web", "orders", "listOrders", "address", "callers"}
	for s, want := range map[string]string{
		"order": "orders", "lsitOrders": "listOrders", "ORDERS": "orders", "wbe": "web", "wxy": "", "adress": "address",
		"collars": "callers", "x": "", "": "", "payments": "", strings.Repeat("o", 100): "",
	} {
		if got := nearest(s, words); got != want {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
	}
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "abc", 3}, {"abc", "abc", 0}, {"abc", "acb", 1}, {"kitten", "sitting", 3}} {
		if got := distance(c.a, c.b); got != c.want || distance(c.b, c.a) != got {
			t.Errorf("%q %q: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

// TestRender: the underline stands under the word, whatever stands before it.
func TestRender(t *testing.T) {
	t.Parallel()
	long := "a: " + strings.Repeat("x", 300) + " word " + strings.Repeat("y", 300)
	fsys := files("a.yaml", "日本: word\n\ta: word\né́e: word\nesc \x1b[2J word\n"+long+"\nend\r\n")
	for _, c := range []struct {
		pos  merlon.Pos
		want string
	}{
		{merlon.Pos{Line: 1, Column: 5}, "  1 | 日本: word\n    |       ^^^^\n"},
		{merlon.Pos{Line: 2, Column: 5}, "  2 |     a: word\n    |        ^^^^\n"},
		{merlon.Pos{Line: 3, Column: 6}, "  3 | é́e: word\n    |     ^^^^\n"},
		{merlon.Pos{Line: 4, Column: 10}, "  4 | esc \ufffd[2J word\n    |          ^^^^\n"},
		{merlon.Pos{Line: 5, Column: 305}, "... word "},
		{merlon.Pos{Line: 6, Column: 9}, "  6 | end\n    |    ^\n"},
		{merlon.Pos{Line: 9, Column: 1}, ""},
	} {
		c.pos.File = "a.yaml"
		var out bytes.Buffer
		Render(&out, fsys, merlon.Diagnostics{{Pos: c.pos, Width: 4, Code: "E0199", Message: "bad \x1b[31m \"word\"", Hint: "do\u202e", Also: []merlon.Pos{{File: "b\x07", Line: 1}}}}, false)
		got := out.String()
		if c.pos.Line == 5 {
			lines := strings.Split(got, "\n")
			if at := strings.Index(lines[2], "^"); !strings.HasPrefix(lines[1][at:], "word") || len(lines[1]) > maxColumn+20 {
				t.Errorf("%v:\n%s", c.pos, got)
			}
			continue
		}
		want := "a.yaml:" + strings.TrimPrefix(c.pos.String(), "a.yaml:") + ": bad \ufffd[31m \"word\" [E0199]\n" + c.want + "hint: do\ufffd\nalso: b\ufffd:1\n"
		if got != want {
			t.Errorf("%v: got\n%q\nwant\n%q", c.pos, got, want)
		}
	}
	var out bytes.Buffer
	Render(&out, nil, merlon.Diagnostics{{Code: "W0101", Warning: true, Message: "m"}, {Pos: merlon.Pos{File: "../x", Line: 1, Column: 1}, Code: "E0101", Message: "n"}}, true)
	if want := yellow + "warning:" + plain + " " + bold + "m" + plain + " " + dim + "[W0101]" + plain + "\n\n" +
		bold + "../x:1:1:" + plain + " " + bold + "n" + plain + " " + dim + "[E0101]" + plain + "\n"; out.String() != want {
		t.Errorf("got  %q\nwant %q", out.String(), want)
	}
}

// TestExternalAny: the two operations of an external service without a
// contract take every path, and do not collide.
func TestExternalAny(t *testing.T) {
	t.Parallel()
	s := mustLoad(t, files("merlon.yaml", inExternal(""))).Intent.Service("stripe")
	var routes []route.Route
	for _, o := range s.Operations {
		routes = append(routes, route.Route{Method: o.Method, Path: o.Path, Pos: o.Pos, Name: o.Name})
	}
	r, ds := route.NewRouter(routes)
	if len(ds) > 0 {
		t.Fatal(ds)
	}
	for path, want := range map[string]string{"/": "root", "/v1": "any", "/v1/charges": "any", "/v1/": "any"} {
		for _, method := range []string{"GET", "POST", "PROPFIND"} {
			i, _, found := r.Match(method, path, nil)
			if found != route.Matched || routes[i].Name != want {
				t.Errorf("%s %s: %v %d, want %s", method, path, found, i, want)
			}
		}
	}
}

// TestPart: a word inside a text has its own place, unless the text was
// escaped or folded.
func TestPart(t *testing.T) {
	t.Parallel()
	at := merlon.Pos{File: "a", Line: 1, Column: 10}
	if got := (word{"é -> b", at, 6}).part(6, 7); got.pos.Column != 15 || got.width != 1 || got.text != "b" {
		t.Error(got)
	}
	if got := (word{"a -> b", at, 9}).part(5, 6); got.pos != at || got.width != 9 {
		t.Error(got)
	}
}

func TestParseSample(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]int{
		"0%": 0, "1%": 10_000, "100%": 1_000_000, "100.0%": 1_000_000, "0.05%": 500, "0.0001%": 1, "12.5%": 125_000, "99.9999%": 999_999, "07%": 70_000,
		"": -1, "%": -1, "1": -1, ".5%": -1, "5.%": -1, "100.0001%": -1, "101%": -1, "001%": -1, "1000%": -1, "0.00001%": -1, "-1%": -1, "+1%": -1,
		"1 %": -1, "1e1%": -1, "1%%": -1, "0x1%": -1, "1_0%": -1, "\u0661%": -1, "1.-5%": -1,
	} {
		got, p := parseSample(s)
		if p != nil {
			got = -1
		}
		if got != want {
			t.Errorf("%q is %d of a million, want %d", s, got, want)
		}
	}
}
