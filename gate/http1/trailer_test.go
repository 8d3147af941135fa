package http1_test

import (
	"fmt"
	"strings"
	"testing"

	"merlon/gate/http1"
)

// ending decodes what ends a chunked body, given at most step bytes at a time.
func ending(t *http1.Trailer, raw string, step int) (used int, done bool, err error) {
	c := http1.Chunks{Trailer: t}
	for used < len(raw) && !done && err == nil {
		var n int
		n, _, done, err = c.Decode([]byte(raw[used:min(len(raw), used+step)]))
		used += n
	}
	return used, done, err
}

func TestTrailer(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 1000)
	for _, test := range []struct{ name, raw, want string }{
		{"none", "", ""},
		{"grpc", "grpc-status: 0\r\ngrpc-message:\r\n", "grpc-status=0 grpc-message="},
		{"repeated", "X-Sum: 1\r\nX-Sum: 2\r\n", "X-Sum=1 X-Sum=2"},
		{"utf8", "X-Name: \u00fc\r\n", "X-Name=\u00fc"},
		{"bounded", strings.Repeat("X-Long: "+long+"\r\n", 17), "trailer_too_large"},
		{"many", strings.Repeat("a: b\r\n", 101), "too_many_fields"},
		{"space", "a : b\r\n", "space_before_colon"},
		{"fold", "a: b\r\n c\r\n", "obs_fold"},
		{"bare lf", "a: b\nc: d\r\n", "field_value_control"},
		{"bare cr", "a: b\rc: d\r\n", "bare_cr"},
		{"nul", "a: \x00\r\n", "field_value_control"},
		{"no colon", "a\r\n", "colon_missing"},
		{"no name", ": b\r\n", "chunk_end_invalid"},
		{"disguised", "a: b\r\ntransfer_encoding: chunked\r\n", "field_name_disguised"},
		// What must not stand there is dropped: nobody may act upon it.
		{"framing", "Transfer-Encoding: chunked\r\nx: y\r\n", "x=y"},
		{"length", "x: y\r\nContent-Length: 7\r\n", "x=y"},
		{"lengths", "Content-Length: 7\r\nContent-Length: 8\r\n", "content_length_repeated"},
		{"routing", "Host: other\r\nx: y\r\n", "x=y"},
		{"hop", "Connection: x\r\nUpgrade: h2c\r\nTE: trailers\r\nx: y\r\n", "x=y"},
		{"identity", "Merlon-Caller: me\r\nX-Forwarded-For: ::1\r\nAuthorization: Bearer x\r\nx: y\r\n", "x=y"},
		{"control", "Set-Cookie: a=b\r\nCache-Control: public\r\nContent-Type: text/html\r\nAge: 1\r\nAges: 2\r\n", "Ages=2"},
	} {
		raw := "0\r\n" + test.raw + "\r\n"
		for _, step := range []int{1, 2, 5, len(raw) + 4} {
			var tr http1.Trailer
			used, done, err := ending(&tr, raw+"GET ", step)
			var got []string
			for _, f := range tr.Fields {
				got = append(got, f.Name+"="+f.Value)
			}
			said := strings.Join(got, " ")
			if err != nil {
				said = reasonOf(err)
			} else if !done || used != len(raw) {
				said = fmt.Sprintf("used %d of %d, done %v", used, len(raw), done)
			}
			if said != test.want {
				t.Errorf("%s, %d at a time: %s, want %s", test.name, step, said, test.want)
			}
		}
		if used, done, err := ending(nil, raw, len(raw)); test.raw != "" && (err == nil || done) {
			t.Errorf("%s: not asked for, but used %d, %v, %v", test.name, used, done, err)
		}
	}
}

// TestTrailerAllocatesNothing, once its memory is warm.
func TestTrailerAllocatesNothing(t *testing.T) {
	raw := []byte("0\r\ngrpc-status: 13\r\ngrpc-message: it%20broke\r\n\r\n")
	var tr http1.Trailer
	allocs := testing.AllocsPerRun(100, func() {
		c := http1.Chunks{Trailer: &tr}
		if n, _, done, err := c.Decode(raw); n != len(raw) || !done || err != nil || len(tr.Fields) != 2 {
			t.Fatal(n, done, err)
		}
		tr.Reset()
	})
	if allocs != 0 {
		t.Errorf("%v allocations per run", allocs)
	}
}

// FuzzTrailer: the cut does not matter, and what is accepted is accepted again
// as it is written.
func FuzzTrailer(f *testing.F) {
	f.Add("grpc-status: 0\r\n\r\n")
	f.Add("a: b\r\ncontent-length: 1\r\n\r\nmore")
	f.Fuzz(func(t *testing.T, raw string) {
		if len(raw) > 2000 {
			return
		}
		raw = "0\r\n" + raw
		var one, two, three http1.Trailer
		used, done, err := ending(&one, raw, len(raw))
		used2, done2, err2 := ending(&two, raw, 1)
		if done != done2 || fmt.Sprint(err) != fmt.Sprint(err2) || done && used != used2 {
			t.Fatalf("whole %d %v %v, byte by byte %d %v %v", used, done, err, used2, done2, err2)
		}
		if !done || err != nil {
			return
		}
		again := http1.AppendTrailer(nil, one.Fields, 0)
		n, done, err := ending(&three, string(again), len(again))
		if n != len(again) || !done || err != nil || fmt.Sprint(one.Fields) != fmt.Sprint(three.Fields) {
			t.Fatalf("%q became %q: %d, %v, %v", raw, again, n, done, err)
		}
	})
}
