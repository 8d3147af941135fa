package main

import (
	"errors"
	"fmt"
	"net"
	"sync"

	"merlon"
	"merlon/gate"
	"merlon/internal/sockowner"
)

// own tells the gate's own service from the other processes of the host by the
// user that the orders name. Without one every process is taken for it.
type own struct {
	looking sync.Mutex // for strangers: one at a time

	mu    sync.Mutex
	named bool
	uid   uint32
}

// swap puts orders in force: first who may call, then what. Orders that name a
// user who is not there are refused.
func (w *own) swap(g *gate.Gate, orders *merlon.Orders) error {
	named, uid := false, uint32(0)
	if svc := orders.Intent.Service(orders.Place.Service); svc != nil && svc.Workload != nil {
		if !sockowner.Supported() {
			return fmt.Errorf("%v: the workload of %s: %w", svc.Workload.Pos, svc.Name, sockowner.ErrUnsupported)
		}
		var err error
		if uid, err = sockowner.UserID(svc.Workload.UnixUser); err != nil {
			return fmt.Errorf("%v: the workload of %s cannot be recognised: %w", svc.Workload.Pos, svc.Name, err)
		}
		named = true
	}
	w.mu.Lock()
	w.named, w.uid = named, uid
	w.mu.Unlock()
	return g.Swap(orders)
}

// check is gate.Config.Own.
func (w *own) check(c net.Conn) error {
	w.mu.Lock()
	named, uid := w.named, w.uid
	w.mu.Unlock()
	if !named {
		return nil
	}
	s, err := sockowner.Peer(c)
	if err != nil || s.UID == uid {
		return err
	}
	w.looking.Lock()
	defer w.looking.Unlock()
	return errors.New("the caller is " + sockowner.Describe(s) + fmt.Sprintf("; admitted is uid %d", uid))
}
