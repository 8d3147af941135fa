package main

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestWorstConnections holds what a connection may take at worst, by which
// their number is bounded: clients send bodies that nobody takes, and are sent
// ones that they do not take.
func TestWorstConnections(t *testing.T) {
	t.Parallel()
	const n = 100
	var stuck sync.WaitGroup
	stuck.Add(n)
	end := make(chan struct{})
	s := newStand(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		c.EnableFullDuplex()
		piece := make([]byte, 32<<10)
		for i := 0; ; i++ {
			c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
			if _, err := w.Write(piece); err != nil {
				stuck.Done()
				<-end
				return
			}
		}
	}))
	t.Cleanup(func() { close(end) })
	s.orders("callers: {a: [slow]}\n    maxBody: 1GiB", nil) // more than all buffers of the kernel
	s.start("-procs", "2")
	before, _ := memory(t, s.cmd.Process.Pid)
	config := s.client.Transport.(*http.Transport).TLSClientConfig
	var full sync.WaitGroup
	for range n {
		c, err := tls.Dial("tcp", strings.TrimPrefix(s.url, "https://"), config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.NetConn().Close() })
		full.Go(func() {
			fmt.Fprint(c, "GET /slow HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\n")
			if _, err := bufio.NewReader(io.LimitReader(c, 1)).ReadByte(); err != nil {
				t.Error(err)
				return
			}
			piece := fmt.Sprintf("%x\r\n%s\r\n", 16<<10, make([]byte, 16<<10))
			for {
				c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
				if _, err := io.WriteString(c, piece); err != nil {
					if ne, ok := errors.AsType[net.Error](err); !ok || !ne.Timeout() {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	full.Wait()
	stuck.Wait()
	_, after := memory(t, s.cmd.Process.Pid)
	each := (after - before) << 10 / n
	t.Logf("%d connections that are stuck both ways take %d KiB each", n, each>>10)
	if each > memoryPerConnection {
		t.Errorf("a connection takes %d bytes; the bound is made for %d", each, memoryPerConnection)
	}
}
