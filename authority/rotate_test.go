package authority

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"merlon/identity/spiffe"
)

// short lives that rotate at once in the clock of a bubble.
func short() Options {
	return Options{Lifetime: 20 * time.Second, JWTLifetime: 5 * time.Second, Intermediate: 20 * time.Second,
		Root: 20 * time.Second, JWTKey: 20 * time.Second, Notice: 2 * time.Second}
}

// observer is a verifier that hears of a bundle only as late as the notice
// allows: it verifies by the bundle of some time ago.
type observer struct {
	delay time.Duration
	seen  []*Trust
	at    []time.Time
}

func (o *observer) look(a *Authority, now time.Time) {
	if t := a.Trust(); len(o.seen) == 0 || o.seen[len(o.seen)-1] != t {
		o.seen, o.at = append(o.seen, t), append(o.at, now)
	}
}

// trust is the bundle that the observer has now.
func (o *observer) trust(now time.Time) *Trust {
	t := o.seen[0]
	for i := range o.seen {
		if !o.at[i].Add(o.delay).After(now) {
			t = o.seen[i]
		}
	}
	return t
}

func (o *observer) check(t *testing.T, a *Authority, now time.Time) {
	t.Helper()
	o.look(a, now)
	key := newKey(t)
	chain, until, err := a.Issue(orders, key.Public(), now)
	if err != nil {
		t.Fatal(err)
	}
	o.look(a, now)
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		t.Fatal(err)
	}
	between := x509.NewCertPool()
	for _, der := range chain[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		between.AddCert(c)
	}
	// Now, by who heard late, and at its end, by who heard all.
	for _, at := range []time.Time{now, until.Add(-time.Second)} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: o.trust(now).Roots, Intermediates: between, CurrentTime: at}); err != nil {
			t.Fatalf("at %v: an SVID of %v until %v: %v", at, now, until, err)
		}
	}
	if left := until.Sub(now); left < a.opt.Lifetime*3/4-time.Second {
		t.Errorf("an SVID for %v", left)
	}
	token, _, err := a.IssueJWT(orders, []string{"x"}, now)
	if err != nil {
		t.Fatal(err)
	}
	o.look(a, now)
	if _, err := spiffe.VerifyJWT(token, "x", td, o.trust(now).Key, now); err != nil {
		t.Fatalf("a JWT-SVID of %v: %v", now, err)
	}
}

// Ten minutes with lives of 20 s at all levels: verifiers that hear of a new
// bundle as late as the notice allows accept everything at every moment, and
// so they do until its last moment. Whoever holds an SVID would outlast half a
// lifetime without the authority, from any moment on.
func TestRotationAtAllLevels(t *testing.T) {
	t.Parallel()
	dir := t.TempDir() + "/state"
	synctest.Test(t, func(t *testing.T) {
		log := &logs{}
		opt := short()
		opt.Log = slog.New(log)
		a := open(t, dir, opt)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); a.Run(ctx) }()
		o := &observer{delay: opt.Notice - 100*time.Millisecond}
		web := newSource(t, ctx, a, "web")
		for range 1500 {
			o.check(t, a, time.Now())
			if svid := web.SVID(); svid == nil || time.Until(svid.Leaf.NotAfter) < opt.Lifetime*6/10 {
				t.Fatalf("at %v an SVID is held that is %v", time.Now(), svid)
			}
			time.Sleep(400 * time.Millisecond)
			synctest.Wait()
		}
		if n := len(o.seen); n < 50 {
			t.Errorf("%d bundles", n)
		}
		if log.has(slog.LevelWarn, "") || log.has(slog.LevelError, "") {
			t.Errorf("alarms without need: %v", log.records[0].Message)
		}
		// What has ended stays for clocks that are behind.
		if n := len(files(t, dir)); n > 2*int((opt.Root+Skew)/(2*time.Second))+keepFiles+journalKeep+2 {
			t.Errorf("%d files", n)
		}
		s := a.Status(time.Now())
		if len(s.Alarms) != 0 || s.Err != "" || len(s.Lives) < 4 {
			t.Errorf("%+v", s)
		}
		cancel()
		<-done
		<-web.Done()
	})
}

// Lifetimes are nested: nothing outlives what signed it.
func TestLifetimes(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		opt  Options
		want string
	}{
		{Options{Lifetime: time.Hour, Intermediate: 30 * time.Minute}, "longer than that of the intermediate"},
		{Options{Intermediate: time.Hour, Root: 30 * time.Minute}, "longer than that of the root"},
		{Options{Root: time.Millisecond, Intermediate: time.Millisecond}, "a lifetime of 1ms is not between 1s and"},
		{Options{JWTKey: time.Hour, Notice: time.Hour}, "a notice of 1h0m0s"},
	} {
		if _, err := Open(t.TempDir()+"/state", td, tt.opt); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v", tt.opt, err)
		}
	}
}

// The successor of a root or JWT key is published one notice before it signs,
// and the bundle says so at once.
func TestPreparedBeforeActive(t *testing.T) {
	t.Parallel()
	c := newClock()
	a := open(t, t.TempDir()+"/state", Options{Now: c.Now})
	first := a.Trust()
	c.Advance(rootLifetime/2 + time.Minute)
	a.keep(c.Now())
	select {
	case <-first.Stale():
	default:
		t.Fatal("nobody hears of the new bundle")
	}
	if n := len(a.Trust().DER); n != 2 {
		t.Fatalf("%d roots in the bundle", n)
	}
	old, next := a.state.Load().lines[roots][0], a.state.Load().lines[roots][1]
	if _, between := issue(t, a, newKey(t).Public(), c.Now()); between.CheckSignatureFrom(old.cert) != nil {
		t.Error("the new root signs before its notice is over")
	}
	states := func() (all string) {
		for _, l := range a.Status(c.Now()).Lives {
			if l.Kind == "root" {
				all += l.State + " "
			}
		}
		return
	}
	if got := states(); got != "signing prepared " {
		t.Error(got)
	}
	c.Advance(day + time.Minute)
	leaf, between := issue(t, a, newKey(t).Public(), c.Now())
	if between.CheckSignatureFrom(next.cert) != nil {
		t.Error("the new root does not sign after its notice")
	}
	if err := verify(a, leaf, between, c.Now()); err != nil {
		t.Error(err)
	}
	if got := states(); got != "retired signing " {
		t.Error(got)
	}
	c.Advance(old.cert.NotAfter.Sub(c.Now()))
	a.keep(c.Now())
	if n := len(a.Trust().DER); n != 2 {
		t.Errorf("%d roots: the old one was dropped before clocks that are behind have passed its end", n)
	}
	c.Advance(Skew)
	a.keep(c.Now())
	if slices.ContainsFunc(a.Trust().DER, func(der []byte) bool { return bytes.Equal(der, old.cert.Raw) }) {
		t.Error("the old root stays after its end")
	}
}

// A root that was made just before the authority was killed was in nobody's
// bundle: after the next start it waits for its notice.
func TestNoticeAfterRestart(t *testing.T) {
	t.Parallel()
	c, dir := newClock(), t.TempDir()+"/state"
	a := open(t, dir, Options{Now: c.Now})
	c.Advance(rootLifetime/2 + time.Minute)
	a.keep(c.Now())
	a.Close()
	c.Advance(100 * day)
	a = open(t, dir, Options{Now: c.Now})
	old, next := a.state.Load().lines[roots][0], a.state.Load().lines[roots][1]
	if _, between := issue(t, a, newKey(t).Public(), c.Now()); between.CheckSignatureFrom(old.cert) != nil {
		t.Error("a root that nobody has heard of signs")
	}
	c.Advance(day + time.Minute)
	if _, between := issue(t, a, newKey(t).Public(), c.Now()); between.CheckSignatureFrom(next.cert) != nil {
		t.Error("it never signs")
	}
	a.Close()
	a = open(t, dir, Options{Now: c.Now})
	if _, between := issue(t, a, newKey(t).Public(), c.Now()); between.CheckSignatureFrom(next.cert) != nil {
		t.Error("a root that has signed waits again")
	}
}

// All that had to be renewed while nobody was there is new after a start, said
// aloud, and a clock that was wrong for a while costs nothing.
func TestAwayForTooLong(t *testing.T) {
	t.Parallel()
	c, log, dir := newClock(), &logs{}, t.TempDir()+"/state"
	a := open(t, dir, Options{Now: c.Now})
	leaf, between := issue(t, a, newKey(t).Public(), c.Now())
	a.Close()
	c.Advance(12 * 365 * day)
	b := open(t, dir, Options{Now: c.Now, Log: slog.New(log)})
	late, lateBetween := issue(t, b, newKey(t).Public(), c.Now())
	if err := verify(b, late, lateBetween, c.Now()); err != nil {
		t.Error(err)
	}
	if !log.has(slog.LevelError, "has ended and was not renewed") {
		t.Error("nobody heard of it")
	}
	b.Close()
	c.Advance(-12 * 365 * day)
	if err := verify(open(t, dir, Options{Now: c.Now}), leaf, between, c.Now()); err != nil {
		t.Error("the clock was wrong, and the root is lost:", err)
	}
}

// Each alarm comes once, at its part of the life, and status shows it.
func TestAlarms(t *testing.T) {
	t.Parallel()
	c, log := newClock(), &logs{}
	a := open(t, t.TempDir()+"/state", Options{Now: c.Now, Log: slog.New(log)})
	start := c.Now()
	// Nothing can be stored any more.
	for _, word := range []string{"root", "intermediate", "jwt"} {
		if err := os.Mkdir(filepath.Join(a.dir, fileName(word, 1)), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		at    float64
		level slog.Level
		text  string
		want  string
	}{
		{0.51, slog.LevelWarn, "half of its life", "half over"},
		{0.76, slog.LevelError, "three quarters", "a quarter left"},
		{0.91, slog.LevelError, "about to end", "a tenth left"},
		{1.01, slog.LevelError, "it has ended", "ended"},
	} {
		if log.has(step.level, "key of JWT-SVIDs is not renewed: "+step.text) {
			t.Errorf("%q came early", step.text)
		}
		c.now.Store(start.Add(time.Duration(step.at * float64(jwtKeyLifetime))).UnixNano())
		for range 3 {
			a.keep(c.Now())
		}
		if n := log.count(step.level, step.text); n != 1 {
			t.Errorf("%q came %d times", step.text, n)
		}
		if s := a.Status(c.Now()); s.Alarms["jwt"] != step.want || s.Alarms["root"] != "" || s.Err == "" {
			t.Errorf("%+v, want %q", s, step.want)
		}
	}
	if !log.has(slog.LevelError, "the key of JWT-SVIDs could not be renewed") {
		t.Error("nobody heard why")
	}
	if err := os.Remove(filepath.Join(a.dir, fileName("jwt", 1))); err != nil {
		t.Fatal(err)
	}
	c.Advance(2 * time.Minute)
	a.keep(c.Now())
	if s := a.Status(c.Now()); len(s.Alarms) != 0 || s.Err != "" {
		t.Errorf("after it recovered: %+v", s)
	}
}

// Peers whose clock is off by as much as was promised take SVIDs at every
// moment of their use, and not much longer.
func TestSkew(t *testing.T) {
	t.Parallel()
	c := newClock()
	a := open(t, t.TempDir()+"/state", Options{Now: c.Now})
	leaf, between := issue(t, a, newKey(t).Public(), c.Now())
	token, until, err := a.IssueJWT(orders, []string{"x"}, c.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		off      time.Duration
		x509, ok bool
	}{
		{-Skew, true, true}, {0, true, true}, {Skew, true, true},
		{-Skew - 2*time.Second, false, false},
	} {
		at := c.Now().Add(tt.off)
		if err := verify(a, leaf, between, at); (err == nil) != tt.x509 {
			t.Errorf("X.509-SVID, clock off by %v: %v", tt.off, err)
		}
		if _, err := spiffe.VerifyJWT(token, "x", td, a.Trust().Key, at); (err == nil) != tt.ok {
			t.Errorf("JWT-SVID, clock off by %v: %v", tt.off, err)
		}
	}
	if _, err := spiffe.VerifyJWT(token, "x", td, a.Trust().Key, until.Add(Skew-time.Second)); err != nil {
		t.Error("a clock that is behind at the end:", err)
	}
	if _, err := spiffe.VerifyJWT(token, "x", td, a.Trust().Key, until.Add(Skew)); err == nil {
		t.Error("a token lives longer than its life and the skew")
	}
}

// drillEnv makes a test process the authority that is killed.
const drillEnv = "MERLON_AUTHORITY_DRILL"

func TestMain(m *testing.M) {
	if dir := os.Getenv(drillEnv); dir != "" {
		drill(dir)
		return
	}
	os.Exit(m.Run())
}

// drilled is one line of what the process that is killed says: a bundle that it
// published, or what it signed.
type drilled struct {
	Roots []string // PEM, when published
	JWKS  string
	Chain [][]byte
	Token string
	At    time.Time
	Err   string
}

// drill rotates as fast as it can and says what it does.
func drill(dir string) {
	out := json.NewEncoder(os.Stdout)
	say := func(d drilled) {
		if out.Encode(d) != nil {
			os.Exit(1)
		}
	}
	// Lives of seconds at all levels, in a clock that runs a hundred times
	// faster: it starts where the last process was killed.
	var offset time.Duration
	fmt.Sscan(os.Getenv(drillEnv+"_AT"), (*int64)(&offset))
	began := time.Now()
	now := func() time.Time { return began.Add(offset + 100*time.Since(began)) }
	opt := short()
	opt.Now = now
	a, err := Open(dir, td, opt)
	if err != nil {
		say(drilled{Err: err.Error()})
		os.Exit(1)
	}
	key, err := newKeyPair()
	if err != nil {
		panic(err)
	}
	var last *Trust
	for {
		at := now()
		chain, _, err := a.Issue(orders, key.Public(), at)
		if err != nil {
			say(drilled{Err: err.Error()})
			os.Exit(1)
		}
		token, _, err := a.IssueJWT(orders, []string{"x"}, at)
		if err != nil {
			say(drilled{Err: err.Error()})
			os.Exit(1)
		}
		if t := a.Trust(); t != last { // published before anything was signed by it
			say(drilled{Roots: []string{string(t.PEM)}, JWKS: string(t.JWKS), At: at})
			last = t
		}
		say(drilled{Chain: chain, Token: token, At: at})
	}
}

// A process that is killed at random instants of its rotation always comes
// back: everything that it signed chains to a bundle that it had published
// before, and no file is half written.
func TestKilledAtAnyInstant(t *testing.T) {
	t.Parallel()
	dir := t.TempDir() + "/state"
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	kills := 30
	if testing.Short() {
		kills = 8
	}
	pool, jwks := x509.NewCertPool(), ""
	roots, signed, offset := 0, 0, time.Duration(0)
	for range kills {
		cmd := exec.Command(self, "-test.run=^$")
		cmd.Env = append(os.Environ(), drillEnv+"="+dir, fmt.Sprintf("%s_AT=%d", drillEnv, offset))
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		// Killed after so many bytes: a machine under load is given its time.
		lines := bufio.NewReader(io.LimitReader(stdout, 1+mathrand.Int64N(120_000)))
		for {
			text, err := lines.ReadBytes('\n')
			if err != nil {
				break
			}
			var d drilled
			if err := json.Unmarshal(text, &d); err != nil {
				t.Fatalf("%q: %v", text, err)
			}
			if d.Err != "" {
				t.Fatal(d.Err)
			}
			if d.JWKS != "" {
				for _, text := range d.Roots {
					roots += addPEM(t, pool, text)
				}
				jwks = d.JWKS
				continue
			}
			offset = max(offset, time.Until(d.At))
			signed++
			checkDrilled(t, d, pool, jwks)
		}
		cmd.Process.Kill()
		cmd.Wait()
		for name, text := range files(t, dir) {
			if strings.HasPrefix(name, ".") || !strings.HasSuffix(name, ".pem") {
				continue
			}
			if p, err := decodePair([]byte(text)); err != nil || p.key == nil {
				t.Fatalf("%s is half written: %v", name, err)
			}
		}
	}
	if roots < 5 || signed < 5*kills {
		t.Errorf("%d published roots and %d SVIDs: that is no drill", roots, signed)
	}
	t.Logf("%d kills, %d published roots, %d SVIDs", kills, roots, signed)
}

func addPEM(t *testing.T, pool *x509.CertPool, text string) (n int) {
	t.Helper()
	for rest := []byte(text); ; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return n
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		pool.AddCert(c)
	}
}

func checkDrilled(t *testing.T, d drilled, pool *x509.CertPool, jwks string) {
	t.Helper()
	leaf, err := x509.ParseCertificate(d.Chain[0])
	if err != nil {
		t.Fatal(err)
	}
	between := x509.NewCertPool()
	c, err := x509.ParseCertificate(d.Chain[1])
	if err != nil {
		t.Fatal(err)
	}
	between.AddCert(c)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, CurrentTime: d.At}); err != nil {
		t.Fatalf("an SVID of %v: %v", d.At, err)
	}
	head, _, _ := strings.Cut(d.Token, ".")
	kid := jwtHead(t, head)
	if !strings.Contains(jwks, `"kid":"`+kid+`"`) {
		t.Fatalf("a token by %s, which is not in %s", kid, jwks)
	}
}

// An upstream authority signs the intermediates. A new root of its own is
// published before anything that needs it.
func TestUpstream(t *testing.T) {
	t.Parallel()
	c := newClock()
	corp := open(t, t.TempDir()+"/corp", Options{Now: c.Now})
	up := &fakeUpstream{ca: corp.signing(roots), now: c.Now}
	dir := t.TempDir() + "/state"
	a := open(t, dir, Options{Now: c.Now, Upstream: up})
	leaf, between := issue(t, a, newKey(t).Public(), c.Now())
	if err := verify(corp, leaf, between, c.Now()); err != nil {
		t.Error("not signed by the upstream root:", err)
	}
	if !bytes.Equal(a.Bundle(), corp.Bundle()) {
		t.Error("the bundle is not the upstream root")
	}
	// The upstream authority changes its root: it is published first.
	next := open(t, t.TempDir()+"/next", Options{Now: c.Now})
	up.ca = next.signing(roots)
	c.Advance(betweenLifetime/2 + time.Hour)
	if _, b := issue(t, a, newKey(t).Public(), c.Now()); !b.Equal(between) {
		t.Error("a root that nobody knows signs")
	}
	if len(a.Trust().DER) != 2 {
		t.Error("the new root is not in the bundle")
	}
	c.Advance(day + time.Minute)
	leaf, b := issue(t, a, newKey(t).Public(), c.Now())
	if err := verify(next, leaf, b, c.Now()); err != nil {
		t.Error(err)
	}
	// It is away: the intermediate serves on, aloud.
	up.err = errors.New("upstream is away")
	c.Advance(betweenLifetime/2 + time.Hour)
	if _, b2 := issue(t, a, newKey(t).Public(), c.Now()); !b2.Equal(b) {
		t.Error("another intermediate without the upstream authority")
	}
	if s := a.Status(c.Now()); !strings.Contains(s.Err, "upstream is away") || s.Alarms["intermediate"] == "" {
		t.Errorf("%+v", s)
	}
	a.Close()
	if _, err := Open(dir, td, Options{Now: c.Now}); err != nil {
		t.Error("without the option, what is there serves to its end:", err)
	}
}

// What an upstream authority gives is tried before it is used.
func TestUpstreamGivesWrong(t *testing.T) {
	t.Parallel()
	other, err := Open(t.TempDir()+"/other", "other.example", Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for name, up := range map[string]*fakeUpstream{
		"a CA that may not name our workloads": {ca: other.signing(roots), now: time.Now},
		"no root":                              {ca: open(t, t.TempDir()+"/a", Options{}).signing(roots), now: time.Now, noRoot: true},
		"another key":                          {ca: open(t, t.TempDir()+"/b", Options{}).signing(roots), now: time.Now, otherKey: true},
		"no CA":                                {ca: open(t, t.TempDir()+"/c", Options{}).signing(roots), now: time.Now, noCA: true},
		"more certificates than gates read":    {ca: open(t, t.TempDir()+"/d", Options{}).signing(roots), now: time.Now, twice: 3},
		"a CA for clients alone":               {ca: open(t, t.TempDir()+"/e", Options{}).signing(roots), now: time.Now, usage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}},
		"a CA for servers alone":               {ca: open(t, t.TempDir()+"/f", Options{}).signing(roots), now: time.Now, usage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}},
		"an error":                             {err: errors.New("away")},
	} {
		dir := t.TempDir() + "/state"
		if _, err := Open(dir, td, Options{Upstream: up}); err == nil {
			t.Errorf("%s: it is used", name)
		}
		for file := range files(t, dir) {
			if strings.HasPrefix(file, "anchor") || strings.HasPrefix(file, "intermediate") {
				t.Errorf("%s: %s is kept", name, file)
			}
		}
	}
}
