package jwt

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/net/dns/dnsmessage"

	"merlon"

	"merlon/internal/reach"
)

// keyServer is a real server of a key set, over real TLS.
type keyServer struct {
	*httptest.Server
	hits atomic.Int32
	body atomic.Value // string, or http.HandlerFunc
}

func newKeyServer(t *testing.T, body any) *keyServer {
	t.Helper()
	s := &keyServer{}
	s.body.Store(bodyOf{body})
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.hits.Add(1)
		switch body := s.body.Load().(bodyOf).v.(type) {
		case string:
			io.WriteString(w, body)
		case int:
			w.WriteHeader(body)
		case func(http.ResponseWriter, *http.Request):
			body(w, r)
		}
	}))
	s.Config.ErrorLog = nil
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// bodyOf gives every body one type, as atomic.Value wants.
type bodyOf struct{ v any }

func (s *keyServer) set(body any) { s.body.Store(bodyOf{body}) }

func (s *keyServer) roots() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(s.Certificate())
	return p
}

func (s *keyServer) rule() merlon.LoginRule {
	r := rule("", "ES256", "RS256")
	r.KeySet, r.AllowLocal = s.URL, true
	return r
}

// clock is a clock that tests set.
type clock struct{ now atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.now.Store(epoch.UnixNano())
	return c
}
func (c *clock) Now() time.Time          { return time.Unix(0, c.now.Load()) }
func (c *clock) Advance(d time.Duration) { c.now.Add(int64(d)) }

func TestRemoteKeys(t *testing.T) {
	t.Parallel()
	s, c := newKeyServer(t, jwks("p256")), newClock()
	v := verifier(t, Options{Now: c.Now, RootCAs: s.roots()}, s.rule())
	one := mint(t, jose.ES256, keys()["p256"], "p256", goodClaims(), nil)
	two := mint(t, jose.ES256, keys()["p256b"], "p256b", goodClaims(), nil)
	verify := func(token, want string) {
		t.Helper()
		if _, err := v.Verify(token, c.Now()); reason(err) != want || (err == nil) != (want == "") {
			t.Errorf("%v, want %q", err, want)
		}
	}
	verify(one, "") // the first token fetches
	if n := s.hits.Load(); n != 1 {
		t.Fatalf("%d fetches", n)
	}
	s.set(jwks("p256", "p256b"))
	verify(two, UnknownKey) // too soon to look again
	c.Advance(10 * time.Second)
	verify(two, "")
	verify(one, "")
	s.set(jwks("p256b")) // the first key is withdrawn
	c.Advance(10 * time.Second)
	verify(mint(t, jose.ES256, keys()["p256"], "other", goodClaims(), nil), UnknownKey)
	verify(one, UnknownKey) // though it was cached as good
	verify(two, "")

	s.set(`{"keys":[]}`) // all are withdrawn: so be it
	c.Advance(10 * time.Second)
	verify(mint(t, jose.ES256, keys()["p256"], "another", goodClaims(), nil), UnknownKey)
	verify(two, UnknownKey)
}

// A key that replaces another without a name of its own is found as well.
func TestUnnamedKeyRotates(t *testing.T) {
	t.Parallel()
	unnamed := func(key string) string { return strings.Replace(jwks(key), `"kid":"`+key+`",`, "", 1) }
	s, c := newKeyServer(t, unnamed("p256")), newClock()
	v := verifier(t, Options{Now: c.Now, RootCAs: s.roots()}, s.rule())
	if _, err := v.Verify(mint(t, jose.ES256, keys()["p256"], "", goodClaims(), nil), c.Now()); err != nil {
		t.Fatal(err)
	}
	s.set(unnamed("p256b"))
	c.Advance(10 * time.Second)
	if _, err := v.Verify(mint(t, jose.ES256, keys()["p256b"], "", goodClaims(), nil), c.Now()); err != nil {
		t.Fatal(err)
	}
}

// When the key server fails the keys live on, but not for ever.
func TestStaleIfError(t *testing.T) {
	t.Parallel()
	s, c := newKeyServer(t, jwks("p256")), newClock()
	var last atomic.Value
	v := verifier(t, Options{Now: c.Now, RootCAs: s.roots(), MaxStale: time.Hour, Report: func(s Status) { last.Store(s) }}, s.rule())
	claims := with(map[string]any{"exp": epoch.Add(48 * time.Hour).Unix()})
	token := mint(t, jose.ES256, keys()["p256"], "p256", claims, nil)
	if _, err := v.Verify(token, c.Now()); err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string]any{
		"error":     500,
		"no body":   204,
		"not JSON":  "<html>",
		"too large": `{"keys":[],"x":"` + strings.Repeat("a", maxKeySet) + `"}`,
		"no use":    jwks("weak"),
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		},
		"endless redirects": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path+"x", http.StatusFound)
		},
		"cut off": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000")
			io.WriteString(w, jwks("p256b"))
		},
	} {
		s.set(body)
		c.Advance(20 * time.Second)
		if _, err := v.Verify(mint(t, jose.ES256, keys()["p256b"], "p256b", claims, nil), c.Now()); reason(err) != UnknownKey {
			t.Errorf("%s: %v", name, err)
		}
		if st := v.Status()[0]; st.Err == nil || st.Keys != 1 || !st.Fetched.Equal(epoch) {
			t.Errorf("%s: %+v", name, st)
		}
		if _, err := v.Verify(token, c.Now()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	c.Advance(time.Hour)
	if _, err := v.Verify(token, c.Now()); reason(err) != KeysUnavailable {
		t.Errorf("keys that nobody confirmed for an hour: %v", err)
	}
	s.set(jwks("p256"))
	c.Advance(10 * time.Second)
	if _, err := v.Verify(token, c.Now()); err != nil {
		t.Errorf("the server is back: %v", err)
	}
	v.Close()
	if st, ok := last.Load().(Status); !ok || st.Err != nil || st.URL != s.URL {
		t.Errorf("the report was %+v", st)
	}
}

// Weak keys and secrets in a remote set are skipped; the others serve.
func TestRemoteSkipsBadKeys(t *testing.T) {
	t.Parallel()
	mixed := strings.Replace(jwks("weak", "p256"), `{"keys":[`, `{"keys":[{"kty":"oct","k":"AAAA","kid":"s"},{"kty":"new"},`, 1)
	s := newKeyServer(t, mixed)
	v := verifier(t, Options{Now: newClock().Now, RootCAs: s.roots()}, s.rule())
	if _, err := v.Verify(mint(t, jose.ES256, keys()["p256"], "p256", goodClaims(), nil), epoch); err != nil {
		t.Error(err)
	}
	if _, err := v.Verify(mint(t, jose.RS256, keys()["weak"], "weak", goodClaims(), nil), epoch); reason(err) != UnknownKey {
		t.Error(err)
	}
	if st := v.Status()[0]; st.Skipped != 3 || st.Keys != 1 {
		t.Errorf("%+v", st)
	}
}

// Ten thousand tokens with invented keys reach the key server once, nobody
// waits longer than one fetch, and good callers are served meanwhile.
func TestClass16UnknownKidStorm(t *testing.T) {
	t.Parallel()
	s, c := newKeyServer(t, jwks("p256")), newClock()
	v := verifier(t, Options{Now: c.Now, RootCAs: s.roots()}, s.rule())
	good := mint(t, jose.ES256, keys()["p256"], "p256", goodClaims(), nil)
	if _, err := v.Verify(good, c.Now()); err != nil {
		t.Fatal(err)
	}
	c.Advance(10 * time.Second)
	entered, release := make(chan struct{}), make(chan struct{})
	s.set(func(w http.ResponseWriter, _ *http.Request) {
		close(entered) // twice would panic: the second fetch would show
		<-release
		io.WriteString(w, jwks("p256"))
	})
	claims := string(mustJSON(goodClaims()))
	var storm sync.WaitGroup
	var refused atomic.Int32
	for i := range 20 {
		storm.Go(func() {
			for j := range 500 {
				token := forge(t, fmt.Sprintf(`{"alg":"ES256","kid":"k%d.%d"}`, i, j), claims)
				if _, err := v.Verify(token, c.Now()); reason(err) == UnknownKey {
					refused.Add(1)
				}
			}
		})
	}
	<-entered
	if _, err := v.Verify(good, c.Now()); err != nil { // while the fetch hangs
		t.Error(err)
	}
	if _, err := v.Verify(mint(t, jose.ES256, keys()["p256"], "p256", with(map[string]any{"n": 1}), nil), c.Now()); err != nil {
		t.Error(err)
	}
	close(release)
	storm.Wait()
	if n := refused.Load(); n != 10000 {
		t.Errorf("%d of 10000 refused", n)
	}
	if n := s.hits.Load(); n != 2 {
		t.Errorf("%d fetches, want 2", n)
	}
	// Tokens that fail by their text alone cause no fetch at all.
	c.Advance(time.Minute)
	for _, change := range []map[string]any{{"exp": 1}, {"aud": "other"}, {"iss": "other"}, {"sub": nil}} {
		v.Verify(mint(t, jose.ES256, keys()["p256b"], "new", with(change), nil), c.Now())
	}
	if n := s.hits.Load(); n != 2 {
		t.Errorf("%d fetches after bad tokens, want 2", n)
	}
}

// While one fetch hangs only so many wait for it; the rest is refused at once.
func TestWaitersAreBounded(t *testing.T) {
	t.Parallel()
	hang, entered := make(chan struct{}), make(chan struct{}, 1)
	s := newKeyServer(t, func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		select {
		case <-hang:
		case <-r.Context().Done():
		}
	})
	defer close(hang)
	v := verifier(t, Options{Now: newClock().Now, RootCAs: s.roots(), Timeout: time.Minute}, s.rule())
	src := v.remotes[0]
	src.waiting.Store(maxWaiters)
	if _, err := v.Verify(mint(t, jose.ES256, keys()["p256"], "p256", goodClaims(), nil), epoch); reason(err) != KeysUnavailable {
		t.Error(err)
	}
	if s.hits.Load() != 0 {
		t.Error("a refused waiter fetched")
	}
	src.waiting.Store(0)
	done := make(chan error)
	go func() {
		_, err := v.Verify(mint(t, jose.ES256, keys()["p256"], "p256", goodClaims(), nil), epoch)
		done <- err
	}()
	<-entered
	v.Close() // ends the fetch, and with it the wait
	if err := <-done; reason(err) != KeysUnavailable {
		t.Error(err)
	}
}

// Run fetches before the first token, again and again, and ends with ctx.
func TestRun(t *testing.T) {
	t.Parallel()
	s := newKeyServer(t, 500)
	reports := make(chan Status, 100)
	v := verifier(t, Options{Now: newClock().Now, RootCAs: s.roots(), Refresh: 4 * time.Millisecond, Report: func(s Status) { reports <- s }}, s.rule())
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { v.Run(ctx); close(ended) }()
	if st := <-reports; st.Err == nil {
		t.Error("the first fetch cannot have worked")
	}
	s.set(jwks("p256"))
	for st := range reports {
		if st.Err == nil && st.Keys == 1 {
			break
		}
	}
	hits := s.hits.Load()
	if _, err := v.Verify(mint(t, jose.ES256, keys()["p256"], "p256", goodClaims(), nil), epoch); err != nil {
		t.Error(err)
	}
	for s.hits.Load() < hits+3 { // it goes on
		<-reports
	}
	cancel()
	go func() { // drain: reports of fetches under way
		for range reports {
		}
	}()
	<-ended
	v.Close()
	close(reports)
}

const denied = "not one that may be fetched from"

// A key set's URL is what an intent says, and who wrote it, or the server
// behind it, or its DNS, may want to reach what only the gate can reach.
func TestClass13SSRFThroughKeySetURL(t *testing.T) {
	t.Parallel()
	token := mint(t, jose.ES256, keys()["p256"], "p256", goodClaims(), nil)
	refused := func(t *testing.T, s *keyServer, url string, local bool, want string) {
		t.Helper()
		r := s.rule()
		r.KeySet, r.AllowLocal = url, local
		v := verifier(t, Options{Now: newClock().Now, RootCAs: s.roots()}, r)
		if _, err := v.Verify(token, epoch); reason(err) != KeysUnavailable {
			t.Errorf("%s: %v", url, err)
		}
		if err := v.Status()[0].Err; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: status %v, want %q", url, err, want)
		}
	}
	t.Run("addresses", func(t *testing.T) {
		t.Parallel()
		s := newKeyServer(t, jwks("p256"))
		port := s.Listener.Addr().(*net.TCPAddr).Port
		for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]"} {
			refused(t, s, fmt.Sprintf("https://%s:%d/", host, port), false, denied)
		}
		for _, host := range []string{"169.254.169.254", "[fe80::1]", "0.0.0.0", "[fd00:ec2::254]", "100.100.100.200"} {
			refused(t, s, "https://"+host+"/", true, denied) // not even with AllowLocal
		}
		if s.hits.Load() != 0 {
			t.Error("the server was reached")
		}
	})
	t.Run("redirects", func(t *testing.T) {
		t.Parallel()
		var to string
		s := newKeyServer(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusFound) })
		for _, tt := range []struct{ to, want string }{
			{"https://169.254.169.254/latest", denied},
			{"http://127.0.0.1:1/", "not https"},
			{"http://169.254.169.254/latest", "not https"},
			{"file:///etc/passwd", "not https"},
		} {
			to = tt.to
			refused(t, s, s.URL, true, tt.want)
		}
	})
	t.Run("plain http only on loopback", func(t *testing.T) {
		t.Parallel()
		s := newKeyServer(t, "")
		refused(t, s, "http://10.0.0.1/", true, denied)
		refused(t, s, "http://192.0.2.1/", true, denied)
		refused(t, s, "http://8.8.8.8/", true, denied)
		plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, jwks("p256")) }))
		defer plain.Close()
		r := s.rule()
		r.KeySet = plain.URL
		if _, err := verifier(t, Options{Now: newClock().Now}, r).Verify(token, epoch); err != nil {
			t.Error(err)
		}
	})
	t.Run("rebinding", testRebinding)
	t.Run("no proxy", func(t *testing.T) {
		t.Parallel()
		u, _ := url.Parse("https://keys.example/")
		client, err := newClient(u, false, Options{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if client.Transport.(*http.Transport).Proxy != nil {
			t.Error("a proxy connects where we may not")
		}
	})
}

// A name that was public when somebody looked, and is private when it is
// dialled.
func testRebinding(t *testing.T) {
	t.Parallel()
	s := newKeyServer(t, jwks("p256"))
	u, _ := url.Parse(fmt.Sprintf("https://keys.example:%d/", s.Listener.Addr().(*net.TCPAddr).Port))
	dns, queries := nameServer(t, [4]byte{127, 0, 0, 1})
	client, err := newClient(u, false, Options{Timeout: 5 * time.Second, RootCAs: s.roots()}, dns)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Get(u.String()); err == nil || !strings.Contains(err.Error(), denied) {
		t.Error(err)
	}
	if queries.Load() == 0 {
		t.Error("the name was not resolved: the test shows nothing")
	}
	if s.hits.Load() != 0 {
		t.Error("the server was reached")
	}
}

// nameServer is a real DNS server that answers every question with addr.
func nameServer(t *testing.T, addr [4]byte) (*net.Resolver, *atomic.Int32) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	var queries atomic.Int32
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			queries.Add(1)
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			reply := dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, RecursionAvailable: true}, Questions: m.Questions}
			if q.Type == dnsmessage.TypeA {
				reply.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class},
					Body:   &dnsmessage.AResource{A: addr},
				}}
			}
			if b, err := reply.Pack(); err == nil {
				conn.WriteTo(b, from)
			}
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}, &queries
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	tests := []struct{ addr, in string }{
		{"8.8.8.8", "public local"},
		{"1.1.1.1", "public local"},
		{"2606:4700::1111", "public local"},
		{"10.1.2.3", "local"},
		{"172.16.0.1", "local"},
		{"172.32.0.1", "public local"},
		{"192.168.1.1", "local"},
		{"100.64.0.1", "local"},
		{"fd12:3456::1", "local"},
		{"127.0.0.1", "local loopback"},
		{"127.8.8.8", "local loopback"},
		{"::1", "local loopback"},
		{"::ffff:127.0.0.1", "local loopback"},
		{"::ffff:10.0.0.1", "local"},
		{"::ffff:169.254.169.254", ""},
		{"169.254.169.254", ""},
		{"fe80::1", ""},
		{"fe80::1%eth0", ""},
		{"fec0::1", ""},
		{"fd00:ec2::254", ""},
		{"100.100.100.200", ""},
		{"0.0.0.0", ""},
		{"0.1.2.3", ""},
		{"::", ""},
		{"::7f00:1", ""},         // IPv4-compatible
		{"64:ff9b::7f00:1", ""},  // NAT64
		{"64:ff9b:1::a00:1", ""}, // local NAT64
		{"2002:7f00:1::", ""},    // 6to4
		{"2001:0:7f00:1::", ""},  // Teredo
		{"2001:db8::1", ""},      // documentation
		{"192.0.0.170", ""},      // protocol assignments
		{"192.0.2.1", ""},        // documentation
		{"198.18.0.1", ""},       // benchmarks
		{"203.0.113.1", ""},      // documentation
		{"224.0.0.1", ""},        // multicast
		{"ff02::1", ""},          // multicast
		{"240.0.0.1", ""},        // reserved
		{"255.255.255.255", ""},  // broadcast
		{"2620:4f:8000::1", "public local"},
	}
	for _, tt := range tests {
		for name, allowed := range map[string]func(netip.Addr) bool{"public": reach.Public, "local": reach.Local, "loopback": reach.Loopback} {
			address := net.JoinHostPort(tt.addr, "443")
			err := reach.Control(allowed)("tcp", address, nil)
			if want := strings.Contains(tt.in, name); (err == nil) != want {
				t.Errorf("%s %s: %v, want allowed: %v", name, tt.addr, err, want)
			}
		}
	}
	if reach.Control(reach.Public)("tcp", "nonsense", nil) == nil {
		t.Error("an address that cannot be read passed")
	}
}
