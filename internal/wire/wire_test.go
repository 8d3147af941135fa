package wire

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"testing"
	"time"
)

// pair is a TLS connection over TCP: the server over a Conn, and the client.
func pair(t *testing.T, version uint16) (server *tls.Conn, below *Conn, client *tls.Conn) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		var err error
		client, err = tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true, MaxVersion: version})
		done <- err
	}()
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	below = New(nc)
	server = tls.Server(below, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err := server.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close(); client.Close() })
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	client.SetDeadline(time.Now().Add(20 * time.Second))
	return server, below, client
}

// TestMemory feeds TLS records cut in all ways. Nothing is lost over any number
// of empty reads, and Exhausted is never wrong.
func TestMemory(t *testing.T) {
	t.Parallel()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		server, below, client := pair(t, version)
		var want []byte
		for range 300 {
			b := make([]byte, 1+mathrand.IntN([]int{10, 600, 20_000, 70_000}[mathrand.IntN(4)]))
			rand.Read(b)
			want = append(want, b...)
		}
		go func() {
			for b := want; len(b) > 0; {
				n := min(1+mathrand.IntN(30_000), len(b))
				client.Write(b[:n])
				b = b[n:]
			}
		}()
		var got []byte
		buf, sealed := make([]byte, 16<<10), make([]byte, 16<<10)
		below.Enter(nil)
		full := true
		for len(got) < len(want) {
			n, err := server.Read(buf)
			got = append(got, buf[:n]...)
			full = n == len(buf)
			if n > 0 {
				if full || !below.Exhausted() {
					continue
				}
				// What Exhausted says must be so; and to ask does no harm.
				if n, err := server.Read(buf); n != 0 || err != ErrEmpty {
					t.Fatalf("exhausted, and then %d bytes, %v", n, err)
				}
			} else if err != ErrEmpty {
				t.Fatal(err)
			}
			if len(got) == len(want) {
				break
			}
			if mathrand.IntN(20) == 0 { // a while without memory
				below.Leave()
				n, err := server.Read(buf)
				if err != nil {
					t.Fatal(err)
				}
				got, full = append(got, buf[:n]...), true
				below.Enter(nil)
				continue
			}
			n, err = below.Conn.Read(sealed[:1+mathrand.IntN(len(sealed))])
			if err != nil {
				t.Fatal(err)
			}
			below.Feed(sealed[:n])
			if mathrand.IntN(4) == 0 {
				below.Keep()
				clear(sealed)
			}
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("TLS %x: what came is not what was sent", version)
		}
		if !below.Between() {
			t.Error("in the middle of a record, after the last one")
		}
		below.Leave()
	}
}

// TestWrites: what is written in memory stays there until it is taken, and is
// good TLS.
func TestWrites(t *testing.T) {
	t.Parallel()
	server, below, client := pair(t, tls.VersionTLS13)
	spare := make([]byte, 0, 64)
	for range 20 {
		below.Enter(spare)
		message := bytes.Repeat([]byte("m"), 40_000)
		for _, part := range [][]byte{message[:10], message[10:]} {
			if _, err := server.Write(part); err != nil {
				t.Fatal(err)
			}
		}
		out := below.Out()
		below.Sent()
		go below.Conn.Write(bytes.Clone(out))
		spare = below.Leave()
		got := make([]byte, len(message))
		if _, err := io.ReadFull(client, got); err != nil || !bytes.Equal(got, message) {
			t.Fatalf("what came is not what was written: %v", err)
		}
	}
}
