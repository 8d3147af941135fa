package authority

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

// Inspect says what Status does, and changes nothing.
func TestInspect(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	if _, err := Inspect(dir, td, time.Now()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an authority that is not there: %v", err)
	}
	a, err := Open(dir, td, Options{})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	if _, _, err := a.IssueJWT("spiffe://"+td+"/web", []string{"db"}, now); err != nil {
		t.Fatal(err)
	}
	want := a.Status(now)
	a.Close()
	before := files(t, dir)
	in, err := Inspect(dir, td, now)
	if err != nil || !reflect.DeepEqual(in.Status, want) || in.Torn || in.Alien != 0 || in.Issued.Sub(now).Abs() > time.Second {
		t.Errorf("%+v %v\nwant %+v", in, err, want)
	}
	if after := files(t, dir); !maps.Equal(before, after) {
		t.Error("it changed something")
	}
	in, err = Inspect(dir, td, now.Add(11*365*day))
	if err != nil || len(in.Lives) != 0 || len(in.Alarms) != 3 || in.Alarms["root"] != Ended.String() {
		t.Errorf("after the end: %+v %v", in, err)
	}
	if _, err := Inspect(dir, "other.example", now); err == nil {
		t.Error("it is of another trust domain")
	}
	if _, err := Inspect(dir, td, now.Add(-time.Hour)); err == nil {
		t.Error("it began in the future")
	}
	// A torn line that the next start ended is no line of another hand.
	name := filepath.Join(dir, journalFile)
	for _, step := range []struct {
		text  string
		torn  bool
		alien int
	}{{`{"kind":"svid","ser`, true, 0}, {"\n", false, 0}, {"what\n", false, 1}, {"{}\n", false, 2}, {`{"kind":"svid"}x` + "\n", false, 3}} {
		f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString(step.text)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		if in, err := Inspect(dir, td, now); err != nil || in.Torn != step.torn || in.Alien != step.alien {
			t.Errorf("after %q: torn %v, %d lines of others, %v", step.text, in.Torn, in.Alien, err)
		}
	}
}
