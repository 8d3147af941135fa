package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"testing"
	"time"

	"merlon"
)

// serveTLS is serve behind TLS, and the client's configuration for it.
func serveTLS(t *testing.T) (*server, *tls.Config) {
	h := httptest.NewUnstartedServer(nil)
	h.StartTLS()
	defer h.Close()
	roots := x509.NewCertPool()
	roots.AddCert(h.Certificate())
	s := serve(t, func(nc net.Conn) {
		echo(tls.Server(nc, &tls.Config{Certificates: h.TLS.Certificates}))
	})
	s.endpoint.TLSName = "example.com"
	return s, &tls.Config{RootCAs: roots, ServerName: "example.com", MinVersion: tls.VersionTLS13}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	s, config := serveTLS(t)
	asked := 0
	c := open(t, Config{TLS: func(e merlon.Endpoint) (*tls.Config, any, error) {
		if e != s.endpoint {
			t.Errorf("asked for the configuration of %+v", e)
		}
		asked++
		return config, "state", nil
	}}, s.endpoint)
	conn := get(t, c, false)
	if conn.State != "state" {
		t.Errorf("the connection has state %v, want that of its configuration", conn.State)
	}
	secure, ok := conn.Conn.(*tls.Conn)
	if !ok || !secure.ConnectionState().HandshakeComplete {
		t.Fatalf("not a TLS connection with its handshake done: %T", conn.Conn)
	}
	if _, ok := conn.Socket().(*net.TCPConn); !ok {
		t.Errorf("the socket below is a %T", conn.Socket())
	}
	if err := call(conn); err != nil {
		t.Fatal(err)
	}
	conn.Release(true)
	c.sweep() // session tickets were read with the answer: nothing is left to read
	if conn = get(t, c, false); !conn.Reused {
		t.Error("a good TLS connection was swept")
	}
	conn.Release(true)
	get(t, c, true).Release(true)
	if asked != 2 {
		t.Errorf("asked %d times for a configuration, want once per connection", asked)
	}
}

// An endpoint that must prove who it is, is never spoken to in plain text.
func TestNeverPlainWithIdentity(t *testing.T) {
	t.Parallel()
	s := serve(t, echo)
	for _, e := range []merlon.Endpoint{
		{Address: s.endpoint.Address, ID: "spiffe://shop.example/orders"},
		{Address: s.endpoint.Address, TLSName: "api.stripe.com"},
	} {
		for _, f := range []func(merlon.Endpoint) (*tls.Config, any, error){nil, func(merlon.Endpoint) (*tls.Config, any, error) { return nil, nil, nil }} {
			c := open(t, Config{TLS: f}, e)
			_, err := c.get(context.Background(), false, merlon.Endpoint{})
			wantReason(t, err, ReasonConnect)
			if !errors.Is(err, errPlain) {
				t.Errorf("%+v: %v", e, err)
			}
		}
	}
	select {
	case <-s.accepted:
		t.Error("a connection was made")
	default:
	}
}

func TestTLSWrongName(t *testing.T) {
	t.Parallel()
	s, config := serveTLS(t)
	config.ServerName = "orders.example"
	c := open(t, Config{TLS: func(merlon.Endpoint) (*tls.Config, any, error) { return config, nil, nil }}, s.endpoint)
	_, err := c.get(context.Background(), false, merlon.Endpoint{})
	wantReason(t, err, ReasonConnect)
	var wrong x509.HostnameError
	if !errors.As(err, &wrong) {
		t.Errorf("cause %v", err)
	}
	if st := status(t, c, s.endpoint); st.Open != 0 || st.Active != 0 {
		t.Errorf("%+v", st)
	}
}

// Who has nothing to prove itself by connects to nobody, and that is no failure
// of the endpoint: it must not be ejected for it.
func TestNoSVID(t *testing.T) {
	t.Parallel()
	s, config := serveTLS(t)
	missing := errors.New("no SVID")
	var err error = missing
	c := open(t, Config{EjectAfter: 1, TLS: func(merlon.Endpoint) (*tls.Config, any, error) { return config, nil, err }}, s.endpoint)
	for range 3 {
		_, got := c.get(context.Background(), false, merlon.Endpoint{})
		if wantReason(t, got, ReasonUnready); !errors.Is(got, missing) {
			t.Errorf("cause %v", got)
		}
	}
	if st := status(t, c, s.endpoint); st.Open != 0 || st.Active != 0 || st.Ejected != 0 || c.Counts().Failed != 0 {
		t.Errorf("%+v, %+v", st, c.Counts())
	}
	err = nil
	get(t, c, false).Release(true)
}

// TestNoSVIDInLine: calls that wait for a shared connection learn at once that
// there will be none.
func TestNoSVIDInLine(t *testing.T) {
	t.Parallel()
	s, _ := serveTLS(t)
	const calls = 5
	inLine := make(chan struct{})
	m := &many{room: calls}
	c := open(t, Config{Mux: m.make, ConnectTimeout: time.Hour, TLS: func(merlon.Endpoint) (*tls.Config, any, error) {
		<-inLine
		return nil, nil, errors.New("no SVID")
	}}, s.endpoint)
	got := make(chan error, calls)
	for range calls {
		go func() {
			_, err := c.get(context.Background(), false, merlon.Endpoint{})
			got <- err
		}()
	}
	until(t, "the others wait", func() bool { return status(t, c, s.endpoint).Waiting == calls-1 })
	close(inLine)
	for range calls {
		select {
		case err := <-got:
			wantReason(t, err, ReasonUnready)
		case <-time.After(20 * time.Second):
			t.Fatal("a call waits for what will not come")
		}
	}
}

// ConnectTimeout covers the handshake.
func TestHandshakeTimeout(t *testing.T) {
	t.Parallel()
	s := serve(t, func(nc net.Conn) { io.Copy(io.Discard, nc) })
	c := open(t, Config{
		ConnectTimeout: 20 * time.Millisecond,
		TLS:            func(merlon.Endpoint) (*tls.Config, any, error) { return &tls.Config{ServerName: "x"}, nil, nil },
	}, s.endpoint)
	_, err := c.get(context.Background(), false, merlon.Endpoint{})
	wantReason(t, err, ReasonConnect)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("cause %v", err)
	}
}
