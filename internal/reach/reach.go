// Package reach says which addresses may be dialled for a URL that an intent
// names: whoever can have something fetched must not reach what is inside
// (server-side request forgery).
package reach

import (
	"fmt"
	"net/netip"
	"slices"
	"syscall"
)

// Control, of a net.Dialer, refuses to connect where allowed says no. It sees the address that
// is dialled, after names were resolved: a name that resolves to one address
// when it is checked and to another when it is used (DNS rebinding) gains
// nothing (CVE class 13: Istio GO-2026-5363).
func Control(allowed func(netip.Addr) bool) func(network, address string, _ syscall.RawConn) error {
	return func(_, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("address %q cannot be read", address)
		}
		if !allowed(ap.Addr().Unmap()) {
			return fmt.Errorf("address %s is not one that may be fetched from", ap.Addr())
		}
		return nil
	}
}

// Public reports whether a is an address of the internet. For IPv6 that is
// only what is handed out for it, 2000::/3, less what wraps an IPv4 address.
func Public(a netip.Addr) bool {
	if a.Zone() != "" {
		return false
	}
	in := func(p string) bool { return netip.MustParsePrefix(p).Contains(a) }
	if a.Is4() {
		return !slices.ContainsFunc(special4(), in)
	}
	return in("2000::/3") && !slices.ContainsFunc(special6(), in)
}

// special4 is IPv4 that is not of the internet (RFC 6890).
func special4() []string {
	return []string{
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
		"192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",
		"198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
	}
}

// special6 is what in 2000::/3 is not of the internet: protocol assignments
// with Teredo, documentation, 6to4.
func special6() []string {
	return []string{"2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"}
}

// Local reports whether a is public or of one's own network. Where clouds hand
// out the machine's credentials stays out: link-local, and two addresses that
// lie in private ranges.
func Local(a netip.Addr) bool {
	if Public(a) {
		return true
	}
	in := func(p string) bool { return netip.MustParsePrefix(p).Contains(a) }
	if a.Zone() != "" || in("fd00:ec2::/32") || in("100.100.100.200/32") {
		return false
	}
	return a.IsPrivate() || a.IsLoopback() || in("100.64.0.0/10")
}

// Loopback reports whether a is of this host.
func Loopback(a netip.Addr) bool { return a.IsLoopback() }
