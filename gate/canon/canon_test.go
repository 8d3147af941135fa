package canon

import "testing"

func TestSmoke(t *testing.T) {
	for _, p := range []string{"/", "//", "/a/b", "/a//b", "/%41", "/a%2fb", "/..", "/.%2e", "/a/", "/%c3%a4", "/%c0%af", "/%2525", "/%25", "/..%3bx"} {
		got, err := Path(p, false, make([]byte, 64))
		t.Log(p, got, err)
	}
	for _, p := range []string{"Shop.Example.:443", "127.1", "127.0.0.1", "[::1]:80", "xn--bcher-kva.example", "xn--google-.com", "a_b"} {
		got, err := Host(p, make([]byte, 64))
		t.Log(p, got, err)
	}
}
