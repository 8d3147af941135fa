//go:build race

package gate_test

// The race detector makes sync.Pool forget at random, and crypto/tls keeps its
// buffers in one.
const poolLosses = 16

// memoryFactor is how much more memory a process needs with the race detector.
const memoryFactor = 8
