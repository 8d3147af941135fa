package control

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMain plays a process that commits until it is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("COMMIT_INTO"); dir != "" {
		commitForever(dir)
	}
	os.Exit(m.Run())
}

// commitForever commits one bundle after the other and prints the number of
// each commit after it was answered.
func commitForever(dir string) {
	ctx := context.Background()
	s, err := openStore(ctx, dir)
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	for i := 0; ; i++ {
		hash := fmt.Sprintf("%x-%d", rand.Uint64(), i)
		c, err := s.commit(ctx, Commit{Hash: hash, Time: time.Unix(int64(i), 0), Who: "test"}, []byte(strings.Repeat(hash, 400)))
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Println(c.Number, c.Hash)
	}
}

func tempState(t *testing.T) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "state")
}

func mustStore(t *testing.T, dir string) *store {
	t.Helper()
	s, err := openStore(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.close() })
	return s
}

func TestStoreKeeps(t *testing.T) {
	t.Parallel()
	dir := tempState(t)
	s := mustStore(t, dir)
	for i, hash := range []string{"aa11", "aa22", "aa11"} {
		c, err := s.commit(t.Context(), Commit{Hash: hash, Time: time.Unix(int64(i), 5).UTC(), Who: "me", Message: "why"}, []byte("files of "+hash))
		if err != nil || c.Number != int64(i+1) {
			t.Fatalf("commit %d: %+v, %v", i, c, err)
		}
	}
	if _, err := openStore(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "another merlon uses this state directory") {
		t.Errorf("a second process may open the state: %v", err)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	s = mustStore(t, dir)
	h, err := s.history(t.Context(), 2)
	if err != nil || len(h) != 2 || h[0].Number != 3 || h[0].Hash != "aa11" || h[1].Hash != "aa22" || h[0].Who != "me" || h[0].Message != "why" || !h[0].Time.Equal(time.Unix(2, 5)) {
		t.Errorf("history is %+v, %v", h, err)
	}
	for _, tc := range []struct{ ask, full, err string }{
		{"aa11", "aa11", ""}, {"aa2", "aa22", ""}, {"aa", "", "more than one"}, {"bb", "", "no such intent"}, {"", "", "no such intent"}, {"%", "", "no such intent"},
	} {
		full, bundle, err := s.bundle(t.Context(), tc.ask)
		switch {
		case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
			t.Errorf("%q: %v, want an error with %q", tc.ask, err, tc.err)
		case tc.err == "" && (err != nil || full != tc.full || string(bundle) != "files of "+full):
			t.Errorf("%q: %q, %q, %v", tc.ask, full, bundle, err)
		}
	}
	for _, name := range []string{databaseName, databaseName + "-wal", databaseName + "-shm", lockName} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600", name, info.Mode(), err)
		}
	}
}

// What cannot be used is reported with what to do, and not touched.
func TestStoreRefuses(t *testing.T) {
	t.Parallel()
	edit := func(sql string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			db, err := openDatabase(filepath.Join(dir, databaseName), "wal")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := db.Exec(sql); err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tc := range []struct {
		name  string
		spoil func(*testing.T, string)
		want  string
		hint  string
	}{
		{"empty", func(t *testing.T, dir string) { os.Truncate(filepath.Join(dir, databaseName), 0) }, "damaged: the file is empty", "restore the file"},
		{"cut", func(t *testing.T, dir string) { os.Truncate(filepath.Join(dir, databaseName), 5000) }, "damaged", "restore the file"},
		{"no database", func(t *testing.T, dir string) {
			os.WriteFile(filepath.Join(dir, databaseName), []byte(strings.Repeat("not a database ", 1000)), 0o600)
		}, "damaged", "restore the file"},
		{"overwritten", func(t *testing.T, dir string) {
			f, _ := os.OpenFile(filepath.Join(dir, databaseName), os.O_WRONLY, 0)
			f.WriteAt([]byte(strings.Repeat("\xff", 4096)), 4096)
			f.Close()
		}, "damaged", "restore the file"},
		{"gone, log left", func(t *testing.T, dir string) {
			os.Rename(filepath.Join(dir, databaseName), filepath.Join(dir, databaseName+"-wal"))
		}, "it is gone, but its log", "restore the file"},
		{"older", edit("PRAGMA user_version = 0"), "schema version 0; this merlon reads version 1", "use the merlon that wrote it"},
		{"newer", edit("PRAGMA user_version = 2"), "schema version 2; this merlon reads version 1", "use the merlon that wrote it"},
		{"another program's", edit("PRAGMA application_id = 7"), "not a database of merlon", "choose another"},
		{"open to others", func(t *testing.T, dir string) { os.Chmod(filepath.Join(dir, databaseName), 0o644) }, "other users can open", "chmod 600"},
		{"directory open to others", func(t *testing.T, dir string) { os.Chmod(dir, 0o755) }, "other users can enter", "chmod 700"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir := tempState(t)
			s := mustStore(t, dir)
			for i := range 50 { // more than one page
				if _, err := s.commit(t.Context(), Commit{Hash: fmt.Sprint(i)}, []byte(strings.Repeat("x", 1000))); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.close(); err != nil {
				t.Fatal(err)
			}
			tc.spoil(t, dir)
			before := snapshot(t, dir)
			_, err := openStore(t.Context(), dir)
			var state *StateError
			if !errors.As(err, &state) || !strings.Contains(err.Error(), tc.want) || !strings.Contains(state.Hint, tc.hint) {
				t.Fatalf("got %v; want %q and the hint %q", err, tc.want, tc.hint)
			}
			if after := snapshot(t, dir); after != before {
				t.Errorf("the refused state was changed")
			}
		})
	}
}

// snapshot is all bytes of the database and its log.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	for _, name := range []string{databaseName, databaseName + "-wal"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil && len(data) > 0 { // SQLite may leave an empty log behind
			fmt.Fprintf(&all, "%s %d %s\n", name, len(data), data)
		}
	}
	return all.String()
}

func TestBundleDamaged(t *testing.T) {
	t.Parallel()
	s := mustStore(t, tempState(t))
	if _, err := s.commit(t.Context(), Commit{Hash: "aa"}, []byte("files")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.db.Exec("UPDATE intents SET bundle = x'00'"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.bundle(t.Context(), "aa"); err == nil || !strings.Contains(err.Error(), "not what was recorded") {
		t.Errorf("got %v", err)
	}
}

// A process killed at any instant leaves what it answered, and nothing half.
func TestKilledAtAnyInstant(t *testing.T) {
	t.Parallel()
	dir := tempState(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	answered := map[string]string{}
	for round := range 12 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "COMMIT_INTO="+dir)
		var out strings.Builder
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// The first rounds are killed while the database is being made.
		life := time.Duration(rnd.IntN(30*(round+1))) * time.Millisecond
		killed := time.AfterFunc(life, func() { cmd.Process.Kill() })
		cmd.Wait()
		killed.Stop()
		for line := range strings.Lines(out.String()) {
			number, hash, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			if number == "error" {
				t.Fatalf("round %d: %s", round, line)
			}
			if ok && strings.HasSuffix(line, "\n") {
				answered[number] = hash
			}
		}
	}
	s := mustStore(t, dir)
	kept, err := s.history(t.Context(), 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]string{}
	for i, c := range kept {
		if c.Number != int64(len(kept)-i) {
			t.Fatalf("commit %d stands at %d of %d", c.Number, i, len(kept))
		}
		have[fmt.Sprint(c.Number)] = c.Hash
		full, bundle, err := s.bundle(t.Context(), c.Hash)
		if err != nil || full != c.Hash || string(bundle) != strings.Repeat(c.Hash, 400) {
			t.Fatalf("commit %d is half there: %v", c.Number, err)
		}
	}
	for number, hash := range answered {
		if have[number] != hash {
			t.Errorf("commit %s was answered and is lost", number)
		}
	}
	if len(answered) == 0 {
		t.Error("no round committed anything; the test shows nothing")
	}
	t.Logf("%d commits answered, %d kept", len(answered), len(kept))
}
