//go:build race

package http2_test

// The race detector makes sync.Pool forget at random, and package hpack keeps
// its buffers in one.
const poolLosses = 8
