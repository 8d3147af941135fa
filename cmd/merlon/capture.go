package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	"merlon/internal/capture"
	"merlon/internal/netns"
	"merlon/internal/sockowner"
)

func newCapture(u *ui) *cobra.Command {
	c := &cobra.Command{
		Use:   "capture",
		Short: "bring the calls of a workload to its gate without a change of its code",
		Long: `capture sets up rules of nftables in the network namespace of a workload (Linux,
as root). Every TCP connection that its programs open to others is brought to the
gate that runs there, started with merlon-gate -capture PORT as a user of its own,
whose connections alone go out. UDP is left alone, and so are connections inside
of the namespace.

The rules are one table, inet ` + capture.Table + `. It is replaced in one step, read back, and
tried with connections that lead nowhere.`,
	}
	c.AddCommand(newCaptureAdd(u), newCaptureVerify(u), newCaptureRemove(u))
	parent(c)
	return c
}

type captureOptions struct {
	netns     string
	port      uint16
	user      string
	service   []uint
	loopback  []uint
	resolvers []string
	host      bool
}

func (o *captureOptions) where(c *cobra.Command) {
	c.Flags().StringVar(&o.netns, "netns", "", "network `namespace`: a process id, a file, or a name of ip netns; default is the one this runs in")
}

func (o *captureOptions) rules(c *cobra.Command) {
	o.where(c)
	c.Flags().BoolVar(&o.host, "host", false, "the network namespace is the host's own: every program of it is captured")
	c.Flags().Uint16Var(&o.port, "port", 15001, "`port` where the gate takes captured connections (merlon-gate -capture)")
	c.Flags().StringVar(&o.user, "gate-user", "", "`user` that the gate runs as, and nothing else does; needed")
	c.Flags().UintSliceVar(&o.service, "service", nil, "`ports` of the service, which nobody but the gate may reach then")
	c.Flags().UintSliceVar(&o.loopback, "loopback", nil, "`ports` of 127.0.0.0/8 and ::1 that are captured too")
	c.Flags().StringSliceVar(&o.resolvers, "resolver", nil, "`addresses` of name servers that may be asked over TCP")
}

// read makes rules of what the command line says.
func (o *captureOptions) read() (r capture.Rules, err error) {
	if o.user == "" {
		return r, usage("--gate-user is missing\nhint: let the gate run as a user of its own, and name that")
	}
	r.Port = o.port
	if r.Gate, err = sockowner.UserID(o.user); err != nil {
		return r, hinted(fmt.Errorf("the user of the gate: %w", err), "make the user on this host, or give its number")
	}
	if r.Service, err = readPortList("--service", o.service); err == nil {
		r.Loopback, err = readPortList("--loopback", o.loopback)
	}
	if err != nil {
		return r, err
	}
	for _, text := range o.resolvers {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return r, usage("--resolver %q is no IP address", text)
		}
		r.Resolvers = append(r.Resolvers, addr)
	}
	return r, nil
}

func readPortList(flag string, list []uint) ([]uint16, error) {
	var ports []uint16
	for _, n := range list {
		if n == 0 || n > 65535 {
			return nil, usage("%s: %d is no port", flag, n)
		}
		ports = append(ports, uint16(n))
	}
	return ports, nil
}

// open opens the namespace. That of the host has to be asked for by name: to
// capture it cuts off all that runs there.
func (o *captureOptions) open() (*netns.Namespace, error) {
	n, err := netns.Open(o.netns)
	if err != nil {
		return nil, plainly(err)
	}
	if n.Host() && !o.host {
		n.Close()
		return nil, hinted(errors.New("this is the network namespace of the host: every program of it would be captured, and cut off without a gate"),
			"name the workload's with --netns, or say --host if this is meant")
	}
	return n, nil
}

// plainly says what is missing.
func plainly(err error) error {
	if errors.Is(err, capture.ErrPrivilege) {
		return hinted(err, "run it as root, such as with sudo")
	}
	return err
}

func newCaptureAdd(u *ui) *cobra.Command {
	var o captureOptions
	c := &cobra.Command{
		Use:   "add --gate-user USER",
		Short: "capture the calls of a network namespace, and see that it holds",
		Args:  takes(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.prove(cmd.Context(), u, capture.Add)
		},
	}
	o.rules(c)
	return c
}

func newCaptureVerify(u *ui) *cobra.Command {
	var o captureOptions
	c := &cobra.Command{
		Use:   "verify --gate-user USER",
		Short: "say whether calls are captured as the same flags of add ask for",
		Args:  takes(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.prove(cmd.Context(), u, capture.Verify)
		},
	}
	o.rules(c)
	return c
}

func (o *captureOptions) prove(ctx context.Context, u *ui, do func(context.Context, capture.Namespace, capture.Rules) (capture.Proof, error)) error {
	r, err := o.read()
	if err != nil {
		return err
	}
	n, err := o.open()
	if err != nil {
		return err
	}
	defer n.Close()
	p, err := do(ctx, n, r)
	if err != nil {
		return plainly(err)
	}
	if u.json {
		u.printJSON(map[string]any{"ok": true, "table": "inet " + capture.Table, "port": r.Port, "gateUID": r.Gate, "ipv4": p.IPv4.String(), "ipv6": p.IPv6.String()})
		return nil
	}
	u.printf("%s: TCP is captured for the gate at port %d, which runs as uid %d\n", n, r.Port, r.Gate)
	u.table("  ", [][]string{{"IPv4", p.IPv4.String()}, {"IPv6", p.IPv6.String()}})
	return nil
}

func newCaptureRemove(u *ui) *cobra.Command {
	var o captureOptions
	c := &cobra.Command{
		Use:   "remove",
		Short: "remove all that add has set up",
		Args:  takes(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := netns.Open(o.netns)
			if err != nil {
				return plainly(err)
			}
			defer n.Close()
			was, err := capture.Remove(cmd.Context(), n)
			switch {
			case err != nil:
				return plainly(err)
			case u.json:
				u.printJSON(map[string]any{"ok": true, "removed": was})
			case was:
				u.printf("%s: nothing is captured any more\n", n)
			default:
				u.printf("%s: nothing was captured\n", n)
			}
			return nil
		},
	}
	o.where(c)
	return c
}
