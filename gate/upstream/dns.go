package upstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

const (
	dnsPrefix     = "dns:"
	lookupTimeout = 5 * time.Second
	maxAddresses  = 256 // of one name: an answer is not ours to trust
)

// name is a dns: address and what it stands for. Fields but the first three
// are guarded by Cluster.mu.
type name struct {
	host, port string
	cancel     context.CancelFunc
	soon       chan struct{} // asks for a lookup before its time

	addresses []string // last good answer; host:port, sorted
	asked     bool     // there was an answer, or a failure
	err       error    // of the last lookup
}

// watch starts to resolve the wanted names that are new and stops with those
// that are gone. c.mu is held.
func (c *Cluster) watch() {
	for e, n := range c.names {
		if !slices.Contains(c.wanted, e) {
			n.cancel()
			delete(c.names, e)
		}
	}
	for _, e := range c.wanted {
		hostport, ok := strings.CutPrefix(e.Address, dnsPrefix)
		if !ok || c.names[e] != nil {
			continue
		}
		ctx, cancel := context.WithCancel(c.ctx)
		n := &name{cancel: cancel, soon: make(chan struct{}, 1)}
		c.names[e] = n
		if n.host, n.port, n.err = net.SplitHostPort(hostport); n.err != nil {
			n.asked = true // and never answered
			continue
		}
		c.wg.Go(func() { c.resolve(ctx, n) })
	}
}

// resolve keeps the addresses of n fresh until ctx ends.
func (c *Cluster) resolve(ctx context.Context, n *name) {
	failures := 0
	for ctx.Err() == nil {
		if c.lookup(ctx, n) {
			failures = 0
		} else {
			failures++
		}
		select {
		case <-ctx.Done():
			return
		case <-c.cfg.after(minRefresh):
		}
		wait := c.cfg.RefreshEvery
		if failures > 0 {
			wait = min(wait, minRefresh<<min(failures-1, 10))
		}
		// Spread out, so that a thousand gates do not ask in one instant.
		wait += time.Duration(rand.Int64N(int64(wait)/5+1)) - minRefresh
		if wait <= 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-n.soon:
		case <-c.cfg.after(wait):
		}
	}
}

// lookup asks once. A failure, NXDOMAIN and an empty answer too, changes
// nothing: the last good addresses stay, for a name server that is away must
// not take every service with it, and an address that is really dead is
// ejected soon enough.
func (c *Cluster) lookup(ctx context.Context, n *name) bool {
	ask, cancel := context.WithTimeout(ctx, lookupTimeout)
	addrs, err := c.cfg.Resolver.LookupNetIP(ask, "ip", n.host)
	cancel()
	if err == nil && len(addrs) == 0 {
		err = errors.New("no addresses")
	}
	addresses := hostports(addrs, n.port)

	c.mu.Lock()
	n.asked, n.err = true, err // if n is not wanted any more, this has no effect
	var gone []*endpoint
	if err == nil && !slices.Equal(addresses, n.addresses) {
		n.addresses = addresses
		gone = c.rebuild()
	} else {
		c.notify()
	}
	c.mu.Unlock()
	for _, ep := range gone {
		ep.retire()
	}
	return err == nil
}

// hostports is the addresses in a stable order, without duplicates.
func hostports(addrs []netip.Addr, port string) []string {
	addrs = slices.Clone(addrs)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	addrs = addrs[:min(len(addrs), maxAddresses)]
	out := make([]string, len(addrs))
	for i, a := range addrs {
		out[i] = net.JoinHostPort(a.String(), port)
	}
	return out
}

// resolveSoon asks for a lookup after a connection could not be made: the
// service may have moved. The floor between lookups stays.
func (c *Cluster) resolveSoon(ep *endpoint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.names {
		if slices.Contains(n.addresses, ep.Address) {
			select {
			case n.soon <- struct{}{}:
			default:
			}
		}
	}
}

// await waits until there is an endpoint: until every name has been asked
// once, at most ConnectTimeout.
func (c *Cluster) await(ctx context.Context) (*set, error) {
	timeout := time.NewTimer(c.cfg.ConnectTimeout)
	defer timeout.Stop()
	for {
		c.mu.Lock()
		s, changed, asked, cause := c.set.Load(), c.changed, true, error(nil)
		for _, n := range c.names {
			asked = asked && n.asked
			if n.err != nil {
				cause = fmt.Errorf("resolve %q: %w", n.host, n.err)
			}
		}
		c.mu.Unlock()
		switch {
		case len(s.all) > 0:
			return s, nil
		case c.ctx.Err() != nil:
			return nil, c.fail(ReasonClosed, "", nil)
		case asked:
			return nil, c.fail(ReasonNoEndpoint, "", cause)
		}
		select {
		case <-changed:
		case <-timeout.C:
			return nil, c.fail(ReasonNoEndpoint, "", context.DeadlineExceeded)
		case <-ctx.Done():
			return nil, c.fail(ReasonCancelled, "", context.Cause(ctx))
		}
	}
}

// notify wakes the calls that wait for an endpoint. c.mu is held.
func (c *Cluster) notify() {
	close(c.changed)
	c.changed = make(chan struct{})
}
