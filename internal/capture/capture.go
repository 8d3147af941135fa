// Package capture makes the kernel bring the TCP connections that the programs
// of a network namespace open to the gate that stands beside them, and refuse
// those that reach the service past its gate.
//
// It writes one table of nftables, whole or not at all, reads it back and tries
// it. The rules hold programs that run as another user than the gate and may
// neither become that user nor change the rules: those without CAP_SETUID,
// CAP_NET_ADMIN and CAP_NET_RAW. A mark is no way past them, since none is asked
// for.
package capture

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Table is the name of the table, of the family inet. No other is touched.
const Table = "merlon"

// Rules is what the table is to do.
type Rules struct {
	Port      uint16       // of the loopback addresses, where the gate takes captured connections
	Gate      uint32       // the user id that the gate runs as, and nothing else does
	Service   []uint16     // ports of the service, which only the gate may reach
	Loopback  []uint16     // ports of the loopback addresses that are captured too
	Resolvers []netip.Addr // name servers that may be asked over TCP
}

// Namespace is the network namespace of the programs: Do runs f on a thread that
// is in it, String names it for people.
type Namespace interface {
	Do(f func() error) error
	String() string
}

// ErrUnsupported is for systems without nftables.
var ErrUnsupported = errors.New("calls can be captured on Linux only")

// check refuses rules that would hold nobody, or that contradict themselves.
func (r *Rules) check() error {
	switch {
	case r.Port == 0:
		return errors.New("the port of the gate is missing")
	case r.Gate == 0:
		return errors.New("the gate runs as root: its rules would let every program of root past; let it run as a user of its own")
	case slices.Contains(r.Service, 0), slices.Contains(r.Loopback, 0):
		return errors.New("0 is no port")
	case slices.Contains(r.Service, r.Port), slices.Contains(r.Loopback, r.Port):
		return fmt.Errorf("port %d is the gate's own", r.Port)
	case len(r.Service)+len(r.Loopback)+len(r.Resolvers) > 1000:
		return errors.New("more than 1,000 ports and name servers")
	}
	for _, p := range r.Loopback {
		if slices.Contains(r.Service, p) {
			return fmt.Errorf("port %d is the service's own, and cannot lead elsewhere", p)
		}
	}
	for _, a := range r.Resolvers {
		if !a.IsValid() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
			return fmt.Errorf("%v is no address of a name server", a)
		}
	}
	return nil
}

// Proof is what became of a connection of each family that was tried.
type Proof struct{ IPv4, IPv6 Outcome }

// Outcome is what became of one.
type Outcome uint8

const (
	NoRoute Outcome = iota // there is no way out at all
	NoGate                 // it was brought to the gate's port, where nobody is
	Taken                  // it was brought to the gate
)

// String says it for people.
func (o Outcome) String() string {
	return [...]string{"no way out", "captured, but no gate is there yet: calls are refused", "captured by the gate"}[o]
}
