package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
)

// The roles that this program plays beside that of the harness.
var roles = map[string]func(*hop) error{
	"relay":   runRelay,
	"reverse": runReverse,
	"app":     runApp,
	"grpc":    runGRPC,
}

func play(role, spec string) error {
	run := roles[role]
	if run == nil {
		return fmt.Errorf("there is no role %q", role)
	}
	h := new(hop)
	if err := json.Unmarshal([]byte(spec), h); err != nil {
		return fmt.Errorf("-hop: %w", err)
	}
	return run(h)
}

// accept serves every connection in a goroutine of its own.
func accept(listen string, serve func(net.Conn)) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go serve(c)
	}
}

// runRelay passes bytes on without reading them: the floor. It serves one
// client in one goroutine, as the gate does: a request in, the answer out. It
// knows that each is one read.
func runRelay(h *hop) error {
	return accept(h.Listen, func(c net.Conn) {
		defer c.Close()
		up, err := net.Dial("tcp", h.Upstream)
		if err != nil {
			return
		}
		defer up.Close()
		buf := make([]byte, 16<<10)
		for from, to := c, up; ; from, to = to, from {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
	})
}

// runReverse is what the standard library offers.
func runReverse(h *hop) error {
	transport := &http.Transport{MaxIdleConns: 512, MaxIdleConnsPerHost: 512, DisableCompression: true, Protocols: protocols(h.Back)}
	server := &http.Server{Addr: h.Listen, Protocols: protocols(h.Front), ErrorLog: log.New(io.Discard, "", 0)}
	scheme := "http"
	if h.Back.Mutual || h.Front.Mutual {
		ca, err := os.ReadFile(h.CA)
		if err != nil {
			return err
		}
		pair, err := tls.LoadX509KeyPair(h.Cert, h.Key)
		if err != nil {
			return err
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(ca)
		if h.Back.Mutual {
			scheme = "https"
			transport.TLSClientConfig = &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, ServerName: h.Host(), MinVersion: tls.VersionTLS13}
		} else {
			server.TLSConfig = &tls.Config{ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13}
		}
	}
	server.Handler = &httputil.ReverseProxy{Transport: transport, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: scheme, Host: h.Upstream})
		r.SetXForwarded()
		r.Out.Host = r.In.Host
	}}
	if h.Front.TLS {
		return server.ListenAndServeTLS(h.Cert, h.Key)
	}
	return server.ListenAndServe()
}

func protocols(s side) *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(!s.HTTP2)
	p.SetHTTP2(s.HTTP2 && s.TLS)
	p.SetUnencryptedHTTP2(s.HTTP2 && !s.TLS)
	return p
}

// Paths of small and large answers.
const (
	smallPath     = "/api/items"
	largePath     = "/api/items/large"
	smallGRPCPath = "/bench.Items/Get"
	largeGRPCPath = "/bench.Items/GetLarge"
)

// runApp is the service. It looks for the end of a head and no further: the
// load sends no bodies.
func runApp(h *hop) error {
	answer := func(size int) []byte {
		body := `{"items":"` + strings.Repeat("x", size-12) + `"}`
		return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	}
	little, much := answer(small), answer(large)
	return accept(h.Listen, func(c net.Conn) {
		defer c.Close()
		buf := make([]byte, 16<<10)
		for have := 0; ; {
			n, err := c.Read(buf[have:])
			if err != nil {
				return
			}
			have += n
			for {
				end := bytes.Index(buf[:have], headEnd)
				if end < 0 {
					break
				}
				out := little
				if bytes.HasPrefix(buf[:end], []byte("GET "+largePath+" ")) {
					out = much
				}
				have = copy(buf, buf[end+len(headEnd):have])
				if _, err := c.Write(out); err != nil {
					return
				}
			}
		}
	})
}

// runGRPC is the service that speaks gRPC: an answer is one message with one
// field of bytes.
func runGRPC(h *hop) error {
	answer := func(size int) []byte {
		message := binary.AppendUvarint([]byte{1<<3 | 2}, uint64(size))
		message = append(message, bytes.Repeat([]byte("x"), size)...)
		return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
	}
	little, much := answer(small), answer(large)
	server := &http.Server{Addr: h.Listen, Protocols: protocols(side{HTTP2: true}), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		out := little
		if r.URL.Path == largeGRPCPath {
			out = much
		}
		w.Header()["Content-Type"] = []string{"application/grpc"}
		w.Header()["Trailer"] = []string{"Grpc-Status"}
		w.Write(out)
		w.Header()["Grpc-Status"] = []string{"0"}
	})}
	return server.ListenAndServe()
}
