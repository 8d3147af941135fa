package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"merlon"
	"merlon/authority"
	"merlon/control"
	"merlon/federation"
	"merlon/record"
)

const doctored = `trustDomain: shop.example
services:
  web: {address: 127.0.0.1:18471, operations: {get: GET /}}
  orders: {address: 127.0.0.1:18472, operations: {get: GET /}, callers: {web: all}}
`

// doctorState is a system that ran, and was stopped.
func doctorState(t *testing.T, keys authority.Options) (dir, state string) {
	t.Helper()
	dir = t.TempDir()
	state = filepath.Join(dir, ".merlon")
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "merlon.yaml"), []byte(doctored), 0o600), makeState(state)); err != nil {
		t.Fatal(err)
	}
	c, loaded, err := openControl(dir, epoch)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Apply(t.Context(), loaded, control.ApplyOptions{Who: "ana"}); err != nil {
		t.Fatal(err)
	}
	a, err := authority.Open(filepath.Join(state, authorityName), "shop.example", keys)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	w, err := record.Open(filepath.Join(state, recordsName), record.Options{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Add(&record.Record{Time: epoch.UnixNano(), Place: "gate of web", At: "out", ID: "1"}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, state
}

// doctor runs the command and gives back what it found, but for notes.
func doctor(t *testing.T, dir string, args ...string) (found []finding, code int) {
	t.Helper()
	var out, errs strings.Builder
	code = execute(t.Context(), append([]string{"doctor", "--json", dir}, args...), strings.NewReader(""), &out, &errs)
	var answer struct {
		OK       bool
		Findings []finding
	}
	if err := json.Unmarshal([]byte(out.String()), &answer); err != nil || answer.OK != (code == exitOK) {
		t.Fatalf("exit %d: %v\n%s%s", code, err, out.String(), errs.String())
	}
	return slices.DeleteFunc(answer.Findings, func(f finding) bool { return f.Note }), code
}

func write(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600)
	if err == nil {
		_, err = f.WriteString(text)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// leave leaves a socket that nobody serves, as a killed process does.
func leave(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	chmod(t, 0o600, path)
}

func chmod(t *testing.T, mode os.FileMode, paths ...string) {
	t.Helper()
	for _, path := range paths {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
}

// ago is a clock that runs behind.
func ago(d time.Duration) func() time.Time { return func() time.Time { return time.Now().Add(-d) } }

const doctorDay = 24 * time.Hour

// doctorCases are states that are really broken. What is repaired is gone when
// doctor looks again, and the system can be opened.
var doctorCases = []struct {
	name  string
	keys  authority.Options
	spoil func(t *testing.T, dir, state string)
	want  string // of the one finding, or of the first
	fixed bool
}{
	{name: "nothing"},
	{name: "state directory open", spoil: func(t *testing.T, _, state string) { chmod(t, 0o755, state) }, want: "files: others can reach .merlon (mode 0755)", fixed: true},
	{name: "state directory that others can write to", spoil: func(t *testing.T, _, state string) { chmod(t, 0o777, state) },
		want: "files: others can reach .merlon (mode 0777)"},
	{name: "join tokens readable", spoil: func(t *testing.T, _, state string) {
		write(t, filepath.Join(state, "nodes.json"), "{}")
		chmod(t, 0o644, filepath.Join(state, "nodes.json"))
	}, want: "files: others can reach .merlon/nodes.json (mode 0644)", fixed: true},
	{name: "key readable in a closed directory", spoil: func(t *testing.T, _, state string) {
		chmod(t, 0o644, filepath.Join(state, "authority", "root.pem"))
	}, want: "files: others can reach .merlon/authority/root.pem (mode 0644)", fixed: true},
	{name: "key readable in an open directory", spoil: func(t *testing.T, _, state string) {
		chmod(t, 0o755, state, filepath.Join(state, "authority"))
		chmod(t, 0o644, filepath.Join(state, "authority", "root.pem"))
	}, want: "files: others can reach .merlon (mode 0755)"},
	{name: "socket open to others", spoil: func(t *testing.T, _, state string) {
		leave(t, control.SocketPath(state))
		chmod(t, 0o666, control.SocketPath(state))
	}, want: "files: others can reach .merlon/control.sock (mode 0666)", fixed: true},
	{name: "control socket that nobody serves", spoil: func(t *testing.T, _, state string) { leave(t, control.SocketPath(state)) },
		want: "sockets: nobody serves .merlon/control.sock", fixed: true},
	{name: "socket of the Workload API that nobody serves", spoil: func(t *testing.T, _, state string) { leave(t, filepath.Join(state, "spiffe.sock")) },
		want: "sockets: nobody serves .merlon/spiffe.sock", fixed: true},
	{name: "file in the place of a socket", spoil: func(t *testing.T, _, state string) { write(t, filepath.Join(state, "spiffe.sock"), "mine") },
		want: "sockets: .merlon/spiffe.sock is no socket"},
	{name: "root ended", keys: authority.Options{Now: ago(5 * doctorDay), Root: 2 * doctorDay, Intermediate: doctorDay, JWTKey: 300 * doctorDay},
		want: "authority: the intermediate certificate has no successor (ended)", fixed: true},
	{name: "intermediate about to end", keys: authority.Options{Now: ago(85 * doctorDay), JWTKey: 300 * doctorDay},
		want: "authority: the intermediate certificate has no successor (a tenth left)", fixed: true},
	{name: "JWT key ended", keys: authority.Options{Now: ago(31 * doctorDay)}, want: "authority: the key of JWT-SVIDs has no successor (ended)", fixed: true},
	{name: "key that is none", spoil: func(t *testing.T, _, state string) {
		if err := os.WriteFile(filepath.Join(state, "authority", "root.pem"), []byte("nothing"), 0o600); err != nil {
			t.Fatal(err)
		}
	}, want: "authority: the authority in"},
	{name: "journal torn", spoil: func(t *testing.T, _, state string) {
		write(t, filepath.Join(state, "authority", "issued.jsonl"), `{"kind":"svid","serial":"77`)
	}, want: "journal: the journal of the authority ends half-way", fixed: true},
	{name: "journal written by another", spoil: func(t *testing.T, _, state string) {
		write(t, filepath.Join(state, "authority", "issued.jsonl"), "hello\n")
	}, want: "journal: the journal of the authority has 1 line that it did not write"},
	{name: "records torn", spoil: func(t *testing.T, _, state string) {
		write(t, filepath.Join(state, recordsName, "segment-00000001.jsonl"), `{"seq":2,"ti`)
	}, want: "records: 12 bytes behind the last seal", fixed: true},
	{name: "records changed", spoil: func(t *testing.T, _, state string) {
		name := filepath.Join(state, recordsName, "segment-00000001.jsonl")
		b, err := os.ReadFile(name)
		if err == nil {
			err = os.WriteFile(name, []byte(strings.Replace(string(b), "gate of web", "gate of wed", 1)), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}, want: "records: the chain of records is broken: segment-00000001.jsonl"},
	{name: "clock before the keys", keys: authority.Options{Now: ago(-time.Hour)}, want: "authority: the authority in"},
	{name: "clock before what was signed", spoil: func(t *testing.T, _, state string) {
		a, err := authority.Open(filepath.Join(state, "authority"), "shop.example", authority.Options{})
		if err == nil {
			_, _, err = a.IssueJWT("spiffe://shop.example/web", []string{"db"}, time.Now().Add(time.Hour))
		}
		if err != nil {
			t.Fatal(err)
		}
		a.Close()
	}, want: "clock: the clock went back"},
	{name: "database is none", spoil: func(t *testing.T, _, state string) {
		if err := os.WriteFile(filepath.Join(state, "control.db"), []byte("nothing at all"), 0o600); err != nil {
			t.Fatal(err)
		}
	}, want: "state: "},
	{name: "intent cannot be read", spoil: func(t *testing.T, dir, _ string) { write(t, filepath.Join(dir, "merlon.yaml"), "servces: {}\n") },
		want: "intent: the intent in"},
	{name: "ports file is none", spoil: func(t *testing.T, _, state string) { write(t, filepath.Join(state, "ports.json"), "[]") }, want: "ports: "},
	{name: "port taken", spoil: func(t *testing.T, _, state string) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		write(t, filepath.Join(state, "ports.json"), fmt.Sprintf(`{"web/in": %q, "gone/in": %q}`, l.Addr(), l.Addr()))
	}, want: "ports: the gate of web cannot listen on 127.0.0.1:"},
	{name: "lock held by who does not answer", spoil: func(t *testing.T, _, state string) {
		c, err := control.Open(t.Context(), state, control.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}, want: "state: "},
}

func TestDoctor(t *testing.T) {
	t.Parallel()
	for _, tt := range doctorCases {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir, state := doctorState(t, tt.keys)
			if tt.spoil != nil {
				tt.spoil(t, dir, state)
			}
			said := func(f finding) string {
				return strings.ReplaceAll(f.Check+": "+f.What, relative(dir)+"/", "")
			}
			found, code := doctor(t, dir)
			if tt.want == "" {
				if len(found) > 0 || code != exitOK {
					t.Fatalf("exit %d: %+v", code, found)
				}
				return
			}
			if len(found) == 0 || !strings.HasPrefix(said(found[0]), tt.want) || code != exitFailed {
				t.Fatalf("exit %d: %+v\nwant %s", code, found, tt.want)
			}
			for _, f := range found {
				if f.Do == "" || f.Fixed {
					t.Errorf("%+v: repaired unasked, or nothing says what to do", f)
				}
			}
			if again, _ := doctor(t, dir); len(again) != len(found) {
				t.Errorf("looking has changed something: %+v", again)
			}
			repaired, code := doctor(t, dir, "--fix")
			if (code == exitOK) != tt.fixed {
				t.Errorf("--fix: exit %d: %+v", code, repaired)
			}
			after, code := doctor(t, dir)
			if tt.fixed && (len(after) > 0 || code != exitOK) {
				t.Errorf("after --fix: exit %d: %+v", code, after)
			}
			if tt.fixed {
				doctorOpens(t, state)
			}
			if !tt.fixed && (len(after) == 0 || !strings.HasPrefix(said(after[0]), tt.want)) {
				t.Errorf("what only a person can repair is gone: %+v", after)
			}
		})
	}
}

// doctorOpens opens all that merlon up does.
func doctorOpens(t *testing.T, state string) {
	t.Helper()
	c, err := control.Open(t.Context(), state, control.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	a, err := authority.Open(filepath.Join(state, authorityName), "shop.example", authority.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if _, err := a.Source(t.Context(), "spiffe://shop.example/web", slog.New(slog.DiscardHandler)); err != nil {
		t.Error(err)
	}
	w, err := record.Open(filepath.Join(state, recordsName), record.Options{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
}

// TestDoctorLeavesKnownKeys: keys that others could read are not made to look
// well by a mode.
func TestDoctorLeavesKnownKeys(t *testing.T) {
	t.Parallel()
	dir, state := doctorState(t, authority.Options{})
	key := filepath.Join(state, "authority", "jwt.pem")
	chmod(t, 0o755, state, filepath.Dir(key))
	chmod(t, 0o640, key)
	found, _ := doctor(t, dir, "--fix")
	if len(found) != 3 || found[2].Fixed || !strings.Contains(found[2].Why, "may know them") {
		t.Errorf("%+v", found)
	}
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v %v", info, err)
	}
}

// TestDoctorKeepsOff: what is not the state of merlon up, or not ours, is left as it
// is, wherever .merlon leads: who may write there could have root repair /etc.
func TestDoctorKeepsOff(t *testing.T) {
	t.Parallel()
	dir, state := doctorState(t, authority.Options{})
	elsewhere := t.TempDir()
	chmod(t, 0o755, elsewhere)
	if err := errors.Join(os.Rename(state, state+"2"), os.Symlink(elsewhere, state)); err != nil {
		t.Fatal(err)
	}
	if found, _ := doctor(t, dir, "--fix"); len(found) == 0 || !strings.HasSuffix(found[0].What, "holds no state of merlon up") {
		t.Errorf("%+v", found)
	}
	if info, err := os.Stat(elsewhere); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("%v %v", info, err)
	}
	if os.Getuid() != 0 {
		return // nothing can be given to another user
	}
	if err := errors.Join(os.Remove(state), os.Rename(state+"2", state), os.Lchown(filepath.Join(state, "control.db"), 65534, -1)); err != nil {
		t.Fatal(err)
	}
	if found, _ := doctor(t, dir, "--fix"); len(found) == 0 || !strings.HasSuffix(found[0].What, "control.db belongs to another user") {
		t.Errorf("%+v", found)
	}
	if err := errors.Join(os.Rename(state, state+"2"), os.Symlink(state+"2", state), os.Lchown(state, 65534, -1)); err != nil {
		t.Fatal(err)
	}
	if found, _ := doctor(t, dir, "--fix"); len(found) == 0 || !strings.HasSuffix(found[0].What, ".merlon belongs to another user") {
		t.Errorf("%+v", found)
	}
}

// TestDoctorOfRunning asks a system that runs and is not well.
func TestDoctorOfRunning(t *testing.T) {
	t.Parallel()
	dir, state := doctorState(t, authority.Options{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "tcp://" + l.Addr().String()
	l.Close()
	c, err := control.Open(t.Context(), state, control.Options{
		Authority: func() authority.Status {
			return authority.Status{Alarms: map[string]string{"intermediate": "a tenth left"}, Err: "intermediate: no room on the disk"}
		},
		Federation: func() []federation.Status {
			return []federation.Status{{TrustDomain: "partner.example", Roots: 1, Err: "connection refused"}, {TrustDomain: "other.example", Err: "404"}, {TrustDomain: "good.example", Roots: 1}}
		},
		Workloads: func() string { return nobody },
		Problems: func() map[string][]string {
			return map[string][]string{"gate of web": {"the certificate of the gate's identity ended"}}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// One gate refuses its orders, the other is not there.
	s, err := c.Connect(t.Context(), control.Hello{Place: merlon.Place{Service: "orders"}, Version: merlon.OrdersVersion, Protocols: []merlon.Protocol{merlon.HTTP}, Address: "127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	o := <-s.Orders()
	s.Ack(control.Ack{Hash: o.Hash, Err: "they are of a version to come"})
	api, err := c.Serve()
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close(context.Background())
	found, code := doctor(t, dir)
	var said strings.Builder
	for _, f := range found {
		fmt.Fprintf(&said, "%s: %s (%s)\n", f.Check, f.What, f.Why)
	}
	for _, want := range []string{
		"authority: the intermediate certificate has no successor (a tenth left) (intermediate: no room on the disk)",
		"at the gate of orders: ", "they are of a version to come", "at the gate of web: no gate is connected",
		"gates: the gate of web is not ready (the certificate of the gate's identity ended)",
		"workload API: the Workload API does not answer",
		"federation: the bundle of partner.example cannot be fetched: its last one stays in use (connection refused)",
		"federation: the bundle of other.example cannot be fetched: nobody of it is let in (404)",
	} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, said.String())
		}
	}
	if code != exitFailed || strings.Contains(said.String(), "good.example") {
		t.Errorf("exit %d:\n%s", code, said.String())
	}
}
