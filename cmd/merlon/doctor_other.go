//go:build !linux

package main

// hostNotes says what this kernel lacks; elsewhere sockowner.Supported has said it.
func hostNotes() []finding { return nil }
