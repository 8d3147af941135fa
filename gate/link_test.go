package gate

import (
	"errors"
	"log/slog"
	"testing"
)

// TestDefectOfOnePeer: what one peer's frames break ends its connection, writes no
// more, and is counted; the lock that all others wait for is free.
func TestDefectOfOnePeer(t *testing.T) {
	t.Parallel()
	k := &link{g: &Gate{cfg: Config{Log: slog.New(slog.DiscardHandler)}}}
	read := func() (err error) {
		defer k.guard(&err)
		func() {
			k.mu.Lock()
			defer k.mu.Unlock()
			panic("a defect")
		}()
		return nil
	}
	if err := read(); !errors.Is(err, errDefect) {
		t.Error(err)
	}
	if !k.mu.TryLock() || !k.mute || k.g.metrics.defects.Load() != 1 {
		t.Errorf("mute %v, %d defects", k.mute, k.g.metrics.defects.Load())
	}
}
