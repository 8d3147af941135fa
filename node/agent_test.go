package node

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"merlon"
)

// TestAgent: an agent takes what is pushed, has SVIDs signed while it does, and
// gives up all when the node is removed.
func TestAgent(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a := s.agent(withToken(s.token("n1")))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	t.Cleanup(cancel)
	services := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; {
			changed := a.Changed()
			a.mu.Lock()
			var names []string
			for _, svc := range a.kept.View.Services {
				names = append(names, svc.Name)
			}
			a.mu.Unlock()
			if strings.Join(names, " ") == want {
				return
			}
			select {
			case <-changed:
			case <-time.After(time.Until(deadline)):
				t.Fatalf("the agent has %q, want %q\n%s", names, want, s.log)
			}
		}
	}
	services("c")
	id := "spiffe://" + domain + "/c"
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			source, err := a.Source(ctx, id, nil)
			if err != nil || source.SVID() == nil {
				t.Error(err)
			}
			if token, until, err := a.IssueJWT(id, []string{"https://db"}, time.Now()); err != nil || token == "" || until.IsZero() {
				t.Error(token, until, err)
			}
		})
	}
	more := intentOf()
	more.Services[1].Nodes = []string{"n1", "n2"}
	s.server.Set(more)
	services("c d")
	wg.Wait()
	if kept := a.store.pair(svidFile("c"), time.Now(), func(have string) bool { return have == id }); kept == nil {
		t.Error("the SVID is not kept")
	}
	if k, err := ReadKept(a.store.dir); err != nil || k.Node != "n1" || len(k.Intent().Services) != 2 {
		t.Errorf("%+v %v", k, err)
	}
	s.server.Set(intentOf(merlon.Node{Name: "n2", JoinToken: true}))
	services("")
	select {
	case err := <-ended:
		if !errors.Is(err, errJoin) {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatalf("the agent goes on\n%s", s.log)
	}
	if kept := a.store.pair(svidFile("c"), time.Now(), func(string) bool { return true }); kept != nil {
		t.Error("the SVID of a service is kept by who is no node")
	}
}
