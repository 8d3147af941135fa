package supervise

import (
	"context"
	"fmt"
	"net"
	"time"
)

// CheckFree reports whether a TCP address can be listened on, so that a port
// in use is found before a program fails over it.
func CheckFree(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	return l.Close()
}

// WaitTCP waits until something accepts connections at addr, the program has
// ended for good, or the context is done.
func (p *Process) WaitTCP(ctx context.Context, addr string) error {
	dial := p.spec.Dial
	if dial == nil {
		dial = func(ctx context.Context, addr string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		}
	}
	pause := 5 * time.Millisecond
	for {
		patience, cancel := context.WithTimeout(ctx, time.Second)
		c, err := dial(patience, addr)
		cancel()
		if err == nil {
			return c.Close()
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
			pause = min(pause*2, 100*time.Millisecond)
		case <-p.done:
			t.Stop()
			return fmt.Errorf("%s ended before it listened on %s: %w", p.spec.Name, addr, endError(p.Last()))
		case <-ctx.Done():
			t.Stop()
			if last := p.Last(); last.Err != nil {
				return fmt.Errorf("%s does not listen on %s: %w (%w)", p.spec.Name, addr, ctx.Err(), last.Err)
			}
			return fmt.Errorf("%s does not listen on %s: %w", p.spec.Name, addr, ctx.Err())
		}
	}
}

func endError(e Exit) error {
	if e.Err != nil {
		return e.Err
	}
	return fmt.Errorf("exit status %d", e.Code)
}
