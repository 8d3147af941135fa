package main

import (
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"

	"merlon/internal/sockowner"
)

// TestOwnUser: a process of another user than the orders name does not call as
// the service.
func TestOwnUser(t *testing.T) {
	t.Parallel()
	if !sockowner.Supported() {
		t.Skip("SKIP: ", sockowner.ErrUnsupported)
	}
	s := newStand(t, http.NotFoundHandler())
	user := func(name string) string { return "callers: {a: [hello]}\n    workload: {unix: {user: " + name + "}}" }
	reason := func() string {
		res, err := (&http.Transport{}).RoundTrip(s.outbound("/hello"))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.Header.Get("Merlon-Reason")
	}
	s.orders(user(strconv.Itoa(os.Getuid())), nil)
	s.start()
	if r := reason(); r != "no_service" {
		t.Errorf("the service itself is refused with %q", r)
	}
	s.orders(user(strconv.Itoa(os.Getuid()+1)), nil)
	s.until("another user is refused", func() bool { return reason() == "not_own_workload" })
	s.orders(user("no-such-user"), nil)
	s.until("a user who is not there is refused", func() bool {
		return strings.Contains(s.said(), "orders refused") && strings.Contains(s.said(), "no-such-user")
	})
	if r := reason(); r != "not_own_workload" {
		t.Errorf("after orders that were refused: %q", r)
	}
	s.orders("callers: {a: [hello]}", nil)
	s.until("every process is admitted again", func() bool { return reason() == "no_service" })
}

// outbound is a call that the own service would make.
func (s *stand) outbound(path string) *http.Request {
	s.t.Helper()
	req, err := http.NewRequest(http.MethodGet, "http://"+s.out+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Host = "elsewhere"
	req.Close = true
	return req
}
