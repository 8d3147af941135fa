package http2_test

import (
	"bufio"
	"encoding/xml"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"merlon/gate/http2"
)

// TestH2spec runs h2spec against the core: every case passes, or is listed in
// testdata/h2spec.skips with the reason that the RFC gives, and then fails.
//
//	go install github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible
func TestH2spec(t *testing.T) {
	t.Parallel()
	program, err := exec.LookPath("h2spec")
	if err != nil {
		if home, _ := os.UserHomeDir(); home != "" {
			program, err = exec.LookPath(filepath.Join(home, "go", "bin", "h2spec"))
		}
	}
	if err != nil {
		t.Skip("h2spec is not installed: the conformance of HTTP/2 is not tested")
	}
	host, port, _ := net.SplitHostPort(listen(t, http2.Config{Connect: true}, nil).String())
	report := filepath.Join(t.TempDir(), "report.xml")
	out, err := exec.Command(program, "-h", host, "-p", port, "-o", "2", "-j", report).CombinedOutput()
	raw, readErr := os.ReadFile(report)
	if readErr != nil {
		t.Fatalf("%v, %v\n%s", err, readErr, out)
	}
	var r struct {
		Suites []struct {
			Package string `xml:"package,attr"`
			Cases   []struct {
				Name    string    `xml:"classname,attr"`
				Failure *struct{} `xml:"failure"`
				Error   *struct{} `xml:"error"`
				Skipped *struct{} `xml:"skipped"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(raw, &r); err != nil {
		t.Fatal(err)
	}
	skips, passed := readSkips(t), 0
	for _, s := range r.Suites {
		for _, c := range s.Cases {
			name := s.Package + ": " + c.Name
			failed := c.Failure != nil || c.Error != nil || c.Skipped != nil
			reason, skip := skips[name]
			delete(skips, name)
			switch {
			case failed && !skip:
				t.Errorf("%s", name)
			case !failed && skip:
				t.Errorf("%s passes, and need not be skipped (%s)", name, reason)
			case !failed:
				passed++
			}
		}
	}
	for name := range skips {
		t.Errorf("%s is skipped, but is no case", name)
	}
	if passed < 140 {
		t.Errorf("%d cases passed: too few to be all", passed)
	}
	t.Logf("%d cases passed", passed)
	if _, failures, found := strings.Cut(string(out), "Failures:"); found && t.Failed() {
		t.Log(failures)
	}
}

// readSkips reads lines "name: reason", where the name has no " -- ".
func readSkips(t *testing.T) map[string]string {
	f, err := os.Open("testdata/h2spec.skips")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	skips := map[string]string{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		if line == "" || line[0] == '#' {
			continue
		}
		name, reason, ok := strings.Cut(line, " -- ")
		if !ok || reason == "" {
			t.Fatalf("testdata/h2spec.skips: %q gives no reason", line)
		}
		skips[name] = reason
	}
	return skips
}
