package main

import (
	"bytes"
	"fmt"
	"net"
	"strings"
)

// runRelay passes bytes on without reading them: the floor.
func runRelay(spec string) error {
	listen, upstream, ok := strings.Cut(spec, ",")
	if !ok {
		return fmt.Errorf("-relay wants LISTEN,UPSTREAM")
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go relay(c, upstream)
	}
}

// relay serves one client in one goroutine, as the gate does: a request in,
// the answer out. It knows that each is one read.
func relay(c net.Conn, upstream string) {
	defer c.Close()
	up, err := net.Dial("tcp", upstream)
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
}

// runBackend answers every request with the same 1 KiB of JSON. It looks for
// the end of the head and no further: the load sends no bodies.
func runBackend(listen string) error {
	body := `{"items":"` + strings.Repeat("x", 1024-12) + `"}`
	answer := []byte(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go serve(c, answer)
	}
}

func serve(c net.Conn, answer []byte) {
	defer c.Close()
	buf := make([]byte, 16<<10)
	have := 0
	for {
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
			have = copy(buf, buf[end+len(headEnd):have])
			if _, err := c.Write(answer); err != nil {
				return
			}
		}
	}
}
