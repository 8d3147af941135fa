//go:build !linux

package capture

import "context"

// ErrPrivilege is for who may not change what the network of a namespace does.
var ErrPrivilege = ErrUnsupported

// Add cannot.
func Add(context.Context, Namespace, Rules) (Proof, error) { return Proof{}, ErrUnsupported }

// Remove cannot.
func Remove(context.Context, Namespace) (bool, error) { return false, ErrUnsupported }

// Verify cannot.
func Verify(context.Context, Namespace, Rules) (Proof, error) { return Proof{}, ErrUnsupported }
