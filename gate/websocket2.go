package gate

import (
	"crypto/rand"
	"encoding/base64"
	"strings"

	"merlon/gate/http1"
	"merlon/gate/http2"
)

// A WebSocket over HTTP/2 is an extended CONNECT (RFC 8441). To the code that
// serves calls it looks like the handshake of HTTP/1.1: the lane makes up the key
// that HTTP/2 does without, and turns 101 into 200.

// appendHandshake writes an extended CONNECT as HTTP/1.1 has it.
func appendHandshake(dst []byte, r *http2.Request) []byte {
	dst = http1.AppendRequestLine(dst, "GET", r.Path, r.Query)
	dst = http1.AppendField(dst, "Host", r.Host)
	for i := range r.Fields {
		f := &r.Fields[i]
		if f.Class&(http1.HopByHop|http1.Framing) == 0 && !strings.EqualFold(f.Name, "Sec-WebSocket-Key") {
			dst = http1.AppendField(dst, f.Name, f.Value)
		}
	}
	var nonce [16]byte
	rand.Read(nonce[:])
	dst = append(dst, "Sec-WebSocket-Key: "...)
	dst = base64.StdEncoding.AppendEncode(dst, nonce[:])
	dst = append(dst, "\r\nConnection: Upgrade\r\n"...)
	dst = http1.AppendField(dst, "Upgrade", r.Protocol)
	return http1.AppendEnd(dst)
}

// openTunnel makes the answer that opens a tunnel one of HTTP/2.
func openTunnel(res *http1.Response) {
	if res.Status != 101 {
		return
	}
	res.Status, res.Reason, res.Body = 200, "", http1.BodyClose
	for i := range res.Fields {
		if f := &res.Fields[i]; strings.EqualFold(f.Name, "Sec-WebSocket-Accept") {
			f.Class |= http1.HopByHop
		}
	}
}

// CloseWrite ends what a tunnel sends to the client.
func (l *lane) CloseWrite() error {
	m := l.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if !l.whole {
		if err := l.send(nil, true); err != nil {
			return err
		}
		l.whole = true
	}
	m.flush()
	return nil
}
