package record

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

var child = flag.String("child", "", "run as the child process of a test: load or diskfull, and a directory")

func TestMain(m *testing.M) {
	flag.Parse()
	mode, dir, _ := strings.Cut(*child, ":")
	switch mode {
	case "":
		os.Exit(m.Run())
	case "load":
		childLoad(dir)
	case "diskfull":
		childDiskFull(dir)
	}
}

func startChild(t *testing.T, mode, dir string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.Command(exe, "-child="+mode+":"+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	return cmd, bufio.NewScanner(out)
}

func die(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(1)
	}
}

// childLoad adds as fast as it can, rotating and retiring all the time, and
// prints the number of records known to be on the disk.
func childLoad(dir string) {
	w, err := Open(dir, Options{Now: time.Now, FlushEvery: time.Millisecond, SyncEvery: 5 * time.Millisecond,
		SegmentBytes: 256 << 10, RetainBytes: 2 << 20, Wait: time.Minute})
	die(err)
	for range 2 {
		go func() {
			for i := 0; ; i++ {
				r := whole()
				r.ID = strconv.Itoa(i)
				die(w.Add(&r))
			}
		}()
	}
	for {
		n := w.Stats().Added
		die(w.Sync())
		fmt.Println(n)
	}
}

// TestKill kills a process under load, again and again in one directory.
func TestKill(t *testing.T) {
	t.Parallel()
	rounds := 30
	if testing.Short() {
		rounds = 5
	}
	dir, rnd := t.TempDir(), rand.New(rand.NewPCG(1, 2))
	var acked, torn uint64
	for range rounds {
		cmd, out := startChild(t, "load", dir)
		timer := time.AfterFunc(time.Hour, func() { cmd.Process.Kill() })
		for n := 0; out.Scan(); n++ {
			if n == 0 { // it works: from now on, at any moment
				timer.Reset(time.Duration(rnd.IntN(60_000)) * time.Microsecond)
			}
			v, err := strconv.ParseUint(out.Text(), 10, 64)
			must(t, err)
			acked = v
		}
		cmd.Wait()
		timer.Stop()
		if _, err := Verify(dir); err != nil { // as the crash left it
			t.Fatal(err)
		}
		must(t, open(t, dir, Options{Now: time.Now, RetainBytes: -1}).Close())
		report := verified(t, dir)
		if report.LastSeq < acked || report.Unsealed != 0 {
			t.Fatalf("acknowledged %d; %+v", acked, report)
		}
		torn = uint64(len(report.Recovered))
	}
	t.Logf("%d records, %d torn tails in the segments kept", acked, torn)
	if acked < 1000 {
		t.Errorf("only %d records: that was no load", acked)
	}
}

// TestTornTail cuts a chain at every byte behind its head, as a crash may,
// and fills the rest with what a file system may show there.
func TestTornTail(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(memDir(t), "x")
	w := open(t, dir, quick())
	add(t, w, 2)
	must(t, w.Sync())
	synced := load(t, dir)
	for range 3 {
		add(t, w, 2)
		must(t, w.Sync())
	}
	must(t, w.Close())
	name := segmentName(1)
	full, from := load(t, dir)[name], len(synced[name])
	fills := map[string]func(n int) []byte{
		"cut":   func(int) []byte { return nil },
		"zeros": func(n int) []byte { return make([]byte, len(full)-n) },
		"lost": func(n int) []byte {
			return append(make([]byte, min(100, len(full)-n)), full[min(n+100, len(full)):]...)
		},
		"garbage": func(n int) []byte { return []byte("{\"seal\":{}}\n\n{\"seal\":{\"first\":1,\"hash\":\"\"}}\n") },
	}
	for what, fill := range fills {
		step := 5
		if what == "cut" {
			step = 1
		}
		for n := from; n < len(full); n += step {
			torn := append(bytes.Clone(full[:n]), fill(n)...)
			synced.with(name, torn).store(t, dir)
			w, err := Open(dir, quick())
			if err != nil {
				t.Fatalf("%s at %d: %v", what, n, err)
			}
			add(t, w, 1)
			must(t, w.Close())
			report := verified(t, dir)
			img := load(t, dir)
			valid := bytes.LastIndex(full[:n], []byte("}}\n")) + 3
			tail := torn[valid:]
			if !bytes.Equal(img[name][:valid], full[:valid]) {
				t.Fatalf("%s at %d: what was valid has changed", what, n)
			}
			if !bytes.Equal(img[name+".torn"], tail) {
				t.Fatalf("%s at %d: kept %q, want %q", what, n, img[name+".torn"], tail)
			}
			if len(tail) > 0 && (len(report.Recovered) != 1 || report.Recovered[0] != Recovered{int64(len(tail)), name + ".torn"}) {
				t.Fatalf("%s at %d: %+v", what, n, report)
			}
		}
	}
	// Before its head, a missing end is no crash.
	for n := range from {
		synced.with(name, full[:n]).store(t, dir)
		before := load(t, dir)
		if _, err := Open(dir, quick()); !errors.As(err, new(*Broken)) {
			t.Fatalf("cut at %d: %v", n, err)
		}
		if !load(t, dir).equal(before) {
			t.Fatalf("cut at %d: the directory was changed", n)
		}
	}
}

// TestTornRotation stops at every byte of a new segment's beginning.
func TestTornRotation(t *testing.T) {
	t.Parallel()
	dir, opt := filepath.Join(memDir(t), "x"), quick()
	opt.SegmentBytes = 1
	w := open(t, dir, opt)
	add(t, w, 1)
	must(t, w.Sync())
	old := load(t, dir)
	add(t, w, 1)
	must(t, w.Close())
	all := load(t, dir)
	last := segmentName(uint64(len(old)))
	if len(all) != len(old)+1 || len(old) != 3 {
		t.Fatalf("not one rotation: %d files, then %d", len(old), len(all))
	}
	// The head as the rotation leaves it.
	delete(all, last)
	previous := segmentName(uint64(len(old) - 1))
	f, err := os.Open(filepath.Join(dir, previous))
	must(t, err)
	defer f.Close()
	e := end{}
	for r := newReader(f, previous); ; {
		b, err := r.read()
		if err != nil {
			break
		}
		e = end{size: b.end, hash: b.hash, last: b.seal.Last}
	}
	all["head"] = head{Segment: uint64(len(old) - 1), Size: e.size, Last: e.last, Hash: e.hash.String()}.encode()
	full, err := os.ReadFile(filepath.Join(dir, last))
	must(t, err)
	for n := range full {
		all.with(last, full[:n]).store(t, dir)
		w, err := Open(dir, quick())
		if err != nil {
			t.Fatalf("cut at %d: %v", n, err)
		}
		add(t, w, 1)
		must(t, w.Close())
		valid := full[:bytes.LastIndex(full[:n], []byte("}}\n"))+1]
		if report := verified(t, dir); report.LastSeq != e.last+1+uint64(bytes.Count(valid, []byte(`"count":1,`))) || report.Segments != len(old) {
			t.Fatalf("cut at %d: %+v", n, report)
		}
	}
	// An old segment has no torn tail: it was synced before the new one began.
	all.with(last, full).with(previous, all[previous][:len(all[previous])-1]).store(t, dir)
	if _, err := Open(dir, quick()); !errors.As(err, new(*Broken)) {
		t.Errorf("got %v", err)
	}
}

// childDiskFull runs into a limit of file size, as into a full disk, and
// prints how many records were accepted in all.
func childDiskFull(dir string) {
	signal.Ignore(syscall.SIGXFSZ)
	limit := func(n uint64) {
		var l syscall.Rlimit
		die(syscall.Getrlimit(syscall.RLIMIT_FSIZE, &l))
		l.Cur = min(n, l.Max)
		die(syscall.Setrlimit(syscall.RLIMIT_FSIZE, &l))
	}
	w, err := Open(dir, Options{Now: time.Now, FlushEvery: time.Millisecond})
	die(err)
	limit(100_000)
	accepted := 0
	for {
		r := whole()
		if err = w.Add(&r); err != nil {
			break
		}
		if accepted++; accepted%50 == 0 {
			w.Sync()
		}
	}
	if !errors.Is(err, syscall.EFBIG) {
		die(fmt.Errorf("expected a full disk, got %w", err))
	}
	if err := w.Sync(); !errors.Is(err, syscall.EFBIG) {
		die(fmt.Errorf("Sync said %v", err))
	}
	if _, err := Verify(dir); err != nil {
		die(err)
	}
	limit(1 << 40)
	die(w.Sync()) // tries at once
	for range 100 {
		r := whole()
		die(w.Add(&r))
		accepted++
	}
	die(w.Close())
	fmt.Println(accepted)
}

// TestDiskFull: while the disk is full Add fails; afterwards all goes on, and
// nothing that was accepted is missing.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd, out := startChild(t, "diskfull", dir)
	var accepted uint64
	for out.Scan() {
		accepted, _ = strconv.ParseUint(out.Text(), 10, 64)
	}
	must(t, cmd.Wait())
	if report := verified(t, dir); report.Records != accepted || accepted < 200 || report.Unsealed != 0 {
		t.Errorf("accepted %d; %+v", accepted, report)
	}
}
