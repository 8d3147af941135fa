package gate_test

import (
	"net/http"
	"strings"
	"testing"
)

// shop2 is the shop with services that read HTTP/2.
func shop2(text string) string {
	return strings.ReplaceAll(text, "    operations:", "    protocol: http2\n    operations:")
}

func TestUpstreamHTTP2Smoke(t *testing.T) {
	t.Parallel()
	e := start(t, shop2(shop), shopApps())
	for _, c := range []*http.Client{e.client(), e.client2()} {
		a := do(t, c, "GET", "https://shop.example/pages/7?a=b")
		t.Log(a.status, a.body)
		a = do(t, c, "POST", "https://shop.example/send")
		t.Log(a.status, a.body)
	}
}
