package sockowner

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strconv"
)

// parseLine reads a line of /proc/net/tcp or tcp6 (proc_net(5)):
//
//	sl: local:port remote:port state tx:rx tr:when retransmits uid timeout inode ...
func parseLine(line []byte) (e entry, ok bool) {
	f := bytes.Fields(line)
	if len(f) < 10 {
		return e, false
	}
	var uid, inode, state uint64
	var oks [5]bool
	e.local, oks[0] = parseHexAddr(f[1])
	e.remote, oks[1] = parseHexAddr(f[2])
	state, oks[2] = parseUint(f[3], 16, 8)
	uid, oks[3] = parseUint(f[7], 10, 32)
	inode, oks[4] = parseUint(f[9], 10, 64)
	e.state, e.UID, e.Inode = uint8(state), uint32(uid), inode
	return e, oks == [5]bool{true, true, true, true, true}
}

// parseHexAddr reads such as 0100007F:1F90: words of an address as the machine
// orders their bytes, and a port.
func parseHexAddr(b []byte) (netip.AddrPort, bool) {
	host, port, found := bytes.Cut(b, []byte(":"))
	p, ok := parseUint(port, 16, 16)
	if !found || !ok || len(port) != 4 || len(host) != 8 && len(host) != 32 {
		return netip.AddrPort{}, false
	}
	var ip [16]byte
	n, err := hex.Decode(ip[:], host)
	if err != nil {
		return netip.AddrPort{}, false
	}
	for w := ip[:n]; len(w) > 0; w = w[4:] {
		binary.NativeEndian.PutUint32(w, binary.BigEndian.Uint32(w))
	}
	addr, _ := netip.AddrFromSlice(ip[:n])
	return netip.AddrPortFrom(addr.Unmap(), uint16(p)), true
}

func parseUint(b []byte, base, bits int) (uint64, bool) {
	n, err := strconv.ParseUint(string(b), base, bits)
	return n, err == nil
}

// stat is what a tree of processes is known by.
type stat struct {
	parent, session int
}

// parseStat reads /proc/PID/stat (proc_pid_stat(5)). The name of the program is
// in parentheses, chosen by whoever runs it, and may hold anything, such as
// further parentheses and numbers: what counts begins after the last one.
func parseStat(b []byte) (s stat, ok bool) {
	i := bytes.LastIndexByte(b, ')')
	f := bytes.Fields(b[i+1:])
	if i < 0 || len(f) < 4 || len(f[0]) != 1 {
		return s, false
	}
	parent, ok1 := parseUint(f[1], 10, 31)
	session, ok2 := parseUint(f[3], 10, 31)
	return stat{int(parent), int(session)}, ok1 && ok2
}
