package http1_test

import (
	"testing"

	"merlon/gate/http1"
)

// TestConnect reads the authority-form, where it is wanted.
func TestConnect(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ raw, want string }{
		{"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n", "a.example:443"},
		{"CONNECT a.example:443 HTTP/1.1\r\nHost: A.example:443\r\nContent-Length: 0\r\n\r\n", "a.example:443"},
		{"CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n\r\n", "[::1]:443"},
		{"CONNECT a:443 HTTP/1.0\r\n\r\n", "a:443"},
		{"CONNECT a:443 HTTP/1.0\r\nHost: b:443\r\n\r\n", "connect_host_differs"},
		{"CONNECT a:443 HTTP/1.1\r\n\r\n", "host_missing"},
		{"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", "connect_host_differs"},
		{"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nHost: a:443\r\n\r\n", "host_repeated"},
		{"CONNECT /a HTTP/1.1\r\nHost: /a\r\n\r\n", "target_invalid"},
		{"CONNECT * HTTP/1.1\r\nHost: a\r\n\r\n", "target_invalid"},
		{"CONNECT http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", "target_invalid"},
		{"CONNECT u@a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", "target_invalid"},
		{"CONNECT a:0 HTTP/1.1\r\nHost: a:0\r\n\r\n", "target_invalid"},
		{"CONNECT a:65536 HTTP/1.1\r\nHost: a:65536\r\n\r\n", "target_invalid"},
		{"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nContent-Length: 1\r\n\r\n", "connect_with_body"},
		{"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nTransfer-Encoding: chunked\r\n\r\n", "connect_with_body"},
	} {
		var r http1.Request
		n, err := r.Parse([]byte(tt.raw), http1.Limits{Connect: true})
		got := r.Host
		if err != nil {
			got = reasonOf(err)
		} else if n != len(tt.raw) || r.Method != "CONNECT" || r.Path != "" || r.Query != "" {
			t.Errorf("%q: read %d of %d bytes, %+v", tt.raw, n, len(tt.raw), r)
		}
		if got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.raw, got, tt.want)
		}
		if _, err := r.Parse([]byte(tt.raw), http1.Limits{}); err == nil {
			t.Errorf("%q is taken unasked", tt.raw)
		}
	}
}
