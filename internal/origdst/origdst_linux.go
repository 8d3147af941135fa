package origdst

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Supported reports whether this system can tell.
func Supported() bool { return true }

// soOriginalDst is SO_ORIGINAL_DST (linux/netfilter_ipv4.h), and IP6T_SO_ORIGINAL_DST
// (linux/netfilter_ipv6/ip6_tables.h).
const soOriginalDst = 80

// Of returns where c, an accepted connection, was going. It asks the kernel, whose
// answer no client can write.
func Of(c net.Conn) (netip.AddrPort, error) {
	local, ok := c.LocalAddr().(*net.TCPAddr)
	sc, conn := c.(syscall.Conn)
	if !ok || !conn {
		return netip.AddrPort{}, fmt.Errorf("%T is no TCP connection of this system", c)
	}
	here := local.AddrPort()
	here = netip.AddrPortFrom(here.Addr().Unmap().WithZone(""), here.Port())
	level := unix.SOL_IPV6
	if here.Addr().Is4() {
		level = unix.SOL_IP
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	var b [28]byte // of a sockaddr_in6
	var n int
	cerr := raw.Control(func(fd uintptr) { n, err = getsockopt(fd, level, b[:]) })
	switch {
	case cerr != nil:
		return netip.AddrPort{}, cerr
	case errors.Is(err, unix.ENOENT): // the kernel does not track the connection
		return netip.AddrPort{}, ErrDirect
	case err != nil:
		return netip.AddrPort{}, os.NewSyscallError("getsockopt SO_ORIGINAL_DST", err)
	}
	to, err := parse(b[:n])
	if err == nil && to == here {
		err = ErrDirect
	}
	return to, err
}

func getsockopt(fd uintptr, level int, b []byte) (int, error) {
	n := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, uintptr(level), soOriginalDst,
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&n)), 0)
	runtime.KeepAlive(b)
	if errno != 0 {
		return 0, errno
	}
	return min(int(n), len(b)), nil
}
