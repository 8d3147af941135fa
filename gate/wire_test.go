package gate_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"merlon/identity/spiffe"
)

// wire is a client that says exactly what it is told to.
type wire struct {
	net.Conn
	t testing.TB
	r *bufio.Reader
}

// patience is how long a client waits for what must come.
const patience = 30 * time.Second

func newWire(t testing.TB, c net.Conn) *wire {
	c.SetDeadline(time.Now().Add(patience))
	return &wire{c, t, bufio.NewReader(c)}
}

func (w *wire) send(text string) {
	w.t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		w.t.Fatalf("%.60q could not be sent: %v", text, err)
	}
}

// receive reads one answer to a request with the given method.
func (w *wire) receive(method string) (answer, error) {
	res, err := http.ReadResponse(w.r, &http.Request{Method: method})
	if err != nil {
		return answer{}, err
	}
	body, err := io.ReadAll(res.Body)
	res.Body.Close()
	return answer{res.StatusCode, res.Header.Get("Merlon-Reason"), string(body), res.Header, res.Close}, err
}

// ask sends a request and reads its answer.
func (w *wire) ask(request string) answer {
	w.t.Helper()
	w.SetDeadline(time.Now().Add(patience))
	w.send(request)
	method, _, _ := strings.Cut(request, " ")
	a, err := w.receive(method)
	if err != nil {
		w.t.Fatalf("%.60q: %v", request, err)
	}
	return a
}

// ended reports whether the gate closes the connection, and nothing more comes.
func (w *wire) ended() bool {
	_, err := w.r.ReadByte()
	ne, ok := err.(net.Error)
	return err != nil && !(ok && ne.Timeout())
}

func (e *estate) wire() *wire { return newWire(e.t, e.dialEdge()) }

// wireTo calls the gate of a service as the workload with a SPIFFE ID would.
func (e *estate) wireTo(service, id string) (*wire, error) {
	ctx, cancel := context.WithCancel(context.Background())
	e.t.Cleanup(cancel)
	source, err := e.auth.Source(ctx, id, nil)
	if err != nil {
		e.t.Fatal(err)
	}
	c, err := tls.Dial("tcp", e.in[service], spiffe.ClientConfig(source, "spiffe://shop.example/"+service))
	if err != nil {
		return nil, err
	}
	e.t.Cleanup(func() { c.Close() })
	return newWire(e.t, c), nil
}

// app is a server that is told what to do with every connection.
func app(t testing.TB, serve func(c net.Conn, r *bufio.Reader)) (address string) {
	t.Helper()
	l := listen(t)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				serve(c, bufio.NewReader(c))
			}()
		}
	}()
	return l.Addr().String()
}

// readRequest reads one request whole; nil at the end of the connection.
func readRequest(r *bufio.Reader) *http.Request {
	req, err := http.ReadRequest(r)
	if err != nil {
		return nil
	}
	if _, err := io.Copy(io.Discard, req.Body); err != nil {
		return nil
	}
	return req
}

func bufioReader(text string) *bufio.Reader { return bufio.NewReader(strings.NewReader(text)) }
