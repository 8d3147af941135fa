package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"merlon"
	"merlon/attest"
	"merlon/gate"
	"merlon/internal/sockowner"
)

// own tells the gate's own service from the other processes of the host by what
// the orders say of its workload. If that is nothing every process is taken for
// it.
type own struct {
	looking sync.Mutex // at processes: one at a time

	mu   sync.Mutex
	rule ownRule
}

// ownRule is what the orders say.
type ownRule struct {
	service  string
	named    bool // a user alone
	uid      uint32
	attestor *attest.Attestor // more than that; nil otherwise
}

// Where container engines listen.
const (
	dockerSocket     = "/var/run/docker.sock"
	containerdSocket = "/run/containerd/containerd.sock"
)

// ruleOf reads the orders. What cannot be checked here is an error.
func ruleOf(orders *merlon.Orders) (r ownRule, err error) {
	svc := orders.Intent.Service(orders.Place.Service)
	if svc == nil || svc.Workload == nil {
		return r, nil
	}
	if !sockowner.Supported() {
		return r, fmt.Errorf("%v: the workload of %s: %w", svc.Workload.Pos, svc.Name, sockowner.ErrUnsupported)
	}
	r.service = svc.Name
	if all := svc.Workload.Selectors(); len(all) != 1 || svc.Workload.UnixUser == "" {
		r.attestor, err = attest.New(&merlon.Intent{Services: []merlon.Service{*svc}}, attest.Options{Docker: dockerSocket, Containerd: containerdSocket})
		return r, err
	}
	if r.uid, err = sockowner.UserID(svc.Workload.UnixUser); err != nil {
		return r, fmt.Errorf("%v: the workload of %s cannot be recognised: %w", svc.Workload.Pos, svc.Name, err)
	}
	r.named = true
	return r, nil
}

// swap puts orders in force: first who may call, then what. Orders that name a
// user who is not there are refused.
func (w *own) swap(g *gate.Gate, orders *merlon.Orders) error {
	rule, err := ruleOf(orders)
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.rule = rule
	w.mu.Unlock()
	return g.Swap(orders)
}

// check is gate.Config.Own.
func (w *own) check(c net.Conn) error {
	w.mu.Lock()
	rule := w.rule
	w.mu.Unlock()
	if !rule.named && rule.attestor == nil {
		return nil
	}
	s, err := sockowner.Peer(c)
	if err != nil || rule.named && s.UID == rule.uid {
		return err
	}
	w.looking.Lock()
	defer w.looking.Unlock()
	if rule.attestor == nil {
		return errors.New("the caller is " + sockowner.Describe(s) + fmt.Sprintf("; admitted is uid %d", rule.uid))
	}
	p, err := sockowner.TCPPeer(c)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := rule.attestor.Check(context.Background(), rule.service, p); err != nil {
		return fmt.Errorf("the caller is %s: %w", sockowner.Describe(s), err)
	}
	return nil
}
