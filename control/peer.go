package control

import (
	"context"
	"fmt"
	"net"
	"os/user"
	"strconv"
)

// peer is the process at the other end of the socket, as the kernel knows it.
type peer struct{ uid, pid int }

type peerKey struct{}

// name is the user's name, with the number that the kernel vouches for.
func (p peer) name() string {
	if u, err := user.LookupId(strconv.Itoa(p.uid)); err == nil {
		return fmt.Sprintf("%s (uid %d)", u.Username, p.uid)
	}
	return fmt.Sprintf("uid %d", p.uid)
}

// withPeer is the context of a connection, with its peer when it is known.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	if p, ok := peerOf(c); ok {
		return context.WithValue(ctx, peerKey{}, p)
	}
	return ctx
}
