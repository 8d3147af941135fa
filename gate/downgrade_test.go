package gate_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// downgrade is one request of HTTP/2, field by field, as no client would send
// it. Fields are "name=value"; those that begin with '-' take a field of the
// plain request away.
type downgrade struct {
	fields  []string
	body    string
	trailer []string
	passes  bool // as one request of HTTP/1.1
}

const smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"

// downgrades are what HTTP/2 can say and HTTP/1.1 cannot, or says otherwise
// (RFC 9113 8.2, 8.3, 10.3).
var downgrades = []downgrade{
	{passes: true},
	{fields: []string{"x=y", "cookie=a=b", "cookie=c=d", "te=trailers"}, passes: true},
	{body: smuggled, passes: true},
	{body: "0\r\n\r\n" + smuggled, passes: true},
	{fields: []string{"content-length=3"}, body: "abc", passes: true},
	{fields: []string{"expect=100-continue"}, body: "abc", passes: true},
	{body: "abc", trailer: []string{"x=y"}, passes: true},
	{fields: []string{"-:authority", "host=a"}, passes: true},
	{fields: []string{"host=a"}, passes: true},
	{fields: []string{"merlon-caller=me", "x-forwarded-for=1.2.3.4"}, passes: true},

	// A line end in a value, a name, a method or a path would be another line.
	{fields: []string{"x=a\r\ntransfer-encoding: chunked"}, body: "0\r\n\r\n" + smuggled},
	{fields: []string{"x=a\r\n\r\n" + smuggled}},
	{fields: []string{"x=a\nhost: b"}},
	{fields: []string{"x=a\rhost: b"}},
	{fields: []string{"x=a\x00b"}},
	{fields: []string{"x= a"}},
	{fields: []string{"x=a "}},
	{fields: []string{"x\r\nhost=b"}},
	{fields: []string{"x: y\r\ntransfer-encoding=chunked"}, body: "0\r\n\r\n" + smuggled},
	{fields: []string{"x y=a"}},
	{fields: []string{"x\x00=a"}},
	{fields: []string{"=a"}},
	{fields: []string{"X=a"}},
	{fields: []string{"Transfer-Encoding=chunked"}, body: "0\r\n\r\n" + smuggled},
	{fields: []string{"-:path", ":path=/ HTTP/1.1\r\nHost: a\r\n\r\n" + smuggled}},
	{fields: []string{"-:path", ":path=/a b"}},
	{fields: []string{"-:path", ":path=/a\tb"}},
	{fields: []string{"-:path", ":path=/a\x00"}},
	{fields: []string{"-:path", ":path=/a?b c"}},
	{fields: []string{"-:path", ":path=/a#b"}},
	{fields: []string{"-:path", ":path=/a\\b"}},
	{fields: []string{"-:path", ":path=/a/../b"}},
	{fields: []string{"-:path", ":path="}},
	{fields: []string{"-:path", ":path=a"}},
	{fields: []string{"-:path", ":path=*"}},
	{fields: []string{"-:path", ":path=http://b/"}},
	{fields: []string{"-:method", ":method=GET / HTTP/1.1\r\nHost: b\r\n\r\nGET"}},
	{fields: []string{"-:method", ":method=GET /smuggled"}},
	{fields: []string{"-:method", ":method="}},
	{fields: []string{"-:method", ":method=CONNECT"}},
	{fields: []string{"-:scheme", ":scheme=http\r\nx: y"}},

	// Who is meant.
	{fields: []string{"host=b"}},
	{fields: []string{"host=a", "host=b"}},
	{fields: []string{"-:authority"}},
	{fields: []string{"-:authority", "host=a", "host=a"}},
	{fields: []string{"-:authority", ":authority=a\r\nhost: b"}},
	{fields: []string{"-:authority", ":authority=a b"}},
	{fields: []string{"-:authority", ":authority=u@a"}},
	{fields: []string{"-:authority", ":authority=a/b"}},
	{fields: []string{"-:authority", ":authority="}},

	// Pseudo-fields twice, late, missing, unknown.
	{fields: []string{":path=/smuggled"}},
	{fields: []string{":method=POST"}},
	{fields: []string{":authority=b"}},
	{fields: []string{":scheme=http"}},
	{fields: []string{"-:path", "x=y", ":path=/late"}},
	{fields: []string{"-:path"}},
	{fields: []string{"-:method"}},
	{fields: []string{"-:scheme"}},
	{fields: []string{":status=200"}},
	{fields: []string{":x=y"}},
	{fields: []string{":protocol=websocket"}},

	// How long it is, and what is about a connection.
	{fields: []string{"content-length=5"}, body: "abc"},
	{fields: []string{"content-length=1"}, body: "abc"},
	{fields: []string{"content-length=0"}, body: smuggled},
	{fields: []string{"content-length=5"}},
	{fields: []string{"content-length=3", "content-length=3"}, body: "abc"},
	{fields: []string{"content-length=3", "content-length=0"}, body: "abc"},
	{fields: []string{"content-length=+3"}, body: "abc"},
	{fields: []string{"content-length=3, 3"}, body: "abc"},
	{fields: []string{"content-length=0x3"}, body: "abc"},
	{fields: []string{"content-length="}, body: "abc"},
	{fields: []string{"transfer-encoding=chunked"}, body: "0\r\n\r\n" + smuggled},
	{fields: []string{"transfer-encoding=identity"}, body: "abc"},
	{fields: []string{"transfer_encoding=chunked"}, body: "0\r\n\r\n" + smuggled},
	{fields: []string{"content_length=0"}, body: smuggled},
	{fields: []string{"connection=close"}},
	{fields: []string{"connection=x-a", "x-a=b"}},
	{fields: []string{"keep-alive=timeout=5"}},
	{fields: []string{"proxy-connection=close"}},
	{fields: []string{"upgrade=h2c"}},
	{fields: []string{"te=gzip"}},
	{fields: []string{"merlon_caller=me"}},
	{body: "abc", trailer: []string{":path=/smuggled"}},
	{body: "abc", trailer: []string{"x=a\r\n\r\n" + smuggled}},
	{body: "abc", trailer: []string{"X=y"}},
}

// downgrade sends one of downgrades, and a plain request after it over the same
// connection, and tells the answers.
func (p *pair) downgrade(path string, d downgrade) (into map[string]heard, err error) {
	config := p.config.Clone()
	config.NextProtos = []string{"h2"}
	c, err := tls.Dial("tcp", p.e.in["web"], config)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	var out bytes.Buffer
	out.WriteString(xhttp2.ClientPreface)
	f := xhttp2.NewFramer(&out, c)
	f.WriteSettings()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	send := func(id uint32, d downgrade, path string) {
		block.Reset()
		for _, field := range d.list(path) {
			enc.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]})
		}
		end := d.body == "" && d.trailer == nil
		f.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: end})
		if !end {
			f.WriteData(id, d.trailer == nil, []byte(d.body))
		}
		if d.trailer != nil {
			block.Reset()
			for _, field := range d.trailer {
				i := 1 + strings.Index(field[1:], "=")
				enc.WriteField(hpack.HeaderField{Name: field[:i], Value: field[i+1:]})
			}
			f.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true})
		}
	}
	send(1, d, path)
	send(3, downgrade{}, "/the-next-request")
	if _, err := c.Write(out.Bytes()); err != nil {
		return nil, err
	}
	return listen2(f)
}

// list is the fields of d in their order.
func (d *downgrade) list(path string) (all [][2]string) {
	method := "GET"
	if d.body != "" {
		method = "POST"
	}
	away := strings.Join(d.fields, "\n") + "\n"
	for _, plain := range [][2]string{{":method", method}, {":scheme", "https"}, {":authority", "a"}, {":path", path}} {
		if !strings.Contains("\n"+away, "\n-"+plain[0]+"\n") {
			all = append(all, plain)
		}
	}
	for _, field := range d.fields {
		if field[0] != '-' {
			name, value := "", field[1:] // which may begin with ':', and be empty
			if i := strings.Index(field, "="); i > 0 {
				name, value = field[:i], field[i+1:]
			}
			all = append(all, [2]string{name, value})
		}
	}
	return all
}

// listen2 reads until both streams have ended, or the connection has.
func listen2(f *xhttp2.Framer) (map[string]heard, error) {
	into, ended := map[string]heard{}, map[uint32]bool{}
	dec := hpack.NewDecoder(4096, nil)
	for !ended[1] || !ended[3] {
		frame, err := f.ReadFrame()
		if err != nil {
			var goAway xhttp2.ConnectionError
			if errors.As(err, &goAway) || len(ended) > 0 || err.Error() == "EOF" {
				return into, nil
			}
			return into, err
		}
		switch frame := frame.(type) {
		case *xhttp2.GoAwayFrame:
			if frame.ErrCode != xhttp2.ErrCodeNo {
				return into, nil
			}
		case *xhttp2.HeadersFrame:
			fields, err := dec.DecodeFull(frame.HeaderBlockFragment())
			if err != nil {
				return into, err
			}
			var h heard
			for _, field := range fields {
				switch field.Name {
				case ":status":
					h.status, _ = strconv.Atoi(field.Value)
				case "merlon-request-id":
					h.id = field.Value
				case "merlon-reason":
					h.reason = field.Value
				case "x-read":
					h.read = true
				}
			}
			if h.id != "" {
				into[h.id] = h
			}
		}
		switch h := frame.Header(); h.Type {
		case xhttp2.FrameRSTStream:
			ended[h.StreamID] = true
		case xhttp2.FrameHeaders, xhttp2.FrameData:
			if h.Flags.Has(xhttp2.FlagDataEndStream) {
				ended[h.StreamID] = true
			}
		}
	}
	return into, nil
}

// sendDowngrades sends all of downgrades. Those that pass are one request of
// HTTP/1.1, the others none.
func (p *pair) sendDowngrades(t *testing.T) {
	all := map[string]heard{}
	paths := map[string]int{}
	for i, d := range downgrades {
		path := fmt.Sprint("/downgrade/", i)
		paths[path] = i
		heard, err := p.downgrade(path, d)
		if err != nil {
			t.Errorf("%q: %v", d.fields, err)
		}
		for id, h := range heard {
			all[id] = h
		}
	}
	records, err := p.recorded()
	if err != nil {
		t.Fatal(err)
	}
	agreed, refused, err := p.compare(records, all)
	if err != nil {
		t.Error(err)
	}
	got := map[int]bool{}
	for id, rec := range records {
		i, ours := paths[rec.Path]
		switch h := all[id]; {
		case rec.Status == 0 || !h.read:
		case ours:
			got[i] = true
		case rec.Path != "/the-next-request":
			t.Errorf("%s read %+v", p.name, rec)
		}
	}
	for i, d := range downgrades {
		if got[i] != d.passes {
			t.Errorf("%q with body %q and trailer %q: passes %v, want %v", d.fields, d.body, d.trailer, got[i], d.passes)
		}
	}
	t.Logf("%d requests of HTTP/2; %d that all read alike, %d that %s refused", 2*len(downgrades), agreed, refused, p.name)
}
