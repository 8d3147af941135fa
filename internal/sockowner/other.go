//go:build !linux

package sockowner

import "net"

// Supported reports whether this system can tell who is at the other end.
func Supported() bool { return false }

// Peer cannot tell here.
func Peer(net.Conn) (Socket, error) { return Socket{}, ErrUnsupported }

// Process is one process. There is none here.
type Process struct{}

// OpenProcess cannot pin a process here.
func OpenProcess(int) (*Process, error) { return nil, ErrUnsupported }

// Close does nothing.
func (*Process) Close() error { return nil }

// PID is 0.
func (*Process) PID() int { return 0 }

// Executable is not known here.
func (*Process) Executable() string { return "" }

// Holder cannot tell here.
func (*Process) Holder(Socket) (int, error) { return 0, ErrUnsupported }

// Find cannot tell here.
func Find(Socket) (*Process, error) { return nil, ErrUnsupported }
