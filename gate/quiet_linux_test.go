//go:build amd64 || arm64 || riscv64 || loong64

package gate

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"
)

// quietPair is a quiet connection and its peer.
func quietPair(t *testing.T) (*quiet, net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return new(Gate).hush(near).(*quiet), far
}

// TestQuietHolds: a write to a socket without room takes all and does not wait,
// and what it holds leaves in order, also when others write meanwhile.
func TestQuietHolds(t *testing.T) {
	t.Parallel()
	q, far := quietPair(t)
	var sent []byte
	write := func() {
		piece := bytes.Repeat([]byte{byte(len(sent) >> 14)}, 16<<10)
		sent = append(sent, piece...)
		if n, err := q.Write(piece); n != len(piece) || err != nil {
			t.Fatalf("%d written, %v", n, err)
		}
	}
	for !q.holds() {
		write()
	}
	write() // what is held already comes first
	got := make(chan []byte)
	go func() {
		all, _ := io.ReadAll(far)
		got <- all
	}()
	if err := q.drain(); err != nil || q.holds() {
		t.Fatalf("still held, %v", err)
	}
	write()
	if err := q.drain(); err != nil {
		t.Fatal(err)
	}
	q.CloseWrite()
	if !bytes.Equal(<-got, sent) {
		t.Error("other bytes came than were written")
	}
}

// TestQuietIsBounded: who goes on writing to a socket without room waits at last,
// and a deadline ends that.
func TestQuietIsBounded(t *testing.T) {
	t.Parallel()
	q, _ := quietPair(t)
	for !q.holds() {
		q.Write(make([]byte, 64<<10))
	}
	q.SetWriteDeadline(time.Unix(1, 0))
	for written := 0; ; written += 64 << 10 {
		if _, err := q.Write(make([]byte, 64<<10)); err != nil {
			return
		}
		if written > 2*maxHeld {
			t.Fatal("it holds more and more")
		}
	}
}
