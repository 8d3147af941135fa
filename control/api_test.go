package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"merlon"
	"merlon/intent"
	"merlon/record"
)

func serve(t *testing.T, c *Control) *API {
	t.Helper()
	a, err := c.Serve()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(context.Background()) })
	return a
}

// Class 7: an administration interface that answers a web page, a path that is
// nearly right, or another user.
func TestClass07AdminAPIOriginAndExactPath(t *testing.T) {
	t.Parallel()
	c := open(t, tempState(t), Options{})
	shopGates(t, c)
	a := serve(t, c)
	apply(t, c, shop("web: [list]"))
	before := c.Status().Intent.Hash
	const json = "Content-Type: application/json\r\n"
	for _, tc := range []struct {
		name, request string
		status        int
	}{
		{"good", "GET /v1/status HTTP/1.1\r\nHost: merlon.control\r\n\r\n", 200},
		{"origin", "GET /v1/status HTTP/1.1\r\nHost: merlon.control\r\nOrigin: http://evil.example\r\n\r\n", 403},
		{"origin null", "GET /v1/status HTTP/1.1\r\nHost: merlon.control\r\nOrigin: null\r\n\r\n", 403},
		{"empty origin", "GET /v1/status HTTP/1.1\r\nHost: merlon.control\r\nOrigin:\r\n\r\n", 403},
		{"own origin", "GET /v1/status HTTP/1.1\r\nHost: merlon.control\r\norigin: http://merlon.control\r\n\r\n", 403},
		{"fetch metadata", "GET /v1/status HTTP/1.1\r\nHost: merlon.control\r\nSec-Fetch-Site: same-origin\r\n\r\n", 403},
		{"referer", "GET /v1/status HTTP/1.1\r\nHost: merlon.control\r\nReferer: http://x/\r\n\r\n", 403},
		{"cookie", "GET /v1/status HTTP/1.1\r\nHost: merlon.control\r\nCookie: a=b\r\n\r\n", 403},
		{"rebound host", "GET /v1/status HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403},
		{"localhost", "GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n", 403},
		{"host with port", "GET /v1/status HTTP/1.1\r\nHost: merlon.control:80\r\n\r\n", 403},
		{"host in capitals", "GET /v1/status HTTP/1.1\r\nHost: Merlon.Control\r\n\r\n", 403},
		{"empty host", "GET /v1/status HTTP/1.1\r\nHost:\r\n\r\n", 403},
		{"absolute form", "GET http://merlon.control/v1/status HTTP/1.1\r\nHost: merlon.control\r\n\r\n", 404},
		{"longer", "GET /v1/status/ HTTP/1.1\r\nHost: merlon.control\r\n\r\n", 404},
		{"prefix", "GET /v1/statusx HTTP/1.1\r\nHost: merlon.control\r\n\r\n", 404},
		{"parent", "GET /v1/x/../status HTTP/1.1\r\nHost: merlon.control\r\n\r\n", 404},
		{"double slash", "GET //v1/status HTTP/1.1\r\nHost: merlon.control\r\n\r\n", 404},
		{"encoded", "GET /v1/%73tatus HTTP/1.1\r\nHost: merlon.control\r\n\r\n", 404},
		{"query", "GET /v1/status?x HTTP/1.1\r\nHost: merlon.control\r\n\r\n", 404},
		{"capitals", "GET /v1/Status HTTP/1.1\r\nHost: merlon.control\r\n\r\n", 404},
		{"root", "GET / HTTP/1.1\r\nHost: merlon.control\r\n\r\n", 404},
		{"asterisk", "OPTIONS * HTTP/1.1\r\nHost: merlon.control\r\n\r\n", 404},
		{"preflight", "OPTIONS /v1/apply HTTP/1.1\r\nHost: merlon.control\r\nOrigin: http://evil.example\r\n\r\n", 403},
		{"wrong method", "GET /v1/apply HTTP/1.1\r\nHost: merlon.control\r\n\r\n", 405},
		{"method override", "GET /v1/rollback HTTP/1.1\r\nHost: merlon.control\r\nX-HTTP-Method-Override: POST\r\n\r\n", 405},
		{"form", "POST /v1/rollback HTTP/1.1\r\nHost: merlon.control\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\n" + `{"hash":"aa"}`, 415},
		{"no type", "POST /v1/rollback HTTP/1.1\r\nHost: merlon.control\r\nContent-Length: 13\r\n\r\n" + `{"hash":"aa"}`, 415},
		{"unknown field", "POST /v1/rollback HTTP/1.1\r\nHost: merlon.control\r\n" + json + "Content-Length: 14\r\n\r\n" + `{"force":true}`, 400},
		{"who is not theirs to say", "POST /v1/apply HTTP/1.1\r\nHost: merlon.control\r\n" + json + "Content-Length: 14\r\n\r\n" + `{"who":"root"}`, 400},
		{"two values", "POST /v1/rollback HTTP/1.1\r\nHost: merlon.control\r\n" + json + "Content-Length: 4\r\n\r\n" + `{}{}`, 400},
		{"no bundle", "POST /v1/apply HTTP/1.1\r\nHost: merlon.control\r\n" + json + "Content-Length: 2\r\n\r\n" + `{}`, 400},
		{"nothing to roll back to", "POST /v1/rollback HTTP/1.1\r\nHost: merlon.control\r\n" + json + "Content-Length: 13\r\n\r\n" + `{"hash":"zz"}`, 404},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("unix", a.Path())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, tc.request); err != nil {
				t.Fatal(err)
			}
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(res.Body)
			if err != nil || res.StatusCode != tc.status {
				t.Errorf("status %d, want %d: %s %v", res.StatusCode, tc.status, body, err)
			}
			if res.Header.Get("Access-Control-Allow-Origin") != "" || res.Header.Get("Content-Type") != "application/json" {
				t.Errorf("headers are %v", res.Header)
			}
			if tc.status != 200 && !strings.HasPrefix(string(body), `{"error":"`) {
				t.Errorf("body is %s", body)
			}
		})
	}
	t.Cleanup(func() {
		if got := c.Status().Intent.Hash; got != before {
			t.Errorf("a refused request changed the intent")
		}
	})

	t.Run("another user", func(t *testing.T) {
		t.Parallel()
		for uid, want := range map[int]int{os.Getuid(): 200, 0: 200, os.Getuid() + 1: 403} {
			r := httptest.NewRequest("GET", "/v1/status", nil)
			r.Host = apiHost
			w := httptest.NewRecorder()
			c.Handler().ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), peerKey{}, peer{uid: uid})))
			if w.Code != want {
				t.Errorf("user %d: status %d, want %d", uid, w.Code, want)
			}
		}
	})
}

func TestSocket(t *testing.T) {
	t.Parallel()
	dir := tempState(t)
	c := open(t, dir, Options{})
	a := serve(t, c)
	info, err := os.Stat(a.Path())
	if err != nil || info.Mode().Perm() != 0o600 || info.Mode().Type() != os.ModeSocket {
		t.Errorf("the socket is %v, %v", info.Mode(), err)
	}
	want := func(text string) {
		t.Helper()
		if _, err := c.Serve(); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want %q", err, text)
		}
	}
	want("another merlon listens")
	if err := a.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a.Path(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	want("a file that is no socket")
	os.Remove(a.Path())

	// What a killed process leaves: a socket that nobody listens on.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: a.Path(), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if _, err := os.Stat(a.Path()); err != nil {
		t.Fatal("the test left no stale socket")
	}
	serve(t, c)
	if _, err := NewClient(dir).Status(t.Context()); err != nil {
		t.Errorf("after a stale socket: %v", err)
	}

	deep := filepath.Join(t.TempDir(), strings.Repeat("d", 60), strings.Repeat("e", 60))
	c2 := open(t, deep, Options{})
	var state *StateError
	if _, err := c2.Serve(); !errors.As(err, &state) || !strings.Contains(err.Error(), "the system allows") || !strings.Contains(state.Hint, "shorter") {
		t.Errorf("a long path: %v", err)
	}
}

// The client answers as the control plane in process does.
func TestClient(t *testing.T) {
	t.Parallel()
	dir := tempState(t)
	client := NewClient(dir)
	if _, err := client.Status(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("before anything runs: %v", err)
	}
	c := open(t, dir, Options{})
	serve(t, c)
	l := load(t, shop("web: [list]"))
	if _, err := client.Apply(t.Context(), l, ApplyOptions{}); !isDiagnostics(err) || !strings.Contains(err.Error(), "E0401") {
		t.Errorf("without gates: %v", err)
	}
	shopGates(t, c)
	r, err := client.Apply(t.Context(), l, ApplyOptions{Who: "somebody else", Message: "first"})
	if err != nil || !r.Live || !strings.HasSuffix(r.Commit.Who, fmt.Sprintf("(uid %d)", os.Getuid())) || r.Commit.Message != "first" {
		t.Fatalf("apply: %+v, %v", r, err)
	}
	wide := load(t, shop("web: [list, get]"))
	plan, err := client.Plan(t.Context(), wide)
	if err != nil || !plan.Widens || plan.From != l.Hash || plan.To != wide.Hash || len(plan.Changes) == 0 {
		t.Errorf("plan: %+v, %v", plan, err)
	}
	if here, err := c.Plan(t.Context(), wide); err != nil || !reflect.DeepEqual(here, plan) {
		t.Errorf("the plan in process is %+v, over the socket %+v, %v", here, plan, err)
	}
	var w *WidensError
	if _, err := client.Apply(t.Context(), wide, ApplyOptions{}); !errors.As(err, &w) || !reflect.DeepEqual(w.Changes, plan.Changes) {
		t.Errorf("a change that widens: %v", err)
	}
	if r, err = client.Apply(t.Context(), wide, ApplyOptions{Widen: true}); err != nil || r.Commit.Number != 2 {
		t.Errorf("apply: %+v, %v", r, err)
	}
	if r, err = client.Rollback(t.Context(), l.Hash, ApplyOptions{}); err != nil || r.Commit.Hash != l.Hash {
		t.Errorf("rollback: %+v, %v", r, err)
	}
	h, err := client.History(t.Context())
	if err != nil || len(h) != 3 {
		t.Errorf("history: %+v, %v", h, err)
	}
	st, err := client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if here := c.Status(); !st.Live() || len(st.Rules) != len(here.Rules) || !reflect.DeepEqual(st.Intent.Hash, here.Intent.Hash) {
		t.Errorf("status is %+v, in process %+v", st, here)
	}
	if _, err := client.Rollback(t.Context(), "ffff", ApplyOptions{}); err == nil || !strings.Contains(err.Error(), "no such intent") {
		t.Errorf("rollback to nothing: %v", err)
	}
	if _, err := client.Why(t.Context(), "x"); err == nil || !strings.Contains(err.Error(), "no records") {
		t.Errorf("why without records: %v", err)
	}
}

func TestWhy(t *testing.T) {
	t.Parallel()
	clk := newClock()
	records := filepath.Join(t.TempDir(), "records")
	dir := tempState(t)
	c := open(t, dir, Options{Records: records, Now: clk.now})
	shopGates(t, c)
	serve(t, c)
	first := apply(t, c, shop("web: [list]"))
	w, err := record.Open(records, record.Options{Now: clk.now})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	denied := record.Record{
		Time: clk.now().UnixNano(), ID: "r1", Place: "gate of orders", Caller: "web", CallerKind: "workload", Subject: "spiffe://shop.example/web",
		Service: "orders", Operation: "create", Method: "POST", Path: "/orders", Status: 403,
		Verdict: merlon.Verdict{Reason: merlon.ReasonNoRule}, Intent: first.Commit.Hash,
	}
	odd := record.Record{Time: clk.now().UnixNano(), ID: "r1", Place: "gateway", Status: 400, Verdict: merlon.Verdict{Reason: "bad_path"}}
	for _, r := range []*record.Record{&odd, &denied} {
		if err := w.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Sync(); err != nil {
		t.Fatal(err)
	}
	client := NewClient(dir)
	why, err := client.Why(t.Context(), "r1")
	if err != nil || len(why.Steps) != 2 {
		t.Fatalf("why: %+v, %v", why, err)
	}
	if s := why.Steps[0]; s.Explanation != nil || s.Record.Verdict.Reason != "bad_path" {
		t.Errorf("a request that never became a call: %+v", s)
	}
	s := why.Steps[1]
	if s.Explanation == nil || s.Explanation.Verdict.Reason != merlon.ReasonNoRule || s.Now != nil || s.Record.Place != "gate of orders" {
		t.Errorf("a denied call: %+v", s)
	}
	apply(t, c, shop("web: [list, create]"))
	why, err = client.Why(t.Context(), "r1")
	if err != nil {
		t.Fatal(err)
	}
	s = why.Steps[1]
	if s.Explanation == nil || s.Explanation.Verdict.Effect != merlon.Deny || s.Now == nil || s.Now.Effect != merlon.Allow {
		t.Errorf("a call that was denied and now is not: %+v", s)
	}
	for _, id := range []string{"r2", ""} {
		if _, err := client.Why(t.Context(), id); err == nil || !strings.Contains(err.Error(), "no record has this id") {
			t.Errorf("id %q: %v", id, err)
		}
	}
}

func TestLoadBundleBounds(t *testing.T) {
	t.Parallel()
	many := fstest.MapFS{"merlon.yaml": {Data: []byte("trustDomain: x.example\n")}}
	l, ds := intent.Load(many)
	if ds.Failed() {
		t.Fatal(ds)
	}
	if got, ds, err := LoadBundle(l.Bundle); err != nil || ds.Failed() || got.Hash != l.Hash {
		t.Errorf("a good bundle: %v, %v", ds, err)
	}
	for name, tc := range map[string]struct {
		bundle []byte
		want   string
	}{
		"none":      {nil, "cannot be read"},
		"too long":  {make([]byte, maxBundle+1), "the most is"},
		"no zip":    {[]byte("PK nonsense"), "cannot be read"},
		"unpacked":  {bomb(t, 1, maxUnpacked+1), "more than"},
		"two files": {bomb(t, 2, maxUnpacked/2+1), "more than"},
		"files":     {bomb(t, maxFiles+1, 0), "the most is"},
	} {
		if _, _, err := LoadBundle(tc.bundle); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

func FuzzLoadBundle(f *testing.F) {
	l, ds := intent.Load(fstest.MapFS{"merlon.yaml": {Data: []byte(shop("web: [list]"))}})
	if ds.Failed() {
		f.Fatal(ds)
	}
	f.Add(l.Bundle)
	f.Add([]byte("PK\x05\x06"))
	f.Fuzz(func(t *testing.T, bundle []byte) {
		l, ds, err := LoadBundle(bundle)
		if (l != nil) == (err != nil || ds.Failed()) {
			t.Errorf("loaded %v, diagnostics %v, error %v", l != nil, ds, err)
		}
	})
}

// A slow client does not keep the control plane from closing.
func TestCloseWithOpenCalls(t *testing.T) {
	t.Parallel()
	c := open(t, tempState(t), Options{})
	a := serve(t, c)
	conn, err := net.Dial("unix", a.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "POST /v1/apply HTTP/1.1\r\nHost: merlon.control\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	a.Close(ctx)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
