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

// parseStatus reads whom a process runs as from /proc/PID/status
// (proc_pid_status(5)).
func parseStatus(b []byte) (c Credentials, ok bool) {
	var uid, gid bool
	for line := range bytes.Lines(b) {
		name, rest, _ := bytes.Cut(line, []byte(":"))
		f := bytes.Fields(rest)
		switch string(name) {
		case "Uid", "Gid":
			if len(f) != 4 {
				return c, false
			}
			real, ok1 := parseUint(f[0], 10, 32)
			effective, ok2 := parseUint(f[1], 10, 32)
			if !ok1 || !ok2 {
				return c, false
			}
			if string(name) == "Gid" {
				c.GID, gid = uint32(effective), true
			} else {
				c.RealUID, c.UID, uid = uint32(real), uint32(effective), true
			}
		case "Groups":
			for _, word := range f {
				n, ok := parseUint(word, 10, 32)
				if !ok {
					return c, false
				}
				c.Groups = append(c.Groups, uint32(n))
			}
		}
	}
	return c, uid && gid
}

// parseCgroup finds the path in /proc/PID/cgroup (cgroups(7)): that of version
// 2, or where systemd still uses version 1, its own hierarchy there.
func parseCgroup(b []byte) (path string, ok bool) {
	for line := range bytes.Lines(b) {
		f := bytes.SplitN(bytes.TrimSuffix(line, []byte("\n")), []byte(":"), 3)
		if len(f) != 3 || len(f[2]) == 0 || f[2][0] != '/' {
			return "", false
		}
		switch {
		case string(f[1]) == "name=systemd":
			return string(f[2]), true
		case string(f[0]) == "0" && len(f[1]) == 0:
			path = string(f[2])
		}
	}
	return path, path != ""
}
