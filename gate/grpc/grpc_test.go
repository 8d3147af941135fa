package grpc_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"merlon/gate/grpc"
	"merlon/internal/httpfield"
)

func TestKindOf(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]grpc.Kind{
		"application/grpc":                      grpc.Native,
		"application/grpc+proto":                grpc.Native,
		"Application/GRPC+json":                 grpc.Native,
		"application/grpc; charset=utf-8":       grpc.Native,
		"application/grpc;a=b":                  grpc.Native,
		"application/grpc-web":                  grpc.Web,
		"application/grpc-web+proto":            grpc.Web,
		"application/grpc-web-text":             grpc.WebText,
		"application/grpc-web-text+proto":       grpc.WebText,
		"":                                      grpc.None,
		"application/json":                      grpc.None,
		"application/grp":                       grpc.None,
		"application/grpcx":                     grpc.None,
		"application/grpc-webtext":              grpc.None,
		"application/grpc-we":                   grpc.None,
		"application/grpc/x":                    grpc.None,
		" application/grpc":                     grpc.None,
		"text/plain, application/grpc":          grpc.None,
		"application/grpc-web-textual":          grpc.None,
		"application/grpc,application/grpc-web": grpc.None,
	} {
		if got := grpc.KindOf(text); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
	for text, want := range map[string]string{"application/grpc": "", "application/grpc+json": "+json", "application/grpc-web+proto; x=y": "+proto", "application/grpc; x=a+b": ""} {
		for k := grpc.Native; k <= grpc.WebText; k++ {
			got := string(grpc.AppendContentType(nil, k, text))
			if grpc.KindOf(got) != k || !strings.HasSuffix(got, want) || strings.Contains(got, ";") {
				t.Errorf("kind %d like %q: %q", k, text, got)
			}
		}
	}
}

func TestTimeout(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"1n": 1, "0n": 0, "10u": 10 * time.Microsecond, "99999999m": 99999999 * time.Millisecond,
		"00000001S": time.Second, "2M": 2 * time.Minute, "3H": 3 * time.Hour, "99999999H": math.MaxInt64,
	} {
		if got, ok := grpc.ParseTimeout(text); !ok || got != want {
			t.Errorf("%q: %v, %v", text, got, ok)
		}
	}
	for _, text := range []string{"", "S", "1", "100000000n", "-1S", "+1S", "1 S", " 1S", "1s", "1h", "1.5S", "1SS", "0x1S", "1S ", "١S"} {
		if got, ok := grpc.ParseTimeout(text); ok {
			t.Errorf("%q is %v", text, got)
		}
	}
}

// FuzzTimeout: what is read is written so that it reads as no less, and little
// more.
func FuzzTimeout(f *testing.F) {
	f.Add("1n")
	f.Add("99999999H")
	f.Fuzz(func(t *testing.T, s string) {
		d, ok := grpc.ParseTimeout(s)
		if !ok {
			return
		}
		again, ok := grpc.ParseTimeout(string(grpc.AppendTimeout(nil, d)))
		if !ok || again < d || d < math.MaxInt64/2 && again > d+d/1e6+1 {
			t.Errorf("%q is %v, again %v, %v", s, d, again, ok)
		}
	})
}

func TestCodes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]grpc.Code{"0": grpc.OK, "7": grpc.PermissionDenied, "16": grpc.Unauthenticated, "17": grpc.Unknown, "": grpc.Unknown, "x": grpc.Unknown, "-1": grpc.Unknown, "+1": grpc.Unknown, "007": grpc.Unknown, "256": grpc.Unknown} {
		if got := grpc.ParseCode(text); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
	for status, want := range map[int]string{
		400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "UNIMPLEMENTED", 413: "RESOURCE_EXHAUSTED", 415: "INVALID_ARGUMENT",
		429: "RESOURCE_EXHAUSTED", 431: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 501: "UNIMPLEMENTED", 502: "UNAVAILABLE", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
		200: "UNKNOWN", 0: "UNKNOWN",
	} {
		if got := grpc.FromHTTP(status).String(); got != want {
			t.Errorf("%d: %s, want %s", status, got, want)
		}
	}
	if got := grpc.Code(99).String(); got != "UNKNOWN" {
		t.Error(got)
	}
}

func message(flag byte, size int) []byte {
	return append([]byte{flag, byte(size >> 24), byte(size >> 16), byte(size >> 8), byte(size)}, make([]byte, size)...)
}

func TestMessages(t *testing.T) {
	t.Parallel()
	var all []byte
	for _, size := range []int{0, 1, 5, 300, 0, 0, 7} {
		all = append(all, message(byte(size)&1, size)...)
	}
	for _, test := range []struct {
		in   []byte
		max  int64
		want error
	}{
		{all, 300, nil},
		{all, 299, grpc.ErrTooLarge},
		{append(all[:len(all):len(all)], 2), 300, grpc.ErrFrame},
		{append(all[:len(all):len(all)], 0x80, 0, 0, 0, 0), 300, grpc.ErrFrame},
		{[]byte{0, 0xff, 0xff, 0xff, 0xff}, math.MaxInt32, grpc.ErrTooLarge},
		{nil, 0, nil},
	} {
		for _, step := range []int{1, 3, 5, 1000} {
			var m grpc.Messages
			var err error
			for in := test.in; len(in) > 0 && err == nil; in = in[min(step, len(in)):] {
				err = m.Scan(in[:min(step, len(in))], test.max)
			}
			if !errors.Is(err, test.want) || err == nil && !m.Between() {
				t.Errorf("%d at a time: %v, want %v; between %v", step, err, test.want, m.Between())
			}
		}
	}
	var m grpc.Messages
	if m.Scan(message(0, 9)[:8], 9); m.Between() {
		t.Error("between messages in the middle of one")
	}
}

func TestTrailerFrame(t *testing.T) {
	t.Parallel()
	got := grpc.AppendTrailerFrame([]byte("x"), []httpfield.Field{{Name: "Grpc-Status", Value: "7"}, {Name: "x-a", Value: ""}})
	if want := "x\x80\x00\x00\x00\x17grpc-status: 7\r\nx-a: \r\n"; string(got) != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestText(t *testing.T) {
	t.Parallel()
	var want []byte
	text := ""
	for size := range 20 {
		data := bytes.Repeat([]byte{byte(size), 0xff}, size)
		want = append(want, data...)
		text += string(grpc.AppendText(nil, data))
	}
	for _, step := range []int{1, 2, 3, 4, 7, len(text)} {
		var d grpc.Text
		var got []byte
		var err error
		for in := text; in != "" && err == nil; in = in[min(step, len(in)):] {
			got, err = d.Append(got, []byte(in[:min(step, len(in))]))
		}
		if err != nil || !d.Whole() || !bytes.Equal(got, want) {
			t.Errorf("%d at a time: %d bytes of %d, %v", step, len(got), len(want), err)
		}
	}
	for _, bad := range []string{"AA\r\n", "AAA\n", "====", "A===", "AA=A", "A AA", "AA-_", "AB==", "AAB=", "\x00AAA"} {
		var d grpc.Text
		if got, err := d.Append(nil, []byte(bad)); err == nil {
			t.Errorf("%q became %q", bad, got)
		}
	}
	var d grpc.Text
	if d.Append(nil, []byte("AAAAA")); d.Whole() {
		t.Error("whole in the middle of four")
	}
}

// FuzzText: what is decoded is what the standard decodes, piece by piece.
func FuzzText(f *testing.F) {
	f.Add("AAECAwQ=")
	f.Add("AA==AA==")
	f.Fuzz(func(t *testing.T, s string) {
		var d grpc.Text
		got, err := d.Append(nil, []byte(s))
		if err != nil || !d.Whole() {
			return
		}
		var want []byte
		for rest := s; rest != ""; {
			piece := rest[:len(rest)-len(strings.TrimLeft(rest, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"))]
			piece = rest[:len(piece)+len(rest[len(piece):])-len(strings.TrimLeft(rest[len(piece):], "="))]
			data, err := base64.StdEncoding.DecodeString(piece)
			if err != nil {
				t.Fatalf("%q: %q: %v", s, piece, err)
			}
			want, rest = append(want, data...), rest[len(piece):]
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
	})
}
