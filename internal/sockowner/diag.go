package sockowner

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
)

// The messages of sock_diag(7) that ask for one TCP socket by its addresses.
// Numbers are in the byte order of the machine, ports and addresses in that of
// the network.
const (
	netlinkHeader = 16
	diagRequest   = 56 // struct inet_diag_req_v2
	diagAnswer    = 72 // struct inet_diag_msg
	diagID        = 48 // struct inet_diag_sockid, in both

	netlinkError = 2     // NLMSG_ERROR
	netlinkDone  = 3     // NLMSG_DONE
	sockDiag     = 20    // SOCK_DIAG_BY_FAMILY
	flagRequest  = 1     // NLM_F_REQUEST
	flagDump     = 0x300 // NLM_F_DUMP
	familyIPv4   = 2     // AF_INET, on Linux
	familyIPv6   = 10    // AF_INET6, on Linux
	protocolTCP  = 6
)

// errNoAnswer says that a message is not the answer that was expected.
var errNoAnswer = errors.New("sock_diag: the kernel's answer cannot be read")

// appendRequest asks for exactly one socket, or with dump for all of no state:
// that costs nothing, and tells whether the kernel knows the question at all.
func appendRequest(b []byte, t tuple, seq uint32, dump bool) []byte {
	flags, family, states := uint16(flagRequest), uint8(familyIPv4), ^uint32(0)
	if dump {
		flags, states = flagRequest|flagDump, 0
	}
	if t.local.Addr().Is6() {
		family = familyIPv6
	}
	b = binary.NativeEndian.AppendUint32(b, netlinkHeader+diagRequest)
	b = binary.NativeEndian.AppendUint16(b, sockDiag)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0) // to the kernel
	b = append(b, family, protocolTCP, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, states)
	b = binary.BigEndian.AppendUint16(b, t.local.Port())
	b = binary.BigEndian.AppendUint16(b, t.remote.Port())
	b = appendAddr(b, t.local.Addr())
	b = appendAddr(b, t.remote.Addr())
	b = binary.NativeEndian.AppendUint32(b, 0) // any interface
	// No cookie: whatever socket has these addresses.
	return append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
}

func appendAddr(b []byte, a netip.Addr) []byte {
	if a.Is4() {
		ip := a.As4()
		b = append(b, ip[:]...)
		return append(b, make([]byte, 12)...)
	}
	ip := a.As16()
	return append(b, ip[:]...)
}

// parseAnswer reads the one message in b. The error is a syscall.Errno if the
// kernel answered with one.
func parseAnswer(b []byte, seq uint32) (entry, error) {
	if len(b) < netlinkHeader {
		return entry{}, errNoAnswer
	}
	size := binary.NativeEndian.Uint32(b)
	if size < netlinkHeader || uint64(size) > uint64(len(b)) || binary.NativeEndian.Uint32(b[8:]) != seq {
		return entry{}, errNoAnswer
	}
	kind, body := binary.NativeEndian.Uint16(b[4:]), b[netlinkHeader:size]
	switch {
	case kind == netlinkDone:
		return entry{}, ErrNotFound
	case kind == netlinkError && len(body) >= 4:
		errno := -int64(int32(binary.NativeEndian.Uint32(body)))
		if errno <= 0 || errno > 4095 {
			return entry{}, errNoAnswer
		}
		return entry{}, fmt.Errorf("sock_diag: %w", syscall.Errno(errno))
	case kind == sockDiag && len(body) >= diagAnswer:
		return parseDiag(body)
	}
	return entry{}, errNoAnswer
}

func parseDiag(b []byte) (entry, error) {
	e := entry{state: b[1]}
	id, rest := b[4:4+diagID], b[4+diagID:]
	local, remote, ok := addrs(b[0], id[4:20], id[20:36])
	if !ok {
		return entry{}, errNoAnswer
	}
	e.local = netip.AddrPortFrom(local, binary.BigEndian.Uint16(id))
	e.remote = netip.AddrPortFrom(remote, binary.BigEndian.Uint16(id[2:]))
	e.UID = binary.NativeEndian.Uint32(rest[12:])
	e.Inode = uint64(binary.NativeEndian.Uint32(rest[16:]))
	return e, nil
}

func addrs(family uint8, local, remote []byte) (l, r netip.Addr, ok bool) {
	switch family {
	case familyIPv4:
		return netip.AddrFrom4([4]byte(local)), netip.AddrFrom4([4]byte(remote)), true
	case familyIPv6:
		return netip.AddrFrom16([16]byte(local)).Unmap(), netip.AddrFrom16([16]byte(remote)).Unmap(), true
	}
	return l, r, false
}
