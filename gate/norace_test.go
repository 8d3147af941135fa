//go:build !race

package gate_test

const poolLosses = 0

// memoryFactor is how much more memory a process needs with the race detector.
const memoryFactor = 1
