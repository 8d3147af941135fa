package sockowner

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Supported reports whether this system can tell who is at the other end.
func Supported() bool { return true }

// Peer is the socket at the other end of c, an accepted TCP connection.
//
// The addresses of a connection name its other end only as long as this end
// lives: the client could have reset it, and another program could have
// connected from the same port since. So this end is looked at last; while it
// is open, the kernel lets nobody else have these addresses.
func Peer(c net.Conn) (Socket, error) {
	want, err := peerTuple(c)
	if err != nil {
		return Socket{}, err
	}
	e, err := find(want)
	if err != nil {
		return Socket{}, err
	}
	s, err := e.held(want)
	if err != nil {
		return Socket{}, err
	}
	return s, stillOpen(c)
}

func stillOpen(c net.Conn) error {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return fmt.Errorf("%T has no descriptor", c)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	var info *unix.TCPInfo
	if cerr := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); cerr != nil {
		return cerr
	}
	if err != nil {
		return os.NewSyscallError("getsockopt", err)
	}
	if info.State != established && info.State != closeWait {
		return ErrNotFound
	}
	return nil
}

// find asks the kernel for one socket: by sock_diag(7), in two system calls
// however many sockets there are, or where that is not built in, such as in
// some sandboxes, by reading the list of all.
func find(want tuple) (entry, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return list(want)
	}
	defer unix.Close(fd)
	e, err := ask(fd, want, 1, false)
	if errors.Is(err, unix.ENOENT) {
		// No such socket, or no such question?
		if _, err := ask(fd, want, 2, true); errors.Is(err, ErrNotFound) {
			return entry{}, ErrNotFound
		}
		return list(want)
	}
	return e, err
}

// ask puts one question. The kernel answers it before Sendto returns.
func ask(fd int, t tuple, seq uint32, dump bool) (entry, error) {
	var buf [1024]byte
	if err := unix.Sendto(fd, appendRequest(buf[:0], t, seq, dump), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return entry{}, os.NewSyscallError("sock_diag: send", err)
	}
	for {
		n, from, err := unix.Recvfrom(fd, buf[:], 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return entry{}, os.NewSyscallError("sock_diag: receive", err)
		}
		// Any process may write to a netlink socket; only the kernel is 0.
		if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 {
			continue
		}
		return parseAnswer(buf[:n], seq)
	}
}

// maxList bounds what is read of a list of sockets: 400,000 of them.
const maxList = 64 << 20

// list looks for a socket in the lists of all.
func list(want tuple) (entry, error) {
	// Of this thread, as sock_diag is: others may be in other network namespaces.
	names := []string{"/proc/thread-self/net/tcp6"}
	if want.local.Addr().Is4() {
		names = []string{"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"}
	}
	for _, name := range names {
		f, err := os.Open(name)
		if errors.Is(err, os.ErrNotExist) {
			continue // without IPv6
		}
		if err != nil {
			return entry{}, err
		}
		e, err := search(f, want)
		f.Close()
		if err != ErrNotFound {
			return e, err
		}
	}
	return entry{}, ErrNotFound
}

func search(r io.Reader, want tuple) (entry, error) {
	lines := bufio.NewScanner(io.LimitReader(r, maxList))
	for lines.Scan() {
		if e, ok := parseLine(lines.Bytes()); ok && e.tuple == want {
			return e, nil
		}
	}
	if err := lines.Err(); err != nil {
		return entry{}, err
	}
	return entry{}, ErrNotFound
}
