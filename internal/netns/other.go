//go:build !linux

package netns

import "context"

// Namespace is a network namespace, of which only nil is there.
type Namespace struct{}

// Open finds none.
func Open(string) (*Namespace, error) { return nil, ErrUnsupported }

// New makes none.
func New(string) (*Namespace, error) { return nil, ErrUnsupported }

// Close does nothing.
func (*Namespace) Close() error { return nil }

// String names the one that is there.
func (*Namespace) String() string { return "the network of this host" }

// Path leads nowhere.
func (*Namespace) Path() string { return "" }

// Host says that it is the host's own.
func (*Namespace) Host() bool { return true }

// Start runs f.
func (*Namespace) Start(f func() error) error { return f() }

func (*Namespace) do(_ context.Context, f func() error) error { return f() }
