//go:build !race

package gate_test

const poolLosses = 0
