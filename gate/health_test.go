package gate_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"slices"
	"testing"
	"time"

	"merlon"
	"merlon/gate"
	"merlon/record"
)

// codes are those of a gate's problems.
func codes(g *gate.Gate, now time.Time) (list []string) {
	for _, p := range g.Problems(now) {
		list = append(list, p.Code)
	}
	return list
}

// TestLeave: for as long as the patience of a gate that leaves, each client is
// told by an answer, those that rest too, and none is cut off.
func TestLeave(t *testing.T) {
	t.Parallel()
	addr, g := direct(t, parrot(t), gate.Bounds{})
	until(t, "it serves", func() bool { return codes(g, time.Now()) == nil })
	idle, silent := newWire(t, dial(t, addr)), newWire(t, dial(t, addr))
	const request = "GET /a/1 HTTP/1.1\r\nHost: shop.example\r\n\r\n"
	if a := idle.ask(request); a.closes {
		t.Fatal("a connection ends before its time")
	}
	until(t, "both are taken in", func() bool { return g.Connections() == 2 })
	left := make(chan error, 1)
	go func() { left <- g.Leave(t.Context(), time.Minute) }()
	until(t, "the gate leaves", func() bool { return slices.Equal(codes(g, time.Now()), []string{gate.ProblemDraining}) })
	for name, w := range map[string]*wire{"idle": idle, "silent": silent} {
		if a := w.ask(request); a.body != "/a/1 0" || !a.closes {
			t.Errorf("%s: answered %d %q, and told of the end: %v", name, a.status, a.body, a.closes)
		}
		if !w.ended() {
			t.Errorf("%s: still open", name)
		}
	}
	if err := <-left; err != nil {
		t.Error(err)
	}
}

// TestLeaveEndsIdle: the patience of a gate ends.
func TestLeaveEndsIdle(t *testing.T) {
	t.Parallel()
	addr, g := direct(t, parrot(t), gate.Bounds{})
	w := newWire(t, dial(t, addr))
	w.ask("GET /a/1 HTTP/1.1\r\nHost: shop.example\r\n\r\n")
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	if err := g.Leave(ctx, 50*time.Millisecond); err != nil {
		t.Error(err)
	}
	if !w.ended() {
		t.Error("still open")
	}
}

// bare is a source with the dates of its certificate.
type bare struct{ from, until time.Time }

func (b bare) Roots() *x509.CertPool { return nil }
func (b bare) SVID() *tls.Certificate {
	if b.until.IsZero() {
		return nil
	}
	return &tls.Certificate{Leaf: &x509.Certificate{NotBefore: b.from, NotAfter: b.until}}
}

// TestProblems: each reason why a gate is not ready.
func TestProblems(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, tt := range []struct {
		name   string
		source bare
		spoil  func(*record.Writer)
		want   []string
	}{
		{"new", bare{now.Add(-time.Hour), now.Add(time.Hour)}, nil, nil},
		{"no certificate", bare{}, nil, []string{gate.ProblemSVID}},
		{"certificate of tomorrow", bare{now.Add(time.Hour), now.Add(2 * time.Hour)}, nil, []string{gate.ProblemSVID}},
		{"certificate of yesterday", bare{now.Add(-2 * time.Hour), now.Add(-time.Hour)}, nil, []string{gate.ProblemSVID}},
		{"no records", bare{now.Add(-time.Hour), now.Add(time.Hour)}, func(w *record.Writer) { w.Close() }, []string{gate.ProblemRecords}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			records, err := record.Open(t.TempDir(), record.Options{Now: time.Now})
			if err != nil {
				t.Fatal(err)
			}
			defer records.Close()
			g, err := gate.New(gate.Config{Place: merlon.Edge, TrustDomain: "shop.example", Source: tt.source, Records: records, Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			if tt.spoil != nil {
				tt.spoil(records)
			}
			if got, want := codes(g, now), append([]string{gate.ProblemNotListening, gate.ProblemNoOrders}, tt.want...); !slices.Equal(got, want) {
				t.Errorf("%q, want %q", got, want)
			}
			if err := g.Stuck(time.Now()); err != nil {
				t.Error(err)
			}
			g.Close()
			if err := g.Stuck(time.Now().Add(time.Minute)); err == nil {
				t.Error("a gate whose loops have ended is not stuck")
			}
		})
	}
}
