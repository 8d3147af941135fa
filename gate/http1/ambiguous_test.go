package http1_test

import (
	"bufio"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"merlon/gate/canon"
	"merlon/gate/http1"
)

// limits are the ones of the files in testdata.
var limits = http1.Limits{Head: 1000, Target: 200, Field: 300, Fields: 20}

// sample is one line of a file in testdata.
type sample struct {
	line   int
	method string // of the request, for responses
	want   string // reason, "ok" or "more"
	raw    string
}

// samples reads "reason quoted" or "reason METHOD quoted" lines.
func samples(t testing.TB, name string) (all []sample) {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		text := lines.Text()
		if text == "" || text[0] == '#' {
			continue
		}
		words, quoted, _ := strings.Cut(text, `"`)
		raw, err := strconv.Unquote(`"` + quoted)
		if err != nil {
			t.Fatalf("%s:%d: %v", name, n, err)
		}
		w := strings.Fields(words)
		all = append(all, sample{n, w[len(w)-1], w[0], raw})
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// seen is what a request says, to whoever reads it.
type seen struct {
	method, uri, host string
	body              string
	length, chunked   bool // how its end is found
}

// gate reads the request that raw begins with as the gate does: parse, make
// canonical, decode the body. forward is the request the gate would send on,
// used how many bytes of raw it was. The reason is "ok", "more" or that of the
// refusal.
func gate(raw []byte) (reason string, forward []byte, s seen, used int) {
	var r http1.Request
	n, err := r.Parse(raw, limits)
	if err != nil {
		return reasonOf(err), nil, s, 0
	}
	if n == 0 {
		return "more", nil, s, 0
	}
	path, err := canon.Path(r.Path, false, nil)
	if err != nil {
		return reasonOf(err), nil, s, 0
	}
	host, err := canon.Host(r.Host, nil)
	if err != nil {
		return reasonOf(err), nil, s, 0
	}
	body, used, reason := readBody(&r, raw, n)
	if reason != "ok" {
		return reason, nil, s, 0
	}
	s = seen{r.Method, path, host, body, r.Body == http1.BodyLength, r.Body == http1.BodyChunked}
	if r.Query != "" {
		s.uri += "?" + r.Query
	}
	forward = http1.AppendRequestLine(nil, r.Method, path, r.Query)
	forward = http1.AppendField(forward, "Host", host)
	forward = http1.AppendFields(forward, r.Fields, ^http1.Class(0))
	forward = http1.AppendFraming(forward, r.Body, r.Length)
	forward = http1.AppendEnd(forward)
	if r.Body == http1.BodyChunked {
		forward = http1.AppendChunk(forward, []byte(body))
		forward = http1.AppendLastChunk(forward)
	} else {
		forward = append(forward, body...)
	}
	return "ok", forward, s, used
}

func readBody(r *http1.Request, raw []byte, n int) (body string, used int, reason string) {
	switch r.Body {
	case http1.BodyLength:
		if int64(len(raw)-n) < r.Length {
			return "", 0, "more"
		}
		return string(raw[n : n+int(r.Length)]), n + int(r.Length), "ok"
	case http1.BodyChunked:
		var c http1.Chunks
		for {
			k, data, done, err := c.Decode(raw[n:])
			n += k
			body += string(data)
			switch {
			case err != nil:
				return "", 0, reasonOf(err)
			case done:
				return body, n, "ok"
			case k == 0:
				return "", 0, "more"
			}
		}
	}
	return "", n, "ok"
}

func reasonOf(err error) string {
	var h *http1.Error
	var c *canon.Error
	switch {
	case errors.As(err, &h):
		return h.Reason
	case errors.As(err, &c):
		return c.Reason
	}
	return err.Error()
}

// TestAmbiguous holds every request of the collection to its reason, also when
// it comes byte by byte.
func TestAmbiguous(t *testing.T) {
	t.Parallel()
	all := samples(t, "ambiguous.txt")
	refused := 0
	for _, s := range all {
		got, _, _, used := gate([]byte(s.raw))
		if got != s.want {
			t.Errorf("ambiguous.txt:%d: %s, want %s\n%q", s.line, got, s.want, s.raw)
		}
		if got == "ok" && used != len(s.raw) {
			t.Errorf("ambiguous.txt:%d: %d bytes used of %d", s.line, used, len(s.raw))
		}
		if got != "ok" && got != "more" {
			refused++
		}
		if whole, slow := parse(s.raw), parseSlowly(s.raw); whole != slow {
			t.Errorf("ambiguous.txt:%d: whole %+v, byte by byte %+v", s.line, whole, slow)
		}
	}
	if refused < 200 {
		t.Errorf("%d refused requests, want at least 200", refused)
	}
}

// outcome is what Parse answers, in a comparable form.
type outcome struct {
	n      int
	reason string
	method string
	target string
	host   string
	fields int
	body   http1.Body
	length int64
}

func parse(raw string) outcome {
	var r http1.Request
	n, err := r.Parse([]byte(raw), limits)
	return outcomeOf(&r, n, err)
}

// parseSlowly gives Parse one byte more at a time, in a new buffer each time,
// as a connection may.
func parseSlowly(raw string) outcome {
	var r http1.Request
	for i := range len(raw) {
		n, err := r.Parse([]byte(raw[:i+1]), limits)
		if n != 0 || err != nil {
			return outcomeOf(&r, n, err)
		}
	}
	return outcomeOf(&r, 0, nil)
}

func outcomeOf(r *http1.Request, n int, err error) outcome {
	if err != nil {
		return outcome{reason: reasonOf(err)}
	}
	if n == 0 {
		return outcome{reason: "more"}
	}
	return outcome{n, "ok", r.Method, r.Target, r.Host, len(r.Fields), r.Body, r.Length}
}

// TestResponses holds every response of the collection to its reason: "ok" has
// the framing after a slash.
func TestResponses(t *testing.T) {
	t.Parallel()
	for _, s := range samples(t, "responses.txt") {
		got := response(s.raw, s.method)
		if got != s.want {
			t.Errorf("responses.txt:%d: %s, want %s\n%q", s.line, got, s.want, s.raw)
		}
		var r http1.Response
		for i := 0; i <= len(s.raw); i++ {
			if n, err := r.Parse([]byte(s.raw[:i]), s.method, limits); n != 0 || err != nil || i == len(s.raw) {
				if slow := responseOf(&r, n, err); slow != got {
					t.Errorf("responses.txt:%d: byte by byte %s, whole %s", s.line, slow, got)
				}
				break
			}
		}
	}
}

func response(raw, method string) string {
	var r http1.Response
	n, err := r.Parse([]byte(raw), method, limits)
	return responseOf(&r, n, err)
}

func responseOf(r *http1.Response, n int, err error) string {
	var e *http1.Error
	switch {
	case errors.As(err, &e) && e.Status != 502:
		return e.Reason + " with status " + strconv.Itoa(e.Status)
	case err != nil:
		return reasonOf(err)
	case n == 0:
		return "more"
	}
	s := "ok/" + r.Body.String()
	if r.Body == http1.BodyLength {
		s += "=" + strconv.FormatInt(r.Length, 10)
	}
	if r.Close {
		s += "/close"
	}
	return s
}

// elsewhere lists reasons that no line of testdata can have.
var elsewhere = []string{
	"absolute_host_differs", // TestAbsolute
	"chunk_broken",          // TestChunksStayBroken
	"connect_host_differs",  // TestConnect
	"connect_with_body",     // TestConnect
	"trailer_too_large",     // TestTrailer
	// Package http1 refuses these before package canon does, which tests them itself.
	"path_too_long", "path_not_absolute", "host_character", "host_port", "host_not_ascii",
}

// TestReasonsCovered finds every reason in the sources of the two packages and
// wants a line for it in testdata.
func TestReasonsCovered(t *testing.T) {
	t.Parallel()
	covered := map[string]bool{}
	for _, name := range []string{"ambiguous.txt", "responses.txt"} {
		for _, s := range samples(t, name) {
			covered[s.want] = true
		}
	}
	for _, reason := range elsewhere {
		covered[reason] = true
	}
	call := regexp.MustCompile(`refuse\((?:\d+, )?"([a-z0-9_]+)"\)`)
	found := 0
	for _, pattern := range []string{"*.go", "../canon/*.go"} {
		files, _ := filepath.Glob(pattern)
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			src, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range call.FindAllSubmatch(src, -1) {
				found++
				if reason := string(m[1]); !covered[reason] {
					t.Errorf("%s: no line of testdata is refused with %q", name, reason)
				}
			}
		}
	}
	if found < 70 {
		t.Errorf("found %d refusals in the sources; the pattern has stopped matching", found)
	}
}
