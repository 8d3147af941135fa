package main

import (
	"context"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"merlon"
	"merlon/attest"
	"merlon/control"
	"merlon/intent"
	"merlon/policy"
	"merlon/record"
)

var update = flag.Bool("update", false, "write the outputs that scripts and documents expect")

// TestMain makes this test binary the program merlon, for scripts to run.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"merlon": main})
}

// TestScript runs testdata/script. Beside merlon, a script can say:
//
//	shop DIR          a copy of examples/shop
//	state DIR         a state directory as merlon up leaves it: one intent in its history, a few records
//	serve DIR         a control plane that runs there, with a gate at every place that takes what it is sent
//	calls DIR         records of calls, over and over, in the state directory of DIR
//	exits N COMMAND   run a command that must exit with N
func TestScript(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("TZ", "UTC")
			env.Setenv("NO_COLOR", "")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"shop":  func(ts *testscript.TestScript, _ bool, args []string) { ts.Check(copyShop(ts.MkAbs(args[0]))) },
			"state": func(ts *testscript.TestScript, _ bool, args []string) { ts.Check(makeHistory(ts.MkAbs(args[0]))) },
			"serve": func(ts *testscript.TestScript, _ bool, args []string) {
				stop, err := serve(ts.MkAbs(args[0]))
				ts.Check(err)
				ts.Defer(stop)
			},
			"calls": func(ts *testscript.TestScript, _ bool, args []string) {
				stop, err := makeCalls(ts.MkAbs(args[0]))
				ts.Check(err)
				ts.Defer(stop)
			},
			"exits": exits,
		},
	})
}

// exits runs a command and wants an exit code: exits 3 merlon can ...
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := "0"
	if err != nil {
		code = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if code != args[0] {
		ts.Fatalf("exit code %s, want %s", code, args[0])
	}
}

func copyShop(dir string) error {
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("..", "..", "examples", "shop"))); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(dir, ".merlon")) // of someone who tried the example
}

// epoch is when the systems of these tests began.
var epoch = time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)

// openControl opens the control plane of the intent in dir, with gates that
// take all they are sent.
func openControl(dir string, began time.Time) (*control.Control, *intent.Loaded, error) {
	files, err := openDir(dir)
	if err != nil {
		return nil, nil, err
	}
	loaded, ds := intent.Load(files)
	if ds.Failed() {
		return nil, nil, ds
	}
	state := filepath.Join(dir, ".merlon")
	who := newIdentities(attest.Options{}, slog.New(slog.DiscardHandler))
	c, err := control.Open(context.Background(), state, control.Options{
		Records: filepath.Join(state, recordsName), Now: func() time.Time { return began }, InForce: who.force, Explain: who.explain,
	})
	if err != nil {
		return nil, nil, err
	}
	for i, p := range places(loaded.Intent) {
		h := control.Hello{Place: p, Version: merlon.OrdersVersion, Protocols: []merlon.Protocol{merlon.HTTP}}
		if p != merlon.Edge {
			h.Address, h.Outbound = fmt.Sprintf("127.0.0.1:%d", 9000+i), fmt.Sprintf("127.0.0.1:%d", 9100+i)
		}
		session, err := c.Connect(context.Background(), h)
		if err != nil {
			return nil, nil, err
		}
		go func() {
			ack := control.Ack{}
			if svc := loaded.Intent.Service(p.Service); svc != nil {
				ack.Local = localRule{run: svc.Run != nil}.String()
			}
			for o := range session.Orders() {
				ack.Hash = o.Hash
				session.Ack(ack)
			}
		}()
	}
	return c, loaded, nil
}

// serve runs a control plane in dir until the function it returns is called.
func serve(dir string) (stop func(), err error) {
	c, _, err := openControl(dir, epoch.Add(24*time.Hour))
	if err != nil {
		return nil, err
	}
	api, err := c.Serve()
	if err != nil {
		return nil, err
	}
	return func() {
		api.Close(context.Background())
		c.Close()
	}, nil
}

// makeHistory leaves in dir what a day of merlon up would: the intent in force,
// and a record of each kind.
func makeHistory(dir string) error {
	c, loaded, err := openControl(dir, epoch)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Apply(context.Background(), loaded, control.ApplyOptions{Who: "ana", Message: "open the shop"}); err != nil {
		return err
	}
	p, ds := policy.Compile(loaded.Intent)
	if ds.Failed() {
		return ds
	}
	w, err := record.Open(filepath.Join(dir, ".merlon", recordsName), record.Options{Now: func() time.Time { return epoch }})
	if err != nil {
		return err
	}
	for i, h := range happened {
		r, err := h.record(p)
		if err != nil {
			return err
		}
		r.Time = epoch.Add(time.Duration(i) * 1500 * time.Millisecond).UnixNano()
		r.ID, r.Intent = fmt.Sprintf("7q4zkx0v9mtw%08d", h.id), loaded.Hash[:16]
		if err := w.Add(r); err != nil {
			return err
		}
	}
	return w.Close()
}

// makeCalls records the calls that happened again and again, until the function
// it returns is called.
func makeCalls(dir string) (stop func(), err error) {
	files, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	loaded, ds := intent.Load(files)
	if ds.Failed() {
		return nil, ds
	}
	p, ds := policy.Compile(loaded.Intent)
	if ds.Failed() {
		return nil, ds
	}
	w, err := record.Open(filepath.Join(dir, ".merlon", recordsName), record.Options{Now: time.Now})
	if err != nil {
		return nil, err
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		defer w.Close()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			h := happened[i%len(happened)]
			r, err := h.record(p)
			if err != nil {
				return
			}
			r.Time, r.ID, r.Query = time.Now().UnixNano()-r.Duration, fmt.Sprintf("7q4zkx0v9mtw%08d", h.id), "secret=1"
			if w.Add(r) != nil {
				return
			}
		}
	}()
	return func() { close(done); <-ended }, nil
}

// happening is a call as one gate saw it.
type happening struct {
	id        int
	place, at string
	call      string
	status    int
	reason    merlon.Reason // "" for what the policy says
	subject   string
	detail    string
}

var happened = []happening{
	{id: 1, place: "gateway", at: "edge", call: "anyone -> GET https://shop.example/products", status: 200},
	{id: 1, place: "gate of web", at: "in", call: "anyone -> web GET /products", status: 200},
	{id: 2, place: "gate of web", at: "out", call: "web -> catalog GET /products?limit=500", status: 200},
	{id: 3, place: "gateway", at: "edge", call: "anyone -> GET https://shop.example/products/7", status: 401, reason: merlon.ReasonInvalidToken, detail: "jwt: expired"},
	{id: 4, place: "gateway", at: "edge", call: "anyone -> GET https://shop.example/orders", status: 401},
	{id: 5, place: "gate of ledger", at: "in", call: "web -> ledger GET /accounts/shop", status: 403},
	{id: 6, place: "gateway", at: "edge", call: "anyone -> GET https://shop.example/no/such/thing", status: 404, reason: merlon.ReasonNoOperation},
	{id: 8, place: "gateway", at: "edge", call: "staff -> orders GET /orders", status: 403, subject: "u-17"},
	// What a terminal would obey must not reach it.
	{id: 7, place: "gateway", at: "edge", call: "staff -> orders GET /orders/1", status: 429, reason: merlon.ReasonRateLimited, subject: "\x1b[2Jroot"},
}

func (h *happening) record(p *policy.Policy) (*record.Record, error) {
	test, err := intent.ParseCall(h.call)
	if err != nil {
		return nil, err
	}
	call := p.Call(&test)
	v := p.Decide(&call)
	if h.reason != "" {
		v = merlon.Verdict{Reason: h.reason}
	}
	r := &record.Record{
		Place: h.place, At: h.at, Caller: call.Caller.Name, CallerKind: call.Caller.Kind.String(), Subject: call.Caller.Subject,
		Service: call.Service, Operation: call.Operation, Method: call.Method, Host: call.Host, Path: call.Path,
		Status: h.status, Verdict: v, Detail: h.detail, Duration: 850_000,
	}
	if h.subject != "" {
		r.Subject = h.subject
	}
	return r, nil
}

// golden compares with a file, or writes it.
func golden(t *testing.T, name string, got string) {
	t.Helper()
	want, err := os.ReadFile(name)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if got == string(want) {
		return
	}
	if *update {
		if err := os.WriteFile(name, []byte(got), fs.FileMode(0o644)); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Errorf("%s differs; go test ./cmd/merlon -update writes it\ngot:\n%s\nwant:\n%s", name, got, want)
}
