//go:build unix && !linux

package supervise

import (
	"errors"
	"fmt"
	"syscall"
)

// confine has no portable form.
func confine() error {
	return fmt.Errorf("programs cannot be confined here: %w", errors.ErrUnsupported)
}

// attributes cannot ask for a death signal here: after a SIGKILL of the
// supervisor its programs go on.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

// awaitExit has no portable form.
func awaitExit(int) bool { return false }
