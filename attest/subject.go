package attest

import (
	"context"
	"io/fs"
	"sync"

	"merlon/internal/sockowner"
)

// subject is a process that is being asked who it is. Each fact is looked up
// when the first selector needs it, and then once: an intent of a thousand
// services costs no more system calls than one of a single service, and all
// selectors decide by the same facts.
type subject struct {
	*sockowner.Process
	credentials func() (sockowner.Credentials, error)
	cgroup      func() (string, error)
	file        func() (fs.FileInfo, error) // that it runs
	digest      func() (string, error)      // of that file
	docker      func() (*dockerContainer, error)
	containerd  func(namespace string) (*containerdContainer, error)
	account     func() (string, error) // of its Kubernetes pod
}

// subject begins a question about a process.
func (a *Attestor) subject(ctx context.Context, p *sockowner.Process) *subject {
	s := &subject{Process: p, credentials: sync.OnceValues(p.Credentials), cgroup: sync.OnceValues(p.Cgroup)}
	s.file = sync.OnceValues(func() (fs.FileInfo, error) {
		f, err := p.OpenExecutable()
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return f.Stat()
	})
	s.digest = sync.OnceValues(func() (string, error) { return a.hashes.executable(ctx, p) })
	s.docker = sync.OnceValues(func() (*dockerContainer, error) { return a.docker.of(ctx, s) })
	in := map[string]func() (*containerdContainer, error){}
	s.containerd = func(namespace string) (*containerdContainer, error) {
		if in[namespace] == nil {
			in[namespace] = sync.OnceValues(func() (*containerdContainer, error) { return a.containerd.of(ctx, s, namespace) })
		}
		return in[namespace]()
	}
	s.account = sync.OnceValues(func() (string, error) { return a.cluster.account(s, a.now()) })
	return s
}

// selector reports whether something holds for a process, and what was seen
// instead, which is asked for by people only. An error says that it could not
// be checked, which is as good as no.
type selector func(*subject) (ok bool, saw func() string, err error)

// said is what was seen, in words that are at hand.
func said(text string) func() string { return func() string { return text } }
