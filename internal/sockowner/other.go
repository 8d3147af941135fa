//go:build !linux

package sockowner

import (
	"net"
	"os"
	"time"
)

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

// UnixPeer cannot tell here.
func UnixPeer(*net.UnixConn) (*Process, error) { return nil, ErrUnsupported }

// TCPPeer cannot tell here.
func TCPPeer(net.Conn) (*Process, error) { return nil, ErrUnsupported }

// Credentials are not known here.
func (*Process) Credentials() (Credentials, error) { return Credentials{}, ErrUnsupported }

// Cgroup is not known here.
func (*Process) Cgroup() (string, error) { return "", ErrUnsupported }

// OpenExecutable cannot be done here.
func (*Process) OpenExecutable() (*os.File, error) { return nil, ErrUnsupported }

// OpenInRoot cannot be done here.
func (*Process) OpenInRoot(string) (*os.File, error) { return nil, ErrUnsupported }

// StartedBy cannot tell here.
func (*Process) StartedBy(*Process) (bool, error) { return false, ErrUnsupported }

// Alive is not known here.
func (*Process) Alive() bool { return false }

type version struct{}

// FileVersion knows none.
func FileVersion(*os.File, time.Time) (FileID, bool, error) { return FileID{}, false, ErrUnsupported }
