// Command workload is a workload as small as one can be: it asks a Workload API
// (SPIFFE Workload API 5.2.1) for its X.509-SVID, holds what it gets to what it
// must be, and writes a line for each. It runs until its standard input ends.
//
//	workload SOCKET
//
// A line is the SPIFFE ID, the serial number of the SVID, when the workload
// connected and when the SVID was here, in microseconds of the Unix clock, and the
// SVID's NotBefore in seconds.
//
// It speaks HTTP/2 by a few constant bytes: a thousand of it fit on one machine,
// and what is measured is the server.
package main

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

func main() {
	go func() { // whoever started it has ended it
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	fmt.Println("failed:", run(os.Args[1:]))
	os.Exit(1)
}

// run never ends well: it asks until it cannot.
func run(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: workload SOCKET")
	}
	connected := time.Now()
	c, err := net.Dial("unix", args[0])
	if err != nil {
		return err
	}
	s := &stream{conn: c, in: bufio.NewReader(c)}
	if err := s.ask(); err != nil {
		return err
	}
	for {
		m, err := s.message()
		if err != nil {
			return err
		}
		here := time.Now()
		id, leaf, err := check(m)
		if err != nil {
			return err
		}
		fmt.Printf("%s %x %d %d %d\n", id, leaf.SerialNumber, connected.UnixMicro(), here.UnixMicro(), leaf.NotBefore.Unix())
	}
}

// check reads the answer: the certificate is for the SPIFFE ID that it comes
// with, and the key is the certificate's.
func check(m []byte) (id string, leaf *x509.Certificate, err error) {
	svid, err := field(m, 1)
	if err != nil {
		return "", nil, err
	}
	name, err := field(svid, 1)
	chain, err2 := field(svid, 2)
	private, err3 := field(svid, 3)
	if err := errors.Join(err, err2, err3); err != nil {
		return "", nil, err
	}
	certs, err := x509.ParseCertificates(chain)
	if err != nil {
		return "", nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(private)
	if err != nil {
		return "", nil, errors.New("the key cannot be read")
	}
	leaf = certs[0]
	if own, ok := key.(*ecdsa.PrivateKey); !ok || !own.PublicKey.Equal(leaf.PublicKey) {
		return "", nil, errors.New("the key is not the certificate's")
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != string(name) {
		return "", nil, fmt.Errorf("the certificate is of %v, not of %q", leaf.URIs, name)
	}
	return string(name), leaf, nil
}

// field is the first field of a message with this number.
func field(m []byte, want protowire.Number) ([]byte, error) {
	for len(m) > 0 {
		number, kind, n := protowire.ConsumeTag(m)
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		m = m[n:]
		if number == want && kind == protowire.BytesType {
			v, n := protowire.ConsumeBytes(m)
			return v, protowire.ParseError(min(n, 0))
		}
		if n = protowire.ConsumeFieldValue(number, kind, m); n < 0 {
			return nil, protowire.ParseError(n)
		}
		m = m[n:]
	}
	return nil, fmt.Errorf("the message has no field %d", want)
}

// stream is the one stream of a connection (RFC 9113).
type stream struct {
	conn net.Conn
	in   *bufio.Reader
	data bytes.Buffer
}

// Types of frames (RFC 9113 6), and their flags.
const (
	data, headers, reset, settings, ping, goAway, windowUpdate = 0, 1, 3, 4, 6, 7, 8
	ack, endStream, endHeaders                                 = 1, 1, 4
)

func frame(b []byte, kind, flags byte, id uint32, payload []byte) []byte {
	b = append(b, byte(len(payload)>>16), byte(len(payload)>>8), byte(len(payload)), kind, flags)
	return append(binary.BigEndian.AppendUint32(b, id), payload...)
}

// ask calls FetchX509SVID.
func (s *stream) ask() error {
	h := []byte{0x83, 0x86} // :method POST, :scheme http (RFC 7541 A)
	text := func(v string) { h = append(append(h, byte(len(v))), v...) }
	h = append(h, 0x04) // :path
	text("/SpiffeWorkloadAPI/FetchX509SVID")
	h = append(h, 0x01) // :authority
	text("localhost")
	h = append(h, 0x0f, 0x10) // content-type
	text("application/grpc")
	for _, header := range [...][2]string{{"te", "trailers"}, {"workload.spiffe.io", "true"}} {
		h = append(h, 0) // a new name
		text(header[0])
		text(header[1])
	}
	b := []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	b = frame(b, settings, 0, 0, nil)
	b = frame(b, headers, endHeaders, 1, h)
	b = frame(b, data, endStream, 1, make([]byte, 5)) // an empty message
	_, err := s.conn.Write(b)
	return err
}

// message is the next message of the stream.
func (s *stream) message() ([]byte, error) {
	for {
		if b := s.data.Bytes(); len(b) >= 5 {
			if n := 5 + int(binary.BigEndian.Uint32(b[1:])); len(b) >= n {
				return bytes.Clone(s.data.Next(n)[5:]), nil
			}
		}
		var head [9]byte
		if _, err := io.ReadFull(s.in, head[:]); err != nil {
			return nil, err
		}
		payload := make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
		if _, err := io.ReadFull(s.in, payload); err != nil {
			return nil, err
		}
		if err := s.take(head[3], head[4], payload); err != nil {
			return nil, err
		}
	}
}

func (s *stream) take(kind, flags byte, payload []byte) error {
	var answer []byte
	switch kind {
	case data:
		s.data.Write(payload)
		if size := binary.BigEndian.AppendUint32(nil, uint32(len(payload))); len(payload) > 0 {
			answer = frame(frame(nil, windowUpdate, 0, 0, size), windowUpdate, 0, 1, size)
		}
	case settings, ping:
		if flags&ack == 0 {
			if kind == settings {
				payload = nil
			}
			answer = frame(nil, kind, ack, 0, payload)
		}
	case headers:
		if flags&endStream != 0 {
			return errors.New("no identity")
		}
	case reset, goAway:
		return fmt.Errorf("the server ended the stream: %q", payload)
	}
	if answer == nil {
		return nil
	}
	_, err := s.conn.Write(answer)
	return err
}
