package gate_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
)

const shop = `
trustDomain: shop.example
gateway:
  hosts: [shop.example]
services:
  web:
    operations: {home: GET /, page: 'GET /pages/{id}', send: POST /send}
    callers: {anyone: all}
  orders:
    operations: {list: GET /orders, get: 'GET /orders/{id}', create: POST /orders}
    callers: {web: [get, create]}
  ledger:
    operations: {post: POST /entries}
    callers: {orders: all}
`

func shopApps() map[string]http.Handler {
	return map[string]http.Handler{"web": echo("web"), "orders": echo("orders"), "ledger": echo("ledger")}
}

func TestCallsAreDecided(t *testing.T) {
	t.Parallel()
	e := start(t, shop, shopApps())
	out, web := e.client(), e.as("web")
	for _, c := range []struct {
		client       *http.Client
		method, url  string
		status       int
		reason, from string
	}{
		{out, "GET", "https://shop.example/", 200, "", "web"},
		{out, "GET", "https://shop.example/pages/7", 200, "", "web"},
		{out, "GET", "https://shop.example/pages/7/x", 404, "no_operation", ""},
		{out, "DELETE", "https://shop.example/", 404, "no_operation", ""},
		{out, "GET", "https://shop.example/orders", 404, "no_operation", ""},
		{web, "GET", "http://orders/orders/1", 200, "", "orders"},
		{web, "POST", "http://orders/orders", 200, "", "orders"},
		{web, "GET", "http://orders/orders", 403, "no_rule", ""},
		{web, "POST", "http://ledger/entries", 404, "no_service", ""},
		{e.as("orders"), "POST", "http://ledger/entries", 200, "", "ledger"},
	} {
		a := do(t, c.client, c.method, c.url)
		if a.status != c.status || a.reason != c.reason {
			t.Errorf("%s %s: %d %q, want %d %q", c.method, c.url, a.status, a.reason, c.status, c.reason)
			continue
		}
		if c.from != "" && a.seen(t).App != c.from {
			t.Errorf("%s %s: answered by %s, want %s", c.method, c.url, a.seen(t).App, c.from)
		}
		if len(a.header.Get("Merlon-Request-Id")) != 20 {
			t.Errorf("%s %s: request id %q", c.method, c.url, a.header.Get("Merlon-Request-Id"))
		}
	}
}

// TestBodies sends bodies of all sizes and framings through two gates.
func TestBodies(t *testing.T) {
	t.Parallel()
	e := start(t, strings.Replace(shop, "callers: {anyone: all}", "callers: {anyone: all}\n    maxBody: 8MiB", 1), shopApps())
	c := e.client()
	for _, size := range []int{0, 1, 100, 8 << 10, 15 << 10, 16 << 10, 17 << 10, 100 << 10, 3 << 20, 8 << 20} {
		for _, chunked := range []bool{false, true} {
			body := io.Reader(bytes.NewReader(make([]byte, size)))
			if chunked {
				body = struct{ io.Reader }{body}
			}
			req, _ := http.NewRequest("POST", "https://shop.example/send", body)
			res, err := c.Do(req)
			if err != nil {
				t.Fatalf("%d bytes, chunked %v: %v", size, chunked, err)
			}
			text, _ := io.ReadAll(res.Body)
			res.Body.Close()
			a := answer{res.StatusCode, res.Header.Get("Merlon-Reason"), string(text), res.Header, res.Close}
			if a.status != 200 || a.seen(t).Body != size {
				t.Errorf("%d bytes, chunked %v: %d %s %q", size, chunked, a.status, a.reason, a.body)
			}
		}
	}
	for _, chunked := range []bool{false, true} {
		body := io.Reader(bytes.NewReader(make([]byte, 8<<20+1)))
		if chunked {
			body = struct{ io.Reader }{body}
		}
		req, _ := http.NewRequest("POST", "https://shop.example/send", body)
		res, err := c.Do(req)
		if err != nil {
			t.Fatalf("too large, chunked %v: %v", chunked, err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if res.StatusCode != 413 {
			t.Errorf("too large, chunked %v: %d %s", chunked, res.StatusCode, res.Header.Get("Merlon-Reason"))
		}
	}
}
