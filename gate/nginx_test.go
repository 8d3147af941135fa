package gate_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"merlon"
	"merlon/identity/spiffe"
	"merlon/internal/nginxtest"
	"merlon/record"
)

// behind lets every request through that is one, for any host, so that only
// the protocol decides.
const behind = `
trustDomain: shop.example
services:
  probe: {}
  web:
    operations:
      root: '* /'
      rest: '* /{rest...}'
    callers: {probe: all}
    retries: {budget: 0%}
`

// reader is the configuration of the nginx behind the gate. It says in each
// answer what it has read, and passes the request on to itself: so the body is
// read as well, and its length told by the second reading.
const reader = `
	access_log %[1]s/access.log combined;
	keepalive_requests 1000000;
	location / {
		add_header X-Method $request_method always;
		add_header X-Uri "=$request_uri" always;
		add_header X-Host "=$host" always;
		proxy_pass http://unix:%[1]s/second.sock:;
	}
}
server {
	listen unix:%[1]s/second.sock;
	location / {
		add_header X-Body "=$http_content_length" always;
		return 200 "read";
	}
`

// twoReaders is a gate and the nginx behind it.
type twoReaders struct {
	e      *estate
	config *tls.Config
	log    string
	read   int64          // of the log
	last   uint64         // record
	sent   map[string]int // request lines that nginx may have read, and not logged
	recent []string       // the last records, for messages
}

func newTwoReaders(t testing.TB) *twoReaders {
	dir := t.TempDir()
	address := nginxtest.Start(t, fmt.Sprintf(reader, dir))
	e := setup{
		addresses: map[string]string{"web": address},
		records:   record.Options{Queries: true, SegmentBytes: 32 << 10},
	}.start(t, behind)
	source, err := e.auth.Source(t.Context(), "spiffe://shop.example/probe", nil)
	if err != nil {
		t.Fatal(err)
	}
	return &twoReaders{e: e, config: spiffe.ClientConfig(source, "spiffe://shop.example/web"), log: filepath.Join(dir, "access.log"), sent: map[string]int{}}
}

// compare sends raw to the gate, and holds what nginx read to what the gate
// recorded. It returns how many requests both read.
func (r *twoReaders) compare(raw []byte) (both int, err error) {
	answers, err := r.exchange(raw)
	if err != nil {
		return 0, err
	}
	for _, w := range r.e.writers { // all, since any may be the gate's
		if err := w.Sync(); err != nil {
			return 0, err
		}
	}
	var read, mayRead []string // request lines that nginx must, and may have read
	in := bufio.NewReader(bytes.NewReader(answers))
	var records []record.Record
	for rec, err := range record.Read(r.e.records[merlon.Place{Service: "web"}], record.Filter{After: r.last}) {
		if err != nil {
			return 0, err
		}
		r.last = rec.Seq
		records = append(records, rec)
		r.recent = append(r.recent[max(0, len(r.recent)-8):], fmt.Sprintf("%s %s %d %s %s", rec.Method, rec.Path, rec.Status, rec.Verdict.Reason, rec.Detail))
	}
	defer func() { err = errors.Join(err, r.checkLog(read, mayRead)) }()
	for _, rec := range records {
		line := rec.Method + " " + rec.Path
		if rec.Query != "" {
			line += "?" + rec.Query
		}
		answer, err := nextAnswer(in, rec.Method)
		if err != nil {
			return both, fmt.Errorf("record %+v has no answer: %w", rec, err)
		}
		if answer.StatusCode != rec.Status {
			return both, fmt.Errorf("the answer is %d, the record says %d", answer.StatusCode, rec.Status)
		}
		if rec.Verdict.Effect != merlon.Allow {
			continue
		}
		mayRead = append(mayRead, line)
		if answer.Header.Get("Merlon-Reason") != "" {
			continue
		}
		if answer.Header.Get("X-Method") == "" {
			return both, fmt.Errorf("nginx refuses with %s what the gate accepts: %s", answer.Status, line)
		}
		read = append(read, line)
		both++
		length := "="
		if rec.BytesIn > 0 {
			length += strconv.FormatInt(rec.BytesIn, 10)
		}
		got := strings.TrimSuffix(answer.Header.Get("X-Body"), "=0") // told or not told, it is none
		if got == "" {
			got = "="
		}
		for _, c := range []struct{ what, nginx, gate string }{
			{"method", answer.Header.Get("X-Method"), rec.Method},
			{"target", answer.Header.Get("X-Uri"), "=" + strings.TrimPrefix(line, rec.Method+" ")},
			{"host", answer.Header.Get("X-Host"), "=" + rec.Host},
			{"body", got, length},
		} {
			if c.nginx != c.gate {
				return both, fmt.Errorf("nginx read %s %q, the gate %q", c.what, c.nginx, c.gate)
			}
		}
	}
	if in.Buffered() > 0 {
		rest, _ := io.ReadAll(in)
		return both, fmt.Errorf("bytes beyond the answers: %q", rest)
	}
	return both, nil
}

func nextAnswer(in *bufio.Reader, method string) (*http.Response, error) {
	for {
		answer, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil {
			return nil, err
		}
		if _, err := io.Copy(io.Discard, answer.Body); err != nil {
			return nil, err
		}
		if answer.StatusCode >= 200 {
			return answer, nil
		}
	}
}

// exchange sends raw over a new connection and reads until its end.
func (r *twoReaders) exchange(raw []byte) ([]byte, error) {
	c, err := tls.Dial("tcp", r.e.in["web"], r.config)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write(raw); err != nil {
		return nil, err
	}
	c.CloseWrite()
	return io.ReadAll(c)
}

// escaped undoes what nginx does to request lines in its log.
var escaped = strings.NewReplacer(`\x5C`, `\`, `\x22`, `"`)

// checkLog holds the requests that nginx has logged since the last time to
// those that it must and may have read. It writes a line when it has answered,
// and that of a request which breaks off even later.
func (r *twoReaders) checkLog(must, may []string) error {
	for _, line := range may {
		r.sent[line]++
	}
	for deadline := time.Now().Add(5 * time.Second); ; {
		text, err := os.ReadFile(r.log)
		if err != nil {
			return err
		}
		fresh := string(text[r.read:])
		if strings.Count(fresh, "\n") < len(must) && time.Now().Before(deadline) {
			<-time.After(time.Millisecond)
			continue
		}
		lines := strings.Split(strings.TrimSuffix(fresh, "\n"), "\n")
		if fresh == "" {
			lines = nil
		}
		r.read = int64(len(text))
		for _, line := range lines {
			_, quoted, _ := strings.Cut(line, `] "`)
			request, _, _ := strings.Cut(quoted, ` HTTP/1.1" `)
			request = escaped.Replace(request)
			if r.sent[request]--; r.sent[request] < 0 {
				return fmt.Errorf("nginx read %q, which the gate did not send; its records: %v", line, r.recent)
			}
		}
		if len(lines) < len(must) {
			return fmt.Errorf("nginx read %q, the gate sent %q", lines, must)
		}
		return nil
	}
}

// ambiguous are the requests of gate/http1/testdata.
func ambiguous(t testing.TB) (all []string) {
	t.Helper()
	text, err := os.ReadFile("http1/testdata/ambiguous.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if _, quoted, ok := strings.Cut(strings.TrimSuffix(line, "\n"), `"`); ok && line[0] != '#' {
			raw, err := strconv.Unquote(`"` + quoted)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, raw)
		}
	}
	return all
}

// TestGateAndNginxAgree sends every ambiguous request of the collection through
// a real gate to a real nginx, and another behind it on the same connection:
// nginx reads exactly what the gate has recorded as allowed, and nothing else.
func TestGateAndNginxAgree(t *testing.T) {
	t.Parallel()
	r := newTwoReaders(t)
	const next = "GET /the-next-request HTTP/1.1\r\nHost: next\r\n\r\n"
	all, both := ambiguous(t), 0
	for _, raw := range all {
		n, err := r.compare([]byte(raw + next))
		if err != nil {
			t.Errorf("%v\n%q", err, raw)
		}
		both += n
	}
	t.Logf("%d ambiguous requests; %d that nginx read, each as the gate", len(all), both)
	if len(all) < 200 || both < 200 {
		t.Errorf("only %d requests, %d of them read by both", len(all), both)
	}
}

// FuzzGateAndNginxAgree searches for bytes that the gate lets through and nginx
// reads otherwise than the record says.
func FuzzGateAndNginxAgree(f *testing.F) {
	r := newTwoReaders(f)
	for i, raw := range ambiguous(f) {
		if i%4 == 0 { // TestGateAndNginxAgree sends them all
			f.Add([]byte(raw))
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 4000 {
			return
		}
		_, err := r.compare(raw)
		if err != nil && !strings.HasPrefix(err.Error(), "nginx refuses") { // that hurts nobody
			t.Errorf("%v\n%q", err, raw)
		}
	})
}
