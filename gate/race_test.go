//go:build race

package gate_test

// The race detector makes sync.Pool forget at random, and crypto/tls keeps its
// buffers in one.
const poolLosses = 4
