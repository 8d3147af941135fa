package canon_test

import (
	"errors"
	"math/rand/v2"
	"net/url"
	"path"
	"strings"
	"testing"
	"unicode/utf8"

	"merlon/gate/canon"
)

// answer is the canonical form, or the reason of the refusal in braces.
func answer(s string, err error) string {
	var e *canon.Error
	if errors.As(err, &e) {
		return "{" + e.Reason + "}"
	}
	if err != nil {
		return err.Error()
	}
	return s
}

func canonPath(raw string, keepSlash bool) string {
	s, err := canon.Path(raw, keepSlash, nil)
	return answer(s, err)
}

// TestClass01PathSeenByPolicyIsPathSentUpstream: a path has one reading or
// none. Left the raw path, right what policy and upstream both get.
func TestClass01PathSeenByPolicyIsPathSentUpstream(t *testing.T) {
	t.Parallel()
	for _, c := range [][2]string{
		{"/", "/"},
		{"/a/b", "/a/b"},
		{"/a/", "/a/"},
		{"/a.b/..c/...", "/a.b/..c/..."},
		{"/%61dmin", "/admin"},
		{"/%7euser", "/~user"},
		{"/users/%40me", "/users/@me"},
		{"/v1/x%3acancel", "/v1/x:cancel"},
		{"/a%21%24%26%27%28%29%2a%2c%3d", "/a!$&'()*,="},
		{"/a+b", "/a+b"},
		{"/a%2bb", "/a%2Bb"},
		{"/a%3bb", "/a%3Bb"},
		{"/a%20b", "/a%20b"},
		{"/a%3fb%23c", "/a%3Fb%23c"},
		{"/%c3%a9", "/%C3%A9"},
		{"/%e2%82%ac/%f0%9f%98%80", "/%E2%82%AC/%F0%9F%98%80"},
		{"/100%25", "/100%25"},
		{"/100%25/a", "/100%25/a"},
		{"/%25zz", "/%25zz"},

		{"", "{path_not_absolute}"},
		{"a", "{path_not_absolute}"},
		{"*", "{path_not_absolute}"},
		{"%2fa", "{path_not_absolute}"},
		{"/" + strings.Repeat("a", canon.MaxPath), "{path_too_long}"},
		{"/public/../admin", "{path_dot_segment}"},
		{"/public/%2e%2e/admin", "{path_dot_segment}"},
		{"/public/.%2E/admin", "{path_dot_segment}"},
		{"/..", "{path_dot_segment}"},
		{"/.", "{path_dot_segment}"},
		{"/./admin", "{path_dot_segment}"},
		{"/a/..%3bx/admin", "{path_dot_segment}"},
		{"/a/..%3fx/admin", "{path_dot_segment}"},
		{"/a/..%23x/admin", "{path_dot_segment}"},
		{"/a/..%20/admin", "{path_dot_segment}"},
		{"/public/..;/admin", "{path_parameter}"},
		{"/admin;x", "{path_parameter}"},
		{"//admin", "{path_empty_segment}"},
		{"/public//admin", "{path_empty_segment}"},
		{"/public/..%2fadmin", "{path_encoded_slash}"},
		{"/public%2Fadmin", "{path_encoded_slash}"},
		{"/public\\admin", "{path_backslash}"},
		{"/public%5cadmin", "{path_backslash}"},
		{"/public/%252e%252e/admin", "{path_double_encoding}"},
		{"/public%252fadmin", "{path_double_encoding}"},
		{"/public%25%32%66admin", "{path_double_encoding}"},
		{"/%25u002fadmin", "{path_double_encoding}"},
		{"/%25%75%30%30%32fadmin", "{path_double_encoding}"},
		{"/admin%00.html", "{path_control}"},
		{"/admin%0a", "{path_control}"},
		{"/%7f", "{path_control}"},
		{"/%c0%aeadmin", "{path_not_utf8}"},
		{"/%ef%bc", "{path_not_utf8}"},
		{"/%c3x%a9", "{path_not_utf8}"},
		{"/%ed%a0%80", "{path_not_utf8}"},
		{"/%c2%85", "{path_not_utf8}"},
		{"/%", "{path_escape}"},
		{"/%4", "{path_escape}"},
		{"/%4g", "{path_escape}"},
		{"/%%34%31", "{path_escape}"},
		{"/a b", "{path_character}"},
		{"/a?b", "{path_character}"},
		{"/a#b", "{path_character}"},
		{"/é", "{path_character}"},
		{"/a\x00", "{path_character}"},
		{"/{id}", "{path_character}"},
	} {
		if got := canonPath(c[0], false); got != c[1] {
			t.Errorf("%.80s becomes %.80s, want %.80s", c[0], got, c[1])
		}
	}
}

// TestKeepSlash: %2F stays inside its segment, and hides no dot segment there.
func TestKeepSlash(t *testing.T) {
	t.Parallel()
	for _, c := range [][2]string{
		{"/a%2fb", "/a%2Fb"},
		{"/https%3a%2f%2fa.example%2f", "/https:%2F%2Fa.example%2F"},
		{"/a%2F..b", "/a%2F..b"},
		{"/..%2fa", "{path_dot_segment}"},
		{"/a%2f..", "{path_dot_segment}"},
		{"/a%2f.%2fb", "{path_dot_segment}"},
		{"/a%2f%2e%2e%2fb", "{path_dot_segment}"},
		{"/a%2f../b", "{path_dot_segment}"},
		{"/a%2f/b", "{path_empty_segment}"},
		{"/a%252fb", "{path_double_encoding}"},
		{"/a%5cb", "{path_backslash}"},
	} {
		if got := canonPath(c[0], true); got != c[1] {
			t.Errorf("%s becomes %s, want %s", c[0], got, c[1])
		}
	}
}

func canonHost(raw string) string {
	s, err := canon.Host(raw, nil)
	return answer(s, err)
}

// TestHost: a host has one spelling.
func TestHost(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 63)
	for _, c := range [][2]string{
		{"shop.example", "shop.example"},
		{"Shop.EXAMPLE", "shop.example"},
		{"shop.example.", "shop.example"},
		{"SHOP.example.:443", "shop.example"},
		{"shop.example:65535", "shop.example"},
		{"a_b.example", "a_b.example"},
		{"r3---x.example", "r3---x.example"},
		{"1.example", "1.example"},
		{"0xg.example", "0xg.example"},
		{"a.1b", "a.1b"},
		{"xn--bcher-kva.example", "xn--bcher-kva.example"},
		{"XN--BCHER-KVA.example", "xn--bcher-kva.example"},
		{long + ".example", long + ".example"},
		{"127.0.0.1", "127.0.0.1"},
		{"127.0.0.1.:80", "127.0.0.1"},
		{"[::1]", "[::1]"},
		{"[::1]:443", "[::1]"},
		{"[2001:DB8:0:0::1]", "[2001:db8::1]"},
		{"[::ffff:1.2.3.4]", "[::ffff:1.2.3.4]"},
		{"[::ffff:102:304]", "[::ffff:1.2.3.4]"},
	} {
		if got := canonHost(c[0]); got != c[1] {
			t.Errorf("%q becomes %s, want %s", c[0], got, c[1])
		}
	}
}

// TestClass11CaseFoldingAndUnicodeHosts: what only some fold or map to a known
// host is no host.
func TestClass11CaseFoldingAndUnicodeHosts(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 63)
	for _, c := range [][2]string{
		{"Shop.EXAMPLE.", "shop.example"},
		{"", "{host_empty}"},
		{".", "{host_empty}"},
		{":80", "{host_empty}"},
		{"..", "{host_label_empty}"},
		{"a..b", "{host_label_empty}"},
		{".a", "{host_label_empty}"},
		{"a..", "{host_label_empty}"},
		{"-a", "{host_label_hyphen}"},
		{"a-.example", "{host_label_hyphen}"},
		{long + "a", "{host_label_too_long}"},
		{strings.Repeat(long+".", 4) + "a", "{host_too_long}"},
		{"a:", "{host_port}"},
		{"a:0", "{host_port}"},
		{"a:080", "{host_port}"},
		{"a:65536", "{host_port}"},
		{"a:8o", "{host_port}"},
		{"a:80:80", "{host_port}"},
		{"a b", "{host_character}"},
		{"a\x00", "{host_character}"},
		{"user@a", "{host_character}"},
		{"a%2eb", "{host_character}"},
		{"a/b", "{host_character}"},
		{"[::1]a", "{host_character}"},
		{"é.example", "{host_not_ascii}"},
		{"\u212aelvin.example", "{host_not_ascii}"}, // U+212A folds to k
		{"\u017fhop.example", "{host_not_ascii}"},   // U+017F folds to s
		{"shop\u3002example", "{host_not_ascii}"},   // IDNA maps it to a dot
		{"shop\uff0eexample", "{host_not_ascii}"},
		{"sh\u00adop.example", "{host_not_ascii}"}, // IDNA drops it
		{"\xff.example", "{host_not_ascii}"},
		{"xn--a", "{host_label_idna}"},
		{"xn--elvin-r74b.example", "{host_label_idna}"}, // of U+212A
		{"xn--hop-p96s.example", "{host_label_idna}"},   // of a full-width s
		{"xn--shop-rga.example", "{host_label_idna}"},   // of a soft hyphen
		{"xn--a-vbb.example", "{host_label_idna}"},      // not in normal form C
		{"xn--99999999999", "{host_label_idna}"},
		{"xn--shop-", "{host_label_hyphen}"},
		{"127.1", "{host_address}"},
		{"127.0.0.01", "{host_address}"},
		{"1.2.3.4.5", "{host_address}"},
		{"2130706433", "{host_address}"},
		{"0x7f000001", "{host_address}"},
		{"0X7F.0.0.1", "{host_address}"},
		{"256.0.0.1", "{host_address}"},
		{"example.1", "{host_address}"},
		{"example.0x", "{host_address}"},
		{"[::1", "{host_address}"},
		{"[]", "{host_address}"},
		{"[1.2.3.4]", "{host_address}"},
		{"[fe80::1%eth0]", "{host_address}"},
		{"[::1%25x]", "{host_address}"},
		{"::1", "{host_port}"},
	} {
		if got := canonHost(c[0]); got != c[1] {
			t.Errorf("%q becomes %s, want %s", c[0], got, c[1])
		}
	}
}

// checkPath holds an accepted path to what canonical means.
func checkPath(t *testing.T, raw string, keepSlash bool) {
	t.Helper()
	s, err := canon.Path(raw, keepSlash, make([]byte, 0, len(raw)))
	if err != nil {
		if s != "" {
			t.Fatalf("Path(%q) gives %q beside %v", raw, s, err)
		}
		return
	}
	if again, err := canon.Path(s, keepSlash, nil); err != nil || again != s {
		t.Fatalf("Path(%q) = %q, but Path(%q) = %q, %v", raw, s, s, again, err)
	}
	want, err := url.PathUnescape(raw)
	if err != nil {
		t.Fatalf("%q is accepted, net/url says %v", raw, err)
	}
	decoded, err := url.PathUnescape(s)
	if err != nil || decoded != want {
		t.Fatalf("Path(%q) = %q changes the meaning: %q, was %q", raw, s, decoded, want)
	}
	if !utf8.ValidString(decoded) || strings.ContainsAny(decoded, "\\\x00\r\n") {
		t.Fatalf("Path(%q) = %q decodes to %q", raw, s, decoded)
	}
	if keepSlash {
		decoded = s // its slashes are not separators
	}
	if clean := path.Clean(decoded); clean != decoded && clean+"/" != decoded {
		t.Fatalf("Path(%q) = %q is cleaned to %q by others", raw, s, clean)
	}
	if twice, err := url.PathUnescape(decoded); !keepSlash && err == nil && twice != decoded {
		t.Fatalf("Path(%q) = %q decodes twice, to %q", raw, s, twice)
	}
}

// TestPathProperties tries random sequences of the pieces that attacks are made
// of.
func TestPathProperties(t *testing.T) {
	t.Parallel()
	pieces := strings.Fields(`/ / / a . .. %2e %2E %2f %5c %25 %252e % 2 5 e f u %c3%a9 %c0 %af %20 %3b %3B %3f + %2b ~ %7e @ %40 : admin %00 é ; \ %61`)
	rng := rand.New(rand.NewPCG(1, 1))
	accepted := 0
	for range 200_000 {
		raw := "/"
		for range rng.IntN(7) {
			raw += pieces[rng.IntN(len(pieces))]
		}
		checkPath(t, raw, false)
		checkPath(t, raw, true)
		if _, err := canon.Path(raw, false, nil); err == nil {
			accepted++
		}
	}
	if accepted < 20_000 {
		t.Errorf("only %d of 200000 paths were accepted: the property is hardly tested", accepted)
	}
}

func checkHost(t *testing.T, raw string) {
	t.Helper()
	s, err := canon.Host(raw, make([]byte, 0, 64))
	if err != nil {
		if s != "" {
			t.Fatalf("Host(%q) gives %q beside %v", raw, s, err)
		}
		return
	}
	if again, err := canon.Host(s, nil); err != nil || again != s {
		t.Fatalf("Host(%q) = %q, but Host(%q) = %q, %v", raw, s, s, again, err)
	}
	if s != strings.ToLower(s) || strings.HasSuffix(s, ".") || s == "" {
		t.Fatalf("Host(%q) = %q", raw, s)
	}
	u, err := url.Parse("http://" + raw + "/")
	if err != nil {
		t.Fatalf("%q is accepted, net/url says %v", raw, err)
	}
	if name := strings.TrimSuffix(strings.ToLower(u.Hostname()), "."); !strings.Contains(s, "[") && name != s {
		t.Fatalf("Host(%q) = %q, net/url has %q", raw, s, name)
	}
}

func FuzzPath(f *testing.F) {
	for _, s := range []string{"/", "/a/b/", "/%61", "/a%2fb", "/..%2f", "/%252e", "/%c3%a9", "/a;b", "/a%3b", "//", "/\\", "/%25%32%66", "/..%3b"} {
		f.Add(s, false)
		f.Add(s, true)
	}
	f.Fuzz(checkPath)
}

func FuzzHost(f *testing.F) {
	for _, s := range []string{"a", "A.b.:80", "[::1]:80", "127.0.0.1", "127.1", "xn--bcher-kva", "é", "a..b", "0x1.2", "[::ffff:1.2.3.4]"} {
		f.Add(s)
	}
	f.Fuzz(checkHost)
}

func TestCanonAllocatesNothing(t *testing.T) {
	buf := make([]byte, 0, 256)
	allocs := testing.AllocsPerRun(100, func() {
		for _, raw := range []string{"/api/items/42", "/%61pi/%c3%a9/a%20b"} {
			if _, err := canon.Path(raw, false, buf); err != nil {
				t.Fatal(err)
			}
		}
		for _, raw := range []string{"api.example.com", "API.Example.com:443", "127.0.0.1:80", "[2001:DB8::1]:80"} {
			if _, err := canon.Host(raw, buf); err != nil {
				t.Fatal(err)
			}
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations per run", allocs)
	}
}

// TestViews: the result is raw when raw is canonical, else it is in buf.
func TestViews(t *testing.T) {
	t.Parallel()
	buf := make([]byte, 0, 64)
	s, _ := canon.Path("/%61", false, buf)
	h, _ := canon.Host("Ab", make([]byte, 0, 8))
	copy(buf[:2], "/z")
	if s != "/z" || h != "ab" {
		t.Errorf("%q, %q: the results are not views", s, h)
	}
}

func BenchmarkPath(b *testing.B) {
	buf := make([]byte, 0, 256)
	for _, raw := range []string{"/api/v1/items/42", "/api/v1/items/%c3%a9%20%7e"} {
		b.Run(raw, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := canon.Path(raw, false, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkHost(b *testing.B) {
	buf := make([]byte, 0, 256)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := canon.Host("api.example.com:443", buf); err != nil {
			b.Fatal(err)
		}
	}
}
