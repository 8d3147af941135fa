package gate_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// trailing is an app whose answers have trailers, good ones and bad ones, and
// that says in its head whether it was told that they are taken.
func trailing() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Te", r.Header.Get("Te"))
		w.WriteHeader(http.StatusOK)
		io.WriteString(w, "hello")
		w.(http.Flusher).Flush()
		for name, value := range map[string]string{"X-Sum": "1234", "Merlon-Caller": "me", "Set-Cookie": "a=b", "X-Forwarded-For": "::1", "Merlon-Reason": "mine"} {
			w.Header().Set(http.TrailerPrefix+name, value)
		}
	})
}

// TestTrailers: the trailers of an answer reach who takes them, through two
// gates, and those that a gate acts upon reach nobody.
func TestTrailers(t *testing.T) {
	t.Parallel()
	e := start(t, shop, map[string]http.Handler{"web": trailing(), "orders": trailing(), "ledger": trailing()})
	for _, call := range []struct {
		name   string
		client *http.Client
		url    string
		te     string
		told   string // what the app heard
		sum    string // of the trailers that came
	}{
		{"HTTP/1.1, not taken", e.client(), "https://shop.example/", "", "", ""},
		{"HTTP/1.1, something else taken", e.client(), "https://shop.example/", "deflate, trailers;q=0.5", "", ""},
		{"HTTP/1.1", e.client(), "https://shop.example/", "deflate, Trailers", "trailers", "1234"},
		{"HTTP/2, not said", e.client2(), "https://shop.example/pages/1", "", "", ""},
		{"HTTP/2", e.client2(), "https://shop.example/pages/1", "trailers", "trailers", "1234"},
		{"between services, not taken", e.as("web"), "http://orders/orders/1", "", "", ""},
		{"between services", e.as("web"), "http://orders/orders/1", "trailers", "trailers", "1234"},
	} {
		req, _ := http.NewRequest("GET", call.url, nil)
		if call.te != "" {
			req.Header.Set("Te", call.te)
		}
		res, err := call.client.Do(req)
		if err != nil {
			t.Fatalf("%s: %v", call.name, err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || string(body) != "hello" || res.Header.Get("X-Te") != call.told {
			t.Errorf("%s: %q, %v, told %q", call.name, body, err, res.Header.Get("X-Te"))
		}
		if got := res.Trailer.Get("X-Sum"); got != call.sum {
			t.Errorf("%s: sum %q, want %q", call.name, got, call.sum)
		}
		for name := range res.Trailer {
			if name != "X-Sum" {
				t.Errorf("%s: trailer %s", call.name, name)
			}
		}
	}
}

// TestTrailersOfRequests are refused over HTTP/1.1 and dropped over HTTP/2.
func TestTrailersOfRequests(t *testing.T) {
	t.Parallel()
	e := start(t, shop, shopApps())
	for _, c := range []*http.Client{e.client(), e.client2()} {
		pipe, more := io.Pipe()
		req, _ := http.NewRequest("POST", "https://shop.example/send", pipe)
		req.Trailer = http.Header{"X-Sum": nil}
		go func() {
			io.WriteString(more, "hello")
			req.Trailer.Set("X-Sum", "1234")
			more.Close()
		}()
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		switch {
		case strings.Contains(string(body), "X-Sum"):
			t.Errorf("%s: the app saw %s", res.Proto, body)
		case res.ProtoMajor == 1 && res.Header.Get("Merlon-Reason") != "body_invalid", res.ProtoMajor == 2 && res.StatusCode != 200:
			t.Errorf("%s: %d %s", res.Proto, res.StatusCode, res.Header.Get("Merlon-Reason"))
		}
	}
}
