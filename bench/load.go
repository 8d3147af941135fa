package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"
)

const request = "GET /api/items HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: bench/1\r\nAccept: */*\r\n\r\n"

// result is what the clients saw.
type result struct {
	requests int
	elapsed  time.Duration
	p50, p99 time.Duration
}

// load sends requests over conns keep-alive connections for a duration: as
// many as go through, or at a fixed rate, when latency counts from the instant
// at which a request was due, not from when it could be sent.
func load(addr string, conns, rate int, d time.Duration) (result, error) {
	begin := time.Now()
	var wg sync.WaitGroup
	lats := make([][]time.Duration, conns)
	errs := make([]error, conns)
	for i := range conns {
		wg.Go(func() {
			c := client{rate: rate, conns: conns, index: i, begin: begin, deadline: begin.Add(d)}
			lats[i], errs[i] = c.run(addr)
		})
	}
	wg.Wait()
	r := result{elapsed: time.Since(begin)}
	var all []time.Duration
	for _, l := range lats {
		all = append(all, l...)
	}
	slices.Sort(all)
	r.requests = len(all)
	if len(all) > 0 {
		r.p50, r.p99 = all[len(all)/2], all[len(all)*99/100]
	}
	return r, errors.Join(errs...)
}

// client is one connection.
type client struct {
	rate, conns, index int
	begin, deadline    time.Time
	buf                [8 << 10]byte
}

func (c *client) run(addr string) ([]time.Duration, error) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	nc.SetDeadline(c.deadline.Add(5 * time.Second))
	out := []byte(request)
	lats := make([]time.Duration, 0, 1<<14)
	for n := 0; ; n++ {
		due := time.Now()
		if c.rate > 0 {
			due = c.begin.Add(time.Duration(c.index+n*c.conns) * time.Second / time.Duration(c.rate))
			time.Sleep(time.Until(due))
		}
		if !due.Before(c.deadline) {
			return lats, nil
		}
		if _, err := nc.Write(out); err != nil {
			return lats, err
		}
		if err := c.read(nc); err != nil {
			return lats, err
		}
		lats = append(lats, time.Since(due))
	}
}

var (
	headEnd = []byte("\r\n\r\n")
	length  = []byte("Content-Length: ")
	okLine  = []byte("HTTP/1.1 200 ")
)

// read reads one answer, which must be a success.
func (c *client) read(nc net.Conn) error {
	have := 0
	for {
		n, err := nc.Read(c.buf[have:])
		if err != nil {
			return err
		}
		have += n
		end := bytes.Index(c.buf[:have], headEnd)
		if end < 0 {
			continue
		}
		if !bytes.HasPrefix(c.buf[:have], okLine) {
			return fmt.Errorf("answered %q", c.buf[:min(have, 60)])
		}
		i := bytes.Index(c.buf[:end], length)
		if i < 0 {
			return errors.New("the answer has no length")
		}
		digits := c.buf[i+len(length) : end+2]
		size, err := strconv.Atoi(string(digits[:bytes.IndexByte(digits, '\r')]))
		if err != nil {
			return err
		}
		rest := end + len(headEnd) + size - have
		if rest < 0 {
			return errors.New("the answer is longer than its length")
		}
		_, err = io.CopyN(io.Discard, nc, int64(rest))
		return err
	}
}
