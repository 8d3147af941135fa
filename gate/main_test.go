package gate_test

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain fails if a goroutine or a socket outlives all tests: every gate,
// client and server of a test is closed by then.
func TestMain(m *testing.M) {
	before := sockets()
	code := runBoth(m)
	if code == 0 {
		if left := leaked(before); left != "" {
			os.Stderr.WriteString("left behind:\n" + left + "\n")
			code = 1
		}
	}
	os.Exit(code)
}

// leaked is what still is there, after it had ample time to end.
func leaked(before int) (left string) {
	for range 500 {
		left = ""
		buf := make([]byte, 4<<20)
		for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(g, "merlon/") && !strings.Contains(g, "gate_test.TestMain") {
				left += g + "\n\n"
			}
		}
		if now := sockets(); now > before {
			left += fmt.Sprintf("%d sockets, %d before\n", now, before)
		}
		if left == "" {
			return ""
		}
		<-time.After(10 * time.Millisecond)
	}
	return left
}

// sockets is how many this process has open, where the system tells.
func sockets() (n int) {
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, entry := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + entry.Name()); err == nil && strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}
