package workloadapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	"merlon/internal/bucket"
	"merlon/internal/sockowner"
)

// callers finds out, for each connection, which process is at the other end. It
// is what gRPC calls transport credentials: no byte is read before it is known.
type callers struct {
	log *slog.Logger
	now func() time.Time

	mu    sync.Mutex
	all   int
	byPID map[int]int
	said  *bucket.Bucket // refusals that are logged
}

func newCallers(log *slog.Logger, now func() time.Time) *callers {
	return &callers{log: log, now: now, byPID: map[int]int{}, said: bucket.New(maxRefusals, refusalRate, now())}
}

// Bounds of what strangers can make the log say.
const (
	maxRefusals = 20 // at once
	refusalRate = 1  // a second
)

// refused logs who was refused, as long as that does not fill the log.
func (s *callers) refused(text string, attrs ...any) {
	s.mu.Lock()
	ok := s.said.Take(s.now())
	s.mu.Unlock()
	if ok {
		s.log.Warn(text, attrs...)
	}
}

// caller is the process at the other end of a connection, pinned until the
// connection is closed.
type caller struct {
	credentials.CommonAuthInfo
	pid  int
	unix bool

	mu      sync.RWMutex
	process *sockowner.Process // nil when the connection is closed
}

// AuthType names how the caller is known.
func (*caller) AuthType() string { return "process" }

// with calls f with the process, which stays pinned meanwhile.
func (c *caller) with(f func(*sockowner.Process) error) error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.process == nil {
		return sockowner.ErrGone
	}
	return f(c.process)
}

// conn is a connection that lets go of its caller when it is closed.
type conn struct {
	net.Conn
	release func()
}

// Close closes the connection.
func (c *conn) Close() error {
	err := c.Conn.Close()
	c.release()
	return err
}

// ServerHandshake is credentials.TransportCredentials.
func (s *callers) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, err := s.meet(raw)
	if err != nil {
		s.refused("a connection to the Workload API is refused", "from", raw.RemoteAddr().String(), "err", err)
		raw.Close()
		return nil, nil, err
	}
	return &conn{raw, sync.OnceFunc(func() { s.leave(c) })}, c, nil
}

func (s *callers) meet(raw net.Conn) (c *caller, err error) {
	// Counted before anything is looked for: a flood is refused cheaply.
	s.mu.Lock()
	full := s.all >= maxConns
	if !full {
		s.all++
	}
	s.mu.Unlock()
	if full {
		return nil, fmt.Errorf("there are %d connections already", maxConns)
	}
	defer func() {
		if err != nil {
			s.mu.Lock()
			s.all--
			s.mu.Unlock()
		}
	}()
	var p *sockowner.Process
	local, unix := raw.(*net.UnixConn)
	if unix {
		p, err = sockowner.UnixPeer(local)
	} else {
		p, err = sockowner.TCPPeer(raw)
	}
	if err != nil {
		return nil, err
	}
	c = &caller{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, pid: p.PID(), process: p, unix: unix}
	s.mu.Lock()
	n := s.byPID[c.pid]
	if n < maxConnsProcess {
		s.byPID[c.pid]++
	}
	s.mu.Unlock()
	if n >= maxConnsProcess {
		p.Close()
		return nil, fmt.Errorf("process %d has %d connections already", c.pid, n)
	}
	return c, nil
}

func (s *callers) leave(c *caller) {
	s.mu.Lock()
	s.all--
	if s.byPID[c.pid]--; s.byPID[c.pid] == 0 {
		delete(s.byPID, c.pid)
	}
	s.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.process.Close()
	c.process = nil
}

// ClientHandshake is for clients, which this is not.
func (*callers) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.ErrUnsupported
}

// Info says that there is no protocol of its own.
func (*callers) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "process"}
}

// Clone is the same: what is counted is counted together.
func (s *callers) Clone() credentials.TransportCredentials { return s }

// OverrideServerName is for clients.
func (*callers) OverrideServerName(string) error { return errors.ErrUnsupported }
