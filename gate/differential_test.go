package gate_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"merlon"
	"merlon/gate/http1"
	"merlon/identity/spiffe"
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

// pair is a gate and a backend behind it, which must read the same.
type pair struct {
	backend
	e      *estate
	config *tls.Config
	ledger *ledger
	tap    *tap
	last   uint64                   // record that was seen
	unsent map[string]record.Record // allowed, and not come through the tap: it may have broken off
	late   map[string]reading       // sent, and the backend has not told of it: it may have broken off
	read   int                      // of the ledger
	logged int
}

func newPair(t testing.TB, b backend) *pair {
	p := &pair{backend: b, ledger: new(ledger), unsent: map[string]record.Record{}, late: map[string]reading{}}
	p.tap = newTap(t, b.start(t, p.ledger))
	p.e = setup{
		addresses: map[string]string{"web": p.tap.address},
		records:   record.Options{Queries: true, SegmentBytes: 64 << 10},
	}.start(t, behind)
	source, err := p.e.auth.Source(t.Context(), "spiffe://shop.example/probe", nil)
	if err != nil {
		t.Fatal(err)
	}
	p.config = spiffe.ClientConfig(source, "spiffe://shop.example/web")
	return p
}

// heard is one answer of the gate.
type heard struct {
	id, reason string
	status     int
	read       bool // the backend says that it has read the request
}

// exchange sends raw in pieces over a new connection and reads until its end.
func (p *pair) exchange(pieces ...[]byte) (answers []byte, err error) {
	c, err := tls.Dial("tcp", p.e.in["web"], p.config)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	for _, piece := range pieces {
		if _, err := c.Write(piece); err != nil {
			break // refused by what came before
		}
	}
	c.CloseWrite()
	return io.ReadAll(c)
}

// settle holds what the backend has read to what the gate sent, and that to
// what the gate recorded and to its answers. It returns how many requests all
// of them agree on, and how many more the backend refused, which hurts nobody.
func (p *pair) settle(answers ...[]byte) (agreed, refused int, err error) {
	records, err := p.recorded()
	if err != nil {
		return 0, 0, err
	}
	heard := map[string]heard{}
	for _, a := range answers {
		if err := readAnswers(a, records, heard); err != nil {
			return 0, 0, err
		}
	}
	for id, rec := range records {
		if _, ok := heard[id]; !ok {
			return 0, 0, fmt.Errorf("nobody got the answer to %+v", rec)
		}
	}
	return p.compare(records, heard)
}

// recorded is what the gate has recorded since the last time.
func (p *pair) recorded() (map[string]record.Record, error) {
	place := merlon.Place{Service: "web"}
	if err := p.e.writers[place].Sync(); err != nil {
		return nil, err
	}
	records := map[string]record.Record{}
	for rec, err := range record.Read(p.e.records[place], record.Filter{After: p.last}) {
		if err != nil {
			return nil, err
		}
		p.last = rec.Seq
		if _, twice := records[rec.ID]; twice {
			return nil, fmt.Errorf("recorded twice: %+v", rec)
		}
		records[rec.ID] = rec
	}
	return records, nil
}

// readAnswers reads all answers of one connection.
func readAnswers(all []byte, records map[string]record.Record, into map[string]heard) error {
	in := bufio.NewReader(bytes.NewReader(all))
	for len(all) > 0 {
		// How an answer is framed depends on the method, and that is recorded.
		head, _, whole := bytes.Cut(all, []byte("\r\n\r\n"))
		if !whole {
			return fmt.Errorf("what follows the answers is none: %q", all)
		}
		_, id, _ := strings.Cut(string(head)+"\r\n", "Merlon-Request-Id: ")
		id, _, _ = strings.Cut(id, "\r\n")
		rec, known := records[id]
		answer, err := http.ReadResponse(in, &http.Request{Method: rec.Method})
		if err == nil {
			_, err = io.Copy(io.Discard, answer.Body)
		}
		if err != nil {
			return fmt.Errorf("%w in the answer %q", err, all)
		}
		left, _ := in.Peek(in.Buffered())
		rest := all[len(all)-len(left):]
		if len(left) == 0 && in.Buffered() == 0 {
			more, _ := io.ReadAll(in)
			rest = more
			in = bufio.NewReader(bytes.NewReader(more))
		}
		all = rest
		if answer.StatusCode < 200 {
			continue
		}
		if !known || rec.Status != answer.StatusCode {
			return fmt.Errorf("answer %d to %q, recorded as %+v", answer.StatusCode, id, rec)
		}
		if _, twice := into[id]; twice {
			return fmt.Errorf("answered twice: %+v", rec)
		}
		into[id] = heard{id, answer.Header.Get("Merlon-Reason"), answer.StatusCode, answer.Header.Get("X-Read") != ""}
	}
	return nil
}

func (p *pair) compare(records map[string]record.Record, heard map[string]heard) (agreed, refused int, err error) {
	sent, err := p.sent()
	if err != nil {
		return 0, 0, err
	}
	maps.Copy(p.unsent, records)
	err = p.compareRecords(sent)
	want := 0
	for id, h := range heard {
		if h.read {
			want++
		} else if h.reason == "" {
			refused++
		}
		if _, ok := sent[id]; !ok && h.reason == "" {
			err = errors.Join(err, fmt.Errorf("an answer to what was not sent: %+v", h))
		}
	}
	read, lines := p.told(want, sent, heard)
	// What breaks off may have come after the first look, and before the log.
	more, err2 := p.sent()
	if err = errors.Join(err, err2, p.compareRecords(more)); err != nil {
		return 0, 0, err
	}
	maps.Copy(sent, more)
	maps.Copy(sent, p.late)
	seen := map[string]bool{}
	for _, r := range read {
		s, ok := sent[r.ID]
		if !ok || seen[r.ID] {
			err = errors.Join(err, fmt.Errorf("%s read what nobody sent, or twice: %+v", p.name, r))
			continue
		}
		seen[r.ID] = true
		if why := p.differs(r, s); why != "" {
			err = errors.Join(err, fmt.Errorf("%s reads another %s: %+v\nsent was %+v", p.name, why, r, s))
		} else if h := heard[r.ID]; h.read {
			agreed++
		}
	}
	err = errors.Join(err, p.compareLog(lines, sent, heard))
	clear(p.late)
	for id, s := range sent {
		if !seen[id] {
			p.late[id] = s
		}
	}
	return agreed, refused, err
}

// compareRecords holds what was sent to what was recorded.
func (p *pair) compareRecords(sent map[string]reading) (err error) {
	// A stream that is reset has ended for its client before it has for the gate.
	if err := p.wait("the records of what was sent", func() (bool, error) {
		for id := range sent {
			if _, ok := p.unsent[id]; !ok {
				late, err := p.recorded()
				maps.Copy(p.unsent, late)
				return false, err
			}
		}
		return true, nil
	}); err != nil {
		return fmt.Errorf("%w: %+v", err, sent)
	}
	for id, s := range sent {
		rec, ok := p.unsent[id]
		delete(p.unsent, id)
		target := rec.Path
		if rec.Query != "" {
			target += "?" + rec.Query
		}
		host, _, _ := strings.Cut(s.Host, ":")
		switch {
		case !ok || rec.Verdict.Effect != merlon.Allow:
			err = errors.Join(err, fmt.Errorf("sent without leave: %+v; the record is %+v", s, rec))
		case s.Method != rec.Method || s.Target != target || s.Host != rec.Host && host != rec.Host && !strings.HasPrefix(rec.Host, "[") || s.Whole && int64(len(s.Body)) != rec.BytesIn:
			err = errors.Join(err, fmt.Errorf("recorded is not what was sent: %+v, %+v", rec, s))
		}
	}
	return err
}

// compareLog holds the access log of the backend to what was sent.
func (p *pair) compareLog(lines []string, sent map[string]reading, heard map[string]heard) (err error) {
	logged, nameless := map[string]bool{}, 0
	for _, line := range lines {
		id, _, _ := strings.Cut(line, " ")
		if _, ok := sent[id]; ok && !logged[id] {
			logged[id] = true
		} else if nameless++; id != "-" {
			err = errors.Join(err, fmt.Errorf("%s logs what nobody sent, or twice: %q", p.name, line))
		}
	}
	for id, h := range heard { // what a head is refused for may stand before its id
		if h.reason == "" && !h.read && !logged[id] {
			nameless--
		}
	}
	if nameless > 0 {
		err = errors.Join(err, fmt.Errorf("%s logs what nobody sent: %q", p.name, lines))
	}
	return err
}

// sent is what came through the tap since the last time, by id.
func (p *pair) sent() (map[string]reading, error) {
	all := map[string]reading{}
	var twice error
	err := p.wait("the end of a request that the gate has begun", func() (bool, error) {
		some, waiting, err := p.tap.take()
		for _, r := range some {
			if _, ok := all[r.ID]; ok {
				twice = errors.Join(twice, fmt.Errorf("sent twice: %+v", r))
			}
			all[r.ID] = r
		}
		return !waiting, err
	})
	return all, errors.Join(err, twice)
}

// told is what the backend has said since the last time, when it has said at
// least as much as it must.
func (p *pair) told(want int, sent map[string]reading, heard map[string]heard) (read []reading, lines []string) {
	answered := 0
	for id := range sent {
		if h := heard[id]; h.reason == "" {
			answered++
		}
	}
	p.wait("", func() (bool, error) {
		p.ledger.mu.Lock()
		defer p.ledger.mu.Unlock()
		read, lines = p.ledger.read[p.read:], p.ledger.lines[p.logged:]
		whole := 0
		for _, r := range read {
			if r.Whole {
				whole++
			}
		}
		return whole >= want && (!p.logs || len(lines) >= answered), nil
	})
	p.read, p.logged = p.read+len(read), p.logged+len(lines)
	// What breaks off is told of later, if at all.
	return read, lines
}

func (p *pair) wait(what string, done func() (bool, error)) error {
	for deadline := time.Now().Add(patience); ; <-time.After(time.Millisecond) {
		if ok, err := done(); ok || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return errors.New("waited in vain for " + what)
		}
	}
}

// ownFields are of a connection and its framing: each reader has its own.
var ownFields = []string{"connection", "host", "content-length", "transfer-encoding", "te"}

// differs says in what a backend's reading is not what was sent.
func (p *pair) differs(r, s reading) string {
	switch {
	case r.Method != s.Method:
		return "method"
	case r.Target != s.Target:
		return "target"
	case r.Host != s.Host:
		return "host"
	case r.Whole && !s.Whole:
		return "end"
	case r.Body != s.Body && r.Whole, !strings.HasPrefix(s.Body, r.Body):
		return "body"
	}
	a, b := maps.Clone(r.Fields), maps.Clone(s.Fields)
	for _, name := range slices.Concat(ownFields, p.adds) {
		delete(a, name)
		delete(b, name)
	}
	// An empty value at the end of a list leaves white space behind it.
	if !maps.EqualFunc(a, b, func(v, w string) bool { return strings.TrimRight(v, " ") == strings.TrimRight(w, " ") }) {
		return "set of fields"
	}
	return ""
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

// theNext is a request that follows another on its connection: whoever finds
// another end of that one does not read this as it is.
const theNext = "GET /the-next-request HTTP/1.1\r\nHost: next\r\n\r\n"

// TestClass15BackendsReadAsSent sends the ambiguous requests of the collection,
// and those that a generator makes, through a real gate to real servers of five
// kinds, another request behind each on the same connection. What the gate
// sends is strict and as recorded, and each server reads exactly that: the same
// requests with the same method, target, host, fields and body, and no others.
// What cannot pass is sent to one of them only.
func TestClass15BackendsReadAsSent(t *testing.T) {
	t.Parallel()
	for i, b := range backends {
		if i > 0 && portable {
			break // the layers differ in how they read and write, not in what
		}
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, b)
			var answers [][]byte
			send := func(raw string) {
				a, err := p.exchange([]byte(raw))
				if err != nil {
					t.Errorf("%v\n%q", err, raw)
				}
				answers = append(answers, a)
			}
			for _, raw := range ambiguous(t) {
				var r http1.Request
				if _, err := r.Parse([]byte(raw), http1.Limits{}); err == nil || i == 0 {
					send(raw + theNext)
				}
			}
			rnd := rand.New(rand.NewPCG(15, uint64(i)))
			for range 150 {
				send(generate(rnd))
			}
			agreed, refused, err := p.settle(answers...)
			if err != nil {
				t.Error(err)
			}
			t.Logf("%d connections; %d requests that all read alike, %d that %s refused", len(answers), agreed, refused, b.name)
			if agreed < 350 || refused > 10 {
				t.Error("that is too little to say anything")
			}
			p.sendDowngrades(t)
		})
	}
}

func pick[T any](rnd *rand.Rand, all ...T) T { return all[rnd.IntN(len(all))] }

// generate makes a few requests that a gate should let through, each as odd as
// is allowed, and then, sometimes, breaks them.
func generate(rnd *rand.Rand) string {
	var b strings.Builder
	for range 1 + rnd.IntN(3) {
		method := pick(rnd, "GET", "GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "PROPFIND", "M-SEARCH", "HEAD")
		b.WriteString(method + " ")
		for range 1 + rnd.IntN(3) {
			b.WriteString("/" + pick(rnd, "a", "a%20b", "%41", "~", "a;b=c", "a,b", "@", "$&'()*+=", "%C3%A9", "x.y", "..z", "a:b", "!", "%7e"))
		}
		b.WriteString(pick(rnd, "", "", "?", "?a=b", "?a=%00&b=//../", "?x=y?z", "?a[]=1&a[]=2", "?{}|\\^`", "?a=b;c=d", "?%0d%0aX:y"))
		b.WriteString(" HTTP/1.1\r\nHost: " + pick(rnd, "a", "A.b", "a:8080", "a.b.", "127.0.0.1", "[::1]:80") + "\r\n")
		for range rnd.IntN(6) {
			b.WriteString(pick(rnd, "X", "x-a", "Accept", "Cookie", "Cookie", "Range", "X-Forwarded-For", "Via", "Proxy", "Authorization",
				"Connection", "Keep-Alive", "TE", "Trailer", "Upgrade-Insecure-Requests", "Content-Encoding", "X-HTTP-Method-Override", "If-Match"))
			b.WriteString(":" + pick(rnd, "", " ", "\t", "  ") + pick(rnd, "", "y", "a b", "a\tb", "a,b", "close", "x-a", "x, close", "trailers",
				"GET / HTTP/1.1", "chunked", "5", "\"q\\\"\"", "é", "a;b=\"c,d\"", "a=b; c=d", ":", "*") + pick(rnd, "", " ", "\t") + "\r\n")
		}
		body := strings.Repeat(pick(rnd, "x", "0\r\n\r\n", "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n", "\x00\xff", "\r\n"), rnd.IntN(30))
		switch pick(rnd, "none", "length", "chunks") {
		case "length":
			fmt.Fprintf(&b, "%s: %d\r\n\r\n%s", pick(rnd, "Content-Length", "content-length"), len(body), body)
		case "chunks":
			b.WriteString(pick(rnd, "Transfer-Encoding: chunked", "transfer-encoding:chunked", "Transfer-Encoding: \tchunked ") + "\r\n\r\n")
			for len(body) > 0 {
				n := 1 + rnd.IntN(len(body))
				fmt.Fprintf(&b, pick(rnd, "%x", "%X", "00%x")+pick(rnd, "", "", ";x", ";x=y")+"\r\n%s\r\n", n, body[:n])
				body = body[n:]
			}
			b.WriteString("0\r\n\r\n")
		default:
			b.WriteString("\r\n")
		}
	}
	return mutate(rnd, b.String())
}

// mutate breaks a message in no, one or two places.
func mutate(rnd *rand.Rand, raw string) string {
	for range pick(rnd, 0, 0, 1, 2) {
		at := rnd.IntN(len(raw) + 1)
		switch rnd.IntN(3) {
		case 0:
			raw = raw[:at] + pick(rnd, "\r", "\n", "\r\n", " ", "\t", "\x00", ":", ",", ";", "0", "\xff", "chunked", "\r\n ", "\r\nContent-Length: 3", "\r\nTransfer-Encoding: chunked") + raw[at:]
		case 1:
			raw = raw[:at] + raw[min(len(raw), at+1+rnd.IntN(3)):]
		case 2:
			end := min(len(raw), at+rnd.IntN(40))
			raw = raw[:end] + raw[at:end] + raw[end:]
		}
	}
	return raw
}

// fuzzMax is how large the inputs of these fuzz targets are at most.
const fuzzMax = 4000

// FuzzBackendReadsAsSent searches for bytes that the gate lets through and nginx
// reads otherwise than they were sent.
func FuzzBackendReadsAsSent(f *testing.F) {
	fuzzPair(f, backends[slices.IndexFunc(backends, func(b backend) bool { return b.name == "nginx" })])
}

// FuzzSentIsStrict searches for bytes, and a place to cut them, for which the
// gate sends what is no strict request, or not the one that it recorded.
func FuzzSentIsStrict(f *testing.F) { fuzzPair(f, backends[0]) }

func fuzzPair(f *testing.F, b backend) {
	p := newPair(f, b)
	for i, raw := range ambiguous(f) {
		if i%4 == 0 { // the test above sends them all
			f.Add([]byte(raw), uint(i))
		}
	}
	rnd := rand.New(rand.NewPCG(15, 99))
	for range 50 {
		f.Add([]byte(generate(rnd)), rnd.Uint())
	}
	f.Fuzz(func(t *testing.T, raw []byte, cut uint) {
		if len(raw) > fuzzMax {
			return
		}
		at := int(cut % uint(len(raw)+1))
		answers, err := p.exchange(raw[:at], raw[at:])
		if err == nil {
			_, _, err = p.settle(answers)
		}
		if err != nil {
			t.Errorf("%v\n%q %q", err, raw[:at], raw[at:])
		}
	})
}
