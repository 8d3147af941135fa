package otlp

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// Options of an Exporter.
type Options struct {
	Resource []Attribute // who sends
	Scope    string      // what made the spans
	// Report is told when spans cannot be sent, and with nil when they can
	// again. It may be nil.
	Report func(error)

	// For tests; zero is the default.
	every   time.Duration // the oldest span waits so long: 1 s
	backoff time.Duration // before the second attempt, doubled by each further one: 1 s
	timeout time.Duration // of an attempt: 10 s
}

// Bounds.
const (
	maxPending  = 1 << 20 // bytes of spans that wait
	enough      = 128 << 10
	attempts    = 5
	maxBackoff  = 30 * time.Second
	lastChance  = time.Second // for what is left at the end
	maxAnswer   = 64 << 10
	pathOfSpans = "/v1/traces"
)

// Exporter collects spans and sends them. It is safe for concurrent use. Make
// it with New.
type Exporter struct {
	opt    Options
	client *http.Client

	mu        sync.Mutex
	collector string // base URL; "" for none yet
	pending   []byte // spans, as fields of ScopeSpans
	count     uint64 // of them
	scratch   []byte
	running   bool
	closed    bool
	wake      chan struct{} // there is something, or enough of it
	ctx       context.Context
	end       context.CancelFunc
	done      chan struct{}

	spare   []byte // of the goroutine: memory for pending
	failing bool

	exported, full, lost, refused, failures atomic.Uint64
	queued                                  atomic.Uint64
}

// New makes an Exporter, which does nothing before To.
func New(opt Options) *Exporter {
	def(&opt.every, time.Second)
	def(&opt.backoff, time.Second)
	def(&opt.timeout, 10*time.Second)
	if opt.Report == nil {
		opt.Report = func(error) {}
	}
	e := &Exporter{opt: opt, wake: make(chan struct{}, 1), done: make(chan struct{})}
	e.ctx, e.end = context.WithCancel(context.Background())
	e.client = &http.Client{
		Transport: &http.Transport{ // and no proxy: the environment is not asked
			DialContext:         (&net.Dialer{Timeout: opt.timeout}).DialContext,
			TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout: opt.timeout,
			MaxConnsPerHost:     1,
			IdleConnTimeout:     time.Minute,
			DisableCompression:  true,
		},
		// Whoever answers for the collector must not send the spans elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return e
}

func def(d *time.Duration, otherwise time.Duration) {
	if *d == 0 {
		*d = otherwise
	}
}

// To says where spans go from now on: to a collector with this base URL.
func (e *Exporter) To(collector string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.collector = collector
	if !e.running && !e.closed {
		e.running = true
		go e.run()
	}
}

// Add takes a span, or drops it. It keeps no reference to s or its texts.
func (e *Exporter) Add(s *Span) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.scratch = appendSpan(e.scratch[:0], s)
	size := field(scopeSpansSpans, len(e.scratch))
	if !e.running || e.closed || len(e.pending)+size > maxPending {
		e.full.Add(1)
		return
	}
	before := len(e.pending)
	e.pending = protowire.AppendTag(e.pending, scopeSpansSpans, protowire.BytesType)
	e.pending = protowire.AppendBytes(e.pending, e.scratch)
	e.count++
	e.queued.Add(1)
	if before == 0 || before < enough && len(e.pending) >= enough {
		select {
		case e.wake <- struct{}{}:
		default:
		}
	}
}

// Stats is what has become of spans.
type Stats struct {
	Exported uint64 // taken by the collector
	Full     uint64 // dropped for want of room
	Lost     uint64 // dropped because the collector did not answer, or refused the whole
	Rejected uint64 // dropped by the collector
	Failures uint64 // attempts that failed
	Queued   uint64 // not yet taken, nor dropped
}

// Stats says what has become of spans.
func (e *Exporter) Stats() Stats {
	return Stats{e.exported.Load(), e.full.Load(), e.lost.Load(), e.refused.Load(), e.failures.Load(), e.queued.Load()}
}

// Close sends what is left, if the collector takes it within a second, and ends
// the Exporter.
func (e *Exporter) Close() {
	e.mu.Lock()
	running := e.running && !e.closed
	e.closed = true
	e.mu.Unlock()
	e.end()
	if running {
		<-e.done
	}
	e.client.CloseIdleConnections()
}

// run sends until Close.
func (e *Exporter) run() {
	defer close(e.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Stop()
		select {
		case <-e.wake:
		case <-e.ctx.Done():
			e.last()
			return
		}
		timer.Reset(e.opt.every)
		select {
		case <-e.wake: // enough
		case <-timer.C:
		case <-e.ctx.Done():
			e.last()
			return
		}
		if spans, count, to := e.take(); count > 0 {
			e.send(spans, count, to)
			e.spare = spans[:0]
		}
	}
}

// take takes what is pending.
func (e *Exporter) take() (spans []byte, count uint64, collector string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	spans, count = e.pending, e.count
	e.pending, e.count = e.spare, 0
	e.spare = nil
	return spans, count, e.collector
}

// last is the end: one more attempt, and a short one.
func (e *Exporter) last() {
	spans, count, to := e.take()
	if count == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), min(lastChance, e.opt.timeout))
	defer cancel()
	if _, err := e.attempt(ctx, request(e.opt.Resource, e.opt.Scope, spans), count, to); err != nil {
		e.lost.Add(count)
		e.opt.Report(fmt.Errorf("%d spans are lost: %w", count, err))
	}
	e.settle(count)
}

func (e *Exporter) settle(count uint64) { e.queued.Add(^(count - 1)) }

// send makes attempts until the spans are taken or lost.
func (e *Exporter) send(spans []byte, count uint64, to string) {
	defer e.settle(count)
	body := request(e.opt.Resource, e.opt.Scope, spans)
	backoff := e.opt.backoff
	for n := 1; ; n++ {
		ctx, cancel := context.WithTimeout(e.ctx, e.opt.timeout)
		wait, err := e.attempt(ctx, body, count, to)
		cancel()
		if err == nil {
			if e.failing {
				e.failing = false
				e.opt.Report(nil)
			}
			return
		}
		if !e.failing {
			e.failing = true
			e.opt.Report(err)
		}
		if n == attempts || wait < 0 || e.ctx.Err() != nil {
			e.lost.Add(count)
			return
		}
		// With chance in it, so that a thousand gates do not come back at once.
		pause := max(wait, backoff/2+rand.N(backoff/2+1))
		backoff = min(2*backoff, maxBackoff)
		select {
		case <-time.After(min(pause, maxBackoff)):
		case <-e.ctx.Done():
			e.lost.Add(count)
			return
		}
	}
}

// attempt sends once. After an error it says how long the collector wants to be
// left alone; less than 0 means that there is no use in another attempt.
func (e *Exporter) attempt(ctx context.Context, body []byte, count uint64, to string) (wait time.Duration, err error) {
	defer func() {
		if err != nil {
			e.failures.Add(1)
		}
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to+pathOfSpans, bytes.NewReader(body))
	if err != nil {
		return -1, err
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	req.Header.Set("User-Agent", "merlon")
	res, err := e.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	switch res.StatusCode {
	case http.StatusOK:
		if err != nil {
			answer = nil // what it said of single spans is not known; it has them
		}
		dropped := min(rejected(answer), count)
		e.exported.Add(count - dropped)
		e.refused.Add(dropped)
		return 0, nil
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		seconds, _ := strconv.Atoi(res.Header.Get("Retry-After"))
		return min(time.Duration(max(seconds, 0))*time.Second, maxBackoff), status(res)
	}
	return -1, status(res)
}

func status(res *http.Response) error {
	return errors.New("the collector answers " + strconv.Itoa(res.StatusCode))
}
