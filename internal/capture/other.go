//go:build !linux

package capture

import "context"

// Namespace is a network namespace, of which there is none here.
type Namespace struct{}

// ErrPrivilege is for who may not change what the network of a namespace does.
var ErrPrivilege = ErrUnsupported

// OpenNamespace finds none.
func OpenNamespace(string) (*Namespace, error) { return nil, ErrUnsupported }

// Close does nothing.
func (*Namespace) Close() error { return nil }

// String names nothing.
func (*Namespace) String() string { return "no network namespace" }

// Host says that nothing may be captured.
func (*Namespace) Host() bool { return true }

// Do cannot.
func (*Namespace) Do(func() error) error { return ErrUnsupported }

// Add cannot.
func Add(context.Context, *Namespace, Rules) (Proof, error) { return Proof{}, ErrUnsupported }

// Remove cannot.
func Remove(context.Context, *Namespace) (bool, error) { return false, ErrUnsupported }

// Verify cannot.
func Verify(context.Context, *Namespace, Rules) (Proof, error) { return Proof{}, ErrUnsupported }
