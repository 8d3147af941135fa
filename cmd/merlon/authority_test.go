package main

import (
	"bytes"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestOfflineRootIsDocumented runs what docs/identity.md shows of an offline root,
// line by line: the system then stands on that root.
func TestOfflineRootIsDocumented(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("SKIP: openssl is not here to be the offline root")
	}
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "identity.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(doc), "*An offline root:*")
	section, _, _ = strings.Cut(section, "\n## ")
	lines := regexp.MustCompile(`(?m)^      (\S.*)$`).FindAllStringSubmatch(section, -1)
	if len(lines) != 4 {
		t.Fatalf("docs/identity.md shows %d steps", len(lines))
	}
	s := newSite(t)
	sh := func(line string) string {
		t.Helper()
		cmd := exec.Command("sh", "-ec", line)
		cmd.Dir, cmd.Env = s.dir, append(os.Environ(), "PATH="+filepath.Dir(merlonBin(t))+":"+os.Getenv("PATH"))
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v\n%s", line, err, &stderr)
		}
		return string(out)
	}
	sh("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout root.key -out root.pem -days 365 -subj /CN=root -addext keyUsage=critical,keyCertSign")
	for _, line := range lines {
		sh(strings.ReplaceAll(line[1], "spiffe://shop.example", "spiffe://test.example"))
	}
	s.up()
	s.want("/hello", 200, "a")
	root, err := os.ReadFile(filepath.Join(s.dir, "root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	want, _ := pem.Decode(root)
	got, rest := pem.Decode([]byte(sh("merlon id bundle")))
	if got == nil || !bytes.Equal(got.Bytes, want.Bytes) || len(bytes.TrimSpace(rest)) > 0 {
		t.Errorf("the bundle is not the offline root alone")
	}
	sh("merlon id status")
}
