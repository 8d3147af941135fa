package main

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"
)

// result is what the clients saw.
type result struct {
	requests int
	elapsed  time.Duration
	p50, p99 time.Duration
}

// summary makes a result of the times that requests took.
func summary(lats []time.Duration, elapsed time.Duration) result {
	slices.Sort(lats)
	r := result{requests: len(lats), elapsed: elapsed}
	if len(lats) > 0 {
		r.p50, r.p99 = lats[len(lats)/2], lats[len(lats)*99/100]
	}
	return r
}

// first is the first error that there is: the others say the same.
func first(errs []error) error {
	if i := slices.IndexFunc(errs, func(err error) bool { return err != nil }); i >= 0 {
		return errs[i]
	}
	return nil
}

// target is where requests go and how.
type target struct {
	addr    string
	request []byte
	tls     *tls.Config // nil for none
}

// dial connects; from is the client's own address, so that many clients do not
// look like one, or "".
func (t *target) dial(from string) (net.Conn, error) {
	var d net.Dialer
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	c, err := d.Dial("tcp", t.addr)
	if err != nil || t.tls == nil {
		return c, err
	}
	tc := tls.Client(c, t.tls)
	if err := tc.Handshake(); err != nil {
		c.Close()
		return nil, err
	}
	return tc, nil
}

// load sends requests over conns keep-alive connections for a duration: as
// many as go through, or at a fixed rate, when latency counts from the instant
// at which a request was due, not from when it could be sent.
func load(t *target, conns, rate int, d time.Duration) (result, error) {
	begin := time.Now()
	var wg sync.WaitGroup
	lats := make([][]time.Duration, conns)
	errs := make([]error, conns)
	for i := range conns {
		wg.Go(func() {
			c := client{rate: rate, conns: conns, index: i, begin: begin, deadline: begin.Add(d)}
			lats[i], errs[i] = c.run(t)
		})
	}
	wg.Wait()
	return summary(slices.Concat(lats...), time.Since(begin)), first(errs)
}

// client is one connection.
type client struct {
	rate, conns, index int
	begin, deadline    time.Time
	buf                [8 << 10]byte
}

func (c *client) run(t *target) ([]time.Duration, error) {
	nc, err := t.dial("")
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	nc.SetDeadline(c.deadline.Add(5 * time.Second))
	lats := make([]time.Duration, 0, 1<<14)
	for n := 0; ; n++ {
		due := time.Now()
		if due.After(c.deadline) {
			return lats, nil
		}
		if c.rate > 0 {
			due = c.begin.Add(time.Duration(c.index+n*c.conns) * time.Second / time.Duration(c.rate))
			if due.After(c.deadline) {
				return lats, nil
			}
			time.Sleep(time.Until(due))
		}
		if err := c.ask(nc, t.request); err != nil {
			return lats, err
		}
		lats = append(lats, time.Since(due))
	}
}

func (c *client) ask(nc net.Conn, request []byte) error {
	if _, err := nc.Write(request); err != nil {
		return err
	}
	return c.read(nc)
}

var (
	headEnd = []byte("\r\n\r\n")
	length  = []byte("content-length: ")
	okLine  = []byte("HTTP/1.1 200 ")
)

// read reads one answer, which must be a success of known length.
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
		size, err := contentLength(c.buf[:end+2])
		if err != nil {
			return err
		}
		rest := end + len(headEnd) + size - have
		if rest < 0 {
			return errors.New("the answer is longer than its length")
		}
		for rest > 0 {
			n, err := nc.Read(c.buf[:min(rest, len(c.buf))])
			if err != nil {
				return err
			}
			rest -= n
		}
		return nil
	}
}

func contentLength(head []byte) (int, error) {
	for line := range bytes.Lines(head) {
		if len(line) > len(length) && bytes.EqualFold(line[:len(length)], length) {
			return strconv.Atoi(string(bytes.TrimSpace(line[len(length):])))
		}
	}
	return 0, errors.New("the answer has no length")
}

// shake makes full handshakes for a duration, each with one request that shows
// that the server accepted it.
func shake(t *target, workers int, d time.Duration) (result, error) {
	begin := time.Now()
	var wg sync.WaitGroup
	lats := make([][]time.Duration, workers)
	errs := make([]error, workers)
	for i := range workers {
		wg.Go(func() {
			var c client
			for {
				began := time.Now()
				if began.Sub(begin) > d {
					return
				}
				nc, err := t.dial("")
				if err != nil {
					errs[i] = err
					return
				}
				nc.SetDeadline(began.Add(10 * time.Second))
				if err := c.ask(nc, t.request); err != nil {
					errs[i] = err
				}
				nc.Close()
				if errs[i] != nil {
					return
				}
				lats[i] = append(lats[i], time.Since(began))
			}
		})
	}
	wg.Wait()
	return summary(slices.Concat(lats...), time.Since(begin)), first(errs)
}

// crowd is connections that were used once and are idle.
type crowd struct{ conns []net.Conn }

func (c *crowd) close() {
	for _, nc := range c.conns {
		nc.Close()
	}
}

// grow makes it n connections, from one address for each 500.
func (c *crowd) grow(t *target, n int) error {
	const workers = 16
	have := len(c.conns)
	c.conns = append(c.conns, make([]net.Conn, n-have)...)
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			var asker client
			for i := have + w; i < n && errs[w] == nil; i += workers {
				nc, err := t.dial(fmt.Sprintf("127.0.1.%d", 1+i/500))
				if err == nil {
					c.conns[i] = nc
					err = asker.ask(nc, t.request)
				}
				errs[w] = err
			}
		})
	}
	wg.Wait()
	c.conns = slices.DeleteFunc(c.conns, func(nc net.Conn) bool { return nc == nil })
	return first(errs)
}
