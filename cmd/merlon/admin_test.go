package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
)

// TestClass07UpAdmin: the metrics of all gates are shown to this host, and to no
// page in its browser; nothing is shown to other hosts.
func TestClass07UpAdmin(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.fails(4, []string{"up", "--admin", "0.0.0.0:0"}, "reached from other hosts")
	address := ports4(t)[0]
	s.up("--admin", address)
	s.want("/call", 200, "b")
	for _, place := range []string{"gateway", "a", "b"} {
		if a, err := fetch("http://"+address+"/metrics", ""); err != nil || a.status != 200 || !strings.Contains(a.body, `place="`+place+`"`) {
			t.Errorf("no metrics of %s: %d %v", place, a.status, err)
		}
	}
	for _, path := range []string{"/", "/metrics/", "/status", "//metrics", "/metrics?x"} {
		if a, err := fetch("http://"+address+path, ""); err != nil || a.status != 404 {
			t.Errorf("%s: %d %v", path, a.status, err)
		}
	}
	req, _ := http.NewRequest("GET", "http://"+address+"/metrics", nil)
	req.Header.Set("Origin", "http://127.0.0.1")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusForbidden {
		t.Errorf("asked by a page: %s", res.Status)
	}
}

// TestTopOnce: what is asked for is the window that has just passed.
func TestTopOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.up()
	s.want("/call", 200, "b")
	eventually(t, "the call", func() bool {
		var top Top
		if err := json.Unmarshal([]byte(s.must("top", "--once", "--window", "5m", "--json")), &top); err != nil {
			t.Fatal(err)
		}
		return top.Calls > 0 && len(top.Rows) > 0
	})
}
