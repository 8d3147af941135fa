package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// HTTP/2 is asked by h2load (of nghttp2), which is nobody's side: streams at a
// time on each of so many connections.
const h2Conns, h2Streams = 4, 16

// load2 sends requests for a duration: as many as go through, or at a fixed
// rate, when latency counts from when a request was sent.
func (l *lab) load2(addr string, s *scenario, d time.Duration) (result, error) {
	path, log := smallPath, filepath.Join(l.dir, "h2load.log")
	if s.size == large {
		path = largePath
	}
	args := []string{"-t", "1", "-c", strconv.Itoa(h2Conns), "-m", strconv.Itoa(h2Streams), "-D", fmt.Sprint(d.Milliseconds(), "ms"),
		"--connect-to=" + addr, "--log-file=" + log, "--tls13-ciphers=TLS_AES_128_GCM_SHA256"}
	if s.rate > 0 {
		args = append(args, "--rps="+strconv.Itoa(s.rate/h2Conns))
	}
	if s.grpc {
		path = smallGRPCPath
		if s.size == large {
			path = largeGRPCPath
		}
		message := filepath.Join(l.dir, "message")
		if err := os.WriteFile(message, make([]byte, 5), 0o600); err != nil { // an empty one
			return result{}, err
		}
		args = append(args, "-d", message, "-H", "content-type: application/grpc", "-H", "te: trailers")
	}
	os.Remove(log)
	begin := time.Now()
	out, err := exec.Command("h2load", append(args, "https://"+host+path)...).CombinedOutput()
	if err != nil {
		return result{}, fmt.Errorf("h2load: %w: %s", err, tail(string(out)))
	}
	elapsed := time.Since(begin)
	lats, err := readLog(log)
	if err == nil {
		err = whole(string(out), len(lats), s.size)
	}
	return summary(lats, elapsed), err
}

var dataBytes = regexp.MustCompile(`\((\d+)\) data`)

// whole finds out whether n answers had bodies of the size: a denial over gRPC
// has the status of a success.
func whole(out string, n, size int) error {
	if m := dataBytes.FindStringSubmatch(out); m != nil {
		if data, err := strconv.Atoi(m[1]); err == nil && n > 0 && data >= n*size {
			return nil
		}
	}
	return fmt.Errorf("h2load: %d answers, but not of %d bytes each: %s", n, size, tail(out))
}

// readLog reads how long the requests took, and that all went well: a line is
// when it began, the status, and microseconds.
func readLog(name string) (lats []time.Duration, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) < 3 || words[1] != "200" {
			return nil, fmt.Errorf("h2load: answered %q", lines.Text())
		}
		us, err := strconv.Atoi(words[2])
		if err != nil {
			return nil, err
		}
		lats = append(lats, time.Duration(us)*time.Microsecond)
	}
	return lats, lines.Err()
}
