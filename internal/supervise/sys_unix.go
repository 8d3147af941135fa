//go:build unix && !linux

package supervise

import "syscall"

// attributes cannot ask for a death signal here: after a SIGKILL of the
// supervisor its programs go on.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

// awaitExit has no portable form.
func awaitExit(int) bool { return false }
