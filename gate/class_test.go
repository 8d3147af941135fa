package gate_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"merlon"
	"merlon/gate"
	"merlon/record"
)

// These are the classes of attack that every gate has to stand, on the wire:
// through real gates, to a real server, with the records read back.

// get is the request for a path that a careful client would send.
func get(target string, fields ...string) string {
	return "GET " + target + " HTTP/1.1\r\nHost: shop.example\r\n" + strings.Join(append(fields, ""), "\r\n") + "\r\n"
}

// TestClass01PathSeenByPolicyIsPathSentUpstream: for every spelling of a path,
// the application gets the very bytes that were decided on, or nothing.
func TestClass01PathSeenByPolicyIsPathSentUpstream(t *testing.T) {
	t.Parallel()
	e := start(t, strings.Replace(shop, "page: 'GET /pages/{id}'", "page: 'GET /pages/{id}', deep: 'GET /files/{path...}'", 1), shopApps())
	var want []string
	for _, c := range []struct {
		target string
		uri    string // that the application sees; "" for a refusal
		reason string
	}{
		{"/pages/7", "/pages/7", ""},
		{"/pages/%37", "/pages/7", ""},
		{"/p%61ges/7", "/pages/7", ""},
		{"/pages/a%20b", "/pages/a%20b", ""},
		{"/pages/%c3%a4", "/pages/%C3%A4", ""},
		{"/pages/7?q=%2e%2e/", "/pages/7?q=%2e%2e/", ""},
		{"/files/a/b/c", "/files/a/b/c", ""},
		{"/pages/7/", "", "no_operation"},
		{"/Pages/7", "", "no_operation"},
		{"//pages/7", "", "path_empty_segment"},
		{"/pages//7", "", "path_empty_segment"},
		{"/pages/../pages/7", "", "path_dot_segment"},
		{"/pages/%2e%2e/7", "", "path_dot_segment"},
		{"/files/..%2fadmin", "", "path_encoded_slash"},
		{"/files/..%5cadmin", "", "path_backslash"},
		{"/files/..\\admin", "", "path_backslash"},
		{"/files/%252e%252e/admin", "", "path_double_encoding"},
		{"/files/..;/admin", "", "path_parameter"},
		{"/pages/7;jsessionid=1", "", "path_parameter"},
		{"/pages/7%00", "", "path_control"},
		{"/pages/%ff", "", "path_not_utf8"},
		{"/pages/7%", "", "path_escape"},
		{"http://shop.example/pages/7", "", "absolute_form"},
	} {
		a := e.wire().ask(get(c.target))
		if a.reason != c.reason {
			t.Errorf("%s: %d %q, want %q", c.target, a.status, a.reason, c.reason)
			continue
		}
		if c.uri == "" {
			continue
		}
		if got := a.seen(t).URI; got != c.uri {
			t.Errorf("%s: the application sees %s, want %s", c.target, got, c.uri)
		}
		path, _, _ := strings.Cut(c.uri, "?")
		want = append(want, path)
	}
	e.stop()
	for _, place := range []merlon.Place{merlon.Edge, {Service: "web"}} {
		var decided []string
		for _, r := range e.evidence(place) {
			if r.Verdict.Effect == merlon.Allow {
				decided = append(decided, r.Path)
			}
		}
		slices.Sort(decided) // a call is recorded when it is answered, and the next may overtake
		slices.Sort(want)
		if !slices.Equal(decided, want) {
			t.Errorf("%v decided on %q, want %q", place, decided, want)
		}
	}
}

// TestClass02HeaderSmugglingOnTheWire: no spelling of a header by which gates
// or proxies speak reaches the application from outside.
func TestClass02HeaderSmugglingOnTheWire(t *testing.T) {
	t.Parallel()
	e := start(t, shop, shopApps())
	plain := e.wire().ask(get("/")).seen(t).Header
	for _, name := range []string{
		"Merlon-Caller", "merlon-caller", "MERLON-CALLER", "Merlon_Caller", "Merlon.Caller", "Merlon-Request-Id", "Merlon-Anything",
		"X-Merlon-Caller", "X-Forwarded-For", "x-forwarded-for", "X_Forwarded_For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-User",
		"Forwarded", "X-Real-Ip", "X_Real_IP", "X-Original-Url", "X-Rewrite-Url", "X-Remote-User", "Remote-User", "Remote_User",
		"X-Auth-Request-User", "X-Authenticated-User", "X-User-Id", "Client-Cert", "X-Client-Cert", "X-Forwarded-Client-Cert", "Ssl-Client-Verify",
		"X-HTTP-Method-Override", "X-Middleware-Subrequest", "Proxy", "Proxy-Authorization", "Via", "True-Client-Ip", "X-Envoy-Original-Path",
	} {
		a := e.wire().ask(get("/", name+": evil"))
		if a.status == 400 && strings.ContainsAny(name, "_.") && a.reason == "field_name_disguised" {
			continue
		}
		for got, values := range a.seen(t).Header {
			if slices.Contains(values, "evil") {
				t.Errorf("%s reaches the application as %s", name, got)
			}
			if plain[got] == nil {
				t.Errorf("%s makes the application see %s: %q", name, got, values)
			}
		}
	}
	// Nor can a client have a header of the gate removed on the way.
	for _, option := range []string{"Merlon-Caller", "merlon-request-id", "X-Forwarded-For", "Host", "Content-Length", "Authorization"} {
		if a := e.wire().ask(get("/", "Connection: close, "+option)); a.reason != "connection_names_field" {
			t.Errorf("Connection: %s is answered with %d %q", option, a.status, a.reason)
		}
	}
}

// TestClass02NoForgedCallerBetweenGates: a service that is asked by another
// believes the certificate, whatever a header says.
func TestClass02NoForgedCallerBetweenGates(t *testing.T) {
	t.Parallel()
	e := start(t, shop, shopApps())
	w, err := e.wireTo("ledger", "spiffe://shop.example/web")
	if err != nil {
		t.Fatal(err)
	}
	good := e.wire().ask(get("/")).seen(t).Header.Get("Merlon-Caller")
	for _, forged := range []string{good, "", "spiffe://shop.example/orders", "e30.e30."} {
		a := w.ask("POST /entries HTTP/1.1\r\nHost: ledger\r\nMerlon-Caller: " + forged + "\r\n\r\n")
		if a.status != 403 || a.reason != "no_rule" {
			t.Errorf("as orders by header: %d %q", a.status, a.reason)
		}
	}
	// The gateway itself is not believed without its assertion, or with one
	// made for another service or by another key.
	w, err = e.wireTo("web", "spiffe://shop.example/gateway")
	if err != nil {
		t.Fatal(err)
	}
	for _, forged := range []string{"", "\r\nMerlon-Caller: " + good} {
		if a := w.ask("GET / HTTP/1.1\r\nHost: shop.example" + forged + "\r\n\r\n"); a.status != 403 || a.reason != "unidentified" {
			t.Errorf("as gateway with %.30q: %d %q", forged, a.status, a.reason)
		}
	}
}

// TestClass03TrustingForwardedHeaders: the client's address is that of its
// connection, unless that is a proxy the intent names.
func TestClass03TrustingForwardedHeaders(t *testing.T) {
	t.Parallel()
	limited := strings.Replace(shop, "hosts: [shop.example]", "hosts: [shop.example]\n  limit: {rate: 1/h, burst: 3}", 1)
	open := start(t, limited, shopApps())
	for i := range 5 {
		a := open.wire().ask(get("/", fmt.Sprintf("X-Forwarded-For: 192.0.2.%d", i), fmt.Sprintf("Forwarded: for=192.0.2.%d", i)))
		switch {
		case i >= 3:
			if a.status != 429 || a.header.Get("Retry-After") == "" {
				t.Errorf("call %d of a client with ever other addresses: %d %q", i, a.status, a.reason)
			}
		case a.seen(t).Header.Get("X-Forwarded-For") != "127.0.0.1":
			t.Errorf("the application is told %q", a.seen(t).Header["X-Forwarded-For"])
		}
	}
	behind := start(t, strings.Replace(shop, "hosts: [shop.example]", "hosts: [shop.example]\n  trustedProxies: [127.0.0.0/8, 10.0.0.0/8]", 1), shopApps())
	for _, c := range []struct{ given, want string }{
		{"192.0.2.1", "192.0.2.1"},
		{"203.0.113.9, 192.0.2.1", "192.0.2.1"},
		{"203.0.113.9, 192.0.2.1, 10.1.1.1", "192.0.2.1"},
		{"203.0.113.9, nonsense, 10.1.1.1", "10.1.1.1"},
		{"nonsense", "127.0.0.1"},
		{"192.0.2.1:80", "127.0.0.1"},
		{"", "127.0.0.1"},
		{"2001:db8::1", "2001:db8::1"},
	} {
		if got := behind.wire().ask(get("/", "X-Forwarded-For: "+c.given)).seen(t).Header["X-Forwarded-For"]; !slices.Equal(got, []string{c.want}) {
			t.Errorf("behind a proxy that says %q the client is %q, want %q", c.given, got, c.want)
		}
	}
	two := get("/", "X-Forwarded-For: 192.0.2.1", "X-Forwarded-For: 192.0.2.2")
	if got := behind.wire().ask(two).seen(t).Header["X-Forwarded-For"]; !slices.Equal(got, []string{"192.0.2.2"}) {
		t.Errorf("of two fields the application is told %q, want the proxy's own, the last", got)
	}
}

// TestClass04PublicRuleNotMatchedByQueryOrFragment: only the path decides.
func TestClass04PublicRuleNotMatchedByQueryOrFragment(t *testing.T) {
	t.Parallel()
	e := start(t, strings.Replace(shop, "page: 'GET /pages/{id}'", "page: 'GET /pages/{id}', admin: GET /admin", 1)+"", shopApps())
	e.swap(strings.NewReplacer("page: 'GET /pages/{id}'", "page: 'GET /pages/{id}', admin: GET /admin",
		"callers: {anyone: all}", "callers: {anyone: [home, page]}").Replace(shop))
	for _, c := range []struct {
		target string
		status int
	}{
		{"/admin", 404}, // no rule makes it reachable from outside
		{"/admin?/pages/1", 404},
		{"/admin?x=/../pages/1", 404},
		{"/admin?path=/pages/1", 404},
		{"/admin?", 404},
		{"/admin??/", 404},
		{"/admin#/pages/1", 400},
		{"/admin%23/pages/1", 404},
		{"/admin%3f/pages/1", 404},
		{"/admin/?/pages/1", 404},
		{"/pages/1#/../../admin", 400},
		{"/pages/1?/../../admin", 200},
	} {
		if a := e.wire().ask(get(c.target)); a.status != c.status {
			t.Errorf("%s: %d %q, want %d", c.target, a.status, a.reason, c.status)
		}
	}
}

// TestClass05NoHealthCheckOrUserAgentBypass: no path, method or name of a
// client is let through for what it usually is.
func TestClass05NoHealthCheckOrUserAgentBypass(t *testing.T) {
	t.Parallel()
	e := start(t, shop, shopApps())
	for _, agent := range []string{"kube-probe/1.30", "ELB-HealthChecker/2.0", "GoogleHC/1.0", "Envoy/HC", "Consul Health Check", "Prometheus/2.50", "curl/8.0"} {
		for _, path := range []string{"/health", "/healthz", "/livez", "/readyz", "/ping", "/status", "/metrics", "/debug/pprof/", "/.well-known/acme-challenge/x", "/server-status", "/admin", "/favicon.ico"} {
			if a := e.wire().ask(get(path, "User-Agent: "+agent)); a.status != 404 || a.reason != "no_operation" {
				t.Errorf("%s as %s: %d %q", path, agent, a.status, a.reason)
			}
		}
	}
	for _, request := range []string{
		"OPTIONS /pages/1 HTTP/1.1\r\nHost: shop.example\r\nOrigin: https://evil.example\r\nAccess-Control-Request-Method: GET\r\n\r\n",
		"HEAD /pages/1 HTTP/1.1\r\nHost: shop.example\r\n\r\n",
		"POST /pages/1 HTTP/1.1\r\nHost: shop.example\r\nX-HTTP-Method-Override: GET\r\nContent-Length: 0\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: web\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
	} {
		if a := e.wire().ask(request); a.status != 404 {
			t.Errorf("%.40q: %d %q", request, a.status, a.reason)
		}
	}
}

// TestClass06BrokenOrdersFailClosed: orders that are not understood change
// nothing, and a gate without any lets nothing through.
func TestClass06BrokenOrdersFailClosed(t *testing.T) {
	t.Parallel()
	e := start(t, shop, shopApps())
	l := load(t, shop, nil)
	place := merlon.Place{Service: "orders"}
	g := e.gates[place]
	hash := g.Hash()
	for name, spoil := range map[string]func(*merlon.Orders){
		"another version":      func(o *merlon.Orders) { o.Version++ },
		"no version":           func(o *merlon.Orders) { o.Version = 0 },
		"another place":        func(o *merlon.Orders) { o.Place = merlon.Edge },
		"another trust domain": func(o *merlon.Orders) { o.Intent.TrustDomain = "evil.example" },
		"a protocol of later":  func(o *merlon.Orders) { o.Intent.Services[0].Protocol = 99 },
		"a condition that is none": func(o *merlon.Orders) {
			s := o.Intent.Service("orders")
			s.Rules = []merlon.Rule{{Caller: "web", Operations: []string{"list"}, When: "true ||"}}
		},
		"a rule for what is not there": func(o *merlon.Orders) {
			s := o.Intent.Service("orders")
			s.Rules = []merlon.Rule{{Caller: "web", Operations: []string{"nothing"}}}
		},
	} {
		o := e.orders(load(t, shop, nil), place)
		spoil(o)
		if err := g.Swap(o); err == nil {
			t.Errorf("orders with %s are taken", name)
		}
		if g.Hash() != hash {
			t.Fatalf("orders with %s are in force", name)
		}
	}
	if a := do(t, e.as("web"), "GET", "http://orders/orders/1"); a.status != 200 {
		t.Errorf("after broken orders a call that was allowed gets %d %q", a.status, a.reason)
	}
	if a := do(t, e.as("web"), "GET", "http://orders/orders"); a.status != 403 {
		t.Errorf("after broken orders a call that was denied gets %d %q", a.status, a.reason)
	}
	// One that never had any.
	fresh := e.gate(l.Intent, place)
	for at, want := range map[gate.Position]string{gate.Inbound: "no_orders", gate.Outbound: "no_orders", gate.AtEdge: ""} {
		lis := listen(t)
		go fresh.Serve(lis, at)
		if at == gate.Inbound {
			old := e.in["orders"]
			e.in["orders"] = lis.Addr().String()
			w, err := e.wireTo("orders", "spiffe://shop.example/web")
			e.in["orders"] = old
			if err != nil {
				t.Fatal(err)
			}
			if a := w.ask("GET /orders/1 HTTP/1.1\r\nHost: orders\r\n\r\n"); a.status != 503 || a.reason != want {
				t.Errorf("%v without orders: %d %q", at, a.status, a.reason)
			}
			continue
		}
		w := newWire(t, dial(t, lis.Addr().String()))
		if want == "" {
			if !w.ended() {
				t.Errorf("%v without orders speaks", at)
			}
		} else if a := w.ask("GET /orders/1 HTTP/1.1\r\nHost: orders\r\n\r\n"); a.status != 503 || a.reason != want {
			t.Errorf("%v without orders: %d %q", at, a.status, a.reason)
		}
	}
}

// TestClass11CaseFoldingAndUnicodeHosts: a host is one of those the intent
// names, or it is refused; nothing that looks like one is taken for it.
func TestClass11CaseFoldingAndUnicodeHostsOnTheWire(t *testing.T) {
	t.Parallel()
	e := start(t, shop, shopApps())
	for _, c := range []struct {
		host   string
		status int
		sent   string
	}{
		{"shop.example", 200, "shop.example"},
		{"SHOP.example", 200, "shop.example"},
		{"shop.example.", 200, "shop.example"},
		{"shop.example:8443", 200, "shop.example:8443"},
		{"ſhop.example", 400, ""},            // U+017F folds to s
		{"\xe2\x84\xaahop.example", 400, ""}, // U+212A folds to k
		{"shop.example\x00", 400, ""},
		{"shop。example", 400, ""}, // a full stop to IDNA
		{"xn--shop-.example", 400, ""},
		{"shop%2eexample", 400, ""},
		{"shop.example..", 400, ""},
		{"user@shop.example", 400, ""},
		{"shop.example/", 400, ""},
		{"shop.example:", 400, ""},
		{"shop.example:99999", 400, ""},
		{"shop.example, evil.example", 400, ""},
		{"sub.shop.example", 404, ""},
		{"shop.example.evil.example", 404, ""},
		{"shop_example", 404, ""},
		{"", 400, ""},
	} {
		a := e.wire().ask("GET / HTTP/1.1\r\nHost: " + c.host + "\r\n\r\n")
		if a.status != c.status {
			t.Errorf("host %q: %d %q, want %d", c.host, a.status, a.reason, c.status)
		} else if c.sent != "" && a.seen(t).Host != c.sent {
			t.Errorf("host %q is sent on as %q, want %q", c.host, a.seen(t).Host, c.sent)
		}
	}
}

// TestClass12IdentitiesAreNoPatterns: a workload's identity is compared byte
// by byte, and one that only resembles an allowed one is nobody.
func TestClass12IdentitiesAreNoPatterns(t *testing.T) {
	t.Parallel()
	e := start(t, shop, shopApps())
	for _, id := range []string{"web", "we.", "w.b", "web2", "we", "Web", "WEB", "orders", "web/orders", "gateway/web", "x/web"} {
		w, err := e.wireTo("orders", "spiffe://shop.example/"+id)
		if err != nil {
			t.Fatal(err)
		}
		w.send("GET /orders/1 HTTP/1.1\r\nHost: orders\r\n\r\n")
		a, err := w.receive("GET")
		switch {
		case id == "web":
			if err != nil || a.status != 200 {
				t.Errorf("web: %d %q %v", a.status, a.reason, err)
			}
		case strings.Contains(id, "/"):
			if err == nil {
				t.Errorf("%s is heard: %d %q", id, a.status, a.reason)
			}
		case err != nil || a.status != 403 || a.reason != "no_rule":
			t.Errorf("%s: %d %q %v", id, a.status, a.reason, err)
		}
	}
}

const loginShop = `
trustDomain: shop.example
gateway:
  hosts: [shop.example]
  login:
    staff: {issuer: https://id.shop.example, audience: shop, keys: keys.json, algorithms: [ES256]}
services:
  web:
    operations: {home: GET /, report: GET /report}
    callers: {anyone: [home], staff: [report]}
`

// TestClass16TokensOnTheWire: a token that is given is valid or the call is
// refused, whatever it asks for; there is no way down to anyone.
func TestClass16TokensOnTheWire(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "one", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	other, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	now := time.Now()
	sign := func(alg jose.SignatureAlgorithm, key any, change func(map[string]any)) string {
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: key, KeyID: "one"}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		claims := map[string]any{"iss": "https://id.shop.example", "aud": "shop", "sub": "ann", "exp": now.Add(time.Hour).Unix(), "iat": now.Unix()}
		if change != nil {
			change(claims)
		}
		token, err := jwt.Signed(signer).Claims(claims).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	good := sign(jose.ES256, key, nil)
	parts := strings.Split(good, ".")
	e := startWith(t, loginShop, fstest.MapFS{"keys.json": {Data: set}}, shopApps())
	for name, c := range map[string]struct {
		authorization string
		home, report  int
	}{
		"none":                 {"", 200, 401},
		"good":                 {"Bearer " + good, 200, 200},
		"lower case":           {"bearer " + good, 200, 200},
		"another scheme":       {"Basic YTpi", 200, 401},
		"expired":              {"Bearer " + sign(jose.ES256, key, func(c map[string]any) { c["exp"] = now.Add(-time.Hour).Unix() }), 401, 401},
		"of later":             {"Bearer " + sign(jose.ES256, key, func(c map[string]any) { c["nbf"] = now.Add(time.Hour).Unix() }), 401, 401},
		"without end":          {"Bearer " + sign(jose.ES256, key, func(c map[string]any) { delete(c, "exp") }), 401, 401},
		"for somebody else":    {"Bearer " + sign(jose.ES256, key, func(c map[string]any) { c["aud"] = "bank" }), 401, 401},
		"of another issuer":    {"Bearer " + sign(jose.ES256, key, func(c map[string]any) { c["iss"] = "https://evil.example" }), 401, 401},
		"by another key":       {"Bearer " + sign(jose.ES256, other, nil), 401, 401},
		"by the public key":    {"Bearer " + sign(jose.HS256, set, nil), 401, 401},
		"without signature":    {"Bearer " + parts[0] + "." + parts[1] + ".", 401, 401},
		"with alg none":        {"Bearer eyJhbGciOiJub25lIn0." + parts[1] + ".", 401, 401},
		"cut":                  {"Bearer " + good[:len(good)-2], 401, 401},
		"empty":                {"Bearer ", 401, 401},
		"scheme alone":         {"Bearer", 401, 401},
		"after a tab":          {"Bearer\t" + good, 401, 401},
		"after two spaces":     {"Bearer  " + good, 401, 401},
		"twice in one":         {"Bearer " + good + ", Bearer " + good, 401, 401},
		"with something after": {"Bearer " + good + " x", 401, 401},
		"huge":                 {"Bearer " + strings.Repeat("a", 8<<10), 401, 401},
	} {
		for path, want := range map[string]int{"/": c.home, "/report": c.report} {
			var fields []string
			if c.authorization != "" {
				fields = append(fields, "Authorization: "+c.authorization)
			}
			a := e.wire().ask(get(path, fields...))
			if a.status != want {
				t.Errorf("token %s at %s: %d %q, want %d", name, path, a.status, a.reason, want)
			}
			if want == 401 && a.header.Get("WWW-Authenticate") == "" {
				t.Errorf("token %s at %s: 401 without a challenge", name, path)
			}
		}
	}
	if a := e.wire().ask(get("/", "Authorization: Bearer "+good, "Authorization: Bearer "+good)); a.status != 400 {
		t.Errorf("two tokens: %d %q", a.status, a.reason)
	}
	e.stop()
	if all := e.evidence(merlon.Edge); slices.ContainsFunc(all, func(r record.Record) bool { return strings.Contains(r.Detail, parts[1][:20]) }) {
		t.Error("a record tells a token")
	}
}
