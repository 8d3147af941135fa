package control

import (
	"net"

	"golang.org/x/sys/unix"
)

// peerOf asks the kernel who opened the connection (unix(7), SO_PEERCRED).
func peerOf(c net.Conn) (peer, bool) {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return peer{}, false
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return peer{}, false
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil || err != nil {
		return peer{}, false
	}
	return peer{int(cred.Uid), int(cred.Pid)}, true
}
