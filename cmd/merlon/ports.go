package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"merlon/internal/netns"
	"merlon/internal/private"
)

// ports remembers where gates listened, so that a service that was told its
// gate's address finds it there after a restart.
type ports struct {
	file string
	at   map[string]string // such as "orders/in" -> 127.0.0.1:43210
}

func readPorts(file string) (*ports, error) {
	p := &ports{file: file, at: map[string]string{}}
	data, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return p, nil
	}
	if err == nil {
		err = p.read(data)
	}
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w; hint: remove it, and gates choose new ports", file, err)
	}
	return p, nil
}

// read takes only what write wrote: an address of another host, or of all of
// them, would put a service's own port where others reach it.
func (p *ports) read(data []byte) error {
	if err := json.Unmarshal(data, &p.at); err != nil {
		return err
	}
	if p.at == nil {
		return errors.New("there is nothing in it")
	}
	for name, address := range p.at {
		a, err := netip.ParseAddrPort(address)
		if err != nil || !a.Addr().IsLoopback() || a.Port() == 0 {
			return fmt.Errorf("%q: %q is no port of this host alone", name, address)
		}
	}
	return nil
}

// listen listens where name did before, or on any loopback port if name is new
// or that place is taken, which is moved then.
func (p *ports) listen(n *netns.Namespace, name string) (l net.Listener, moved string, err error) {
	old := p.at[name]
	if old != "" {
		if l, err := n.Listen(old); err == nil {
			return l, "", nil
		}
	}
	if l, err = n.Listen("127.0.0.1:0"); err != nil {
		return nil, "", err
	}
	p.at[name] = l.Addr().String()
	if err := p.write(); err != nil {
		l.Close()
		return nil, "", err
	}
	return l, old, nil
}

func (p *ports) write() error {
	data, err := json.MarshalIndent(p.at, "", "  ")
	if err != nil {
		return err
	}
	return private.Replace(p.file, append(data, '\n'))
}
