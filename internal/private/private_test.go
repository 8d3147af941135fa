package private

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestPrivate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, victim := filepath.Join(dir, "f"), filepath.Join(dir, "victim")
	if _, err := Read(path, 10); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	// A link is left where the file will be written.
	if err := errors.Join(os.WriteFile(victim, []byte("safe"), 0o666), os.Symlink(victim, path+".new"), Replace(path, []byte("secret"))); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(victim); string(b) != "safe" {
		t.Errorf("the link was followed: %q", b)
	}
	if b, err := Read(path, 10); string(b) != "secret" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := Read(path, 5); err == nil {
		t.Error("a larger file was read")
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path, 10); err == nil {
		t.Error("a file that others can read was read")
	}
	if err := Replace(path, []byte("again")); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info, err)
	}
	if err := os.Symlink(path, path+"2"); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path+"2", 10); err == nil {
		t.Error("a link was read")
	}
	if os.Getuid() == 0 { // who else could give a file away
		if err := os.Chown(path, 65534, -1); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(path, 10); err == nil {
			t.Error("a file of another user was read")
		}
	}
}
