//go:build unix && !linux

package supervise

import "errors"

func deathSignal() error { return errors.New("this system has no death signal") }

// playSockets has nothing to try.
func playSockets() {}
