package authority

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"merlon/identity/spiffe"
)

// logs keeps what was logged.
type logs struct {
	mu      sync.Mutex
	records []slog.Record
}

func (*logs) Enabled(context.Context, slog.Level) bool { return true }
func (l *logs) WithAttrs([]slog.Attr) slog.Handler     { return l }
func (l *logs) WithGroup(string) slog.Handler          { return l }
func (l *logs) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records = append(l.records, r)
	return nil
}

func (l *logs) count(level slog.Level, text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, r := range l.records {
		if r.Level == level && strings.Contains(r.Message, text) {
			n++
		}
	}
	return n
}

func (l *logs) has(level slog.Level, text string) bool { return l.count(level, text) > 0 }

func newSource(t testing.TB, ctx context.Context, a *Authority, name string) *Source {
	t.Helper()
	s, err := a.Source(ctx, "spiffe://"+a.trustDomain+"/"+name, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// The clock of the bubble is the clock of the authority, the source and its
// timers: hours pass at once.
func TestRenewal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir() + "/state"
	synctest.Test(t, func(t *testing.T) {
		a := open(t, dir, Options{})
		ctx, cancel := context.WithCancel(t.Context())
		s := newSource(t, ctx, a, "orders")
		if s.ID() != orders {
			t.Error(s.ID())
		}
		first := s.SVID()
		key, kid := s.Key()
		if wantKey, wantKID := spiffe.Key(first); key != wantKey || kid != wantKID {
			t.Error("Key is not the key of SVID")
		}
		time.Sleep(19 * time.Minute)
		synctest.Wait()
		if s.SVID() != first {
			t.Error("renewed before a third of its life")
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		second := s.SVID()
		if second == first || second.Leaf.SerialNumber.Cmp(first.Leaf.SerialNumber) == 0 {
			t.Fatal("not renewed at a third of its life")
		}
		if k, id := s.Key(); k == key || id == kid {
			t.Error("the key is the old one")
		}
		for range 100 { // four days
			time.Sleep(time.Hour)
			synctest.Wait()
			svid := s.SVID()
			if svid == nil {
				t.Fatal("a healthy source has no SVID")
			}
			if left := time.Until(svid.Leaf.NotAfter); left < 39*time.Minute {
				t.Fatalf("only %v left", left)
			}
		}
		if n := len(a.entries(t)); n < 290 {
			t.Errorf("%d lines in the journal", n)
		}
		cancel()
		<-s.Done()
		time.Sleep(2 * time.Hour)
		if s.SVID() != nil {
			t.Error("an expired SVID is served")
		}
	})
}

// A rotation that fails has to be heard long before anybody notices, and what
// has expired is not shown.
func TestClass18CertificateRotationFailureIsLoud(t *testing.T) {
	t.Parallel()
	dir := t.TempDir() + "/state"
	synctest.Test(t, func(t *testing.T) {
		a := open(t, dir, Options{})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		log := &logs{}
		s, err := a.Source(ctx, orders, slog.New(log))
		if err != nil {
			t.Fatal(err)
		}
		// The disk is gone: nothing can be written down, so nothing is signed.
		if err := errors.Join(a.Close(), os.Rename(dir, dir+".gone")); err != nil {
			t.Fatal(err)
		}
		a.closed.Store(false)
		a.journal.disk.Lock()
		a.journal.closed = false
		a.journal.disk.Unlock()
		first := s.SVID()
		steps := []struct {
			until time.Duration
			level slog.Level
			text  string
		}{
			{31 * time.Minute, slog.LevelWarn, "the SVID could not be renewed"},
			{47 * time.Minute, slog.LevelError, "three quarters of its life are over"},
			{56 * time.Minute, slog.LevelError, "about to expire"},
			{62 * time.Minute, slog.LevelError, "has expired: every call"},
		}
		start := time.Now()
		for _, step := range steps {
			if log.has(step.level, step.text) {
				t.Errorf("%q came early", step.text)
			}
			time.Sleep(step.until - time.Since(start))
			synctest.Wait()
			if !log.has(step.level, step.text) {
				t.Errorf("%q did not come within %v", step.text, step.until)
			}
		}
		if n := log.count(slog.LevelWarn, "") + log.count(slog.LevelError, ""); n < 10 || n > 200 {
			t.Errorf("%d attempts", n)
		}
		if first == nil || s.SVID() != nil {
			t.Error("an expired SVID is served")
		}
		if key, _ := s.Key(); key != nil {
			t.Error("assertions are signed with an expired SVID's key")
		}
		// Both ends fail closed.
		if _, err := spiffe.ServerConfig(s, td).GetCertificate(nil); err == nil {
			t.Error("a server without SVID serves")
		}
		if _, err := spiffe.ClientConfig(s, orders).GetClientCertificate(nil); err == nil {
			t.Error("a client without SVID calls")
		}
		// The disk is back, and nobody has to restart anything.
		if err := os.Rename(dir+".gone", dir); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if s.SVID() == nil || !log.has(slog.LevelInfo, "renewed after failures") {
			t.Error("it does not recover")
		}
		cancel()
		<-s.Done()
	})
}

func TestSourceFailsAtOnce(t *testing.T) {
	t.Parallel()
	a := open(t, t.TempDir()+"/state", Options{})
	if _, err := a.Source(t.Context(), "spiffe://other.example/orders", nil); err == nil {
		t.Error("a source for another trust domain")
	}
}

// echo accepts connections and sends back what comes, until the test ends.
func echo(t *testing.T, config *tls.Config) net.Addr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				conn := tls.Server(raw, config)
				defer conn.Close()
				io.Copy(conn, conn)
			})
		}
	})
	return l.Addr()
}

func ping(conn *tls.Conn) error {
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	var b [4]byte
	if _, err := conn.Write([]byte("ping")); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, b[:])
	return err
}

func dial(addr net.Addr, config *tls.Config) (*tls.Conn, error) {
	raw, err := net.Dial("tcp", addr.String())
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, config)
	if err := ping(conn); err != nil { // the server's verdict comes with its first byte
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// SVIDs of five seconds, in real time: while both ends renew, new connections
// are made without a break and old ones live on.
func TestRotationUnderConnections(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes six seconds of real time")
	}
	a := open(t, t.TempDir()+"/state", Options{Lifetime: 5 * time.Second})
	web, server := newSource(t, t.Context(), a, "web"), newSource(t, t.Context(), a, "orders")
	addr := echo(t, spiffe.ServerConfig(server, td))
	client := spiffe.ClientConfig(web, orders)
	long, err := dial(addr, client)
	if err != nil {
		t.Fatal(err)
	}
	defer long.Close()
	begun, made := time.Now(), 0
	var seen sync.Map
	var distinct atomic.Int32
	for over := time.Duration(0); over < 6*time.Second || distinct.Load() < 4 && over < time.Minute; over = time.Since(begun) { // longer than the first SVID
		conn, err := dial(addr, client)
		if err != nil {
			t.Fatalf("after %d connections: %v", made, err)
		}
		made++
		serial := conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
		if _, known := seen.LoadOrStore(serial, true); !known {
			distinct.Add(1)
		}
		conn.Close()
		if err := ping(long); err != nil {
			t.Fatalf("the old connection was dropped after %d new ones: %v", made, err)
		}
	}
	if distinct.Load() < 4 {
		t.Errorf("%d SVIDs in %d connections: there was no rotation to test", distinct.Load(), made)
	}
	t.Logf("%d connections over %d SVIDs", made, distinct.Load())
}

// Two authorities, even of the same name, know nothing of each other.
func TestTrustDomainsApart(t *testing.T) {
	t.Parallel()
	a := open(t, t.TempDir()+"/a", Options{})
	same := open(t, t.TempDir()+"/same", Options{})
	other, err := Open(t.TempDir()+"/other", "other.example", Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	server := newSource(t, t.Context(), a, "orders")
	addr := echo(t, spiffe.ServerConfig(server, td))
	for i, from := range []*Authority{a, same, other} {
		src := newSource(t, t.Context(), from, "web")
		conn, err := dial(addr, spiffe.ClientConfig(src, orders))
		if (err == nil) != (i == 0) {
			t.Errorf("authority %d: %v", i, err)
		}
		if err == nil {
			conn.Close()
		}
		// The server's verdict alone: a client that trusts everything.
		blind := spiffe.ClientConfig(src, orders)
		blind.VerifyConnection = nil
		conn, err = dial(addr, blind)
		if (err == nil) != (i == 0) {
			t.Errorf("authority %d, blind client: %v", i, err)
		}
		if err == nil {
			conn.Close()
		}
	}
}

// What a stolen intermediate could sign beyond its trust domain is refused by
// the name constraints, and an SVID signs nothing.
func TestConstraints(t *testing.T) {
	t.Parallel()
	a := open(t, t.TempDir()+"/state", Options{})
	forge := func(id string, parent pair) *tls.Certificate {
		t.Helper()
		key := newKey(t)
		leaf, _ := issue(t, a, key.Public(), time.Now())
		u := *leaf.URIs[0]
		u.Host, u.Path = strings.TrimPrefix(strings.TrimSuffix(id, "/web"), "spiffe://"), "/web"
		c := &x509.Certificate{
			SerialNumber: leaf.SerialNumber, NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, BasicConstraintsValid: true,
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: svidUsage(),
		}
		c.URIs = append(c.URIs, &u)
		der, err := x509.CreateCertificate(nil, c, parent.cert, key.Public(), parent.key)
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Certificate{Certificate: [][]byte{der, parent.cert.Raw, a.signing(intermediates).cert.Raw}, PrivateKey: key}
	}
	verify := func(id string, cert *tls.Certificate, trustDomain string) error {
		server := newSource(t, t.Context(), a, "orders")
		addr := echo(t, spiffe.ServerConfig(server, trustDomain))
		conn, err := dial(addr, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*cert}})
		if err == nil {
			conn.Close()
		}
		return err
	}
	if err := verify("good", forge("spiffe://shop.example/web", *a.signing(intermediates)), td); err != nil {
		t.Error("the test's own forgery must work where it is allowed:", err)
	}
	if err := verify("constraint", forge("spiffe://evil.example/web", *a.signing(intermediates)), "evil.example"); err == nil {
		t.Error("an intermediate signs for another trust domain")
	}
	svid := newSource(t, t.Context(), a, "web").SVID()
	key, _ := spiffe.Key(svid)
	if err := verify("svid", forge("spiffe://shop.example/web", pair{cert: svid.Leaf, key: key}), td); err == nil {
		t.Error("an SVID signs SVIDs")
	}
}

// Everything that was issued is in the journal, also when many ask at once.
func TestIssueAtOnce(t *testing.T) {
	t.Parallel()
	a := open(t, filepath.Join(t.TempDir(), "state"), Options{})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() { newSource(t, t.Context(), a, fmt.Sprintf("s%d", i)) })
	}
	wg.Wait()
	if n := len(a.entries(t)); n != 11 {
		t.Errorf("%d lines", n)
	}
}

// A clock that is ahead of the authority's by more than a lifetime makes a failure
// of each new SVID, with pauses between, and not one renewal after the other.
func TestClockAhead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir() + "/state"
	synctest.Test(t, func(t *testing.T) {
		a := open(t, dir, Options{Lifetime: time.Hour})
		ctx, stop := context.WithCancel(t.Context())
		var ahead, asked atomic.Int64
		s, err := NewSource(ctx, SourceConfig{
			ID: "spiffe://shop.example/a", Roots: a.Roots, Lifetime: func() time.Duration { return time.Hour },
			Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) },
			Issue: func(_ context.Context, key crypto.Signer) ([][]byte, time.Time, error) {
				asked.Add(1)
				return a.Issue("spiffe://shop.example/a", key.Public(), time.Now())
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		ahead.Store(int64(2 * time.Hour))
		time.Sleep(10 * time.Minute)
		if n := asked.Load(); n < 3 || n > 60 {
			t.Errorf("asked %d times in ten minutes", n)
		}
		if s.SVID() != nil {
			t.Error("an SVID that has ended is shown")
		}
		ahead.Store(0)
		time.Sleep(2 * time.Minute)
		if s.SVID() == nil {
			t.Error("the clock is right again, and there is no SVID")
		}
		stop()
		<-s.Done()
	})
}
