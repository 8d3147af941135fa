package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"merlon"
	"merlon/record"
)

// TestWatchUntilInterrupted: tap and top go on until they are interrupted, and
// then end well.
func TestWatchUntilInterrupted(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "shop")
	if err := copyShop(dir); err != nil {
		t.Fatal(err)
	}
	if err := makeHistory(dir); err != nil {
		t.Fatal(err)
	}
	stop, err := serve(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	still, err := makeCalls(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer still()
	for _, args := range [][]string{{"tap"}, {"tap", "--json"}, {"top", "--every", "100ms"}, {"top", "--every", "100ms", "--json"}} {
		cmd := exec.Command("merlon", append(args, dir)...)
		cmd.Env = append(os.Environ(), "NO_COLOR=1")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer cmd.Process.Kill() // when the test fails before the end
		lines := bufio.NewScanner(out)
		for range 20 {
			if !lines.Scan() {
				t.Errorf("%q ended by itself: %s", args, &stderr)
				break
			}
			if strings.Contains(lines.Text(), "\x1b") {
				t.Errorf("%q commands a terminal that is none: %q", args, lines.Text())
			}
		}
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Error(err)
		}
		for lines.Scan() {
		}
		if err := cmd.Wait(); err != nil || stderr.Len() > 0 {
			t.Errorf("%q: %v\n%s", args, err, &stderr)
		}
	}
}

// TestSummarize: shares and percentiles, by hand.
func TestSummarize(t *testing.T) {
	t.Parallel()
	var calls []topCall
	add := func(n int, r record.Record) {
		for i := range n {
			r.Duration = int64(i + 1)
			calls = append(calls, remember(&r))
		}
	}
	allow := merlon.Verdict{Effect: merlon.Allow, Reason: merlon.ReasonAllowed}
	web := record.Record{Caller: "web", CallerKind: "workload", Service: "orders", Operation: "list", Status: 200, Verdict: allow}
	add(100, web)
	broken := web
	broken.Status, broken.Verdict.Reason = 502, "upstream_broken"
	add(1, broken)
	shadow := web
	shadow.Verdict.Reason, shadow.Verdict.Shadow = merlon.ReasonNoRule, true
	add(1, shadow)
	denied := web
	denied.Status, denied.Verdict = 403, merlon.Verdict{Reason: merlon.ReasonNoRule}
	add(3, denied)
	add(2, record.Record{Status: 400})
	rpc := record.Record{Caller: "web", CallerKind: "workload", Service: "pay", Operation: "Charge", Status: 200, Verdict: allow}
	for _, status := range []string{"OK", "NOT_FOUND", "UNAVAILABLE"} {
		rpc.GRPC = status
		add(1, rpc)
	}
	got := fmt.Sprintf("%+v", summarize(calls, time.Time{}, time.Time{}).Rows)
	const want = "[{Caller:web CallerKind:workload Service:orders Operation:list Calls:105 Denied:3 Failed:1 P50:49 P95:95 P99:99}" +
		" {Caller:web CallerKind:workload Service:pay Operation:Charge Calls:3 Denied:0 Failed:1 P50:1 P95:1 P99:1}" +
		" {Caller:nobody CallerKind: Service: Operation: Calls:2 Denied:2 Failed:0 P50:0 P95:0 P99:0}]"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestDuration(t *testing.T) {
	t.Parallel()
	for nanos, want := range map[int64]string{
		0: "0", 999: "0", 1000: "1.00 µs", 12_345: "12.3 µs", 850_000: "850 µs", 1_234_567: "1.23 ms", 99_900_000: "99.9 ms", 2_500_000_000: "2.50 s", 3_600_000_000_000: "3600 s",
	} {
		if got := duration(nanos); got != want {
			t.Errorf("%d ns is %q, want %q", nanos, got, want)
		}
	}
}
