package http2_test

import (
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"merlon/gate/http2"
)

// server is the smallest engine around the core: one goroutine for a
// connection, which echoes bodies and trailers, and says what it was asked. A
// path "/bytes/N" is answered with N bytes.
type server struct {
	c    *http2.Conn
	nc   net.Conn
	jobs []*job
	buf  []byte
	// failed hears of the error that ended a connection.
	failed func(error)
}

// job is one stream.
type job struct {
	id       uint32
	head     bool // is sent
	fields   []http2.Field
	status   int
	body     []byte
	ended    bool // the request
	trailers []http2.Field
}

func serve(nc net.Conn, cfg http2.Config, failed func(error)) {
	s := &server{c: http2.New(cfg), nc: nc, buf: make([]byte, 16<<10), failed: failed}
	defer nc.Close()
	if s.flush() != nil {
		return
	}
	for {
		n, err := nc.Read(s.buf)
		if err != nil {
			return
		}
		if !s.feed(s.buf[:n]) {
			return
		}
	}
}

func (s *server) flush() error {
	for len(s.c.Output()) > 0 {
		n, err := s.nc.Write(s.c.Output())
		if err != nil {
			return err
		}
		s.c.Sent(n)
	}
	return nil
}

// feed reports whether the connection goes on.
func (s *server) feed(in []byte) bool {
	for {
		n, ev, err := s.c.Next(in, time.Now().UnixNano())
		in = in[n:]
		if err != nil {
			if s.failed != nil {
				s.failed(err)
			}
			s.flush()
			return false
		}
		s.handle(ev)
		if len(in) == 0 && ev.Kind == http2.None {
			break
		}
	}
	for {
		progress := false
		for _, j := range slices.Clone(s.jobs) {
			if s.pump(j) {
				progress = true
			}
		}
		if s.flush() != nil {
			return false
		}
		if !progress {
			return true
		}
	}
}

func (s *server) handle(ev http2.Event) {
	i := slices.IndexFunc(s.jobs, func(j *job) bool { return j.id == ev.Stream })
	switch ev.Kind {
	case http2.Begin:
		s.jobs = append(s.jobs, newJob(&ev))
	case http2.Data:
		s.jobs[i].body = append(s.jobs[i].body, ev.Data...)
		s.jobs[i].ended = ev.End
		s.c.Consumed(ev.Stream, len(ev.Data))
	case http2.Trailers:
		s.jobs[i].ended, s.jobs[i].trailers = true, cloneFields(ev.Fields)
	case http2.Refused:
		if ev.Err.Status != 0 {
			s.c.WriteHeaders(ev.Stream, ev.Err.Status, []http2.Field{{Name: "Merlon-Reason", Value: ev.Err.Reason}}, 0, true)
			s.c.Done(ev.Stream)
		}
	case http2.Reset:
		s.jobs = slices.Delete(s.jobs, i, i+1)
		s.c.Done(ev.Stream)
	}
}

func newJob(ev *http2.Event) *job {
	r := ev.Request
	j := &job{id: ev.Stream, ended: ev.End, status: 200}
	j.fields = []http2.Field{
		{Name: "X-Asked", Value: strings.Join([]string{r.Method, r.Scheme, r.Host, r.Path, r.Query}, " ")},
		{Name: "Content-Type", Value: "text/plain"},
	}
	for _, f := range r.Fields {
		j.fields = append(j.fields, http2.Field{Name: "X-Got-" + f.Name, Value: strings.Clone(f.Value)})
	}
	if n, err := strconv.Atoi(strings.TrimPrefix(r.Path, "/bytes/")); err == nil {
		j.body = []byte(strings.Repeat("0123456789abcdef", n/16+1)[:n])
	} else if ev.End {
		j.body = []byte("hello from the core")
	}
	return j
}

func cloneFields(fields []http2.Field) []http2.Field {
	fields = slices.Clone(fields)
	for i := range fields {
		fields[i].Name, fields[i].Value = strings.Clone(fields[i].Name), strings.Clone(fields[i].Value)
	}
	return fields
}

// pump sends what can be sent, and reports whether that was anything.
func (s *server) pump(j *job) (progress bool) {
	if !j.head {
		err := s.c.WriteHeaders(j.id, j.status, j.fields, 0, false)
		if errors.Is(err, http2.ErrFull) {
			return true
		}
		j.head, progress = true, true
	}
	end := j.ended && j.trailers == nil
	n, err := s.c.WriteData(j.id, j.body, end)
	j.body = j.body[n:]
	whole := err == nil && len(j.body) == 0 && end && !s.open(j)
	if err == nil && len(j.body) == 0 && j.trailers != nil {
		if s.c.WriteTrailers(j.id, j.trailers, 0) == nil {
			whole = true
		}
	}
	if err != nil || whole {
		s.c.Done(j.id)
		s.jobs = slices.DeleteFunc(s.jobs, func(k *job) bool { return k == j })
	}
	return progress || n > 0
}

// open reports whether the answer has no end yet.
func (s *server) open(j *job) bool {
	_, err := s.c.WriteData(j.id, nil, true)
	return err == nil
}

// listen serves on a loopback address.
func listen(t testing.TB, cfg http2.Config, failed func(error)) net.Addr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			go serve(nc, cfg, failed)
		}
	}()
	return l.Addr()
}
